/*
 * functions.c
 *		The functions that SQL calls, as far as they are in C.
 *
 * Each checks its arguments, finds the organisation with the caller's rights,
 * does one thing and answers with one JSON object, as the callers' contract
 * has it (docs/API_REFERENCE.md). What it does is in the files below.
 */
#include "postgres.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"

#include "catalog.h"
#include "cliniko.h"
#include "clinisync.h"
#include "compat.h"
#include "connection.h"
#include "organization.h"
#include "report.h"
#include "run.h"
#include "secret.h"
#include "worker.h"

/* How much an answer may list. */
#define MOST_LOGS 100
#define MOST_PATIENTS 500

/*
 * How long a text to search for may be, in characters: longer than any name or e-mail
 * address that it could be part of, and each costs a look at every patient.
 */
#define MAX_SEARCH_LENGTH 100

/* What an api_key begins with that is the name of a file: no API key has a colon in it. */
#define FILE_PREFIX "file:"
/* How large that file may be: larger than any key with the blanks around it. */
#define MAX_API_KEY_FILE_SIZE 1024

SQL_FUNCTION(cliniko_connect);
SQL_FUNCTION(cliniko_disconnect);
SQL_FUNCTION(cliniko_set_sync_enabled);
SQL_FUNCTION(cliniko_rotate_key);
SQL_FUNCTION(cliniko_adopt_keys);
SQL_FUNCTION(cliniko_sync_all);
SQL_FUNCTION(cliniko_sync_changes);
SQL_FUNCTION(cliniko_cancel_sync);
SQL_FUNCTION(cliniko_test_connection);
SQL_FUNCTION(cliniko_sync_logs);
SQL_FUNCTION(cliniko_status);
SQL_FUNCTION(cliniko_active_patients);
SQL_FUNCTION(cliniko_list_organizations);
SQL_FUNCTION(cliniko_sync_all_organizations);

/* A text argument as a C string, or NULL. */
static char *
text_argument(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

/* A text argument as a C string, or NULL where it is empty as well. */
static char *
filter_argument(FunctionCallInfo fcinfo, int i)
{
	char	   *text = text_argument(fcinfo, i);

	return text && text[0] != '\0' ? text : NULL;
}

/* A number within bounds, both included; anything else is an error. */
static int32
number_argument(FunctionCallInfo fcinfo, int i, const char *name, int32 lowest, int32 highest)
{
	int32		value = PG_ARGISNULL(i) ? lowest - 1 : PG_GETARG_INT32(i);

	if (value < lowest || value > highest)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_BAD_REQUEST),
				 errmsg("%s must be between %d and %d", name, lowest, highest),
				 errdetail("INVALID_ARGUMENT"),
				 errhint("Pass a number from %d to %d, or leave %s out.", lowest, highest, name)));
	return value;
}

/* A text of at most so many characters, or NULL where it is empty; a longer one is an error. */
static char *
bounded_argument(FunctionCallInfo fcinfo, int i, const char *name, int max_length)
{
	char	   *value = filter_argument(fcinfo, i);

	if (value && pg_mbstrlen(value) > max_length)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_BAD_REQUEST),
				 errmsg("%s must have at most %d characters", name, max_length),
				 errdetail("INVALID_ARGUMENT"),
				 errhint("Pass a shorter %s, or leave it out.", name)));
	return value;
}

/* One of some words, or NULL; anything else is an error. choices end with NULL. */
static char *
choice_argument(FunctionCallInfo fcinfo, int i, const char *name, const char *const *choices)
{
	char	   *value = filter_argument(fcinfo, i);
	StringInfoData list;

	if (value == NULL)
		return NULL;
	initStringInfo(&list);
	for (const char *const *choice = choices; *choice; choice++)
	{
		if (strcmp(value, *choice) == 0)
			return value;
		appendStringInfo(&list, "%s%s", choice == choices ? "" : ", ", *choice);
	}
	ereport(ERROR,
			(errcode(ERRCODE_CLINISYNC_BAD_REQUEST),
			 errmsg("unknown %s", name),
			 errdetail("INVALID_ARGUMENT"),
			 errhint("Pass one of %s, or leave %s out.", list.data, name)));
}

/* An answer begins with whether the call succeeded and a sentence for people. */
static void
begin_answer(StringInfo json, bool success, const char *message, const char *org)
{
	initStringInfo(json);
	appendStringInfo(json, "{\"success\": %s, \"message\": ", success ? "true" : "false");
	escape_json(json, message);
	appendStringInfoString(json, ", \"organization_id\": ");
	escape_json(json, org);
}

/* Add a string, or null. */
static void
add_string(StringInfo json, const char *key, const char *value)
{
	appendStringInfo(json, ", \"%s\": ", key);
	if (value)
		escape_json(json, value);
	else
		appendStringInfoString(json, "null");
}

static void
add_number(StringInfo json, const char *key, int64 value)
{
	appendStringInfo(json, ", \"%s\": " INT64_FORMAT, key, value);
}

static Datum
end_answer(StringInfo json)
{
	appendStringInfoChar(json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json->data));
}

/* Refuse what would write, where nothing can be written. */
static void
require_writable(const char *function)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_UNAVAILABLE),
				 errmsg("this server is a read-only standby"),
				 errdetail("READ_ONLY_STANDBY"),
				 errhint("Call this on the primary server.")));
	PreventCommandIfReadOnly(function);
}

/* Find an organisation that the caller can see. Leaves SPI connected. */
static void
begin_call(const char *org, Catalog *catalog)
{
	organization_check_id(org);
	SPI_connect();
	catalog_require_setup(catalog);
	organization_require(catalog, org);
}

/*
 * Make the tables where they are missing, with the caller's rights, and likewise take
 * up the caller's own. Somebody else's are taken up only when cliniko_setup() is told.
 */
static void
set_up(Catalog *catalog)
{
	if (!catalog_find(catalog))
		catalog_require_setup(catalog);
	if (catalog->state == CATALOG_INCOMPLETE ||
		(catalog->state == CATALOG_OTHER_OWNER && !OidIsValid(catalog->owner) &&
		 catalog->found_owner == GetUserId()))
		SPI_execute(catalog_sql(catalog, "SELECT @schema@.cliniko_setup()"), false, 0);
	catalog_require_setup(catalog);
}

/* Refuse a file unless the caller may read files of the server's by other functions as well. */
static void
require_server_files(void)
{
	if (!has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to read an API key from a file of the server"),
				 errhint("Pass the API key itself; a superuser, or a role with the privileges of "
						 "pg_read_server_files, may name a file.")));
}

/*
 * Read the API key in a file of the server's; palloc'ed, and the caller's to wipe.
 * What is no key is read as none, so that no error tells of a file's content.
 */
static char *
read_api_key_file(const char *path)
{
	char	   *content = palloc0(MAX_API_KEY_FILE_SIZE + 2);
	struct stat status;
	ssize_t		size;
	int			fd;

	/* not waiting for what writes to a pipe */
	fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0 || fstat(fd, &status) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open the file \"%s\": %m", path),
				 errhint("Name a file that the server's user can read, on the server's machine.")));
	if (!S_ISREG(status.st_mode))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a regular file", path),
				 errhint("Name a file that has the API key in it and nothing else.")));
	size = read(fd, content, MAX_API_KEY_FILE_SIZE + 1);
	if (size < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read the file \"%s\": %m", path)));
	CloseTransientFile(fd);
	if (size > MAX_API_KEY_FILE_SIZE || strlen(content) != size)
		explicit_bzero(content, size);
	return content;
}

/*
 * The API key that cliniko_connect() was given, or told the file of; palloc'ed, and the
 * caller's to wipe.
 */
static char *
api_key_argument(FunctionCallInfo fcinfo, int i)
{
	struct varlena *passed = (struct varlena *) PG_GETARG_POINTER(i);
	text	   *value;
	char	   *api_key;

	if (PG_ARGISNULL(i))
		return pstrdup("");
	value = PG_GETARG_TEXT_PP(i);
	api_key = text_to_cstring(value);
	/* what was compressed, or stored apart from its row, has been copied on the way */
	if (value != passed)
		explicit_bzero(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
	if (strncmp(api_key, FILE_PREFIX, strlen(FILE_PREFIX)) != 0)
		return api_key;
	require_server_files();
	return read_api_key_file(api_key + strlen(FILE_PREFIX));
}

static Datum
connect_organization(const char *org, char *input, const char *name)
{
	char		shard[CLINIKO_SHARD_SIZE];
	char	   *api_key = cliniko_parse_key(input, shard);
	Catalog		catalog;
	Organization organization;
	StringInfoData json;

	if (api_key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_BAD_REQUEST),
				 errmsg("this is not a Cliniko API key"),
				 errdetail("INVALID_API_KEY"),
				 errhint("Copy the whole key from Cliniko, with its suffix such as \"-au1\".")));
	SPI_connect();
	set_up(&catalog);
	organization_connect(&catalog, org, name, api_key, shard);
	/* whose row the caller may not see, the caller may not connect either */
	organization_require(&catalog, org);
	organization_load(&catalog, org, &organization);
	SPI_finish();

	begin_answer(&json, true, "Connected", org);
	add_string(&json, "name", organization.name);
	add_string(&json, "shard", organization.shard);
	return end_answer(&json);
}

/*
 * cliniko_connect(org text, api_key text, name text) -> jsonb
 *
 * The statement that called this may hold the key, and so may the detail of an
 * error that is not ours, such as "Failing row contains (...)". Keep both out
 * of the server's log, and the statement out of pg_stat_activity.
 */
Datum
cliniko_connect(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *volatile api_key = NULL;
	volatile Datum answer = (Datum) 0;

	pgstat_report_activity(STATE_RUNNING, "SELECT cliniko_connect(...)");
	PG_TRY();
	{
		char	   *org = text_argument(fcinfo, 0);
		char	   *name = text_argument(fcinfo, 2);

		require_writable("cliniko_connect()");
		organization_check_id(org);
		api_key = api_key_argument(fcinfo, 1);
		answer = connect_organization(org, api_key, name);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		secret_wipe(api_key);
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		error->hide_stmt = error->hide_ctx = true;
		if (strncmp(unpack_sql_state(error->sqlerrcode), "PT", 2) != 0 &&
			error->sqlerrcode != ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE)
			error->detail = error->detail_log = NULL;
		ReThrowError(error);
	}
	PG_END_TRY();
	secret_wipe(api_key);
	return answer;
}

/* Refuse what needs a key, where there is none. */
static void
require_connected(const Organization *organization)
{
	if (organization->api_key_sealed == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_CONFLICT),
				 errmsg("the organization has no API key"),
				 errdetail("NOT_CONNECTED"),
				 errhint("Pass its key to cliniko_connect().")));
}

/* cliniko_disconnect(org text) -> jsonb */
Datum
cliniko_disconnect(PG_FUNCTION_ARGS)
{
	char	   *org = text_argument(fcinfo, 0);
	Catalog		catalog;
	StringInfoData json;

	require_writable("cliniko_disconnect()");
	begin_call(org, &catalog);
	organization_disconnect(&catalog, org);
	if (organization_cancel_run(&catalog, org) != 0)
		worker_wake_at_commit();
	SPI_finish();

	begin_answer(&json, true, "Disconnected; its patients and logs are kept", org);
	return end_answer(&json);
}

/* cliniko_set_sync_enabled(org text, enabled boolean) -> jsonb */
Datum
cliniko_set_sync_enabled(PG_FUNCTION_ARGS)
{
	char	   *org = text_argument(fcinfo, 0);
	bool		enabled;
	Catalog		catalog;
	StringInfoData json;

	require_writable("cliniko_set_sync_enabled()");
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_BAD_REQUEST),
				 errmsg("enabled must be true or false"),
				 errdetail("INVALID_ARGUMENT"),
				 errhint("Pass true to let the organization be synced, false to prevent it.")));
	enabled = PG_GETARG_BOOL(1);
	begin_call(org, &catalog);
	organization_set_sync_enabled(&catalog, org, enabled);
	SPI_finish();

	begin_answer(&json, true, enabled ? "Sync enabled" : "Sync disabled; a run under way goes on",
				 org);
	appendStringInfo(&json, ", \"sync_enabled\": %s", enabled ? "true" : "false");
	return end_answer(&json);
}

/* Start a run of an organization that can be synced, or find the one that is under way. */
static Datum
start_run(const Catalog *catalog, const char *org, bool only_changes)
{
	bool		started;
	char	   *operation_type;
	int64		id;
	StringInfoData json;

	worker_start_at_commit();
	id = organization_start_run(catalog, org, only_changes, &started, &operation_type);

	begin_answer(&json, true, started ? "Sync started" : "Sync already running", org);
	add_number(&json, "sync_id", id);
	add_string(&json, "operation_type", operation_type);
	return end_answer(&json);
}

/* Start a sync of one organization. */
static Datum
start_sync(const char *org, bool only_changes)
{
	Catalog		catalog;
	Organization organization;
	Datum		answer;

	begin_call(org, &catalog);
	organization_load(&catalog, org, &organization);
	require_connected(&organization);
	if (!organization.sync_enabled)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_CONFLICT),
				 errmsg("sync is disabled for the organization"),
				 errdetail("SYNC_DISABLED"),
				 errhint("Enable it with cliniko_set_sync_enabled(org, true).")));
	answer = SPI_datumTransfer(start_run(&catalog, org, only_changes), false, -1);
	SPI_finish();
	return answer;
}

/* cliniko_sync_all(org text) -> jsonb */
Datum
cliniko_sync_all(PG_FUNCTION_ARGS)
{
	require_writable("cliniko_sync_all()");
	return start_sync(text_argument(fcinfo, 0), false);
}

/* cliniko_sync_changes(org text) -> jsonb */
Datum
cliniko_sync_changes(PG_FUNCTION_ARGS)
{
	require_writable("cliniko_sync_changes()");
	return start_sync(text_argument(fcinfo, 0), true);
}

/*
 * cliniko_sync_all_organizations(only_changes boolean) -> setof jsonb
 *
 * One row for each organization that the caller may see and that can be synced.
 */
Datum
cliniko_sync_all_organizations(PG_FUNCTION_ARGS)
{
	bool		only_changes = !PG_ARGISNULL(0) && PG_GETARG_BOOL(0);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Catalog		catalog;
	Datum	   *orgs;
	int			norgs;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	SPI_connect();
	catalog_require_setup(&catalog);
	deconstruct_array(DatumGetArrayTypeP(report_enabled(&catalog)), TEXTOID, -1, false,
					  TYPALIGN_INT, &orgs, NULL, &norgs);
	if (norgs > 0)
		require_writable("cliniko_sync_all_organizations()");
	for (int i = 0; i < norgs; i++)
	{
		Datum		row = start_run(&catalog, TextDatumGetCString(orgs[i]), only_changes);
		bool		isnull = false;

		tuplestore_putvalues(result->setResult, result->setDesc, &row, &isnull);
	}
	SPI_finish();
	return (Datum) 0;
}

/* cliniko_cancel_sync(org text) -> jsonb */
Datum
cliniko_cancel_sync(PG_FUNCTION_ARGS)
{
	char	   *org = text_argument(fcinfo, 0);
	Catalog		catalog;
	int64		id;
	StringInfoData json;

	require_writable("cliniko_cancel_sync()");
	begin_call(org, &catalog);
	id = organization_cancel_run(&catalog, org);
	if (id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_CONFLICT),
				 errmsg("no sync of the organization is running"),
				 errdetail("NO_RUNNING_SYNC"),
				 errhint("See cliniko_sync_logs() for how the last one ended.")));
	worker_wake_at_commit();
	SPI_finish();

	begin_answer(&json, true, "Sync cancelled", org);
	add_number(&json, "sync_id", id);
	return end_answer(&json);
}

/* Answer for a key that works. */
static void
answer_connected(StringInfo json, const char *org, const ConnectionReport *report)
{
	begin_answer(json, true, psprintf("Connected to Cliniko: " INT64_FORMAT " patients",
									  report->total_patients), org);
	add_string(json, "status", "connected");
	add_number(json, "total_patients", report->total_patients);
	add_number(json, "active_patients", report->active_patients);
}

/* Answer for one that does not: what happened, and what to do. */
static void
answer_failed(StringInfo json, const char *org, ClinikoError error, const char *detail)
{
	begin_answer(json, false, cliniko_error_details(error, detail), org);
	add_string(json, "status", "failed");
	add_string(json, "error_code", cliniko_error_code(error));
}

/* Ask Cliniko with a key, and answer what it said. */
static void
try_connection(StringInfo json, const char *org, const char *api_key,
			   const Organization *organization)
{
	ClinikoAccount *account = cliniko_account(api_key);
	ConnectionReport report;

	if (account == NULL)
	{
		answer_failed(json, org, CLINIKO_CONFIGURATION_ERROR, settings_contact_email_unset());
		return;
	}
	connection_test(account, organization->account_id, &report);
	if (report.error == CLINIKO_NO_ERROR)
		answer_connected(json, org, &report);
	else
		answer_failed(json, org, report.error, report.reason);
	add_string(json, "api_url", account->api_url);
	appendStringInfoString(json, ", \"account\": ");
	if (report.account_id)
	{
		appendStringInfoString(json, "{\"id\": ");
		escape_json(json, report.account_id);
		add_string(json, "name", report.account_name);
		appendStringInfoChar(json, '}');
	}
	else
		appendStringInfoString(json, "null");
	add_string(json, "role", report.role);
	add_number(json, "latency_ms", report.latency_us / 1000);
}

/* cliniko_test_connection(org text) -> jsonb */
Datum
cliniko_test_connection(PG_FUNCTION_ARGS)
{
	char	   *org = text_argument(fcinfo, 0);
	Catalog		catalog;
	Organization organization;
	const char *problem;
	char	   *volatile api_key = NULL;
	StringInfoData json;

	begin_call(org, &catalog);
	organization_load(&catalog, org, &organization);
	settings_refresh();
	SPI_finish();
	require_connected(&organization);

	PG_TRY();
	{
		api_key = secret_open(organization.api_key_sealed, org, &problem);
		if (api_key)
			problem = cliniko_shard_problem(api_key, organization.shard);
		if (problem == NULL)
			try_connection(&json, org, api_key, &organization);
		else
			answer_failed(&json, org, CLINIKO_CREDENTIALS_UNREADABLE, problem);
	}
	PG_FINALLY();
	{
		secret_wipe(api_key);
	}
	PG_END_TRY();
	return end_answer(&json);
}

/*
 * cliniko_sync_logs(org text, max_rows int, status text, operation_type text) -> jsonb
 *
 * A front end's poll is what finds a run whose worker is gone.
 */
Datum
cliniko_sync_logs(PG_FUNCTION_ARGS)
{
	static const char *const statuses[] = {"running", "completed", "failed", NULL};
	static const char *const types[] = {
		OPERATION_FULL, OPERATION_INCREMENTAL, OPERATION_ACTIVE, NULL
	};
	char	   *org = text_argument(fcinfo, 0);
	LogFilter	filter;
	Catalog		catalog;
	bool		running;
	Datum		answer;

	begin_call(org, &catalog);
	filter.max_rows = number_argument(fcinfo, 1, "max_rows", 1, MOST_LOGS);
	filter.status = choice_argument(fcinfo, 2, "status", statuses);
	filter.operation_type = choice_argument(fcinfo, 3, "operation_type", types);
	answer = report_logs(&catalog, org, &filter, &running);
	SPI_finish();
	if (running)
		worker_ensure();
	return answer;
}

/* cliniko_status(org text) -> jsonb */
Datum
cliniko_status(PG_FUNCTION_ARGS)
{
	char	   *org = text_argument(fcinfo, 0);
	Catalog		catalog;
	bool		running;
	Datum		answer;

	begin_call(org, &catalog);
	answer = report_status(&catalog, org, &running);
	SPI_finish();
	if (running)
		worker_ensure();
	return answer;
}

/*
 * cliniko_active_patients(org text, max_rows int, skip_rows int, search text,
 *						   last_synced_after timestamptz) -> jsonb
 */
Datum
cliniko_active_patients(PG_FUNCTION_ARGS)
{
	char	   *org = text_argument(fcinfo, 0);
	TimestampTz after = PG_ARGISNULL(4) ? 0 : PG_GETARG_TIMESTAMPTZ(4);
	PatientFilter filter;
	Catalog		catalog;
	Datum		answer;

	begin_call(org, &catalog);
	filter.max_rows = number_argument(fcinfo, 1, "max_rows", 1, MOST_PATIENTS);
	filter.skip_rows = number_argument(fcinfo, 2, "skip_rows", 0, INT_MAX);
	filter.search = bounded_argument(fcinfo, 3, "search", MAX_SEARCH_LENGTH);
	filter.last_synced_after = PG_ARGISNULL(4) ? NULL : &after;
	answer = report_active_patients(&catalog, org, &filter);
	SPI_finish();
	return answer;
}

/* cliniko_list_organizations() -> jsonb */
Datum
cliniko_list_organizations(PG_FUNCTION_ARGS)
{
	Catalog		catalog;
	Datum		answer;

	SPI_connect();
	catalog_require_setup(&catalog);
	answer = report_organizations(&catalog);
	SPI_finish();
	return answer;
}

/*
 * cliniko_rotate_key() -> jsonb
 *
 * The new key is in the key file before any row is sealed with it, and the old
 * one stays there: whether this transaction commits or not, and whatever other
 * databases have sealed, every row can be opened.
 */
Datum
cliniko_rotate_key(PG_FUNCTION_ARGS)
{
	Catalog		catalog;
	int64		resealed;
	int64		unreadable;
	int			keys;
	StringInfoData json;

	require_writable("cliniko_rotate_key()");
	SPI_connect();
	catalog_require_setup(&catalog);
	keys = organization_reseal_all(&catalog, &resealed, &unreadable);
	SPI_finish();

	initStringInfo(&json);
	appendStringInfo(&json, "{\"success\": true, \"message\": \"%s\"",
					 unreadable > 0 ? "Resealed, but not every API key could be read" : "Resealed");
	add_number(&json, "resealed", resealed);
	add_number(&json, "unreadable", unreadable);
	add_number(&json, "keys_in_file", keys);
	return end_answer(&json);
}

/*
 * cliniko_adopt_keys() -> jsonb
 *
 * Who calls this says that the rows of cliniko_organizations belong here: what a
 * sealed key is bound to cannot tell a copy of a database from a row that was
 * taken from another. So it is no function for any of the levels.
 */
Datum
cliniko_adopt_keys(PG_FUNCTION_ARGS)
{
	Catalog		catalog;
	int64		adopted;
	int64		unreadable;
	StringInfoData json;

	require_writable("cliniko_adopt_keys()");
	SPI_connect();
	catalog_require_setup(&catalog);
	organization_adopt_keys(&catalog, &adopted, &unreadable);
	SPI_finish();

	initStringInfo(&json);
	appendStringInfo(&json, "{\"success\": true, \"message\": \"%s\"",
					 unreadable > 0 ? "Adopted, but not every API key could be read" :
					 adopted > 0 ? "Adopted" : "All API keys are of this database");
	add_number(&json, "adopted", adopted);
	add_number(&json, "unreadable", unreadable);
	return end_answer(&json);
}
