/*
 * transport.c
 *		Many HTTP requests at once, one place to wait.
 *
 * libcurl's multi handle says which sockets it wants watched; these go into
 * one epoll descriptor, and that descriptor is, beside the process latch, what
 * a single WaitEventSet waits for. So latch, network, timers and postmaster
 * death are one wait, and an interrupt is served while any number of requests
 * hang.
 *
 * libcurl has no more requests than it may have connections: the others wait in
 * a queue here, first in, first out. In libcurl's own queue their timeouts would
 * run, and since 8.14 the shorter one for connecting too.
 *
 *	a transfer			event									becomes
 *	-					transport_get()							queued
 *	queued				fewer than max_active are active		active
 *	active				it ended, or libcurl refused it			ended
 *	ended				transport_next_done() returned it		returned
 *	any					transfer_release()						-
 *
 * Its timeouts and its elapsed time begin when it becomes active.
 *
 * Bodies stay compressed, as they came, until somebody reads them: an answer that
 * waits for its turn takes little memory.
 *
 * This file knows neither Cliniko nor SPI. No libcurl callback calls ereport,
 * palloc or anything else that could jump out of it: bodies are grown with
 * realloc, and a failure becomes the transfer's outcome.
 *
 * libcurl resolves names in threads of its own. A thread inherits the signal
 * mask of its creator, so signals are blocked around every call that may make
 * one: PostgreSQL's handlers must only ever run in the main thread.
 *
 * Who asks is an API key, which must not stay in memory. libcurl copies it into headers
 * and requests that it frees as they are, so it is given memory that is overwritten when
 * it is freed, and is not told a user's name, which it would keep with a connection
 * for as long as that is open: the header is made here. A process in which another library
 * has initialized libcurl before keeps that one's memory functions; the worker has
 * no other.
 *
 * Memory: a Transport lives in the context given to transport_create() and
 * ends with it, through a reset callback, whichever way the context ends. What
 * libcurl and the transfers hold is malloc'ed and freed there too, or by
 * transfer_release().
 */
#include "postgres.h"

#include <curl/curl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "common/base64.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "gzip.h"
#include "transport.h"

#if LIBCURL_VERSION_NUM < 0x075700
#error "clinisync needs libcurl 7.87 or later"
#endif

/* How many ready sockets one epoll_wait() takes; more wait for the next. */
#define EVENTS_PER_WAIT 64

/* The least size of a body's buffer; a compressed page of 100 patients is about that. */
#define LEAST_BODY_SIZE ((size_t) 16 * 1024)
/* What is allocated ahead at most, because the last answer took as much. */
#define MOST_USUAL_BODY_SIZE ((size_t) 1024 * 1024)

/*
 * PostgreSQL lets a process have max_safe_fds / 3 descriptors that are not its
 * own. So many of these are not for connections, but for epoll, wait event sets,
 * other libraries, and the second socket that libcurl opens while the first
 * address of a host is slow to connect. Where none is free for that second socket,
 * the first goes on alone.
 *
 * The descriptors of threads that resolve a name are not counted, since libcurl
 * has no callback for them.
 */
#define OTHER_DESCRIPTORS 16

/* How long connecting may take, at most. */
#define CONNECT_TIMEOUT_MS 10000L

/* Where a transfer is between transport_get() and transfer_release(). */
typedef enum TransferStage
{
	STAGE_QUEUED,				/* not known to libcurl yet */
	STAGE_ACTIVE,				/* has a connection, or may have one */
	STAGE_ENDED,				/* has an outcome, which is still to be returned */
	STAGE_RETURNED				/* is only kept until it is released */
} TransferStage;

#define NSTAGES (STAGE_RETURNED + 1)

struct Transport
{
	CURLM	   *multi;
	int			epoll_fd;		/* -1 until open */
	WaitEventSet *waits;
	int64		timer_due_us;	/* when libcurl wants to be called in any case, or -1 */
	dlist_head	transfers[NSTAGES]; /* by stage, in the order of entering it */
	int			nactive;
	int			max_active;		/* how many connections there may be */
	size_t		usual_body_size;	/* what the last answer took */
	MemoryContextCallback at_reset;
};

typedef struct PrivateTransfer
{
	Transfer	shown;			/* must be first */
	TransferStage stage;
	dlist_node	node;			/* in the list of its stage */
	CURL	   *easy;
	struct curl_slist *headers;
	size_t		body_size;		/* allocated, or to be allocated first */
	size_t		max_size;
	bool		too_large;
	bool		read;			/* transfer_read() was here */
	int64		started_us;		/* when it became active */
} PrivateTransfer;

/* Free memory of libcurl's, in which there may be an API key. */
static void
wipe_and_free(void *pointer)
{
	if (pointer)
		explicit_bzero(pointer, malloc_usable_size(pointer));
	free(pointer);
}

/* Likewise, where it moves to grow. */
static void *
wipe_and_realloc(void *pointer, size_t size)
{
	size_t		usable_size = pointer ? malloc_usable_size(pointer) : 0;
	void	   *larger;

	if (pointer && size <= usable_size)
		return pointer;
	larger = malloc(size);
	if (larger == NULL)
		return NULL;
	if (pointer)
		memcpy(larger, pointer, usable_size);
	wipe_and_free(pointer);
	return larger;
}

/* Microseconds on a clock that nobody sets. */
static int64
monotonic_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Block every signal, for the threads that libcurl may start meanwhile. */
static void
block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, saved);
}

static void
restore_signals(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/* Libcurl wants another set of events of a socket: tell epoll. */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *known)
{
	Transport  *transport = arg;
	struct epoll_event event = {0};

	event.data.fd = fd;
	if (what == CURL_POLL_REMOVE)
	{
		epoll_ctl(transport->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		curl_multi_assign(transport->multi, fd, NULL);
		return 0;
	}
	event.events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
	if (epoll_ctl(transport->epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) < 0)
		return -1;
	curl_multi_assign(transport->multi, fd, transport);
	return 0;
}

/* Libcurl wants to be called after a time, or (-1) no longer. */
static int
on_timer(CURLM *multi, long timeout_ms, void *arg)
{
	Transport  *transport = arg;

	transport->timer_due_us = timeout_ms < 0 ? -1 : monotonic_us() + timeout_ms * 1000;
	return 0;
}

/* Open a socket, counted among the descriptors that PostgreSQL keeps free. */
static curl_socket_t
on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	curl_socket_t fd;

	if (!AcquireExternalFD())
		return CURL_SOCKET_BAD;
	fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
	if (fd == CURL_SOCKET_BAD)
		ReleaseExternalFD();
	return fd;
}

static int
on_close_socket(void *arg, curl_socket_t fd)
{
	int			result = close(fd);

	ReleaseExternalFD();
	return result;
}

/* Take a piece of a body, never more than the transfer's maximum. */
static size_t
on_body(char *data, size_t size, size_t count, void *arg)
{
	PrivateTransfer *transfer = arg;
	size_t		len = size * count;
	size_t		needed = transfer->shown.body_len + len + 1;

	if (needed > transfer->max_size + 1)
	{
		transfer->too_large = true;
		return 0;				/* libcurl ends the transfer */
	}
	if (transfer->shown.body == NULL || needed > transfer->body_size)
	{
		size_t		larger = transfer->shown.body == NULL
			? Max(needed, transfer->body_size)
			: Max(needed, transfer->body_size * 2);
		char	   *body = realloc(transfer->shown.body, larger);

		if (body == NULL)
		{
			transfer->too_large = true;
			return 0;
		}
		transfer->shown.body = body;
		transfer->body_size = larger;
	}
	memcpy(transfer->shown.body + transfer->shown.body_len, data, len);
	transfer->shown.body_len += len;
	transfer->shown.body[transfer->shown.body_len] = '\0';
	return len;
}

static void
enter_stage(Transport *transport, PrivateTransfer *transfer, TransferStage stage)
{
	transfer->stage = stage;
	dlist_push_tail(&transport->transfers[stage], &transfer->node);
	transport->nactive += (stage == STAGE_ACTIVE);
}

static void
leave_stage(Transport *transport, PrivateTransfer *transfer)
{
	dlist_delete(&transfer->node);
	transport->nactive -= (transfer->stage == STAGE_ACTIVE);
}

static void
change_stage(Transport *transport, PrivateTransfer *transfer, TransferStage stage)
{
	leave_stage(transport, transfer);
	enter_stage(transport, transfer, stage);
}

/* The transfer that has been in a stage for longest, or NULL. */
static PrivateTransfer *
first_in_stage(Transport *transport, TransferStage stage)
{
	dlist_head *transfers = &transport->transfers[stage];

	return dlist_is_empty(transfers) ? NULL
		: dlist_head_element(PrivateTransfer, node, transfers);
}

/* Give back all that libcurl and malloc hold for a transport. */
static void
transport_close(void *arg)
{
	Transport  *transport = arg;
	PrivateTransfer *transfer;
	sigset_t	saved;

	for (int stage = 0; stage < NSTAGES; stage++)
	{
		while ((transfer = first_in_stage(transport, stage)) != NULL)
			transfer_release(transport, &transfer->shown);
	}
	block_signals(&saved);
	if (transport->multi)
		curl_multi_cleanup(transport->multi);
	restore_signals(&saved);
	if (transport->waits)
		FreeWaitEventSet(transport->waits);
	if (transport->epoll_fd >= 0)
	{
		close(transport->epoll_fd);
		ReleaseExternalFD();
	}
}

/*
 * Make a transport that lives as long as the memory context. Raises an error
 * where descriptors or memory are lacking.
 */
Transport *
transport_create(MemoryContext context)
{
	static bool initialized = false;
	MemoryContext old_context = MemoryContextSwitchTo(context);
	Transport  *transport = palloc0(sizeof(Transport));

	transport->epoll_fd = -1;
	transport->timer_due_us = -1;
	for (int stage = 0; stage < NSTAGES; stage++)
		dlist_init(&transport->transfers[stage]);
	transport->max_active = Max(max_safe_fds / 3 - OTHER_DESCRIPTORS, 1);
	transport->at_reset.func = transport_close;
	transport->at_reset.arg = transport;
	MemoryContextRegisterResetCallback(context, &transport->at_reset);

	if (!initialized &&
		curl_global_init_mem(CURL_GLOBAL_DEFAULT, malloc, wipe_and_free, wipe_and_realloc,
							 strdup, calloc) != CURLE_OK)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not initialize libcurl")));
	initialized = true;

	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("no file descriptor is free for network connections"),
				 errhint("Increase max_files_per_process.")));
	transport->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (transport->epoll_fd < 0)
	{
		ReleaseExternalFD();
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not create an epoll descriptor: %m")));
	}

	transport->multi = curl_multi_init();
	if (transport->multi == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not initialize libcurl")));
	curl_multi_setopt(transport->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(transport->multi, CURLMOPT_SOCKETDATA, transport);
	curl_multi_setopt(transport->multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(transport->multi, CURLMOPT_TIMERDATA, transport);
	/* idle connections count too: libcurl closes one of them where it needs a new one */
	curl_multi_setopt(transport->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS,
					  (long) transport->max_active);

	transport->waits = compat_create_wait_event_set(context, 3);
	AddWaitEventToSet(transport->waits, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(transport->waits, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(transport->waits, WL_SOCKET_READABLE, transport->epoll_fd, NULL, NULL);

	MemoryContextSwitchTo(old_context);
	return transport;
}

/*
 * Set what every request has in common. The rules are the design's: TLS 1.2
 * or later, always verified; https, or http where settings.c let a loopback
 * address pass; no redirects; no HTTP/2, whose shared connection would let one
 * clinic's stalled answer hold up the others.
 */
static void
set_options(PrivateTransfer *transfer, const TransferRequest *request)
{
	CURL	   *easy = transfer->easy;
	bool		loopback = (strncmp(request->url, "http://", 7) == 0);

	curl_easy_setopt(easy, CURLOPT_URL, request->url);
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, loopback ? "http" : "https");
	if (loopback)
		curl_easy_setopt(easy, CURLOPT_PROXY, "");
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	if (request->ca_file && request->ca_file[0])
		curl_easy_setopt(easy, CURLOPT_CAINFO, request->ca_file);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, request->user_agent);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, transfer->headers);
	curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, request->timeout_ms);
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS,
					 Min(request->timeout_ms, CONNECT_TIMEOUT_MS));
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
	curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
	curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, on_close_socket);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
	curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer);
}

/* Note how an active transfer ended. */
static void
finish_transfer(Transport *transport, PrivateTransfer *transfer, CURLcode code)
{
	transfer->shown.elapsed_us = monotonic_us() - transfer->started_us;
	if (transfer->too_large)
		transfer->shown.outcome = TRANSFER_TOO_LARGE;
	else if (code == CURLE_OK)
	{
		transfer->shown.outcome = TRANSFER_ANSWERED;
		transport->usual_body_size = Min(transfer->shown.body_len + 1, MOST_USUAL_BODY_SIZE);
		curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &transfer->shown.status);
	}
	else
	{
		transfer->shown.outcome = TRANSFER_BROKEN;
		transfer->shown.reason = curl_easy_strerror(code);
	}
	change_stage(transport, transfer, STAGE_ENDED);
}

/* Add a header to those of a transfer. Returns false where memory is lacking. */
static bool
add_header(PrivateTransfer *transfer, const char *line)
{
	struct curl_slist *longer = curl_slist_append(transfer->headers, line);

	if (longer != NULL)
		transfer->headers = longer;
	return longer != NULL;
}

/* Likewise, the one of HTTP Basic for a user without a password. */
static bool
add_authorization(PrivateTransfer *transfer, const char *user)
{
	static const char name[] = "Authorization: Basic ";
	int			plain_len = strlen(user) + 1;
	int			line_size = strlen(name) + pg_b64_enc_len(plain_len) + 1;
	char	   *plain = palloc(plain_len + 1);
	char	   *line = palloc0(line_size);
	bool		added;

	snprintf(plain, plain_len + 1, "%s:", user);
	strlcpy(line, name, line_size);
	added = pg_b64_encode((const void *) plain, plain_len, line + strlen(name),
						  line_size - strlen(name)) >= 0 && add_header(transfer, line);
	explicit_bzero(plain, plain_len);
	explicit_bzero(line, line_size);
	pfree(plain);
	pfree(line);
	return added;
}

/*
 * Queue a GET request. It leaves and makes progress while transport_wait() runs,
 * and is returned by transport_next_done() when it has ended. The caller releases
 * it, at any time: before its end, that cancels it.
 */
Transfer *
transport_get(Transport *transport, const TransferRequest *request)
{
	PrivateTransfer *transfer = calloc(1, sizeof(PrivateTransfer));
	char	   *accept = psprintf("Accept: %s", request->accept);
	bool		complete;

	if (transfer == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	transfer->shown.owner = request->owner;
	transfer->shown.reason = "";
	transfer->max_size = request->max_size;
	transfer->body_size = Max(transport->usual_body_size, LEAST_BODY_SIZE);
	enter_stage(transport, transfer, STAGE_QUEUED);

	transfer->easy = curl_easy_init();
	complete = transfer->easy != NULL && add_header(transfer, accept) &&
		add_header(transfer, "Accept-Encoding: gzip") &&
		add_authorization(transfer, request->user);
	pfree(accept);
	if (!complete)
	{
		transfer_release(transport, &transfer->shown);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	}
	set_options(transfer, request);
	return &transfer->shown;
}

/* Free a transfer, cancelling it if it is queued or active. */
void
transfer_release(Transport *transport, Transfer *shown)
{
	PrivateTransfer *transfer = (PrivateTransfer *) shown;
	sigset_t	saved;

	leave_stage(transport, transfer);
	block_signals(&saved);
	if (transfer->easy)
	{
		/* does nothing where libcurl does not have it */
		curl_multi_remove_handle(transport->multi, transfer->easy);
		curl_easy_cleanup(transfer->easy);
	}
	curl_slist_free_all(transfer->headers);
	restore_signals(&saved);
	free(transfer->shown.body);
	free(transfer);
}

/* Undo the compression of a body. The outcome says where that cannot be done. */
static void
decompress(PrivateTransfer *transfer)
{
	Transfer   *shown = &transfer->shown;
	char	   *text;
	size_t		text_len;

	switch (gzip_decompress(shown->body, shown->body_len, transfer->max_size, &text, &text_len))
	{
		case GZIP_DONE:
			free(shown->body);
			shown->body = text;
			shown->body_len = text_len;
			break;
		case GZIP_CORRUPT:
			shown->outcome = TRANSFER_BROKEN;
			shown->reason = curl_easy_strerror(CURLE_BAD_CONTENT_ENCODING);
			break;
		case GZIP_TOO_LARGE:
			shown->outcome = TRANSFER_TOO_LARGE;
			break;
	}
}

/*
 * Read an ended transfer's body: from now on it is what the server meant,
 * NUL-terminated. The outcome may turn out to be worse than it seemed.
 */
void
transfer_read(Transfer *shown)
{
	PrivateTransfer *transfer = (PrivateTransfer *) shown;
	struct curl_header *encoding;

	if (transfer->read || shown->outcome != TRANSFER_ANSWERED || shown->body == NULL)
		return;
	transfer->read = true;
	if (curl_easy_header(transfer->easy, "Content-Encoding", 0, CURLH_HEADER, -1,
						 &encoding) != CURLHE_OK ||
		pg_strcasecmp(encoding->value, "identity") == 0)
		return;
	if (pg_strcasecmp(encoding->value, "gzip") == 0 ||
		pg_strcasecmp(encoding->value, "x-gzip") == 0)
		decompress(transfer);
	else
	{
		shown->outcome = TRANSFER_BROKEN;
		shown->reason = curl_easy_strerror(CURLE_BAD_CONTENT_ENCODING);
	}
}

/* Take the body out of a transfer that was read; the caller frees it. May be NULL. */
char *
transfer_take_body(Transfer *transfer)
{
	char	   *body = transfer->body;

	transfer->body = NULL;
	transfer->body_len = 0;
	return body;
}

/* Whether a queued transfer may become active. */
static bool
can_start(Transport *transport)
{
	return transport->nactive < transport->max_active &&
		first_in_stage(transport, STAGE_QUEUED) != NULL;
}

/* Make transfers active, in the order of the queue, as far as they may be. */
static void
start_transfers(Transport *transport)
{
	while (can_start(transport))
	{
		PrivateTransfer *transfer = first_in_stage(transport, STAGE_QUEUED);

		change_stage(transport, transfer, STAGE_ACTIVE);
		transfer->started_us = monotonic_us();
		if (curl_multi_add_handle(transport->multi, transfer->easy) != CURLM_OK)
			finish_transfer(transport, transfer, CURLE_FAILED_INIT);
	}
}

/* Take from libcurl which transfers have ended. */
static void
finish_transfers(Transport *transport)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(transport->multi, &left)) != NULL)
	{
		PrivateTransfer *transfer;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
		finish_transfer(transport, transfer, message->data.result);
	}
}

/*
 * Let libcurl read, write and count time, without waiting. In between, queued
 * transfers take the places of those that have ended: starting them makes
 * libcurl's timer due, so that their requests leave at once.
 */
static void
drive(Transport *transport)
{
	struct epoll_event events[EVENTS_PER_WAIT];
	int			ready = epoll_wait(transport->epoll_fd, events, EVENTS_PER_WAIT, 0);
	int			running;
	sigset_t	saved;

	block_signals(&saved);
	for (int i = 0; i < ready; i++)
	{
		uint32		happened = events[i].events;
		int			mask = (happened & (EPOLLIN | EPOLLHUP) ? CURL_CSELECT_IN : 0) |
			(happened & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
			(happened & EPOLLERR ? CURL_CSELECT_ERR : 0);

		curl_multi_socket_action(transport->multi, events[i].data.fd, mask, &running);
	}
	finish_transfers(transport);
	start_transfers(transport);
	if (transport->timer_due_us >= 0 && transport->timer_due_us <= monotonic_us())
	{
		transport->timer_due_us = -1;
		curl_multi_socket_action(transport->multi, CURL_SOCKET_TIMEOUT, 0, &running);
		finish_transfers(transport);
	}
	restore_signals(&saved);
}

/*
 * Wait for the latch, the network or the time, whichever is first, and let the
 * requests make progress. Serves interrupts, so it may not return. timeout_ms:
 * 0 returns at once, -1 sets no limit. Returns whether the latch was set.
 */
bool
transport_wait(Transport *transport, long timeout_ms)
{
	WaitEvent	events[3];
	bool		latch_set = false;
	int			happened;

	if (can_start(transport) || first_in_stage(transport, STAGE_ENDED) != NULL)
		timeout_ms = 0;			/* there is something to do, or to return */
	else if (transport->timer_due_us >= 0)
	{
		int64		left_us = Max(transport->timer_due_us - monotonic_us(), 0);
		long		left_ms = (long) ((left_us + 999) / 1000);

		timeout_ms = timeout_ms < 0 ? left_ms : Min(timeout_ms, left_ms);
	}
	happened = WaitEventSetWait(transport->waits, timeout_ms, events, lengthof(events),
								PG_WAIT_EXTENSION);
	for (int i = 0; i < happened; i++)
	{
		if (events[i].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			latch_set = true;
		}
	}
	CHECK_FOR_INTERRUPTS();
	drive(transport);
	return latch_set;
}

/* The next transfer that has ended, each once, or NULL. */
Transfer *
transport_next_done(Transport *transport)
{
	PrivateTransfer *transfer = first_in_stage(transport, STAGE_ENDED);

	if (transfer == NULL)
		return NULL;
	change_stage(transport, transfer, STAGE_RETURNED);
	return &transfer->shown;
}

/*
 * A header of the answer that holds a whole number, such as Retry-After: 30.
 * Returns false where it is missing or is something else.
 */
bool
transfer_header(Transfer *shown, const char *name, int64 *value)
{
	PrivateTransfer *transfer = (PrivateTransfer *) shown;
	struct curl_header *header;
	char	   *end;

	if (curl_easy_header(transfer->easy, name, 0, CURLH_HEADER, -1, &header) != CURLHE_OK)
		return false;
	errno = 0;
	*value = strtoll(header->value, &end, 10);
	return errno == 0 && end != header->value && *end == '\0';
}
