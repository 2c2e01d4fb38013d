/*
 * worker.c
 *		The background worker: one in each database that has work.
 *
 * How a run finds its worker, and why none is forgotten
 * -----------------------------------------------------
 * Two advisory locks, in a key space of our own, tell who does what:
 *
 *	LOCK_WORKER, exclusively, for as long as it lives: this database's worker.
 *	LOCK_START, shared, until the transaction ends: a caller that has inserted
 *	a run, or is about to.
 *
 * A caller first takes LOCK_START. If nobody holds LOCK_WORKER, it registers a
 * worker, so that a lack of slots is an error of the call, which inserts
 * nothing. When its transaction has committed, it sets the latch of every
 * background worker of this database: ours is among them, and the others do
 * not mind. After a rollback a worker may be there for nothing; it leaves.
 *
 * A worker looks for work when it starts and whenever its latch is set. If it
 * wants to retire, it must get LOCK_START exclusively, without waiting, and
 * then look once more. If it gets the lock, every caller is either done, and
 * its run is seen by that look; or waits for the lock, and will see that the
 * worker is gone. If it does not, a caller is under way, and the worker stays
 * to be woken by it.
 *
 * Several callers may each register a worker. Those that find LOCK_WORKER taken
 * leave: its holder cannot retire before the callers' transactions have ended,
 * and will be woken by them.
 *
 * A worker that was terminated leaves its runs "running". It tells the launcher,
 * if there is one; else whoever looks at them next, with cliniko_sync_logs() say,
 * sees that no worker is there and registers one, which takes them up at their
 * checkpoints.
 *
 * The loop
 * --------
 * The worker waits in one place, transport_wait(), for its latch, the network
 * and the time. No transaction is open there, and interrupts are served, so
 * neither SIGTERM nor a DROP DATABASE elsewhere waits for Cliniko.
 *
 * Memory: the worker's context holds the transport and the syncs; a context
 * below it is reset every turn.
 */
#include "postgres.h"

#include <malloc.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "attendance.h"
#include "budget.h"
#include "clinisync.h"
#include "compat.h"
#include "store.h"
#include "sync.h"
#include "transport.h"
#include "worker.h"

/* The worker, as pg_stat_activity.backend_type shows it. */
#define WORKER_TYPE "clinisync worker"

/* How much freed memory the process keeps for the next batch, in bytes. */
#define KEPT_MEMORY (8 * 1024 * 1024)

/* How long a caller waits for a worker slot, or for another caller's worker. */
#define SLOT_PATIENCE_MS 2000
#define SLOT_RETRY_MS 20

/* How long a session that polls leaves a worker that it registered to start. */
#define REVIVAL_PAUSE_MS 500

/* How often a worker with runs looks for more, should a wake-up be lost. */
#define LOOK_WHILE_BUSY_MS 1000

/* After how long runs that could not be taken up are looked at again. */
#define FIRST_LOOK_AGAIN_MS 5000
#define LONGEST_LOOK_AGAIN_MS 60000

typedef struct Worker
{
	MemoryContext context;
	Transport  *transport;
	Sync	  **syncs;			/* side by side */
	int			nsyncs;
	bool		look;			/* look for work in this turn */
	TimestampTz look_at;		/* and in any case then; 0: not by time */
	TimestampTz idle_since;		/* 0: not idle */
	int			trouble;		/* how often in a row something was left undone */
	bool		look_failed;	/* the last look, and that was said */
	bool		attends;		/* has told the launcher that it is there */
	bool		only_looks;		/* launched on suspicion, and has found nothing yet */
} Worker;

static void
make_tag(LOCKTAG *tag, Oid database, uint32 what)
{
	SET_LOCKTAG_ADVISORY(*tag, database, 0, what, LOCK_SPACE);
}

/*
 * The caller's side
 */

/* Whether to wake this database's worker when the transaction commits. */
static bool wake_at_commit;

/* The transaction for which a worker was registered last. */
static LocalTransactionId registered_by = InvalidLocalTransactionId;

/* Whether this database has a worker. */
static bool
worker_exists(void)
{
	LockData   *locks = GetLockStatusData();
	LOCKTAG		tag;

	make_tag(&tag, MyDatabaseId, LOCK_WORKER);
	for (int i = 0; i < locks->nelements; i++)
	{
		LockInstanceData *lock = &locks->locks[i];

		if (lock->holdMask != 0 && memcmp(&lock->locktag, &tag, sizeof(tag)) == 0)
			return true;
	}
	return false;
}

/*
 * Set the latch of every background worker of this database. Runs when a
 * transaction has committed, so it must not fail, nor allocate anything. A
 * process that has ended meanwhile, and whatever took its place, takes a latch
 * that is set for nothing in its stride.
 */
static void
wake_workers(void)
{
	for (uint32 i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *process = &ProcGlobal->allProcs[i];

		if (process->pid != 0 && process->databaseId == MyDatabaseId &&
			COMPAT_IS_BACKGROUND_WORKER(process))
			SetLatch(&process->procLatch);
	}
}

static void
on_transaction_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (wake_at_commit)
				wake_workers();
			wake_at_commit = false;
			break;
		case XACT_EVENT_ABORT:
			wake_at_commit = false;
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (wake_at_commit)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has started or cancelled a sync"),
						 errhint("Use COMMIT.")));
			break;
		default:
			break;
	}
}

/*
 * A rollback to a savepoint may have released LOCK_START, and the worker that
 * was registered may have retired since.
 */
static void
on_subtransaction_end(SubXactEvent event, SubTransactionId subtransaction,
					  SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		registered_by = InvalidLocalTransactionId;
}

/* Have the worker, if there is one, look at its runs after the commit. */
void
worker_wake_at_commit(void)
{
	static bool watching = false;

	if (!watching)
	{
		RegisterXactCallback(on_transaction_end, NULL);
		RegisterSubXactCallback(on_subtransaction_end, NULL);
	}
	watching = true;
	wake_at_commit = true;
}

/* What bgw_extra says of a worker that the launcher has asked for. */
#define LAUNCHED "launched"

/* Ask the postmaster for a worker of a database. */
static bool
register_worker(Oid database, bool launched, BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker = {0};

	strlcpy(worker.bgw_name, WORKER_TYPE, BGW_MAXLEN);
	strlcpy(worker.bgw_type, WORKER_TYPE, BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, "$libdir/clinisync", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "clinisync_worker_main", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	if (launched)
	{
		strlcpy(worker.bgw_extra, LAUNCHED, BGW_EXTRALEN);
		worker.bgw_notify_pid = MyProcPid;
	}
	return RegisterDynamicBackgroundWorker(&worker, handle);
}

/*
 * Start a worker in a database that may have unfinished runs; if it has none,
 * the worker leaves at once. Returns false where there is no slot. The handle is
 * palloc'ed; the caller's latch is set when the worker starts and ends.
 */
bool
worker_launch(Oid database, BackgroundWorkerHandle **handle)
{
	return register_worker(database, true, handle);
}

/*
 * Have a worker look for the run that this transaction inserts, once it has
 * committed. Raises PT503 where there is no slot for one.
 */
void
worker_start_at_commit(void)
{
	LOCKTAG		tag;
	TimestampTz give_up_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SLOT_PATIENCE_MS);

	make_tag(&tag, MyDatabaseId, LOCK_START);
	(void) LockAcquire(&tag, ShareLock, false, false);
	worker_wake_at_commit();
	if (registered_by == COMPAT_MY_LXID)
		return;
	while (!worker_exists() && !register_worker(MyDatabaseId, false, NULL))
	{
		/* a burst of callers may hold all slots until the first worker is up */
		if (GetCurrentTimestamp() >= give_up_at)
			ereport(ERROR,
					(errcode(ERRCODE_CLINISYNC_UNAVAILABLE),
					 errmsg("no background worker slot is free"),
					 errdetail("NO_WORKER_AVAILABLE"),
					 errhint("Increase max_worker_processes (now %d) and restart the server, "
							 "or try again when other background workers have ended.",
							 max_worker_processes)));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 SLOT_RETRY_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	registered_by = COMPAT_MY_LXID;
}

/* Start a worker where there is none; where that cannot be, leave it. */
void
worker_ensure(void)
{
	static TimestampTz registered_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	/* one that was registered just now may not have its lock yet */
	if (RecoveryInProgress() ||
		!TimestampDifferenceExceeds(registered_at, now, REVIVAL_PAUSE_MS) || worker_exists())
		return;
	registered_at = now;
	(void) register_worker(MyDatabaseId, false, NULL);
}

/*
 * The worker's side
 */

/* Try for a lock that lasts beyond transactions. */
static bool
try_lock(uint32 what)
{
	LOCKTAG		tag;
	bool		locked;

	StartTransactionCommand();
	make_tag(&tag, MyDatabaseId, what);
	locked = LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
	CommitTransactionCommand();
	return locked;
}

/*
 * Whether this is the database's worker, still or again: a trigger that calls
 * pg_advisory_unlock_all() takes our lock from us, and then another worker may
 * have come, which does the work from now on.
 */
static bool
keep_lock(uint32 what)
{
	LOCKTAG		tag;

	make_tag(&tag, MyDatabaseId, what);
	return COMPAT_LOCK_HELD_BY_ME(&tag, ExclusiveLock) || try_lock(what);
}

static void
unlock(uint32 what)
{
	LOCKTAG		tag;

	make_tag(&tag, MyDatabaseId, what);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

/* Set a setting to what no database, role or file has a say in. */
static void
pin_setting(const char *name, const char *value)
{
	SetConfigOption(name, value, PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Settings of the database or its users must not change what our statements
 * mean, so names that they do not qualify are PostgreSQL's own; nor let a planner
 * that knows nothing of a new table read all of it.
 *
 * To be called before the worker connects, as autovacuum's do: PostgreSQL reads what
 * the database is set to in the transaction in which it connects, and a
 * transaction_timeout of a millisecond, taken over there, often ends the worker before
 * it is one. What is pinned by then is not taken over.
 */
static void
pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"default_transaction_read_only", "off"},
		{"default_transaction_isolation", "read committed"},
		{"enable_bitmapscan", "off"},
		{"enable_seqscan", "off"},
		{"exit_on_error", "off"},
		{"idle_in_transaction_session_timeout", "0"},
		{"jit", "off"},
		{"plan_cache_mode", "force_generic_plan"},
		{"search_path", "pg_catalog, pg_temp"},
		{"statement_timeout", "0"},
#if PG_VERSION_NUM >= 170000
		{"transaction_timeout", "0"},
#endif
	};

	for (int i = 0; i < lengthof(pinned); i++)
		pin_setting(pinned[i][0], pinned[i][1]);
}

/*
 * A table that is locked is tried again later, so that no clinic waits for another's.
 * To be called when the worker has connected: that waits as long as somebody has the
 * database to himself, who copies it for example.
 */
static void
pin_lock_timeout(void)
{
	pin_setting("lock_timeout", "100ms");
}

/*
 * Every batch takes and frees the same few hundred kilobytes. glibc would give
 * them back to the kernel each time, and page them in anew.
 */
static void
keep_freed_memory(void)
{
#ifdef M_TRIM_THRESHOLD
	mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY);
	mallopt(M_MMAP_THRESHOLD, KEPT_MEMORY);
#endif
}

/* Show in pg_stat_activity what goes on. */
static void
show_activity(const Worker *worker)
{
	char		text[64];

	snprintf(text, sizeof(text), "syncing %d organization%s", worker->nsyncs,
			 worker->nsyncs == 1 ? "" : "s");
	pgstat_report_activity(worker->nsyncs > 0 ? STATE_RUNNING : STATE_IDLE,
						   worker->nsyncs > 0 ? text : "waiting for work");
}

static void
remove_sync(Worker *worker, int i)
{
	sync_free(worker->syncs[i]);
	worker->syncs[i] = worker->syncs[--worker->nsyncs];
}

static bool
has_sync(const Worker *worker, const StoreRunKey *key)
{
	for (int i = 0; i < worker->nsyncs; i++)
	{
		if (sync_is(worker->syncs[i], key))
			return true;
	}
	return false;
}

static bool
is_listed(const StoreRunKey *keys, int nkeys, const Sync *sync)
{
	for (int i = 0; i < nkeys; i++)
	{
		if (sync_is(sync, &keys[i]))
			return true;
	}
	return false;
}

/* Tell the launcher, once, that somebody looks after this database's runs. */
static void
report_attendance(Worker *worker)
{
	if (!worker->attends)
		attendance_report(ATTENDED);
	worker->attends = true;
}

/*
 * Tell the launcher if this process ends before its runs have. One that was
 * terminated does not know of those that callers are about to commit.
 */
static void
report_abandonment(int code, Datum arg)
{
	Worker	   *worker = (Worker *) DatumGetPointer(arg);

	if (code != 0 || worker->nsyncs > 0 || worker->look || worker->look_at)
		attendance_report(ABANDONED);
}

/* Something was left undone: look again, less and less often. */
static void
look_later(Worker *worker)
{
	int			pause_ms = Min(FIRST_LOOK_AGAIN_MS << Min(worker->trouble, 10),
							   LONGEST_LOOK_AGAIN_MS);

	worker->look_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause_ms);
	worker->trouble++;
}

/* A look has failed, or a run could not be taken up: say so once, not with each try. */
static void
report_failed_look(Worker *worker, int64 sync_id)
{
	if (!worker->look_failed)
		ereport(LOG,
				(sync_id == 0
				 ? errmsg("could not look for work: SQLSTATE %s", transaction_last_sqlstate())
				 : errmsg("could not take up sync " INT64_FORMAT ": SQLSTATE %s",
						  sync_id, transaction_last_sqlstate())));
	worker->look_failed = true;
	look_later(worker);
}

/*
 * Hold what we do against the table: drop runs that no longer run there, take
 * up those that do, oldest first, as far as there is room.
 */
static void
look_for_work(Worker *worker)
{
	StoreRunKey *keys;
	int			nkeys;
	int64		failed_id = 0;
	TransactionResult result = store_list_running(CurrentMemoryContext, &keys, &nkeys);

	worker->look = false;
	worker->look_at = 0;
	/* also after a look that failed: it is repeated here, and the launcher need not wait */
	report_attendance(worker);
	if (result == TRANSACTION_UNINSTALLED)
	{
		/* the syncs find out for themselves; nobody else will for those in line */
		if (worker->nsyncs == 0)
			(void) store_end_all_farewell(CLINIKO_CONFIGURATION_ERROR, STORE_UNINSTALLED_DETAIL);
		return;
	}
	if (result != TRANSACTION_DONE)
	{
		report_failed_look(worker, 0);
		return;
	}
	for (int i = worker->nsyncs - 1; i >= 0; i--)
	{
		if (!is_listed(keys, nkeys, worker->syncs[i]))
			remove_sync(worker, i);
	}
	for (int i = 0; i < nkeys && worker->nsyncs < clinisync_max_running_syncs; i++)
	{
		Sync	   *sync;

		if (has_sync(worker, &keys[i]))
			continue;
		sync = sync_begin(worker->context, &keys[i], worker->transport, &result);
		if (sync)
		{
			worker->syncs = repalloc(worker->syncs, sizeof(Sync *) * (worker->nsyncs + 1));
			worker->syncs[worker->nsyncs++] = sync;
			worker->only_looks = false;
		}
		else if (result != TRANSACTION_NOT_RUNNING)
		{
			failed_id = failed_id ? failed_id : keys[i].id;
		}
	}
	if (failed_id != 0)
		report_failed_look(worker, failed_id);
	if (nkeys == 0)
		worker->trouble = 0;
	if (worker->look_at == 0)
		worker->look_failed = false;
	/* PostgreSQL resets the latch where it waits in a transaction of ours */
	if (worker->nsyncs > 0 && worker->look_at == 0)
		worker->look_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_WHILE_BUSY_MS);
}

/* Wait for whatever comes first, and hand every sync its answer. */
static void
wait_for_events(Worker *worker, long timeout_ms)
{
	Transfer   *transfer;

	worker->look |= transport_wait(worker->transport, timeout_ms);
	while ((transfer = transport_next_done(worker->transport)) != NULL)
		sync_answer(transfer->owner, transfer);
}

/*
 * Let a sync take up an answer, send a request and store a batch. Out of memory
 * or such, it is that sync which ends, not the worker.
 */
static void
give_turn(Worker *worker, Sync *sync)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		sync_fetch(sync);
		wait_for_events(worker, 0);
		sync_store(sync);
	}
	PG_CATCH();
	{
		int			sqlstate = geterrcode();

		MemoryContextSwitchTo(context);
		FlushErrorState();
		ereport(LOG,
				(errmsg("a sync broke off: SQLSTATE %s", unpack_sql_state(sqlstate))));
		sync_break_off(sync);
	}
	PG_END_TRY();
}

/* Give every sync that is due its turn; the network has its own in between. */
static void
advance_syncs(Worker *worker)
{
	for (int i = worker->nsyncs - 1; i >= 0; i--)
	{
		Sync	   *sync = worker->syncs[i];

		if (sync_due(sync) > GetCurrentTimestamp())
			continue;
		give_turn(worker, sync);
		if (sync_ended(sync))
		{
			/* its place may be wanted; its row may still say "running" */
			if (sync_abandoned(sync))
				look_later(worker);
			else
			{
				worker->look = true;
				worker->trouble = 0;
			}
			remove_sync(worker, i);
		}
	}
}

/* Until when this worker stays without work: it also remembers what requests were sent. */
static TimestampTz
stays_until(const Worker *worker)
{
	int			timeout_ms = worker->only_looks ? 0 : clinisync_idle_timeout;

	return Max(TimestampTzPlusMilliseconds(worker->idle_since, timeout_ms), budget_void_at());
}

/* How long the worker may wait, in milliseconds, for anything but an event. */
static long
pause_ms(const Worker *worker)
{
	TimestampTz due = worker->look_at ? worker->look_at : DT_NOEND;

	if (worker->look)
		return 0;
	for (int i = 0; i < worker->nsyncs; i++)
		due = Min(due, sync_due(worker->syncs[i]));
	if (worker->idle_since)
		due = Min(due, stays_until(worker));
	if (due == DT_NOEND)
		return -1;
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), due);
}

/* Leave, if nobody wants this worker; see the top of this file. */
static bool
retire(Worker *worker)
{
	if (!try_lock(LOCK_START))
		return false;
	look_for_work(worker);
	if (worker->nsyncs == 0 && worker->look_at == 0)
	{
		unlock(LOCK_WORKER);
		unlock(LOCK_START);
		return true;
	}
	unlock(LOCK_START);
	return false;
}

/* Work until there has been none for as long as the worker stays. */
static void
work(Worker *worker)
{
	MemoryContext turn = AllocSetContextCreate(worker->context, "clinisync turn",
											   ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		MemoryContextReset(turn);
		MemoryContextSwitchTo(turn);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (worker->look || (worker->look_at && worker->look_at <= GetCurrentTimestamp()))
		{
			look_for_work(worker);
			show_activity(worker);
		}
		advance_syncs(worker);
		if (!keep_lock(LOCK_WORKER))
			return;

		if (worker->nsyncs > 0 || worker->look || worker->look_at)
			worker->idle_since = 0;
		else if (worker->idle_since == 0)
			worker->idle_since = GetCurrentTimestamp();
		else if (stays_until(worker) <= GetCurrentTimestamp())
		{
			if (retire(worker))
				return;
			worker->only_looks = false; /* somebody is about to start a run */
			worker->idle_since = GetCurrentTimestamp();
		}

		wait_for_events(worker, pause_ms(worker));
	}
}

/* Say with everything that is logged which database it is about. */
static void
add_database(void *database)
{
	errcontext("clinisync worker of database \"%s\"", (char *) database);
}

/* This database's name, for as long as the process lives. */
static char *
database_name(void)
{
	char	   *name;

	StartTransactionCommand();
	name = MemoryContextStrdup(TopMemoryContext, get_database_name(MyDatabaseId));
	CommitTransactionCommand();
	return name;
}

/* The worker's main function; arg is the database's oid. */
void
clinisync_worker_main(Datum arg)
{
	Worker	   *worker = MemoryContextAllocZero(TopMemoryContext, sizeof(Worker));
	ErrorContextCallback context = {.callback = add_database};

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	/* there is no statement to cancel, but in a transaction; see transaction.c */
	pqsignal(SIGINT, SIG_IGN);
	BackgroundWorkerUnblockSignals();
	pin_settings();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	pin_lock_timeout();
	keep_freed_memory();
	context.arg = database_name();
	context.previous = error_context_stack;
	error_context_stack = &context;
	if (!try_lock(LOCK_WORKER))
	{
		report_attendance(worker);	/* somebody else does */
		return;
	}

	worker->look = true;
	worker->only_looks = strcmp(MyBgworkerEntry->bgw_extra, LAUNCHED) == 0;
	before_shmem_exit(report_abandonment, PointerGetDatum(worker));
	worker->context = AllocSetContextCreate(TopMemoryContext, "clinisync worker",
											ALLOCSET_DEFAULT_SIZES);
	worker->syncs = MemoryContextAlloc(worker->context, sizeof(Sync *));
	worker->transport = transport_create(worker->context);
	work(worker);
	MemoryContextSwitchTo(TopMemoryContext);
	MemoryContextDelete(worker->context);
}
