/*
 * batch.c
 *		Records of Cliniko's on their way into the table patients.
 *
 * A batch is one transaction: patients, counters, checkpoint and NOTIFY commit
 * together. What has not changed is not written. Rows are written by one
 * statement. If the table refuses it, the transaction is rolled back and done
 * again record by record, each in a subtransaction, so that a bad record costs
 * one record. What is kept of such an error is its SQLSTATE and the names of
 * constraint and column, if there are such, never the message: that may hold a
 * patient's data.
 *
 * The tables' owner may change their columns' types, or put a view in a table's
 * place. So what is read as of some type is cast to it, and never NULL where we
 * do not look for that.
 *
 * Statements are prepared once in a session. Memory: what a transaction needs
 * ends with it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "batch.h"
#include "catalog.h"
#include "patient.h"
#include "statement.h"
#include "store.h"

/* What the rows that are written are read from. */
#define CHANGES_RELATION "clinisync_changes"

typedef struct BatchArg
{
	Run		   *run;
	const Passage *passage;
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

/* The ids of a batch's records, as an array. */
static Datum
record_ids(const PassagePart *part)
{
	Datum	   *ids = palloc(sizeof(Datum) * Max(part->nrecords, 1));

	for (int i = 0; i < part->nrecords; i++)
		ids[i] = Int64GetDatum(part->records[i].id);
	return PointerGetDatum(construct_array(ids, part->nrecords, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* What the table has of a record. */
typedef struct Known
{
	bool		known;			/* there is a row */
	bool		deleted;		/* which is marked as deleted */
	bool		comparable;		/* or of which the hash says all */
	int64		hash;
} Known;

/* What both ways of looking select, from column 1 on. */
#define KNOWN_COLUMNS \
	"cliniko_patient_id::bigint, deleted_at IS NOT NULL AS deleted," \
	" record_hash IS NOT NULL AND deleted_at IS NULL AND missing_sync_id IS NULL AS comparable," \
	" record_hash::bigint"

static void
read_known(uint64 row, Known *known)
{
	bool		isnull;

	(void) statement_column(row, 1, INT8OID, &isnull);
	known->known = !isnull;
	if (isnull)
		return;
	known->deleted = DatumGetBool(statement_column(row, 2, BOOLOID, &isnull));
	known->comparable = DatumGetBool(statement_column(row, 3, BOOLOID, &isnull));
	known->hash = DatumGetInt64(statement_column(row, 4, INT8OID, &isnull));
}

/*
 * Look up each of a batch's records: a probe of the unique index for each. Asked
 * for "= ANY" instead, the planner would choose between that and reading the
 * organisation whole, by what it believes of a table that may never have been
 * analysed. OFFSET 0 keeps it from making another kind of join of it.
 */
static void
look_up(const Catalog *catalog, const Run *run, const PassagePart *part, Known *known)
{
	static Statement statement;
	Oid			types[] = {TEXTOID, INT8ARRAYOID};
	Datum		values[] = {
		CStringGetTextDatum(run->organization_id),
		record_ids(part)
	};

	statement_prepare(&statement, catalog,
			"SELECT p.*"
			"  FROM unnest($2) WITH ORDINALITY AS wanted (id, place)"
			"  LEFT JOIN LATERAL"
			"       (SELECT " KNOWN_COLUMNS
			"          FROM @schema@.patients"
			"         WHERE organization_id = $1 AND cliniko_patient_id = wanted.id"
			"        OFFSET 0) p ON true"
			" ORDER BY wanted.place", 2, types);
	statement_execute(&statement, values, NULL, false);
	for (int i = 0; i < part->nrecords; i++)
		read_known(i, &known[i]);
}

/*
 * Likewise, by reading the rows of the interval that the batch stands for, which is
 * one walk along the index. Returns how many of them it does not list, but for those
 * that a resumed run has counted already; or -1, having looked up nothing, where
 * there are so many rows that they are not worth the walk.
 */
static int
look_through(const Catalog *catalog, const Run *run, const PassagePart *part, Known *known)
{
	static Statement statement;
	int			most = 2 * part->nrecords + 100;
	int			missing = 0;
	int			i = 0;
	Oid			types[] = {TEXTOID, INT8OID, INT8OID, INT4OID, INT8OID};
	Datum		values[] = {
		CStringGetTextDatum(run->organization_id),
		Int64GetDatum(part->told.after_id),
		Int64GetDatum(part->told.below_id),
		Int32GetDatum(most),
		Int64GetDatum(run->id)
	};

	statement_prepare(&statement, catalog,
			"SELECT " KNOWN_COLUMNS
			"       , deleted_at IS NULL AND missing_sync_id IS DISTINCT FROM $5 AS countable"
			"  FROM @schema@.patients"
			" WHERE organization_id = $1 AND cliniko_patient_id > $2 AND cliniko_patient_id < $3"
			" ORDER BY cliniko_patient_id LIMIT $4", 5, types);
	if (statement_execute(&statement, values, NULL, false) == most)
		return -1;
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(statement_column(row, 1, INT8OID, &isnull));

		/* both are in the order of their ids, but for records without one */
		while (i < part->nrecords && part->records[i].id < id)
			i++;
		if (i < part->nrecords && part->records[i].id == id)
			read_known(row, &known[i]);
		else
			missing += DatumGetBool(statement_column(row, 5, BOOLOID, &isnull));
	}
	return missing;
}

/* How many that are, where look_through() did not walk. */
static int64
count_missing(const Catalog *catalog, const Run *run, const PassagePart *part, const Known *known)
{
	static Statement statement;
	Oid			types[] = {TEXTOID, INT8OID, INT8OID, INT8OID};
	Datum		values[] = {
		CStringGetTextDatum(run->organization_id),
		Int64GetDatum(part->told.after_id),
		Int64GetDatum(part->told.below_id),
		Int64GetDatum(run->id)
	};
	int64		listed = 0;
	bool		isnull;

	for (int i = 0; i < part->nrecords; i++)
		listed += known[i].known && !known[i].deleted;
	statement_prepare(&statement, catalog,
			"SELECT count(*)"
			"  FROM @schema@.patients"
			" WHERE organization_id = $1 AND cliniko_patient_id > $2"
			"   AND cliniko_patient_id < $3 AND deleted_at IS NULL"
			"   AND missing_sync_id IS DISTINCT FROM $4", 4, types);
	statement_execute(&statement, values, NULL, false);
	return DatumGetInt64(statement_column(0, 1, INT8OID, &isnull)) - listed;
}

/*
 * Note which rows of ours Cliniko does not list among a batch's ids. More than can
 * be believed need not be noted, but are counted: how many can be is known only at
 * the end.
 */
static void
mark_missing(const Catalog *catalog, Run *run, const PassagePart *part, int64 missing)
{
	static Statement statement;
	int64		marked;
	Oid			types[] = {TEXTOID, INT8OID, INT8OID, INT8OID, INT8ARRAYOID, INT8OID};
	Datum		values[] = {
		CStringGetTextDatum(run->organization_id),
		Int64GetDatum(part->told.after_id),
		Int64GetDatum(part->told.below_id),
		Int64GetDatum(Max(run_missing_limit(run) + 1 - run->state.missing, 0)),
		record_ids(part),
		Int64GetDatum(run->id)
	};

	statement_prepare(&statement, catalog,
			"UPDATE @schema@.patients p SET missing_sync_id = $6"
			"  FROM (SELECT cliniko_patient_id"
			"          FROM @schema@.patients"
			"         WHERE organization_id = $1 AND cliniko_patient_id > $2"
			"           AND cliniko_patient_id < $3 AND deleted_at IS NULL"
			"           AND cliniko_patient_id <> ALL ($5)"
			"           AND missing_sync_id IS DISTINCT FROM $6"
			"         ORDER BY cliniko_patient_id LIMIT $4) missing"
			" WHERE p.organization_id = $1"
			"   AND p.cliniko_patient_id = missing.cliniko_patient_id", 6, types);
	marked = statement_execute(&statement, values, NULL, false);
	run->state.missing += Max(missing, marked);
}

/*
 * Look for what the table has of a part's records, and note who is missing from
 * it. Returns an array with an entry for each record.
 */
static Known *
find_known(const Catalog *catalog, Run *run, const PassagePart *part, bool tells_missing)
{
	Known	   *known = palloc0(sizeof(Known) * Max(part->nrecords, 1));
	int64		missing = tells_missing ? look_through(catalog, run, part, known) : -1;

	if (missing < 0)
	{
		look_up(catalog, run, part, known);
		missing = tells_missing ? count_missing(catalog, run, part, known) : 0;
	}
	if (missing > 0)
		mark_missing(catalog, run, part, missing);
	return known;
}

/* Read a record into a row. Returns what is wrong with it, or NULL. */
static const char *
read_record(const JsonObject *record, PatientRow *row)
{
	if (record->text.len > PATIENT_MAX_SIZE)
		return "the record is larger than " CppAsString2(PATIENT_MAX_KB) " kB";
	patient_read(record, row);
	return row->bad_column ? psprintf("%s has an impossible value", row->bad_column) : NULL;
}

/*
 * Count the records of a part that are as the table has them, and read those that
 * are not. Returns how many that are.
 */
static int
find_changes(Run *run, const PassagePart *part, const Known *known, Change *changes)
{
	int			nchanges = 0;

	for (int i = 0; i < part->nrecords; i++)
	{
		const ClinikoRecord *record = &part->records[i];
		Change	   *change = &changes[nchanges];
		const char *problem;

		if (record->id == 0)
		{
			run->state.failed++;
			run_add_error(run, "A patient without a usable id");
			continue;
		}
		run->state.archived += record->archived;
		run->state.witnesses[1] = run->state.witnesses[0];
		run->state.witnesses[0] = record->id;
		change->id = record->id;
		change->hash = patient_hash(&record->json);
		change->known = known[i].known;
		change->restored = known[i].deleted;
		if (known[i].comparable && known[i].hash == change->hash)
		{
			run->state.unchanged++;
			continue;
		}
		problem = read_record(&record->json, &change->row);
		if (problem)
		{
			run->state.failed++;
			run->state.kept += known[i].known && !known[i].deleted;
			run_add_error(run, "Patient ID " INT64_FORMAT ": %s", record->id, problem);
			continue;
		}
		nchanges++;
	}
	return nchanges;
}

/* Describe the rows that are written: two columns of ours, then the map. */
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

/*
 * Build the statement that writes rows from the columns. A row of ours gets its id
 * here: a sequence would tell each clinic how many patients the others got. A table
 * whose primary key is another numbers its rows itself.
 */
static char *
write_sql(const Catalog *catalog, TupleDesc columns, bool all_new)
{
	bool		own_ids = catalog_patients_have_our_key(catalog);
	StringInfoData names;
	StringInfoData updates;
	char	   *insert;

	initStringInfo(&names);
	initStringInfo(&updates);
	for (int i = 0; i < columns->natts; i++)
	{
		const char *name = NameStr(TupleDescAttr(columns, i)->attname);

		appendStringInfo(&names, "%s, ", name);
		appendStringInfo(&updates, "%s = excluded.%s, ", name, name);
	}
	insert = psprintf("INSERT INTO @schema@.patients AS p"
					  " (%s organization_id, first_synced_at, last_synced_at%s) OVERRIDING SYSTEM VALUE"
					  " SELECT c.*, $1, $2, $2%s FROM " CHANGES_RELATION " c",
					  names.data, own_ids ? ", id" : "",
					  own_ids ? ", " STORE_NEW_ID("patients") " + row_number() OVER () - 1" : "");
	if (all_new)
		return insert;
	return psprintf("%s ON CONFLICT (organization_id, cliniko_patient_id) DO UPDATE"
					" SET %s"
					"     first_synced_at = coalesce(p.first_synced_at, excluded.first_synced_at),"
					"     last_synced_at = excluded.last_synced_at,"
					"     missing_sync_id = NULL, deleted_at = NULL",
					insert, updates.data);
}

/*
 * Write rows. Returns how many the table took. The rows reach the statement as
 * an ephemeral relation, which is how triggers see their transition tables:
 * values that are typed already need no parameters, arrays or JSON on the way.
 *
 * all_new: none of them was there just now. Then the index need not be searched
 * for each once more; whoever is there after all violates it. But that relies on
 * its being there, without which the upsert cannot be planned.
 */
static uint64
write_rows(const Catalog *catalog, const char *organization_id, Change *changes, int nchanges,
		   bool all_new)
{
	static Statement upsert;
	static Statement insert;
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
	if (!statement_is_prepared(&upsert, catalog))
		statement_prepare(&upsert, catalog, write_sql(catalog, columns, false), lengthof(types), types);
	if (!statement_is_prepared(&insert, catalog))
		statement_prepare(&insert, catalog, write_sql(catalog, columns, true), lengthof(types), types);
	if (all_new)
		statement_plan(&upsert);
	statement_execute(all_new ? &insert : &upsert, args, NULL, false);
	SPI_unregister_relation(CHANGES_RELATION);
	tuplestore_end(rows);
	return SPI_processed;
}

/* The table that an error names, if there is one. */
static Oid
error_table(const ErrorData *error)
{
	Oid			schema = error->schema_name ? get_namespace_oid(error->schema_name, true) : InvalidOid;

	return OidIsValid(schema) && error->table_name
		? get_relname_relid(error->table_name, schema) : InvalidOid;
}

/* Whether a table has a constraint, or an index, of this name. */
static bool
has_constraint(Oid table, const char *name)
{
	Oid			index = get_relname_relid(name, get_rel_namespace(table));

	return OidIsValid(get_relation_constraint_oid(table, name, true)) ||
		(OidIsValid(index) && IndexGetRelation(index, true) == table);
}

/*
 * Say why the table refused a record, without saying what was in it. A trigger may
 * raise an error with whatever it likes in the place of a name, such as a patient's:
 * only what the catalogs have under the names that it gives is a name.
 */
static void
add_refusal(Run *run, int64 id, const ErrorData *error)
{
	Oid			table = error ? error_table(error) : InvalidOid;

	run->state.failed++;
	if (error == NULL)
		run_add_error(run, "Patient ID " INT64_FORMAT ": a trigger left it out", id);
	else if (OidIsValid(table) && error->constraint_name &&
			 has_constraint(table, error->constraint_name))
		run_add_error(run, "Patient ID " INT64_FORMAT ": violates constraint \"%s\" (SQLSTATE %s)",
					  id, error->constraint_name, unpack_sql_state(error->sqlerrcode));
	else if (OidIsValid(table) && error->column_name &&
			 get_attnum(table, error->column_name) != InvalidAttrNumber)
		run_add_error(run, "Patient ID " INT64_FORMAT ": column \"%s\" refuses its value (SQLSTATE %s)",
					  id, error->column_name, unpack_sql_state(error->sqlerrcode));
	else
		run_add_error(run, "Patient ID " INT64_FORMAT ": refused by the database (SQLSTATE %s)",
					  id, unpack_sql_state(error->sqlerrcode));
}

/* Write one row in a subtransaction. Returns whether the table took it. */
static bool
write_alone(const Catalog *catalog, Run *run, Change *change)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool taken = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		taken = write_rows(catalog, run->organization_id, change, 1, false) == 1;
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
		if (!transaction_is_about_record(error->sqlerrcode))
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
	const Passage *passage = batch->passage;
	Change	   *changes = palloc(sizeof(Change) * Max(passage->nrecords, 1));
	int			nchanges = 0;

	for (int i = 0; i < passage->nparts; i++)
	{
		const PassagePart *part = &passage->parts[i];
		Known	   *known = find_known(catalog, run, part, passage->tells_missing);

		nchanges += find_changes(run, part, known, changes + nchanges);
	}
	if (batch->one_by_one)
	{
		for (int i = 0; i < nchanges; i++)
		{
			if (write_alone(catalog, run, &changes[i]))
				count_change(run, &changes[i]);
			else
				run->state.kept += changes[i].known && !changes[i].restored;
		}
	}
	else if (nchanges > 0)
	{
		bool		all_new = true;

		for (int i = 0; i < nchanges; i++)
			all_new &= !changes[i].known;
		/* a trigger may leave rows out without a word; find out which */
		if (write_rows(catalog, run->organization_id, changes, nchanges, all_new) != nchanges)
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
					 errmsg("rows were left out")));
		for (int i = 0; i < nchanges; i++)
			count_change(run, &changes[i]);
	}
	store_write_progress(catalog, run);
}

/*
 * Store some records and move the run's cursor behind them, in one
 * transaction. If it does not commit, the run is as it was.
 */
TransactionResult
batch_save(Run *run, const Passage *passage)
{
	BatchArg	batch = {.run = run, .passage = passage};
	RunState	before = run->state;
	TransactionResult result;

	for (;;)
	{
		run->state.cursor = passage->cursor;
		result = transaction_run(save_batch, &batch);
		if (result == TRANSACTION_DONE)
			return result;
		run->state = before;
		if (result != TRANSACTION_FAILED || batch.one_by_one || !transaction_last_was_about_record())
			return result;
		batch.one_by_one = true;
	}
}
