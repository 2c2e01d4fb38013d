--
-- cliniko_setup() makes the tables, keeps them up to date, adopts tables that
-- fit, and changes nothing where one does not.
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

-- everything that a setup could change in a schema, one line each
CREATE FUNCTION pg_temp.layout(schema regnamespace) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT line FROM (
		SELECT format('%s %s owned by %s', c.relkind, c.relname, c.relowner::regrole)
		FROM pg_class c
		WHERE c.relnamespace = schema AND c.relkind IN ('r', 'v', 'i')
		UNION ALL
		SELECT format('%s.%s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod))
			|| CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relnamespace = schema AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND NOT a.attisdropped
		UNION ALL
		SELECT format('%s: %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
		FROM pg_constraint
		WHERE connamespace = schema AND contype <> 'n') AS lines (line)
	ORDER BY line COLLATE "C"
$$;

-- how a setup is refused, and whether it left everything as it was
CREATE FUNCTION pg_temp.refusal() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	before text[] = ARRAY(SELECT pg_temp.layout('public'));
	answer text = pg_temp.attempt('SELECT public.cliniko_setup()');
BEGIN
	RETURN answer || CASE WHEN before = ARRAY(SELECT pg_temp.layout('public'))
		THEN E'\n(nothing changed)' ELSE E'\n(SOMETHING CHANGED)' END;
END
$$;

BEGIN;
CREATE ROLE regress_clinisync_owner;
CREATE ROLE regress_clinisync_other;
CREATE EXTENSION clinisync SCHEMA public;
SAVEPOINT installed;

--
-- An empty schema
--
SELECT jsonb_pretty(answer - 'owner' - 'changes'),
	answer ->> 'owner' = quote_ident(current_user) AS owned_by_the_caller,
	jsonb_array_length(answer -> 'changes') > 0 AS changed
FROM cliniko_setup() AS answer;
SELECT relname, relkind, relowner = quote_ident(current_user)::regrole AS owned_by_the_caller
FROM pg_class
WHERE relnamespace = 'public'::regnamespace
	AND relname IN ('cliniko_organizations', 'patients', 'sync_logs')
ORDER BY relname;

-- the tables are the user's, not the extension's
SELECT count(*)
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e' AND classid = 'pg_class'::regclass
	AND objid IN ('cliniko_organizations'::regclass, 'patients'::regclass, 'sync_logs'::regclass)
	AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clinisync');

-- again: nothing to do
SELECT answer ->> 'message', answer -> 'changes' FROM cliniko_setup() AS answer;

-- what was lost comes back, and nothing else is touched
ALTER TABLE patients DROP COLUMN pronouns, ADD COLUMN favourite_colour text DEFAULT 'green';
ALTER TABLE sync_logs DROP COLUMN checkpoint;
SELECT answer ->> 'message', jsonb_pretty(answer -> 'changes') FROM cliniko_setup() AS answer;
ALTER TABLE patients DROP CONSTRAINT patients_org_cliniko_patient_unique;
DROP INDEX sync_logs_one_running, patients_inactive;
SELECT answer ->> 'message', jsonb_pretty(answer -> 'changes') FROM cliniko_setup() AS answer;
DROP TABLE sync_logs;
SELECT jsonb_path_query(answer, '$.changes[*] ? (@ starts with "CREATE")') FROM cliniko_setup() AS answer;
SELECT answer ->> 'message', answer -> 'changes' FROM cliniko_setup() AS answer;
SELECT count(*) FROM pg_attribute WHERE attrelid = 'patients'::regclass AND attname = 'favourite_colour';

-- the tables and what is in them outlive the extension, which takes them up again
INSERT INTO patients (organization_id, cliniko_patient_id) VALUES ('clinic', 11);
DROP EXTENSION clinisync;
SELECT organization_id, cliniko_patient_id FROM patients;
CREATE EXTENSION clinisync SCHEMA public;
SELECT answer ->> 'message', answer -> 'changes' FROM cliniko_setup() AS answer;
ROLLBACK TO installed;

--
-- Whose the tables become
--
SELECT answer ->> 'owner' FROM cliniko_setup('regress_clinisync_owner') AS answer;
SELECT relname, relowner::regrole
FROM pg_class
WHERE relnamespace = 'public'::regnamespace
	AND relname IN ('cliniko_organizations', 'patients', 'sync_logs')
ORDER BY relname;

-- once they are there, they stay with their owner, and so does one that comes back
DROP TABLE sync_logs;
SELECT pg_temp.attempt($$ SELECT cliniko_setup('regress_clinisync_other') $$);
SELECT answer ->> 'owner' FROM cliniko_setup('regress_clinisync_owner') AS answer;
SELECT relowner::regrole FROM pg_class WHERE oid = 'sync_logs'::regclass;
SELECT pg_temp.attempt($$ SELECT cliniko_setup('regress_clinisync_nobody') $$);
ROLLBACK TO installed;

--
-- Another schema, with a name that needs quotes; by somebody who is not a superuser
--
DROP EXTENSION clinisync;
CREATE SCHEMA "My Clinic";
CREATE EXTENSION clinisync SCHEMA "My Clinic";
GRANT USAGE ON SCHEMA "My Clinic" TO regress_clinisync_owner;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA "My Clinic" TO regress_clinisync_owner;
SET LOCAL ROLE regress_clinisync_owner;
SELECT pg_temp.attempt('SELECT "My Clinic".cliniko_setup()');
RESET ROLE;
GRANT CREATE ON SCHEMA "My Clinic" TO regress_clinisync_owner;
SET LOCAL ROLE regress_clinisync_owner;
SELECT answer ->> 'owner', answer ->> 'message' FROM "My Clinic".cliniko_setup() AS answer;
SELECT jsonb_pretty("My Clinic".cliniko_connect('clinic', 'MS0xMjM0-au1', 'Clinic'));
SELECT answer ->> 'message', answer -> 'changes' FROM "My Clinic".cliniko_setup() AS answer;
RESET ROLE;
SELECT oid::regclass, relowner::regrole
FROM pg_class
WHERE relname IN ('cliniko_organizations', 'patients', 'sync_logs')
ORDER BY relname;
SELECT "My Clinic".cliniko_status('clinic') ->> 'sync_status';
SELECT "My Clinic".cliniko_grant('pg_monitor', 'viewer') ->> 'message', has_schema_privilege('pg_monitor', '"My Clinic"'::regnamespace::oid, 'USAGE');
DROP TABLE "My Clinic".sync_logs;
SELECT pg_temp.attempt($$ SELECT "My Clinic".cliniko_status('clinic') $$);
ROLLBACK TO installed;

--
-- Tables that were there before and fit
--

-- a uuid of its own as primary key, varchar columns, columns of its own, rows
CREATE TABLE patients (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	organization_id varchar(50),
	cliniko_patient_id bigint,
	first_name varchar(100) DEFAULT 'Anonymous',
	email varchar,
	favourite_colour text NOT NULL DEFAULT 'green');
INSERT INTO patients (organization_id, cliniko_patient_id, first_name) VALUES
	('clinic', 11, 'Ada'), (NULL, NULL, 'Walk-in 1'), ('clinic', NULL, 'Walk-in 2'), ('clinic', NULL, 'Walk-in 3');
SELECT answer ->> 'message' FROM cliniko_setup() AS answer;
SELECT line FROM pg_temp.layout('public') AS line
WHERE line LIKE 'patients: %' OR line ~ '^patients[.](id|organization_id|cliniko_patient_id|first_name|email|last_name|favourite_colour) ';
SELECT organization_id, cliniko_patient_id, first_name, favourite_colour FROM patients ORDER BY first_name;
INSERT INTO patients (organization_id, cliniko_patient_id, first_name) VALUES ('clinic', 12, 'Grace');
SELECT pg_temp.attempt($$ INSERT INTO patients (organization_id, cliniko_patient_id) VALUES ('clinic', 12) RETURNING 'inserted' $$)
	~ '^23505:.*"patients_org_cliniko_patient_unique"';
SELECT answer ->> 'message', answer -> 'changes' FROM cliniko_setup() AS answer;

-- there the API shows what came from Cliniko, and nothing else
INSERT INTO cliniko_organizations (organization_id) VALUES ('clinic');
SELECT patient ->> 'cliniko_patient_id', patient ->> 'first_name', jsonb_typeof(patient -> 'id')
FROM jsonb_path_query(cliniko_active_patients('clinic'), '$.patients[*]') AS patient;
SELECT cliniko_active_patients('clinic') #> '{pagination,total}';
SELECT cliniko_status('clinic') -> 'patient_counts';
ROLLBACK TO installed;

-- a serial primary key, and neither an organisation nor Cliniko's id yet
CREATE TABLE patients (id serial PRIMARY KEY, first_name text);
SELECT answer ->> 'message' FROM cliniko_setup() AS answer;
SELECT line FROM pg_temp.layout('public') AS line
WHERE line LIKE 'patients: %' OR line ~ '^patients[.](id|organization_id|cliniko_patient_id) ';
INSERT INTO patients (organization_id, cliniko_patient_id) VALUES ('clinic', 12) RETURNING id;
ROLLBACK TO installed;

-- no primary key at all: it gets one
CREATE TABLE patients (id serial, organization_id text, cliniko_patient_id bigint, first_name text);
INSERT INTO patients (organization_id, cliniko_patient_id, first_name) VALUES ('clinic', 11, 'Ada');
SELECT answer ->> 'message' FROM cliniko_setup() AS answer;
SELECT line FROM pg_temp.layout('public') AS line WHERE line LIKE 'patients: %';
SELECT * FROM patients \gset was_
\echo :was_organization_id :was_cliniko_patient_id :was_first_name
ROLLBACK TO installed;

-- somebody else's: only if that is said, for the owner can read the keys
CREATE TABLE patients (id serial PRIMARY KEY);
ALTER TABLE patients OWNER TO regress_clinisync_owner;
SELECT pg_temp.attempt($$ SELECT cliniko_setup() $$);
SELECT answer ->> 'owner' FROM cliniko_setup('regress_clinisync_owner') AS answer;
SELECT relowner::regrole FROM pg_class WHERE oid = 'cliniko_organizations'::regclass;
ROLLBACK TO installed;

--
-- Tables that do not fit
--

-- other types
CREATE TABLE patients (
	id serial PRIMARY KEY, organization_id uuid, cliniko_patient_id varchar(20),
	date_of_birth timestamp, email text, custom_fields json);
SELECT pg_temp.refusal();
ROLLBACK TO installed;

-- the same patient twice, named by id alone
CREATE TABLE patients (
	id serial PRIMARY KEY, organization_id text, cliniko_patient_id bigint, first_name text);
INSERT INTO patients (organization_id, cliniko_patient_id, first_name) VALUES
	('clinic', 11, 'Ada'), ('clinic', 12, 'Grace'), ('other', 11, 'Ada'),
	('clinic', 11, 'Ada'), ('clinic', 12, 'Grace'), ('clinic', 11, 'Ada'), ('clinic', NULL, 'Ada'), ('clinic', NULL, 'Ada');
SELECT pg_temp.refusal();

-- put right, it is adopted
DELETE FROM patients WHERE id IN (4, 5, 6);
SELECT answer ->> 'message' FROM cliniko_setup() AS answer;
SELECT count(*) FROM patients;
ROLLBACK TO installed;

-- a column that nobody would fill
CREATE TABLE patients (
	id serial PRIMARY KEY, clinic_code text NOT NULL, loyalty int NOT NULL DEFAULT 0,
	initials text NOT NULL GENERATED ALWAYS AS ('?') STORED);
SELECT pg_temp.refusal();
ALTER TABLE patients ALTER clinic_code SET DEFAULT 'main';
SELECT answer ->> 'message' FROM cliniko_setup() AS answer;
ROLLBACK TO installed;
CREATE TABLE patients (id bigint PRIMARY KEY);
SELECT pg_temp.refusal();
ROLLBACK TO installed;

-- a column that nobody can fill
CREATE TABLE patients (
	id serial PRIMARY KEY, first_name text, label text GENERATED ALWAYS AS (upper(first_name)) STORED);
SELECT pg_temp.refusal();
ROLLBACK TO installed;

-- rows of which nobody knows whose they are
CREATE TABLE patients (id serial PRIMARY KEY, first_name text);
INSERT INTO patients (first_name) VALUES ('Ada');
SELECT pg_temp.refusal();
ROLLBACK TO installed;

-- a constraint of that name that says something else
CREATE TABLE patients (
	id serial PRIMARY KEY, organization_id text, cliniko_patient_id bigint,
	CONSTRAINT patients_org_cliniko_patient_unique UNIQUE (cliniko_patient_id));
SELECT pg_temp.refusal();
ROLLBACK TO installed;

-- a view
CREATE VIEW patients AS SELECT 'Ada' AS first_name WHERE false;
SELECT pg_temp.refusal();
ROLLBACK TO installed;

-- different owners
CREATE TABLE patients (id serial PRIMARY KEY);
CREATE TABLE sync_logs ();
ALTER TABLE patients OWNER TO regress_clinisync_owner;
ALTER TABLE sync_logs OWNER TO regress_clinisync_other;
SELECT pg_temp.refusal();
ROLLBACK TO installed;

-- a view over which the checks must not stumble, nor run what is behind it
CREATE VIEW patients AS SELECT 1 AS id, 'clinic'::text AS organization_id, 11::bigint AS cliniko_patient_id;
SELECT pg_temp.refusal();
ROLLBACK TO installed;

-- organisations under another key
CREATE TABLE cliniko_organizations (id bigserial PRIMARY KEY, organization_id text);
SELECT pg_temp.refusal();
ROLLBACK TO installed;

-- names that something else has taken
CREATE TABLE elsewhere (id int);
CREATE INDEX sync_logs_one_running ON elsewhere (id);
CREATE TABLE patients_inactive (id int);
SELECT pg_temp.refusal();
ROLLBACK TO installed;

-- logs of another service, which mean something else
CREATE TABLE sync_logs (id bigserial PRIMARY KEY, organization_id text, operation_type text, status varchar(20));
INSERT INTO sync_logs (organization_id, operation_type, status) VALUES
	('clinic', 'patients', 'success'), ('clinic', 'patients', 'running'), ('clinic', 'patients', 'running');
SELECT pg_temp.refusal();
-- once they fit they are adopted, and stay adopted
DELETE FROM sync_logs;
SELECT answer ->> 'message', jsonb_path_query(answer, '$.changes[*] ? (@ starts with "CREATE INDEX sync_logs_newest")')
FROM cliniko_setup() AS answer;
SELECT answer ->> 'message' FROM cliniko_setup() AS answer;
ROLLBACK TO installed;

-- everything at once: all of it is listed
CREATE TABLE patients (id bigint PRIMARY KEY, organization_id text, cliniko_patient_id bigint, email int, clinic_code text NOT NULL);
INSERT INTO patients VALUES (1, 'clinic', 11, 1, 'a'), (2, 'clinic', 11, 1, 'a');
CREATE VIEW sync_logs AS SELECT 1 AS number;
SELECT pg_temp.refusal();

ROLLBACK;
