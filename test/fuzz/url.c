/*
 * url.c
 *		Fuzz target: a run's checkpoint, and the URLs that it leads to.
 *
 * The first two bytes of an input are what a checkpoint does not hold: the page
 * within a second, and the size of a page.
 */
#include "postgres.h"

#include "fuzz.h"
#include "run.h"

/* Every parameter has to be one of these; Cliniko takes no others. */
static const char *const parameters[] = {"q%5B%5D=", "per_page=", "sort=", "page="};

static void
check_parameter(const char *parameter)
{
	bool		known = false;

	for (int i = 0; i < lengthof(parameters); i++)
		known |= strncmp(parameter, parameters[i], strlen(parameters[i])) == 0;
	demand(known);
}

static void
check_url(const ClinikoAccount *account, const char *url)
{
	const char *at = url + strlen(account->api_url);

	for (const char *c = url; *c; c++)
		demand(*c > ' ' && *c <= '~' && *c != '#');
	demand(strncmp(url, account->api_url, at - url) == 0);
	demand(strncmp(at, "/patients?", 10) == 0);
	for (at += 9; at != NULL; at = strchr(at + 1, '&'))
		check_parameter(at + 1);
}

static Run *
restore(const char *checkpoint)
{
	Run		   *run = run_create(CurrentMemoryContext);

	run_restore(run, checkpoint, checkpoint);
	return run;
}

/* Check what a cursor leads to now: by id, both ends of each range. */
static void
check_pages(const ClinikoAccount *account, const ClinikoCursor *cursor, int page_size)
{
	for (int i = 0; i < CLINIKO_MAX_RANGES; i++)
	{
		const ClinikoRange *range = &cursor->ranges[i];

		check_url(account, cliniko_patients_url(account, cursor, range, CLINIKO_LOW_END, page_size));
		check_url(account, cliniko_patients_url(account, cursor, range, CLINIKO_HIGH_END, page_size));
	}
}

/* Check every URL that a cursor leads to. */
static void
check_urls(const ClinikoAccount *account, ClinikoCursor cursor, int64 witness, const uint8 *rest)
{
	int64		named[] = {cursor.after_id, witness};

	check_url(account, cliniko_named_patients_url(account, named, lengthof(named)));
	if (cursor.part == CLINIKO_MISSING)
		return;
	check_pages(account, &cursor, rest[1]);
	cursor.page = rest[0] >> 1;
	cursor.beyond = rest[0] & 1;
	check_pages(account, &cursor, rest[1]);
	cursor.counting = true;
	check_pages(account, &cursor, rest[1]);
}

void
fuzz_url(const char *data, size_t size)
{
	ClinikoAccount *account = cliniko_account("KEY-uk2");
	Run		   *run;
	char	   *checkpoint;

	if (size < 2)
		return;
	run = restore(fuzz_copy(data + 2, size - 2));
	check_urls(account, run->state.cursor, run->state.witnesses[0], (const uint8 *) data);

	/* what a checkpoint says is what the next one says */
	checkpoint = run_checkpoint(run);
	demand(strcmp(checkpoint, run_checkpoint(restore(checkpoint))) == 0);
}
