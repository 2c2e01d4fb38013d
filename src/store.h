/*
 * store.h
 *		Everything of a run that is SQL.
 */
#ifndef CLINISYNC_STORE_H
#define CLINISYNC_STORE_H

#include "postgres.h"

#include "cliniko.h"
#include "run.h"
#include "transaction.h"

typedef struct StoreRunKey
{
	int64		id;
	char	   *organization_id;
} StoreRunKey;

extern TransactionResult store_list_running(MemoryContext context, StoreRunKey **keys, int *nkeys);
extern TransactionResult store_load_run(MemoryContext parent, const StoreRunKey *key, Run **run);
extern TransactionResult store_save_account_id(Run *run, const char *account_id);
extern TransactionResult store_save_progress(Run *run);
extern TransactionResult store_save_farewell(Run *run);
extern TransactionResult store_save_batch(Run *run, ClinikoRecord *records, int nrecords,
									const ClinikoCursor *cursor, bool last);
extern TransactionResult store_prune_logs(const Run *run, int *pruned);
extern void store_write_progress(const Catalog *catalog, Run *run);

#endif							/* CLINISYNC_STORE_H */
