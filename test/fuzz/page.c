/*
 * page.c
 *		Fuzz target: the body of an answer, read as a page of patients.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "fuzz.h"

/* As in cliniko.c and json.c. */
#define MOST_RECORDS 200
#define MAX_DEPTH 100

/* What transport.c would hand over: no body where not a byte arrived. */
static Transfer
answer(const char *data, size_t size)
{
	Transfer	transfer = {.outcome = TRANSFER_ANSWERED, .status = 200, .body_len = size};

	if (size > 0)
	{
		transfer.body = malloc(size + 1);
		memcpy(transfer.body, data, size);
		transfer.body[size] = '\0';
	}
	return transfer;
}

/* Whether PostgreSQL takes a text for JSON. */
static bool
is_json_to_postgresql(char *text)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool taken = false;

	PG_TRY();
	{
		DirectFunctionCall1(json_in, CStringGetDatum(text));
		taken = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	return taken;
}

/* Whether a text has so many brackets that it may be nested too deeply. */
static bool
may_be_too_deep(const char *text)
{
	int			brackets = 0;

	for (; *text; text++)
		brackets += (*text == '[' || *text == '{');
	return brackets > MAX_DEPTH;
}

/* json.c has to agree with PostgreSQL on what is JSON. */
static void
check_json(const char *data, size_t size)
{
	char	   *text = fuzz_copy(data, size);
	JsonText	value;
	bool		taken = json_check(text, size, &value);

	if (taken)
	{
		demand(value.at >= text && value.len > 0 && value.at + value.len <= text + size);
		demand(is_json_to_postgresql(text));
	}
	else if (pg_verify_mbstr(PG_UTF8, text, size, true))
		demand(!is_json_to_postgresql(text) || may_be_too_deep(text));
}

static void
check_record_of_page(const ClinikoPage *page, size_t size, const ClinikoRecord *record)
{
	demand(record->id >= 0);
	demand(memchr(record->created_at, '\0', CLINIKO_TIME_SIZE) != NULL);
	demand(strspn(record->created_at, "0123456789-T:.Z") == strlen(record->created_at));
	if (record->json.text.len == 0)
	{
		demand(record->id == 0 && !record->archived && record->created_at[0] == '\0');
		return;
	}
	demand(record->json.text.at > page->body && record->json.text.at + record->json.text.len < page->body + size);
	demand(record->json.text.at[0] == '{' && record->json.text.at[record->json.text.len - 1] == '}');
	check_record(&record->json);
}

/* The same answer is the same page. */
static void
check_same(const ClinikoPage *page, const ClinikoPage *again)
{
	demand(page->total_entries == again->total_entries);
	demand(page->has_next == again->has_next);
	demand(page->nrecords == again->nrecords);
	for (int i = 0; i < page->nrecords; i++)
	{
		const ClinikoRecord *record = &page->records[i];
		const ClinikoRecord *other = &again->records[i];

		demand(record->id == other->id && record->archived == other->archived);
		demand(strcmp(record->created_at, other->created_at) == 0);
		demand(record->json.text.len == other->json.text.len);
		demand(record->json.text.len == 0 ||
			   record->json.text.at - page->body == other->json.text.at - again->body);
	}
}

void
fuzz_page(const char *data, size_t size)
{
	Transfer	transfer = answer(data, size);
	Transfer	transfer_again = answer(data, size);
	ClinikoPage *page = cliniko_parse_page(CurrentMemoryContext, &transfer);
	ClinikoPage *again = cliniko_parse_page(CurrentMemoryContext, &transfer_again);

	check_json(data, size);
	demand((page == NULL) == (again == NULL));
	if (page == NULL)
	{
		/* the body is still the transfer's */
		demand(transfer.body_len == size && (size == 0) == (transfer.body == NULL));
		free(transfer.body);
		free(transfer_again.body);
		return;
	}
	demand(is_json_to_postgresql(page->body));
	demand(transfer.body == NULL && page->body != NULL);
	demand(memcmp(page->body, data, size) == 0 && page->body[size] == '\0');
	demand(page->total_entries >= 0);
	demand(page->nrecords >= 0 && page->nrecords <= MOST_RECORDS && page->nseen == 0);
	check_same(page, again);
	for (int i = 0; i < page->nrecords; i++)
		check_record_of_page(page, size, &page->records[i]);
	cliniko_free_page(page);
	cliniko_free_page(again);
}
