/*
 * identity.h
 *		Acting as another role, with nothing that leaks in either direction.
 */
#ifndef CLINISYNC_IDENTITY_H
#define CLINISYNC_IDENTITY_H

#include "postgres.h"

#include "catalog.h"

/* Whom to become again. */
typedef struct Identity
{
	Oid			user;
	int			security_context;
	int			nest_level;		/* of settings; 0 after identity_become(), as are the next */
	const char *query;
	ErrorContextCallback *context;
} Identity;

extern void identity_become(Oid role, Identity *saved);
extern void identity_resume(const Identity *saved);
extern void identity_enter(Oid role, const Catalog *catalog, Identity *saved);
extern void identity_leave(const Identity *saved);

#endif							/* CLINISYNC_IDENTITY_H */
