/*
 * settings.c
 *		The clinisync.* settings: their definitions, ranges and checks.
 *
 * All are PGC_SUSET, so that the configuration file, ALTER SYSTEM and ALTER
 * DATABASE all work. Because a worker outlives many runs, and a connection
 * pool's sessions outlive many an ALTER DATABASE, settings_refresh() reads
 * the database's settings anew whenever something is about to use them.
 */
#include "postgres.h"

#include <ctype.h>
#include <limits.h>

#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "clinisync.h"

#define SETTINGS_PREFIX "clinisync."

char	   *clinisync_base_url;
char	   *clinisync_vendor_name;
char	   *clinisync_contact_email;
char	   *clinisync_ca_file;
char	   *clinisync_key_file;
int			clinisync_page_size;
int			clinisync_batch_size;
int			clinisync_requests_in_flight;
int			clinisync_requests_per_minute;
int			clinisync_request_timeout;
int			clinisync_retry_window;
int			clinisync_max_running_syncs;
int			clinisync_max_missing_percent;
int			clinisync_max_response_size;
int			clinisync_idle_timeout;
int			clinisync_log_retention;

/* Read by cliniko_claimed_organization(), which is SQL. */
static char *clinisync_org_claim;

/* Paths are appended with a slash of their own. */
static bool
ends_well(const char *url)
{
	if (url[strlen(url) - 1] != '/')
		return true;
	GUC_check_errdetail("The URL must not end in \"/\".");
	return false;
}

/* Accept https anywhere, and http on the loopback interface alone. */
static bool
check_base_url(char **newval, void **extra, GucSource source)
{
	static const char *const loopbacks[] = {"127.0.0.1", "localhost", "[::1]"};
	const char *url = *newval;

	if (url[0] == '\0')
		return true;
	for (const char *c = url; *c; c++)
	{
		if (*c <= ' ' || *c > '~' || strchr("?#@\\\"", *c) != NULL)
		{
			GUC_check_errdetail("The URL must be printable ASCII without a user, "
								"a query or a fragment.");
			return false;
		}
	}
	if (strncmp(url, "https://", 8) == 0 && (isalnum((unsigned char) url[8]) || url[8] == '['))
		return ends_well(url);
	if (strncmp(url, "http://", 7) == 0)
	{
		for (int i = 0; i < lengthof(loopbacks); i++)
		{
			size_t		len = strlen(loopbacks[i]);
			const char *rest = url + 7 + len;

			if (strncmp(url + 7, loopbacks[i], len) == 0 &&
				(*rest == '\0' || *rest == '/' ||
				 (*rest == ':' && isdigit((unsigned char) rest[1]))))
				return ends_well(url);
		}
	}
	GUC_check_errdetail("The URL must begin with https:// and a host; "
						"http:// is accepted for a loopback address alone.");
	return false;
}

/* Keep what goes into the User-Agent header from breaking out of it. */
static bool
check_vendor_name(char **newval, void **extra, GucSource source)
{
	const char *c = *newval;

	for (; *c; c++)
	{
		if (*c < ' ' || *c > '~' || strchr("()\"", *c) != NULL)
			break;
	}
	if (*c == '\0' && (*newval)[0] > ' ')
		return true;
	GUC_check_errdetail("The name must be printable ASCII without parentheses or quotes.");
	return false;
}

static bool
check_contact_email(char **newval, void **extra, GucSource source)
{
	const char *at = strchr(*newval, '@');

	if ((*newval)[0] == '\0')
		return true;
	for (const char *c = *newval; *c; c++)
	{
		if (*c <= ' ' || *c > '~' || strchr("()<>\"", *c) != NULL)
			at = NULL;
	}
	if (at != NULL && at > *newval && at[1] != '\0')
		return true;
	GUC_check_errdetail("An e-mail address such as dev@clinic.example is expected.");
	return false;
}

static bool
check_key_file(char **newval, void **extra, GucSource source)
{
	if ((*newval)[0] != '\0' && strlen(*newval) < MAXPGPATH / 2)
		return true;
	GUC_check_errdetail("The path of a file is expected.");
	return false;
}

static bool
check_org_claim(char **newval, void **extra, GucSource source)
{
	const char *path = *newval;

	/* a path in braces has to end with one: a policy should not stumble over it */
	if (path[0] != '\0' && (path[0] != '{' || path[strlen(path) - 1] == '}'))
		return true;
	GUC_check_errdetail("A claim such as org_id, a path such as app_metadata.org_id, or a path in braces "
						"such as {https://clinic.example/org_id} is expected.");
	return false;
}

/*
 * Define the settings. What a value means is said here once; the README
 * repeats it for people.
 */
void
settings_define(void)
{
	DefineCustomStringVariable("clinisync.base_url",
							   "Where Cliniko's API is found.",
							   "Empty: https://api.SHARD.cliniko.com/v1, the shard taken from the key.",
							   &clinisync_base_url, "",
							   PGC_SUSET, 0, check_base_url, NULL, NULL);
	DefineCustomStringVariable("clinisync.vendor_name",
							   "The name by which requests introduce themselves to Cliniko.",
							   NULL,
							   &clinisync_vendor_name, "clinisync",
							   PGC_SUSET, 0, check_vendor_name, NULL, NULL);
	DefineCustomStringVariable("clinisync.contact_email",
							   "The e-mail address by which Cliniko can reach whoever runs this.",
							   "Cliniko asks for it in the User-Agent header; no sync runs without it.",
							   &clinisync_contact_email, "",
							   PGC_SUSET, 0, check_contact_email, NULL, NULL);
	DefineCustomStringVariable("clinisync.ca_file",
							   "A file of CA certificates to verify Cliniko's with.",
							   "Empty: the operating system's.",
							   &clinisync_ca_file, "",
							   PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("clinisync.key_file",
							   "The file of keys that API keys are sealed with.",
							   "A relative path begins in the data directory; made on first use.",
							   &clinisync_key_file, "clinisync.key",
							   PGC_SUSET, GUC_SUPERUSER_ONLY, check_key_file, NULL, NULL);
	DefineCustomIntVariable("clinisync.page_size",
							"How many patients a request asks for.",
							"Cliniko allows up to 100.",
							&clinisync_page_size, 100, 1, 100,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("clinisync.batch_size",
							"How many patients a transaction stores at most.",
							"Or a tenth of the run, where that is more.",
							&clinisync_batch_size, 50, 1, 1000,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("clinisync.requests_in_flight",
							"How many requests of a run may be under way at a time.",
							"They ask for different ranges of patients, side by side.",
							&clinisync_requests_in_flight, 4, 1, MOST_REQUESTS_IN_FLIGHT,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("clinisync.requests_per_minute",
							"How many requests a run may send within any minute.",
							"Cliniko allows 200 for each user. 0: no limit of our own.",
							&clinisync_requests_per_minute, 200, 0, 10000,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("clinisync.request_timeout",
							"How long a request may take.",
							"Cliniko gives up on its own side after 30 seconds.",
							&clinisync_request_timeout, 40000, 100, 600000,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("clinisync.retry_window",
							"How long a run keeps trying without any progress before it fails.",
							"Twice as long as an outage that is to be survived.",
							&clinisync_retry_window, 7200, 0, 7 * 86400,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("clinisync.max_running_syncs",
							"How many organisations a worker syncs side by side.",
							NULL,
							&clinisync_max_running_syncs, 64, 1, 1000,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("clinisync.max_missing_percent",
							"How many of an organisation's patients a sync may find deleted, in percent.",
							"More, and more than 20, are not believed: nobody is marked as deleted.",
							&clinisync_max_missing_percent, 5, 0, 100,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("clinisync.max_response_size",
							"The largest answer that is accepted, after decompression.",
							NULL,
							&clinisync_max_response_size, 16 * 1024, 64, 256 * 1024,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("clinisync.idle_timeout",
							"How long a worker without work stays.",
							NULL,
							&clinisync_idle_timeout, 60000, 1, INT_MAX,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("clinisync.log_retention",
							"How long the logs of an organisation's runs are kept.",
							"The newest ten stay in any case. 0: for ever.",
							&clinisync_log_retention, 90 * MINS_PER_HOUR * HOURS_PER_DAY, 0,
							10 * 366 * MINS_PER_HOUR * HOURS_PER_DAY,
							PGC_SUSET, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomStringVariable("clinisync.org_claim",
							   "Where a token names the organization that its bearer may see.",
							   "A claim, or a path to one: \"app_metadata.org_id\". In braces where a name has "
							   "dots of its own, as for the operator #>>: \"{https://clinic.example/org_id}\".",
							   &clinisync_org_claim, "org_id",
							   PGC_SUSET, 0, check_org_claim, NULL, NULL);
	MarkGUCPrefixReserved("clinisync");
}

/* This database's name, as settings_refresh() last saw it. */
static char database_name[NAMEDATALEN];

/* What to say where clinisync.contact_email is empty; palloc'ed. */
char *
settings_contact_email_unset(void)
{
	return psprintf("clinisync.contact_email is not set, and Cliniko requires an address: "
					"ALTER DATABASE %s SET clinisync.contact_email = 'you@clinic.example'.",
					quote_identifier(database_name));
}

/*
 * Apply what ALTER DATABASE has set since this session began. Needs a
 * transaction with a snapshot and SPI. A setting that was RESET keeps its
 * value until the session ends, as PostgreSQL has it everywhere.
 */
void
settings_refresh(void)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(MyDatabaseId)};

	strlcpy(database_name, get_database_name(MyDatabaseId), NAMEDATALEN);
	SPI_execute_with_args("SELECT setdatabase, unnest(setconfig)"
						  " FROM pg_catalog.pg_db_role_setting"
						  " WHERE setrole = 0 AND setdatabase IN (0, $1)"
						  " ORDER BY setdatabase",
						  1, types, values, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		bool		isnull;
		Oid			database = DatumGetObjectId(SPI_getbinval(row, SPI_tuptable->tupdesc,
															  1, &isnull));
		char	   *name = SPI_getvalue(row, SPI_tuptable->tupdesc, 2);
		char	   *value = name ? strchr(name, '=') : NULL;

		if (value == NULL || strncmp(name, SETTINGS_PREFIX, strlen(SETTINGS_PREFIX)) != 0)
			continue;
		*value++ = '\0';
		(void) set_config_option(name, value, PGC_SUSET,
								 OidIsValid(database) ? PGC_S_DATABASE : PGC_S_GLOBAL,
								 GUC_ACTION_SET, true, 0, false);
	}
}
