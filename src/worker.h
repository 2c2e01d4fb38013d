/*
 * worker.h
 *		The background worker: one in each database that has work.
 */
#ifndef CLINISYNC_WORKER_H
#define CLINISYNC_WORKER_H

#include "postgres.h"

#include "postmaster/bgworker.h"

extern void worker_start_at_commit(void);
extern void worker_wake_at_commit(void);
extern void worker_ensure(void);
extern bool worker_launch(Oid database, BackgroundWorkerHandle **handle);
PGDLLEXPORT void clinisync_worker_main(Datum arg);

#endif							/* CLINISYNC_WORKER_H */
