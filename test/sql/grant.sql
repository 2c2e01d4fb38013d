--
-- Who may do what: levels, and that to see an organisation is to be allowed.
--
\pset format unaligned
\pset tuples_only on

-- what a query answers, or how it is refused
CREATE FUNCTION pg_temp.attempt(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
	message text;
	detail text;
BEGIN
	EXECUTE query INTO answer;
	RETURN coalesce(answer, 'nothing');
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	RETURN concat_ws(', ', SQLSTATE || ': ' || message, nullif(detail, ''));
END
$$;

BEGIN;
CREATE ROLE regress_clinisync_viewer;
CREATE ROLE regress_clinisync_manager;
CREATE ROLE regress_clinisync_admin;
CREATE ROLE "regress_clinisync_Weird ""role""; --";
CREATE EXTENSION clinisync;

-- a grant makes the tables, and can be repeated
SELECT cliniko_grant('regress_clinisync_viewer', 'viewer');
SELECT cliniko_grant('regress_clinisync_manager', 'manager') ->> 'level';
SELECT cliniko_grant('regress_clinisync_admin', 'admin') ->> 'level';
SELECT cliniko_grant('regress_clinisync_admin', 'admin') ->> 'level';
SELECT cliniko_grant('"regress_clinisync_Weird ""role""; --"', 'admin') ->> 'role';
SELECT relname FROM pg_class
WHERE relname IN ('cliniko_organizations', 'patients', 'sync_logs') AND relrowsecurity ORDER BY relname;

-- arguments
SELECT pg_temp.attempt($$ SELECT cliniko_grant('regress_clinisync_viewer', 'owner') $$);
SELECT pg_temp.attempt($$ SELECT cliniko_grant('regress_clinisync_viewer', NULL) $$);
SELECT pg_temp.attempt($$ SELECT cliniko_grant(NULL, 'viewer') $$);
SELECT pg_temp.attempt($$ SELECT cliniko_revoke(NULL) $$);
SELECT pg_temp.attempt($$ SELECT cliniko_grant('regress_clinisync_nobody', 'viewer') $$);

-- what each level may call: these functions, and none of the others
CREATE TEMPORARY VIEW function AS
	SELECT p.oid, p.proname FROM pg_proc p
	WHERE p.pronamespace = 'public'::regnamespace AND p.proname ~ '^(cliniko|clinisync)_';
SELECT count(*) > 20 FROM function;
SELECT replace(r.rolname, 'regress_clinisync_', ''), string_agg(f.proname, ' ' ORDER BY f.proname COLLATE "C")
FROM pg_roles r, function f
WHERE r.rolname ~ '^regress_clinisync_(viewer|manager|admin)$' AND has_function_privilege(r.oid, f.oid, 'EXECUTE')
GROUP BY r.rolname ORDER BY count(*);

-- what each may read of the tables: everything but keys and checkpoints; and none may write
SELECT DISTINCT a.attrelid::regclass, a.attname
FROM pg_roles r, pg_attribute a
WHERE r.rolname ~ '^regress_clinisync_' AND a.attnum > 0 AND NOT a.attisdropped
	AND a.attrelid IN ('cliniko_organizations'::regclass, 'patients'::regclass, 'sync_logs'::regclass)
	AND NOT has_column_privilege(r.oid, a.attrelid, a.attnum, 'SELECT');
SELECT r.rolname, a.attrelid::regclass, a.attname
FROM pg_roles r, pg_attribute a
WHERE r.rolname ~ '^regress_clinisync_' AND a.attnum > 0
	AND a.attrelid IN ('cliniko_organizations'::regclass, 'patients'::regclass, 'sync_logs'::regclass)
	AND has_column_privilege(r.oid, a.attrelid, a.attnum, 'INSERT, UPDATE, REFERENCES');
SELECT r.rolname, t.name
FROM pg_roles r, unnest('{cliniko_organizations,patients,sync_logs}'::text[]) AS t (name)
WHERE r.rolname ~ '^regress_clinisync_' AND has_table_privilege(r.oid, t.name, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER');

--
-- To see is to be allowed
--
SELECT cliniko_connect(org, 'MS0xMjM0-au1', 'Clinic ' || org) ->> 'success' FROM unnest('{clinic,other,123}'::text[]) AS org;
INSERT INTO patients (organization_id, cliniko_patient_id)
SELECT 'org' || n % 50, n FROM generate_series(1, 2000) n;
INSERT INTO patients (organization_id, cliniko_patient_id) VALUES ('clinic', 1), ('clinic', 2), ('other', 1), ('123', 1);
INSERT INTO sync_logs (organization_id, operation_type, status)
SELECT org, 'full_patients', 'completed' FROM unnest('{clinic,other,123}'::text[]) AS org;
CREATE TEMPORARY VIEW seen WITH (security_invoker) AS
	SELECT (SELECT count(*) FROM public.cliniko_organizations) AS organizations,
		(SELECT count(*) FROM public.patients) AS patients,
		(SELECT count(*) FROM public.sync_logs) AS logs;
GRANT SELECT ON seen TO PUBLIC;
SELECT * FROM seen;

-- of the claims in a token, one counts
SET LOCAL ROLE regress_clinisync_viewer;
SELECT * FROM seen;
SELECT public.cliniko_list_organizations();
SELECT claims, pg_temp.attempt(format($$
	SELECT concat_ws(' ', set_config('request.jwt.claims', %L, true),
		(SELECT string_agg(organization_id, ',') FROM public.cliniko_organizations),
		(SELECT count(*) FROM public.patients)) $$, claims))
FROM unnest(ARRAY['{"org_id": "clinic"}', '{"org_id": "other", "role": "x"}', '{"org_id": 123}', '{"org_id": "CLINIC"}', '{"org_id": ""}',
	'{"org_id": null}', '{"org_id": ["clinic"]}', '{"org_id": {"clinic": 1}}', '{"org_id": true}', '{"org": "clinic"}', '{}', '[]', '"clinic"',
	'null', '', 'not JSON']) AS claims;

-- what is not visible does not exist, in every function
RESET ROLE;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO regress_clinisync_viewer;
SET LOCAL ROLE regress_clinisync_viewer;
SET LOCAL request.jwt.claims = '{"org_id": "clinic"}';
SELECT * FROM seen;
SELECT organization_id, count(*) FROM public.patients GROUP BY organization_id;
SELECT answer, count(*)
FROM unnest('{other,nobody}'::text[]) AS org,
	unnest('{cliniko_sync_all,cliniko_sync,cliniko_sync_changes,cliniko_cancel_sync,cliniko_disconnect,cliniko_test_connection,
		cliniko_sync_logs,cliniko_status,cliniko_active_patients}'::text[]) AS call,
	pg_temp.attempt(format('SELECT public.%s(%L)', call, org)) AS answer
GROUP BY answer;
SELECT pg_temp.attempt($$ SELECT public.cliniko_set_sync_enabled('other', false) $$);
SELECT pg_temp.attempt($$ SELECT public.cliniko_connect('other', 'STOLEN-au1') $$);
SELECT pg_temp.attempt($$ SELECT public.cliniko_connect('new', 'STOLEN-au1') $$);
SELECT public.cliniko_status('clinic') #>> '{patient_counts,synced_to_database}';
RESET ROLE;
SELECT organization_id, shard, sync_enabled FROM cliniko_organizations ORDER BY organization_id COLLATE "C";
SELECT cliniko_grant('regress_clinisync_viewer', 'viewer') ->> 'level';

-- nothing is written, whatever is tried, and no function of the viewer's sees another's rows
SET LOCAL ROLE regress_clinisync_viewer;
SELECT public.cliniko_list_organizations();
SELECT pg_temp.attempt(command) FROM unnest(ARRAY[
	$$ INSERT INTO public.patients (organization_id, cliniko_patient_id) VALUES ('clinic', 3) $$,
	$$ UPDATE public.patients SET notes = 'x' $$,
	$$ DELETE FROM public.sync_logs $$,
	$$ TRUNCATE public.sync_logs $$,
	$$ UPDATE public.cliniko_organizations SET api_key_sealed = NULL $$,
	$$ SELECT 1 FROM public.patients FOR UPDATE $$,
	$$ MERGE INTO public.patients p USING (VALUES (1)) v (id) ON p.cliniko_patient_id = v.id WHEN MATCHED THEN DELETE $$,
	$$ ALTER TABLE public.patients DISABLE ROW LEVEL SECURITY $$,
	$$ DROP POLICY cliniko_own_organization ON public.patients $$]) AS command;
SET LOCAL row_security = off;
SELECT pg_temp.attempt('SELECT count(*) FROM public.patients');
RESET row_security;
CREATE FUNCTION pg_temp.leak(org text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$
BEGIN
	RAISE NOTICE 'leaked %', org;
	RETURN true;
END
$$;
SELECT count(*) FROM public.sync_logs WHERE pg_temp.leak(organization_id);
RESET ROLE;

-- the claim is an index condition
ANALYZE patients;
SET LOCAL enable_bitmapscan = off;
SET LOCAL ROLE regress_clinisync_viewer;
EXPLAIN (COSTS OFF) SELECT * FROM public.patients;
EXPLAIN (COSTS OFF) SELECT * FROM public.patients WHERE cliniko_patient_id = 1;
SET LOCAL enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT id, status FROM public.sync_logs ORDER BY id DESC LIMIT 1;
RESET enable_seqscan;
RESET ROLE;

-- another claim, also within one, or one that is a URL: a path means the path, whatever claims have its dots in their names
CREATE FUNCTION pg_temp.claimed(path text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RESET ROLE;
	PERFORM set_config('clinisync.org_claim', path, true);
	SET LOCAL ROLE regress_clinisync_viewer;
	RETURN concat_ws(' and ', coalesce(public.cliniko_claimed_organization(), 'nothing'),
		jsonb_path_query_array(public.cliniko_list_organizations(), '$.organizations[*].organization_id'),
		(SELECT count(*) FROM public.cliniko_organizations));
EXCEPTION WHEN invalid_parameter_value THEN
	RETURN SQLERRM;
END
$$;
SET LOCAL request.jwt.claims = '{"org_id": "nobody", "app_metadata": {"org_id": "clinic"}, "app_metadata.org_id": "123",
	"https://clinic.example/org_id": "other", "https://clinic": {"example/org_id": "123"}, "orgs": ["first", "clinic"]}';
SELECT path, pg_temp.claimed(path)
FROM unnest('{org_id,app_metadata.org_id,"{app_metadata,org_id}","{app_metadata.org_id}",https://clinic.example/org_id,
	"{https://clinic.example/org_id}",orgs.1,app_metadata.nothing,"{app_metadata,org_id"}'::text[]) AS path;
RESET ROLE;
RESET clinisync.org_claim;
DROP FUNCTION pg_temp.claimed;

-- an admin sees every organisation, whatever its token says, and so does a table's owner
SET LOCAL ROLE regress_clinisync_admin;
SELECT * FROM seen;
SELECT jsonb_path_query_array(public.cliniko_list_organizations(), '$.organizations[*].organization_id');
SELECT public.cliniko_connect('new', 'MS0xMjM0-au1') ->> 'message';
SELECT public.cliniko_set_sync_enabled('new', false) ->> 'message';
SELECT pg_temp.attempt($$ SELECT public.cliniko_sync_all('new') $$);
SELECT pg_temp.attempt($$ SELECT public.cliniko_set_sync_enabled('new', NULL) $$);
SELECT pg_temp.attempt($$ SELECT public.cliniko_rotate_key() $$);
SELECT pg_temp.attempt($$ SELECT public.cliniko_adopt_keys() $$);
SELECT pg_temp.attempt($$ SELECT public.cliniko_setup() $$);
SELECT pg_temp.attempt($$ SELECT public.cliniko_grant('regress_clinisync_admin', 'admin') $$);
SELECT pg_temp.attempt($$ SELECT public.cliniko_revoke('regress_clinisync_viewer') $$);
RESET ROLE;

-- a lower level takes away what the higher one had
SELECT cliniko_grant('regress_clinisync_admin', 'viewer') ->> 'level';
SET LOCAL ROLE regress_clinisync_admin;
SET LOCAL request.jwt.claims = '{"org_id": "clinic"}';
SELECT * FROM seen;
SELECT jsonb_path_query_array(public.cliniko_list_organizations(), '$.organizations[*].organization_id');
SELECT pg_temp.attempt($$ SELECT public.cliniko_connect('clinic', 'MS0xMjM0-au1') $$);
RESET ROLE;
SELECT DISTINCT polname, array(SELECT r::regrole FROM unnest(polroles) r) FROM pg_policy WHERE polname LIKE 'cliniko\_%' ORDER BY polname;

-- revoking leaves nothing: the roles can go
SELECT cliniko_revoke('regress_clinisync_viewer');
SELECT cliniko_revoke('regress_clinisync_viewer') ->> 'message';
SELECT cliniko_revoke('regress_clinisync_manager') ->> 'message';
SELECT cliniko_revoke('regress_clinisync_admin') ->> 'message';
SELECT cliniko_revoke('"regress_clinisync_Weird ""role""; --"') ->> 'message';
SELECT DISTINCT polname FROM pg_policy WHERE polname LIKE 'cliniko\_%';
DROP VIEW seen, function;
DROP FUNCTION pg_temp.leak;
DROP ROLE regress_clinisync_viewer, regress_clinisync_manager, regress_clinisync_admin, "regress_clinisync_Weird ""role""; --";
ROLLBACK;

--
-- Owners, and another schema
--
BEGIN;
CREATE ROLE regress_clinisync_owner;
CREATE ROLE regress_clinisync_viewer;
CREATE SCHEMA regress_clinisync_home;
CREATE EXTENSION clinisync SCHEMA regress_clinisync_home;
SET LOCAL search_path = regress_clinisync_home;
GRANT USAGE, CREATE ON SCHEMA regress_clinisync_home TO regress_clinisync_owner;
SELECT cliniko_setup('regress_clinisync_owner') ->> 'owner';

-- a grant takes nothing from who owns the tables
SELECT cliniko_grant('regress_clinisync_owner', 'manager') ->> 'level';
SELECT cliniko_connect('clinic', 'MS0xMjM0-au1') ->> 'message';
SET LOCAL ROLE regress_clinisync_owner;
SELECT cliniko_status('clinic') ->> 'sync_status';
UPDATE cliniko_organizations SET name = 'Mine' RETURNING name;
RESET ROLE;
SELECT cliniko_revoke('regress_clinisync_owner') ->> 'message';
SELECT has_table_privilege('regress_clinisync_owner', 'patients', 'INSERT'), has_function_privilege('regress_clinisync_owner', 'cliniko_status(text)', 'EXECUTE');

-- the schema can be used, and no longer
SELECT cliniko_grant('regress_clinisync_viewer', 'viewer') ->> 'level';
SELECT has_schema_privilege('regress_clinisync_viewer', 'regress_clinisync_home', 'USAGE');
SET LOCAL ROLE regress_clinisync_viewer;
SET LOCAL request.jwt.claims = '{"org_id": "clinic"}';
SELECT cliniko_status('clinic') ->> 'sync_status';
RESET ROLE;
SELECT cliniko_revoke('regress_clinisync_viewer') ->> 'message';
SELECT has_schema_privilege('regress_clinisync_viewer', 'regress_clinisync_home', 'USAGE');
DROP ROLE regress_clinisync_viewer;

-- dropping the extension leaves tables, policies and the function that they need
DROP EXTENSION clinisync;
SELECT polname, polrelid::regclass FROM pg_policy WHERE polname LIKE 'cliniko\_%' ORDER BY polrelid::regclass::text COLLATE "C";
SELECT cliniko_claimed_organization();
CREATE EXTENSION clinisync SCHEMA regress_clinisync_home;
SELECT cliniko_setup('regress_clinisync_owner') -> 'changes';
ROLLBACK;

-- an existing table gets its policies; a function of that name that is somebody else's is in the way
BEGIN;
CREATE ROLE regress_clinisync_owner;
CREATE EXTENSION clinisync;
CREATE TABLE patients (organization_id varchar(50), cliniko_patient_id bigint, note text);
SELECT change FROM cliniko_setup() AS answer, jsonb_array_elements_text(answer -> 'changes') AS change
WHERE change ~ 'ROW LEVEL|POLICY|FUNCTION' ORDER BY change COLLATE "C";
SELECT cliniko_setup() -> 'changes';
ALTER FUNCTION cliniko_claimed_organization() OWNER TO regress_clinisync_owner;
SELECT pg_temp.attempt('SELECT cliniko_setup()');
ROLLBACK;

-- nor does a grant adopt a stranger's table without a word
BEGIN;
CREATE ROLE regress_clinisync_owner;
CREATE EXTENSION clinisync;
CREATE TABLE patients (id serial PRIMARY KEY);
ALTER TABLE patients OWNER TO regress_clinisync_owner;
SELECT pg_temp.attempt($$ SELECT cliniko_grant('regress_clinisync_owner', 'viewer') $$);
ROLLBACK;

--
-- Runs of what has changed
--
BEGIN;
CREATE EXTENSION clinisync;
SELECT cliniko_connect(org, 'MS0xMjM0-au1') ->> 'success' FROM unnest('{clinic,disabled,disconnected}'::text[]) AS org;
SELECT cliniko_set_sync_enabled('disabled', false) ->> 'sync_enabled';
SELECT cliniko_disconnect('disconnected') ->> 'success';
CREATE FUNCTION pg_temp.start_changes() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer CONSTANT jsonb = cliniko_sync_changes('clinic');
	start CONSTANT text = (SELECT checkpoint ->> 'changed_since' FROM sync_logs WHERE id = (answer ->> 'sync_id')::bigint);
BEGIN
	PERFORM cliniko_cancel_sync('clinic');
	RETURN concat_ws(' since ', answer ->> 'operation_type', start);
END
$$;

UPDATE cliniko_organizations SET updated_at = '2025-12-31 10:00Z';

-- without a full run that completed there is nothing to build upon
SELECT pg_temp.start_changes();
INSERT INTO sync_logs (organization_id, id, operation_type, status, started_at) VALUES
	('clinic', 1001, 'incremental_patients', 'completed', '2026-01-01 10:00Z'),
	('clinic', 1002, 'active_patients', 'completed', '2026-01-01 11:00Z'),
	('clinic', 1003, 'full_patients', 'failed', '2026-01-01 12:00Z'),
	('other', 1004, 'full_patients', 'completed', '2026-01-01 13:00Z');
SELECT pg_temp.start_changes();
-- from the start of the last run that completed, less ten minutes
INSERT INTO sync_logs (organization_id, id, operation_type, status, started_at) VALUES
	('clinic', 2001, 'full_patients', 'completed', '2026-01-02 10:00:59.9Z');
SELECT pg_temp.start_changes();
INSERT INTO sync_logs (organization_id, id, operation_type, status, started_at) VALUES
	('clinic', 3001, 'incremental_patients', 'completed', '2026-01-03 00:05Z'),
	('clinic', 3002, 'incremental_patients', 'failed', '2026-01-04 00:05Z'),
	('clinic', 3003, 'active_patients', 'completed', '2026-01-05 00:05Z');
SELECT pg_temp.start_changes();

-- what a run of changes left out is asked for again
INSERT INTO sync_logs (organization_id, id, operation_type, status, started_at, records_failed) VALUES
	('clinic', 4001, 'incremental_patients', 'completed', '2026-01-06 00:05Z', 1);
SELECT pg_temp.start_changes();
INSERT INTO sync_logs (organization_id, id, operation_type, status, started_at, records_failed) VALUES
	('clinic', 5001, 'full_patients', 'completed', '2026-01-07 00:05Z', 1);
SELECT pg_temp.start_changes();
-- another key may be of another account; a new column is empty until all patients were fetched again
SAVEPOINT connected;
SELECT cliniko_connect('clinic', 'MS0xMjM0NQ-au1') ->> 'success';
SELECT pg_temp.start_changes();
ROLLBACK TO connected;
ALTER TABLE patients DROP COLUMN city;
SELECT cliniko_setup() -> 'success';
SELECT pg_temp.start_changes();
ROLLBACK TO connected;

-- of all organisations, those that can: of both kinds
SELECT answer ->> 'organization_id', answer ->> 'message', answer ->> 'operation_type'
FROM cliniko_sync_all_organizations(only_changes => true) AS answer;
SELECT answer ->> 'organization_id', answer ->> 'message', answer ->> 'operation_type' FROM cliniko_sync_all_organizations() AS answer;
SELECT cliniko_cancel_sync('clinic') ->> 'message';
SELECT answer ->> 'message', answer ->> 'operation_type' FROM cliniko_sync_all_organizations() AS answer;
-- but that the tables are not as they must be concerns all of them
ALTER TABLE sync_logs RENAME COLUMN updated_at TO moved_at;
SELECT pg_temp.attempt('SELECT cliniko_sync_all_organizations()');
ROLLBACK;
