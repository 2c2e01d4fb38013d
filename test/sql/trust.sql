--
-- Nobody gains what they were not given: by default privileges, by tables or
-- functions that were there first, by what others granted.
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
	RETURN coalesce(answer, 'done');
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(E'\n', SQLSTATE || ': ' || message,
					 'DETAIL: ' || nullif(detail, ''), 'HINT: ' || nullif(hint, ''));
END
$$;

-- what becomes of a command
CREATE FUNCTION pg_temp.command(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ': ' || SQLERRM;
END
$$;

-- whoever, but the owner, may do anything with what is in a schema and ours
CREATE FUNCTION pg_temp.privileges() RETURNS SETOF text LANGUAGE sql AS $$
	SELECT format('%s %s %s', object, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, privilege_type) COLLATE "C"
	FROM (
		SELECT oid::regprocedure::text, proowner, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
		WHERE proname ~ '^(cliniko|clinisync)_'
		UNION ALL
		SELECT c.oid::regclass::text, relowner, coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
		FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S')
		UNION ALL
		SELECT format('%s.%s', attrelid::regclass, attname), relowner, attacl
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE relnamespace = 'public'::regnamespace
	) AS o (object, owner, acl), aclexplode(acl)
	WHERE grantee <> owner
	ORDER BY 1
$$;

CREATE ROLE regress_clinisync_anon;
CREATE ROLE regress_clinisync_keeper;
CREATE ROLE regress_clinisync_neighbour;
CREATE ROLE regress_clinisync_first;
CREATE ROLE regress_clinisync_second;

--
-- Default privileges give nobody anything: neither the creator's nor the owner's
--
BEGIN;
GRANT CREATE ON SCHEMA public TO regress_clinisync_keeper;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO regress_clinisync_anon;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_clinisync_anon, PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO regress_clinisync_anon;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_clinisync_keeper GRANT ALL ON FUNCTIONS TO regress_clinisync_anon;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_clinisync_keeper GRANT ALL ON TABLES TO regress_clinisync_anon WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_clinisync_keeper GRANT ALL ON SEQUENCES TO regress_clinisync_anon;
CREATE EXTENSION clinisync;
SELECT pg_temp.privileges();
SAVEPOINT created;
SELECT cliniko_setup() ->> 'message';
SELECT pg_temp.privileges();
ROLLBACK TO created;
SELECT cliniko_setup('regress_clinisync_keeper') ->> 'message';
SELECT pg_temp.privileges();
ROLLBACK TO created;
-- a schema in which the owner may not make anything
REVOKE CREATE ON SCHEMA public FROM regress_clinisync_keeper;
SELECT answer ->> 'owner' FROM cliniko_setup('regress_clinisync_keeper') AS answer;
SELECT DISTINCT relowner::regrole FROM pg_class WHERE relname IN ('cliniko_organizations', 'patients', 'sync_logs');
SELECT pg_temp.privileges();
-- what comes back is no more anybody's than it was
DROP TABLE sync_logs;
SELECT cliniko_setup() ->> 'message';
SELECT pg_temp.privileges();
ROLLBACK TO created;
-- on tables that were there it takes nothing away, and says what it has found
CREATE TABLE patients (id serial PRIMARY KEY, first_name text);
GRANT UPDATE (first_name) ON patients TO regress_clinisync_second;
REVOKE ALL ON patients FROM PUBLIC;
CREATE POLICY everybody ON patients USING (true);
CREATE POLICY "The Second" ON patients FOR SELECT TO regress_clinisync_second, regress_clinisync_first USING (true);
CREATE POLICY writing ON patients FOR INSERT WITH CHECK (true);
CREATE POLICY strictly ON patients AS RESTRICTIVE USING (true);
-- (17 and later have MAINTAIN)
SELECT replace(jsonb_pretty(answer - 'changes' - 'owner'), 'MAINTAIN, ', '') FROM cliniko_setup() AS answer;
ROLLBACK;

--
-- Tables that were there first are nobody's to whom that was not said
--
BEGIN;
CREATE EXTENSION clinisync;
SELECT cliniko_setup('regress_clinisync_neighbour') ->> 'owner';
-- as if the neighbour had made them all
DROP EXTENSION clinisync;
CREATE EXTENSION clinisync;
INSERT INTO cliniko_organizations (organization_id) VALUES ('clinic');
SELECT pg_temp.attempt($$ SELECT cliniko_connect('clinic', 'MS0xMjM0-au1') $$);
SELECT api_key_sealed IS NULL FROM cliniko_organizations;
SELECT refusal, count(*)
FROM unnest('{cliniko_sync_all,cliniko_sync_changes,cliniko_cancel_sync,cliniko_disconnect,cliniko_test_connection,
	cliniko_sync_logs,cliniko_status,cliniko_active_patients}'::text[]) AS call,
	pg_temp.attempt(format('SELECT public.%s(%L)', call, 'clinic')) AS refusal
GROUP BY refusal;
SELECT pg_temp.attempt($$ SELECT cliniko_grant('regress_clinisync_first', 'viewer') $$);
SELECT answer ->> 'owner' FROM cliniko_setup('regress_clinisync_neighbour') AS answer;
SELECT pg_temp.attempt($$ SELECT cliniko_connect('clinic', 'MS0xMjM0-au1') ->> 'message' $$);
-- it is remembered, and what changes without a word is not used
SELECT answer ->> 'owner' FROM cliniko_setup() AS answer;
ALTER TABLE sync_logs OWNER TO regress_clinisync_keeper;
SELECT pg_temp.attempt($$ SELECT cliniko_status('clinic') $$);
SELECT pg_temp.attempt($$ SELECT cliniko_connect('clinic', 'MS0xMjM0-au1') $$);
ALTER TABLE sync_logs OWNER TO regress_clinisync_neighbour;
ALTER ROLE regress_clinisync_neighbour RENAME TO regress_clinisync_renamed;
SELECT pg_temp.attempt($$ SELECT cliniko_status('clinic') $$);
ALTER ROLE regress_clinisync_renamed RENAME TO regress_clinisync_neighbour;
-- nor is one that does not keep organizations apart
ALTER TABLE patients DISABLE ROW LEVEL SECURITY;
SELECT pg_temp.attempt($$ SELECT cliniko_active_patients('clinic') $$);
SELECT cliniko_setup() -> 'changes';
DROP POLICY cliniko_own_organization ON cliniko_organizations;
SELECT pg_temp.attempt($$ SELECT cliniko_list_organizations() $$);
SELECT cliniko_setup() -> 'changes';
SELECT cliniko_list_organizations() -> 'has_more';
-- and whose they are is the extension's to note
SET LOCAL ROLE regress_clinisync_neighbour;
SELECT pg_temp.command($$ UPDATE public.clinisync_owner SET role = 'regress_clinisync_keeper' $$);
SELECT pg_temp.attempt($$ SELECT public.clinisync_say_owner('regress_clinisync_keeper') $$);
RESET ROLE;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO regress_clinisync_neighbour;
SET LOCAL ROLE regress_clinisync_neighbour;
SELECT pg_temp.attempt($$ SELECT public.clinisync_say_owner('regress_clinisync_keeper') $$);
SELECT pg_temp.attempt($$ SELECT public.clinisync_execute_as('regress_clinisync_keeper', 'SELECT 1') $$);
SELECT pg_temp.attempt($$ SELECT public.clinisync_execute_as(NULL, 'SELECT 1') $$);
RESET ROLE;
ROLLBACK;

-- the caller's own are taken up without a word
BEGIN;
CREATE EXTENSION clinisync;
SELECT cliniko_connect('clinic', 'MS0xMjM0-au1') ->> 'message';
DROP EXTENSION clinisync;
CREATE EXTENSION clinisync;
SELECT cliniko_connect('clinic', 'MS0xMjM0-au1') ->> 'message';
ROLLBACK;

--
-- The names of our functions are ours in the extension's schema
--
BEGIN;
GRANT USAGE, CREATE ON SCHEMA public TO regress_clinisync_neighbour;
SET LOCAL ROLE regress_clinisync_neighbour;
CREATE FUNCTION public.cliniko_grant(role varchar, level varchar) RETURNS text LANGUAGE sql RETURN 'sprung';
SAVEPOINT planted;
RESET ROLE;
SELECT pg_temp.command('CREATE EXTENSION clinisync');
DROP FUNCTION cliniko_grant(varchar, varchar);
CREATE EXTENSION clinisync;
CREATE SCHEMA elsewhere AUTHORIZATION regress_clinisync_neighbour;
SET LOCAL ROLE regress_clinisync_neighbour;
SELECT pg_temp.command(format('CREATE %s RETURNS text LANGUAGE sql RETURN ''sprung''', made))
FROM unnest(ARRAY[
	'FUNCTION public.cliniko_grant(role varchar, level varchar)',
	'FUNCTION public.cliniko_setup()',
	'FUNCTION public.cliniko_status(org text, whatever int DEFAULT 1)',
	'FUNCTION public.clinisync_obstacles(owner text)',
	'FUNCTION public.cliniko_claimed_organization(whatever int DEFAULT 1)',
	'FUNCTION public.cliniko_unheard_of()',
	'FUNCTION elsewhere.cliniko_status(org text)']) AS made;
SELECT pg_temp.command(command) FROM unnest(ARRAY[
	'CREATE PROCEDURE public.cliniko_revoke() LANGUAGE sql AS ''''',
	'CREATE AGGREGATE public.cliniko_status(int) (SFUNC = int4pl, STYPE = int)',
	'ALTER FUNCTION public.cliniko_unheard_of() RENAME TO cliniko_status',
	'ALTER FUNCTION elsewhere.cliniko_status(text) SET SCHEMA public',
	'ALTER FUNCTION public.cliniko_unheard_of() STABLE',
	/* f(literal) is a cast where there is a type f */
	'CREATE DOMAIN public.cliniko_sync_all AS text CHECK (elsewhere.cliniko_status(VALUE) IS NOT NULL)',
	'CREATE TYPE public.cliniko_status AS ENUM (''clinic'')',
	'CREATE TYPE public.cliniko_setup',
	'CREATE TYPE public.clinic_range AS RANGE (subtype = int4, multirange_type_name = cliniko_setup)',
	'CREATE TYPE public.cliniko_revoke AS RANGE (subtype = int4)',
	'CREATE DOMAIN public.clinic AS text',
	'ALTER DOMAIN public.clinic RENAME TO cliniko_sync_all',
	'DROP DOMAIN public.clinic',
	/* a composite type is none */
	'CREATE TABLE public.cliniko_status (org text)',
	'DROP TABLE public.cliniko_status',
	'DROP FUNCTION elsewhere.cliniko_status(text), public.cliniko_unheard_of()']) AS command;
RESET ROLE;
-- those who look after it are not hindered
ALTER FUNCTION cliniko_status(text) COST 200;
SELECT cliniko_setup() ->> 'message';
CREATE OR REPLACE FUNCTION cliniko_claimed_organization() RETURNS text LANGUAGE sql STABLE RETURN NULL::text;
SELECT pg_temp.command('ALTER SCHEMA public RENAME TO ours');
SELECT pg_temp.command('ALTER SCHEMA elsewhere RENAME TO nowhere');
-- what came in all the same is an obstacle, and is granted to nobody
ALTER EVENT TRIGGER clinisync_guard DISABLE;
CREATE FUNCTION cliniko_status(org text, whatever int DEFAULT 1) RETURNS text LANGUAGE sql RETURN 'sprung';
REVOKE ALL ON FUNCTION cliniko_status(text, int) FROM PUBLIC;
SELECT pg_temp.attempt('SELECT cliniko_setup()');
SELECT pg_temp.attempt($$ SELECT cliniko_grant('regress_clinisync_first', 'viewer') $$);
SELECT has_function_privilege('regress_clinisync_first', 'cliniko_status(text, int)', 'EXECUTE');
ROLLBACK;

-- with types that were there first it is not created
BEGIN;
CREATE DOMAIN cliniko_sync_all AS text;
SELECT pg_temp.command('CREATE EXTENSION clinisync');
ROLLBACK;

--
-- Another schema, which the owner can neither use nor fill; and another way to print names
--
BEGIN;
CREATE SCHEMA regress_clinisync_home;
CREATE EXTENSION clinisync SCHEMA regress_clinisync_home;
SET LOCAL quote_all_identifiers = on;
SELECT answer ->> 'owner', answer ->> 'message' FROM regress_clinisync_home.cliniko_setup('regress_clinisync_keeper') AS answer;
SELECT answer ->> 'message', answer -> 'changes' FROM regress_clinisync_home.cliniko_setup() AS answer;
-- who has granted and cannot reach the schema any more
SELECT regress_clinisync_home.cliniko_grant('regress_clinisync_first', 'viewer') ->> 'level';
GRANT SELECT ON regress_clinisync_home.patients TO regress_clinisync_first WITH GRANT OPTION;
SET LOCAL ROLE regress_clinisync_first;
GRANT SELECT ON regress_clinisync_home.patients TO regress_clinisync_second;
RESET ROLE;
REVOKE USAGE ON SCHEMA regress_clinisync_home FROM regress_clinisync_first;
SELECT regress_clinisync_home.cliniko_revoke('regress_clinisync_second') ->> 'message';
SELECT has_table_privilege('regress_clinisync_second', 'regress_clinisync_home.patients', 'SELECT'),
	has_schema_privilege('regress_clinisync_first', 'regress_clinisync_home', 'USAGE');
ROLLBACK;

--
-- What others granted is taken as well, and what cannot be is said
--
BEGIN;
CREATE EXTENSION clinisync;
SELECT cliniko_grant('regress_clinisync_second', 'viewer') -> 'policies';
GRANT SELECT ON patients TO regress_clinisync_first WITH GRANT OPTION;
GRANT SELECT (organization_id, shard) ON cliniko_organizations TO regress_clinisync_first WITH GRANT OPTION;
GRANT EXECUTE ON FUNCTION cliniko_status(text) TO regress_clinisync_first WITH GRANT OPTION;
SELECT pg_get_serial_sequence('patients', 'id') AS sequence \gset
GRANT USAGE ON SEQUENCE :sequence TO regress_clinisync_second;
SET LOCAL ROLE regress_clinisync_first;
GRANT SELECT ON public.patients TO regress_clinisync_second WITH GRANT OPTION;
GRANT SELECT (shard) ON public.cliniko_organizations TO regress_clinisync_second;
GRANT EXECUTE ON FUNCTION public.cliniko_status(text) TO regress_clinisync_second;
SET LOCAL ROLE regress_clinisync_second;
GRANT SELECT ON public.patients TO regress_clinisync_anon;
RESET ROLE;
CREATE POLICY recipe ON patients FOR SELECT TO regress_clinisync_second USING (organization_id = 'clinic');
SELECT cliniko_revoke('regress_clinisync_second');
SELECT privilege FROM pg_temp.privileges() AS privilege WHERE privilege ~ 'second|anon';
SET LOCAL ROLE regress_clinisync_second;
SELECT pg_temp.attempt('SELECT count(*) FROM public.patients');
RESET ROLE;
SELECT privilege FROM pg_temp.privileges() AS privilege WHERE privilege ~ 'first';
-- and the next grant says what comes back to life with it
SELECT cliniko_grant('regress_clinisync_second', 'viewer') -> 'policies';
ROLLBACK;

--
-- Who may read a table, and nothing else, sees the clinics of the claim, or none
--
BEGIN;
CREATE EXTENSION clinisync;
SELECT cliniko_connect(org, 'MS0xMjM0-au1') ->> 'success' FROM unnest('{clinic,other}'::text[]) AS org;
INSERT INTO patients (organization_id, cliniko_patient_id) VALUES ('clinic', 1), ('clinic', 2), ('other', 1);
GRANT SELECT ON patients TO regress_clinisync_first;
SET LOCAL ROLE regress_clinisync_first;
SELECT count(*) FROM public.patients;
SET LOCAL request.jwt.claims = '{"org_id": "clinic"}';
SELECT count(*) FROM public.patients;
RESET ROLE;
RESET request.jwt.claims;
CREATE POLICY reporting ON patients FOR SELECT TO regress_clinisync_first USING (organization_id IN ('other'));
SET LOCAL ROLE regress_clinisync_first;
SELECT organization_id, count(*) FROM public.patients GROUP BY organization_id;
RESET ROLE;
ROLLBACK;

--
-- A role is written as in SQL
--
BEGIN;
CREATE EXTENSION clinisync;
SELECT name, pg_temp.attempt(format('SELECT cliniko_revoke(%L) ->> %L', name, 'role'))
FROM unnest('{regress_clinisync_first,REGRESS_clinisync_FIRST,"\"regress_clinisync_first\"",regress_clinisync_nobody,"",-,0,10}'::text[]) AS name;
ROLLBACK;

DROP ROLE regress_clinisync_anon, regress_clinisync_keeper, regress_clinisync_neighbour, regress_clinisync_first, regress_clinisync_second;
