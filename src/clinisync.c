/*
 * clinisync.c
 *		Where PostgreSQL loads the library.
 *
 * Loading defines the settings and does nothing else: no process is started,
 * no hook is taken and no shared memory is asked for, so that the library may
 * be loaded at any time, in any backend.
 */
#include "postgres.h"

#include "fmgr.h"

#include "clinisync.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	settings_define();
}
