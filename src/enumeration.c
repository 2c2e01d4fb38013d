/*
 * enumeration.c
 *		Which patients a run has seen, and what it has to ask for next.
 *
 * A run is complete when every patient of the account was listed. Pages come
 * one by one while patients come and go, so "every" is not a matter of counting
 * pages: each page has to fit what was asked for, and one that says that nothing
 * follows is believed if the number of patients that results is the number that
 * was known. If it is not, since patients came or went, or the page is wrong,
 * one more request has to say the same; likewise if the very first page says that
 * the account is empty.
 *
 * By id, a Cliniko that honours the filter but not the order could send a page
 * that rises by chance and hides those between its ids, who are not asked for any
 * more. Then the number of patients that results falls, as it does when some are
 * deleted. So if it has fallen, all are counted at the end: if there are more than
 * were listed, the list is asked once more to go on, and then begun anew.
 *
 * A run of changes asks for two sets of patients, one after the other
 * (ClinikoPart); the size of the job grows when the second is counted.
 *
 * There are two orders. By id is the way: a page begins behind the last id.
 * Where Cliniko does not honour sort=id, a run starts over by creation: a page
 * begins in the second in which the last one ended.
 *
 * The cursor is ahead of what is stored by the page that is being stored; the
 * run's own cursor (RunState) is where it resumes.
 *
 * Patients of ours that the list did not show are asked for by name before they
 * count as deleted. Each such request also names two patients that were listed, the
 * witnesses: an answer without either would come from a Cliniko that shows nobody.
 * (There are two because one may just be deleted.)
 *
 * This file decides, and neither fetches nor stores. Memory: in the run's
 * context.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "enumeration.h"

/* Begin where the run is to resume. */
void
enumeration_begin(Enumeration *list, Run *run, int page_size)
{
	memset(list, 0, sizeof(*list));
	list->run = run;
	list->cursor = run->state.cursor;
	list->page_size = page_size;
}

/* Cliniko does not honour sort=id: begin again, in the other order. */
void
enumeration_start_over(Enumeration *list)
{
	run_start_over(list->run, CLINIKO_BY_CREATION);
	list->cursor = list->run->state.cursor;
}

/* Whether the ids rise strictly; by id, that is what "nobody is missed" means. */
static bool
ids_rise(const ClinikoPage *page, int64 after_id)
{
	for (int i = 0; i < page->nrecords; i++)
	{
		if (page->records[i].id == 0)
			continue;			/* unusable; it will be counted as failed */
		if (page->records[i].id <= after_id)
			return false;
		after_id = page->records[i].id;
	}
	return true;
}

/* The last usable id of a page, or the one before the page. */
static int64
last_id(const ClinikoPage *page, int64 before)
{
	for (int i = page->nrecords - 1; i >= 0; i--)
	{
		if (page->records[i].id > 0)
			return page->records[i].id;
	}
	return before;
}

/* Whether created_at never falls, which enumerating by it needs. */
static bool
creation_rises(const ClinikoPage *page, const char *since)
{
	for (int i = 0; i < page->nrecords; i++)
	{
		if (page->records[i].created_at[0] == '\0' ||
			strcmp(page->records[i].created_at, since) < 0)
			return false;
		since = page->records[i].created_at;
	}
	return true;
}

/* Whether a page names a patient twice, and so perhaps another one not at all. */
static bool
has_duplicates(const ClinikoPage *page)
{
	for (int i = 1; i < page->nrecords; i++)
	{
		for (int k = 0; k < i; k++)
		{
			if (page->records[i].id > 0 && page->records[i].id == page->records[k].id)
				return true;
		}
	}
	return false;
}

/*
 * Move what has been counted already behind a page's end; enumeration_forget() still
 * looks at it there. A record without a usable id counts where it is new in
 * time.
 */
static void
set_seen_aside(Enumeration *list, ClinikoPage *page)
{
	int			kept = 0;

	for (int i = 0; i < page->nrecords; i++)
	{
		ClinikoRecord record = page->records[i];
		bool		seen = record.id == 0
			? strcmp(record.created_at, list->cursor.since) == 0
			: run_has_seen(list->run, record.id);

		if (!seen)
		{
			page->records[i] = page->records[kept];
			page->records[kept++] = record;
		}
	}
	page->nseen = page->nrecords - kept;
	page->nrecords = kept;
}

/*
 * Whether the number of patients that results from a page is the one that was
 * known. Before the first page none is, and the page is believed; unless it says
 * that the account has no patients at all.
 */
static bool
agrees(const Enumeration *list, const ClinikoPage *page, int64 found)
{
	if (list->run->found >= 0)
		return list->run->found == found;
	return page->nrecords > 0 || list->cursor.part != CLINIKO_EVERYONE;
}

/* By id: every page begins behind the last id, and ids rise strictly. */
static PageFit
fit_by_id(Enumeration *list, ClinikoPage *page)
{
	Run		   *run = list->run;
	ClinikoCursor *cursor = &list->cursor;
	int64		last = last_id(page, cursor->after_id);
	int64		found = run_accounted(run) + Max(page->total_entries, page->nrecords);
	bool		believed = agrees(list, page, found);

	if (!ids_rise(page, cursor->after_id))
		return PAGE_CONTRADICTION;
	if (page->nrecords > 0 ? last == cursor->after_id
		: page->total_entries > 0 || page->has_next)
		return PAGE_CONTRADICTION;
	cursor->after_id = last;
	run->state.falls += found < run->found;
	run->found = found;
	if (page->nrecords > 0)
		list->recounts = 0;
	return page->nrecords == page->total_entries && !page->has_next && believed
		? PAGE_LAST : PAGE_MORE;
}

/* By id, at the end: how many patients there are. */
static PageFit
fit_count(Enumeration *list, ClinikoPage *page)
{
	int64		listed = run_accounted(list->run) - list->cursor.before;

	list->cursor.counting = false;
	page->nrecords = 0;			/* whoever it shows */
	if (page->total_entries <= listed)
		return PAGE_LAST;
	return list->recounts++ == 0 ? PAGE_MORE : PAGE_DISORDER;
}

/* Count the patients of the pass through one second that were not in it yet. */
static void
add_to_pass(Enumeration *list, const ClinikoPage *page)
{
	for (int i = 0; i < page->nrecords + page->nseen; i++)
	{
		bool		known = false;

		for (int k = 0; k < list->npass && !known; k++)
			known = list->pass[k] == page->records[i].id;
		if (known)
			continue;
		if (list->npass == list->pass_size)
		{
			list->pass_size = Max(list->pass_size * 2, 256);
			list->pass = list->pass
				? repalloc(list->pass, sizeof(int64) * list->pass_size)
				: MemoryContextAlloc(list->run->context, sizeof(int64) * list->pass_size);
		}
		list->pass[list->npass++] = page->records[i].id;
	}
}

/*
 * By creation, within one second that fills more than a page: only page
 * numbers lead through it, so a whole pass must agree with itself. Every page
 * must name the same total, and the pass have that many different patients;
 * else it is made again.
 */
static PageFit
fit_within_second(Enumeration *list, ClinikoPage *page)
{
	Run		   *run = list->run;
	ClinikoCursor *cursor = &list->cursor;
	int			received = page->nrecords;
	int64		end = (int64) (cursor->page - 1) * list->page_size + received;

	if (cursor->page == 1)
	{
		list->npass = 0;
		list->pass_total = page->total_entries;
	}
	set_seen_aside(list, page);
	add_to_pass(list, page);
	run->found = Max(run->found, run_accounted(run) + page->nrecords);
	if (page->total_entries == list->pass_total && end < page->total_entries &&
		received == list->page_size)
	{
		cursor->page++;
		return PAGE_MORE;
	}
	cursor->page = 1;
	if (page->total_entries != list->pass_total || end != page->total_entries ||
		list->npass != page->total_entries)
		return PAGE_CONTRADICTION;
	cursor->page = 0;
	cursor->beyond = true;
	return PAGE_MORE;
}

/*
 * By creation: a page begins with what was created since the cursor, so what
 * it shows of that very second may have been seen. Nothing follows a page only
 * if it shows, all by itself, as many patients as it says there are; and if
 * that does not agree with what was known, it is asked for once more.
 */
static PageFit
fit_by_creation(Enumeration *list, ClinikoPage *page)
{
	Run		   *run = list->run;
	ClinikoCursor *cursor = &list->cursor;
	int			received = page->nrecords;
	const char *last;
	int64		found;
	bool		believed;

	if (!creation_rises(page, cursor->since) || has_duplicates(page))
		return PAGE_CONTRADICTION;
	if (cursor->page > 0)
		return fit_within_second(list, page);
	if (received < list->page_size && (received != page->total_entries || page->has_next))
		return PAGE_CONTRADICTION;

	last = received > 0 ? pstrdup(page->records[received - 1].created_at) : "";
	set_seen_aside(list, page);
	found = run_accounted(run) + Max(page->total_entries - page->nseen, page->nrecords);
	believed = agrees(list, page, found);
	run->found = found;
	if (received == page->total_entries && !page->has_next)
		return believed ? PAGE_LAST : PAGE_MORE;
	if (strcmp(last, cursor->since) > 0)
	{
		strlcpy(cursor->since, last, CLINIKO_TIME_SIZE);
		cursor->beyond = false;
	}
	else
		cursor->page = 1;
	return PAGE_MORE;
}

/* Go on to what else is to be asked for. Answers false where that is nothing. */
static bool
next_part(Enumeration *list, const ClinikoPage *page)
{
	ClinikoCursor *cursor = &list->cursor;
	ClinikoCursor next = {.part = CLINIKO_ARCHIVED, .order = cursor->order};

	next.before = run_accounted(list->run) + page->nrecords;
	if (cursor->part != CLINIKO_UPDATED)
		return false;
	strlcpy(next.changed_since, cursor->changed_since, CLINIKO_TIME_SIZE);
	*cursor = next;
	list->run->state.falls = 0;
	return true;
}

/*
 * Move the cursor behind a page, if it can be what was asked for, and tell the
 * run how many patients there are.
 */
PageFit
enumeration_take(Enumeration *list, ClinikoPage *page)
{
	PageFit		fit;

	if (list->cursor.counting)
		fit = fit_count(list, page);
	else if (list->cursor.order == CLINIKO_BY_CREATION)
		fit = fit_by_creation(list, page);
	else
	{
		fit = fit_by_id(list, page);
		list->cursor.counting = (fit == PAGE_LAST && list->run->state.falls > 0);
	}
	if (list->cursor.counting)
		return PAGE_MORE;
	return fit == PAGE_LAST && next_part(list, page) ? PAGE_MORE : fit;
}

/*
 * The cursor behind some records of the page that was taken last, for the run
 * to resume there once they are stored. By creation, what is stored has to be
 * noted, since the next page may show it again; whoever calls this puts back
 * run->state when the records are not stored.
 */
ClinikoCursor
enumeration_pass(Enumeration *list, const ClinikoPage *page, int first, int count)
{
	Run		   *run = list->run;
	ClinikoCursor cursor = run->state.cursor;

	for (int i = first; cursor.order == CLINIKO_BY_CREATION && i < first + count; i++)
	{
		if (page->records[i].id > 0)
			run_add_seen(run, page->records[i].id);
	}
	if (first + count == page->nrecords)
		return list->cursor;
	for (int i = first; cursor.order == CLINIKO_BY_ID && i < first + count; i++)
		cursor.after_id = Max(cursor.after_id, page->records[i].id);
	return cursor;
}

/*
 * All of a page is stored. By creation: once the cursor has moved on in time,
 * only what was created in its very second can show again.
 */
void
enumeration_forget(Enumeration *list, const ClinikoPage *page, const ClinikoCursor *before)
{
	Run		   *run = list->run;

	if (strcmp(before->since, run->state.cursor.since) == 0)
		return;
	run->state.nseen = 0;
	for (int i = 0; i < page->nrecords + page->nseen; i++)
	{
		if (page->records[i].id > 0 &&
			strcmp(page->records[i].created_at, run->state.cursor.since) == 0)
			run_add_seen(run, page->records[i].id);
	}
}

/* How many missing patients a request may name. */
int
enumeration_most_named(const Enumeration *list)
{
	return Max(list->page_size - (int) lengthof(list->run->state.witnesses), 1);
}

/* The URL of what is to be asked for next; palloc'ed. */
char *
enumeration_url(const Enumeration *list, const ClinikoAccount *account)
{
	int64		ids[MOST_NAMED];
	int			count = list->nnamed;

	if (list->cursor.part != CLINIKO_MISSING)
		return cliniko_patients_url(account, &list->cursor, list->page_size);
	memcpy(ids, list->named, sizeof(int64) * count);
	for (int i = 0; i < lengthof(list->run->state.witnesses); i++)
	{
		if (list->run->state.witnesses[i] != 0)
			ids[count++] = list->run->state.witnesses[i];
	}
	return cliniko_named_patients_url(account, ids, count);
}

/* Whether a page shows a patient. */
static bool
shows(const ClinikoPage *page, int64 id)
{
	for (int i = 0; i < page->nrecords; i++)
	{
		if (page->records[i].id == id)
			return true;
	}
	return false;
}

/*
 * Take an answer about the patients that were named: those that it shows are
 * named no more, and those that stay do not exist. Answers false where it cannot
 * be an answer to that.
 */
bool
enumeration_confirm(Enumeration *list, const ClinikoPage *page)
{
	const int64 *witnesses = list->run->state.witnesses;
	int			expected = 0;
	int			witnessed = 0;
	int			kept = 0;

	for (int i = 0; i < lengthof(list->run->state.witnesses); i++)
		witnessed += witnesses[i] != 0 && shows(page, witnesses[i]);
	/* by creation, a witness may be named as one of our rows as well */
	for (int i = 0; i < list->nnamed; i++)
		expected += shows(page, list->named[i]) &&
			list->named[i] != witnesses[0] && list->named[i] != witnesses[1];
	expected += witnessed;
	/* nobody twice, nobody else, and a witness */
	if (page->nrecords != expected || page->total_entries != expected || page->has_next ||
		has_duplicates(page) || (witnesses[0] != 0 && witnessed == 0))
		return false;
	list->cursor.after_id = list->named[list->nnamed - 1];
	for (int i = 0; i < list->nnamed; i++)
	{
		if (!shows(page, list->named[i]))
			list->named[kept++] = list->named[i];
	}
	list->nnamed = kept;
	return true;
}
