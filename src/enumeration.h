/*
 * enumeration.h
 *		Which patients a run has seen, and what it has to ask for next.
 */
#ifndef CLINISYNC_ENUMERATION_H
#define CLINISYNC_ENUMERATION_H

#include "postgres.h"

#include "cliniko.h"
#include "run.h"

/* How a page fits into the enumeration. */
typedef enum PageFit
{
	PAGE_MORE,					/* the cursor has moved behind it */
	PAGE_LAST,					/* nothing follows */
	PAGE_CONTRADICTION,			/* it cannot be what was asked for */
	PAGE_DISORDER				/* the order of the list has hidden somebody */
} PageFit;

/* The most patients that one request names, the witnesses among them. */
#define MOST_NAMED CLINIKO_MAX_PAGE_SIZE

typedef struct Enumeration
{
	Run		   *run;
	ClinikoCursor cursor;		/* what the next request asks for */
	int			page_size;		/* the same for the whole run */

	int			recounts;		/* in a row that found more than were listed */
	int64	   *pass;			/* the patients of a pass through one second */
	int			npass;
	int			pass_size;		/* allocated */
	int64		pass_total;		/* how many there should be */

	int64		named[MOST_NAMED];	/* missing patients that the next request asks for */
	int			nnamed;
} Enumeration;

extern void enumeration_begin(Enumeration *list, Run *run, int page_size);
extern void enumeration_start_over(Enumeration *list);
extern PageFit enumeration_take(Enumeration *list, ClinikoPage *page);
extern ClinikoCursor enumeration_pass(Enumeration *list, const ClinikoPage *page,
									  int first, int count);
extern void enumeration_forget(Enumeration *list, const ClinikoPage *page,
							   const ClinikoCursor *before);

extern int	enumeration_most_named(const Enumeration *list);
extern char *enumeration_url(const Enumeration *list, const ClinikoAccount *account);
extern bool enumeration_confirm(Enumeration *list, const ClinikoPage *page);

#endif							/* CLINISYNC_ENUMERATION_H */
