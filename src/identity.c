/*
 * identity.c
 *		Acting as another role, with nothing that leaks in either direction.
 *
 * Whatever is done to the tables is done as their owner and as a
 * security-restricted operation, so that neither the caller's rights nor the
 * worker's reach a trigger that somebody attached.
 *
 * An error needs no care: the end of the (sub)transaction restores rights and settings.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_constraint.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "tcop/tcopprot.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "identity.h"

/* What PostgREST sets for a request, and has a token in it. */
static const char *const secrets[] = {"request.headers", "request.cookies"};

/*
 * Act as a role until identity_resume(), or until the end of the (sub)transaction
 * if that is an abort. FORCE ROW LEVEL SECURITY does not keep us from rows: a
 * worker that cannot see its runs would leave them for ever.
 */
void
identity_become(Oid role, Identity *saved)
{
	GetUserIdAndSecContext(&saved->user, &saved->security_context);
	saved->nest_level = 0;
	saved->query = NULL;
	saved->context = NULL;
	SetUserIdAndSecContext(role, saved->security_context |
						   SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION |
						   SECURITY_NOFORCE_RLS);
}

void
identity_resume(const Identity *saved)
{
	SetUserIdAndSecContext(saved->user, saved->security_context);
}

/*
 * The names of a table's constraints that can be deferred, added to a list; not of
 * foreign keys that refer to it, since we change no key that they could. The table
 * itself is not looked at: somebody may have locked it, and not all of our statements
 * are about it.
 */
static List *
add_deferrable(List *constraints, Oid table)
{
	Relation	relation = table_open(ConstraintRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_constraint_conrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(table));
	scan = systable_beginscan(relation, ConstraintRelidTypidNameIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);

		if (form->condeferrable)
			constraints = lappend(constraints,
								  makeRangeVar(get_namespace_name(form->connamespace),
											   pstrdup(NameStr(form->conname)), -1));
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return constraints;
}

/*
 * Have what the tables' owner has declared deferred checked at once: it would run
 * at commit, as whoever commits, and PostgreSQL defers nothing in a
 * security-restricted operation. It stays so until the transaction ends.
 */
static void
check_at_once(const Catalog *catalog)
{
	ConstraintsSetStmt immediate = {.type = T_ConstraintsSetStmt};

	for (int i = 0; i < CATALOG_TABLES; i++)
	{
		if (OidIsValid(catalog->tables[i]))
			immediate.constraints = add_deferrable(immediate.constraints, catalog->tables[i]);
	}
	if (immediate.constraints != NIL)
		AfterTriggerSetState(&immediate);
}

/*
 * Act as a role for some statements of a caller's transaction, until
 * identity_leave(). Settings that a trigger changes meanwhile are put back then:
 * they are no business of the caller's session. Nor is the caller's statement, which
 * may hold an API key, any of the trigger's, or the token that it came with. (After an
 * error the statement stays hidden, from whatever catches it, until the next.)
 */
void
identity_enter(Oid role, const Catalog *catalog, Identity *saved)
{
	/* what is pending already runs as at commit: with the rights of who has queued it */
	check_at_once(catalog);
	identity_become(role, saved);
	saved->nest_level = NewGUCNestLevel();
	saved->query = debug_query_string;
	saved->context = error_context_stack;
	debug_query_string = NULL;
	error_context_stack = NULL;
	for (int i = 0; i < lengthof(secrets); i++)
	{
		if (GetConfigOption(secrets[i], true, false) != NULL)
			(void) set_config_option(secrets[i], "", PGC_USERSET, PGC_S_SESSION,
									 GUC_ACTION_SAVE, true, 0, false);
	}
}

void
identity_leave(const Identity *saved)
{
	debug_query_string = saved->query;
	error_context_stack = saved->context;
	AtEOXact_GUC(false, saved->nest_level);
	identity_resume(saved);
}
