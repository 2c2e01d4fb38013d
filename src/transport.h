/*
 * transport.h
 *		Many HTTP requests at once, one place to wait.
 */
#ifndef CLINISYNC_TRANSPORT_H
#define CLINISYNC_TRANSPORT_H

#include "postgres.h"

#include "datatype/timestamp.h"

typedef struct Transport Transport;

typedef enum TransferOutcome
{
	TRANSFER_PENDING,			/* queued or under way */
	TRANSFER_ANSWERED,			/* an answer arrived whole: see status and body */
	TRANSFER_BROKEN,			/* no whole answer: name, connection, TLS, timeout, reset */
	TRANSFER_TOO_LARGE			/* the answer exceeded the request's max_size */
} TransferOutcome;

/* What is asked of transport_get(); copied, so it may be on the stack. */
typedef struct TransferRequest
{
	const char *url;
	const char *user;			/* HTTP Basic, with an empty password */
	const char *user_agent;
	const char *accept;			/* the value of the Accept header */
	const char *ca_file;		/* empty: the system's */
	long		timeout_ms;		/* from when the request leaves the queue */
	size_t		max_size;		/* bytes of body, before and after decompression */
	void	   *owner;			/* comes back in Transfer.owner */
} TransferRequest;

typedef struct Transfer
{
	void	   *owner;
	TransferOutcome outcome;
	long		status;			/* HTTP status, if answered */
	const char *reason;			/* what broke it, in libcurl's fixed words */
	char	   *body;			/* as transfer_read() leaves it; transfer_release() frees it */
	size_t		body_len;
	int64		elapsed_us;		/* from when the request left to the end of the answer */
} Transfer;

extern Transport *transport_create(MemoryContext context);
extern Transfer *transport_get(Transport *transport, const TransferRequest *request);
extern bool transport_wait(Transport *transport, long timeout_ms);
extern Transfer *transport_next_done(Transport *transport);
extern bool transfer_header(Transfer *transfer, const char *name, int64 *value);
extern void transfer_read(Transfer *transfer);
extern char *transfer_take_body(Transfer *transfer);
extern void transfer_release(Transport *transport, Transfer *transfer);

#endif							/* CLINISYNC_TRANSPORT_H */
