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
 * deleted, or when somebody is edited who was listed among the changes already.
 * So if it has fallen, all are counted at the end: if there are more than were
 * listed, the list is asked once more to go on, and then begun anew. A count of zero
 * is not believed where patients were listed.
 *
 * But patients who come or go can make up for those that such a page has hidden. So
 * no list by id is complete before a page from the highest id down was seen, whose
 * ids have to fall. Where requests go side by side, the second one is such a page;
 * else the last one is, or the count.
 *
 * A run of changes asks for two sets of patients, one after the other
 * (ClinikoPart); the size of the job grows when the second is counted.
 *
 * There are two orders. By id is the way: several ranges of ids are listed side
 * by side (ranges.c), and only when all have told how many patients they have it
 * shows whether that agrees. Where Cliniko does not honour sort=id, a run starts
 * over by creation: a page begins in the second in which the last one ended, so
 * that only one can be asked for at a time. There, nothing shows which patients a
 * wrong page has passed over, so at the end of a list of everyone all are counted.
 *
 * The cursor is ahead of what is stored by the pages that were taken and wait to
 * be stored; the run's own cursor (RunState) is where it resumes.
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
	ranges_begin(&list->ranges, &list->cursor, &run->state.cursor);
}

/* Cliniko does not honour sort=id: begin again, in the other order. */
void
enumeration_start_over(Enumeration *list)
{
	enumeration_drop(list);
	run_start_over(list->run, CLINIKO_BY_CREATION);
	enumeration_begin(list, list->run, list->page_size);
}

/* Whether what is asked for next depends on the last answer. */
static bool
one_by_one(const Enumeration *list)
{
	return list->cursor.order == CLINIKO_BY_CREATION || list->cursor.counting ||
		list->cursor.part == CLINIKO_MISSING;
}

/* By id: where one more request is of use. */
static bool
choose(const Enumeration *list, RangePlace *place)
{
	bool		size_unknown = list->run->found < 0 && list->cursor.part == CLINIKO_EVERYONE;

	return ranges_choose(&list->ranges, list->page_size, size_unknown, !list->ordered, place);
}

/* Whether there is something to ask for, beside what is under way. */
bool
enumeration_wants(const Enumeration *list)
{
	RangePlace	place;

	return one_by_one(list) ? list->number == 0 : choose(list, &place);
}

/*
 * Note that a request is sent, where one is wanted; enumeration_url() tells which.
 * Returns its number, from 1 up, by which it is known from now on.
 */
int
enumeration_ask(Enumeration *list)
{
	RangePlace	place;

	Assert(enumeration_wants(list));
	list->last_number++;
	if (one_by_one(list))
	{
		list->number = list->last_number;
		return list->number;
	}
	(void) choose(list, &place);
	if (place.divide)
	{
		int			upper = ranges_divide(&list->ranges, place.range);

		/* the pages that are from there */
		for (int i = 0; i < list->ntaken; i++)
		{
			if (list->taken[i].range == place.range && list->taken[i].end == CLINIKO_HIGH_END)
				list->taken[i].range = upper;
		}
	}
	ranges_ask(&list->ranges, place.range, place.end, list->last_number);
	return list->last_number;
}

/* How many records wait to be stored. */
int
enumeration_waiting(const Enumeration *list)
{
	int			waiting = 0;

	for (int i = 0; i < list->ntaken; i++)
		waiting += list->taken[i].page->nrecords - list->taken[i].done;
	return waiting;
}

/*
 * Whether another page may be taken before those that wait are stored: not if
 * there are "most" records already, nor if it is of another list.
 */
bool
enumeration_takes_more(const Enumeration *list, int most)
{
	const ClinikoCursor *stored = &list->run->state.cursor;
	bool		same_list = !one_by_one(list) && !stored->counting &&
		list->cursor.part == stored->part;

	return list->ntaken == 0 ||
		(same_list && list->ntaken < MOST_TAKEN && enumeration_waiting(list) < most);
}

/* Keep a page until it is stored. */
static void
keep(Enumeration *list, ClinikoPage *page, int range, ClinikoEnd end)
{
	list->taken[list->ntaken++] = (TakenPage) {.page = page, .range = range, .end = end};
	if (page->nrecords > 0)
		list->recounts = 0;
}

/* Drop the pages that wait. */
void
enumeration_drop(Enumeration *list)
{
	while (list->ntaken > 0)
		cliniko_free_page(list->taken[--list->ntaken].page);
}

/* Whether the answer to a request is of any use yet. */
bool
enumeration_expects(const Enumeration *list, int number)
{
	int			range;
	ClinikoEnd	end;

	return number == list->number || ranges_find(&list->ranges, number, &range, &end);
}

/* A request has failed: what it was about is to be asked for again. */
void
enumeration_take_back(Enumeration *list, int number)
{
	int			range;
	ClinikoEnd	end;

	if (number == list->number)
		list->number = 0;
	else if (ranges_find(&list->ranges, number, &range, &end))
		ranges_take_back(&list->ranges, range, end);
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
 * Move what has been counted already behind a page's end; forget_seen() still
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

/*
 * By id: the page moves an end of its range. How many patients there are is known
 * when all ranges have told how many they have left; those that have none are
 * done if that agrees.
 */
static PageFit
fit_by_id(Enumeration *list, int range, ClinikoEnd end, ClinikoPage *page)
{
	Run		   *run = list->run;
	int			received = page->nrecords;
	int64		found;
	bool		believed;

	if (!ranges_list(&list->ranges, range, end, page))
		return PAGE_CONTRADICTION;
	/* ids rise in many an order, but hardly fall where that was not asked for */
	list->ordered |= end == CLINIKO_HIGH_END && received > 1;
	keep(list, page, range, end);
	for (int i = 0; i < page->nrecords; i++)
		list->cursor.after_id = Max(list->cursor.after_id, page->records[i].id);
	found = ranges_remaining(&list->ranges);
	if (found < 0)
		return PAGE_MORE;
	found += run_accounted(run) + enumeration_waiting(list);
	believed = agrees(list, page, found);
	/* what says first that there is nobody may have been asked twice at once */
	run->state.falls += found < run->found || (run->found < 0 && !believed);
	run->found = found;
	return ranges_conclude(&list->ranges, believed) ? PAGE_LAST : PAGE_MORE;
}

/*
 * By id, at the end: whether it takes a count to believe that all were listed. A list
 * of one page shows that by itself.
 */
static bool
needs_count(const Enumeration *list, const ClinikoPage *last)
{
	int64		listed = run_accounted(list->run) + enumeration_waiting(list) - list->cursor.before;

	return list->run->state.falls > 0 || (!list->ordered && listed > last->nrecords);
}

/* At the end: how many patients there are. */
static PageFit
fit_count(Enumeration *list, ClinikoPage *page)
{
	ClinikoCursor *cursor = &list->cursor;
	int64		listed = run_accounted(list->run) - cursor->before;

	if (cursor->order == CLINIKO_BY_ID &&
		!ranges_in_order(page, (ClinikoRange) {0, PG_INT64_MAX}, CLINIKO_HIGH_END))
		return PAGE_CONTRADICTION;
	if (cursor->part == CLINIKO_EVERYONE && page->total_entries == 0 && listed > 0)
		return PAGE_CONTRADICTION;
	cursor->counting = false;
	page->nrecords = 0;			/* whoever it shows */
	list->ordered = true;
	/* by id, whoever more there is came meanwhile, unless the number had fallen */
	if (page->total_entries <= listed ||
		(cursor->order == CLINIKO_BY_ID && list->run->state.falls == 0))
		return PAGE_LAST;
	if (list->recounts++ > 0)
		return PAGE_DISORDER;
	if (cursor->order == CLINIKO_BY_ID)
		ranges_open(&list->ranges, 0, cursor->after_id, PG_INT64_MAX);
	return PAGE_MORE;
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
	bool		all_shown;

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
	all_shown = received == page->total_entries && !page->has_next;
	if (all_shown && !believed)
		return PAGE_MORE;
	if (strcmp(last, cursor->since) > 0)
	{
		strlcpy(cursor->since, last, CLINIKO_TIME_SIZE);
		cursor->beyond = false;
	}
	else if (!all_shown)
		cursor->page = 1;
	return all_shown ? PAGE_LAST : PAGE_MORE;
}

/* Go on to what else is to be asked for. Returns false where that is nothing. */
static bool
next_part(Enumeration *list)
{
	ClinikoCursor *cursor = &list->cursor;
	ClinikoCursor next = {.part = CLINIKO_ARCHIVED, .order = cursor->order};

	next.before = run_accounted(list->run) + enumeration_waiting(list);
	if (cursor->part != CLINIKO_UPDATED)
		return false;
	strlcpy(next.changed_since, cursor->changed_since, CLINIKO_TIME_SIZE);
	*cursor = next;
	ranges_open(&list->ranges, 0, 0, PG_INT64_MAX);
	list->run->state.falls = 0;
	return true;
}

/*
 * Move the cursor behind a page, if it can be what was asked for, and tell the
 * run how many patients there are. The page is the list's then, until it is stored.
 */
PageFit
enumeration_take(Enumeration *list, int number, ClinikoPage *page)
{
	int			range;
	ClinikoEnd	end;
	PageFit		fit;

	if (ranges_find(&list->ranges, number, &range, &end))
	{
		fit = fit_by_id(list, range, end, page);
		list->cursor.counting = (fit == PAGE_LAST && needs_count(list, page));
	}
	else
	{
		list->number = 0;
		if (list->cursor.counting)
			fit = fit_count(list, page);
		else
		{
			fit = fit_by_creation(list, page);
			/* among changes, edits add patients in places that were passed already */
			list->cursor.counting = (fit == PAGE_LAST && list->cursor.part == CLINIKO_EVERYONE);
		}
		if (fit == PAGE_MORE || fit == PAGE_LAST)
			keep(list, page, 0, CLINIKO_LOW_END);
	}
	if (fit == PAGE_LAST && list->cursor.counting)
		return PAGE_MORE;
	return fit == PAGE_LAST && next_part(list) ? PAGE_MORE : fit;
}

/* By id: what of a range is done with some records that come from an end of it. */
static ClinikoRange
pass_range(ClinikoRange *range, ClinikoEnd end, const ClinikoRecord *records, int nrecords)
{
	ClinikoRange before = *range;

	for (int i = 0; i < nrecords; i++)
	{
		if (records[i].id == 0)
			continue;
		if (end == CLINIKO_LOW_END)
			range->after_id = Max(range->after_id, records[i].id);
		else
			range->below_id = Min(range->below_id, records[i].id);
	}
	return end == CLINIKO_LOW_END
		? (ClinikoRange) {before.after_id, range->after_id + 1}
		: (ClinikoRange) {range->below_id - 1, before.below_id};
}

/* Add some records of a page. By creation, they have to be noted as seen. */
static void
pass_records(Enumeration *list, const TakenPage *taken, int count, Passage *passage)
{
	PassagePart *part = &passage->parts[passage->nparts++];
	ClinikoCursor *cursor = &passage->cursor;
	bool		by_id = cursor->order == CLINIKO_BY_ID;

	/* from a range's high end, the last records come first */
	part->records = taken->page->records +
		(by_id && taken->end == CLINIKO_HIGH_END ? taken->page->nrecords - taken->done - count
		 : taken->done);
	part->nrecords = count;
	passage->nrecords += count;
	for (int i = 0; i < count; i++)
	{
		if (by_id)
			cursor->after_id = Max(cursor->after_id, part->records[i].id);
		else if (part->records[i].id > 0)
			run_add_seen(list->run, part->records[i].id);
	}
	if (by_id)
		part->told = pass_range(&cursor->ranges[taken->range], taken->end, part->records, count);
}

/* Everything that was taken is done: so are the ranges that were closed with it. */
static void
pass_closed_ranges(const Enumeration *list, Passage *passage)
{
	for (int i = 0; i < CLINIKO_MAX_RANGES; i++)
	{
		const ClinikoRange *range = &passage->cursor.ranges[i];

		if (passage->tells_missing && range->below_id != 0 &&
			list->cursor.ranges[i].below_id == 0)
			passage->parts[passage->nparts++] = (PassagePart) {.told = *range};
	}
	passage->cursor = list->cursor;
}

/*
 * Pass on up to "most" of the records that wait; and say where the run resumes
 * behind them. Whoever calls this puts back run->state if they are not stored.
 */
void
enumeration_pass(Enumeration *list, int most, Passage *passage)
{
	memset(passage, 0, sizeof(*passage));
	passage->cursor = list->run->state.cursor;
	/* in any other list, who is not shown may yet be there */
	passage->tells_missing = passage->cursor.part == CLINIKO_EVERYONE &&
		passage->cursor.order == CLINIKO_BY_ID;
	for (int i = 0; i < list->ntaken; i++)
	{
		TakenPage  *taken = &list->taken[i];
		int			left = taken->page->nrecords - taken->done;
		int			count = Min(left, most - passage->nrecords);

		pass_records(list, taken, count, passage);
		if (count < left)
			return;
		passage->npages++;
	}
	pass_closed_ranges(list, passage);
}

/*
 * By creation, all of a page is stored: once the cursor has moved on in time,
 * only what was created in its very second can show again.
 */
static void
forget_seen(Enumeration *list, const ClinikoPage *page, const ClinikoCursor *before)
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

/* What was passed on is stored. before: where the run would have resumed. */
void
enumeration_passed(Enumeration *list, const Passage *passage, const ClinikoCursor *before)
{
	for (int i = 0; i < passage->npages; i++)
	{
		forget_seen(list, list->taken[i].page, before);
		cliniko_free_page(list->taken[i].page);
	}
	if (passage->npages < list->ntaken)
		list->taken[passage->npages].done += passage->parts[passage->npages].nrecords;
	list->ntaken -= passage->npages;
	memmove(list->taken, list->taken + passage->npages, sizeof(TakenPage) * list->ntaken);
}

/* How many missing patients a request may name. */
int
enumeration_most_named(const Enumeration *list)
{
	return Max(list->page_size - (int) lengthof(list->run->state.witnesses), 1);
}

/* The URL of a request; palloc'ed. */
char *
enumeration_url(const Enumeration *list, const ClinikoAccount *account, int number)
{
	int64		ids[MOST_NAMED];
	int			count = list->nnamed;
	int			range;
	ClinikoEnd	end;

	if (list->cursor.part != CLINIKO_MISSING)
	{
		bool		by_id = ranges_find(&list->ranges, number, &range, &end);

		return cliniko_patients_url(account, &list->cursor,
									by_id ? &list->cursor.ranges[range] : NULL,
									by_id ? end : CLINIKO_LOW_END, list->page_size);
	}
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
 * named no more, and those that stay do not exist. Returns false where it cannot
 * be an answer to that.
 */
bool
enumeration_confirm(Enumeration *list, ClinikoPage *page)
{
	const int64 *witnesses = list->run->state.witnesses;
	int			expected = 0;
	int			witnessed = 0;
	int			kept = 0;

	list->number = 0;
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
	keep(list, page, 0, CLINIKO_LOW_END);
	return true;
}
