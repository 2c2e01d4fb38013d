/*
 * store.c
 *		A run's row in sync_logs: list, load, progress, the end.
 *
 * Each function here is one transaction, from beginning to end.
 *
 * The tables' owner may change their columns' types, or put a view in a table's
 * place. So what is read as of some type is cast to it, and never NULL where we
 * do not look for that.
 *
 * Statements are prepared once in a session. Memory: what a transaction needs
 * ends with it; results are copied to the context that the caller names.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "clinisync.h"
#include "secret.h"
#include "statement.h"
#include "store.h"

/* How many logs a transaction looks at to delete them, and how many stay however old. */
#define PRUNED_AT_ONCE 100
#define LOGS_KEPT 10

/*
 * Listing and loading
 */

typedef struct ListArg
{
	MemoryContext context;
	StoreRunKey *keys;
	int			nkeys;
} ListArg;

static void
list_running(const Catalog *catalog, void *arg)
{
	static Statement statement;
	ListArg    *list = arg;
	MemoryContext old_context;

	settings_refresh();
	statement_prepare(&statement, catalog,
			"SELECT id::bigint, organization_id::text"
			"  FROM @schema@.sync_logs"
			" WHERE status = 'running' AND id IS NOT NULL AND organization_id IS NOT NULL"
			" ORDER BY id", 0, NULL);
	statement_execute(&statement, NULL, NULL, false);

	old_context = MemoryContextSwitchTo(list->context);
	list->nkeys = SPI_processed;
	list->keys = palloc(sizeof(StoreRunKey) * Max(list->nkeys, 1));
	for (int i = 0; i < list->nkeys; i++)
	{
		bool		isnull;

		list->keys[i].id = DatumGetInt64(statement_column(i, 1, INT8OID, &isnull));
		list->keys[i].organization_id = TextDatumGetCString(statement_column(i, 2, TEXTOID, &isnull));
	}
	MemoryContextSwitchTo(old_context);
}

/* List all runs that are running, oldest first, and take over new settings. */
TransactionResult
store_list_running(MemoryContext context, StoreRunKey **keys, int *nkeys)
{
	ListArg		list = {.context = context};
	TransactionResult result = transaction_run(list_running, &list);

	*keys = list.keys;
	*nkeys = result == TRANSACTION_DONE ? list.nkeys : 0;
	return result;
}

typedef struct LoadArg
{
	const StoreRunKey *key;
	Run		   *run;
} LoadArg;

static void
load_run(const Catalog *catalog, void *arg)
{
	static Statement statement;
	LoadArg    *load = arg;
	Run		   *run = load->run;
	Oid			types[] = {TEXTOID, INT8OID};
	Datum		values[] = {
		CStringGetTextDatum(load->key->organization_id),
		Int64GetDatum(load->key->id)
	};
	MemoryContext old_context;
	Datum		value;
	bool		isnull;

	statement_prepare(&statement, catalog,
			"SELECT coalesce(l.operation_type::text, ''), l.started_at::timestamptz,"
			"       l.checkpoint::text, coalesce(l.metadata::text, '{}'),"
			"       o.api_key_sealed::bytea, o.shard::text, o.account_id::text"
			"  FROM @schema@.sync_logs l"
			"  LEFT JOIN @schema@.cliniko_organizations o"
			"         ON o.organization_id = l.organization_id"
			" WHERE l.organization_id = $1 AND l.id = $2 AND l.status = 'running'", 2, types);
	statement_execute(&statement, values, NULL, false);
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_GONE),
				 errmsg("the run is not running")));

	old_context = MemoryContextSwitchTo(run->context);
	run->id = load->key->id;
	run->organization_id = pstrdup(load->key->organization_id);
	run->operation_type = TextDatumGetCString(statement_column(0, 1, TEXTOID, &isnull));
	run->started_at = DatumGetTimestampTz(statement_column(0, 2, TIMESTAMPTZOID, &isnull));
	value = statement_column(0, 5, BYTEAOID, &isnull);
	if (isnull)
		run->key_problem = "It was removed: pass the API key to cliniko_connect() again.";
	else
		run->api_key = secret_open(DatumGetByteaPP(value), run->organization_id,
								   &run->key_problem);
	value = statement_column(0, 6, TEXTOID, &isnull);
	if (run->api_key)
		run->key_problem = cliniko_shard_problem(run->api_key,
												 isnull ? NULL : TextDatumGetCString(value));
	value = statement_column(0, 7, TEXTOID, &isnull);
	if (!isnull)
		run->account_id = TextDatumGetCString(value);
	MemoryContextSwitchTo(old_context);

	value = statement_column(0, 3, TEXTOID, &isnull);
	if (!isnull)
		run_restore(run, TextDatumGetCString(value),
					TextDatumGetCString(statement_column(0, 4, TEXTOID, &isnull)));
}

/*
 * Read a run with its organisation, to begin it or to resume it. Where its API
 * key is missing or unreadable, run->api_key is NULL.
 */
TransactionResult
store_load_run(MemoryContext parent, const StoreRunKey *key, Run **run)
{
	LoadArg		load = {.key = key, .run = run_create(parent)};
	TransactionResult result = transaction_run(load_run, &load);

	if (result == TRANSACTION_DONE)
		*run = load.run;
	else
		run_free(load.run);
	return result;
}

typedef struct AccountArg
{
	const Run  *run;
	const char *account_id;
} AccountArg;

static void
save_account_id(const Catalog *catalog, void *arg)
{
	static Statement statement;
	AccountArg *account = arg;
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {
		CStringGetTextDatum(account->run->organization_id),
		CStringGetTextDatum(account->account_id)
	};

	/* not updated_at: the organisation is as its users left it */
	statement_prepare(&statement, catalog,
			"UPDATE @schema@.cliniko_organizations SET account_id = $2"
			" WHERE organization_id = $1 AND account_id IS NULL", 2, types);
	statement_execute(&statement, values, NULL, false);
}

/* Commit from which account an organisation's patients come, once and for all. */
TransactionResult
store_save_account_id(Run *run, const char *account_id)
{
	AccountArg	account = {.run = run, .account_id = account_id};

	return transaction_run(save_account_id, &account);
}

/*
 * Progress
 */

/*
 * Write what the run says of itself, and tell who listens; in a transaction. Only
 * a run's end has to be on disk at once, and with it everything before: a crash
 * that takes back the last batches takes them back with the counters and the
 * place from which the run then goes on.
 */
void
store_write_progress(const Catalog *catalog, Run *run)
{
	static Statement statement;
	bool		ended = (run->step == RUN_COMPLETED || run->step == RUN_FAILED);
	const char *status = run->step == RUN_COMPLETED ? "completed" :
		run->step == RUN_FAILED ? "failed" : "running";
	Oid			types[] = {TEXTOID, INT8OID, TEXTOID, INT8OID, INT8OID, INT8OID,
		TEXTOID, TEXTOID, TEXTOID, BOOLOID};
	Datum		values[] = {
		CStringGetTextDatum(run->organization_id),
		Int64GetDatum(run->id),
		CStringGetTextDatum(status),
		Int64GetDatum(Max(run->found, 0)),
		Int64GetDatum(run_success(run)),
		Int64GetDatum(run->state.failed),
		CStringGetTextDatum(run_metadata(run)),
		run->error ? CStringGetTextDatum(run->error_details) : (Datum) 0,
		CStringGetTextDatum(run_checkpoint(run)),
		BoolGetDatum(ended)
	};
	char		nulls[] = "          ";

	if (!ended)
		transaction_commit_lazily();
	nulls[7] = run->error ? ' ' : 'n';
	statement_prepare(&statement, catalog,
			"UPDATE @schema@.sync_logs"
			"   SET status = $3, records_processed = $4, records_success = $5,"
			"       records_failed = $6, metadata = $7::jsonb, error_details = $8,"
			"       checkpoint = $9::jsonb, updated_at = clock_timestamp(),"
			"       completed_at = CASE WHEN $10 THEN clock_timestamp() END"
			" WHERE organization_id = $1 AND id = $2 AND status = 'running'", 10, types);
	statement_execute(&statement, values, nulls, false);
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_GONE),
				 errmsg("the run is no longer running")));

	run_notify(run->organization_id, run->id, status, run->state.percent);
}

static void
save_progress(const Catalog *catalog, void *arg)
{
	store_write_progress(catalog, arg);
}

/* Commit what the run says of itself: a step, a wait, or its end. */
TransactionResult
store_save_progress(Run *run)
{
	return transaction_run(save_progress, run);
}

/*
 * Commit a run's end after the extension was dropped: the tables are the
 * user's and still there, and no row of theirs may say "running" for ever.
 */
TransactionResult
store_save_farewell(Run *run)
{
	return transaction_run_farewell(save_progress, run);
}

typedef struct EndArg
{
	ClinikoError error;
	const char *detail;
} EndArg;

static void
end_all(const Catalog *catalog, void *arg)
{
	static Statement statement;
	EndArg	   *end = arg;
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {
		(Datum) 0,
		CStringGetTextDatum(cliniko_error_code(end->error)),
		CStringGetTextDatum(cliniko_error_details(end->error, end->detail)),
		CStringGetTextDatum(cliniko_error_retry_recommended(end->error) ? "true" : "false")
	};

	statement_prepare(&statement, catalog,
			STORE_END_RUNS " AND $1 IS NULL RETURNING l.organization_id::text, l.id::bigint", 4, types);
	statement_execute(&statement, values, "n   ", false);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		run_notify(TextDatumGetCString(statement_column(i, 1, TEXTOID, &isnull)),
				   DatumGetInt64(statement_column(i, 2, INT8OID, &isnull)), "failed", 0);
	}
}

/* Likewise, for all runs that no worker has begun. */
TransactionResult
store_end_all_farewell(ClinikoError error, const char *detail)
{
	EndArg		end = {.error = error, .detail = detail};

	return transaction_run_farewell(end_all, &end);
}

/*
 * Housekeeping
 */

typedef struct PruneArg
{
	const Run  *run;
	int			pruned;
} PruneArg;

static void
prune_logs(const Catalog *catalog, void *arg)
{
	static Statement statement;
	PruneArg   *prune = arg;
	Oid			types[] = {TEXTOID, TIMESTAMPTZOID};
	Datum		values[] = {
		CStringGetTextDatum(prune->run->organization_id),
		TimestampTzGetDatum(GetCurrentTimestamp() -
							clinisync_log_retention * (int64) SECS_PER_MINUTE * USECS_PER_SEC)
	};

	/* the oldest have the lowest ids, so a look at a few of these is enough */
	statement_prepare(&statement, catalog,
			"DELETE FROM @schema@.sync_logs"
			" WHERE organization_id = $1 AND id = ANY (ARRAY"
			"       (SELECT id"
			"          FROM (SELECT id, status, started_at"
			"                  FROM @schema@.sync_logs"
			"                 WHERE organization_id = $1"
			"                 ORDER BY id LIMIT " CppAsString2(PRUNED_AT_ONCE) ") oldest"
			"         WHERE status <> 'running' AND started_at < $2"
			"           AND id < (SELECT id FROM @schema@.sync_logs"
			"                      WHERE organization_id = $1"
			"                      ORDER BY id DESC OFFSET " CppAsString2(LOGS_KEPT) " - 1 LIMIT 1)"
			/* what cliniko_status() and a run of changes go by */
			"           AND id IS DISTINCT FROM"
			"               (SELECT id FROM @schema@.sync_logs"
			"                 WHERE organization_id = $1 AND status = 'completed'"
			"                 ORDER BY id DESC LIMIT 1)"
			"           AND id IS DISTINCT FROM"
			"               (SELECT id FROM @schema@.sync_logs"
			"                 WHERE organization_id = $1 AND status = 'completed'"
			"                   AND operation_type = '" OPERATION_FULL "'"
			"                 ORDER BY id DESC LIMIT 1)))", 2, types);
	prune->pruned = statement_execute(&statement, values, NULL, false);
}

/*
 * Delete a few logs of a run's organisation that are older than
 * clinisync.log_retention, but never of the newest ten, nor the last completed
 * run, nor the last completed full one. pruned: how many; 0 when all are gone.
 */
TransactionResult
store_prune_logs(const Run *run, int *pruned)
{
	PruneArg	prune = {.run = run};
	TransactionResult result = transaction_run(prune_logs, &prune);

	*pruned = result == TRANSACTION_DONE ? prune.pruned : 0;
	return result;
}
