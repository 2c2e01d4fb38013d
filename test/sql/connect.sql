--
-- cliniko_connect() takes an organisation's key, and cliniko_disconnect()
-- forgets it. Neither asks Cliniko anything.
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

BEGIN;
CREATE EXTENSION clinisync;

--
-- The first organisation: the tables are made, and nobody has to know of it
--
SELECT to_regclass('patients') IS NULL;
SELECT jsonb_pretty(cliniko_connect('123', 'MS0xMjM0-au2', 'Northside Physio'));
SELECT to_regclass('patients') IS NOT NULL;
SELECT organization_id, name, shard, sync_enabled, account_id IS NULL, api_key_sealed IS NOT NULL
FROM cliniko_organizations;

-- by name, without a name
SELECT jsonb_pretty(cliniko_connect(org => 'org_2xwH', api_key => 'MS0xMjM0-uk1'));

--
-- The key's suffix names the shard
--
SELECT key, cliniko_connect('shards', key) ->> 'shard'
FROM (VALUES
	('MS0xMjM0-au1'),
	('MS0xMjM0-au4'),
	('MS0xMjM0-AU4'),
	('MS0xMjM0-uK1'),
	('MS0xMjM0-ca12'),
	('MS0-xMjM0-us1'),
	('MS0xMjM0'),
	('MS0xMjM0-'),
	('MS0xMjM0-1234'),
	('MS0xMjM0-au'),
	('MS0xMjM0-au123'),
	('MS0xMjM0-a1'),
	('MS0xMjM0-au1x'),
	('MS0x-au2-MjM0'),
	('MS0xMjM0=-eu1'),
	('a+b/c_d.e~f-nz9')) AS keys (key);

-- blanks around a key that was copied are not part of it
SELECT cliniko_connect('shards', E' \t MS0xMjM0-au3\r\n') ->> 'shard';
SELECT api_key_sealed AS padded FROM cliniko_organizations WHERE organization_id = 'shards' \gset
SELECT cliniko_connect('shards', 'MS0xMjM0-au3') ->> 'shard';
SELECT :'padded' <> '', octet_length(api_key_sealed) = octet_length(:'padded'::bytea)
FROM cliniko_organizations WHERE organization_id = 'shards';
SELECT octet_length(cliniko_connect('shards', repeat('k', 508) || '-au1') ->> 'shard');

--
-- Again, to exchange the key or the name
--
SELECT api_key_sealed AS sealed, created_at AS created FROM cliniko_organizations WHERE organization_id = '123' \gset
UPDATE cliniko_organizations SET sync_enabled = false, updated_at = '2026-01-01' WHERE organization_id = '123';
SELECT jsonb_pretty(cliniko_connect('123', 'NewKey-uk2'));
SELECT name, shard, sync_enabled, api_key_sealed <> :'sealed', created_at = :'created', updated_at > '2026-01-01'
FROM cliniko_organizations WHERE organization_id = '123';
SELECT jsonb_pretty(cliniko_connect('123', 'NewKey-uk2', 'Southside Physio'));
SELECT count(*) FROM cliniko_organizations WHERE organization_id = '123';

--
-- What cannot be a key
--
SELECT label, pg_temp.attempt(format('SELECT cliniko_connect(%L, %L)', 'clinic', key))
FROM (VALUES
	('none', NULL),
	('empty', ''),
	('blank', E' \t\r\n'),
	('a blank within', 'MS0x MjM0-au1'),
	('a line break within', E'MS0x\nMjM0-au1'),
	('a colon, which ends a user name', 'MS0x:MjM0-au1'),
	('a control character', E'MS0x\x7fMjM0-au1'),
	('not ASCII', 'MS0x' || chr(233) || 'MjM0-au1'),
	('a suffix alone', '-au1'),
	('longer than any key', repeat('k', 509) || '-au1')) AS keys (label, key);

-- a refusal changes nothing, and says nothing of what was passed
SELECT count(*) FROM cliniko_organizations WHERE organization_id = 'clinic';
SELECT pg_temp.attempt($$ SELECT cliniko_connect('123', 'MS0x SECRET-au1') $$) NOT LIKE '%SECRET%';
SELECT pg_temp.attempt($$ SELECT cliniko_connect('', 'MS0xSECRET-au1') $$) NOT LIKE '%SECRET%';
SELECT name, shard FROM cliniko_organizations WHERE organization_id = '123';

--
-- What can be an organisation's id, and what cannot
--
SELECT label, cliniko_connect(org, 'MS0xMjM0-au1') ->> 'organization_id' = org
FROM (VALUES
	('a number', '456'),
	('a uuid', 'b4b5cbf0-63a1-4cf8-8d2c-5a5a4a1f6a10'),
	('a single character', '0'),
	('the longest', repeat('o', 255)),
	('the longest, not ASCII', repeat(chr(233), 255)),
	('quotes and backslashes', E'O''Neill "&" \\Sons')) AS organizations (label, org);
SELECT label, pg_temp.attempt(format('SELECT cliniko_connect(%L, %L)', org, 'MS0xMjM0-au1'))
FROM (VALUES
	('none', NULL),
	('empty', ''),
	('too long', repeat('o', 256))) AS organizations (label, org);
SELECT pg_temp.attempt($$ SELECT cliniko_disconnect('') $$);

--
-- Disconnecting forgets the key and ends the run; patients and logs stay
--
INSERT INTO patients (organization_id, cliniko_patient_id) VALUES ('123', 11), ('456', 11);
INSERT INTO sync_logs (organization_id, id, operation_type, status) VALUES
	('123', 1001, 'full_patients', 'running'), ('456', 1002, 'full_patients', 'running');
SELECT jsonb_pretty(cliniko_disconnect('123'));
SELECT name, api_key_sealed IS NULL, shard IS NULL FROM cliniko_organizations WHERE organization_id = '123';
SELECT id, status, metadata ->> 'error_type' FROM sync_logs ORDER BY id;
SELECT organization_id FROM patients ORDER BY organization_id;
SELECT api_key_sealed IS NULL FROM cliniko_organizations WHERE organization_id = '456';

-- safe to repeat, and it can be connected again
SELECT cliniko_disconnect('123') ->> 'success';
SELECT cliniko_connect('123', 'MS0xMjM0-au1') ->> 'name';

-- nothing to disconnect
SELECT pg_temp.attempt($$ SELECT cliniko_disconnect('nobody') $$);

-- not in a transaction that may only read
SAVEPOINT writable;
SET TRANSACTION READ ONLY;
SELECT pg_temp.attempt($$ SELECT cliniko_connect('123', 'MS0xSECRET-au1') $$);
SELECT pg_temp.attempt($$ SELECT cliniko_disconnect('123') $$);
ROLLBACK TO writable;

-- before the first connect there is nothing
DROP TABLE cliniko_organizations, patients, sync_logs;
SELECT pg_temp.attempt($$ SELECT cliniko_disconnect('123') $$);

-- where a table of the user's is in the way, connecting says what cliniko_setup() says
CREATE TABLE patients (id bigint PRIMARY KEY);
SELECT pg_temp.attempt($$ SELECT cliniko_connect('123', 'MS0xSECRET-au1') $$);

ROLLBACK;
