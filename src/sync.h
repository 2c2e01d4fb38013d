/*
 * sync.h
 *		One run as a state machine.
 */
#ifndef CLINISYNC_SYNC_H
#define CLINISYNC_SYNC_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "store.h"
#include "transport.h"

typedef struct Sync Sync;

extern Sync *sync_begin(MemoryContext parent, const StoreRunKey *key, Transport *transport,
						TransactionResult *result);
extern void sync_answer(Sync *sync, Transfer *transfer);
extern void sync_fetch(Sync *sync);
extern void sync_store(Sync *sync);
extern TimestampTz sync_due(const Sync *sync);
extern bool sync_ended(const Sync *sync);
extern bool sync_abandoned(const Sync *sync);
extern bool sync_is(const Sync *sync, const StoreRunKey *key);
extern void sync_break_off(Sync *sync);
extern void sync_free(Sync *sync);

#endif							/* CLINISYNC_SYNC_H */
