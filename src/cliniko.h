/*
 * cliniko.h
 *		Cliniko's dialect: keys, URLs, pages of patients, what an answer means.
 */
#ifndef CLINISYNC_CLINIKO_H
#define CLINISYNC_CLINIKO_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "json.h"
#include "transport.h"

/* "au1": two letters, one or two digits */
#define CLINIKO_SHARD_SIZE 5
/* "2024-03-05T01:02:03Z", and room for fractions that nobody has seen yet */
#define CLINIKO_TIME_SIZE 40

/*
 * Why a run or a test failed: error_type of a failed run, error_code of a
 * failed test. What each means and what to do is the table in cliniko.c.
 */
typedef enum ClinikoError
{
	CLINIKO_NO_ERROR,
	CLINIKO_AUTH_FAILED,
	CLINIKO_FORBIDDEN,
	CLINIKO_NOT_FOUND,
	CLINIKO_ACCOUNT_MISMATCH,
	CLINIKO_BAD_REQUEST,
	CLINIKO_RATE_LIMITED,
	CLINIKO_UNAVAILABLE,
	CLINIKO_REDIRECT,
	CLINIKO_NETWORK_ERROR,
	CLINIKO_RESPONSE_TOO_LARGE,
	CLINIKO_INCOMPLETE_ENUMERATION,
	CLINIKO_CONFIGURATION_ERROR,
	CLINIKO_CREDENTIALS_UNREADABLE,
	CLINIKO_DATABASE_CONSTRAINT_ERROR,
	CLINIKO_DATABASE_ERROR,
	CLINIKO_SYNC_CANCELLED,
	CLINIKO_INTERNAL_ERROR
} ClinikoError;

/* What to make of an answer. */
typedef struct ClinikoVerdict
{
	ClinikoError error;			/* CLINIKO_NO_ERROR: the body is what was asked for */
	bool		passing;		/* trying again may help */
	long		wait_ms;		/* Cliniko's word on how long to wait, or 0 */
} ClinikoVerdict;

/* One account as the wire needs it. */
typedef struct ClinikoAccount
{
	char	   *api_url;		/* without a slash at the end */
	const char *api_key;		/* the caller's, who wipes it */
	char	   *user_agent;
} ClinikoAccount;

/* Where Cliniko tells which account a key belongs to. */
#define CLINIKO_ACCOUNT_PATH "/settings/public"

/* How many patients one page can have, so Cliniko. */
#define CLINIKO_MAX_PAGE_SIZE 100

/* In which order patients are asked for; see cliniko_patients_url(). */
typedef enum ClinikoOrder
{
	CLINIKO_BY_ID,
	CLINIKO_BY_CREATION
} ClinikoOrder;

/*
 * Whom an enumeration asks for. That archiving a patient moves its updated_at
 * is not documented, so what changed is asked for in two parts that share
 * nobody.
 */
typedef enum ClinikoPart
{
	CLINIKO_EVERYONE,
	CLINIKO_UPDATED,			/* since changed_since */
	CLINIKO_ARCHIVED,			/* since then, and not updated since */
	CLINIKO_MISSING				/* by name: rows of ours that were not listed */
} ClinikoPart;

/* The ids between two others, without these. */
typedef struct ClinikoRange
{
	int64		after_id;
	int64		below_id;		/* PG_INT64_MAX: no upper end; 0: no range at all */
} ClinikoRange;

/* Where a range is listed from: its lowest ids first, or its highest. */
typedef enum ClinikoEnd
{
	CLINIKO_LOW_END,
	CLINIKO_HIGH_END
} ClinikoEnd;

/* Into how many ranges an enumeration by id may be divided at a time. */
#define CLINIKO_MAX_RANGES 16

/* Up to where an enumeration has come. */
typedef struct ClinikoCursor
{
	ClinikoPart part;
	char		changed_since[CLINIKO_TIME_SIZE];	/* empty: for everyone */
	ClinikoOrder order;
	ClinikoRange ranges[CLINIKO_MAX_RANGES];	/* by id: what is not done */
	int64		after_id;		/* by id: the highest id that is done; missing: the last one */
	int64		before;			/* how many patients the parts before this one had */
	bool		counting;		/* not the next page, but how many there are */
	char		since[CLINIKO_TIME_SIZE];	/* by creation: up to here all is done */
	bool		beyond;			/* by creation: that very second is done as well */
	int			page;			/* by creation: which page of that second alone, or 0 */
} ClinikoCursor;

/* One record of a page; the JSON is in the page's body. */
typedef struct ClinikoRecord
{
	int64		id;				/* 0 where it is no int64 */
	JsonObject	json;			/* its text of length 0 where the record is none */
	char		created_at[CLINIKO_TIME_SIZE];	/* empty where missing */
	bool		archived;
} ClinikoRecord;

typedef struct ClinikoPage
{
	MemoryContext context;		/* holds the page and its records */
	char	   *body;			/* malloc'ed; the records point into it */
	int64		total_entries;	/* how many match, on all pages */
	bool		has_next;
	int			nrecords;
	int			nseen;			/* more records behind these that came on earlier pages */
	ClinikoRecord *records;
} ClinikoPage;

extern const char *cliniko_error_code(ClinikoError error);
extern char *cliniko_error_details(ClinikoError error, const char *detail);
extern bool cliniko_error_retry_recommended(ClinikoError error);

extern char *cliniko_parse_key(char *input, char shard[CLINIKO_SHARD_SIZE]);
extern const char *cliniko_shard_problem(const char *api_key, const char *noted);
extern ClinikoAccount *cliniko_account(const char *api_key);
extern char *cliniko_patients_url(const ClinikoAccount *account, const ClinikoCursor *cursor,
								  const ClinikoRange *range, ClinikoEnd end, int page_size);
extern char *cliniko_named_patients_url(const ClinikoAccount *account, const int64 *ids, int count);
extern char *cliniko_account_url(const ClinikoAccount *account);
extern Transfer *cliniko_get(Transport *transport, const ClinikoAccount *account,
							 const char *url, void *owner);
extern ClinikoVerdict cliniko_judge(Transfer *transfer);
extern bool cliniko_read_moment(JsonText value, char moment[CLINIKO_TIME_SIZE]);
extern ClinikoPage *cliniko_parse_page(MemoryContext context, Transfer *transfer);
extern bool cliniko_read_account(Transfer *transfer, char **id, char **name);
extern void cliniko_free_page(ClinikoPage *page);

#endif							/* CLINISYNC_CLINIKO_H */
