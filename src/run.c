/*
 * run.c
 *		What is known of one run, and how it is told.
 *
 * A run has three faces, all JSON: sync_logs.metadata, which front ends read
 * (its keys are the callers' contract), the payload of NOTIFY, and
 * sync_logs.checkpoint, from which another worker resumes it. They are written
 * here, and the last is read here, and nowhere else.
 *
 * This file knows neither SPI nor the wire. Everything in a Run lives in its
 * context and ends with run_free(); JSON is palloc'ed in the current one.
 */
#include "postgres.h"

#include <math.h>

#include "commands/async.h"
#include "pgtime.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clinisync.h"
#include "run.h"
#include "secret.h"

#define NOTIFY_CHANNEL "clinisync"

/* So many patients may be missing from a list however short it is. */
#define LEAST_MISSING_LIMIT 20

/* How far a run of changes can be, in percent, while more may yet be counted. */
#define ALMOST_ALL 99.9

static const char *const steps[] = {
	[RUN_QUEUED] = "queued",
	[RUN_CONNECTING] = "connecting",
	[RUN_FETCHING] = "fetching",
	[RUN_STORING] = "storing",
	[RUN_RECONCILING] = "reconciling",
	[RUN_WAITING] = "waiting",
	[RUN_COMPLETED] = "completed",
	[RUN_FAILED] = "failed",
};

/* What CLINIKO_EVERYONE needs no name for, in the checkpoint. */
static const char *const parts[] = {
	[CLINIKO_EVERYONE] = NULL,
	[CLINIKO_UPDATED] = "updated",
	[CLINIKO_ARCHIVED] = "archived",
	[CLINIKO_MISSING] = "missing",
};

/* Counters that a resumed run takes over, by their name in the checkpoint. */
static const struct
{
	const char *name;
	size_t		offset;
}			counters[] = {
	{"found", offsetof(Run, found)},
	{"pages", offsetof(Run, state.pages)},
	{"inserted", offsetof(Run, state.inserted)},
	{"updated", offsetof(Run, state.updated)},
	{"unchanged", offsetof(Run, state.unchanged)},
	{"failed", offsetof(Run, state.failed)},
	{"archived", offsetof(Run, state.archived)},
	{"restored", offsetof(Run, state.restored)},
	{"missing", offsetof(Run, state.missing)},
	{"deleted", offsetof(Run, state.deleted)},
	{"falls", offsetof(Run, state.falls)},
	{"kept", offsetof(Run, state.kept)},
	{"witness", offsetof(Run, state.witnesses[0])},
	{"other_witness", offsetof(Run, state.witnesses[1])},
	{"before", offsetof(Run, state.cursor.before)},
	{"requests", offsetof(Run, requests)},
	{"retries", offsetof(Run, retries)},
	{"rate_limited", offsetof(Run, rate_limited)},
	{"api_us", offsetof(Run, api_us)},
	{"database_us", offsetof(Run, database_us)},
};

static int64 *
counter(const Run *run, int i)
{
	return (int64 *) ((char *) run + counters[i].offset);
}

/* Where an enumeration begins: with everyone, or with what changed since a moment. */
static void
begin_cursor(ClinikoCursor *cursor, const char *changed_since)
{
	memset(cursor, 0, sizeof(*cursor));
	strlcpy(cursor->changed_since, changed_since, CLINIKO_TIME_SIZE);
	cursor->part = changed_since[0] != '\0' ? CLINIKO_UPDATED : CLINIKO_EVERYONE;
	cursor->ranges[0].below_id = PG_INT64_MAX;
}

/* Make a run of which nothing is known yet. */
Run *
run_create(MemoryContext parent)
{
	MemoryContext context = AllocSetContextCreate(parent, "clinisync run",
												  ALLOCSET_DEFAULT_SIZES);
	Run		   *run = MemoryContextAllocZero(context, sizeof(Run));

	run->context = context;
	run->errors = MemoryContextAllocZero(context, sizeof(char *) * RUN_MAX_ERRORS);
	run->found = -1;
	begin_cursor(&run->state.cursor, "");
	return run;
}

/* Free a run; its API key is overwritten first. */
void
run_free(Run *run)
{
	secret_wipe(run->api_key);
	MemoryContextDelete(run->context);
}

/* Patients that are in the table as Cliniko has them. */
int64
run_success(const Run *run)
{
	return run->state.inserted + run->state.updated + run->state.unchanged;
}

/* Patients of which it is known what became of them. */
int64
run_accounted(const Run *run)
{
	return run_success(run) + run->state.failed;
}

/* Keep a sentence on a failure, without any value of a patient's in it. */
void
run_add_error(Run *run, const char *format, ...)
{
	MemoryContext old_context;
	StringInfoData text;

	if (run->state.nerrors >= RUN_MAX_ERRORS)
		return;
	old_context = MemoryContextSwitchTo(run->context);
	initStringInfo(&text);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, format);
		needed = appendStringInfoVA(&text, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&text, needed);
	}
	/* a batch that is repeated finds its errors here again */
	if (run->errors[run->state.nerrors])
		pfree(run->errors[run->state.nerrors]);
	run->errors[run->state.nerrors++] = text.data;
	MemoryContextSwitchTo(old_context);
}

bool
run_has_seen(const Run *run, int64 id)
{
	for (int i = 0; i < run->state.nseen; i++)
	{
		if (run->seen[i] == id)
			return true;
	}
	return false;
}

void
run_add_seen(Run *run, int64 id)
{
	if (run->state.nseen == run->seen_size)
	{
		int			larger = Max(run->seen_size * 2, 128);
		int64	   *seen = MemoryContextAlloc(run->context, sizeof(int64) * larger);

		if (run->seen)
		{
			memcpy(seen, run->seen, sizeof(int64) * run->seen_size);
			pfree(run->seen);
		}
		run->seen = seen;
		run->seen_size = larger;
	}
	run->seen[run->state.nseen++] = id;
}

/* Decide that a run has failed. detail: one more fact, or NULL. */
void
run_fail(Run *run, ClinikoError error, const char *detail)
{
	MemoryContext old_context = MemoryContextSwitchTo(run->context);

	run->error = error;
	run->step = RUN_FAILED;
	run->waiting_until = 0;
	run->error_details = cliniko_error_details(error, detail);
	MemoryContextSwitchTo(old_context);
}

/* Enumerate from the beginning, in another order: everything is counted anew. */
void
run_start_over(Run *run, ClinikoOrder order)
{
	RunState	fresh = {.percent = run->state.percent};

	begin_cursor(&fresh.cursor, run->state.cursor.changed_since);
	fresh.cursor.order = order;
	run->state = fresh;
	run->began_at = GetCurrentTimestamp();
	run->began_with = 0;
	run->found = -1;
}

/* Patients a second since this worker took the run up. */
static double
run_rate(const Run *run)
{
	double		seconds = (GetCurrentTimestamp() - run->began_at) / 1000000.0;

	return seconds > 0 ? (run_accounted(run) - run->began_with) / seconds : 0;
}

/*
 * How many patients may be missing from Cliniko's list and yet be believed to
 * be deleted there: an error must never shrink the table. While the list is
 * being stored, that goes by how long it is said to be.
 */
int64
run_missing_limit(const Run *run)
{
	int64		percent = clinisync_max_missing_percent;
	int64		listed = Max(run->found, run_accounted(run));

	/* of those that are listed and those that are missing, taken together */
	return percent == 100 ? PG_INT64_MAX - 1
		: Max(LEAST_MISSING_LIMIT, listed * percent / (100 - percent));
}

/* Raise the percentage to where the counters stand. */
void
run_update_percent(Run *run)
{
	double		percent = run->found > 0 ? 100.0 * run_accounted(run) / run->found : 0;

	percent = Min(percent, run->state.cursor.changed_since[0] != '\0' ? ALMOST_ALL : 100);
	if (run->step == RUN_COMPLETED)
		percent = 100;
	percent = floor(percent * 10) / 10;
	run->state.percent = Max(run->state.percent, percent);
}

/* How full the queue of notifications, which all databases share, may be with ours. */
#define MOST_QUEUED 0.5

/* Tell who listens of a run, when the transaction commits. */
void
run_notify(const char *organization_id, int64 id, const char *status, double percent)
{
	StringInfoData payload;

	/* a session that listens and sleeps fills the queue: no run fails for that */
	if (clinisync_notify == NOTIFY_OFF ||
		DatumGetFloat8(DirectFunctionCall1(pg_notification_queue_usage, (Datum) 0)) > MOST_QUEUED)
		return;
	initStringInfo(&payload);
	appendStringInfoChar(&payload, '{');
	if (clinisync_notify == NOTIFY_ON)
	{
		appendStringInfoString(&payload, "\"organization_id\": ");
		escape_json(&payload, organization_id);
		appendStringInfo(&payload, ", \"sync_id\": " INT64_FORMAT ", ", id);
	}
	appendStringInfo(&payload, "\"status\": \"%s\", \"progress_percent\": %.1f}", status, percent);
	Async_Notify(NOTIFY_CHANNEL, payload.data);
}

/* "2 seconds", "1 minute", "3 hours" */
static void
append_span(StringInfo json, int64 seconds)
{
	static const struct
	{
		int64		seconds;
		const char *unit;
	}			units[] = {{3600, "hour"}, {60, "minute"}, {1, "second"}};
	int			i = 0;
	int64		count;

	/* the largest unit of which there are at least two, for a steady reading */
	while (i < lengthof(units) - 1 && seconds < 2 * units[i].seconds)
		i++;
	count = (seconds + units[i].seconds - 1) / units[i].seconds;
	appendStringInfo(json, "\"" INT64_FORMAT " %s%s\"", count, units[i].unit,
					 count == 1 ? "" : "s");
}

static void
append_time(StringInfo json, const char *key, TimestampTz moment)
{
	struct pg_tm tm;
	fsec_t		fraction;
	int			utc;

	/* as clinisync_utc() has it in SQL */
	if (timestamp2tm(moment, &utc, &tm, &fraction, NULL, pg_tzset("UTC")) != 0)
		elog(ERROR, "timestamp out of range");
	appendStringInfo(json, ", \"%s\": \"%04d-%02d-%02dT%02d:%02d:%02d.%03dZ\"", key,
					 tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
					 (int) (fraction / 1000));
}

/* What a run that is under way says of itself beyond the counters. */
static void
append_outlook(StringInfo json, Run *run)
{
	double		rate = run_rate(run);

	if (run->step == RUN_WAITING)
	{
		append_time(json, "waiting_until", run->waiting_until);
		appendStringInfo(json, ", \"waiting_for\": ");
		escape_json(json, run->waiting_for);
	}
	if (run->found < 0)
		return;
	appendStringInfo(json, ", \"patients_per_second\": %.0f", rate);
	if (rate > 0 && run->found > run_accounted(run))
	{
		appendStringInfoString(json, ", \"estimated_remaining\": ");
		append_span(json, (int64) ceil((run->found - run_accounted(run)) / rate));
	}
}

/* What a run that has ended says of itself. */
static void
append_outcome(StringInfo json, Run *run)
{
	int64		duration_us = GetCurrentTimestamp() - run->started_at;
	int64		missing = run->state.missing - run->state.deleted;

	appendStringInfo(json,
					 ", \"archived\": " INT64_FORMAT ", \"deleted\": " INT64_FORMAT
					 ", \"restored\": " INT64_FORMAT ", \"duration_ms\": " INT64_FORMAT
					 ", \"api_ms\": " INT64_FORMAT ", \"database_ms\": " INT64_FORMAT,
					 run->state.archived, run->state.deleted, run->state.restored, duration_us / 1000,
					 run->api_us / 1000, run->database_us / 1000);
	if (run->found >= 0)
		appendStringInfo(json, ", \"patients_per_second\": %.0f, \"success_rate\": %.1f",
						 run_rate(run),
						 run->found > 0 ? floor(1000.0 * run_success(run) / run->found) / 10 : 100.0);
	if (missing > 0)
		appendStringInfo(json, ", \"missing\": " INT64_FORMAT, missing);
	if (run->step == RUN_FAILED)
		appendStringInfo(json, ", \"error_type\": \"%s\", \"retry_recommended\": %s",
						 cliniko_error_code(run->error),
						 cliniko_error_retry_recommended(run->error) ? "true" : "false");
}

/* The errors, which front ends join: a failed run always has one. */
static void
append_errors(StringInfo json, Run *run)
{
	const char *separator = "";

	appendStringInfoString(json, ", \"errors\": [");
	if (run->step == RUN_FAILED)
	{
		escape_json(json, run->error_details);
		separator = ", ";
	}
	for (int i = 0; i < run->state.nerrors; i++)
	{
		appendStringInfoString(json, separator);
		escape_json(json, run->errors[i]);
		separator = ", ";
	}
	appendStringInfoChar(json, ']');
}

/*
 * The run as callers see it: sync_logs.metadata. patients_found and
 * patients_stored appear when there is something to say, because front ends
 * tell the steps of a run apart by them.
 */
char *
run_metadata(Run *run)
{
	StringInfoData json;

	run_update_percent(run);
	initStringInfo(&json);
	appendStringInfoString(&json, "{\"sync_type\": ");
	escape_json(&json, run->operation_type);
	appendStringInfo(&json, ", \"step\": \"%s\", \"progress_percent\": %.1f",
					 steps[run->step], run->state.percent);
	if (run->found >= 0)
	{
		int64		total_pages = (run->found + clinisync_page_size - 1) / clinisync_page_size;

		appendStringInfo(&json, ", \"patients_found\": " INT64_FORMAT
						 ", \"current_page\": " INT64_FORMAT ", \"total_pages\": " INT64_FORMAT,
						 run->found, Min(run->state.pages + 1, total_pages), total_pages);
	}
	if (run_accounted(run) > 0 || run->step == RUN_COMPLETED)
		appendStringInfo(&json, ", \"patients_stored\": " INT64_FORMAT
						 ", \"inserted\": " INT64_FORMAT ", \"updated\": " INT64_FORMAT
						 ", \"unchanged\": " INT64_FORMAT,
						 run_success(run), run->state.inserted, run->state.updated,
						 run->state.unchanged);
	appendStringInfo(&json, ", \"api_requests\": " INT64_FORMAT ", \"retries\": " INT64_FORMAT
					 ", \"rate_limited\": " INT64_FORMAT,
					 run->requests, run->retries, run->rate_limited);
	if (run->step == RUN_COMPLETED || run->step == RUN_FAILED)
		append_outcome(&json, run);
	else
		append_outlook(&json, run);
	append_errors(&json, run);
	appendStringInfoChar(&json, '}');
	return json.data;
}

/*
 * What is not done by id. Nothing need be said where that is simply whatever
 * follows the highest id that is done.
 */
static void
append_ranges(StringInfo json, const ClinikoCursor *cursor)
{
	const char *separator = "";
	int			nranges = 0;
	int			nfollowing = 0;

	for (int i = 0; i < CLINIKO_MAX_RANGES; i++)
	{
		nranges += cursor->ranges[i].below_id != 0;
		nfollowing += cursor->ranges[i].below_id == PG_INT64_MAX &&
			cursor->ranges[i].after_id == cursor->after_id;
	}
	if (nranges == nfollowing)
		return;
	appendStringInfoString(json, ", \"ranges\": [");
	for (int i = 0; i < CLINIKO_MAX_RANGES; i++)
	{
		const ClinikoRange *range = &cursor->ranges[i];

		if (range->below_id == 0)
			continue;
		appendStringInfo(json, "%s[\"" INT64_FORMAT "\", \"" INT64_FORMAT "\"]",
						 separator, range->after_id, range->below_id);
		separator = ", ";
	}
	appendStringInfoChar(json, ']');
}

/* Where the run resumes, and with which counters: sync_logs.checkpoint. */
char *
run_checkpoint(const Run *run)
{
	const ClinikoCursor *cursor = &run->state.cursor;
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	if (parts[cursor->part])
		appendStringInfo(&json, "\"part\": \"%s\", ", parts[cursor->part]);
	if (cursor->changed_since[0] != '\0')
	{
		appendStringInfoString(&json, "\"changed_since\": ");
		escape_json(&json, cursor->changed_since);
		appendStringInfoString(&json, ", ");
	}
	appendStringInfo(&json, "\"order\": \"%s\", \"after_id\": \"" INT64_FORMAT "\"",
					 cursor->order == CLINIKO_BY_ID ? "id" : "created_at", cursor->after_id);
	if (cursor->order == CLINIKO_BY_ID)
		append_ranges(&json, cursor);
	else
	{
		/* no more is needed: with what was seen, the second's first page will do */
		appendStringInfoString(&json, ", \"since\": ");
		escape_json(&json, cursor->since);
		appendStringInfoString(&json, ", \"seen\": [");
		for (int i = 0; i < run->state.nseen; i++)
			appendStringInfo(&json, "%s\"" INT64_FORMAT "\"", i > 0 ? ", " : "", run->seen[i]);
		appendStringInfoChar(&json, ']');
	}
	for (int i = 0; i < lengthof(counters); i++)
	{
		if (*counter(run, i) >= 0)
			appendStringInfo(&json, ", \"%s\": \"" INT64_FORMAT "\"",
							 counters[i].name, *counter(run, i));
	}
	appendStringInfo(&json, ", \"permille\": %.0f}", run->state.percent * 10);
	return json.data;
}

/* A whole number of a JSON object, or what it is else. */
static int64
find_int64(JsonText object, const char *key, int64 otherwise)
{
	JsonText	value;
	int64		number;

	return json_find(object, key, &value) && json_int64(value, &number) ? number : otherwise;
}

/* A moment of a JSON object, or an empty string. */
static void
find_time(JsonText object, const char *key, char moment[CLINIKO_TIME_SIZE])
{
	JsonText	value;

	moment[0] = '\0';
	if (json_find(object, key, &value))
		cliniko_read_moment(value, moment);
}

/* Take over what is not done by id. */
static void
restore_ranges(ClinikoCursor *cursor, JsonText checkpoint)
{
	JsonText	list;
	JsonText	pair;
	JsonText	value;
	JsonWalk	walk;
	JsonWalk	bounds;
	int			n = 0;

	cursor->ranges[0].after_id = cursor->after_id;
	if (!json_find(checkpoint, "ranges", &list) || !json_is_array(list))
		return;
	json_walk(list, &walk);
	while (n < CLINIKO_MAX_RANGES && json_next_element(&walk, &pair))
	{
		ClinikoRange range;

		if (!json_is_array(pair))
			continue;
		json_walk(pair, &bounds);
		if (json_next_element(&bounds, &value) && json_int64(value, &range.after_id) &&
			json_next_element(&bounds, &value) && json_int64(value, &range.below_id) &&
			range.after_id >= 0 && range.after_id < range.below_id)
			cursor->ranges[n++] = range;
	}
}

/* Take over the errors that the run had met. */
static void
restore_errors(Run *run, JsonText metadata)
{
	JsonText	list;
	JsonText	error;
	JsonWalk	walk;

	if (!json_find(metadata, "errors", &list) || !json_is_array(list))
		return;
	json_walk(list, &walk);
	while (json_next_element(&walk, &error))
	{
		if (json_is_string(error))
			run_add_error(run, "%s", json_string(error));
	}
}

/*
 * Take up a run where its checkpoint left it. Both are JSON, as run_checkpoint()
 * and run_metadata() made them.
 */
void
run_restore(Run *run, const char *checkpoint, const char *metadata)
{
	ClinikoCursor *cursor = &run->state.cursor;
	char		since[CLINIKO_TIME_SIZE];
	JsonText	object;
	JsonText	value;
	JsonWalk	walk;
	int64		id;

	if (json_check(metadata, strlen(metadata), &object))
		restore_errors(run, object);
	if (!json_check(checkpoint, strlen(checkpoint), &object))
		return;
	find_time(object, "changed_since", since);
	begin_cursor(cursor, since);
	for (int i = 0; i < lengthof(parts); i++)
	{
		if (parts[i] && json_find(object, "part", &value) && json_equals(value, parts[i]))
			cursor->part = i;
	}
	if (json_find(object, "order", &value) && json_equals(value, "created_at"))
		cursor->order = CLINIKO_BY_CREATION;
	cursor->after_id = find_int64(object, "after_id", 0);
	restore_ranges(cursor, object);
	find_time(object, "since", cursor->since);
	if (json_find(object, "seen", &value) && json_is_array(value))
	{
		json_walk(value, &walk);
		while (json_next_element(&walk, &value))
		{
			if (json_int64(value, &id))
				run_add_seen(run, id);
		}
	}
	for (int i = 0; i < lengthof(counters); i++)
		*counter(run, i) = find_int64(object, counters[i].name, *counter(run, i));
	run->state.percent = Min(Max(find_int64(object, "permille", 0), 0), 1000) / 10.0;
	run->began_with = run_accounted(run);
}
