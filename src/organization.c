/*
 * organization.c
 *		What callers do to organisations and their runs, in SQL.
 *
 * Everything here happens in the caller's transaction. An organization that the
 * caller cannot see (caller.c) does not exist; whatever is read or written is read
 * or written as the tables' owner.
 *
 * Expects a connection to SPI. Memory: results are palloc'ed in the context
 * that was current when SPI was connected.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"

#include "caller.h"
#include "cliniko.h"
#include "clinisync.h"
#include "compat.h"
#include "identity.h"
#include "organization.h"
#include "run.h"
#include "secret.h"
#include "statement.h"
#include "store.h"

/* Any application's id fits: a number, a UUID, org_2xwH… */
#define MAX_ORGANIZATION_ID_LENGTH 255

/*
 * How much further back than the last run a run of changes looks: Cliniko's
 * replicas lag by seconds, and its clock need not agree with ours. What was
 * seen already costs one comparison.
 */
#define CHANGES_OVERLAP "10 minutes"

/* Parameters of a statement; all of ours are nullable text or bytea. */
typedef struct Parameters
{
	int			count;
	Oid			types[6];
	Datum		values[6];
	char		nulls[7];
} Parameters;

static void
add_text(Parameters *parameters, const char *text)
{
	int			i = parameters->count++;

	parameters->types[i] = TEXTOID;
	parameters->values[i] = text ? CStringGetTextDatum(text) : (Datum) 0;
	parameters->nulls[i] = text ? ' ' : 'n';
}

static void
add_bytea(Parameters *parameters, bytea *value)
{
	int			i = parameters->count++;

	parameters->types[i] = BYTEAOID;
	parameters->values[i] = PointerGetDatum(value);
	parameters->nulls[i] = ' ';
}

/* Execute a statement as the tables' owner. Returns its rows' number. */
static uint64
execute_as_owner(const Catalog *catalog, const char *template, Parameters *parameters,
				 bool read_only)
{
	Identity	caller;
	SPIPlanPtr	plan;
	int			code;

	identity_enter(catalog->owner, catalog, &caller);
	plan = SPI_prepare(catalog_sql(catalog, template), parameters->count, parameters->types);
	if (plan == NULL)
		elog(ERROR, "could not prepare a statement: %s", SPI_result_code_string(SPI_result));
	statement_check_tables(plan, catalog);
	code = SPI_execute_plan(plan, parameters->values, parameters->nulls, read_only, 0);
	identity_leave(&caller);
	if (code < 0)
		elog(ERROR, "could not execute a statement: %s", SPI_result_code_string(code));
	return SPI_processed;
}

static Datum
column(int number, Oid type, bool *isnull)
{
	return statement_column(0, number, type, isnull);
}

/* A text column of the row, in memory that outlives SPI, or NULL. */
static char *
text_column(int number)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, number);
	char	   *copy;

	if (value == NULL)
		return NULL;
	copy = SPI_palloc(strlen(value) + 1);
	strcpy(copy, value);
	return copy;
}

/* Raise an error unless this could be an organisation's id. */
void
organization_check_id(const char *org)
{
	if (org == NULL || org[0] == '\0' ||
		pg_mbstrlen(org) > MAX_ORGANIZATION_ID_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_BAD_REQUEST),
				 errmsg("an organization id must have 1 to %d characters",
						MAX_ORGANIZATION_ID_LENGTH),
				 errdetail("INVALID_ORGANIZATION_ID"),
				 errhint("Use the id that your application has for the organization.")));
}

/* Raise an error unless the caller can see this organisation. */
void
organization_require(const Catalog *catalog, const char *org)
{
	static Statement statement;
	Oid			types[] = {TEXTOID};
	Datum		values[1];

	organization_check_id(org);
	values[0] = CStringGetTextDatum(org);
	statement_prepare(&statement, catalog,
					  "SELECT FROM @schema@.cliniko_organizations"
					  " WHERE organization_id = $1", lengthof(types), types);
	/* not read_only: the row may have been written just now */
	if (!caller_sees(catalog, org) ||
		statement_execute_as_owner(&statement, catalog, values, NULL, false) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_NOT_FOUND),
				 errmsg("organization not found"),
				 errdetail("ORGANIZATION_NOT_FOUND"),
				 errhint("Connect it with cliniko_connect(), or check the id.")));
}

/* A bytea column of the row, in memory that outlives SPI, or NULL. */
static bytea *
bytea_column(int number)
{
	bool		isnull;
	Datum		value = column(number, BYTEAOID, &isnull);

	return isnull ? NULL : DatumGetByteaP(SPI_datumTransfer(PointerGetDatum(DatumGetByteaP(value)),
															false, -1));
}

/* Read an organisation that exists. */
void
organization_load(const Catalog *catalog, const char *org, Organization *loaded)
{
	Parameters	parameters = {0};
	bool		isnull;

	memset(loaded, 0, sizeof(*loaded));
	add_text(&parameters, org);
	if (execute_as_owner(catalog,
						 "SELECT api_key_sealed::bytea, coalesce(sync_enabled::boolean, true),"
						 "       shard, name, account_id"
						 "  FROM @schema@.cliniko_organizations"
						 " WHERE organization_id = $1", &parameters, false) == 0)
		return;
	loaded->api_key_sealed = bytea_column(1);
	loaded->sync_enabled = DatumGetBool(column(2, BOOLOID, &isnull));
	loaded->shard = text_column(3);
	loaded->name = text_column(4);
	loaded->account_id = text_column(5);
}

/* Keep an organisation's key; a name of NULL leaves the name as it is. */
void
organization_connect(const Catalog *catalog, const char *org, const char *name,
					 const char *api_key, const char *shard)
{
	Parameters	parameters = {0};

	add_text(&parameters, org);
	add_text(&parameters, name);
	add_bytea(&parameters, secret_seal(api_key, org));
	add_text(&parameters, shard);
	execute_as_owner(catalog,
					 "INSERT INTO @schema@.cliniko_organizations AS o"
					 " (organization_id, name, api_key_sealed, shard, updated_at)"
					 " VALUES ($1, $2, $3, $4, clock_timestamp())"
					 " ON CONFLICT (organization_id) DO UPDATE"
					 " SET name = coalesce(excluded.name, o.name),"
					 "     api_key_sealed = excluded.api_key_sealed,"
					 "     shard = excluded.shard, updated_at = excluded.updated_at",
					 &parameters, false);
}

/* Forget an organisation's key. */
void
organization_disconnect(const Catalog *catalog, const char *org)
{
	Parameters	parameters = {0};

	add_text(&parameters, org);
	execute_as_owner(catalog,
					 "UPDATE @schema@.cliniko_organizations"
					 "   SET api_key_sealed = NULL, shard = NULL, updated_at = now()"
					 " WHERE organization_id = $1", &parameters, false);
}

/* Let runs of an organisation start, or not. */
void
organization_set_sync_enabled(const Catalog *catalog, const char *org, bool enabled)
{
	Parameters	parameters = {0};

	add_text(&parameters, org);
	add_text(&parameters, enabled ? "true" : "false");
	execute_as_owner(catalog,
					 "UPDATE @schema@.cliniko_organizations"
					 "   SET sync_enabled = $2::boolean, updated_at = now()"
					 " WHERE organization_id = $1", &parameters, false);
}

/* The organisation of a row that holds a sealed key. */
static char *
sealed_row_id(SPITupleTable *table, uint64 row)
{
	return SPI_getvalue(table->vals[row], table->tupdesc, 1);
}

static bytea *
sealed_row_key(SPITupleTable *table, uint64 row)
{
	bool		isnull;

	return DatumGetByteaP(SPI_getbinval(table->vals[row], table->tupdesc, 2, &isnull));
}

static bool
can_open(SPITupleTable *table, uint64 row, const char **problem)
{
	char	   *api_key = secret_open(sealed_row_key(table, row), sealed_row_id(table, row), problem);

	secret_wipe(api_key);
	return api_key != NULL;
}

/*
 * Seal the key of a row anew. adopt: wherever it was sealed. Returns false, and why,
 * where it cannot be opened.
 */
static bool
reseal(const Catalog *catalog, SPITupleTable *table, uint64 row, bool adopt, const char **problem)
{
	char	   *org = sealed_row_id(table, row);
	bytea	   *resealed = secret_reseal(sealed_row_key(table, row), org, adopt, problem);
	Parameters	parameters = {0};

	if (resealed == NULL)
		return false;
	add_text(&parameters, org);
	add_bytea(&parameters, resealed);
	execute_as_owner(catalog,
					 "UPDATE @schema@.cliniko_organizations SET api_key_sealed = $2"
					 " WHERE organization_id = $1", &parameters, false);
	return true;
}

/* Lock all rows that hold a sealed key. Returns how many these are. */
static uint64
lock_sealed_rows(const Catalog *catalog, SPITupleTable **table)
{
	Parameters	none = {0};
	uint64		count = execute_as_owner(catalog,
										 "SELECT organization_id, api_key_sealed::bytea"
										 "  FROM @schema@.cliniko_organizations"
										 " WHERE api_key_sealed IS NOT NULL"
										 " ORDER BY organization_id FOR UPDATE", &none, false);

	*table = SPI_tuptable;
	return count;
}

/* No sealed key can be opened: raise an error that says why of the last one. */
static void
raise_unreadable(const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_CLINISYNC_CONFLICT),
			 errmsg("no stored API key can be read"),
			 errdetail("CREDENTIALS_UNREADABLE"),
			 errhint("%s", problem)));
}

/*
 * Put a new key into the key file and seal every API key with it. One that
 * cannot be opened stays as it is; if that is all of them, nothing is done.
 * Returns how many keys the file has. The file is one for all databases of
 * the cluster, and so is the lock.
 */
int
organization_reseal_all(const Catalog *catalog, int64 *resealed, int64 *unreadable)
{
	LOCKTAG		tag;
	SPITupleTable *table;
	uint64		count;
	const char *problem = NULL;
	bool		any_readable = false;
	int			keys;

	SET_LOCKTAG_ADVISORY(tag, InvalidOid, 0, LOCK_KEY_FILE, LOCK_SPACE);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	count = lock_sealed_rows(catalog, &table);
	*resealed = *unreadable = 0;
	for (uint64 i = 0; i < count && !any_readable; i++)
		any_readable = can_open(table, i, &problem);
	if (count > 0 && !any_readable)
		raise_unreadable(problem);

	keys = secret_add_key();
	for (uint64 i = 0; i < count; i++)
	{
		if (reseal(catalog, table, i, false, &problem))
			(*resealed)++;
		else
			(*unreadable)++;
	}
	return keys;
}

/*
 * Have this database use the API keys that were sealed in another one, of which it
 * is a copy, or by an earlier version. One that cannot be opened stays as it is.
 */
void
organization_adopt_keys(const Catalog *catalog, int64 *adopted, int64 *unreadable)
{
	SPITupleTable *table;
	uint64		count = lock_sealed_rows(catalog, &table);
	const char *problem;

	*adopted = *unreadable = 0;
	for (uint64 i = 0; i < count; i++)
	{
		if (secret_is_of_database(sealed_row_key(table, i)))
			continue;
		if (reseal(catalog, table, i, true, &problem))
			(*adopted)++;
		else
			(*unreadable)++;
	}
	if (*unreadable > 0 && *adopted == 0)
		raise_unreadable(problem);
}

/*
 * From which moment on a run of changes has to look, as Cliniko wants it: the
 * start of the last completed run, less CHANGES_OVERLAP. A run of changes that
 * left records out does not count: they are asked for again. NULL where there
 * is nothing to build upon, because no full run has completed since the
 * organisation was connected, to this account or another.
 */
static char *
changes_since(const Catalog *catalog, const char *org)
{
	Parameters	parameters = {0};

	add_text(&parameters, org);
	if (execute_as_owner(catalog,
						 "SELECT to_char((started_at - interval '" CHANGES_OVERLAP "')"
						 "               AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
						 "  FROM @schema@.sync_logs"
						 " WHERE organization_id = $1 AND status = 'completed'"
						 "   AND (operation_type = '" OPERATION_FULL "'"
						 "        OR operation_type = '" OPERATION_INCREMENTAL "'"
						 "           AND records_failed = 0)"
						 "   AND (SELECT l.started_at >= o.updated_at"
						 "          FROM @schema@.sync_logs l"
						 "          JOIN @schema@.cliniko_organizations o"
						 "         USING (organization_id)"
						 "         WHERE l.organization_id = $1 AND l.status = 'completed'"
						 "           AND l.operation_type = '" OPERATION_FULL "'"
						 "         ORDER BY l.id DESC LIMIT 1)"
						 " ORDER BY id DESC LIMIT 1", &parameters, false) == 0)
		return NULL;
	return text_column(1);
}

/*
 * Insert a run of all patients, or of those that changed since a moment, which
 * its checkpoint tells the worker. Returns false where a run is running.
 */
static bool
insert_run(const Catalog *catalog, const char *org, const char *since)
{
	Parameters	parameters = {0};

	add_text(&parameters, org);
	add_text(&parameters, since ? OPERATION_INCREMENTAL : OPERATION_FULL);
	add_text(&parameters, since);
	return execute_as_owner(catalog,
							"INSERT INTO @schema@.sync_logs"
							" (organization_id, id, operation_type, status, started_at, metadata,"
							"  checkpoint) OVERRIDING SYSTEM VALUE"
							" VALUES ($1, " STORE_NEW_ID("sync_logs") ", $2, 'running', clock_timestamp(),"
							"  jsonb_build_object('sync_type', $2, 'step', 'queued',"
							"                     'progress_percent', 0, 'errors', '[]'::jsonb),"
							"  CASE WHEN $3 IS NOT NULL"
							"       THEN jsonb_build_object('changed_since', $3) END)"
							" ON CONFLICT (organization_id) WHERE status = 'running' DO NOTHING"
							" RETURNING id::bigint, operation_type", &parameters, false) == 1;
}

/* How often a run that is there at one moment may be gone at the next. */
#define MOST_TRIES 100

/*
 * Find the run that is running, or insert one. A concurrent call for the same
 * organisation waits here, on the index that allows one, for the other's commit.
 */
int64
organization_start_run(const Catalog *catalog, const char *org, bool only_changes,
					   bool *started, char **operation_type)
{
	Parameters	parameters = {0};
	const char *since = only_changes ? changes_since(catalog, org) : NULL;
	bool		isnull;

	add_text(&parameters, org);
	for (int tries = 0;; tries++)
	{
		CHECK_FOR_INTERRUPTS();
		if (tries == MOST_TRIES)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("no run can be inserted into %s.sync_logs", catalog->schema),
					 errhint("A trigger or a rule on the table keeps it out.")));
		*started = false;
		if (execute_as_owner(catalog,
							 "SELECT id::bigint, operation_type"
							 "  FROM @schema@.sync_logs"
							 " WHERE organization_id = $1 AND status = 'running'",
							 &parameters, false) > 0)
			break;
		*started = insert_run(catalog, org, since);
		if (*started)
			break;
		SPI_freetuptable(SPI_tuptable);
		/* somebody else's is running now, or has ended in between */
	}
	*operation_type = text_column(2);
	return DatumGetInt64(column(1, INT8OID, &isnull));
}

/*
 * End an organisation's run as cancelled. The row is the truth: the worker's
 * next transaction finds it no longer running, and undoes itself. Returns the
 * run's id, or 0 where none is running.
 */
int64
organization_cancel_run(const Catalog *catalog, const char *org)
{
	Parameters	parameters = {0};
	bool		isnull;
	int64		id;

	add_text(&parameters, org);
	add_text(&parameters, cliniko_error_code(CLINIKO_SYNC_CANCELLED));
	add_text(&parameters, cliniko_error_details(CLINIKO_SYNC_CANCELLED, NULL));
	add_text(&parameters, "true");
	if (execute_as_owner(catalog,
						 STORE_END_RUNS
						 "   AND organization_id = $1"
						 " RETURNING id::bigint, coalesce((metadata ->> 'progress_percent')::float8, 0)",
						 &parameters, false) == 0)
		return 0;
	id = DatumGetInt64(column(1, INT8OID, &isnull));
	run_notify(org, id, "failed", DatumGetFloat8(column(2, FLOAT8OID, &isnull)));
	return id;
}
