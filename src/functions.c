/*
 * functions.c
 *		The functions that SQL calls, as far as they are in C.
 *
 * Each checks its arguments, finds the organisation with the caller's rights,
 * does one thing and answers with one JSON object, as the callers' contract
 * has it (docs/API_REFERENCE.md). What it does is in the files below.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
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
#include "worker.h"

#define OPERATION_FULL "full_patients"

SQL_FUNCTION(clinisync_require_organization);
SQL_FUNCTION(clinisync_require_setup);
SQL_FUNCTION(clinisync_ensure_worker);
SQL_FUNCTION(cliniko_connect);
SQL_FUNCTION(cliniko_disconnect);
SQL_FUNCTION(cliniko_sync_all);
SQL_FUNCTION(cliniko_cancel_sync);
SQL_FUNCTION(cliniko_test_connection);

/* A text argument as a C string, or NULL. */
static char *
text_argument(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
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

Datum
clinisync_require_organization(PG_FUNCTION_ARGS)
{
	Catalog		catalog;

	begin_call(text_argument(fcinfo, 0), &catalog);
	SPI_finish();
	PG_RETURN_VOID();
}

Datum
clinisync_require_setup(PG_FUNCTION_ARGS)
{
	Catalog		catalog;

	catalog_require_setup(&catalog);
	PG_RETURN_VOID();
}

Datum
clinisync_ensure_worker(PG_FUNCTION_ARGS)
{
	worker_ensure();
	PG_RETURN_VOID();
}

/* Make the tables where they are missing, with the caller's rights. */
static void
set_up(Catalog *catalog)
{
	if (!catalog_find(catalog))
		catalog_require_setup(catalog);
	if (catalog->missing)
		SPI_execute(catalog_sql(catalog, "SELECT @schema@.cliniko_setup()"), false, 0);
	catalog_require_setup(catalog);
}

static Datum
connect_organization(const char *org, const char *input, const char *name)
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
	explicit_bzero(api_key, strlen(api_key));
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
	volatile Datum answer = (Datum) 0;

	MemoryContext context = CurrentMemoryContext;

	pgstat_report_activity(STATE_RUNNING, "SELECT cliniko_connect(...)");
	PG_TRY();
	{
		char	   *org = text_argument(fcinfo, 0);
		char	   *api_key = text_argument(fcinfo, 1);

		require_writable("cliniko_connect()");
		organization_check_id(org);
		answer = connect_organization(org, api_key ? api_key : "", text_argument(fcinfo, 2));
	}
	PG_CATCH();
	{
		ErrorData  *error;

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
	return answer;
}

/* Refuse what needs a key, where there is none. */
static void
require_connected(const Organization *organization)
{
	if (!organization->connected)
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

/* cliniko_sync_all(org text) -> jsonb */
Datum
cliniko_sync_all(PG_FUNCTION_ARGS)
{
	char	   *org = text_argument(fcinfo, 0);
	Catalog		catalog;
	Organization organization;
	bool		started;
	char	   *operation_type;
	int64		id;
	StringInfoData json;

	require_writable("cliniko_sync_all()");
	begin_call(org, &catalog);
	organization_load(&catalog, org, &organization);
	require_connected(&organization);
	if (!organization.sync_enabled)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_CONFLICT),
				 errmsg("sync is disabled for the organization"),
				 errdetail("SYNC_DISABLED"),
				 errhint("Set sync_enabled to true in its row of cliniko_organizations.")));
	worker_start_at_commit();
	id = organization_start_run(&catalog, org, OPERATION_FULL, &started, &operation_type);
	SPI_finish();

	begin_answer(&json, true, started ? "Sync started" : "Sync already running", org);
	add_number(&json, "sync_id", id);
	add_string(&json, "operation_type", operation_type);
	return end_answer(&json);
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
	begin_answer(json, false,
				 psprintf("%s%s%s %s", cliniko_error_sentence(error), detail ? " " : "",
						  detail ? detail : "", cliniko_error_hint(error)), org);
	add_string(json, "status", "failed");
	add_string(json, "error_code", cliniko_error_code(error));
}

/* cliniko_test_connection(org text) -> jsonb */
Datum
cliniko_test_connection(PG_FUNCTION_ARGS)
{
	char	   *org = text_argument(fcinfo, 0);
	Catalog		catalog;
	Organization organization;
	ClinikoAccount *account = NULL;
	ConnectionReport report = {0};
	StringInfoData json;

	begin_call(org, &catalog);
	organization_load(&catalog, org, &organization);
	settings_refresh();
	SPI_finish();
	require_connected(&organization);

	if (organization.api_key == NULL || organization.shard == NULL)
		answer_failed(&json, org, CLINIKO_CREDENTIALS_UNREADABLE, NULL);
	else if ((account = cliniko_account(organization.api_key, organization.shard)) == NULL)
		answer_failed(&json, org, CLINIKO_CONFIGURATION_ERROR, settings_contact_email_unset());
	else
	{
		connection_test(account, &report);
		if (report.error == CLINIKO_NO_ERROR)
			answer_connected(&json, org, &report);
		else
			answer_failed(&json, org, report.error, report.reason);
		add_string(&json, "api_url", account->api_url);
		appendStringInfoString(&json, ", \"account\": ");
		if (report.account_id)
		{
			appendStringInfoString(&json, "{\"id\": ");
			escape_json(&json, report.account_id);
			add_string(&json, "name", report.account_name);
			appendStringInfoChar(&json, '}');
		}
		else
			appendStringInfoString(&json, "null");
		add_string(&json, "role", report.role);
		add_number(&json, "latency_ms", report.latency_us / 1000);
	}
	return end_answer(&json);
}
