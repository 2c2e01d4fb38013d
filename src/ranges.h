/*
 * ranges.h
 *		Ranges of ids that are listed side by side, each from both of its ends.
 */
#ifndef CLINISYNC_RANGES_H
#define CLINISYNC_RANGES_H

#include "postgres.h"

#include "cliniko.h"

/* An end of a range, for as long as a page from there is asked for. */
typedef struct RangeEnd
{
	int			number;			/* the request's; 0: nothing is asked for */
	ClinikoRange about;			/* what the request is about */
	int64		taken;			/* patients of that whom the other end has listed since */
	bool		divided;		/* the range is only a part of that by now */
} RangeEnd;

typedef struct Range
{
	ClinikoRange *bounds;		/* in the cursor; below_id 0: there is no such range */
	int64		remaining;		/* patients in it, */
	bool		counted;		/* as Cliniko says; or as may be expected */
	bool		exhausted;		/* it is said to have none */
	bool		said_empty;		/* the last answer about it had nobody */
	RangeEnd	ends[2];		/* by ClinikoEnd */
} Range;

typedef struct Ranges
{
	Range		list[CLINIKO_MAX_RANGES];
	ClinikoCursor *stored;		/* what is not stored, with the same ranges */
} Ranges;

/* Where to ask for a page. */
typedef struct RangePlace
{
	int			range;			/* the range's index */
	ClinikoEnd	end;
	bool		divide;			/* but first divide the range */
} RangePlace;

extern void ranges_begin(Ranges *ranges, ClinikoCursor *listed, ClinikoCursor *stored);
extern void ranges_open(Ranges *ranges, int i, int64 after_id, int64 below_id);
extern bool ranges_choose(const Ranges *ranges, int page_size, bool size_unknown,
						  bool order_unknown, RangePlace *place);
extern int	ranges_divide(Ranges *ranges, int i);
extern void ranges_ask(Ranges *ranges, int i, ClinikoEnd end, int number);
extern bool ranges_find(const Ranges *ranges, int number, int *i, ClinikoEnd *end);
extern void ranges_take_back(Ranges *ranges, int i, ClinikoEnd end);
extern bool ranges_in_order(const ClinikoPage *page, ClinikoRange about, ClinikoEnd end);
extern bool ranges_list(Ranges *ranges, int i, ClinikoEnd end, ClinikoPage *page);
extern int64 ranges_remaining(const Ranges *ranges);
extern bool ranges_conclude(Ranges *ranges, bool believed);

#endif							/* CLINISYNC_RANGES_H */
