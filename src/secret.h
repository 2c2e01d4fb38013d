/*
 * secret.h
 *		Seal and open an API key.
 */
#ifndef CLINISYNC_SECRET_H
#define CLINISYNC_SECRET_H

#include "postgres.h"

extern bytea *secret_seal(const char *secret, const char *organization_id);
extern char *secret_open(const bytea *sealed, const char *organization_id,
						 const char **problem);
extern bytea *secret_reseal(const bytea *sealed, const char *organization_id, bool adopt,
							const char **problem);
extern bool secret_is_of_database(const bytea *sealed);
extern void secret_wipe(char *secret);
extern int	secret_add_key(void);

#endif							/* CLINISYNC_SECRET_H */
