/*
 * clinisync.c
 *		Where PostgreSQL loads the library.
 *
 * Loading defines the settings, and in a backend does nothing else, so that the
 * library may be loaded at any time. In shared_preload_libraries it also brings
 * the launcher and the few bytes of shared memory through which workers tell it
 * what they leave.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "attendance.h"
#include "clinisync.h"
#include "launcher.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	settings_define();
	/* while pg_upgrade works, nothing may be written */
	if (process_shared_preload_libraries_in_progress && !IsBinaryUpgrade)
	{
		attendance_request_memory();
		launcher_register();
	}
}
