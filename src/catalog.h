/*
 * catalog.h
 *		Where the extension and its tables are, and whose they are.
 */
#ifndef CLINISYNC_CATALOG_H
#define CLINISYNC_CATALOG_H

#include "postgres.h"

#include "nodes/pg_list.h"

/* Where cliniko_setup() notes whose the tables are: one row, in the extension's schema. */
#define CATALOG_OWNER_TABLE "clinisync_owner"

typedef enum CatalogTable
{
	CATALOG_ORGANIZATIONS,
	CATALOG_LOGS,
	CATALOG_PATIENTS,
	CATALOG_TABLES				/* how many there are */
} CatalogTable;

/* Whether the tables can be used. */
typedef enum CatalogState
{
	CATALOG_READY,
	CATALOG_INCOMPLETE,			/* a table or a column is missing: cliniko_setup() makes it */
	CATALOG_NO_TABLE,			/* something else is in the place of one */
	CATALOG_OTHER_OWNER,		/* one belongs to a role that cliniko_setup() was not told */
	CATALOG_UNGUARDED			/* one does not keep organizations apart */
} CatalogState;

/* Valid within a transaction. */
typedef struct Catalog
{
	char	   *schema;			/* the extension's, quoted where needed */
	Oid			namespace;		/* that schema */
	Oid			extension_owner;
	Oid			owner;			/* the tables', as cliniko_setup() was told, or InvalidOid */
	Oid			tables[CATALOG_TABLES]; /* InvalidOid: is missing */
	CatalogState state;
	const char *what;			/* unless ready: the table, or column, that it is about */
	Oid			found_owner;	/* unless ready or incomplete: whose that is */
} Catalog;

extern bool catalog_find(Catalog *catalog);
extern void catalog_require_tables(const Catalog *catalog);
extern void catalog_require_setup(Catalog *catalog);
extern void catalog_require_same(const Catalog *catalog, List *relations);
extern bool catalog_patients_have_our_key(const Catalog *catalog);
extern char *catalog_sql(const Catalog *catalog, const char *template);

#endif							/* CLINISYNC_CATALOG_H */
