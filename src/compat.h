/*
 * compat.h
 *		What differs between the PostgreSQL majors that clinisync builds with.
 *
 * PostgreSQL 15 is the oldest. Each entry says from which major on the other
 * form applies, so that it can go when that major is the oldest.
 */
#ifndef CLINISYNC_COMPAT_H
#define CLINISYNC_COMPAT_H

#include "fmgr.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/acl.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"				/* 15 has it in postgres.h */
#endif

#if PG_VERSION_NUM < 150000
#error "clinisync needs PostgreSQL 15 or later"
#endif

/* 17: wait event sets belong to a resource owner, or to nobody */
static inline WaitEventSet *
compat_create_wait_event_set(MemoryContext context, int nevents)
{
#if PG_VERSION_NUM >= 170000
	return CreateWaitEventSet(NULL, nevents);
#else
	return CreateWaitEventSet(context, nevents);
#endif
}

/* 18: a PGPROC says what it is not */
#if PG_VERSION_NUM >= 180000
#define COMPAT_IS_BACKGROUND_WORKER(process) (!(process)->isRegularBackend)
#else
#define COMPAT_IS_BACKGROUND_WORKER(process) ((process)->isBackgroundWorker)
#endif

/* 17: the parts of a virtual transaction id moved into a struct of PGPROC */
#if PG_VERSION_NUM >= 170000
#define COMPAT_MY_LXID (MyProc->vxid.lxid)
#else
#define COMPAT_MY_LXID (MyProc->lxid)
#endif

/* 16: what a DROP DATABASE that was interrupted leaves; minor releases of 15 have it too */
#ifdef DATCONNLIMIT_INVALID_DB
#define COMPAT_DATCONNLIMIT_INVALID DATCONNLIMIT_INVALID_DB
#else
#define COMPAT_DATCONNLIMIT_INVALID (-2)
#endif

/* 17: a stronger lock may count as well */
#if PG_VERSION_NUM >= 170000
#define COMPAT_LOCK_HELD_BY_ME(tag, mode) LockHeldByMe(tag, mode, false)
#else
#define COMPAT_LOCK_HELD_BY_ME(tag, mode) LockHeldByMe(tag, mode)
#endif

/* 16: a membership may be one that does not let become the role */
#if PG_VERSION_NUM >= 160000
#define compat_can_set_role(member, role) member_can_set_role(member, role)
#else
#define compat_can_set_role(member, role) is_member_of_role(member, role)
#endif

/* 16: PG_FUNCTION_INFO_V1 makes not only its record visible, but the function */
#define SQL_FUNCTION(name) \
	extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
	PG_FUNCTION_INFO_V1(name)

#endif							/* CLINISYNC_COMPAT_H */
