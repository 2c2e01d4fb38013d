/*
 * organization.h
 *		What callers do to organisations and their runs, in SQL.
 */
#ifndef CLINISYNC_ORGANIZATION_H
#define CLINISYNC_ORGANIZATION_H

#include "postgres.h"

#include "catalog.h"

typedef struct Organization
{
	bytea	   *api_key_sealed; /* NULL where it is not connected */
	bool		sync_enabled;
	char	   *shard;			/* NULL where it is not connected */
	char	   *name;			/* may be NULL */
	char	   *account_id;		/* Cliniko's id of the account that is stored; or NULL */
} Organization;

extern void organization_check_id(const char *org);
extern void organization_require(const Catalog *catalog, const char *org);
extern void organization_load(const Catalog *catalog, const char *org, Organization *loaded);
extern void organization_connect(const Catalog *catalog, const char *org, const char *name,
								 const char *api_key, const char *shard);
extern void organization_disconnect(const Catalog *catalog, const char *org);
extern void organization_set_sync_enabled(const Catalog *catalog, const char *org, bool enabled);
extern int	organization_reseal_all(const Catalog *catalog, int64 *resealed, int64 *unreadable);
extern void organization_adopt_keys(const Catalog *catalog, int64 *adopted, int64 *unreadable);
extern int64 organization_start_run(const Catalog *catalog, const char *org, bool only_changes,
									bool *started, char **operation_type);
extern int64 organization_cancel_run(const Catalog *catalog, const char *org);

#endif							/* CLINISYNC_ORGANIZATION_H */
