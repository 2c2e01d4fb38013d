/*
 * connection.c
 *		Ask Cliniko whether a key works.
 *
 * Runs in the caller's backend and transaction, so it asks little, all at
 * once, and obeys a cancel at any moment. Nothing is stored.
 *
 * Memory: the transport lives in a context of its own that is deleted before
 * connection_test() returns, or with the caller's when an error passes through.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "connection.h"

/* What is asked; the first two decide, the others may be refused to a role. */
enum
{
	ASK_ALL_PATIENTS,
	ASK_ACTIVE_PATIENTS,
	ASK_ACCOUNT,
	ASK_USER,
	ASK_COUNT
};

static const char *const paths[] = {
	[ASK_ALL_PATIENTS] = "/patients?q%5B%5D=archived_at:*&per_page=1",
	[ASK_ACTIVE_PATIENTS] = "/patients?per_page=1",
	[ASK_ACCOUNT] = CLINIKO_ACCOUNT_PATH,
	[ASK_USER] = "/user",
};

/* A text in the database's encoding; NULL where that cannot hold it, or where there is none. */
static char *
to_server_encoding(char *utf8)
{
	int			encoding = GetDatabaseEncoding();
	int			len = utf8 ? strlen(utf8) : 0;
	int			size = len * MAX_CONVERSION_GROWTH + 1;
	Oid			conversion;
	char	   *text;

	if (utf8 == NULL || encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return utf8;
	conversion = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(conversion))
		return NULL;
	text = palloc(size);
	return pg_do_encoding_conversion_buf(conversion, PG_UTF8, encoding, (unsigned char *) utf8, len,
										 (unsigned char *) text, size, true) == len ? text : NULL;
}

/* A string of an object, or NULL. */
static char *
find_string(JsonText object, const char *key)
{
	JsonText	value;

	return to_server_encoding(json_find(object, key, &value) ? json_string(value) : NULL);
}

/* The size of a list, from one page of it. */
static ClinikoError
read_total(Transfer *transfer, int64 *total)
{
	ClinikoVerdict verdict = cliniko_judge(transfer);
	ClinikoPage *page;

	if (verdict.error != CLINIKO_NO_ERROR)
		return verdict.error;
	page = cliniko_parse_page(CurrentMemoryContext, transfer);
	if (page == NULL)
		return CLINIKO_UNAVAILABLE;
	*total = page->total_entries;
	cliniko_free_page(page);
	return CLINIKO_NO_ERROR;
}

/* The body as a JSON object, where there is one. */
static bool
read_object(Transfer *transfer, JsonText *object)
{
	return cliniko_judge(transfer).error == CLINIKO_NO_ERROR &&
		json_check(transfer->body, transfer->body_len, object) && json_is_object(*object);
}

/*
 * Ask, and fill in the report; its strings are in the current context.
 * known_account_id: whose patients are stored already, or NULL.
 */
void
connection_test(const ClinikoAccount *account, const char *known_account_id,
				ConnectionReport *report)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "clinisync connection",
												  ALLOCSET_DEFAULT_SIZES);
	Transport  *transport = transport_create(context);
	Transfer   *transfers[ASK_COUNT];
	JsonText	object;

	memset(report, 0, sizeof(*report));
	for (int i = 0; i < ASK_COUNT; i++)
	{
		char	   *url = psprintf("%s%s", account->api_url, paths[i]);

		transfers[i] = cliniko_get(transport, account, url, NULL);
		pfree(url);
	}
	for (int done = 0; done < ASK_COUNT;)
	{
		(void) transport_wait(transport, -1);
		while (transport_next_done(transport) != NULL)
			done++;
	}

	report->latency_us = transfers[ASK_ALL_PATIENTS]->elapsed_us;
	report->error = read_total(transfers[ASK_ALL_PATIENTS], &report->total_patients);
	if (report->error == CLINIKO_NETWORK_ERROR)
		report->reason = psprintf("%s.", transfers[ASK_ALL_PATIENTS]->reason);
	if (report->error == CLINIKO_NO_ERROR)
		report->error = read_total(transfers[ASK_ACTIVE_PATIENTS], &report->active_patients);
	if (cliniko_judge(transfers[ASK_ACCOUNT]).error == CLINIKO_NO_ERROR)
		(void) cliniko_read_account(transfers[ASK_ACCOUNT], &report->account_id,
									&report->account_name);
	report->account_id = to_server_encoding(report->account_id);
	report->account_name = to_server_encoding(report->account_name);
	if (report->error == CLINIKO_NO_ERROR && known_account_id && report->account_id &&
		strcmp(known_account_id, report->account_id) != 0)
		report->error = CLINIKO_ACCOUNT_MISMATCH;
	if (read_object(transfers[ASK_USER], &object))
		report->role = find_string(object, "role");
	MemoryContextDelete(context);
}
