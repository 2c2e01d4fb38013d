/*
 * clinisync.h
 *		The settings, and the error codes that callers switch on.
 *
 * An SQLSTATE PTnnn becomes the HTTP status nnn in PostgREST; the message's
 * DETAIL is the code that front ends read, the HINT what to do next.
 */
#ifndef CLINISYNC_H
#define CLINISYNC_H

#include "postgres.h"

#include "utils/elog.h"

#define ERRCODE_CLINISYNC_BAD_REQUEST	MAKE_SQLSTATE('P', 'T', '4', '0', '0')
#define ERRCODE_CLINISYNC_NOT_FOUND		MAKE_SQLSTATE('P', 'T', '4', '0', '4')
#define ERRCODE_CLINISYNC_CONFLICT		MAKE_SQLSTATE('P', 'T', '4', '0', '9')
#define ERRCODE_CLINISYNC_GONE			MAKE_SQLSTATE('P', 'T', '4', '1', '0')
#define ERRCODE_CLINISYNC_UNAVAILABLE	MAKE_SQLSTATE('P', 'T', '5', '0', '3')

/*
 * Our advisory locks: the fourth field of their tags, where users' own have 1
 * or 2, and the third.
 */
#define LOCK_SPACE 0x636c
#define LOCK_WORKER 1			/* worker.c */
#define LOCK_START 2			/* worker.c */
#define LOCK_KEY_FILE 3			/* organization.c; for the whole cluster */
#define LOCK_SETUP 4			/* setup.c */

/* The most that clinisync.requests_in_flight can be. */
#define MOST_REQUESTS_IN_FLIGHT 16

/* settings.c: see settings_define() for units and ranges */
extern char *clinisync_base_url;
extern char *clinisync_vendor_name;
extern char *clinisync_contact_email;
extern char *clinisync_ca_file;
extern char *clinisync_key_file;
extern int	clinisync_page_size;
extern int	clinisync_batch_size;
extern int	clinisync_requests_in_flight;
extern int	clinisync_requests_per_minute;
extern int	clinisync_request_timeout;
extern int	clinisync_retry_window;
extern int	clinisync_max_running_syncs;
extern int	clinisync_max_missing_percent;
extern int	clinisync_max_response_size;
extern int	clinisync_idle_timeout;
extern int	clinisync_log_retention;

extern void settings_define(void);
extern void settings_refresh(void);
extern char *settings_contact_email_unset(void);

#endif							/* CLINISYNC_H */
