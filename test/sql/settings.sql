--
-- The clinisync.* settings: their ranges, what they refuse, and who may set them.
--
\pset format unaligned
\pset tuples_only on

-- what became of a command
CREATE FUNCTION pg_temp.attempt(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
BEGIN
	EXECUTE command;
	RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	RETURN concat_ws(E'\n', SQLSTATE || ': ' || message, 'DETAIL: ' || nullif(detail, ''));
END
$$;

-- whether a setting takes a value; the value itself is not repeated
CREATE FUNCTION pg_temp.verdict(setting text, value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	EXECUTE format('SET LOCAL clinisync.%I = %L', setting, value);
	RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN concat_ws(': ', SQLSTATE, nullif(detail, ''));
END
$$;

BEGIN;
CREATE EXTENSION clinisync;

-- all of them: default, unit, range, who may set them and when; each is described
SELECT name, vartype, boot_val, unit, min_val, max_val, context
FROM pg_settings WHERE name LIKE 'clinisync.%' ORDER BY name COLLATE "C";
SELECT name FROM pg_settings WHERE name LIKE 'clinisync.%' AND coalesce(short_desc, '') = '';

-- numbers: both ends of the range, and nothing beyond
SELECT name,
	pg_temp.verdict(split_part(name, '.', 2), min_val),
	pg_temp.verdict(split_part(name, '.', 2), max_val),
	pg_temp.verdict(split_part(name, '.', 2), (min_val::bigint - 1)::text),
	pg_temp.verdict(split_part(name, '.', 2), (max_val::bigint + 1)::text),
	pg_temp.verdict(split_part(name, '.', 2), 'many')
FROM pg_settings WHERE name LIKE 'clinisync.%' AND vartype = 'integer' ORDER BY name COLLATE "C";

-- with units
SELECT pg_temp.attempt($$ SET LOCAL clinisync.request_timeout = '1min' $$);
SHOW clinisync.request_timeout;
SELECT pg_temp.attempt($$ SET LOCAL clinisync.retry_window = '3h' $$);
SHOW clinisync.retry_window;
SELECT pg_temp.attempt($$ SET LOCAL clinisync.max_response_size = '1MB' $$);
SHOW clinisync.max_response_size;

-- base_url: https anywhere, http on this machine alone, and nothing that changes where it leads
SELECT value, pg_temp.verdict('base_url', value)
FROM unnest(ARRAY[
	'', 'https://api.au1.cliniko.com/v1', 'https://proxy.example:8443/cliniko',
	'http://127.0.0.1:8080/v1', 'http://127.0.0.1', 'http://localhost/v1', 'http://localhost:8080', 'http://[::1]:8080/v1',
	'http://api.au1.cliniko.com/v1', 'http://127.0.0.1.example/v1', 'http://127.0.0.10/v1', 'http://localhost.example',
	'http://localhost@elsewhere.example', 'http://127.0.0.1:80@elsewhere.example', 'http://[::1]@elsewhere.example',
	'http://', 'https://', 'https:/api', 'ftp://127.0.0.1', 'file:///etc/passwd', 'api.au1.cliniko.com', ' https://api.example',
	'https://api.example/', 'https://api.example/v1?x=1', 'https://api.example/#x', 'https://user:word@api.example',
	'https://api.example/a b', 'https://api.example\@elsewhere.example', 'https://api.example/"x"']) AS value;

-- contact_email: an address, and nothing that breaks out of a header
SELECT to_json(replace(value, chr(233), '<e9>')), pg_temp.verdict('contact_email', value)
FROM unnest(ARRAY[
	'', 'dev@clinic.example', 'first.last+cliniko@sub.clinic.example',
	'dev', '@clinic.example', 'dev@', 'dev @clinic.example', 'Dev <dev@clinic.example>', 'dev@clinic.example)', '(dev@clinic.example',
	'"dev"@clinic.example', E'dev@clinic.example\nX-Header: 1', E'dev@clinic.example\r', E'dev\t@clinic.example',
	'd' || chr(233) || 'v@clinic.example']) AS value;

-- vendor_name: the same
SELECT to_json(replace(value, chr(233), '<e9>')), pg_temp.verdict('vendor_name', value)
FROM unnest(ARRAY[
	'clinisync', 'Our Portal 2.0', '', 'Portal (beta)', '"Portal"', E'Portal\nX-Header: 1', E'Portal\r', 'Port' || chr(233) || 'l']) AS value;

-- words, and a path
SELECT name, value, pg_temp.verdict(name, value)
FROM (VALUES ('notify', ARRAY['on', 'anonymous', 'off', 'loud', '']),
	('org_claim', ARRAY['org_id', 'app_metadata.org_id', '{https://clinic.example/org_id}', '', '{org_id'])) AS settings (name, vals),
	unnest(vals) AS value;

-- the whole of a message; a value that was refused is not taken
SELECT pg_temp.attempt($$ SET LOCAL clinisync.base_url = 'http://api.au1.cliniko.com/v1' $$);
SELECT pg_temp.attempt($$ SET LOCAL clinisync.contact_email = 'nobody' $$);
SELECT pg_temp.attempt($$ SET LOCAL clinisync.page_size = 101 $$);
SET LOCAL clinisync.contact_email = 'dev@clinic.example';
SELECT pg_temp.verdict('contact_email', 'nobody');
SHOW clinisync.contact_email;

-- a setting that there is not
SELECT pg_temp.attempt($$ SET LOCAL clinisync.nonesuch = 1 $$);

--
-- Only a superuser, or whom a superuser lets
--
CREATE ROLE regress_clinisync_owner;
ALTER DATABASE :"DBNAME" OWNER TO regress_clinisync_owner;
SET LOCAL ROLE regress_clinisync_owner;

-- the database's owner may set others' settings for it, but none of these
SELECT pg_temp.attempt(format('ALTER DATABASE %I SET work_mem = %L', current_database(), '8MB'));
SELECT name, pg_temp.attempt(format('ALTER DATABASE %I SET %s = %L', current_database(), name, boot_val))
FROM pg_settings WHERE name LIKE 'clinisync.%' ORDER BY name COLLATE "C";
SELECT pg_temp.attempt(format('ALTER ROLE CURRENT_USER IN DATABASE %I SET clinisync.base_url = %L', current_database(), 'https://elsewhere.example'));
SELECT pg_temp.attempt($$ SET LOCAL clinisync.base_url = 'https://elsewhere.example' $$);
SELECT pg_temp.attempt($$ SELECT set_config('clinisync.contact_email', 'me@elsewhere.example', true) $$);

RESET ROLE;
GRANT SET ON PARAMETER clinisync.contact_email TO regress_clinisync_owner;
SET LOCAL ROLE regress_clinisync_owner;
SELECT pg_temp.attempt(format('ALTER DATABASE %I SET clinisync.contact_email = %L', current_database(), 'dev@clinic.example'));
SELECT pg_temp.attempt(format('ALTER DATABASE %I SET clinisync.contact_email = %L', current_database(), 'nobody'));
SELECT pg_temp.attempt(format('ALTER DATABASE %I SET clinisync.base_url = %L', current_database(), 'https://elsewhere.example'));
RESET ROLE;

ROLLBACK;
