/*
 * statement.c
 *		SQL statements that are prepared once in a session.
 *
 * A statement names the extension's schema as @schema@. It is prepared when it
 * is first needed, and anew should the extension come back in another schema;
 * PostgreSQL itself replans it when a table or the caller's role changes.
 *
 * Expects a connection to SPI. Memory: plans stay until the session ends.
 */
#include "postgres.h"

#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/plancache.h"

#include "clinisync.h"
#include "identity.h"
#include "statement.h"

/* Which statements are still good: those that were prepared under this number. */
static uint32 current_generation;

/*
 * Have every statement prepared anew. A plan that a rule DO INSTEAD NOTHING has
 * emptied depends on no table any more, so that PostgreSQL would not replan it
 * when the rule is dropped.
 */
void
statement_renew_all(void)
{
	current_generation++;
}

/* Whether a statement need not be prepared, and its text not be made. */
bool
statement_is_prepared(const Statement *statement, const Catalog *catalog)
{
	return statement->plan != NULL && statement->generation == current_generation &&
		strcmp(statement->schema, catalog->schema) == 0;
}

/* Prepare a statement unless it is. */
void
statement_prepare(Statement *statement, const Catalog *catalog, const char *template,
				  int nargs, Oid *types)
{
	SPIPlanPtr	plan;
	char	   *schema;

	statement->catalog = catalog;
	if (statement_is_prepared(statement, catalog))
		return;
	plan = SPI_prepare(catalog_sql(catalog, template), nargs, types);
	if (plan == NULL)
		elog(ERROR, "could not prepare a statement: %s", SPI_result_code_string(SPI_result));
	schema = MemoryContextStrdup(TopMemoryContext, catalog->schema);
	SPI_keepplan(plan);
	if (statement->plan)
	{
		SPI_freeplan(statement->plan);
		pfree(statement->schema);
	}
	statement->plan = plan;
	statement->schema = schema;
	statement->generation = current_generation;
}

/*
 * Lock the tables that a plan is about, until the transaction ends, and raise an
 * error unless they are those that were looked at.
 */
void
statement_check_tables(SPIPlanPtr plan, const Catalog *catalog)
{
	CachedPlan *cached = SPI_plan_get_cached_plan(plan);
	ListCell   *source;

	if (cached == NULL)
		elog(ERROR, "a statement is more than one query");
	foreach(source, SPI_plan_get_plan_sources(plan))
		catalog_require_same(catalog, ((CachedPlanSource *) lfirst(source))->relationOids);
	ReleaseCachedPlan(cached, cached->is_saved ? CurrentResourceOwner : NULL);
}

/* Plan a statement, unless its plan is still good, to see whether it can be. */
void
statement_plan(const Statement *statement)
{
	CachedPlan *plan = SPI_plan_get_cached_plan(statement->plan);

	if (plan == NULL)
		elog(ERROR, "a statement is more than one query");
	ReleaseCachedPlan(plan, CurrentResourceOwner);
}

/*
 * Execute a statement with the rights of the moment. Returns its rows' number.
 * Settings that a trigger changes, such as search_path or lock_timeout, are put
 * back: what we do next must not depend on them.
 */
uint64
statement_execute(const Statement *statement, Datum *values, const char *nulls, bool read_only)
{
	int			nest_level = NewGUCNestLevel();
	int			code;

	statement_check_tables(statement->plan, statement->catalog);
	code = SPI_execute_plan(statement->plan, values, nulls, read_only, 0);
	AtEOXact_GUC(false, nest_level);
	if (code < 0)
		elog(ERROR, "could not execute a statement: %s", SPI_result_code_string(code));
	return SPI_processed;
}

/* Execute a statement as the tables' owner. Returns its rows' number. */
uint64
statement_execute_as_owner(const Statement *statement, const Catalog *catalog, Datum *values,
						   const char *nulls, bool read_only)
{
	Identity	caller;
	uint64		rows;

	identity_enter(catalog->owner, catalog, &caller);
	rows = statement_execute(statement, values, nulls, read_only);
	identity_leave(&caller);
	return rows;
}

/*
 * A column, counted from 1, of a row that the last statement returned. It is of the
 * type that is expected, whatever the tables' owner has made of the table's.
 */
Datum
statement_column(uint64 row, int number, Oid type, bool *isnull)
{
	if (SPI_gettypeid(SPI_tuptable->tupdesc, number) != type)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_CONFLICT),
				 errmsg("column \"%s\" of a table of clinisync's has another type than it should",
						SPI_fname(SPI_tuptable->tupdesc, number)),
				 errdetail("SETUP_REQUIRED"),
				 errhint("Run cliniko_setup(), which says what is wrong.")));
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, isnull);
}
