--
-- Starting, following and cancelling a sync, without any Cliniko: while
-- clinisync.contact_email is not set, a run ends before the first request.
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

-- wait until a condition is true, but not for ever
CREATE PROCEDURE pg_temp.await(condition text) LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz = clock_timestamp() + '60 s';
	met boolean;
BEGIN
	LOOP
		EXECUTE 'SELECT ' || condition INTO met;
		EXIT WHEN met;
		IF clock_timestamp() > deadline THEN
			RAISE EXCEPTION 'waited in vain for: %', condition;
		END IF;
		PERFORM pg_sleep(0.01);
	END LOOP;
END
$$;

-- an answer, with the run's id replaced by whether it is the newest run's
CREATE FUNCTION pg_temp.with_newest(answer jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN jsonb_pretty(answer - 'sync_id' || jsonb_build_object('sync_id is the newest',
		(answer ->> 'sync_id')::bigint = (SELECT max(id) FROM sync_logs)));
END
$$;

CREATE EXTENSION clinisync;
ALTER DATABASE :"DBNAME" SET clinisync.contact_email = '';
-- the first worker stays, so that no other comes when this is over
ALTER DATABASE :"DBNAME" SET clinisync.idle_timeout = '1h';

--
-- What cannot start
--
SELECT refusal, count(*)
FROM unnest('{cliniko_sync_all,cliniko_sync,cliniko_cancel_sync,cliniko_test_connection}'::text[]) AS call,
	pg_temp.attempt(format('SELECT %s(%L)', call, 'clinic')) AS refusal
GROUP BY refusal;
SELECT pg_temp.attempt('SELECT cliniko_sync_all_organizations()');

SELECT cliniko_connect('clinic', 'MS0xMjM0-au1', 'Clinic') ->> 'message';
SELECT refusal, count(*)
FROM unnest('{cliniko_sync_all,cliniko_sync,cliniko_cancel_sync,cliniko_test_connection}'::text[]) AS call,
	pg_temp.attempt(format('SELECT %s(%L)', call, 'nobody')) AS refusal
GROUP BY refusal;
SELECT refusal, count(*)
FROM unnest('{cliniko_sync_all,cliniko_sync,cliniko_cancel_sync,cliniko_test_connection}'::text[]) AS call,
	unnest(ARRAY[NULL, '', repeat('o', 256)]) AS org,
	pg_temp.attempt(format('SELECT %s(%L)', call, org)) AS refusal
GROUP BY refusal;
SELECT pg_temp.attempt($$ SELECT cliniko_cancel_sync('clinic') $$);

BEGIN;
UPDATE cliniko_organizations SET sync_enabled = false;
SELECT pg_temp.attempt($$ SELECT cliniko_sync_all('clinic') $$);
SELECT count(*) FROM cliniko_sync_all_organizations();
SELECT cliniko_disconnect('clinic') ->> 'message';
SELECT pg_temp.attempt($$ SELECT cliniko_sync_all('clinic') $$);
SELECT pg_temp.attempt($$ SELECT cliniko_sync('clinic') $$);
SELECT pg_temp.attempt($$ SELECT cliniko_test_connection('clinic') $$);
UPDATE cliniko_organizations SET sync_enabled = true;
SELECT pg_temp.attempt($$ SELECT cliniko_sync_all('clinic') $$);
SELECT count(*) FROM cliniko_sync_all_organizations();
ALTER TABLE patients DROP COLUMN pronouns;
SELECT replace(pg_temp.attempt($$ SELECT cliniko_sync_all('clinic') $$),
	quote_literal(quote_ident(current_user)), 'OWNER');
ROLLBACK;
SELECT count(*) FROM sync_logs;

--
-- A run that is committed is picked up; this one ends with what to do
--
SELECT pg_temp.with_newest(cliniko_sync_all('clinic'));
CALL pg_temp.await($$ NOT EXISTS (SELECT FROM sync_logs WHERE status = 'running') $$);
SELECT operation_type, status, completed_at >= started_at, records_processed, records_success, records_failed,
	error_details ~ 'ALTER DATABASE .* SET clinisync.contact_email = '
FROM sync_logs;
SELECT metadata ->> 'error_type', metadata ->> 'step', metadata ->> 'progress_percent',
	metadata ->> 'retry_recommended', metadata -> 'errors' = jsonb_build_array(error_details),
	metadata ? 'patients_found', metadata ? 'patients_stored', metadata -> 'api_requests',
	jsonb_typeof(metadata -> 'duration_ms')
FROM sync_logs;
SELECT status -> 'sync_status', status -> 'last_sync' FROM cliniko_status('clinic') AS status;
SELECT log -> 'status', log #> '{metadata,error_type}'
FROM jsonb_path_query(cliniko_sync_logs('clinic'), '$.logs[*]') AS log;

-- the next one is another run; the deprecated name does the same
SELECT pg_temp.with_newest(cliniko_sync('clinic'));
CALL pg_temp.await($$ NOT EXISTS (SELECT FROM sync_logs WHERE status = 'running') $$);
SELECT status, metadata ->> 'error_type' FROM sync_logs ORDER BY id;

--
-- Until the transaction commits, the run is queued; asked again, it is the same run
--
BEGIN;
SELECT pg_temp.with_newest(cliniko_sync_all('clinic'));
SELECT pg_temp.with_newest(cliniko_sync_all('clinic'));
SELECT pg_temp.with_newest(cliniko_sync('clinic'));
SELECT count(*) FROM sync_logs WHERE status = 'running';
SELECT operation_type, status, completed_at, records_processed, records_success, records_failed,
	error_details, checkpoint, jsonb_pretty(metadata)
FROM sync_logs WHERE status = 'running';
ROLLBACK;

-- what is rolled back never was
SELECT count(*) FROM sync_logs;
BEGIN;
SAVEPOINT start;
SELECT cliniko_sync_all('clinic') ->> 'message';
ROLLBACK TO start;
COMMIT;
SELECT count(*) FROM sync_logs;
BEGIN READ ONLY;
SELECT pg_temp.attempt($$ SELECT cliniko_sync_all('clinic') $$);
SELECT pg_temp.attempt($$ SELECT cliniko_cancel_sync('clinic') $$);
ROLLBACK;
SELECT count(*) FROM sync_logs;

--
-- A key that is kept in a form that nobody can read
--
BEGIN;
UPDATE cliniko_organizations SET api_key_sealed = '\xff';
SELECT cliniko_sync_all('clinic') ->> 'message';
COMMIT;
CALL pg_temp.await($$ NOT EXISTS (SELECT FROM sync_logs WHERE status = 'running') $$);
SELECT status, metadata ->> 'error_type', metadata ->> 'retry_recommended', error_details
FROM sync_logs ORDER BY id DESC LIMIT 1;
SELECT jsonb_pretty(cliniko_test_connection('clinic'));
SELECT cliniko_connect('clinic', 'MS0xMjM0-au1') ->> 'message';

--
-- Testing the connection answers, whatever is the matter
--
SELECT jsonb_pretty(answer - 'message'), answer ->> 'message' ~ 'clinisync.contact_email.*ALTER DATABASE'
FROM cliniko_test_connection('clinic') AS answer;
BEGIN READ ONLY;
SELECT cliniko_test_connection('clinic') ->> 'error_code';
ROLLBACK;

--
-- Cancelling
--
TRUNCATE sync_logs;
BEGIN;
SELECT cliniko_sync_all('clinic') ->> 'message';
SELECT pg_temp.with_newest(cliniko_cancel_sync('clinic'));
SELECT pg_temp.attempt($$ SELECT cliniko_cancel_sync('clinic') $$);
COMMIT;
SELECT status, completed_at >= started_at, error_details, metadata ->> 'error_type', metadata ->> 'step',
	metadata ->> 'retry_recommended', metadata -> 'errors' = jsonb_build_array(error_details)
FROM sync_logs;

-- another organisation's run is none of its business, and what was counted stays
BEGIN;
TRUNCATE sync_logs;
SELECT cliniko_connect('other', 'MS0xMjM0-au1') ->> 'message';
INSERT INTO sync_logs (organization_id, id, operation_type, status, records_processed, records_success, records_failed, metadata)
VALUES
	('other', 1001, 'full_patients', 'running', 0, 0, 0, '{}'),
	('clinic', 1002, 'full_patients', 'running', 648, 448, 2,
	 '{"step": "waiting", "patients_found": 648, "patients_stored": 448, "progress_percent": 69.4,
	   "waiting_until": "2026-01-15T10:30:00Z", "waiting_for": "Cliniko''s request limit",
	   "estimated_remaining": "2 seconds", "errors": ["Patient ID 12345: date_of_birth has an impossible value"]}');
SELECT jsonb_pretty(cliniko_cancel_sync('clinic'));
SELECT organization_id, status, records_processed, records_success, records_failed,
	jsonb_pretty(metadata - 'duration_ms')
FROM sync_logs ORDER BY id;
ROLLBACK;

--
-- All organisations at once: those that can, in the order of their ids
--
BEGIN;
SELECT org, cliniko_connect(org, 'MS0xMjM0-au1') ->> 'success'
FROM unnest('{b,a,c,d}'::text[]) AS org;
SELECT cliniko_disconnect('b') ->> 'success';
UPDATE cliniko_organizations SET sync_enabled = false WHERE organization_id = 'c';
SELECT cliniko_sync_all('d') ->> 'message';
SELECT answer ->> 'organization_id', answer ->> 'message' FROM cliniko_sync_all_organizations() AS answer;
SELECT organization_id, status FROM sync_logs WHERE status = 'running' ORDER BY organization_id;
COMMIT;
CALL pg_temp.await($$ NOT EXISTS (SELECT FROM sync_logs WHERE status = 'running') $$);
SELECT organization_id, status, metadata ->> 'error_type' FROM sync_logs ORDER BY organization_id, id;

--
-- Leave nothing behind; one worker did all of this, and goes when told to
--
DROP EXTENSION clinisync;
DROP TABLE cliniko_organizations, patients, sync_logs;
DROP FUNCTION cliniko_claimed_organization();
SELECT pg_terminate_backend(pid, 60000)
FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'clinisync worker';
ALTER DATABASE :"DBNAME" RESET clinisync.contact_email;
ALTER DATABASE :"DBNAME" RESET clinisync.idle_timeout;
