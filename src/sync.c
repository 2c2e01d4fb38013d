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
 *	FINISHED		all pages are stored	the run is completed
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

struct Sync
{
	Run		   *run;
	ClinikoAccount *account;
	Transport  *transport;

	FetchState	fetch;
	Enumeration list;			/* what the next request asks for */
	Transfer   *transfer;		/* while UNDER_WAY or ANSWERED */
	TimestampTz fetch_at;		/* while DUE: not before this */
	int			failures;		/* in a row */
	int			disorders;		/* pages whose ids did not rise */
	TimestampTz progress_at;	/* when Cliniko last gave a page */

	ClinikoPage *page;			/* being stored, or NULL */
	int			next_record;
	TimestampTz store_at;		/* not before this */
	int			store_failures;	/* transactions in a row that met a busy database */
	TimestampTz busy_since;		/* when the first of them did */

	bool		announced;		/* the size of the job was committed */
	bool		ended;			/* nothing is left to do */
	bool		abandoned;		/* it ended, but its row may not say so */

	TimestampTz *sent;			/* when the last requests left, as a ring */
	int			sent_size;		/* requests allowed in a minute; 0: no limit */
	int			sent_next;
};

static void
fail(Sync *sync, ClinikoError error, const char *detail)
{
	run_fail(sync->run, error, detail);
	if (sync->page)
	{
		cliniko_free_page(sync->page);
		sync->page = NULL;
	}
	if (sync->transfer)
	{
		transfer_release(sync->transport, sync->transfer);
		sync->transfer = NULL;
	}
	sync->fetch = FETCH_FINISHED;
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
		sync->busy_since = now;
	sync->store_at = TimestampTzPlusMilliseconds(now, pause_ms);
	if (ending(sync))
		return;
	if (now - sync->busy_since >= clinisync_retry_window * USECS_PER_SEC)
	{
		fail(sync, CLINIKO_DATABASE_ERROR, psprintf("SQLSTATE %s.", store_last_sqlstate()));
		return;
	}
	/* the log may be writable even if the patients are not */
	run->step = RUN_WAITING;
	run->waiting_until = sync->store_at;
	run->waiting_for = "the database";
	(void) store_save_progress(run);
}

/* Draw the conclusion from how a transaction ended. Answers if it committed. */
static bool
conclude(Sync *sync, StoreResult result)
{
	switch (result)
	{
		case STORE_DONE:
			sync->store_failures = 0;
			return true;
		case STORE_NOT_RUNNING:
			sync->ended = true;
			break;
		case STORE_UNINSTALLED:
			fail(sync, CLINIKO_CONFIGURATION_ERROR,
				 "The extension clinisync, or one of its tables, is gone or out of date: "
				 "run CREATE EXTENSION clinisync, or SELECT cliniko_setup().");
			(void) store_save_farewell(sync->run);
			sync->ended = true;
			break;
		case STORE_BUSY:
			wait_for_database(sync);
			break;
		case STORE_FAILED:
			ereport(LOG,
					(errmsg("sync " INT64_FORMAT " could not be stored: SQLSTATE %s",
							sync->run->id, store_last_sqlstate())));
			/* when not even the end can be written, the row stays for another try */
			if (ending(sync))
				sync->ended = sync->abandoned = true;
			else
				fail(sync, CLINIKO_DATABASE_ERROR,
					 psprintf("SQLSTATE %s.", store_last_sqlstate()));
			break;
	}
	return false;
}

/* Commit what the run says of itself, counting the time that it takes. */
static bool
save_progress(Sync *sync)
{
	TimestampTz start = GetCurrentTimestamp();
	StoreResult result = store_save_progress(sync->run);

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
		   StoreResult *result)
{
	MemoryContext old_context;
	Run		   *run;
	Sync	   *sync;

	*result = store_load_run(parent, key, &run);
	if (*result != STORE_DONE)
		return NULL;
	old_context = MemoryContextSwitchTo(run->context);
	sync = palloc0(sizeof(Sync));
	sync->run = run;
	sync->transport = transport;
	enumeration_begin(&sync->list, run, clinisync_page_size);
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
	if (sync->transfer)
		transfer_release(sync->transport, sync->transfer);
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
wait_until(Sync *sync, TimestampTz moment, const char *reason)
{
	Run		   *run = sync->run;

	sync->fetch = FETCH_DUE;
	sync->fetch_at = moment;
	run->step = RUN_WAITING;
	run->waiting_until = moment;
	run->waiting_for = reason;
	(void) save_progress(sync);
}

/* Send the request that is due, unless a limit says to wait. */
static void
send_request(Sync *sync)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz allowed = allowed_at(sync);
	char	   *url;

	if (now < allowed)
	{
		/* while there is a page to store, that is what the run does */
		if (sync->page != NULL)
			return;
		if (allowed - now >= VISIBLE_PAUSE_MS * 1000)
			wait_until(sync, allowed, "the limit of clinisync.requests_per_minute");
		else
			sync->fetch_at = allowed;
		return;
	}
	if (sync->sent_size > 0)
	{
		sync->sent[sync->sent_next] = now;
		sync->sent_next = (sync->sent_next + 1) % sync->sent_size;
	}
	url = cliniko_patients_url(sync->account, &sync->list.cursor, sync->list.page_size);
	sync->transfer = cliniko_get(sync->transport, sync->account, url, sync);
	sync->fetch = FETCH_UNDER_WAY;
	pfree(url);
}

/*
 * Try again after a pause, or give up when clinisync.retry_window has passed
 * without a page. wait_ms: what Cliniko asked for, or 0.
 */
static void
try_again(Sync *sync, ClinikoError error, long wait_ms, const char *detail)
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
		double		backoff = FIRST_BACKOFF_MS * (double) (1 << Min(sync->failures, 10));

		backoff = Min(backoff, LONGEST_BACKOFF_MS);
		wait_ms = (long) (backoff * (0.5 + 0.5 * pg_prng_double(&pg_global_prng_state)));
	}
	sync->failures++;
	wait_until(sync, Min(now + (TimestampTz) wait_ms * 1000, give_up_at),
			   error == CLINIKO_RATE_LIMITED ? "Cliniko's request limit"
			   : "Cliniko to answer again");
}

/* Cliniko does not honour sort=id. */
static void
start_over(Sync *sync)
{
	enumeration_start_over(&sync->list);
	sync->fetch = FETCH_DUE;
	sync->fetch_at = 0;
}

/* Take up a page, unless it contradicts what is known. */
static void
take_page(Sync *sync, ClinikoPage *page)
{
	bool		by_id = sync->list.cursor.order == CLINIKO_BY_ID;
	PageFit		fit = enumeration_take(&sync->list, page);

	if (fit == PAGE_CONTRADICTION)
	{
		bool		disorder = by_id && page->nrecords > 0;

		cliniko_free_page(page);
		if (disorder && sync->disorders++ > 0)
			start_over(sync);
		else
			try_again(sync, CLINIKO_INCOMPLETE_ENUMERATION, 0, NULL);
		return;
	}
	sync->fetch = fit == PAGE_LAST ? FETCH_FINISHED : FETCH_DUE;
	sync->fetch_at = 0;
	if (page->nrecords > 0)
	{
		sync->failures = 0;
		sync->progress_at = GetCurrentTimestamp();
	}
	sync->page = page;
	sync->next_record = 0;
}

/* Make something of an answer. */
static void
take_answer(Sync *sync)
{
	Run		   *run = sync->run;
	Transfer   *transfer = sync->transfer;
	ClinikoVerdict verdict = cliniko_judge(transfer);
	ClinikoPage *page = NULL;
	const char *reason = transfer->reason;
	long		status = transfer->status;
	char	   *detail = NULL;

	run->requests++;
	run->api_us += transfer->elapsed_us;
	if (verdict.error == CLINIKO_NO_ERROR)
	{
		page = cliniko_parse_page(run->context, transfer);
		if (page == NULL)
			verdict = (ClinikoVerdict) {CLINIKO_UNAVAILABLE, true, 0};
	}
	if (transfer->outcome == TRANSFER_BROKEN)
		detail = psprintf("%s.", reason);
	else if (verdict.error == CLINIKO_BAD_REQUEST || verdict.error == CLINIKO_UNAVAILABLE)
		detail = psprintf("HTTP status %ld.", status);
	transfer_release(sync->transport, transfer);
	sync->transfer = NULL;
	run->rate_limited += verdict.error == CLINIKO_RATE_LIMITED;

	if (page != NULL)
		take_page(sync, page);
	else if (verdict.passing)
		try_again(sync, verdict.error, verdict.wait_ms, detail);
	else if (verdict.error == CLINIKO_BAD_REQUEST && sync->list.cursor.order == CLINIKO_BY_ID)
		start_over(sync);	/* "Sort parameter must be a valid column name" */
	else
		fail(sync, verdict.error, detail);
}

/* The sync's transfer has ended. */
void
sync_answer(Sync *sync, Transfer *transfer)
{
	Assert(transfer == sync->transfer);
	sync->fetch = FETCH_ANSWERED;
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
	StoreResult result;

	run->state.pages += page_done;
	run->step = RUN_STORING;
	result = store_save_batch(run, page->records + sync->next_record, count, &cursor);
	run->database_us += GetCurrentTimestamp() - start;
	if (result != STORE_DONE)
		run->state = before;	/* also what was noted above */
	if (!conclude(sync, result))
		return;
	sync->next_record += count;
	if (page_done)
	{
		enumeration_forget(&sync->list, page, &before.cursor);
		cliniko_free_page(page);
		sync->page = NULL;
	}
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
	else
		run->step = RUN_COMPLETED;
}

/* Take up an answer and send the next request, as far as they are due. */
void
sync_fetch(Sync *sync)
{
	if (sync->ended || ending(sync))
		return;
	if (sync->fetch == FETCH_ANSWERED && sync->page == NULL)
		take_answer(sync);
	if (sync->fetch == FETCH_DUE && !sync->ended && GetCurrentTimestamp() >= sync->fetch_at)
		send_request(sync);
}

/* Store one batch, or whatever else the run has to commit. */
void
sync_store(Sync *sync)
{
	if (sync->ended || GetCurrentTimestamp() < sync->store_at)
		return;
	if (sync->page == NULL && sync->fetch == FETCH_FINISHED && !ending(sync))
		finish(sync);
	if (ending(sync))
	{
		if (save_progress(sync))
			sync->ended = true;
	}
	else if (sync->page && !sync->announced)
	{
		sync->run->step = RUN_FETCHING;
		sync->announced = save_progress(sync);
	}
	else if (sync->page)
		store_batch(sync);
}

/* When the sync wants to be called again, unless its transfer ends before. */
TimestampTz
sync_due(const Sync *sync)
{
	if (sync->ended)
		return 0;
	if (ending(sync) || sync->page || sync->fetch == FETCH_FINISHED)
		return sync->store_at;
	switch (sync->fetch)
	{
		case FETCH_DUE:
			return sync->fetch_at;
		case FETCH_UNDER_WAY:
			return DT_NOEND;
		default:
			return 0;
	}
}
