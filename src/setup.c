/*
 * setup.c
 *		What cliniko_setup(), cliniko_grant() and cliniko_revoke() need and SQL does
 *		not have.
 *
 * They are in SQL, as is what they make. These are for them alone: only who may
 * call them may call these, and gains nothing by it.
 *
 * Memory: results are in the caller's context.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"

#include "catalog.h"
#include "clinisync.h"
#include "compat.h"
#include "identity.h"

SQL_FUNCTION(clinisync_lock);
SQL_FUNCTION(clinisync_said_owner);
SQL_FUNCTION(clinisync_say_owner);
SQL_FUNCTION(clinisync_execute_as);

static void
find_catalog(Catalog *catalog)
{
	if (!catalog_find(catalog))
		elog(ERROR, "this function is not part of an extension");
}

/* A role that the caller may become; anything else is an error. */
static Oid
role_argument(FunctionCallInfo fcinfo, int i)
{
	Oid			role = PG_ARGISNULL(i) ? InvalidOid : PG_GETARG_OID(i);

	if (!OidIsValid(role) || !compat_can_set_role(GetUserId(), role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to act as role %s",
						OidIsValid(role) ? quote_identifier(GetUserNameFromId(role, false)) : "null"),
				 errhint("Call this as that role, as one that may SET ROLE to it, or as a superuser.")));
	return role;
}

/*
 * clinisync_lock() -> void
 *
 * One change of the tables, or of who may use them, at a time in a database, until
 * the transaction ends. Unlike an advisory lock of SQL's, nobody else can hold this.
 */
Datum
clinisync_lock(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, LOCK_SETUP, LOCK_SPACE);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	PG_RETURN_VOID();
}

/* clinisync_said_owner() -> regrole: whose the tables are, as was said; or NULL */
Datum
clinisync_said_owner(PG_FUNCTION_ARGS)
{
	Catalog		catalog;

	find_catalog(&catalog);
	if (!OidIsValid(catalog.owner))
		PG_RETURN_NULL();
	PG_RETURN_OID(catalog.owner);
}

/*
 * clinisync_say_owner(owner regrole) -> void
 *
 * Note whose the tables are. The row is the extension's owner's to write; who calls
 * must be able to act as the role that is noted.
 */
Datum
clinisync_say_owner(PG_FUNCTION_ARGS)
{
	Oid			owner = role_argument(fcinfo, 0);
	Catalog		catalog;
	Identity	caller;
	Oid			types[] = {NAMEOID};
	Datum		values[1];

	find_catalog(&catalog);
	values[0] = DirectFunctionCall1(namein, CStringGetDatum(GetUserNameFromId(owner, false)));
	SPI_connect();
	identity_enter(catalog.extension_owner, &catalog, &caller);
	SPI_execute_with_args(catalog_sql(&catalog,
									  "INSERT INTO @schema@." CATALOG_OWNER_TABLE " (role) VALUES ($1)"
									  " ON CONFLICT (one) DO UPDATE SET role = EXCLUDED.role"),
						  lengthof(types), types, values, NULL, false, 0);
	identity_leave(&caller);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * clinisync_execute_as(role regrole, statement text) -> setof text
 *
 * Execute a statement as a role that the caller may become, in a security-restricted
 * operation: triggers, policies and expressions that are not the caller's run with that
 * role's rights, and settings that they change are put back. Returns the first column.
 */
Datum
clinisync_execute_as(PG_FUNCTION_ARGS)
{
	Oid			role = role_argument(fcinfo, 0);
	char	   *statement = PG_ARGISNULL(1) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(1));
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Catalog		catalog;
	Identity	caller;
	int			code;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	find_catalog(&catalog);
	SPI_connect();
	identity_enter(role, &catalog, &caller);
	code = SPI_execute(statement, false, 0);
	identity_leave(&caller);
	if (code < 0)
		elog(ERROR, "could not execute a statement: %s", SPI_result_code_string(code));
	for (uint64 i = 0; SPI_tuptable && i < SPI_tuptable->numvals; i++)
	{
		char	   *value = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
		Datum		row = value ? CStringGetTextDatum(value) : (Datum) 0;
		bool		isnull = value == NULL;

		tuplestore_putvalues(result->setResult, result->setDesc, &row, &isnull);
	}
	SPI_finish();
	return (Datum) 0;
}
