/*
 * run.h
 *		What is known of one run, and how it is told.
 */
#ifndef CLINISYNC_RUN_H
#define CLINISYNC_RUN_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "cliniko.h"

/* As callers see it in operation_type. */
#define OPERATION_FULL "full_patients"
#define OPERATION_INCREMENTAL "incremental_patients"
#define OPERATION_ACTIVE "active_patients"	/* in logs of other programs */

/* As callers see it in metadata.step. */
typedef enum RunStep
{
	RUN_QUEUED,
	RUN_CONNECTING,
	RUN_FETCHING,
	RUN_STORING,
	RUN_RECONCILING,
	RUN_WAITING,
	RUN_COMPLETED,
	RUN_FAILED
} RunStep;

/*
 * What changes with a batch, apart from the rest so that it can be put back
 * by assignment when the batch does not commit.
 */
typedef struct RunState
{
	ClinikoCursor cursor;		/* where the enumeration resumes */
	int			nseen;			/* how many of Run.seen count */
	int			nerrors;		/* how many of Run.errors count */
	int64		pages;			/* pages stored to their end */
	int64		inserted;
	int64		updated;
	int64		unchanged;
	int64		failed;
	int64		archived;		/* among all of the above */
	int64		restored;		/* among updated: had been marked deleted */
	int64		missing;		/* rows of ours that Cliniko did not list; see run_missing_limit() */
	int64		deleted;		/* among missing: Cliniko confirmed it */
	int64		falls;			/* how often the size of the job fell; see enumeration.c */
	int64		kept;			/* among failed: the row that was there is still there */
	int64		witnesses[2];	/* the last two patients that Cliniko did list; 0: nobody */
	double		percent;		/* never falls */
} RunState;

typedef struct Run
{
	MemoryContext context;		/* holds all that follows */
	int64		id;
	char	   *organization_id;
	char	   *operation_type;
	char	   *api_key;		/* NULL where it cannot be read */
	const char *key_problem;	/* then, why; NULL if not */
	char	   *account_id;		/* Cliniko's id of the account that is stored; or NULL */
	TimestampTz started_at;		/* when it was asked for */

	RunStep		step;
	RunState	state;
	int64	   *seen;			/* by creation: ids that a next page may repeat */
	int			seen_size;
	char	  **errors;			/* "Patient ID 123: …", at most RUN_MAX_ERRORS */

	int64		found;			/* the size of the job; -1 until it is known */
	int64		requests;
	int64		retries;
	int64		rate_limited;
	int64		api_us;			/* spent on requests */
	int64		database_us;	/* spent on transactions */
	TimestampTz waiting_until;	/* while waiting */
	const char *waiting_for;

	TimestampTz began_at;		/* when this worker took it up */
	int64		began_with;		/* how many were accounted for by then */

	ClinikoError error;			/* why it failed */
	char	   *error_details;
} Run;

#define RUN_MAX_ERRORS 100

extern Run *run_create(MemoryContext parent);
extern void run_free(Run *run);
extern int64 run_success(const Run *run);
extern int64 run_accounted(const Run *run);
extern void run_add_error(Run *run, const char *format, ...) pg_attribute_printf(2, 3);
extern bool run_has_seen(const Run *run, int64 id);
extern void run_add_seen(Run *run, int64 id);
extern void run_fail(Run *run, ClinikoError error, const char *detail);
extern void run_start_over(Run *run, ClinikoOrder order);
extern int64 run_missing_limit(const Run *run);
extern void run_update_percent(Run *run);
extern void run_notify(const char *organization_id, int64 id, const char *status,
					   double percent);
extern char *run_metadata(Run *run);
extern char *run_checkpoint(const Run *run);
extern void run_restore(Run *run, const char *checkpoint, const char *metadata);

#endif							/* CLINISYNC_RUN_H */
