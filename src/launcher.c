/*
 * launcher.c
 *		See to it that every database with unfinished runs has a worker.
 *
 * The launcher is there if the library is in shared_preload_libraries. When the
 * server has started, has recovered from a crash or was promoted, it has a worker
 * look into every database, a few at a time; one that finds nothing leaves at
 * once. After that it sleeps until a worker reports that it ended before its runs
 * had (attendance.c), and starts another.
 *
 *	charge			event							becomes
 *	DUE				the time has come				STARTING	(a worker is registered)
 *	STARTING		"attended"						ATTENDED, or forgotten
 *	STARTING		it ended without a word			DUE, later
 *	ATTENDED		"abandoned"						DUE, later
 *	ATTENDED		all is well for a while			forgotten
 *
 * A database is forgotten when it is dropped. What the server log says is said
 * when a database begins to fail and when it works again, not with each try.
 *
 * The launcher is connected to no database and reads pg_database alone, without
 * SQL, and not while it sleeps.
 *
 * Memory: the charges are in a hash table for as long as there is something to
 * be remembered of them; a context below is reset every turn.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "attendance.h"
#include "compat.h"
#include "launcher.h"
#include "worker.h"

/* The launcher, as pg_stat_activity.backend_type shows it. */
#define LAUNCHER_TYPE "clinisync launcher"

/* After how many seconds the postmaster starts it again, should it end. */
#define RESTART_AFTER_S 5

/* How many workers may be on their way at a time; others need slots as well. */
#define MOST_STARTING 2

/* The pause after a failure; doubled from failure to failure. */
#define FIRST_BACKOFF_MS 1000
#define LONGEST_BACKOFF_MS (5 * 60 * 1000)

/* For how long a database that failed has to be attended to count as well. */
#define RECOVERY_MS (60 * 1000)

/* How soon to try again when there is no free worker slot. */
#define NO_SLOT_PAUSE_MS 5000

typedef enum ChargeState
{
	DUE,
	STARTING,
	ATTENDED_AGAIN
} ChargeState;

/* A database that is looked after. */
typedef struct Charge
{
	Oid			database;		/* the hash key, must be first */
	NameData	name;
	ChargeState state;
	TimestampTz at;				/* when it is due, or counts as well */
	int			failures;		/* in a row */
	BackgroundWorkerHandle *worker;	/* while STARTING */
	bool		stopped;		/* while STARTING: it is no more */
	bool		exists;			/* it was in pg_database in this turn */
} Charge;

typedef struct Launcher
{
	MemoryContext turn;
	HTAB	   *charges;
	bool		look_everywhere;
	bool		no_slot;		/* and this was said */
} Launcher;

/* Add a database to those that are to be looked into now. */
static Charge *
add_charge(Launcher *launcher, Oid database)
{
	bool		found;
	Charge	   *charge = hash_search(launcher->charges, &database, HASH_ENTER, &found);

	if (!found)
	{
		memset(charge, 0, sizeof(*charge));
		charge->database = database;
	}
	return charge;
}

static void
forget(Launcher *launcher, Charge *charge)
{
	if (charge->worker)
		pfree(charge->worker);
	(void) hash_search(launcher->charges, &charge->database, HASH_REMOVE, NULL);
}

/* Hold the charges against pg_database; add all of it where that is wanted. */
static void
read_databases(Launcher *launcher)
{
	HASH_SEQ_STATUS scan_charges;
	Charge	   *charge;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;

	hash_seq_init(&scan_charges, launcher->charges);
	while ((charge = hash_seq_search(&scan_charges)) != NULL)
		charge->exists = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (!database->datallowconn || database->datconnlimit == COMPAT_DATCONNLIMIT_INVALID)
			continue;
		charge = launcher->look_everywhere ? add_charge(launcher, database->oid)
			: hash_search(launcher->charges, &database->oid, HASH_FIND, NULL);
		if (charge == NULL)
			continue;
		charge->exists = true;
		charge->name = database->datname;
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(launcher->turn);
	launcher->look_everywhere = false;

	hash_seq_init(&scan_charges, launcher->charges);
	while ((charge = hash_seq_search(&scan_charges)) != NULL)
	{
		if (!charge->exists)
			forget(launcher, charge);
	}
}

/* A database has runs that nobody looks after, or might have. */
static void
fail(Charge *charge)
{
	int			pause_ms = Min(FIRST_BACKOFF_MS << Min(charge->failures, 10), LONGEST_BACKOFF_MS);

	charge->failures++;
	if (charge->worker)
		pfree(charge->worker);
	charge->worker = NULL;
	charge->state = DUE;
	charge->at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause_ms);
}

/* Note which of the workers that were started are no more. */
static void
note_stopped(Launcher *launcher)
{
	HASH_SEQ_STATUS scan;
	Charge	   *charge;
	pid_t		pid;

	hash_seq_init(&scan, launcher->charges);
	while ((charge = hash_seq_search(&scan)) != NULL)
	{
		if (charge->state == STARTING)
			charge->stopped = GetBackgroundWorkerPid(charge->worker, &pid) == BGWH_STOPPED;
	}
}

/* A worker looks after the runs of a database. */
static void
note_attended(Launcher *launcher, Charge *charge)
{
	if (charge->failures == 0)
	{
		forget(launcher, charge);
		return;
	}
	if (charge->worker)
		pfree(charge->worker);
	charge->worker = NULL;
	charge->state = ATTENDED_AGAIN;
	charge->at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), RECOVERY_MS);
}

/* Take the workers' reports. */
static void
take_reports(Launcher *launcher)
{
	AttendanceReport reports[ATTENDANCE_MAX_REPORTS];
	bool		overflowed;
	int			count = attendance_take(reports, &overflowed);

	launcher->look_everywhere |= overflowed;
	for (int i = 0; i < count; i++)
	{
		Charge	   *charge = hash_search(launcher->charges, &reports[i].database, HASH_FIND, NULL);

		if (reports[i].attendance == ABANDONED)
			fail(charge ? charge : add_charge(launcher, reports[i].database));
		else if (charge)
			note_attended(launcher, charge);
	}
}

/* Start a worker for a database. Returns false where there is no slot for it. */
static bool
start_worker(Launcher *launcher, Charge *charge)
{
	MemoryContext old_context = MemoryContextSwitchTo(TopMemoryContext);
	bool		registered = worker_launch(charge->database, &charge->worker);

	MemoryContextSwitchTo(old_context);
	if (!registered && !launcher->no_slot)
		ereport(LOG,
				(errmsg("no background worker slot is free to resume syncs"),
				 errhint("Increase max_worker_processes (now %d) and restart the server.",
						 max_worker_processes)));
	launcher->no_slot = !registered;
	if (!registered)
		return false;
	if (charge->failures == 1)
		ereport(LOG,
				(errmsg("the clinisync worker of database \"%s\" ended before its syncs had: "
						"starting another", NameStr(charge->name))));
	charge->state = STARTING;
	charge->stopped = false;
	return true;
}

/*
 * Go through the charges: draw conclusions, and start the workers that are due,
 * as far as there is room. Returns when there will be something to do.
 */
static TimestampTz
attend(Launcher *launcher)
{
	HASH_SEQ_STATUS scan;
	Charge	   *charge;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = DT_NOEND;
	int			starting = 0;

	hash_seq_init(&scan, launcher->charges);
	while ((charge = hash_seq_search(&scan)) != NULL)
	{
		if (charge->state == STARTING && charge->stopped)
			fail(charge);
		starting += charge->state == STARTING;
	}
	hash_seq_init(&scan, launcher->charges);
	while ((charge = hash_seq_search(&scan)) != NULL)
	{
		if (charge->state == STARTING)
			continue;
		if (charge->state == ATTENDED_AGAIN && charge->at <= now)
		{
			ereport(LOG,
					(errmsg("the clinisync worker of database \"%s\" works again",
							NameStr(charge->name))));
			forget(launcher, charge);
			continue;
		}
		if (charge->state == DUE && charge->at <= now)
		{
			if (starting == MOST_STARTING)
				continue;		/* the next that is known of these makes room */
			if (start_worker(launcher, charge))
			{
				starting++;
				continue;
			}
			charge->at = TimestampTzPlusMilliseconds(now, NO_SLOT_PAUSE_MS);
		}
		next = Min(next, charge->at);
	}
	return next;
}

/* Whether a charge is to be looked into, for which it has to exist. */
static bool
any_due(Launcher *launcher)
{
	HASH_SEQ_STATUS scan;
	Charge	   *charge;
	bool		due = launcher->look_everywhere;

	hash_seq_init(&scan, launcher->charges);
	while ((charge = hash_seq_search(&scan)) != NULL)
		due |= charge->state == DUE && charge->at <= GetCurrentTimestamp();
	return due;
}

/* The launcher's main function. */
void
clinisync_launcher_main(Datum arg)
{
	Launcher	launcher = {.look_everywhere = true};
	HASHCTL		info = {.keysize = sizeof(Oid), .entrysize = sizeof(Charge)};

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	attendance_listen();
	launcher.turn = AllocSetContextCreate(TopMemoryContext, "clinisync launcher turn",
										  ALLOCSET_DEFAULT_SIZES);
	launcher.charges = hash_create("clinisync charges", 64, &info, HASH_ELEM | HASH_BLOBS);

	while (!ShutdownRequestPending)
	{
		TimestampTz next;
		long		pause_ms;

		MemoryContextReset(launcher.turn);
		MemoryContextSwitchTo(launcher.turn);
		note_stopped(&launcher);
		take_reports(&launcher);
		if (any_due(&launcher))
			read_databases(&launcher);
		next = attend(&launcher);
		pgstat_report_activity(STATE_IDLE, NULL);

		pause_ms = next == DT_NOEND ? -1
			: TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
						 (pause_ms >= 0 ? WL_TIMEOUT : 0), pause_ms, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
	/* not 0: the postmaster would take it that nobody wants a launcher any more */
	proc_exit(1);
}

/* Have the postmaster run a launcher; called while it preloads libraries. */
void
launcher_register(void)
{
	BackgroundWorker launcher = {0};

	strlcpy(launcher.bgw_name, LAUNCHER_TYPE, BGW_MAXLEN);
	strlcpy(launcher.bgw_type, LAUNCHER_TYPE, BGW_MAXLEN);
	strlcpy(launcher.bgw_library_name, "clinisync", BGW_MAXLEN);
	strlcpy(launcher.bgw_function_name, "clinisync_launcher_main", BGW_MAXLEN);
	launcher.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	launcher.bgw_start_time = BgWorkerStart_RecoveryFinished;
	launcher.bgw_restart_time = RESTART_AFTER_S;
	RegisterBackgroundWorker(&launcher);
}
