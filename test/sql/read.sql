--
-- What front ends read: cliniko_sync_logs(), cliniko_status(),
-- cliniko_list_organizations() and cliniko_active_patients(), on rows that are
-- put there by hand.
--
\pset format unaligned
\pset tuples_only on

-- what a query answers, or how it is refused
CREATE FUNCTION pg_temp.attempt(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE query INTO answer;
	RETURN answer;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(E'\n', SQLSTATE || ': ' || message,
					 'DETAIL: ' || nullif(detail, ''), 'HINT: ' || nullif(hint, ''));
END
$$;

-- ids of the logs in an answer, in its order, and what it says of the others
CREATE FUNCTION pg_temp.logs(answer jsonb) RETURNS text LANGUAGE sql AS $$
	SELECT format('%s of %s, has_more: %s', jsonb_path_query_array(answer, '$.logs[*].id'),
				  answer -> 'total_count', answer -> 'has_more')
$$;

-- the same for patients
CREATE FUNCTION pg_temp.patients(answer jsonb) RETURNS text LANGUAGE sql AS $$
	SELECT format('%s of %s, has_next: %s', jsonb_path_query_array(answer, '$.patients[*].first_name'),
				  answer #> '{pagination,total}', answer #> '{pagination,has_next}')
$$;

-- polling a run that is running starts the worker where there is none: have one
-- from the beginning, so that none comes when this is over
CREATE PROCEDURE pg_temp.await_worker() LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz = clock_timestamp() + '60 s';
BEGIN
	WHILE NOT EXISTS (SELECT FROM pg_stat_activity
					  WHERE datname = current_database() AND backend_type = 'clinisync worker'
						AND query = 'waiting for work') LOOP
		IF clock_timestamp() > deadline THEN
			RAISE EXCEPTION 'waited in vain for the worker';
		END IF;
		PERFORM pg_sleep(0.01);
		PERFORM pg_stat_clear_snapshot();
	END LOOP;
END
$$;
ALTER DATABASE :"DBNAME" SET clinisync.idle_timeout = '1h';
BEGIN;
CREATE EXTENSION clinisync;
SELECT cliniko_setup() ->> 'message';
INSERT INTO cliniko_organizations (organization_id) VALUES ('clinic');
INSERT INTO sync_logs (organization_id, operation_type, status) VALUES ('clinic', 'full_patients', 'running');
SELECT cliniko_sync_logs('clinic') #> '{logs,0,status}';
ROLLBACK;
CALL pg_temp.await_worker();

BEGIN;
CREATE EXTENSION clinisync;

-- before the setup
SELECT refusal, count(*)
FROM unnest('{cliniko_sync_logs,cliniko_status,cliniko_active_patients}'::text[]) AS call,
	pg_temp.attempt(format('SELECT %s(%L)', call, 'clinic')) AS refusal
GROUP BY refusal;
SELECT pg_temp.attempt('SELECT cliniko_list_organizations()');

SELECT cliniko_setup() ->> 'message';
SELECT cliniko_list_organizations();
INSERT INTO cliniko_organizations (organization_id) VALUES ('clinic'), ('other'), ('empty');

--
-- Nothing there yet
--
SELECT jsonb_pretty(cliniko_sync_logs('empty'));
SELECT jsonb_pretty(cliniko_status('empty') - 'sync_duration');
SELECT jsonb_pretty(cliniko_active_patients('empty'));

--
-- An organisation that nobody has connected, and what cannot be one
--
SELECT refusal, count(*)
FROM unnest('{cliniko_sync_logs,cliniko_status,cliniko_active_patients}'::text[]) AS call,
	unnest(ARRAY['nobody', $$x' OR 'a'='a$$, 'CLINIC', 'clinic ', '%']) AS org,
	pg_temp.attempt(format('SELECT %s(%L)', call, org)) AS refusal
GROUP BY refusal;
SELECT refusal, count(*)
FROM unnest('{cliniko_sync_logs,cliniko_status,cliniko_active_patients}'::text[]) AS call,
	unnest(ARRAY[NULL, '', repeat('o', 256)]) AS org,
	pg_temp.attempt(format('SELECT %s(%L)', call, org)) AS refusal
GROUP BY refusal;

--
-- cliniko_sync_logs
--
INSERT INTO sync_logs
	(organization_id, id, operation_type, status, started_at, completed_at,
	 records_processed, records_success, records_failed, metadata, error_details)
VALUES
	('clinic', 1001, 'full_patients', 'failed', '2026-01-14 10:30+00', '2026-01-14 10:30:01.5+00',
	 0, 0, 0, '{"step": "failed", "error_type": "CLINIKO_AUTH_FAILED"}', 'Cliniko does not accept the API key.'),
	('clinic', 1002, 'full_patients', 'completed', '2026-01-15 00:00+00', '2026-01-15 00:04:21.9+00',
	 660, 658, 2, '{"step": "completed", "success_rate": 99.6}', NULL),
	('clinic', 1003, 'active_patients', 'completed', '2026-01-15 01:00+00', '2026-01-15 01:00:10+00',
	 648, 648, 0, '{"step": "completed"}', NULL),
	('clinic', 1004, 'incremental_patients', 'failed', '2026-01-15 02:00+00', '2026-01-15 03:04:05+00',
	 0, 0, 0, '{"step": "failed"}', NULL),
	('other', 1005, 'full_patients', 'completed', '2026-01-15 02:00+00', '2026-01-15 02:00:59.4+00',
	 1, 1, 0, '{}', NULL),
	('clinic', 9223372036854775807, 'full_patients', 'running', '2026-01-15 10:30+00', NULL,
	 648, 448, 2,
	 '{"sync_type": "full_patients", "step": "storing", "patients_found": 648, "patients_stored": 448,
	   "progress_percent": 69.4, "errors": ["Patient ID 12345: date_of_birth has an impossible value"]}', NULL);

-- one log in full; times are in UTC, whatever the session's zone and style
SET LOCAL TimeZone = '<+10>-10';
SET LOCAL DateStyle = 'German';
SET LOCAL IntervalStyle = 'sql_standard';
SELECT jsonb_pretty(cliniko_sync_logs('clinic', 1));
SELECT jsonb_pretty(cliniko_sync_logs('clinic', 1, 'failed'));

-- newest first; how many there are, and whether there are more
SELECT pg_temp.logs(cliniko_sync_logs('clinic'));
SELECT max_rows, pg_temp.logs(cliniko_sync_logs('clinic', max_rows)) FROM unnest('{1,4,5,100}'::int[]) AS max_rows;
SELECT pg_temp.logs(cliniko_sync_logs('other'));

-- ten, where nobody says how many
INSERT INTO sync_logs (organization_id, id, operation_type, status)
SELECT 'empty', 2000 + n, 'full_patients', 'completed' FROM generate_series(1, 11) AS n;
SELECT pg_temp.logs(cliniko_sync_logs('empty'));

-- filters, and an empty one for none, as a query string has it
SELECT status, pg_temp.logs(cliniko_sync_logs('clinic', status => status))
FROM unnest(ARRAY['running', 'completed', 'failed', '', NULL]) AS status;
SELECT operation_type, pg_temp.logs(cliniko_sync_logs('clinic', operation_type => operation_type))
FROM unnest(ARRAY['full_patients', 'incremental_patients', 'active_patients', '', NULL]) AS operation_type;
SELECT pg_temp.logs(cliniko_sync_logs('clinic', 1, 'completed', 'full_patients'));
SELECT pg_temp.logs(cliniko_sync_logs('clinic', 10, 'running', 'active_patients'));

-- arguments out of range
SELECT max_rows, pg_temp.attempt(format('SELECT cliniko_sync_logs(%L, %L)', 'clinic', max_rows))
FROM unnest('{0,-1,101,2147483647,NULL}'::int[]) AS max_rows;
SELECT pg_temp.attempt(format('SELECT cliniko_sync_logs(%L, status => %L)', 'clinic', status))
FROM unnest(ARRAY['done', 'FAILED', $$failed' OR 'a'='a$$]) AS status;
SELECT pg_temp.attempt($$ SELECT cliniko_sync_logs('clinic', operation_type => 'patients') $$);

--
-- cliniko_status
--
INSERT INTO patients
	(organization_id, id, cliniko_patient_id, first_name, last_name, preferred_first_name, email, phone,
	 date_of_birth, last_synced_at, archived_at, deleted_at)
VALUES
	('clinic', 1, 1369857366580793361, 'Ada', 'Lovelace', NULL, 'ada@clinic.example', '0491 570 156',
	 '1980-02-29', '2026-01-15 00:01:02.345678+00', NULL, NULL),
	('clinic', 2, 9223372036854775807, 'Grace', 'Hopper', 'Amazing', 'GRACE@Navy.example', NULL,
	 NULL, '2026-01-15 00:02+00', NULL, NULL),
	('clinic', 3, 12345678, 'Per%cent', 'O''Under_score', NULL, 'back\slash@clinic.example', '+61 491 570 157',
	 '1999-12-31', NULL, NULL, NULL),
	('clinic', 4, 12345679, 'Archived', 'Ada', NULL, 'archived@clinic.example', NULL,
	 NULL, '2026-01-15 00:03+00', '2026-01-01 00:00+00', NULL),
	('clinic', 5, 12345680, 'Deleted', 'Ada', NULL, 'deleted@clinic.example', NULL,
	 NULL, '2026-01-15 00:03+00', NULL, '2026-01-02 00:00+00'),
	('clinic', 6, 12345681, 'Deleted', 'Archived', NULL, NULL, NULL,
	 NULL, '2026-01-15 00:03+00', '2026-01-01 00:00+00', '2026-01-02 00:00+00'),
	('other', 7, 12345678, 'Another', 'Ada', NULL, 'ada@other.example', NULL,
	 NULL, '2026-01-15 00:03+00', NULL, NULL);

-- of the newest run, and of the last one that completed
DELETE FROM sync_logs WHERE operation_type = 'active_patients';
SELECT jsonb_pretty(cliniko_status('clinic') - 'sync_duration');
DELETE FROM sync_logs WHERE id = 9223372036854775807;
SELECT jsonb_pretty(cliniko_status('clinic'));
DELETE FROM sync_logs WHERE id > 1002;
SELECT cliniko_status('clinic') - 'patient_counts';
DELETE FROM sync_logs WHERE id > 1001;
SELECT cliniko_status('clinic') - 'patient_counts';
SELECT cliniko_status('clinic') -> 'patient_counts';

-- how long the newest run took, for people
INSERT INTO sync_logs (organization_id, id, operation_type, status, started_at, completed_at)
VALUES ('clinic', 3000, 'full_patients', 'completed', '2026-01-15 00:00+00', '2026-01-15 00:00+00');
DO $$
DECLARE
	spent text;
	shown text[] = '{}';
BEGIN
	FOREACH spent IN ARRAY '{0 s,0.4 s,59.4 s,59.6 s,61 s,59 min 59 s,1 h,25 h 59 min 59 s}'::text[] LOOP
		UPDATE public.sync_logs SET completed_at = started_at + spent::interval WHERE id = 3000;
		shown = shown || format('%s: %s', spent, public.cliniko_status('clinic') ->> 'sync_duration');
	END LOOP;
	RAISE INFO '%', array_to_string(shown, E'\n');
END
$$;

--
-- cliniko_list_organizations
--
SAVEPOINT listed;

-- by name, those of one name by id, those without one last; connected is who has a key
UPDATE cliniko_organizations SET name = 'Zq Physio' WHERE organization_id = 'clinic';
INSERT INTO cliniko_organizations (organization_id, name, sync_enabled) VALUES ('a', NULL, true), ('z', 'Harbour', false), ('x', 'Harbour', true);
SELECT cliniko_connect(org, 'MS0xMjM0-au1') ->> 'success' FROM unnest('{clinic,x,empty}'::text[]) AS org;
SELECT cliniko_disconnect('empty') ->> 'success';
SELECT jsonb_array_elements(cliniko_list_organizations() -> 'organizations');

-- a table that was there before may not say whether sync is enabled: it is
ALTER TABLE cliniko_organizations ALTER COLUMN sync_enabled DROP NOT NULL;
UPDATE cliniko_organizations SET sync_enabled = NULL WHERE organization_id = 'z';
SELECT jsonb_path_query(cliniko_list_organizations(), '$.organizations[*] ? (@.organization_id == "z").sync_enabled');

-- a thousand at most
INSERT INTO cliniko_organizations (organization_id, name) SELECT n, to_char(n, 'FM0000') FROM generate_series(1, 994) AS n;
CREATE FUNCTION pg_temp.listed() RETURNS text LANGUAGE sql AS $$
	SELECT format('%s, the last %s, has_more: %s', jsonb_array_length(answer -> 'organizations'),
				  answer #> '{organizations,-1,organization_id}', answer -> 'has_more')
	FROM public.cliniko_list_organizations() AS answer
$$;
SELECT pg_temp.listed();
INSERT INTO cliniko_organizations (organization_id, name) VALUES ('one more', '0000');
SELECT pg_temp.listed();

-- without one of its columns
ALTER TABLE cliniko_organizations RENAME COLUMN shard TO region;
SELECT pg_temp.attempt('SELECT cliniko_list_organizations()');
ROLLBACK TO listed;

--
-- cliniko_active_patients
--

-- in the order of Cliniko's ids, which are strings; neither archived nor deleted
SELECT jsonb_pretty(cliniko_active_patients('clinic'));
SELECT pg_temp.patients(cliniko_active_patients('other'));

-- a page at a time
SELECT max_rows, skip_rows, pg_temp.patients(cliniko_active_patients('clinic', max_rows, skip_rows))
FROM (VALUES (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (500, 0), (1, 3), (500, 2147483647)) AS pages (max_rows, skip_rows);
SELECT cliniko_active_patients('clinic', 2, 1) -> 'pagination';
SELECT cliniko_active_patients('clinic') -> 'pagination';

-- names and e-mail addresses, in any case; what is typed is text, not a pattern
SELECT search, pg_temp.patients(cliniko_active_patients('clinic', search => search))
FROM unnest(ARRAY[
	'ada', 'LOVE', 'ada lovelace', 'lovelace ada', 'amazing', 'navy', '@clinic.example', 'nobody', '', NULL,
	'%', '_', 'per%c', 'p%t', 'under_', '_n', '\', '\\', 'back\s', 'O''U', '"', ''' OR true --', '''; DROP TABLE patients; --',
	'%'' OR ''a'' LIKE ''%', '0491']) AS search;
SELECT to_regclass('patients') IS NOT NULL;
SELECT cliniko_active_patients('clinic', 1, 0, 'a') -> 'pagination';
SELECT length(search), pg_temp.attempt(format('SELECT cliniko_active_patients(''clinic'', search => %L) -> ''patients''', search))
FROM unnest(ARRAY[repeat('ü', 100), repeat('ü', 101), repeat('a', 7000)]) AS search;

-- what changed since
SELECT since, pg_temp.patients(cliniko_active_patients('clinic', last_synced_after => since::timestamptz))
FROM unnest(ARRAY['2026-01-01T00:00:00Z', '2026-01-15T00:01:30Z', '2026-01-15T10:01:30+10:00', '2026-01-15T00:02:00Z', 'infinity', '-infinity']) AS since;
SELECT pg_temp.patients(cliniko_active_patients('clinic', 50, 0, 'ada', '2026-01-15T00:01:30Z'));

-- arguments out of range
SELECT max_rows, skip_rows, pg_temp.attempt(format('SELECT cliniko_active_patients(%L, %L, %L)', 'clinic', max_rows, skip_rows))
FROM (VALUES (0, 0), (-1, 0), (501, 0), (NULL, 0), (50, -1), (50, NULL)) AS pages (max_rows, skip_rows);

-- a list is counted to its end, a search no further than to 10000, or to what follows the page
INSERT INTO patients (organization_id, cliniko_patient_id, email, last_synced_at)
SELECT 'empty', n, n || '@clinic.example', '2026-01-15' FROM generate_series(1, 10020) AS n;
SELECT search, since, skip_rows, cliniko_active_patients('empty', 10, skip_rows, search, since::timestamptz) -> 'pagination' AS pagination,
	jsonb_array_length(cliniko_active_patients('empty', 10, skip_rows, search, since::timestamptz) -> 'patients') AS shown
FROM (VALUES (NULL, NULL), ('@clinic', NULL), (NULL, '2026-01-14'), ('7@clinic', NULL)) AS filters (search, since),
	unnest(ARRAY[0, 9990, 10000, 10010, 20000]) AS skip_rows
ORDER BY skip_rows, search COLLATE "C", since;
SELECT cliniko_active_patients('empty', 1, 10010, '@clinic') #>> '{patients,0,cliniko_patient_id}';

--
-- All four only read: a GET runs in a transaction that may do nothing else
--
INSERT INTO sync_logs (organization_id, id, operation_type, status) VALUES ('clinic', 4000, 'full_patients', 'running');
SET TRANSACTION READ ONLY;
SELECT pg_temp.logs(cliniko_sync_logs('clinic', 1));
SELECT cliniko_status('clinic') ->> 'sync_status';
SELECT cliniko_list_organizations() -> 'has_more';
SELECT pg_temp.patients(cliniko_active_patients('clinic', 1));

ROLLBACK;
SELECT pg_terminate_backend(pid, 60000)
FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'clinisync worker';
ALTER DATABASE :"DBNAME" RESET clinisync.idle_timeout;
