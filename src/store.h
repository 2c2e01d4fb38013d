/*
 * store.h
 *		A run's row in sync_logs.
 */
#ifndef CLINISYNC_STORE_H
#define CLINISYNC_STORE_H

#include "postgres.h"

#include "cliniko.h"
#include "run.h"
#include "transaction.h"

/* What to say to TRANSACTION_UNINSTALLED. */
#define STORE_UNINSTALLED_DETAIL \
	"The extension clinisync, or one of its tables, is gone or out of date: " \
	"run CREATE EXTENSION clinisync, or SELECT cliniko_setup()."

/*
 * End runs as failed whose worker does not, or is not there: all that are running,
 * unless the statement goes on with AND. $2: the error's code, $3: its sentence,
 * $4: whether to try again, all of them text.
 */
#define STORE_END_RUNS \
	"UPDATE @schema@.sync_logs l" \
	"   SET status = 'failed', completed_at = clock_timestamp()," \
	"       updated_at = clock_timestamp(), error_details = $3," \
	"       metadata = jsonb_build_object(" \
	"           'inserted', 0, 'updated', 0, 'unchanged', 0," \
	"           'deleted', coalesce((checkpoint ->> 'deleted')::bigint, 0)," \
	"           'archived', coalesce((checkpoint ->> 'archived')::bigint, 0)," \
	"           'restored', coalesce((checkpoint ->> 'restored')::bigint, 0)," \
	"           'api_ms', coalesce((checkpoint ->> 'api_us')::bigint / 1000, 0)," \
	"           'database_ms', coalesce((checkpoint ->> 'database_us')::bigint / 1000, 0))" \
	"           || l.metadata - '{waiting_until,waiting_for,estimated_remaining}'::text[]" \
	"           || jsonb_build_object(" \
	"           'step', 'failed', 'error_type', $2," \
	"           'errors', jsonb_build_array($3) || coalesce(l.metadata -> 'errors', '[]')," \
	"           'retry_recommended', $4::boolean," \
	"           'success_rate', coalesce(trunc(100.0 * l.records_success" \
	"               / nullif(l.records_processed, 0), 1), 0)," \
	"           'duration_ms', (extract(epoch FROM clock_timestamp() - l.started_at)" \
	"               * 1000)::bigint)" \
	" WHERE status = 'running'"

/*
 * A row's new id in a table: microseconds since 1970, but more than any that the
 * organisation has, also where the clock was put back. So ids grow with time, tell
 * nothing of other organisations, are not used again for another row, and stay
 * below 2^53, which JavaScript can count to. $1: the organisation.
 */
#define STORE_NEW_ID(table) \
	"greatest((extract(epoch FROM clock_timestamp()) * 1000000)::bigint," \
	" (SELECT max(id) + 1 FROM @schema@." table \
	"   WHERE organization_id = $1 AND id < 9007199254740992 - 1000000))"

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
extern TransactionResult store_end_all_farewell(ClinikoError error, const char *detail);
extern TransactionResult store_prune_logs(const Run *run, int *pruned);
extern void store_write_progress(const Catalog *catalog, Run *run);

#endif							/* CLINISYNC_STORE_H */
