/*
 * enumeration.h
 *		Which patients a run has seen, and what it has to ask for next.
 */
#ifndef CLINISYNC_ENUMERATION_H
#define CLINISYNC_ENUMERATION_H

#include "postgres.h"

#include "cliniko.h"
#include "ranges.h"
#include "run.h"

/* How a page fits into the enumeration. */
typedef enum PageFit
{
	PAGE_MORE,					/* the cursor has moved behind it */
	PAGE_LAST,					/* nothing follows */
	PAGE_CONTRADICTION,			/* it cannot be what was asked for */
	PAGE_DISORDER				/* the list lacks patients */
} PageFit;

/* The most patients that one request names, the witnesses among them. */
#define MOST_NAMED CLINIKO_MAX_PAGE_SIZE

/* A page that fits, of which not everything is stored. */
typedef struct TakenPage
{
	ClinikoPage *page;
	int			range;			/* by id: where it is from */
	ClinikoEnd	end;
	int			done;			/* how many of its records are stored */
} TakenPage;

/* How many pages may wait to be stored together. */
#define MOST_TAKEN 16

typedef struct Enumeration
{
	Run		   *run;
	ClinikoCursor cursor;		/* what the next request asks for */
	Ranges		ranges;			/* by id: what of the cursor's is being asked for */
	TakenPage	taken[MOST_TAKEN];
	int			ntaken;
	int			page_size;		/* the same for the whole run */
	int			last_number;	/* of all requests */
	int			number;			/* of a request that is about no range; 0: none */

	bool		ordered;		/* by id: a page has shown that the order is honored */
	int			recounts;		/* in a row that found more than were listed */
	int64	   *pass;			/* the patients of a pass through one second */
	int			npass;
	int			pass_size;		/* allocated */
	int64		pass_total;		/* how many there should be */

	int64		named[MOST_NAMED];	/* missing patients that the next request asks for */
	int			nnamed;
} Enumeration;

/* Records of one page, or none. */
typedef struct PassagePart
{
	ClinikoRecord *records;
	int			nrecords;
	ClinikoRange told;			/* who is in here, and not among the records, is missing */
} PassagePart;

/* Records that are stored in one transaction. */
typedef struct Passage
{
	PassagePart parts[MOST_TAKEN + CLINIKO_MAX_RANGES];
	int			nparts;
	int			nrecords;		/* in all */
	int			npages;			/* pages that are done with it */
	bool		tells_missing;	/* whether "told" says anything */
	ClinikoCursor cursor;		/* where the run resumes behind it */
} Passage;

extern void enumeration_begin(Enumeration *list, Run *run, int page_size);
extern void enumeration_start_over(Enumeration *list);
extern bool enumeration_wants(const Enumeration *list);
extern int	enumeration_ask(Enumeration *list);
extern bool enumeration_expects(const Enumeration *list, int number);
extern void enumeration_take_back(Enumeration *list, int number);
extern PageFit enumeration_take(Enumeration *list, int number, ClinikoPage *page);
extern int	enumeration_waiting(const Enumeration *list);
extern bool enumeration_takes_more(const Enumeration *list, int most);
extern void enumeration_drop(Enumeration *list);
extern void enumeration_pass(Enumeration *list, int most, Passage *passage);
extern void enumeration_passed(Enumeration *list, const Passage *passage,
							   const ClinikoCursor *before);

extern int	enumeration_most_named(const Enumeration *list);
extern char *enumeration_url(const Enumeration *list, const ClinikoAccount *account,
							 int number);
extern bool enumeration_confirm(Enumeration *list, ClinikoPage *page);

#endif							/* CLINISYNC_ENUMERATION_H */
