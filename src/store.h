/*
 * store.h
 *		Everything of a run that is SQL.
 */
#ifndef CLINISYNC_STORE_H
#define CLINISYNC_STORE_H

#include "postgres.h"

#include "cliniko.h"
#include "run.h"

/* How a transaction ended. Unless STORE_DONE, it changed nothing. */
typedef enum StoreResult
{
	STORE_DONE,
	STORE_NOT_RUNNING,			/* the run is no longer running: cancelled, or deleted */
	STORE_UNINSTALLED,			/* the extension or its tables are gone or too old */
	STORE_BUSY,					/* locked, serialization, out of room: try again later */
	STORE_FAILED				/* anything else; see store_last_sqlstate() */
} StoreResult;

typedef struct StoreRunKey
{
	int64		id;
	char	   *organization_id;
} StoreRunKey;

extern StoreResult store_list_running(MemoryContext context, StoreRunKey **keys, int *nkeys);
extern StoreResult store_load_run(MemoryContext parent, const StoreRunKey *key, Run **run);
extern StoreResult store_save_progress(Run *run);
extern StoreResult store_save_farewell(Run *run);
extern StoreResult store_save_batch(Run *run, ClinikoRecord *records, int nrecords,
									const ClinikoCursor *cursor);
extern const char *store_last_sqlstate(void);

#endif							/* CLINISYNC_STORE_H */
