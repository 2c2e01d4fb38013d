/*
 * store.c
 *		Everything of a run that is SQL: list, load, progress, batches, the end.
 *
 * Each function here is one transaction, from beginning to end: patients,
 * counters, checkpoint and NOTIFY commit together, and nothing is held when it
 * returns. An error inside is caught in one place, transaction(), and becomes
 * a StoreResult.
 *
 * A batch is stored in one statement. If the table refuses it, the transaction
 * is rolled back and done again record by record, each in a subtransaction, so
 * that a bad record costs one record. What is kept of such an error is its
 * SQLSTATE and the names of constraint and column, never the message: that may
 * hold a patient's data.
 *
 * Statements are prepared once in a session. Memory: what a transaction needs
 * ends with it; results are copied to the context that the caller names.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "clinisync.h"
#include "compat.h"
#include "patient.h"
#include "secret.h"
#include "statement.h"
#include "store.h"

/* What the upsert reads from. */
#define CHANGES_RELATION "clinisync_changes"

/* What a transaction does; raises an error to undo it all. */
typedef void (*Work) (const Catalog *catalog, void *arg);

/* The SQLSTATE of the last transaction that failed. */
static int	last_sqlstate;

/* Where the tables were when they were last seen; for store_save_farewell(). */
static Catalog last_catalog;

const char *
store_last_sqlstate(void)
{
	return unpack_sql_state(last_sqlstate);
}

/*
 * Whether an error is about the record that was being written, rather than
 * about the state of the database: data, constraints, what triggers raise.
 */
static bool
is_about_record(int sqlstate)
{
	static const char *const others[] = {
		"08", "0A", "25", "26", "28", "2D", "34", "3D", "3F", "40", "42", "53",
		"55", "57", "58", "F0", "HV", "XX", "PT"
	};
	const char *code = unpack_sql_state(sqlstate);

	for (int i = 0; i < lengthof(others); i++)
	{
		if (strncmp(code, others[i], 2) == 0)
			return false;
	}
	return true;
}

static StoreResult
classify(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
			return STORE_BUSY;
	}
	switch (sqlstate)
	{
		case ERRCODE_CLINISYNC_GONE:
			return STORE_NOT_RUNNING;
		case ERRCODE_LOCK_NOT_AVAILABLE:
		case ERRCODE_QUERY_CANCELED:
		case ERRCODE_OBJECT_IN_USE:
			return STORE_BUSY;
	}
	return STORE_FAILED;
}

/*
 * Keep where the tables are beyond the transaction. Whatever search_path the
 * database has set, names in our statements, and in triggers that users attach
 * to the tables, mean what they mean in the tables' schema.
 */
static void
remember(const Catalog *catalog)
{
	if (last_catalog.schema == NULL || strcmp(last_catalog.schema, catalog->schema) != 0)
	{
		last_catalog.schema = MemoryContextStrdup(TopMemoryContext, catalog->schema);
		SetConfigOption("search_path",
						psprintf("pg_catalog, %s, pg_temp", catalog->schema),
						PGC_USERSET, PGC_S_OVERRIDE);
	}
	last_catalog.owner = catalog->owner;
}

/*
 * Run some work in a transaction of its own, as the tables' owner. Constraints
 * that users have declared deferred are checked at once: PostgreSQL defers none
 * in a security-restricted operation, and a record that violates one is then
 * found where it costs that record alone. The owner's identity lasts through
 * the commit all the same.
 */
static StoreResult
transaction(Work work, void *arg, bool farewell)
{
	MemoryContext context = CurrentMemoryContext;
	volatile StoreResult result = STORE_DONE;
	/* SET CONSTRAINTS ALL IMMEDIATE */
	ConstraintsSetStmt immediate = {.type = T_ConstraintsSetStmt};

	/* lock_timeout works by a SIGINT to ourselves, which is ignored elsewhere */
	pqsignal(SIGINT, StatementCancelHandler);
	PG_TRY();
	{
		CatalogIdentity worker;
		Catalog		catalog;

		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		if (farewell)
			catalog = last_catalog;
		else if (!catalog_find(&catalog) || catalog.missing)
			result = STORE_UNINSTALLED;
		else
			remember(&catalog);

		if (result == STORE_UNINSTALLED)
			AbortCurrentTransaction();
		else
		{
			catalog_become_owner(&catalog, &worker);
			SPI_connect();
			PushActiveSnapshot(GetTransactionSnapshot());
			AfterTriggerSetState(&immediate);
			work(&catalog, arg);
			PopActiveSnapshot();
			SPI_finish();
			CommitTransactionCommand();
			catalog_become(&worker);
		}
	}
	PG_CATCH();
	{
		last_sqlstate = geterrcode();
		AbortCurrentTransaction();
		FlushErrorState();
		result = is_about_record(last_sqlstate) ? STORE_FAILED : classify(last_sqlstate);
	}
	PG_END_TRY();
	pqsignal(SIGINT, SIG_IGN);
	QueryCancelPending = false;
	MemoryContextSwitchTo(context);
	pgstat_report_stat(false);
	return result;
}

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
			"SELECT id, organization_id"
			"  FROM @schema@.sync_logs"
			" WHERE status = 'running'"
			" ORDER BY id", 0, NULL);
	statement_execute(&statement, NULL, NULL, false);

	old_context = MemoryContextSwitchTo(list->context);
	list->nkeys = SPI_processed;
	list->keys = palloc(sizeof(StoreRunKey) * Max(list->nkeys, 1));
	for (int i = 0; i < list->nkeys; i++)
	{
		bool		isnull;

		list->keys[i].id = DatumGetInt64(statement_column(i, 1, &isnull));
		list->keys[i].organization_id = TextDatumGetCString(statement_column(i, 2, &isnull));
	}
	MemoryContextSwitchTo(old_context);
}

/* List all runs that are running, oldest first, and take over new settings. */
StoreResult
store_list_running(MemoryContext context, StoreRunKey **keys, int *nkeys)
{
	ListArg		list = {.context = context};
	StoreResult result = transaction(list_running, &list, false);

	*keys = list.keys;
	*nkeys = result == STORE_DONE ? list.nkeys : 0;
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
			"SELECT l.operation_type, l.started_at, l.checkpoint::text, l.metadata::text,"
			"       o.api_key_sealed, o.shard"
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
	run->operation_type = TextDatumGetCString(statement_column(0, 1, &isnull));
	run->started_at = DatumGetTimestampTz(statement_column(0, 2, &isnull));
	value = statement_column(0, 5, &isnull);
	if (isnull)
		run->key_problem = "It was removed: pass the API key to cliniko_connect() again.";
	else
		run->api_key = secret_open(DatumGetByteaPP(value), run->organization_id,
								   &run->key_problem);
	value = statement_column(0, 6, &isnull);
	if (!isnull)
		run->shard = TextDatumGetCString(value);
	MemoryContextSwitchTo(old_context);

	value = statement_column(0, 3, &isnull);
	if (!isnull)
		run_restore(run, TextDatumGetCString(value),
					TextDatumGetCString(statement_column(0, 4, &isnull)));
}

/*
 * Read a run with its organisation, to begin it or to resume it. Where its API
 * key is missing or unreadable, run->api_key is NULL.
 */
StoreResult
store_load_run(MemoryContext parent, const StoreRunKey *key, Run **run)
{
	LoadArg		load = {.key = key, .run = run_create(parent)};
	StoreResult result = transaction(load_run, &load, false);

	if (result == STORE_DONE)
		*run = load.run;
	else
		run_free(load.run);
	return result;
}

/*
 * Progress
 */

/* Write what the run says of itself, and tell who listens. */
static void
save_progress(const Catalog *catalog, void *arg)
{
	static Statement statement;
	Run		   *run = arg;
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

/* Commit what the run says of itself: a step, a wait, or its end. */
StoreResult
store_save_progress(Run *run)
{
	return transaction(save_progress, run, false);
}

/*
 * Commit a run's end after the extension was dropped: the tables are the
 * user's and still there, and no row of theirs may say "running" for ever.
 */
StoreResult
store_save_farewell(Run *run)
{
	return transaction(save_progress, run, true);
}

/*
 * Batches
 */

typedef struct BatchArg
{
	Run		   *run;
	ClinikoRecord *records;
	int			nrecords;
	bool		one_by_one;
} BatchArg;

/* A record on its way into the table. */
typedef struct Change
{
	int64		id;
	int64		hash;
	bool		known;			/* there is a row already */
	bool		restored;		/* that row was marked as deleted */
	PatientRow	row;
} Change;

/*
 * Look up what the table has of a batch's records: one row for each, in their
 * order. Each is a probe of the unique index. Asked for "= ANY" instead, the
 * planner would choose between that and reading the organisation whole, by
 * what it believes of a table that may never have been analysed. OFFSET 0
 * keeps it from making another kind of join of it.
 */
static void
look_up(const Catalog *catalog, BatchArg *batch)
{
	static Statement statement;
	Oid			types[] = {TEXTOID, INT8ARRAYOID};
	Datum	   *ids = palloc(sizeof(Datum) * Max(batch->nrecords, 1));
	Datum		values[2];

	for (int i = 0; i < batch->nrecords; i++)
		ids[i] = Int64GetDatum(batch->records[i].id);
	values[0] = CStringGetTextDatum(batch->run->organization_id);
	values[1] = PointerGetDatum(construct_array(ids, batch->nrecords, INT8OID, sizeof(int64),
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	statement_prepare(&statement, catalog,
			"SELECT p.cliniko_patient_id IS NOT NULL AS known,"
			"       coalesce(p.deleted, false), coalesce(p.comparable, false), p.record_hash"
			"  FROM unnest($2) WITH ORDINALITY AS wanted (id, place)"
			"  LEFT JOIN LATERAL"
			"       (SELECT cliniko_patient_id, record_hash, deleted_at IS NOT NULL AS deleted,"
			"               record_hash IS NOT NULL AND deleted_at IS NULL"
			"               AND missing_sync_id IS NULL AS comparable"
			"          FROM @schema@.patients"
			"         WHERE organization_id = $1 AND cliniko_patient_id = wanted.id"
			"        OFFSET 0) p ON true"
			" ORDER BY wanted.place", 2, types);
	statement_execute(&statement, values, NULL, false);
}

/* Count the records that are as the table has them, and read those that are not. */
static int
find_changes(const Catalog *catalog, BatchArg *batch, Change *changes)
{
	Run		   *run = batch->run;
	int			nchanges = 0;
	bool		isnull;

	look_up(catalog, batch);
	for (int i = 0; i < batch->nrecords; i++)
	{
		ClinikoRecord *record = &batch->records[i];
		Change	   *change = &changes[nchanges];
		bool		comparable = DatumGetBool(statement_column(i, 3, &isnull));

		if (record->id == 0)
		{
			run->state.failed++;
			run_add_error(run, "A patient without a usable id");
			continue;
		}
		run->state.archived += record->archived;
		change->id = record->id;
		change->hash = patient_hash(record->json);
		change->known = DatumGetBool(statement_column(i, 1, &isnull));
		change->restored = DatumGetBool(statement_column(i, 2, &isnull));
		if (comparable && DatumGetInt64(statement_column(i, 4, &isnull)) == change->hash)
		{
			run->state.unchanged++;
			continue;
		}
		patient_read(record->json, &change->row);
		if (change->row.bad_column)
		{
			run->state.failed++;
			run_add_error(run, "Patient ID " INT64_FORMAT ": %s has an impossible value",
						  record->id, change->row.bad_column);
			continue;
		}
		nchanges++;
	}
	return nchanges;
}

/* Describe the rows that the upsert reads: two columns of ours, then the map. */
static TupleDesc
describe_columns(void)
{
	MemoryContext old_context = MemoryContextSwitchTo(TopMemoryContext);
	TupleDesc	columns;
	int			n = 2;

	for (int i = 0; i < patient_column_count(); i++)
		n += patient_column_name(i) != NULL;
	columns = CreateTemplateTupleDesc(n);
	TupleDescInitEntry(columns, 1, "cliniko_patient_id", INT8OID, -1, 0);
	TupleDescInitEntry(columns, 2, "record_hash", INT8OID, -1, 0);
	n = 2;
	for (int i = 0; i < patient_column_count(); i++)
	{
		if (patient_column_name(i) != NULL)
			TupleDescInitEntry(columns, ++n, patient_column_name(i), patient_column_type(i), -1, 0);
	}
	MemoryContextSwitchTo(old_context);
	return columns;
}

/* Build the upsert from the columns. */
static char *
upsert_sql(TupleDesc columns)
{
	StringInfoData names;
	StringInfoData updates;

	initStringInfo(&names);
	initStringInfo(&updates);
	for (int i = 0; i < columns->natts; i++)
	{
		const char *name = NameStr(TupleDescAttr(columns, i)->attname);

		appendStringInfo(&names, "%s, ", name);
		appendStringInfo(&updates, "%s = excluded.%s, ", name, name);
	}
	return psprintf("INSERT INTO @schema@.patients AS p"
					" (%s organization_id, first_synced_at, last_synced_at)"
					" SELECT c.*, $1, $2, $2 FROM " CHANGES_RELATION " c"
					" ON CONFLICT (organization_id, cliniko_patient_id) DO UPDATE"
					" SET %s"
					"     first_synced_at = coalesce(p.first_synced_at, excluded.first_synced_at),"
					"     last_synced_at = excluded.last_synced_at,"
					"     missing_sync_id = NULL, deleted_at = NULL",
					names.data, updates.data);
}

/*
 * Write rows. Answers how many the table took. The rows reach the statement as
 * an ephemeral relation, which is how triggers see their transition tables:
 * values that are typed already need no parameters, arrays or JSON on the way.
 */
static uint64
upsert(const Catalog *catalog, const char *organization_id, Change *changes, int nchanges)
{
	static Statement statement;
	static TupleDesc columns;
	Oid			types[] = {TEXTOID, TIMESTAMPTZOID};
	Datum		args[] = {
		CStringGetTextDatum(organization_id),
		TimestampTzGetDatum(GetCurrentTimestamp())
	};
	Datum		values[PATIENT_MAX_COLUMNS + 2];
	bool		nulls[PATIENT_MAX_COLUMNS + 2] = {false};
	Tuplestorestate *rows = tuplestore_begin_heap(false, false, work_mem);
	EphemeralNamedRelation relation = palloc0(sizeof(EphemeralNamedRelationData));

	if (columns == NULL)
		columns = describe_columns();
	for (int i = 0; i < nchanges; i++)
	{
		PatientRow *row = &changes[i].row;
		int			n = 2;

		values[0] = Int64GetDatum(changes[i].id);
		values[1] = Int64GetDatum(changes[i].hash);
		for (int c = 0; c < patient_column_count(); c++)
		{
			if (patient_column_name(c) == NULL)
				continue;
			values[n] = row->values[c];
			nulls[n++] = row->nulls[c];
		}
		tuplestore_putvalues(rows, columns, values, nulls);
	}

	relation->md.name = CHANGES_RELATION;
	relation->md.tupdesc = columns;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = nchanges;
	relation->reldata = rows;
	SPI_unregister_relation(CHANGES_RELATION);	/* an error may have left one */
	if (SPI_register_relation(relation) != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not register the changed rows");
	if (!statement_is_prepared(&statement, catalog))
		statement_prepare(&statement, catalog, upsert_sql(columns), lengthof(types), types);
	statement_execute(&statement, args, NULL, false);
	SPI_unregister_relation(CHANGES_RELATION);
	tuplestore_end(rows);
	return SPI_processed;
}

/* Say why the table refused a record, without saying what was in it. */
static void
add_refusal(Run *run, int64 id, const ErrorData *error)
{
	run->state.failed++;
	if (error == NULL)
		run_add_error(run, "Patient ID " INT64_FORMAT ": a trigger left it out", id);
	else if (error->constraint_name)
		run_add_error(run, "Patient ID " INT64_FORMAT ": violates constraint \"%s\" (SQLSTATE %s)",
					  id, error->constraint_name, unpack_sql_state(error->sqlerrcode));
	else if (error->column_name)
		run_add_error(run, "Patient ID " INT64_FORMAT ": column \"%s\" refuses its value (SQLSTATE %s)",
					  id, error->column_name, unpack_sql_state(error->sqlerrcode));
	else
		run_add_error(run, "Patient ID " INT64_FORMAT ": refused by the database (SQLSTATE %s)",
					  id, unpack_sql_state(error->sqlerrcode));
}

/* Write one row in a subtransaction. Answers whether the table took it. */
static bool
upsert_alone(const Catalog *catalog, Run *run, Change *change)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool taken = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		taken = upsert(catalog, run->organization_id, change, 1) == 1;
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (!taken)
			add_refusal(run, change->id, NULL);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (!is_about_record(error->sqlerrcode))
			ReThrowError(error);
		add_refusal(run, change->id, error);
	}
	PG_END_TRY();
	return taken;
}

static void
count_change(Run *run, const Change *change)
{
	if (change->known)
		run->state.updated++;
	else
		run->state.inserted++;
	run->state.restored += change->restored;
}

static void
save_batch(const Catalog *catalog, void *arg)
{
	BatchArg   *batch = arg;
	Run		   *run = batch->run;
	Change	   *changes = palloc(sizeof(Change) * Max(batch->nrecords, 1));
	int			nchanges = find_changes(catalog, batch, changes);

	if (batch->one_by_one)
	{
		for (int i = 0; i < nchanges; i++)
		{
			if (upsert_alone(catalog, run, &changes[i]))
				count_change(run, &changes[i]);
		}
	}
	else if (nchanges > 0)
	{
		/* a trigger may leave rows out without a word; find out which */
		if (upsert(catalog, run->organization_id, changes, nchanges) != nchanges)
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
					 errmsg("rows were left out")));
		for (int i = 0; i < nchanges; i++)
			count_change(run, &changes[i]);
	}
	save_progress(catalog, run);
}

/*
 * Store some records and move the run's cursor behind them, in one
 * transaction. If it does not commit, the run is as it was.
 */
StoreResult
store_save_batch(Run *run, ClinikoRecord *records, int nrecords, const ClinikoCursor *cursor)
{
	BatchArg	batch = {.run = run, .records = records, .nrecords = nrecords};
	RunState	before = run->state;
	StoreResult result;

	for (;;)
	{
		run->state.cursor = *cursor;
		result = transaction(save_batch, &batch, false);
		if (result == STORE_DONE)
			return result;
		run->state = before;
		if (result != STORE_FAILED || batch.one_by_one || !is_about_record(last_sqlstate))
			return result;
		batch.one_by_one = true;
	}
}
