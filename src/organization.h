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
	bool		connected;		/* there is an API key */
	bool		sync_enabled;
	char	   *api_key;		/* NULL where there is none, or it is unreadable */
	char	   *shard;
	char	   *name;			/* may be NULL */
} Organization;

extern void organization_check_id(const char *org);
extern void organization_require(const Catalog *catalog, const char *org);
extern void organization_load(const Catalog *catalog, const char *org, Organization *loaded);
extern void organization_connect(const Catalog *catalog, const char *org, const char *name,
								 const char *api_key, const char *shard);
extern void organization_disconnect(const Catalog *catalog, const char *org);
extern int64 organization_start_run(const Catalog *catalog, const char *org,
									const char *operation_type, bool *started,
									char **running_type);
extern int64 organization_cancel_run(const Catalog *catalog, const char *org);

#endif							/* CLINISYNC_ORGANIZATION_H */
