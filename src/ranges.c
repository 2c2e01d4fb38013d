/*
 * ranges.c
 *		Ranges of ids that are listed side by side, each from both of its ends.
 *
 * To begin with, there is one range: all ids. It is listed from its lowest id
 * upwards and, at the same time, from its highest one downwards. Where there is
 * time for more requests, the range with the most patients is divided in the
 * middle of its ids, and the two halves begin to be listed from there as well.
 *
 * So a request hardly ever finds nothing, however ids are spread: where old ids
 * of 8 digits stand beside new ones of 19, the middle is far away from all of
 * them, but the pages on both sides of it begin with the nearest patients, and
 * with that the ranges have shrunk to where patients are.
 *
 * An answer tells how many patients there are in what it was asked about. While
 * it was under way, that may have lost patients to the range's other end, or to
 * another range; they are left out of the page, and of the number. Such a number
 * is of two moments, between which patients come and go: it tells how much there
 * is to do, but that a range has nobody left is proved only by what was shown.
 *
 * This file does the bookkeeping; what the numbers say is for enumeration.c.
 */
#include "postgres.h"

#include "ranges.h"

/* How many patients a range must have for a further request, in pages. */
#define PAGES_FOR_OTHER_END 1
#define PAGES_FOR_DIVISION 2

static bool
is_open(const Range *range)
{
	return range->bounds->below_id != 0;
}

/* Move an end of a range to a patient, who is then no longer in it. */
static void
move_end(ClinikoRange *bounds, ClinikoEnd end, int64 id)
{
	if (end == CLINIKO_LOW_END)
		bounds->after_id = id;
	else
		bounds->below_id = id;
}

static bool
contains(const ClinikoRange *bounds, int64 id)
{
	return id > bounds->after_id && id < bounds->below_id;
}

/* Begin with what is not listed yet, which is what is not stored. */
void
ranges_begin(Ranges *ranges, ClinikoCursor *listed, ClinikoCursor *stored)
{
	memset(ranges, 0, sizeof(*ranges));
	ranges->stored = stored;
	for (int i = 0; i < CLINIKO_MAX_RANGES; i++)
		ranges->list[i].bounds = &listed->ranges[i];
}

/* Make a range of which nothing is known yet. */
void
ranges_open(Ranges *ranges, int i, int64 after_id, int64 below_id)
{
	Range	   *range = &ranges->list[i];

	*range = (Range) {.bounds = range->bounds};
	*range->bounds = (ClinikoRange) {after_id, below_id};
}

static int
requests(const Range *range)
{
	return (range->ends[CLINIKO_LOW_END].number != 0) + (range->ends[CLINIKO_HIGH_END].number != 0);
}

/* The index of a range that is not in use, nor has to be stored yet; or -1. */
static int
unused_range(const Ranges *ranges)
{
	for (int i = 0; i < CLINIKO_MAX_RANGES; i++)
	{
		if (!is_open(&ranges->list[i]) && ranges->stored->ranges[i].below_id == 0)
			return i;
	}
	return -1;
}

/* The id in the middle of a range, which begins its upper half; or 0 for none. */
static int64
middle_id(const ClinikoRange *bounds)
{
	int64		span = bounds->below_id - bounds->after_id;

	/* while there is no upper end, nobody knows where the middle is */
	return bounds->below_id == PG_INT64_MAX || span < 4 ? 0 : bounds->after_id + span / 2;
}

/*
 * Choose where one more request is of use: in a range that nobody lists; at the
 * other end of one that has more than a page; in the middle of the one that has
 * most. size_unknown: nobody knows yet how many patients there are, and asking
 * at the other end as well is worth it. order_unknown: no page from a highest id
 * was seen yet, and a range's last page can as well be one. Returns false where it
 * is of no use.
 */
bool
ranges_choose(const Ranges *ranges, int page_size, bool size_unknown, bool order_unknown,
			  RangePlace *place)
{
	int64		most = PAGES_FOR_DIVISION * page_size;
	int			worth = 0;		/* of the best place so far */

	for (int i = 0; i < CLINIKO_MAX_RANGES; i++)
	{
		const Range *range = &ranges->list[i];

		if (!is_open(range) || range->exhausted)
			continue;
		if (requests(range) == 0)
		{
			bool		last = range->counted && range->remaining <= page_size;

			*place = (RangePlace) {i, CLINIKO_LOW_END, false};
			if (order_unknown && last)
				place->end = CLINIKO_HIGH_END;
			return true;
		}
		if (requests(range) == 1)
		{
			if (worth < 2 && (range->remaining > PAGES_FOR_OTHER_END * page_size || size_unknown))
			{
				place->range = i;
				place->end = range->ends[CLINIKO_LOW_END].number == 0
					? CLINIKO_LOW_END : CLINIKO_HIGH_END;
				place->divide = false;
				worth = 2;
			}
		}
		else if (worth < 2 && range->remaining > most && middle_id(range->bounds) != 0 &&
				 unused_range(ranges) >= 0)
		{
			*place = (RangePlace) {i, CLINIKO_HIGH_END, true};
			most = range->remaining;
			worth = 1;
		}
	}
	return worth > 0;
}

/*
 * Divide a range that ranges_choose() has chosen for that in the middle of its
 * ids, in what is listed and in what is stored. Returns the upper half's index.
 */
int
ranges_divide(Ranges *ranges, int i)
{
	Range	   *lower = &ranges->list[i];
	int			k = unused_range(ranges);
	Range	   *upper = &ranges->list[k];
	int64		middle = middle_id(lower->bounds);

	ranges_open(ranges, k, middle - 1, lower->bounds->below_id);
	ranges->stored->ranges[k] = (ClinikoRange) {middle - 1, ranges->stored->ranges[i].below_id};
	ranges->stored->ranges[i].below_id = lower->bounds->below_id = middle;

	/* what is asked for at the upper end is asked for at the upper half's */
	upper->ends[CLINIKO_HIGH_END] = lower->ends[CLINIKO_HIGH_END];
	lower->ends[CLINIKO_HIGH_END] = (RangeEnd) {0};
	upper->ends[CLINIKO_HIGH_END].divided = lower->ends[CLINIKO_LOW_END].divided = true;
	upper->remaining = lower->remaining = lower->remaining / 2;
	lower->counted = false;
	return k;
}

/* Note that a page is asked for. number: the request's, other than 0. */
void
ranges_ask(Ranges *ranges, int i, ClinikoEnd end, int number)
{
	Range	   *range = &ranges->list[i];

	range->ends[end] = (RangeEnd) {.number = number, .about = *range->bounds};
}

/* Where a request belongs; false where its range is not there any more. */
bool
ranges_find(const Ranges *ranges, int number, int *i, ClinikoEnd *end)
{
	for (*i = 0; *i < CLINIKO_MAX_RANGES; (*i)++)
	{
		for (*end = CLINIKO_LOW_END; *end <= CLINIKO_HIGH_END; (*end)++)
		{
			if (ranges->list[*i].ends[*end].number == number)
				return true;
		}
	}
	return false;
}

/* The page is not asked for any more. */
void
ranges_take_back(Ranges *ranges, int i, ClinikoEnd end)
{
	ranges->list[i].ends[end] = (RangeEnd) {0};
}

/* Whether ids rise, or fall, strictly within what was asked about: nobody is missed. */
bool
ranges_in_order(const ClinikoPage *page, ClinikoRange about, ClinikoEnd end)
{
	for (int i = 0; i < page->nrecords; i++)
	{
		int64		id = page->records[i].id;

		if (id == 0)
			continue;			/* unusable; it will be counted as failed */
		if (!contains(&about, id))
			return false;
		move_end(&about, end, id);
	}
	return true;
}

/*
 * Leave out whoever is not in the range any more: these come last. A record
 * without a usable id that comes before them may be either; "most" says how many
 * can be left, or less than none where somebody was deleted meanwhile. Returns
 * whether there was anybody to leave out.
 */
static bool
trim(ClinikoPage *page, const ClinikoRange *bounds, int64 most)
{
	int			kept = 0;

	while (kept < page->nrecords &&
		   (page->records[kept].id == 0 || contains(bounds, page->records[kept].id)))
		kept++;
	if (kept == page->nrecords)
		return false;
	while (kept > Max(most, 0) && page->records[kept - 1].id == 0)
		kept--;
	page->nrecords = kept;
	return true;
}

/* Put a page that was listed from the highest id into the order of ids. */
static void
reverse(ClinikoPage *page)
{
	for (int i = 0, k = page->nrecords - 1; i < k; i++, k--)
	{
		ClinikoRecord record = page->records[i];

		page->records[i] = page->records[k];
		page->records[k] = record;
	}
}

/*
 * Take a page into account: move the range's end behind it, and note how many
 * patients the range has left. The page loses whom others list, and is in the
 * order of ids then. Returns false, having changed nothing, where the page
 * cannot be what was asked for.
 */
bool
ranges_list(Ranges *ranges, int i, ClinikoEnd end, ClinikoPage *page)
{
	Range	   *range = &ranges->list[i];
	RangeEnd	asked = range->ends[end];
	RangeEnd   *other = &range->ends[CLINIKO_HIGH_END - end];
	ClinikoRange moved = *range->bounds;
	bool		all_shown = page->nrecords == page->total_entries && !page->has_next;
	bool		usable = false;
	bool		doubted;		/* that there is nobody */
	int64		left = page->total_entries - asked.taken;

	if (!ranges_in_order(page, asked.about, end))
		return false;
	for (int k = 0; k < page->nrecords; k++)
		usable |= page->records[k].id != 0;
	if (page->nrecords > 0 ? !usable : page->total_entries > 0 || page->has_next)
		return false;

	/*
	 * That there is nobody, where somebody was expected, needs to be said twice:
	 * what other ranges have gained meanwhile may make up for whom a wrong answer
	 * hides. Of everybody it is enumeration.c that doubts it.
	 */
	doubted = page->nrecords == 0 && !range->said_empty &&
		(range->remaining > 0 || !range->counted) &&
		(asked.about.after_id != 0 || asked.about.below_id != PG_INT64_MAX);
	range->said_empty = doubted;
	/* whoever is left out is beyond the range: all of it was shown */
	all_shown |= trim(page, range->bounds, asked.divided ? PG_INT64_MAX : left);
	for (int k = 0; k < page->nrecords; k++)
	{
		if (page->records[k].id != 0)
			move_end(&moved, end, page->records[k].id);
	}
	if (end == CLINIKO_HIGH_END)
		reverse(page);
	*range->bounds = moved;
	other->taken += page->nrecords;
	range->ends[end] = (RangeEnd) {0};

	left = (asked.divided ? range->remaining : left) - page->nrecords;
	range->remaining = all_shown ? 0 : Max(left, 0);
	range->counted |= all_shown || !asked.divided;
	range->exhausted = all_shown && !doubted;
	return true;
}

/* How many patients all ranges have; -1 where that is not known of one. */
int64
ranges_remaining(const Ranges *ranges)
{
	int64		remaining = 0;

	for (int i = 0; i < CLINIKO_MAX_RANGES; i++)
	{
		if (!is_open(&ranges->list[i]))
			continue;
		if (!ranges->list[i].counted)
			return -1;
		remaining += ranges->list[i].remaining;
	}
	return remaining;
}

/*
 * Close the ranges that are said to have nobody; or, where that is not believed,
 * have them asked again. Returns whether no range is left.
 */
bool
ranges_conclude(Ranges *ranges, bool believed)
{
	bool		all_closed = true;

	for (int i = 0; i < CLINIKO_MAX_RANGES; i++)
	{
		Range	   *range = &ranges->list[i];

		if (range->exhausted && believed)
			ranges_open(ranges, i, 0, 0);
		range->exhausted = false;
		all_closed &= !is_open(range);
	}
	return all_closed;
}
