/*
 * report.c
 *		What callers read of an organization, as JSON.
 *
 * All of it is read as the tables' owner, of organizations that the caller may see
 * (caller.c): each statement here names the one that it is about. The keys of
 * what is returned are the callers' contract (docs/API_REFERENCE.md).
 *
 * Expects a connection to SPI. Memory: answers are palloc'ed in the context
 * that was current when SPI was connected.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/timestamp.h"

#include "caller.h"
#include "report.h"
#include "run.h"
#include "statement.h"

/* How many logs, or patients that match, are counted at most: front ends poll, and histories grow. */
#define MOST_COUNTED "10000"
/* How many organizations are listed at most. */
#define MAX_ORGANIZATIONS "1000"

/* A moment as ISO 8601 in UTC, whatever the session's time zone; see append_time(). */
#define UTC(moment) \
	"to_char(" moment " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"

/* The one row's first column, in memory that outlives SPI. */
static Datum
take_answer(Oid type)
{
	bool		isnull;
	Datum		answer = statement_column(0, 1, type, &isnull);

	return SPI_datumTransfer(answer, false, -1);
}

/* The one row's second column. */
static bool
take_flag(void)
{
	bool		isnull;

	return DatumGetBool(statement_column(0, 2, BOOLOID, &isnull));
}

/*
 * Execute a statement about every organization that the caller may see: those for which
 * "$1 OR organization_id = $2" holds.
 */
static void
execute_for_visible(Statement *statement, const Catalog *catalog, const char *template)
{
	Oid			types[] = {BOOLOID, TEXTOID};
	bool		all = caller_sees_all(catalog);
	char	   *claimed = all ? NULL : caller_claimed_organization(catalog);
	Datum		values[] = {
		BoolGetDatum(all),
		claimed ? CStringGetTextDatum(claimed) : (Datum) 0
	};

	statement_prepare(statement, catalog, template, lengthof(types), types);
	statement_execute_as_owner(statement, catalog, values, claimed ? "  " : " n", true);
}

/* List the organizations that the caller may see, those without a name last. */
Datum
report_organizations(const Catalog *catalog)
{
	static Statement statement;

	execute_for_visible(&statement, catalog,
						"SELECT jsonb_build_object("
						"           'organizations', coalesce(jsonb_agg(jsonb_build_object("
						"               'organization_id', o.organization_id,"
						"               'name', o.name,"
						"               'sync_enabled', coalesce(o.sync_enabled, true),"
						/* without a key there is no shard */
						"               'connected', o.shard IS NOT NULL"
						"           ) ORDER BY o.place) FILTER (WHERE o.place <= " MAX_ORGANIZATIONS "), '[]'),"
						"           'has_more', count(*) > " MAX_ORGANIZATIONS ")"
						"  FROM (SELECT organization_id, name, shard, sync_enabled,"
						"               row_number() OVER (ORDER BY name, organization_id) AS place"
						"          FROM @schema@.cliniko_organizations"
						"         WHERE $1 OR organization_id = $2"
						"         ORDER BY place LIMIT " MAX_ORGANIZATIONS " + 1) AS o");
	return take_answer(JSONBOID);
}

/* The ids, as text[], of the organizations that the caller may see and that can be synced. */
Datum
report_enabled(const Catalog *catalog)
{
	static Statement statement;

	execute_for_visible(&statement, catalog,
						"SELECT coalesce(array_agg(organization_id::text ORDER BY organization_id), '{}')"
						"  FROM @schema@.cliniko_organizations"
						" WHERE sync_enabled AND api_key_sealed IS NOT NULL AND shard IS NOT NULL"
						"   AND ($1 OR organization_id = $2)");
	return take_answer(TEXTARRAYOID);
}

/* What logs can be asked for. */
static const char *const log_statuses[] = {"running", "completed", "failed"};
static const char *const log_types[] = {
	OPERATION_FULL, OPERATION_INCREMENTAL, OPERATION_ACTIVE
};

/* The place of a word among some; their number if it is none of them, or NULL. */
static int
place_of(const char *word, const char *const *words, int nwords)
{
	int			i = 0;

	while (i < nwords && (word == NULL || strcmp(words[i], word) != 0))
		i++;
	return i;
}

/* Select an organization's newest logs of a status and a type; NULL: of any. */
static void
append_logs(StringInfo sql, const char *columns, const char *status, const char *type,
			const char *limit)
{
	appendStringInfo(sql, "(SELECT %s FROM @schema@.sync_logs WHERE organization_id = $1",
					 columns);
	if (status)
		appendStringInfo(sql, " AND status = '%s'", status);
	if (type)
		appendStringInfo(sql, " AND operation_type = '%s'", type);
	appendStringInfo(sql, " ORDER BY id DESC LIMIT %s)", limit);
}

/*
 * Likewise, those of a filter. Each part is read off the end of one index; logs
 * of one type and any status are three parts, since each status has its own.
 */
static void
append_filtered_logs(StringInfo sql, const char *columns, const LogFilter *filter,
					 const char *limit)
{
	const char *type = filter->operation_type;

	if (filter->status || type == NULL)
	{
		append_logs(sql, columns, filter->status, type, limit);
		return;
	}
	appendStringInfoString(sql, "SELECT * FROM (");
	for (int i = 0; i < lengthof(log_statuses); i++)
	{
		appendStringInfoString(sql, i > 0 ? " UNION ALL " : "");
		append_logs(sql, columns, log_statuses[i], type, limit);
	}
	appendStringInfo(sql, ") parts ORDER BY id DESC LIMIT %s", limit);
}

/*
 * Build the statement that lists logs. What is asked for is a constant in it, by
 * which the planner knows how rare that is, and which partial index has it.
 */
static char *
logs_sql(const LogFilter *filter)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "WITH newest AS (");
	append_filtered_logs(&sql,
						 "id, organization_id, operation_type, status, started_at,"
						 " completed_at, records_processed, records_success,"
						 " records_failed, metadata, error_details", filter, "$2");
	appendStringInfoString(&sql, "), counted AS (SELECT count(*) AS total FROM (");
	append_filtered_logs(&sql, "id", filter, MOST_COUNTED);
	appendStringInfoString(&sql,
						   ") matching),"
						   " listed AS ("
						   "    SELECT coalesce(bool_or(status = 'running'), false) AS running,"
						   "           coalesce(jsonb_agg(jsonb_build_object("
						   "               'id', id,"
						   "               'organization_id', organization_id,"
						   "               'operation_type', operation_type,"
						   "               'status', status,"
						   "               'started_at', " UTC("started_at") ","
						   "               'completed_at', " UTC("completed_at") ","
						   "               'records_processed', records_processed,"
						   "               'records_success', records_success,"
						   "               'records_failed', records_failed,"
						   "               'metadata', metadata,"
						   "               'error_details', error_details"
						   "           ) ORDER BY id DESC), '[]') AS logs"
						   "      FROM newest)"
						   " SELECT jsonb_build_object("
						   "            'organization_id', $1,"
						   "            'logs', listed.logs,"
						   "            'total_count', counted.total,"
						   "            'has_more', counted.total > $2),"
						   "        listed.running"
						   "   FROM listed, counted");
	return sql.data;
}

/* Tell of the newest runs, and whether one of them is running. */
Datum
report_logs(const Catalog *catalog, const char *org, const LogFilter *filter, bool *running)
{
	static Statement statements[lengthof(log_statuses) + 1][lengthof(log_types) + 1];
	int			status = place_of(filter->status, log_statuses, lengthof(log_statuses));
	int			type = place_of(filter->operation_type, log_types, lengthof(log_types));
	Statement  *statement = &statements[status][type];
	Oid			types[] = {TEXTOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(org), Int32GetDatum(filter->max_rows)};

	if (!statement_is_prepared(statement, catalog))
		statement_prepare(statement, catalog, logs_sql(filter), lengthof(types), types);
	statement_execute_as_owner(statement, catalog, values, NULL, true);
	*running = take_flag();
	return take_answer(JSONBOID);
}

/* Tell how an organization stands, and whether a run is running. */
Datum
report_status(const Catalog *catalog, const char *org, bool *running)
{
	static Statement statement;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(org)};

	statement_prepare(&statement, catalog,
					  "WITH latest AS ("
					  "    SELECT status, operation_type,"
					  "           round(extract(epoch FROM coalesce(completed_at,"
					  "               clock_timestamp()) - started_at))::bigint AS seconds"
					  "      FROM @schema@.sync_logs"
					  "     WHERE organization_id = $1"
					  "     ORDER BY id DESC LIMIT 1),"
					  " last_completed AS ("
					  "    SELECT completed_at"
					  "      FROM @schema@.sync_logs"
					  "     WHERE organization_id = $1 AND status = 'completed'"
					  "     ORDER BY id DESC LIMIT 1),"
					  " last_full AS ("
					  "    SELECT records_processed, metadata -> 'success_rate' AS success_rate"
					  "      FROM @schema@.sync_logs"
					  "     WHERE organization_id = $1 AND status = 'completed'"
					  "       AND operation_type = 'full_patients'"
					  "     ORDER BY id DESC LIMIT 1),"
					  " stored AS ("
					  "    SELECT count(*) AS total"
					  "      FROM @schema@.patients"
					  "     WHERE organization_id = $1 AND cliniko_patient_id IS NOT NULL),"
					  /* few beside all of them, and in an index of their own */
					  " not_active AS ("
					  "    SELECT count(*) AS total, count(deleted_at) AS deleted"
					  "      FROM @schema@.patients"
					  "     WHERE organization_id = $1 AND cliniko_patient_id IS NOT NULL"
					  "       AND (archived_at IS NOT NULL OR deleted_at IS NOT NULL))"
					  " SELECT jsonb_build_object("
					  "            'organization_id', $1,"
					  "            'sync_status', coalesce(latest.status, 'never_synced'),"
					  "            'last_sync', " UTC("last_completed.completed_at") ","
					  "            'operation_type', latest.operation_type,"
					  "            'sync_duration', CASE"
					  "                WHEN seconds < 60 THEN format('%ss', seconds)"
					  "                WHEN seconds < 3600"
					  "                    THEN format('%sm %ss', seconds / 60, seconds % 60)"
					  "                WHEN seconds IS NOT NULL"
					  "                    THEN format('%sh %sm', seconds / 3600,"
					  "                                seconds / 60 % 60) END,"
					  "            'patient_counts', jsonb_build_object("
					  "                'total_in_cliniko', last_full.records_processed,"
					  "                'synced_to_database', stored.total - not_active.deleted,"
					  "                'active', stored.total - not_active.total,"
					  "                'archived', not_active.total - not_active.deleted,"
					  "                'deleted', not_active.deleted,"
					  "                'success_rate', last_full.success_rate)),"
					  "        coalesce(latest.status = 'running', false)"
					  "   FROM stored CROSS JOIN not_active"
					  "   LEFT JOIN latest ON true"
					  "   LEFT JOIN last_completed ON true"
					  "   LEFT JOIN last_full ON true", lengthof(types), types);
	statement_execute_as_owner(&statement, catalog, values, NULL, true);
	*running = take_flag();
	return take_answer(JSONBOID);
}

static Datum
nullable_text(const char *text, char *isnull)
{
	*isnull = text ? ' ' : 'n';
	return text ? CStringGetTextDatum(text) : (Datum) 0;
}

/* What the caller typed is text to look for, not a pattern: make a pattern of it. */
static char *
search_pattern(const char *search)
{
	StringInfoData pattern;

	if (search == NULL)
		return NULL;
	initStringInfo(&pattern);
	appendStringInfoChar(&pattern, '%');
	for (const char *c = search; *c; c++)
	{
		if (strchr("\\%_", *c))
			appendStringInfoChar(&pattern, '\\');
		appendStringInfoChar(&pattern, *c);
	}
	appendStringInfoChar(&pattern, '%');
	return pattern.data;
}

#define STORED_PATIENTS \
	"@schema@.patients" \
	"         WHERE organization_id = $1" \
	"           AND cliniko_patient_id IS NOT NULL"
#define ACTIVE_PATIENTS \
	STORED_PATIENTS \
	"           AND archived_at IS NULL" \
	"           AND deleted_at IS NULL"

/* What callers read of a patient. */
#define PATIENT \
	"jsonb_build_object(" \
	"    'id', id," \
	"    'cliniko_patient_id', cliniko_patient_id::text," \
	"    'first_name', first_name," \
	"    'last_name', last_name," \
	"    'email', email," \
	"    'phone', phone," \
	"    'date_of_birth', date_of_birth," \
	"    'last_synced', " UTC("last_synced_at") "," \
	"    'sync_status', 'success')"

/* A page of patients, of so many; both are aggregates. */
#define PAGE(patients, total) \
	"SELECT jsonb_build_object(" \
	"           'patients', coalesce(" patients ", '[]')," \
	"           'pagination', jsonb_build_object(" \
	"               'total', " total "," \
	"               'limit', $2," \
	"               'offset', $3," \
	"               'has_next', " total " > $3::bigint + $2))"

/* All of them are counted, for which indexes are enough: one has those that are not active. */
static const char all_patients[] =
	"WITH counted AS ("
	"    SELECT (SELECT count(*) FROM " STORED_PATIENTS ")"
	"         - (SELECT count(*) FROM " STORED_PATIENTS
	"               AND (archived_at IS NOT NULL OR deleted_at IS NOT NULL)) AS total) "
	PAGE("jsonb_agg(" PATIENT " ORDER BY cliniko_patient_id)", "(SELECT total FROM counted)")
	"  FROM (SELECT *"
	"          FROM " ACTIVE_PATIENTS
	"         ORDER BY cliniko_patient_id LIMIT $2 OFFSET $3) AS shown";

/*
 * Those that match are found by looking at one patient after the other: once for the
 * page and the count, and no further than to where both are known.
 */
static const char matching_patients[] =
	PAGE("jsonb_agg(" PATIENT " ORDER BY place) FILTER (WHERE place > $3 AND place <= $3::bigint + $2)",
		 "count(*)")
	"  FROM (SELECT *, row_number() OVER (ORDER BY cliniko_patient_id) AS place"
	"          FROM " ACTIVE_PATIENTS
	"           AND ($4 IS NULL OR first_name ILIKE $4 OR last_name ILIKE $4"
	"                OR preferred_first_name ILIKE $4 OR email ILIKE $4"
	"                OR concat_ws(' ', first_name, last_name) ILIKE $4)"
	"           AND ($5 IS NULL OR last_synced_at > $5)) AS matching"
	" WHERE place <= greatest(" MOST_COUNTED ", $3::bigint + $2 + 1)";

/* List patients that are neither archived nor deleted, by their ids in Cliniko. */
Datum
report_active_patients(const Catalog *catalog, const char *org, const PatientFilter *filter)
{
	static Statement list_all;
	static Statement list_matching;
	bool		all = filter->search == NULL && filter->last_synced_after == NULL;
	Statement  *statement = all ? &list_all : &list_matching;
	Oid			types[] = {TEXTOID, INT4OID, INT4OID, TEXTOID, TIMESTAMPTZOID};
	char		nulls[] = "     ";
	Datum		values[] = {
		CStringGetTextDatum(org),
		Int32GetDatum(filter->max_rows),
		Int32GetDatum(filter->skip_rows),
		nullable_text(search_pattern(filter->search), &nulls[3]),
		filter->last_synced_after ? TimestampTzGetDatum(*filter->last_synced_after) : (Datum) 0
	};

	nulls[4] = filter->last_synced_after ? ' ' : 'n';
	statement_prepare(statement, catalog, all ? all_patients : matching_patients,
					  lengthof(types), types);
	statement_execute_as_owner(statement, catalog, values, nulls, true);
	return take_answer(JSONBOID);
}
