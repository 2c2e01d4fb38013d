/*
 * catalog.c
 *		Where the extension and its tables are, and whose they are.
 *
 * The tables are ordinary ones in the extension's schema. They are used only if
 * they belong to the role that cliniko_setup() was told, and keep organizations
 * apart: somebody else may have made tables of these names.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/policy.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "clinisync.h"
#include "patient.h"

#define EXTENSION_NAME "clinisync"
/* What stands for the schema in a statement. */
#define SCHEMA_PLACEHOLDER "@schema@"

/* What keeps the organizations apart in each table. */
#define OWN_POLICY "cliniko_own_organization"

/* The tables, and the columns that statements name, beside the patient's fields. */
static const struct
{
	const char *name;
	const char *columns[14];
}			tables[CATALOG_TABLES] = {
	[CATALOG_ORGANIZATIONS] = {"cliniko_organizations",
		{"organization_id", "name", "api_key_sealed", "shard", "sync_enabled",
		"account_id", "created_at", "updated_at"}},
	[CATALOG_LOGS] = {"sync_logs",
		{"organization_id", "id", "operation_type", "status", "started_at",
			"completed_at", "records_processed", "records_success", "records_failed",
		"metadata", "error_details", "checkpoint", "updated_at"}},
	[CATALOG_PATIENTS] = {"patients",
		{"organization_id", "id", "cliniko_patient_id", "record_hash", "first_synced_at",
		"last_synced_at", "missing_sync_id", "deleted_at"}},
};

/* Note whose the extension is. Returns its schema, or InvalidOid where it is not installed. */
static Oid
find_extension(Catalog *catalog)
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
	{
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
		catalog->extension_owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return schema;
}

static Oid
relation_owner(Oid relation)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * Whose the tables are to be, as cliniko_setup() was told: the one row of
 * clinisync_owner. InvalidOid where nobody has said so, or that role is gone.
 */
static Oid
said_owner(const Catalog *catalog, Oid schema)
{
	Oid			relid = get_relname_relid(CATALOG_OWNER_TABLE, schema);
	Relation	relation;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			owner = InvalidOid;

	/* 0.1.0 has none, until ALTER EXTENSION UPDATE; what has that name then is somebody else's */
	if (!OidIsValid(relid) ||
		getExtensionOfObject(RelationRelationId, relid) != get_extension_oid(EXTENSION_NAME, true))
		return relation_owner(catalog->tables[CATALOG_ORGANIZATIONS]);
	relation = table_open(relid, AccessShareLock);
	scan = systable_beginscan(relation, InvalidOid, false, NULL, 0, NULL);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		role = heap_getattr(tuple, get_attnum(relid, "role"),
										RelationGetDescr(relation), &isnull);

		owner = get_role_oid(NameStr(*DatumGetName(role)), true);
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return owner;
}

/* Whether a relation may not be used, and why: kind, owner, row-level security. */
static CatalogState
look_at_relation(Catalog *catalog, Oid relation)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	FormData_pg_class form;

	if (!HeapTupleIsValid(tuple))
		return CATALOG_INCOMPLETE;
	form = *(Form_pg_class) GETSTRUCT(tuple);
	ReleaseSysCache(tuple);

	catalog->found_owner = form.relowner;
	/* reading from a view, or a foreign table, would run what its owner wants */
	if (form.relkind != RELKIND_RELATION && form.relkind != RELKIND_PARTITIONED_TABLE)
		return CATALOG_NO_TABLE;
	if (form.relowner != catalog->owner)
		return CATALOG_OTHER_OWNER;
	if (!form.relrowsecurity || !OidIsValid(get_relation_policy_oid(relation, OWN_POLICY, true)))
		return CATALOG_UNGUARDED;
	return CATALOG_READY;
}

/* The first column of ours that a table lacks, or NULL. */
static const char *
find_missing_column(Oid relation, const char *const *columns)
{
	for (; *columns; columns++)
	{
		if (get_attnum(relation, *columns) == InvalidAttrNumber)
			return *columns;
	}
	return NULL;
}

static const char *
find_missing_field(Oid patients)
{
	for (int i = 0; i < patient_column_count(); i++)
	{
		const char *column = patient_column_name(i);

		if (column && get_attnum(patients, column) == InvalidAttrNumber)
			return column;
	}
	return NULL;
}

/* What a table lacks, or NULL. */
static const char *
find_missing(const Catalog *catalog, CatalogTable table)
{
	Oid			relation = catalog->tables[table];
	const char *column;

	if (!OidIsValid(relation))
		return tables[table].name;
	column = find_missing_column(relation, tables[table].columns);
	if (column == NULL && table == CATALOG_PATIENTS)
		column = find_missing_field(relation);
	return column ? psprintf("%s.%s", tables[table].name, column) : NULL;
}

/*
 * Find whether the tables can be used. Whose they are matters more than that one
 * is incomplete; what keeps organizations apart is made together with the rest.
 */
static void
find_state(Catalog *catalog)
{
	CatalogState states[CATALOG_TABLES];

	for (int i = 0; i < CATALOG_TABLES; i++)
	{
		catalog->what = tables[i].name;
		states[i] = look_at_relation(catalog, catalog->tables[i]);
		if (states[i] == CATALOG_NO_TABLE || states[i] == CATALOG_OTHER_OWNER)
		{
			catalog->state = states[i];
			return;
		}
	}
	for (int i = 0; i < CATALOG_TABLES; i++)
	{
		catalog->what = find_missing(catalog, i);
		if (catalog->what)
		{
			catalog->state = CATALOG_INCOMPLETE;
			return;
		}
	}
	for (int i = 0; i < CATALOG_TABLES; i++)
	{
		catalog->what = tables[i].name;
		catalog->state = states[i];
		if (states[i] != CATALOG_READY)
			return;
	}
}

/* Look the extension up. Returns false where this database has none. */
bool
catalog_find(Catalog *catalog)
{
	Oid			schema;
	char	   *name;

	memset(catalog, 0, sizeof(*catalog));
	schema = find_extension(catalog);
	name = OidIsValid(schema) ? get_namespace_name(schema) : NULL;
	if (name == NULL)
		return false;
	catalog->schema = pstrdup(quote_identifier(name));
	catalog->namespace = schema;
	for (int i = 0; i < CATALOG_TABLES; i++)
		catalog->tables[i] = get_relname_relid(tables[i].name, schema);
	catalog->owner = said_owner(catalog, schema);
	find_state(catalog);
	return true;
}

/* How a role is written where SQL takes its name as text. */
static char *
role_literal(Oid role)
{
	return quote_literal_cstr(quote_identifier(GetUserNameFromId(role, false)));
}

/* Raise an error unless the tables can be used. */
void
catalog_require_tables(const Catalog *catalog)
{
	switch (catalog->state)
	{
		case CATALOG_READY:
			break;
		case CATALOG_INCOMPLETE:
			ereport(ERROR,
					(errcode(ERRCODE_CLINISYNC_CONFLICT),
					 errmsg("the tables of clinisync lack %s", catalog->what),
					 errdetail("SETUP_REQUIRED"),
					 errhint("Run: SELECT %s.cliniko_setup();", catalog->schema)));
			break;
		case CATALOG_NO_TABLE:
			ereport(ERROR,
					(errcode(ERRCODE_CLINISYNC_CONFLICT),
					 errmsg("%s.%s is not a table", catalog->schema, catalog->what),
					 errdetail("SETUP_REQUIRED"),
					 errhint("Put the table back in its place; what is there now was not read.")));
			break;
		case CATALOG_OTHER_OWNER:
			ereport(ERROR,
					(errcode(ERRCODE_CLINISYNC_CONFLICT),
					 errmsg("%s.%s belongs to %s, and cliniko_setup() was not told so",
							catalog->schema, catalog->what,
							quote_identifier(GetUserNameFromId(catalog->found_owner, false))),
					 errdetail("TABLES_OF_ANOTHER_OWNER"),
					 errhint("The owner of the tables can read and change every patient in them. "
							 "Find out who made this one and what is in it. Only if it is to be that "
							 "role's, run: SELECT %s.cliniko_setup(%s); if not, move it out of the way.",
							 catalog->schema, role_literal(catalog->found_owner))));
			break;
		case CATALOG_UNGUARDED:
			ereport(ERROR,
					(errcode(ERRCODE_CLINISYNC_CONFLICT),
					 errmsg("nothing keeps the organizations in %s.%s apart, which belongs to %s",
							catalog->schema, catalog->what,
							quote_identifier(GetUserNameFromId(catalog->found_owner, false))),
					 errdetail("SETUP_REQUIRED"),
					 errhint("Row-level security, or the policy " OWN_POLICY ", was taken away: find out "
							 "by whom. To put it back, run: SELECT %s.cliniko_setup();",
							 catalog->schema)));
			break;
	}
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
}

/*
 * Raise an error where one of these relations, which are locked, has the name of a
 * table of ours and is another than was looked at: who owns the schema can drop a
 * table and make one, meanwhile.
 */
void
catalog_require_same(const Catalog *catalog, List *relations)
{
	ListCell   *cell;

	foreach(cell, relations)
	{
		Oid			relation = lfirst_oid(cell);

		if (get_rel_namespace(relation) != catalog->namespace)
			continue;
		for (int i = 0; i < CATALOG_TABLES; i++)
		{
			if (relation != catalog->tables[i] &&
				strcmp(get_rel_name(relation), tables[i].name) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_CLINISYNC_CONFLICT),
						 errmsg("%s.%s is another table than a moment ago", catalog->schema,
								tables[i].name),
						 errdetail("SETUP_REQUIRED"),
						 errhint("Find out who has exchanged it. What is there now was not touched.")));
		}
	}
}

/*
 * Whether the primary key of patients is (organization_id, id), with ids like ours. A
 * table that was there before cliniko_setup() may have another.
 */
bool
catalog_patients_have_our_key(const Catalog *catalog)
{
	Oid			relation = catalog->tables[CATALOG_PATIENTS];
	AttrNumber	id = get_attnum(relation, "id");
	Bitmapset  *ours = bms_make_singleton(id - FirstLowInvalidHeapAttributeNumber);
	Oid			constraint;

	ours = bms_add_member(ours, get_attnum(relation, "organization_id") -
						  FirstLowInvalidHeapAttributeNumber);
	return get_atttype(relation, id) == INT8OID &&
		bms_equal(ours, get_primary_key_attnos(relation, true, &constraint));
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
