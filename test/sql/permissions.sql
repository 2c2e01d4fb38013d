--
-- Nothing is granted to PUBLIC: neither the functions nor the tables.
--
\pset format unaligned
\pset tuples_only on

-- how a query is refused, or that it is not
CREATE FUNCTION pg_temp.refusal(query text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE query;
	RETURN 'ALLOWED';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ': ' || SQLERRM;
END
$$;

BEGIN;
CREATE ROLE regress_clinisync_stranger;
CREATE EXTENSION clinisync SCHEMA public;
SELECT cliniko_connect('clinic', 'MS0xMjM0-au1') ->> 'success';

CREATE TEMPORARY VIEW extension_function AS
	SELECT p.oid, p.proname,
		format('SELECT public.%I(%s)', p.proname,
			   (SELECT string_agg('NULL::' || format_type(type, NULL), ', ' ORDER BY i)
				FROM unnest(p.proargtypes) WITH ORDINALITY AS arguments (type, i))) AS call,
		p.proacl, p.proowner, p.prosecdef
	FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
	WHERE d.refclassid = 'pg_extension'::regclass AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
		AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clinisync');
GRANT SELECT ON extension_function TO regress_clinisync_stranger;

-- every function of the extension, called by a role that was granted nothing
SELECT count(*) > 15 FROM extension_function;
SET LOCAL ROLE regress_clinisync_stranger;
SELECT proname, refusal
FROM extension_function, pg_temp.refusal(call) AS refusal
WHERE refusal NOT LIKE '42501: permission denied for function %';
SELECT pg_temp.refusal($$ SELECT public.cliniko_status('clinic') $$);
RESET ROLE;


-- by the catalog: no privilege of PUBLIC's, and no function that lends its owner's rights
SELECT proname FROM extension_function
WHERE proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee <> proowner);
SELECT proname FROM extension_function WHERE prosecdef;

-- the tables
SET LOCAL ROLE regress_clinisync_stranger;
SELECT pg_temp.refusal(format('%s public.%I', command, name))
FROM unnest('{TABLE,DELETE FROM,TRUNCATE}'::text[]) AS command,
	unnest('{cliniko_organizations,patients,sync_logs}'::text[]) AS name;
RESET ROLE;
SELECT relname FROM pg_class
WHERE oid IN ('cliniko_organizations'::regclass, 'patients'::regclass, 'sync_logs'::regclass)
	AND EXISTS (SELECT FROM aclexplode(relacl) WHERE grantee <> relowner);

-- executing alone is not enough: without a claim there is no organization to act on
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO regress_clinisync_stranger;
SET LOCAL ROLE regress_clinisync_stranger;
SELECT call, pg_temp.refusal(format('SELECT public.%s(%L)', call, 'clinic'))
FROM unnest('{cliniko_sync_all, cliniko_sync, cliniko_cancel_sync, cliniko_disconnect, cliniko_test_connection,
	cliniko_sync_logs, cliniko_status, cliniko_active_patients}'::text[]) AS call;
SELECT public.cliniko_sync_all_organizations();
SELECT public.cliniko_list_organizations();
RESET ROLE;

-- who can see one can act on it, with the functions' hands alone, and never reads a key
INSERT INTO sync_logs (organization_id, id, operation_type, status) VALUES ('clinic', 1001, 'full_patients', 'running');
SET LOCAL ROLE regress_clinisync_stranger;
SELECT pg_temp.refusal($$ SELECT public.cliniko_cancel_sync('clinic') $$);
SET LOCAL request.jwt.claims = '{"org_id": "clinic"}';
SELECT public.cliniko_cancel_sync('clinic') ->> 'message';
SELECT public.cliniko_sync_logs('clinic') #>> '{logs,0,status}';
SELECT public.cliniko_status('clinic') ->> 'sync_status';
SELECT public.cliniko_active_patients('clinic') #> '{pagination,total}';
SELECT pg_temp.refusal($$ SELECT count(*) FROM public.patients $$);
SELECT pg_temp.refusal($$ SELECT count(*) FROM public.sync_logs $$);
SELECT pg_temp.refusal($$ SELECT api_key_sealed FROM public.cliniko_organizations $$);
SELECT pg_temp.refusal($$ UPDATE public.cliniko_organizations SET api_key_sealed = '' $$);
SELECT pg_temp.refusal($$ DELETE FROM public.sync_logs $$);
RESET ROLE;

-- nor does it make tables, or drop what others installed
DROP TABLE cliniko_organizations, patients, sync_logs;
DROP FUNCTION cliniko_claimed_organization;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
SET LOCAL ROLE regress_clinisync_stranger;
SELECT pg_temp.refusal($$ SELECT public.cliniko_setup() $$);
SELECT pg_temp.refusal($$ SELECT public.cliniko_connect('clinic', 'MS0xMjM0-au1') $$);
SELECT pg_temp.refusal('DROP EXTENSION clinisync');
RESET ROLE;

ROLLBACK;
