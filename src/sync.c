/*
 * sync.c
 *		One run as a state machine.
 *
 * A run does two things at once: it fetches pages, several of them side by side,
 * while it stores others. They meet where a page that has arrived is taken up,
 * which happens only while less than a batch waits to be stored.
 *
 *	a request			event					becomes
 *	wanted				no limit forbids it		under way	(of no more than are allowed)
 *	under way			the transfer ended		answered
 *	answered			a page, and its turn	taken up, and stored
 *	answered			a passing failure		wanted, later	(step "waiting")
 *	answered			any other failure		the run fails
 *
 *	the list			event					becomes
 *	being fetched		its last page			fetched
 *	fetched				all pages are stored	being fetched	(who is missing is asked for)
 *	fetched				nobody is missing		the run is completed
 *
 * Which account the key belongs to is asked for at the same time, once, and
 * nothing is stored before that is known.
 *
 * Storing takes one batch of the pages a turn, so that no run holds up another.
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

#include "batch.h"
#include "budget.h"
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

/* What is known of the account that the key belongs to. */
typedef enum AccountCheck
{
	ACCOUNT_UNKNOWN,
	ACCOUNT_ASKED,
	ACCOUNT_KNOWN
} AccountCheck;

/* A request that is under way, or whose answer waits to be taken up. */
typedef struct Request
{
	Transfer   *transfer;
	int			number;			/* the enumeration's, or ACCOUNT_REQUEST */
	bool		answered;
} Request;

#define ACCOUNT_REQUEST 0

struct Sync
{
	Run		   *run;
	ClinikoAccount *account;
	Transport  *transport;

	Request		requests[MOST_REQUESTS_IN_FLIGHT];
	int			nrequests;
	int			most_requests;
	TimestampTz ask_at;			/* ask for nothing before this, */
	const char *ask_for;		/* waiting for what */
	int			failures;		/* in a row */
	TimestampTz progress_at;	/* when Cliniko last gave a page */

	AccountCheck account_check;
	Enumeration list;			/* which patients the next requests ask for */
	bool		fetched;		/* all that the list says, for now */
	int			disorders;		/* pages whose ids were not in order */
	int			incomplete;		/* lists by creation that lacked patients at their end */

	TimestampTz store_at;		/* not before this */
	int			store_failures;	/* transactions in a row that met a busy database */
	TimestampTz busy_since;		/* when the first of them did */

	bool		announced;		/* the size of the job was committed */
	bool		recorded;		/* so was its end: what is left is housekeeping */
	bool		ended;			/* nothing is left to do */
	bool		abandoned;		/* it ended, but its row may not say so */

	Budget	   *budget;			/* the clinic's; NULL: no limit */
};

/* Take a request out of those under way. The caller releases its transfer. */
static Request
remove_request(Sync *sync, int i)
{
	Request		request = sync->requests[i];

	sync->nrequests--;
	memmove(&sync->requests[i], &sync->requests[i + 1],
			sizeof(Request) * (sync->nrequests - i));
	return request;
}

/* Drop the requests whose answers are of no use any more. */
static void
drop_requests(Sync *sync)
{
	for (int i = sync->nrequests - 1; i >= 0; i--)
	{
		int			number = sync->requests[i].number;
		bool		wanted = number == ACCOUNT_REQUEST ||
			(!sync->fetched && enumeration_expects(&sync->list, number));

		if (!wanted)
			transfer_release(sync->transport, remove_request(sync, i).transfer);
	}
}

/* Ask for nothing more. */
static void
stop_fetching(Sync *sync)
{
	while (sync->nrequests > 0)
		transfer_release(sync->transport, remove_request(sync, 0).transfer);
	sync->account_check = ACCOUNT_KNOWN;
	sync->fetched = true;
}

static void
fail(Sync *sync, ClinikoError error, const char *detail)
{
	run_fail(sync->run, error, detail);
	ereport(LOG,
			(errmsg("sync " INT64_FORMAT " has failed: %s",
					sync->run->id, cliniko_error_code(error))));
	enumeration_drop(&sync->list);
	stop_fetching(sync);
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

/* Draw the conclusion from how a transaction ended. Returns if it committed. */
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

/* Nothing is being done until a moment: say so, and why, unless that was said. */
static void
show_waiting(Sync *sync, TimestampTz until, const char *reason)
{
	Run		   *run = sync->run;

	if (sync->list.ntaken > 0 || sync->nrequests > 0 ||
		(run->step == RUN_WAITING && run->waiting_until == until))
		return;
	run->step = RUN_WAITING;
	run->waiting_until = until;
	run->waiting_for = reason;
	(void) save_progress(sync);
}

/* Show the wait that the limit of our own demands, unless it is too short to be seen. */
static void
show_budget(Sync *sync, TimestampTz now)
{
	TimestampTz allowed = budget_allows_at(sync->budget);

	if (allowed - now >= VISIBLE_PAUSE_MS * 1000)
		show_waiting(sync, allowed, "the limit of clinisync.requests_per_minute");
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
	else if (run->key_problem)
		fail(sync, CLINIKO_CREDENTIALS_UNREADABLE, run->key_problem);
	else if ((sync->account = cliniko_account(run->api_key)) == NULL)
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
	sync->fetched = sync->list.cursor.part == CLINIKO_MISSING;
	sync->most_requests = clinisync_requests_in_flight;
	sync->progress_at = run->began_at = GetCurrentTimestamp();
	sync->budget = budget_open(run->organization_id, clinisync_requests_per_minute);
	run->step = RUN_CONNECTING;
	check_prerequisites(sync);
	MemoryContextSwitchTo(old_context);
	if (!ending(sync))
		(void) save_progress(sync);
	/* the run before may have used up what there is; until then it is not our turn */
	if (!ending(sync))
		show_budget(sync, GetCurrentTimestamp());
	return sync;
}

void
sync_free(Sync *sync)
{
	enumeration_drop(&sync->list);
	stop_fetching(sync);
	budget_close(sync->budget);
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

/* Whether there is something to ask for, if it may be done at this time. */
static bool
has_to_ask(const Sync *sync)
{
	return sync->nrequests < sync->most_requests &&
		(sync->account_check == ACCOUNT_UNKNOWN ||
		 (!sync->fetched && enumeration_wants(&sync->list)));
}

static void
send_request(Sync *sync)
{
	Request    *request = &sync->requests[sync->nrequests];
	char	   *url;

	if (sync->account_check == ACCOUNT_UNKNOWN)
	{
		request->number = ACCOUNT_REQUEST;
		sync->account_check = ACCOUNT_ASKED;
		url = cliniko_account_url(sync->account);
	}
	else
	{
		request->number = enumeration_ask(&sync->list);
		url = enumeration_url(&sync->list, sync->account, request->number);
	}
	request->answered = false;
	request->transfer = cliniko_get(sync->transport, sync->account, url, sync);
	sync->nrequests++;
	pfree(url);
}

/* Send all requests that are of use and due, unless a limit says to wait. */
static void
send_requests(Sync *sync)
{
	while (!sync->ended && !ending(sync) && has_to_ask(sync))
	{
		TimestampTz now = GetCurrentTimestamp();

		if (now < sync->ask_at)
		{
			show_waiting(sync, sync->ask_at, sync->ask_for);
			return;
		}
		if (now < budget_allows_at(sync->budget))
		{
			show_budget(sync, now);
			return;
		}
		budget_spend(sync->budget, now);
		send_request(sync);
	}
}

/*
 * Ask again after a pause, or give up when clinisync.retry_window has passed
 * without a page. wait_ms: what Cliniko asked for, or 0.
 */
static void
try_again(Sync *sync, int number, ClinikoError error, long wait_ms, const char *detail)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz give_up_at = sync->progress_at + clinisync_retry_window * USECS_PER_SEC;

	if (now >= give_up_at)
	{
		fail(sync, error, detail);
		return;
	}
	if (number == ACCOUNT_REQUEST)
		sync->account_check = ACCOUNT_UNKNOWN;
	else
		enumeration_take_back(&sync->list, number);
	sync->run->retries++;
	if (wait_ms == 0)
	{
		double		backoff = FIRST_BACKOFF_MS * (double) (1 << Min(sync->failures, 10));

		/* of requests side by side, the first that fails decides on the pause */
		if (now < sync->ask_at)
			return;
		backoff = Min(backoff, LONGEST_BACKOFF_MS);
		wait_ms = (long) (backoff * (0.5 + 0.5 * pg_prng_double(&pg_global_prng_state)));
	}
	sync->failures++;
	sync->ask_at = Max(sync->ask_at, Min(now + (TimestampTz) wait_ms * 1000, give_up_at));
	sync->ask_for = error == CLINIKO_RATE_LIMITED ? "Cliniko's request limit"
		: "Cliniko to answer again";
}

/* Cliniko does not honor sort=id, or its list lacks patients. */
static void
start_over(Sync *sync)
{
	enumeration_start_over(&sync->list);
	drop_requests(sync);
}

/* Take up a page, unless it contradicts what is known. */
static void
take_page(Sync *sync, int number, ClinikoPage *page)
{
	bool		by_id = sync->list.cursor.order == CLINIKO_BY_ID;
	bool		named = sync->list.cursor.part == CLINIKO_MISSING;
	bool		unsorted = by_id && !named && page->nrecords > 0;
	PageFit		fit;

	if (named)
		fit = enumeration_confirm(&sync->list, page) ? PAGE_LAST : PAGE_CONTRADICTION;
	else
		fit = enumeration_take(&sync->list, number, page);
	if (fit == PAGE_MORE || fit == PAGE_LAST)
	{
		sync->fetched = (fit == PAGE_LAST);
		if (sync->fetched || page->nrecords > 0)
		{
			sync->failures = 0;
			sync->progress_at = GetCurrentTimestamp();
		}
		return;
	}
	cliniko_free_page(page);
	/* by creation, the list is begun anew only once: there is no other order to try */
	if (fit == PAGE_DISORDER && !by_id && sync->incomplete++ > 0)
		fail(sync, CLINIKO_INCOMPLETE_ENUMERATION, NULL);
	/* a page may be unsorted by mistake once, if there is time to try again */
	else if (fit == PAGE_DISORDER ||
		(unsorted && (sync->disorders++ > 0 || clinisync_retry_window == 0)))
		start_over(sync);
	else
		try_again(sync, number, CLINIKO_INCOMPLETE_ENUMERATION, 0, NULL);
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
take_patients(Sync *sync, int number, Transfer *transfer)
{
	ClinikoVerdict verdict = cliniko_judge(transfer);
	ClinikoPage *page = NULL;
	char	   *detail;
	bool		by_id = sync->list.cursor.order == CLINIKO_BY_ID &&
		sync->list.cursor.part != CLINIKO_MISSING;

	if (verdict.error == CLINIKO_NO_ERROR)
	{
		page = cliniko_parse_page(sync->run->context, transfer);
		if (page == NULL)
			verdict = not_usable;
	}
	detail = note_answer(sync->run, transfer, verdict);
	transfer_release(sync->transport, transfer);

	if (page != NULL)
		take_page(sync, number, page);
	else if (verdict.passing)
		try_again(sync, number, verdict.error, verdict.wait_ms, detail);
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
		sync->account_check = ACCOUNT_KNOWN;
	else if (!ending(sync))
	{
		sync->account_check = ACCOUNT_UNKNOWN;
		sync->ask_at = Max(sync->ask_at, sync->store_at);
		sync->ask_for = "the database";
	}
}

/*
 * Make something of the answer which account it is. A key whose role may not
 * know that is not told, and cannot be checked.
 */
static void
take_account(Sync *sync, Transfer *transfer)
{
	ClinikoVerdict verdict = cliniko_judge(transfer);
	char	   *id = NULL;
	char	   *name;
	char	   *detail;

	if (verdict.error == CLINIKO_NO_ERROR && !cliniko_read_account(transfer, &id, &name))
		verdict = not_usable;
	detail = note_answer(sync->run, transfer, verdict);
	transfer_release(sync->transport, transfer);

	if (verdict.passing)
		try_again(sync, ACCOUNT_REQUEST, verdict.error, verdict.wait_ms, detail);
	else if (verdict.error == CLINIKO_AUTH_FAILED)
		fail(sync, verdict.error, detail);
	else
		check_account(sync, id);
}

/* The transfer has ended: it is one of the sync's. */
void
sync_answer(Sync *sync, Transfer *transfer)
{
	for (int i = 0; i < sync->nrequests; i++)
		sync->requests[i].answered |= sync->requests[i].transfer == transfer;
}

/* How many records a transaction takes: enough, but so that progress shows. */
static int
batch_size(const Run *run)
{
	return Max(clinisync_batch_size, (int) Min(run->found / 10, INT_MAX));
}

/* Whether an answer is to be taken up now. */
static bool
can_take(const Sync *sync, const Request *request)
{
	return request->answered && (request->number == ACCOUNT_REQUEST ||
								 enumeration_takes_more(&sync->list, batch_size(sync->run)));
}

/* Take up what was answered. */
static void
take_answers(Sync *sync)
{
	int			i = 0;

	while (i < sync->nrequests)
	{
		Request		request;

		if (!can_take(sync, &sync->requests[i]))
		{
			i++;
			continue;
		}
		request = remove_request(sync, i);
		if (request.number == ACCOUNT_REQUEST)
			take_account(sync, request.transfer);
		else
			take_patients(sync, request.number, request.transfer);
		drop_requests(sync);
		i = 0;
	}
}

/*
 * Storing
 */

/* Store the next batch. */
static void
store_batch(Sync *sync)
{
	Run		   *run = sync->run;
	RunState	before = run->state;
	TimestampTz start = GetCurrentTimestamp();
	Passage		passage;
	TransactionResult result;

	enumeration_pass(&sync->list, batch_size(run), &passage);
	run->state.pages += passage.npages;
	run->step = RUN_STORING;
	result = batch_save(run, &passage);
	run->database_us += GetCurrentTimestamp() - start;
	if (result != TRANSACTION_DONE)
		run->state = before;	/* also what was noted above */
	if (!conclude(sync, result))
		return;
	enumeration_passed(&sync->list, &passage, &before.cursor);
	send_requests(sync);		/* or say what they wait for */
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
		enumeration_drop(&sync->list);
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
		sync->fetched = false;
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
	take_answers(sync);
	send_requests(sync);
}

/* Whether there is something to commit, if it may be done at this time. */
static bool
has_to_store(const Sync *sync)
{
	if (ending(sync))
		return true;
	return sync->account_check == ACCOUNT_KNOWN && (sync->list.ntaken > 0 || sync->fetched);
}

/* Store one batch, or whatever else the run has to commit. */
void
sync_store(Sync *sync)
{
	if (sync->ended || !has_to_store(sync) || GetCurrentTimestamp() < sync->store_at)
		return;
	if (sync->list.ntaken == 0 && !ending(sync))
		finish(sync);
	if (sync->recorded)
		prune_logs(sync);
	else if (ending(sync))
		sync->recorded = save_progress(sync);
	else if (sync->list.ntaken > 0 && sync->list.cursor.part == CLINIKO_MISSING)
		store_confirmation(sync);
	else if (sync->list.ntaken > 0 && !sync->announced)
	{
		sync->run->step = RUN_FETCHING;
		sync->announced = save_progress(sync);
	}
	else if (sync->list.ntaken > 0)
		store_batch(sync);
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
	for (int i = 0; i < sync->nrequests; i++)
	{
		if (can_take(sync, &sync->requests[i]))
			return 0;
	}
	return has_to_ask(sync) ? Min(due, Max(sync->ask_at, budget_allows_at(sync->budget))) : due;
}
