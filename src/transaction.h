/*
 * transaction.h
 *		One transaction of the worker's, from beginning to end.
 */
#ifndef CLINISYNC_TRANSACTION_H
#define CLINISYNC_TRANSACTION_H

#include "postgres.h"

#include "catalog.h"

/* How a transaction ended. Unless TRANSACTION_DONE, it changed nothing. */
typedef enum TransactionResult
{
	TRANSACTION_DONE,
	TRANSACTION_NOT_RUNNING,	/* the run is no longer running: cancelled, or deleted */
	TRANSACTION_UNINSTALLED,	/* the extension or its tables are gone or too old */
	TRANSACTION_BUSY,			/* locked, serialization, out of room: try again later */
	TRANSACTION_FAILED			/* anything else; see transaction_last_sqlstate() */
} TransactionResult;

/* What a transaction does; raises an error to undo it all. */
typedef void (*TransactionWork) (const Catalog *catalog, void *arg);

extern TransactionResult transaction_run(TransactionWork work, void *arg);
extern TransactionResult transaction_run_farewell(TransactionWork work, void *arg);
extern void transaction_commit_lazily(void);
extern const char *transaction_last_sqlstate(void);
extern bool transaction_last_was_about_record(void);
extern bool transaction_is_about_record(int sqlstate);

#endif							/* CLINISYNC_TRANSACTION_H */
