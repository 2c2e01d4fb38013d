/*
 * catalog.h
 *		Where the extension and its tables are, and whose they are.
 */
#ifndef CLINISYNC_CATALOG_H
#define CLINISYNC_CATALOG_H

#include "postgres.h"

/* Valid within a transaction. */
typedef struct Catalog
{
	char	   *schema;			/* the extension's, quoted where needed */
	Oid			organizations;	/* the table cliniko_organizations */
	Oid			owner;			/* the tables' owner */
	const char *missing;		/* what cliniko_setup() has to make, or NULL */
	const char *no_table;		/* what is in the place of a table, or NULL */
} Catalog;

/* Whom to become again after catalog_become_owner(). */
typedef struct CatalogIdentity
{
	Oid			user;
	int			security_context;
} CatalogIdentity;

extern bool catalog_find(Catalog *catalog);
extern void catalog_require_tables(const Catalog *catalog);
extern void catalog_require_setup(Catalog *catalog);
extern char *catalog_sql(const Catalog *catalog, const char *template);
extern void catalog_become_owner(const Catalog *catalog, CatalogIdentity *saved);
extern void catalog_become(const CatalogIdentity *saved);

#endif							/* CLINISYNC_CATALOG_H */
