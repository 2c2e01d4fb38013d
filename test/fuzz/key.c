/*
 * key.c
 *		Fuzz target: an API key as a user pastes it.
 */
#include "postgres.h"

#include <regex.h>

#include "fuzz.h"

/* As in cliniko.c. */
#define MAX_KEY_LENGTH 512
#define DEFAULT_SHARD "au1"

static bool
matches(const char *text, const char *pattern)
{
	regex_t		regex;
	bool		result;

	if (regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB) != 0)
		abort();
	result = regexec(&regex, text, 0, NULL, 0) == 0;
	regfree(&regex);
	return result;
}

/* The shard has to be the key's own suffix where it has one. */
static void
check_shard(const char *key, const char *shard)
{
	const char *hyphen = strrchr(key, '-');

	if (matches(key, "-[A-Za-z]{2}[0-9]{1,2}$"))
		demand(pg_strcasecmp(shard, hyphen + 1) == 0);
	else
		demand(strcmp(shard, DEFAULT_SHARD) == 0);
	demand(matches(shard, "^[a-z]{2}[0-9]{1,2}$"));
}

/* Blanks around a key mean nothing, and a key that was parsed stays as it is. */
static void
check_again(const char *input, const char *key, const char *shard)
{
	char		shard_again[CLINIKO_SHARD_SIZE];
	const char *again = cliniko_parse_key(psprintf(" \n%s\t ", input), shard_again);

	demand((key == NULL) == (again == NULL));
	if (key == NULL)
		return;
	demand(strcmp(again, key) == 0 && strcmp(shard_again, shard) == 0);
	again = cliniko_parse_key(fuzz_copy(key, strlen(key)), shard_again);
	demand(again != NULL && strcmp(again, key) == 0 && strcmp(shard_again, shard) == 0);
}

void
fuzz_key(const char *data, size_t size)
{
	char	   *input = fuzz_copy(data, size);
	char		shard[CLINIKO_SHARD_SIZE];
	char	   *key = cliniko_parse_key(input, shard);

	check_again(input, key, shard);
	if (key == NULL)
	{
		/* no key was refused without a reason */
		demand(strlen(input) > MAX_KEY_LENGTH || !matches(input, "^[!-9;-~]+$") ||
			   matches(input, "^-[A-Za-z]{2}[0-9]{1,2}$"));
		return;
	}
	demand(strstr(input, key) != NULL);
	demand(key[0] != '\0' && strlen(key) <= MAX_KEY_LENGTH);
	for (const char *c = key; *c; c++)
		demand(*c > ' ' && *c <= '~' && *c != ':');
	check_shard(key, shard);
}
