/*
 * statement.h
 *		SQL statements that are prepared once in a session.
 */
#ifndef CLINISYNC_STATEMENT_H
#define CLINISYNC_STATEMENT_H

#include "postgres.h"

#include "executor/spi.h"

#include "catalog.h"

/* A statement that is prepared once, for the schema that it names. Zeroed: not yet. */
typedef struct Statement
{
	SPIPlanPtr	plan;
	char	   *schema;			/* the extension's when it was prepared */
	uint32		generation;		/* see statement_renew_all() */
	const Catalog *catalog;		/* of the transaction that prepared it last */
} Statement;

extern void statement_renew_all(void);
extern bool statement_is_prepared(const Statement *statement, const Catalog *catalog);
extern void statement_prepare(Statement *statement, const Catalog *catalog,
							  const char *template, int nargs, Oid *types);
extern void statement_check_tables(SPIPlanPtr plan, const Catalog *catalog);
extern void statement_plan(const Statement *statement);
extern uint64 statement_execute(const Statement *statement, Datum *values, const char *nulls,
								bool read_only);
extern uint64 statement_execute_as_owner(const Statement *statement, const Catalog *catalog,
										 Datum *values, const char *nulls, bool read_only);
extern Datum statement_column(uint64 row, int number, Oid type, bool *isnull);

#endif							/* CLINISYNC_STATEMENT_H */
