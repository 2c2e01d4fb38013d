/*
 * reconcile.c
 *		Rows of patients that Cliniko no longer has.
 *
 * Cliniko does not list what was deleted: a patient is gone who is missing from
 * a complete list of all, archived ones included, and whom Cliniko does not know
 * when asked by name. Then deleted_at says when that was found; the row stays.
 *
 * By id, batch.c has noted who is missing while it stored the list
 * (patients.missing_sync_id). By creation, the list's order says nothing of our
 * rows, so each of them is asked for; but only if there are more than Cliniko
 * has.
 *
 * Each function is one transaction, as in store.c. Memory: none is kept.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "reconcile.h"
#include "statement.h"
#include "store.h"

static void
begin(const Catalog *catalog, void *arg)
{
	static Statement statement;
	Run		   *run = arg;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(run->organization_id)};
	bool		isnull;

	if (run->state.cursor.order == CLINIKO_BY_CREATION)
	{
		statement_prepare(&statement, catalog,
				"SELECT count(*)"
				"  FROM @schema@.patients"
				" WHERE organization_id = $1 AND cliniko_patient_id IS NOT NULL"
				"   AND deleted_at IS NULL", 1, types);
		statement_execute(&statement, values, NULL, false);
		run->state.missing = Max(DatumGetInt64(statement_column(0, 1, INT8OID, &isnull)) -
								 run_success(run) - run->state.kept, 0);
	}
	store_write_progress(catalog, run);
}

/*
 * All pages are stored: find out how many patients are missing from them, and
 * commit that from now on it is these who are asked for.
 */
TransactionResult
reconcile_begin(Enumeration *list)
{
	Run		   *run = list->run;
	RunState	before = run->state;
	TransactionResult result;

	run->state.cursor.part = CLINIKO_MISSING;
	run->state.cursor.after_id = 0;
	result = transaction_run(begin, run);
	if (result == TRANSACTION_DONE)
		list->cursor = run->state.cursor;
	else
		run->state = before;
	return result;
}

static void
name_next(const Catalog *catalog, void *arg)
{
	static Statement statement;
	Enumeration *list = arg;
	Run		   *run = list->run;
	Oid			types[] = {TEXTOID, INT8OID, INT8OID, BOOLOID, INT8OID};
	Datum		values[] = {
		CStringGetTextDatum(run->organization_id),
		Int64GetDatum(run->state.cursor.after_id),
		Int64GetDatum(run->id),
		BoolGetDatum(run->state.cursor.order == CLINIKO_BY_CREATION),
		Int64GetDatum(enumeration_most_named(list))
	};
	bool		isnull;

	statement_prepare(&statement, catalog,
			"SELECT cliniko_patient_id::bigint"
			"  FROM @schema@.patients"
			" WHERE organization_id = $1 AND cliniko_patient_id > $2"
			"   AND (missing_sync_id = $3 OR $4) AND deleted_at IS NULL"
			" ORDER BY cliniko_patient_id LIMIT $5", 5, types);
	list->nnamed = statement_execute(&statement, values, NULL, false);
	for (int i = 0; i < list->nnamed; i++)
		list->named[i] = DatumGetInt64(statement_column(i, 1, INT8OID, &isnull));
}

/* Choose the missing patients to ask for next; none where all were asked for. */
TransactionResult
reconcile_name_next(Enumeration *list)
{
	return transaction_run(name_next, list);
}

static void
mark_deleted(const Catalog *catalog, void *arg)
{
	static Statement statement;
	Enumeration *list = arg;
	Run		   *run = list->run;
	Oid			types[] = {TEXTOID, INT8ARRAYOID, INT8OID, TIMESTAMPTZOID};
	Datum		ids[MOST_NAMED];
	Datum		values[4];

	for (int i = 0; i < list->nnamed; i++)
		ids[i] = Int64GetDatum(list->named[i]);
	values[0] = CStringGetTextDatum(run->organization_id);
	values[1] = PointerGetDatum(construct_array(ids, list->nnamed, INT8OID, sizeof(int64),
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[2] = Int64GetDatum(run->id);
	values[3] = TimestampTzGetDatum(GetCurrentTimestamp());
	statement_prepare(&statement, catalog,
			"UPDATE @schema@.patients p"
			"   SET deleted_at = $4, missing_sync_id = $3"
			"  FROM unnest($2) AS gone (id)"
			" WHERE p.organization_id = $1 AND p.cliniko_patient_id = gone.id"
			"   AND p.deleted_at IS NULL", 4, types);
	run->state.deleted += statement_execute(&statement, values, NULL, false);
	store_write_progress(catalog, run);
}

/* Mark those as deleted that are still named, and commit that they are done. */
TransactionResult
reconcile_save(Enumeration *list)
{
	RunState	before = list->run->state;
	TransactionResult result;

	list->run->state.cursor = list->cursor;
	result = transaction_run(mark_deleted, list);
	if (result != TRANSACTION_DONE)
		list->run->state = before;
	return result;
}
