/*
 * cliniko.c
 *		Cliniko's dialect: keys, URLs, pages of patients, what an answer means.
 *
 * The rules are those of Cliniko's API v1 (docs.api.cliniko.com); where no
 * source settles a question, both answers are accepted. This file knows the
 * wire and the JSON, and neither SPI nor tables.
 *
 * Memory: results are palloc'ed in the current context, pages in the one given.
 * A page owns the body that it was read from, which is malloc'ed, so it must
 * end with cliniko_free_page().
 */
#include "postgres.h"

#include <ctype.h>
#include <time.h>

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "clinisync.h"
#include "cliniko.h"

/* Cliniko: "if your API key doesn't have a shard suffix, the shard is au1" */
#define DEFAULT_SHARD "au1"

/* No account's id or name is longer, in bytes. */
#define MAX_NAME_LENGTH 1000

/* Longer than any key seen by far, short enough for a header. */
#define MAX_KEY_LENGTH 512

/* Cliniko sends 100 patients a page at most; twice as many are no page of its. */
#define MOST_RECORDS 200

/*
 * Cliniko's limit is per minute, so no honest wait is longer; a reset further
 * off than this comes from a clock that is wrong.
 */
#define MAX_RATE_LIMIT_WAIT_S 60
/* What to wait where a 429 says nothing usable. */
#define DEFAULT_RATE_LIMIT_WAIT_S 10L

static const struct
{
	const char *code;
	const char *sentence;
	const char *hint;
	bool		retry_recommended;
}			errors[] = {
	[CLINIKO_NO_ERROR] = {"", "", "", false},
	[CLINIKO_AUTH_FAILED] = {
		"CLINIKO_AUTH_FAILED", "Cliniko does not accept the API key (HTTP 401).",
		"Create a new key in Cliniko under My Info > Manage API keys and pass it to "
		"cliniko_connect().", false},
	[CLINIKO_FORBIDDEN] = {
		"CLINIKO_FORBIDDEN", "Cliniko refuses this API key access to patients (HTTP 403).",
		"Use the key of a user whose role may see all patients, and check that "
		"clinisync.contact_email is an address Cliniko can reach.", false},
	[CLINIKO_NOT_FOUND] = {
		"CLINIKO_NOT_FOUND", "Cliniko does not know the address that was asked for (HTTP 404).",
		"Check the key's shard suffix and clinisync.base_url.", false},
	[CLINIKO_ACCOUNT_MISMATCH] = {
		"ACCOUNT_MISMATCH", "The API key belongs to another Cliniko account than the patients "
		"that are stored for this organization. Nothing was stored.",
		"Pass the right key to cliniko_connect(), or connect the other account under an id of its "
		"own; docs/ERROR_HANDLING.md tells how to move an organization to another account.", false},
	[CLINIKO_BAD_REQUEST] = {
		"CLINIKO_BAD_REQUEST", "Cliniko did not understand the request (HTTP 4xx).",
		"Cliniko's API may have changed: look for a newer version of clinisync.", false},
	[CLINIKO_RATE_LIMITED] = {
		"CLINIKO_RATE_LIMITED", "Cliniko's request limit stayed reached (HTTP 429).",
		"Other programs may be using the same user's keys; sync again later.", true},
	[CLINIKO_UNAVAILABLE] = {
		"CLINIKO_UNAVAILABLE", "Cliniko did not give a usable answer (HTTP 5xx, or not JSON).",
		"Sync again later; Cliniko's status page tells of outages.", true},
	[CLINIKO_REDIRECT] = {
		"CLINIKO_REDIRECT", "Cliniko answered with a redirect, which is not followed.",
		"The account may have moved to another shard: create a new key and pass it to "
		"cliniko_connect().", false},
	[CLINIKO_NETWORK_ERROR] = {
		"NETWORK_ERROR", "Cliniko could not be reached, or the connection broke.",
		"Check the database server's network, name resolution and CA certificates; "
		"sync again later.", true},
	[CLINIKO_RESPONSE_TOO_LARGE] = {
		"RESPONSE_TOO_LARGE", "An answer was larger than clinisync.max_response_size.",
		"Lower clinisync.page_size or raise clinisync.max_response_size.", false},
	[CLINIKO_INCOMPLETE_ENUMERATION] = {
		"INCOMPLETE_ENUMERATION", "Cliniko's list of patients contradicted itself.",
		"Nothing was removed. Sync again later.", true},
	[CLINIKO_CONFIGURATION_ERROR] = {
		"CONFIGURATION_ERROR", "The database is not ready to sync.",
		"Then sync again.", false},
	[CLINIKO_CREDENTIALS_UNREADABLE] = {
		"CREDENTIALS_UNREADABLE", "The stored API key cannot be read.",
		"Nothing is lost: then sync again.", false},
	[CLINIKO_DATABASE_CONSTRAINT_ERROR] = {
		"DATABASE_CONSTRAINT_ERROR", "No patient could be stored.",
		"See errors, and check the constraints and triggers that were added to patients.", false},
	[CLINIKO_DATABASE_ERROR] = {
		"DATABASE_ERROR", "The database could not store patients.",
		"Mend what the SQLSTATE tells of, and sync again.", true},
	[CLINIKO_SYNC_CANCELLED] = {
		"SYNC_CANCELLED", "The sync was cancelled.",
		"What was stored stays; sync again at any time.", true},
	[CLINIKO_INTERNAL_ERROR] = {
		"INTERNAL_ERROR", "clinisync met a state that it does not expect.",
		"Please report this with the server's log.", true},
};

const char *
cliniko_error_code(ClinikoError error)
{
	return errors[error].code;
}

/*
 * What happened and what to do next, for people: error_details of a run. detail:
 * one more fact, or NULL.
 */
char *
cliniko_error_details(ClinikoError error, const char *detail)
{
	return psprintf("%s%s%s %s", errors[error].sentence, detail ? " " : "", detail ? detail : "",
					errors[error].hint);
}

bool
cliniko_error_retry_recommended(ClinikoError error)
{
	return errors[error].retry_recommended;
}

/*
 * Find the shard of an API key, which is the suffix of two letters and one or two
 * digits after the last hyphen, in any case (Cliniko: "the shard is at the end of
 * the key"). Returns false where this cannot be a key.
 */
static bool
find_shard(const char *key, int len, char shard[CLINIKO_SHARD_SIZE])
{
	const char *end = key + len;
	const char *hyphen = NULL;
	int			suffix_len;

	if (len == 0 || len > MAX_KEY_LENGTH)
		return false;
	for (const char *c = key; c < end; c++)
	{
		/* a colon would end the user name of HTTP Basic */
		if (*c <= ' ' || *c > '~' || *c == ':')
			return false;
		if (*c == '-')
			hyphen = c;
	}

	strlcpy(shard, DEFAULT_SHARD, CLINIKO_SHARD_SIZE);
	suffix_len = hyphen ? end - hyphen - 1 : 0;
	if ((suffix_len == 3 || suffix_len == 4) &&
		isalpha((unsigned char) hyphen[1]) && isalpha((unsigned char) hyphen[2]) &&
		isdigit((unsigned char) hyphen[3]) &&
		(suffix_len == 3 || isdigit((unsigned char) hyphen[4])))
	{
		if (hyphen == key)
			return false;
		for (int i = 0; i < suffix_len; i++)
			shard[i] = tolower((unsigned char) hyphen[1 + i]);
		shard[suffix_len] = '\0';
	}
	return true;
}

/*
 * Check an API key's shape and find its shard. Returns the key without surrounding
 * blanks, which is where it was, or NULL where it cannot be a key.
 */
char *
cliniko_parse_key(char *input, char shard[CLINIKO_SHARD_SIZE])
{
	char	   *start = input;
	char	   *end = input + strlen(input);

	while (start < end && isspace((unsigned char) *start))
		start++;
	while (start < end && isspace((unsigned char) end[-1]))
		end--;
	if (!find_shard(start, end - start, shard))
		return NULL;
	*end = '\0';
	return start;
}

/*
 * Say what is wrong with the shard that is noted beside a stored key, or NULL.
 * The key alone decides where it is sent; whoever has changed the note meant
 * to have it sent elsewhere.
 */
const char *
cliniko_shard_problem(const char *api_key, const char *noted)
{
	char		shard[CLINIKO_SHARD_SIZE];

	if (noted == NULL)
		return "Its shard is missing: pass the API key to cliniko_connect() again.";
	if (!find_shard(api_key, strlen(api_key), shard) || strcmp(shard, noted) != 0)
		return "Its shard was changed: pass the API key to cliniko_connect() again.";
	return NULL;
}

/*
 * An account with the settings of this moment, on the host that its key names.
 * It refers to the key, which must stay until the account is no longer used. NULL
 * where Cliniko's rule that a request names its sender ("VENDOR (contact@email)")
 * cannot be met, because clinisync.contact_email is not set.
 */
ClinikoAccount *
cliniko_account(const char *api_key)
{
	ClinikoAccount *account;
	char		shard[CLINIKO_SHARD_SIZE];

	if (clinisync_contact_email[0] == '\0')
		return NULL;
	if (!find_shard(api_key, strlen(api_key), shard))
		elog(ERROR, "an API key has lost its shape");
	account = palloc(sizeof(ClinikoAccount));
	account->api_key = api_key;
	account->api_url = clinisync_base_url[0] != '\0'
		? pstrdup(clinisync_base_url)
		: psprintf("https://api.%s.cliniko.com/v1", shard);
	account->user_agent = psprintf("%s (%s)", clinisync_vendor_name, clinisync_contact_email);
	return account;
}

/* Add whom to ask for; Cliniko leaves archived patients out unless asked. */
static void
append_part(StringInfo url, const ClinikoCursor *cursor)
{
	const char *since = cursor->changed_since;

	switch (cursor->part)
	{
		case CLINIKO_EVERYONE:
			appendStringInfoString(url, "?q%5B%5D=archived_at:*");
			break;
		case CLINIKO_UPDATED:
			appendStringInfo(url, "?q%%5B%%5D=archived_at:*&q%%5B%%5D=updated_at:%%3E%%3D%s", since);
			break;
		case CLINIKO_ARCHIVED:
			appendStringInfo(url, "?q%%5B%%5D=archived_at:%%3E%%3D%s&q%%5B%%5D=updated_at:%%3C%s",
							 since, since);
			break;
		case CLINIKO_MISSING:
			elog(ERROR, "missing patients are asked for by name");
	}
}

/*
 * The URL of the next page of patients, archived ones included.
 *
 * By id is the way: every request asks for one end of a range of ids, so a
 * patient that is added or removed meanwhile moves nobody to another page.
 * sort=id is a column name, as documented, but shown nowhere; by creation is
 * the way where Cliniko does not honour it. There, a page asks for what was
 * created since the last one's last record, and needs no range. Only where more
 * patients than fit a page were created in one second, page numbers are needed,
 * within that second. To count, a page of one patient will do, whoever that is;
 * by id, it is a whole one from the highest id down, to see whether it is in order.
 */
char *
cliniko_patients_url(const ClinikoAccount *account, const ClinikoCursor *cursor,
					 const ClinikoRange *range, ClinikoEnd end, int page_size)
{
	StringInfoData url;

	initStringInfo(&url);
	appendStringInfo(&url, "%s/patients", account->api_url);
	append_part(&url, cursor);
	appendStringInfo(&url, "&per_page=%d",
					 cursor->counting && cursor->order == CLINIKO_BY_CREATION ? 1 : page_size);
	if (cursor->counting)
	{
		if (cursor->order == CLINIKO_BY_ID)
			appendStringInfoString(&url, "&sort=id:desc");
		return url.data;
	}
	if (cursor->order == CLINIKO_BY_ID)
	{
		if (range->after_id > 0)
			appendStringInfo(&url, "&q%%5B%%5D=id:%%3E" INT64_FORMAT, range->after_id);
		if (range->below_id != PG_INT64_MAX)
			appendStringInfo(&url, "&q%%5B%%5D=id:%%3C" INT64_FORMAT, range->below_id);
		appendStringInfo(&url, "&sort=id:%s", end == CLINIKO_LOW_END ? "asc" : "desc");
	}
	else
	{
		if (cursor->since[0] != '\0')
			appendStringInfo(&url, "&q%%5B%%5D=created_at:%%3E%s%s",
							 cursor->beyond ? "" : "%3D", cursor->since);
		if (cursor->page > 0)
			appendStringInfo(&url, "&q%%5B%%5D=created_at:%%3C%%3D%s&page=%d",
							 cursor->since, cursor->page);
		appendStringInfoString(&url, "&sort=created_at:asc");
	}
	return url.data;
}

/* The URL of those of some patients that exist, archived ones included. */
char *
cliniko_named_patients_url(const ClinikoAccount *account, const int64 *ids, int count)
{
	StringInfoData url;

	initStringInfo(&url);
	appendStringInfo(&url, "%s/patients?q%%5B%%5D=archived_at:*&per_page=%d&q%%5B%%5D=id:%%3D",
					 account->api_url, CLINIKO_MAX_PAGE_SIZE);
	for (int i = 0; i < count; i++)
		appendStringInfo(&url, "%s" INT64_FORMAT, i > 0 ? "," : "", ids[i]);
	return url.data;
}

/* The URL of what tells which account this is. */
char *
cliniko_account_url(const ClinikoAccount *account)
{
	return psprintf("%s" CLINIKO_ACCOUNT_PATH, account->api_url);
}

/* Send a request as Cliniko wants it. */
Transfer *
cliniko_get(Transport *transport, const ClinikoAccount *account, const char *url, void *owner)
{
	TransferRequest request = {
		.url = url,
		.user = account->api_key,
		.user_agent = account->user_agent,
		.accept = "application/json",
		.ca_file = clinisync_ca_file,
		.timeout_ms = clinisync_request_timeout,
		.max_size = (size_t) clinisync_max_response_size * 1024,
		.owner = owner
	};

	return transport_get(transport, &request);
}

/* How long a 429 asks to wait: X-RateLimit-Reset is a Unix time in seconds. */
static long
rate_limit_wait_ms(Transfer *transfer)
{
	int64		seconds;

	if (transfer_header(transfer, "X-RateLimit-Reset", &seconds))
	{
		int64		now = (int64) time(NULL);

		/* one second more, for the part of a second that the header leaves out */
		if (seconds >= now && seconds <= now + MAX_RATE_LIMIT_WAIT_S)
			return (long) (seconds - now + 1) * 1000;
	}
	if (transfer_header(transfer, "Retry-After", &seconds) && seconds > 0)
		return (long) Min(seconds, MAX_RATE_LIMIT_WAIT_S) * 1000;
	return DEFAULT_RATE_LIMIT_WAIT_S * 1000;
}

/* Tell what an ended transfer means, as far as its status can, and have it read. */
ClinikoVerdict
cliniko_judge(Transfer *transfer)
{
	long		status = transfer->status;

	if (status == 200)
		transfer_read(transfer);

	if (transfer->outcome == TRANSFER_TOO_LARGE)
		return (ClinikoVerdict) {CLINIKO_RESPONSE_TOO_LARGE, false, 0};
	if (transfer->outcome != TRANSFER_ANSWERED)
		return (ClinikoVerdict) {CLINIKO_NETWORK_ERROR, true, 0};
	if (status == 200)
		return (ClinikoVerdict) {CLINIKO_NO_ERROR, false, 0};
	if (status == 429)
		return (ClinikoVerdict) {CLINIKO_RATE_LIMITED, true, rate_limit_wait_ms(transfer)};
	if (status == 401)
		return (ClinikoVerdict) {CLINIKO_AUTH_FAILED, false, 0};
	if (status == 403)
		return (ClinikoVerdict) {CLINIKO_FORBIDDEN, false, 0};
	if (status == 404)
		return (ClinikoVerdict) {CLINIKO_NOT_FOUND, false, 0};
	if (status == 408)
		return (ClinikoVerdict) {CLINIKO_UNAVAILABLE, true, 0};
	if (status >= 300 && status < 400)
		return (ClinikoVerdict) {CLINIKO_REDIRECT, false, 0};
	if (status >= 400 && status < 500)
		return (ClinikoVerdict) {CLINIKO_BAD_REQUEST, false, 0};
	return (ClinikoVerdict) {CLINIKO_UNAVAILABLE, true, 0};
}

/*
 * Read a moment as Cliniko writes it, fit to stand in a URL. Leaves "moment" as
 * it is and answers false where the value is something else.
 */
bool
cliniko_read_moment(JsonText value, char moment[CLINIKO_TIME_SIZE])
{
	int			len = value.len - 2;

	if (!json_is_string(value) || value.len >= CLINIKO_TIME_SIZE ||
		strspn(value.at + 1, "0123456789-T:.Z") != len)
		return false;
	memcpy(moment, value.at + 1, len);
	moment[len] = '\0';
	return true;
}

/* Read the record that comes next, and note what the enumeration needs of it. */
static void
read_record(JsonReader *reader, ClinikoRecord *record)
{
	JsonText	value;

	memset(record, 0, sizeof(*record));
	if (!json_read_object(reader, &record->json))
	{
		json_read_value(reader, &value);
		return;
	}
	for (int i = 0; i < record->json.nmembers; i++)
	{
		JsonText	key = json_key(&record->json, i);

		value = json_value(&record->json, i);
		if (json_equals(key, "id") && !json_int64(value, &record->id))
			record->id = 0;
		else if (json_equals(key, "archived_at"))
			record->archived = json_is_string(value) && !json_is_absent(value);
		else if (json_equals(key, "created_at"))
			cliniko_read_moment(value, record->created_at);
	}
}

/*
 * Note the records of the list that comes next. Returns false where it is no
 * list, or one of far more patients than Cliniko ever sends.
 */
static bool
read_records(JsonReader *reader, ClinikoPage *page)
{
	json_enter(reader, '[');
	while (json_has_element(reader))
	{
		if (page->nrecords == MOST_RECORDS)
			return false;
		read_record(reader, &page->records[page->nrecords++]);
	}
	return true;
}

/*
 * Read an answer's body as a page of patients, taking the body over from the
 * transfer. Returns NULL where it is none: not JSON, or without a list of
 * patients or their number.
 */
ClinikoPage *
cliniko_parse_page(MemoryContext context, Transfer *transfer)
{
	MemoryContext page_context = AllocSetContextCreate(context, "clinisync page",
													   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(page_context);
	ClinikoPage *page = palloc0(sizeof(ClinikoPage));
	JsonReader	reader;
	JsonText	key;
	JsonText	value;
	bool		has_list = false;

	page->context = page_context;
	page->total_entries = -1;
	page->records = palloc(sizeof(ClinikoRecord) * MOST_RECORDS);
	json_read(&reader, transfer->body, transfer->body_len);
	json_enter(&reader, '{');
	while (json_read_key(&reader, &key))
	{
		if (json_equals(key, "patients") && !has_list)
		{
			has_list = read_records(&reader, page);
			if (!has_list)
				break;
			continue;
		}
		json_read_value(&reader, &value);
		if (value.len == 0)
			continue;			/* not well-formed: there is nothing left to read */
		if (json_equals(key, "total_entries") && !json_int64(value, &page->total_entries))
			page->total_entries = -1;
		else if (json_equals(key, "links"))
			page->has_next = json_find(value, "next", &value) && json_is_string(value);
	}
	MemoryContextSwitchTo(old_context);
	if (!json_read_end(&reader) || !has_list || page->total_entries < 0)
	{
		cliniko_free_page(page);
		return NULL;
	}
	page->body = transfer_take_body(transfer);
	return page;
}

/* A string of an object, or NULL where it is missing, empty or absurdly long. */
static char *
short_string(JsonText object, const char *key)
{
	JsonText	value;

	return json_find(object, key, &value) && json_is_string(value) && !json_is_absent(value) &&
		value.len <= MAX_NAME_LENGTH ? json_string(value) : NULL;
}

/* An id as Cliniko writes ids, in a string; a bare number would do as well. */
static char *
id_string(JsonText object)
{
	JsonText	value;
	int64		number;

	return json_find(object, "id", &value) && json_int64(value, &number)
		? psprintf(INT64_FORMAT, number) : short_string(object, "id");
}

/*
 * Read an answer to cliniko_account_url(). Both are palloc'ed, or NULL where
 * they are not told. Returns false where it is no JSON object at all.
 */
bool
cliniko_read_account(Transfer *transfer, char **id, char **name)
{
	JsonText	object;

	*id = *name = NULL;
	if (!json_check(transfer->body, transfer->body_len, &object) || !json_is_object(object))
		return false;
	if (json_find(object, "account", &object) && json_is_object(object))
	{
		*id = id_string(object);
		*name = short_string(object, "name");
	}
	return true;
}

void
cliniko_free_page(ClinikoPage *page)
{
	free(page->body);
	MemoryContextDelete(page->context);
}
