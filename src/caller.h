/*
 * caller.h
 *		Which organizations a caller may see.
 */
#ifndef CLINISYNC_CALLER_H
#define CLINISYNC_CALLER_H

#include "postgres.h"

#include "catalog.h"

extern bool caller_sees_all(const Catalog *catalog);
extern char *caller_claimed_organization(const Catalog *catalog);
extern bool caller_sees(const Catalog *catalog, const char *org);

#endif							/* CLINISYNC_CALLER_H */
