/*
 * sync.c
 *		One run as a state machine.
 *
 * A run does two things at once: it fetches the next page while it stores the
 * current one. Each has its own small state, and they meet where a page that
 * has arrived is taken up, which happens only when the previous one is stored.
 *
 *	fetching		event					becomes
 *	DUE				the time has come		UNDER_WAY	(a request is sent)
 *	UNDER_WAY		the transfer ended		ANSWERED
 *	ANSWERED		a page, more to come	DUE
 *	ANSWERED		the last page			FINISHED
 *	ANSWERED		a passing failure		DUE, later	(step "waiting")
 *	ANSWERED		any other failure		the run fails
 *	FINISHED		all pages are stored	DUE			(who is missing is asked for)
 *	FINISHED		nobody is missing		the run is completed
 *
 * Which account the key belongs to is asked for at the same time, once, and
 * nothing is stored before that is known.
 *
 * Storing takes one batch of the page a turn, so that no run holds up another.
 * A run that has completed or failed is "ending" until that is committed.
 *
 * Memory: a Sync and all it points to live in its run's context.
 */
#include "postgres.h"

#include <limits.h>

#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "cliniko.h"
#include "clinisync.h"
#include "enumeration.h"
#include "reconcile.h"
#include "run.h"
#include "store.h"
#include "sync.h"

/* The first pause after a passing failure; doubled from failure to failure. */
#define FIRST_BACKOFF_MS 500
#define LONGEST_BACKOFF_MS 60000
/* Likewise, before a transaction that met a lock or a full disk is repeated. */
#define FIRST_STORE_BACKOFF_MS 200
#define LONGEST_STORE_BACKOFF_MS 30000
/* A pause of our own making that is worth showing as "waiting". */
#define VISIBLE_PAUSE_MS 1000

#define MINUTE_US (60 * USECS_PER_SEC)

typedef enum FetchState
{
	FETCH_DUE,
	FETCH_UNDER_WAY,
	FETCH_ANSWERED,
	FETCH_FINISHED
} FetchState;

/* Something that is asked of Cliniko, one request at a time. */
typedef struct Fetch
{
	FetchState	state;
	Transfer   *transfer;		/* while UNDER_WAY or ANSWERED */
	TimestampTz at;				/* while DUE: not before this */
	int			failures;		/* in a row */
} Fetch;

struct Sync
{
	Run		   *run;
	ClinikoAccount *account;
	Transport  *transport;

	Fetch		whose;			/* which account the key belongs to */
	Fetch		patients;
	Enumeration list;			/* which patients the next request asks for */
	int			disorders;		/* pages whose ids did not rise */
	TimestampTz progress_at;	/* when Cliniko last gave a page */

	ClinikoPage *page;			/* being stored, or NULL */
	int			next_record;
	TimestampTz store_at;		/* not before this */
	int			store_failures;	/* transactions in a row that met a busy database */
	TimestampTz busy_since;		/* when the first of them did */

	bool		announced;		/* the size of the job was committed */
	bool		recorded;		/* so was its end: what is left is housekeeping */
	bool		ended;			/* nothing is left to do */
	bool		abandoned;		/* it ended, but its row may not say so */

	TimestampTz *sent;			/* when the last requests left, as a ring */
	int			sent_size;		/* requests allowed in a minute; 0: no limit */
	int			sent_next;
};

/* Ask for nothing more. */
static void
stop_fetching(Sync *sync, Fetch *fetch)
{
	if (fetch->transfer)
		transfer_release(sync->transport, fetch->transfer);
	*fetch = (Fetch) {.state = FETCH_FINISHED};
}

static void
fail(Sync *sync, ClinikoError error, const char *detail)
{
	run_fail(sync->run, error, detail);
	ereport(LOG,
			(errmsg("sync " INT64_FORMAT " has failed: %s",
					sync->run->id, cliniko_error_code(error))));
	if (sync->page)
	{
		cliniko_free_page(sync->page);
		sync->page = NULL;
	}
	stop_fetching(sync, &sync->whose);
	stop_fetching(sync, &sync->patients);
	sync->store_at = 0;
}

static bool
ending(const Sync *sync)
{
	return sync->run->step == RUN_COMPLETED || sync->run->step == RUN_FAILED;
}

/* The table is locked or the disk is full: repeat the transaction in a while. */
static void
wait_for_database(Sync *sync)
{
	TimestampTz now = GetCurrentTimestamp();
	Run		   *run = sync->run;
	int			pause_ms = Min(FIRST_STORE_BACKOFF_MS << Min(sync->store_failures, 10),
							   LONGEST_STORE_BACKOFF_MS);

	if (sync->store_failures++ == 0)
	{
		sync->busy_since = now;
		ereport(LOG,
				(errmsg("sync " INT64_FORMAT " waits for the database: SQLSTATE %s",
						run->id, transaction_last_sqlstate())));
	}
	sync->store_at = TimestampTzPlusMilliseconds(now, pause_ms);
	if (ending(sync))
		return;
	if (now - sync->busy_since >= clinisync_retry_window * USECS_PER_SEC)
	{
		fail(sync, CLINIKO_DATABASE_ERROR, psprintf("SQLSTATE %s.", transaction_last_sqlstate()));
		return;
	}
	/* the log may be writable even if the patients are not */
	run->step = RUN_WAITING;
	run->waiting_until = sync->store_at;
	run->waiting_for = "the database";
	if (store_save_progress(run) == TRANSACTION_NOT_RUNNING)
		sync->ended = sync->abandoned = true;
}

/* Draw the conclusion from how a transaction ended. Answers if it committed. */
static bool
conclude(Sync *sync, TransactionResult result)
{
	switch (result)
	{
		case TRANSACTION_DONE:
			sync->store_failures = 0;
			return true;
		case TRANSACTION_NOT_RUNNING:
			/* mostly it was cancelled; if a trigger pretends so, do not hurry back */
			ereport(LOG,
					(errmsg("the row of sync " INT64_FORMAT " cannot be updated, or has ended",
							sync->run->id)));
			sync->ended = sync->abandoned = true;
			break;
		case TRANSACTION_UNINSTALLED:
			fail(sync, CLINIKO_CONFIGURATION_ERROR, STORE_UNINSTALLED_DETAIL);
			(void) store_save_farewell(sync->run);
			sync->ended = true;
			break;
		case TRANSACTION_BUSY:
			wait_for_database(sync);
			break;
		case TRANSACTION_FAILED:
			ereport(LOG,
					(errmsg("sync " INT64_FORMAT " could not be stored: SQLSTATE %s",
							sync->run->id, transaction_last_sqlstate())));
			/* when not even the end can be written, the row stays for another try */
			if (ending(sync))
				sync->ended = sync->abandoned = true;
			else
				fail(sync, CLINIKO_DATABASE_ERROR,
					 psprintf("SQLSTATE %s.", transaction_last_sqlstate()));
			break;
	}
	return false;
}

/* Commit what the run says of itself, counting the time that it takes. */
static bool
save_progress(Sync *sync)
{
	TimestampTz start = GetCurrentTimestamp();
	TransactionResult result = store_save_progress(sync->run);

	sync->run->database_us += GetCurrentTimestamp() - start;
	return conclude(sync, result);
}

/* Find out what would keep the run from beginning. */
static void
check_prerequisites(Sync *sync)
{
	Run		   *run = sync->run;

	if (GetDatabaseEncoding() != PG_UTF8 && GetDatabaseEncoding() != PG_SQL_ASCII)
		fail(sync, CLINIKO_CONFIGURATION_ERROR,
			 psprintf("Its encoding is %s: create one with ENCODING 'UTF8'.",
					  GetDatabaseEncodingName()));
	else if (run->api_key == NULL || run->shard == NULL)
		fail(sync, CLINIKO_CREDENTIALS_UNREADABLE,
			 run->key_problem ? run->key_problem : CLINIKO_SHARD_UNKNOWN);
	else if ((sync->account = cliniko_account(run->api_key, run->shard)) == NULL)
		fail(sync, CLINIKO_CONFIGURATION_ERROR, settings_contact_email_unset());
}

/* Take up a run, new or left by another worker; NULL where that cannot be. */
Sync *
sync_begin(MemoryContext parent, const StoreRunKey *key, Transport *transport,
		   TransactionResult *result)
{
	MemoryContext old_context;
	Run		   *run;
	Sync	   *sync;

	*result = store_load_run(parent, key, &run);
	if (*result != TRANSACTION_DONE)
		return NULL;
	old_context = MemoryContextSwitchTo(run->context);
	sync = palloc0(sizeof(Sync));
	sync->run = run;
	sync->transport = transport;
	enumeration_begin(&sync->list, run, clinisync_page_size);
	/* a run that was reconciling goes on with those that are missing */
	if (sync->list.cursor.part == CLINIKO_MISSING)
		stop_fetching(sync, &sync->patients);
	sync->progress_at = run->began_at = GetCurrentTimestamp();
	sync->sent_size = clinisync_requests_per_minute;
	if (sync->sent_size > 0)
		sync->sent = palloc0(sizeof(TimestampTz) * sync->sent_size);
	run->step = RUN_CONNECTING;
	check_prerequisites(sync);
	MemoryContextSwitchTo(old_context);
	if (!ending(sync))
		(void) save_progress(sync);
	return sync;
}

void
sync_free(Sync *sync)
{
	if (sync->page)
		cliniko_free_page(sync->page);
	stop_fetching(sync, &sync->whose);
	stop_fetching(sync, &sync->patients);
	run_free(sync->run);
}

bool
sync_ended(const Sync *sync)
{
	return sync->ended;
}

/* Whether the run ended here but could not be recorded as ended. */
bool
sync_abandoned(const Sync *sync)
{
	return sync->abandoned;
}

bool
sync_is(const Sync *sync, const StoreRunKey *key)
{
	return sync->run->id == key->id &&
		strcmp(sync->run->organization_id, key->organization_id) == 0;
}

/* Fail a sync in whose turn something unforeseen went wrong. */
void
sync_break_off(Sync *sync)
{
	if (ending(sync))
		sync->ended = sync->abandoned = true;
	else
		fail(sync, CLINIKO_INTERNAL_ERROR, NULL);
}

/*
 * Fetching
 */

/* When the limit of our own lets the next request leave. */
static TimestampTz
allowed_at(const Sync *sync)
{
	TimestampTz oldest = sync->sent_size > 0 ? sync->sent[sync->sent_next] : 0;

	return oldest > 0 ? oldest + MINUTE_US : 0;
}

static void
wait_until(Sync *sync, Fetch *fetch, TimestampTz moment, const char *reason)
{
	Run		   *run = sync->run;

	fetch->state = FETCH_DUE;
	fetch->at = moment;
	run->step = RUN_WAITING;
	run->waiting_until = moment;
	run->waiting_for = reason;
	(void) save_progress(sync);
}

/* Send a request if it is due, unless a limit says to wait. */
static void
send_request(Sync *sync, Fetch *fetch)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz allowed = allowed_at(sync);
	char	   *url;

	if (sync->ended || fetch->state != FETCH_DUE || now < fetch->at)
		return;
	if (now < allowed)
	{
		/* while there is a page to store, that is what the run does */
		if (sync->page == NULL && allowed - now >= VISIBLE_PAUSE_MS * 1000)
			wait_until(sync, fetch, allowed, "the limit of clinisync.requests_per_minute");
		else
			fetch->at = allowed;
		return;
	}
	if (sync->sent_size > 0)
	{
		sync->sent[sync->sent_next] = now;
		sync->sent_next = (sync->sent_next + 1) % sync->sent_size;
	}
	url = fetch == &sync->whose ? cliniko_account_url(sync->account)
		: enumeration_url(&sync->list, sync->account);
	fetch->transfer = cliniko_get(sync->transport, sync->account, url, sync);
	fetch->state = FETCH_UNDER_WAY;
	pfree(url);
}

/*
 * Try again after a pause, or give up when clinisync.retry_window has passed
 * without a page. wait_ms: what Cliniko asked for, or 0.
 */
static void
try_again(Sync *sync, Fetch *fetch, ClinikoError error, long wait_ms, const char *detail)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz give_up_at = sync->progress_at + clinisync_retry_window * USECS_PER_SEC;

	if (now >= give_up_at)
	{
		fail(sync, error, detail);
		return;
	}
	sync->run->retries++;
	if (wait_ms == 0)
	{
		double		backoff = FIRST_BACKOFF_MS * (double) (1 << Min(fetch->failures, 10));

		backoff = Min(backoff, LONGEST_BACKOFF_MS);
		wait_ms = (long) (backoff * (0.5 + 0.5 * pg_prng_double(&pg_global_prng_state)));
	}
	fetch->failures++;
	wait_until(sync, fetch, Min(now + (TimestampTz) wait_ms * 1000, give_up_at),
			   error == CLINIKO_RATE_LIMITED ? "Cliniko's request limit"
			   : "Cliniko to answer again");
}

/* Cliniko does not honour sort=id. */
static void
start_over(Sync *sync)
{
	enumeration_start_over(&sync->list);
	sync->patients.state = FETCH_DUE;
	sync->patients.at = 0;
}

/* Keep a page to be stored, and go on behind it, or not. */
static void
keep_page(Sync *sync, ClinikoPage *page, bool last)
{
	sync->patients.state = last ? FETCH_FINISHED : FETCH_DUE;
	sync->patients.at = 0;
	if (last || page->nrecords > 0)
	{
		sync->patients.failures = 0;
		sync->progress_at = GetCurrentTimestamp();
	}
	sync->page = page;
	sync->next_record = 0;
}

/* Take up a page, unless it contradicts what is known. */
static void
take_page(Sync *sync, ClinikoPage *page)
{
	bool		by_id = sync->list.cursor.order == CLINIKO_BY_ID;
	bool		named = sync->list.cursor.part == CLINIKO_MISSING;
	bool		unsorted = by_id && !named && page->nrecords > 0;
	PageFit		fit;

	if (named)
		fit = enumeration_confirm(&sync->list, page) ? PAGE_LAST : PAGE_CONTRADICTION;
	else
		fit = enumeration_take(&sync->list, page);
	if (fit == PAGE_MORE || fit == PAGE_LAST)
	{
		keep_page(sync, page, fit == PAGE_LAST);
		return;
	}
	cliniko_free_page(page);
	/* a page may be unsorted by mistake once, if there is time to try again */
	if (fit == PAGE_DISORDER ||
		(unsorted && (sync->disorders++ > 0 || clinisync_retry_window == 0)))
		start_over(sync);
	else
		try_again(sync, &sync->patients, CLINIKO_INCOMPLETE_ENUMERATION, 0, NULL);
}

/* Count an answer, and tell one more fact of a failure, or NULL. */
static char *
note_answer(Run *run, const Transfer *transfer, ClinikoVerdict verdict)
{
	run->requests++;
	run->api_us += transfer->elapsed_us;
	run->rate_limited += verdict.error == CLINIKO_RATE_LIMITED;
	if (transfer->outcome == TRANSFER_BROKEN)
		return psprintf("%s.", transfer->reason);
	if (verdict.error == CLINIKO_BAD_REQUEST || verdict.error == CLINIKO_UNAVAILABLE)
		return psprintf("HTTP status %ld.", transfer->status);
	return NULL;
}

static const ClinikoVerdict not_usable = {CLINIKO_UNAVAILABLE, true, 0};

/* Make something of an answer about patients. */
static void
take_patients(Sync *sync)
{
	Fetch	   *fetch = &sync->patients;
	ClinikoVerdict verdict = cliniko_judge(fetch->transfer);
	ClinikoPage *page = NULL;
	char	   *detail;
	bool		by_id = sync->list.cursor.order == CLINIKO_BY_ID &&
		sync->list.cursor.part != CLINIKO_MISSING;

	if (verdict.error == CLINIKO_NO_ERROR)
	{
		page = cliniko_parse_page(sync->run->context, fetch->transfer);
		if (page == NULL)
			verdict = not_usable;
	}
	detail = note_answer(sync->run, fetch->transfer, verdict);
	transfer_release(sync->transport, fetch->transfer);
	fetch->transfer = NULL;

	if (page != NULL)
		take_page(sync, page);
	else if (verdict.passing)
		try_again(sync, fetch, verdict.error, verdict.wait_ms, detail);
	else if (verdict.error == CLINIKO_BAD_REQUEST && by_id)
		start_over(sync);	/* "Sort parameter must be a valid column name" */
	else
		fail(sync, verdict.error, detail);
}

/* Hold the account that the key belongs to against the one that is stored. */
static void
check_account(Sync *sync, const char *account_id)
{
	Run		   *run = sync->run;

	sync->progress_at = GetCurrentTimestamp();
	if (account_id && run->account_id && strcmp(account_id, run->account_id) != 0)
		fail(sync, CLINIKO_ACCOUNT_MISMATCH, NULL);
	else if (!account_id || run->account_id ||
			 conclude(sync, store_save_account_id(run, account_id)))
		sync->whose.state = FETCH_FINISHED;
	else
	{
		sync->whose.state = FETCH_DUE;
		sync->whose.at = sync->store_at;
	}
}

/*
 * Make something of the answer which account it is. A key whose role may not
 * know that is not told, and cannot be checked.
 */
static void
take_account(Sync *sync)
{
	Fetch	   *fetch = &sync->whose;
	ClinikoVerdict verdict = cliniko_judge(fetch->transfer);
	char	   *id = NULL;
	char	   *name;
	char	   *detail;

	if (verdict.error == CLINIKO_NO_ERROR && !cliniko_read_account(fetch->transfer, &id, &name))
		verdict = not_usable;
	detail = note_answer(sync->run, fetch->transfer, verdict);
	transfer_release(sync->transport, fetch->transfer);
	fetch->transfer = NULL;

	if (verdict.passing)
		try_again(sync, fetch, verdict.error, verdict.wait_ms, detail);
	else if (verdict.error == CLINIKO_AUTH_FAILED)
		fail(sync, verdict.error, detail);
	else
		check_account(sync, id);
}

/* The transfer has ended: it is one of the sync's. */
void
sync_answer(Sync *sync, Transfer *transfer)
{
	Fetch	   *fetch = transfer == sync->whose.transfer ? &sync->whose : &sync->patients;

	Assert(transfer == fetch->transfer);
	fetch->state = FETCH_ANSWERED;
}

/*
 * Storing
 */

/* How many records a transaction takes: enough, but so that progress shows. */
static int
batch_size(const Run *run)
{
	return Max(clinisync_batch_size, (int) Min(run->found / 10, INT_MAX));
}

static void
drop_page(Sync *sync)
{
	cliniko_free_page(sync->page);
	sync->page = NULL;
	/* a request that only had to wait for our own limit is looked at again */
	if (sync->patients.state == FETCH_DUE)
		sync->patients.at = 0;
}

/* Store the next batch of the page. */
static void
store_batch(Sync *sync)
{
	Run		   *run = sync->run;
	ClinikoPage *page = sync->page;
	int			count = Min(batch_size(run), page->nrecords - sync->next_record);
	bool		page_done = sync->next_record + count == page->nrecords;
	RunState	before = run->state;
	TimestampTz start = GetCurrentTimestamp();
	ClinikoCursor cursor = enumeration_pass(&sync->list, page, sync->next_record, count);
	TransactionResult result;

	run->state.pages += page_done;
	run->step = RUN_STORING;
	result = store_save_batch(run, page->records + sync->next_record, count, &cursor,
							  page_done && sync->patients.state == FETCH_FINISHED);
	run->database_us += GetCurrentTimestamp() - start;
	if (result != TRANSACTION_DONE)
		run->state = before;	/* also what was noted above */
	if (!conclude(sync, result))
		return;
	sync->next_record += count;
	if (page_done)
	{
		enumeration_forget(&sync->list, page, &before.cursor);
		drop_page(sync);
	}
}

/* Cliniko has told which of the missing patients it still has: mark the others. */
static void
store_confirmation(Sync *sync)
{
	Run		   *run = sync->run;

	/* by creation, it shows only now */
	run->state.missing = Max(run->state.missing, run->state.deleted + sync->list.nnamed);
	run->step = RUN_RECONCILING;
	if (run->state.missing > run_missing_limit(run) ||
		conclude(sync, reconcile_save(&sync->list)))
		drop_page(sync);
}

/*
 * The list is complete: have those asked for that it does not show. Where there
 * is nobody, or where it cannot be believed, the run is completed.
 */
static void
reconcile(Sync *sync)
{
	Run		   *run = sync->run;
	ClinikoCursor *cursor = &sync->list.cursor;

	if (cursor->part != CLINIKO_MISSING &&
		(run->state.missing > 0 || cursor->order == CLINIKO_BY_CREATION))
	{
		run->step = RUN_RECONCILING;
		if (!conclude(sync, reconcile_begin(&sync->list)))
			return;
	}
	if (run->state.missing > run_missing_limit(run))
	{
		ereport(LOG,
				(errmsg("sync " INT64_FORMAT ": more than " INT64_FORMAT " patients are missing "
						"from Cliniko's list; none was marked as deleted",
						run->id, run_missing_limit(run))));
		run_add_error(run, "More than " INT64_FORMAT " patients are missing from Cliniko's list: "
					  "that is not believed, and %s was marked as deleted. If they were deleted "
					  "in Cliniko on purpose, raise clinisync.max_missing_percent, sync again, and "
					  "set it back.", run_missing_limit(run),
					  run->state.deleted > 0 ? "nobody else" : "none");
		run->step = RUN_COMPLETED;
	}
	else if (run->state.missing == 0)
		run->step = RUN_COMPLETED;
	else if (!conclude(sync, reconcile_name_next(&sync->list)))
		return;
	else if (sync->list.nnamed == 0)
	{
		/* those who are not marked were not missing after all */
		run->state.missing = run->state.deleted;
		run->step = RUN_COMPLETED;
	}
	else
		sync->patients = (Fetch) {.state = FETCH_DUE};
}

/* All pages are stored: decide how the run ends. */
static void
finish(Sync *sync)
{
	Run		   *run = sync->run;

	if (run_accounted(run) != run->found)
		fail(sync, CLINIKO_INCOMPLETE_ENUMERATION, NULL);
	else if (run->found > 0 && run_success(run) == 0)
		fail(sync, CLINIKO_DATABASE_CONSTRAINT_ERROR, NULL);
	else if (run->state.cursor.changed_since[0] == '\0')
		reconcile(sync);
	else
		run->step = RUN_COMPLETED;
}

/* The run is over and recorded: delete a few old logs of its organisation a turn. */
static void
prune_logs(Sync *sync)
{
	int			pruned = 0;

	if (clinisync_log_retention > 0 && store_prune_logs(sync->run, &pruned) == TRANSACTION_FAILED)
		ereport(LOG,
				(errmsg("logs older than clinisync.log_retention could not be deleted: SQLSTATE %s",
						transaction_last_sqlstate())));
	sync->ended = (pruned == 0);
}

/* Take up answers and send requests, as far as they are due. */
void
sync_fetch(Sync *sync)
{
	if (sync->ended || ending(sync))
		return;
	if (sync->whose.state == FETCH_ANSWERED)
		take_account(sync);
	if (sync->patients.state == FETCH_ANSWERED && sync->page == NULL)
		take_patients(sync);
	send_request(sync, &sync->whose);
	send_request(sync, &sync->patients);
}

/* Whether there is something to commit, if it may be done at this time. */
static bool
has_to_store(const Sync *sync)
{
	if (ending(sync))
		return true;
	return sync->whose.state == FETCH_FINISHED &&
		(sync->page || sync->patients.state == FETCH_FINISHED);
}

/* Store one batch, or whatever else the run has to commit. */
void
sync_store(Sync *sync)
{
	if (sync->ended || !has_to_store(sync) || GetCurrentTimestamp() < sync->store_at)
		return;
	if (sync->page == NULL && !ending(sync))
		finish(sync);
	if (sync->recorded)
		prune_logs(sync);
	else if (ending(sync))
		sync->recorded = save_progress(sync);
	else if (sync->page && sync->list.cursor.part == CLINIKO_MISSING)
		store_confirmation(sync);
	else if (sync->page && !sync->announced)
	{
		sync->run->step = RUN_FETCHING;
		sync->announced = save_progress(sync);
	}
	else if (sync->page)
		store_batch(sync);
}

/* When a fetch wants the sync to be called again, unless its transfer ends before. */
static TimestampTz
fetch_due(const Fetch *fetch, bool can_take)
{
	switch (fetch->state)
	{
		case FETCH_DUE:
			return fetch->at;
		case FETCH_ANSWERED:
			return can_take ? 0 : DT_NOEND;
		default:
			return DT_NOEND;
	}
}

/* When the sync wants to be called again, unless a transfer of its ends before. */
TimestampTz
sync_due(const Sync *sync)
{
	TimestampTz due = has_to_store(sync) ? sync->store_at : DT_NOEND;

	if (sync->ended)
		return 0;
	if (ending(sync))
		return due;
	due = Min(due, fetch_due(&sync->whose, true));
	return Min(due, fetch_due(&sync->patients, sync->page == NULL));
}
