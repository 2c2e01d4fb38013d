/*
 * catalog.c
 *		Where the extension and its tables are, and whose they are.
 *
 * The tables are ordinary ones in the extension's schema. Whatever is done to
 * them is done as their owner and as a security-restricted operation, so that
 * neither the caller's rights nor the worker's reach a trigger that somebody
 * attached.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "clinisync.h"
#include "patient.h"

#define EXTENSION_NAME "clinisync"
/* What stands for the schema in a statement. */
#define SCHEMA_PLACEHOLDER "@schema@"

/* Columns that the statements name, beside the patient's fields. */
static const struct
{
	const char *relation;
	const char *columns[14];
}			required[] = {
	{"cliniko_organizations",
		{"organization_id", "name", "api_key_sealed", "shard", "sync_enabled",
		"account_id", "created_at", "updated_at"}},
	{"sync_logs",
		{"organization_id", "id", "operation_type", "status", "started_at",
			"completed_at", "records_processed", "records_success", "records_failed",
		"metadata", "error_details", "checkpoint", "updated_at"}},
	{"patients",
		{"organization_id", "id", "cliniko_patient_id", "record_hash", "first_synced_at",
		"last_synced_at", "missing_sync_id", "deleted_at"}},
};

/* The schema of the extension, or InvalidOid where it is not installed. */
static Oid
extension_schema(void)
{
	Relation	relation;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			schema = InvalidOid;

	relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum(EXTENSION_NAME));
	scan = systable_beginscan(relation, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return schema;
}

/* Note whose a relation is, and whether it is none that we may read from or write to. */
static void
look_at_relation(Catalog *catalog, const char *name, Oid relation)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	Form_pg_class form;

	if (!HeapTupleIsValid(tuple))
		return;
	form = (Form_pg_class) GETSTRUCT(tuple);
	catalog->owner = form->relowner;
	/* reading from a view, or a foreign table, would run what its owner wants */
	if (form->relkind != RELKIND_RELATION && form->relkind != RELKIND_PARTITIONED_TABLE)
		catalog->no_table = name;
	ReleaseSysCache(tuple);
}

/* The first thing that the tables lack, or NULL. */
static const char *
find_missing(Catalog *catalog, Oid schema)
{
	Oid			patients = InvalidOid;

	for (int i = 0; i < lengthof(required); i++)
	{
		Oid			relation = get_relname_relid(required[i].relation, schema);

		if (!OidIsValid(relation))
			return required[i].relation;
		look_at_relation(catalog, required[i].relation, relation);
		for (const char *const *column = required[i].columns; *column; column++)
		{
			if (get_attnum(relation, *column) == InvalidAttrNumber)
				return psprintf("%s.%s", required[i].relation, *column);
		}
		patients = relation;
		if (i == 0)
			catalog->organizations = relation;
	}
	for (int i = 0; i < patient_column_count(); i++)
	{
		const char *column = patient_column_name(i);

		if (column && get_attnum(patients, column) == InvalidAttrNumber)
			return psprintf("patients.%s", column);
	}
	return NULL;
}

/* Look the extension up. Answers false where this database has none. */
bool
catalog_find(Catalog *catalog)
{
	Oid			schema = extension_schema();
	char	   *name = OidIsValid(schema) ? get_namespace_name(schema) : NULL;

	if (name == NULL)
		return false;
	memset(catalog, 0, sizeof(*catalog));
	catalog->schema = pstrdup(quote_identifier(name));
	catalog->missing = find_missing(catalog, schema);
	return true;
}

/* Raise an error where something else is in the place of a table. */
void
catalog_require_tables(const Catalog *catalog)
{
	if (catalog->no_table)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_CONFLICT),
				 errmsg("%s.%s is not a table", catalog->schema, catalog->no_table),
				 errdetail("SETUP_REQUIRED"),
				 errhint("Put the table back in its place; what is there now was not read.")));
}

/* Look the extension up for a caller who needs its tables. */
void
catalog_require_setup(Catalog *catalog)
{
	if (!catalog_find(catalog))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"%s\" is not installed in this database", EXTENSION_NAME)));
	catalog_require_tables(catalog);
	if (catalog->missing)
		ereport(ERROR,
				(errcode(ERRCODE_CLINISYNC_CONFLICT),
				 errmsg("the tables of clinisync lack %s", catalog->missing),
				 errdetail("SETUP_REQUIRED"),
				 OidIsValid(catalog->owner)
				 ? errhint("Run: SELECT %s.cliniko_setup(%s);", catalog->schema,
						   quote_literal_cstr(quote_identifier(GetUserNameFromId(catalog->owner,
																				 false))))
				 : errhint("Run: SELECT %s.cliniko_setup();", catalog->schema)));
}

/* A statement with the schema in the place of @schema@. */
char *
catalog_sql(const Catalog *catalog, const char *template)
{
	StringInfoData sql;
	const char *at;

	initStringInfo(&sql);
	while ((at = strstr(template, SCHEMA_PLACEHOLDER)) != NULL)
	{
		appendBinaryStringInfo(&sql, template, at - template);
		appendStringInfoString(&sql, catalog->schema);
		template = at + strlen(SCHEMA_PLACEHOLDER);
	}
	appendStringInfoString(&sql, template);
	return sql.data;
}

/*
 * Act as the tables' owner until catalog_become(), or until the end of the
 * (sub)transaction if that is an abort. FORCE ROW LEVEL SECURITY does not keep
 * us from rows: a worker that cannot see its runs would leave them for ever.
 */
void
catalog_become_owner(const Catalog *catalog, CatalogIdentity *saved)
{
	GetUserIdAndSecContext(&saved->user, &saved->security_context);
	SetUserIdAndSecContext(catalog->owner, saved->security_context |
						   SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION |
						   SECURITY_NOFORCE_RLS);
}

void
catalog_become(const CatalogIdentity *saved)
{
	SetUserIdAndSecContext(saved->user, saved->security_context);
}
