/*
 * caller.c
 *		Which organizations a caller may see.
 *
 * A caller sees every organization as a superuser, with BYPASSRLS, as a member of
 * the tables' owner, or with the level admin, which is a place in the policy
 * cliniko_admin; any other sees the one that the token claims. That is what the
 * policies say for a direct SELECT, but it is decided here, by catalogs and
 * settings alone: a policy or an expression that the tables' owner has attached
 * runs as the owner, never with the rights of a caller of our functions.
 *
 * Expects a connection to SPI. Memory: results are palloc'ed in the current context.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_policy.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"

#include "caller.h"
#include "statement.h"

#define ADMIN_POLICY "cliniko_admin"

/* Whether the caller is, or is a member of, a role that this policy is for. */
static bool
is_among_roles(Relation policies, HeapTuple policy)
{
	bool		isnull;
	Datum		value = heap_getattr(policy, Anum_pg_policy_polroles,
									 RelationGetDescr(policies), &isnull);
	ArrayType  *roles = DatumGetArrayTypeP(value);

	for (int i = 0; i < ARR_DIMS(roles)[0]; i++)
	{
		Oid			role = ((Oid *) ARR_DATA_PTR(roles))[i];

		if (role == ACL_ID_PUBLIC || has_privs_of_role(GetUserId(), role))
			return true;
	}
	return false;
}

/* Whether the caller has the level admin. */
static bool
is_admin(const Catalog *catalog)
{
	Relation	policies = table_open(PolicyRelationId, AccessShareLock);
	NameData	name;
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	policy;
	bool		found;

	namestrcpy(&name, ADMIN_POLICY);
	ScanKeyInit(&keys[0], Anum_pg_policy_polrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(catalog->tables[CATALOG_ORGANIZATIONS]));
	ScanKeyInit(&keys[1], Anum_pg_policy_polname, BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(&name));
	scan = systable_beginscan(policies, PolicyPolrelidPolnameIndexId, true, NULL,
							  lengthof(keys), keys);
	policy = systable_getnext(scan);
	found = HeapTupleIsValid(policy) && is_among_roles(policies, policy);
	systable_endscan(scan);
	table_close(policies, AccessShareLock);
	return found;
}

/* Whether the caller sees every organization. */
bool
caller_sees_all(const Catalog *catalog)
{
	return superuser() || has_bypassrls_privilege(GetUserId()) ||
		has_privs_of_role(GetUserId(), catalog->owner) || is_admin(catalog);
}

/*
 * The organization that the caller's token claims, or NULL. The expression is that of
 * cliniko_claimed_organization(), which is the tables' owner's to change and must
 * not run here.
 */
char *
caller_claimed_organization(const Catalog *catalog)
{
	static Statement statement;
	bool		isnull;
	Datum		claimed;

	statement_prepare(&statement, catalog,
					  "SELECT claims #>> CASE WHEN path LIKE '{%' THEN path::text[]"
					  "                       ELSE string_to_array(path, '.') END"
					  "  FROM (SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb,"
					  "               coalesce(nullif(current_setting('clinisync.org_claim', true), ''),"
					  "                        'org_id')) AS token (claims, path)", 0, NULL);
	statement_execute(&statement, NULL, NULL, true);
	claimed = statement_column(0, 1, TEXTOID, &isnull);
	return isnull ? NULL : TextDatumGetCString(claimed);
}

/* Whether the caller sees an organization, be it there or not. */
bool
caller_sees(const Catalog *catalog, const char *org)
{
	char	   *claimed;

	if (caller_sees_all(catalog))
		return true;
	claimed = caller_claimed_organization(catalog);
	return claimed != NULL && strcmp(claimed, org) == 0;
}
