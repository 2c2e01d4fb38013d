/*
 * identity.c
 *		Acting as another role, with nothing that leaks in either direction.
 *
 * Whatever is done to the tables is done as their owner and as a
 * security-restricted operation, so that neither the caller's rights nor the
 * worker's reach a trigger that somebody attached.
 *
 * An error needs no care: the end of the (sub)transaction restores it all.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "identity.h"

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
 * The names of a table's constraints that can be deferred, added to a list. The
 * table itself is not looked at: somebody may have locked it, and not all of our
 * statements are about it.
 */
static List *
add_deferrable(List *constraints, Oid table)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_trigger_tgrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(table));
	scan = systable_beginscan(triggers, TriggerRelidNameIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);

		if (trigger->tgdeferrable && OidIsValid(trigger->tgconstraint))
			constraints = lappend(constraints,
								  makeRangeVar(get_namespace_name(get_rel_namespace(table)),
											   get_constraint_name(trigger->tgconstraint), -1));
	}
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);
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
 * they are no business of the caller's session.
 */
void
identity_enter(Oid role, const Catalog *catalog, Identity *saved)
{
	identity_become(role, saved);
	saved->nest_level = NewGUCNestLevel();
	check_at_once(catalog);
}

void
identity_leave(const Identity *saved)
{
	AtEOXact_GUC(false, saved->nest_level);
	identity_resume(saved);
}
