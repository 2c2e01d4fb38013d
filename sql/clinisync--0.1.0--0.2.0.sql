/*
 * clinisync 0.1.0 to 0.2.0
 *
 * What ALTER EXTENSION clinisync UPDATE runs in a database that has 0.1.0. In
 * the end that database has what CREATE EXTENSION makes of 0.2.0: whatever has
 * changed in sql/clinisync.sql since 0.1.0 is repeated here, as
 * test/t/041_an_upgrade_keeps_everything.pl insists. Tables are brought up to
 * date by cliniko_setup().
 */
\echo Use "ALTER EXTENSION clinisync UPDATE TO '0.2.0'" to load this file. \quit

/* what is not qualified here is PostgreSQL's own, whatever else is in the schema */
SET LOCAL search_path = pg_catalog, pg_temp;

/* their arguments are others now */
DROP FUNCTION @extschema@.cliniko_setup(regrole);
DROP FUNCTION @extschema@.cliniko_revoke(regrole);
DROP FUNCTION @extschema@.cliniko_grant(regrole, text);

CREATE OR REPLACE FUNCTION @extschema@.clinisync_indexes()
RETURNS TABLE (relation name, index_name name, definition text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
VALUES
	('sync_logs'::name, 'sync_logs_one_running'::name,
	 'CREATE UNIQUE INDEX sync_logs_one_running ON @extschema@.sync_logs (organization_id) '
	 'WHERE status = ''running'''),
	/* a log that has ended is in two of these, one that is running in the above */
	('sync_logs', 'sync_logs_completed',
	 'CREATE INDEX sync_logs_completed ON @extschema@.sync_logs (organization_id, id) '
	 'WHERE status = ''completed'''),
	('sync_logs', 'sync_logs_completed_by_type',
	 'CREATE INDEX sync_logs_completed_by_type ON @extschema@.sync_logs (organization_id, operation_type, id) '
	 'WHERE status = ''completed'''),
	('sync_logs', 'sync_logs_failed',
	 'CREATE INDEX sync_logs_failed ON @extschema@.sync_logs (organization_id, id) '
	 'WHERE status = ''failed'''),
	('sync_logs', 'sync_logs_failed_by_type',
	 'CREATE INDEX sync_logs_failed_by_type ON @extschema@.sync_logs (organization_id, operation_type, id) '
	 'WHERE status = ''failed'''),
	/*
	 * Holds nothing of an active patient, and is all that is read to count the
	 * others. Its WHERE must not say that cliniko_patient_id IS NOT NULL: of a
	 * column that is NOT NULL, PostgreSQL 17 and later drop that from a query,
	 * and then do not see that the index has what is asked for.
	 */
	('patients', 'patients_inactive',
	 'CREATE INDEX patients_inactive ON @extschema@.patients (organization_id, deleted_at, cliniko_patient_id) '
	 'WHERE archived_at IS NOT NULL OR deleted_at IS NOT NULL')
UNION ALL
/* what sync_logs_pkey is for, where the table has kept a primary key of its own */
SELECT 'sync_logs', 'sync_logs_newest',
	'CREATE INDEX sync_logs_newest ON @extschema@.sync_logs (organization_id, id)'
FROM pg_constraint o
WHERE o.conrelid = to_regclass('@extschema@.sync_logs') AND o.contype = 'p'
	AND pg_get_constraintdef(o.oid) <> 'PRIMARY KEY (organization_id, id)'
$$;

CREATE TABLE @extschema@.clinisync_owner (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	role name NOT NULL
);
COMMENT ON TABLE @extschema@.clinisync_owner IS
'Whose the three tables are, as cliniko_setup() was told; in one row, by name, so that it survives a dump. Tables of anybody else are not used.';
SELECT pg_extension_config_dump('@extschema@.clinisync_owner', '');

CREATE FUNCTION @extschema@.clinisync_said_owner()
RETURNS regrole
LANGUAGE c STABLE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION @extschema@.clinisync_said_owner() IS
'Whose the tables are, as cliniko_setup() was told; NULL: it was not told yet, or that role is gone.';

CREATE FUNCTION @extschema@.clinisync_say_owner(owner regrole)
RETURNS void
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION @extschema@.clinisync_say_owner(regrole) IS
'Notes whose the tables are. Raises insufficient_privilege unless the caller may SET ROLE to it.';

CREATE FUNCTION @extschema@.clinisync_execute_as(role regrole, statement text)
RETURNS SETOF text
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION @extschema@.clinisync_execute_as(regrole, text) IS
'Executes a statement as a role, in a security-restricted operation: what that role has attached to a table runs with no other rights, and leaves no setting behind. Answers the first column. Raises insufficient_privilege unless the caller may SET ROLE to it.';

CREATE FUNCTION @extschema@.clinisync_lock()
RETURNS void
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION @extschema@.clinisync_lock() IS
'Waits for other calls of cliniko_setup(), cliniko_grant() and cliniko_revoke() in this database, and keeps later ones waiting until the transaction ends.';

CREATE FUNCTION @extschema@.clinisync_role(name text)
RETURNS regrole
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF name IS NULL OR name ~ '^[-0-9]' OR name = '' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'PT400',
			MESSAGE = 'a role is needed',
			DETAIL = 'INVALID_ARGUMENT',
			HINT = 'Pass the name of a role, as in SQL: in double quotes where it has capitals or blanks.';
	END IF;
	RETURN name::regrole;
END
$$;
COMMENT ON FUNCTION @extschema@.clinisync_role(text) IS
'The role of this name, written as in SQL. Raises PT400 INVALID_ARGUMENT without one, undefined_object where there is none.';

CREATE FUNCTION @extschema@.clinisync_functions()
RETURNS TABLE (oid oid, name name, owner oid, acl aclitem[])
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT p.oid, p.proname, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
FROM pg_extension e
	JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
		AND d.deptype = 'e' AND d.classid = 'pg_proc'::regclass
	JOIN pg_proc p ON p.oid = d.objid
WHERE e.extname = 'clinisync'
$$;
COMMENT ON FUNCTION @extschema@.clinisync_functions() IS
'The functions that are members of the extension: what is granted or revoked is found here, never by its name.';

CREATE FUNCTION @extschema@.clinisync_impostors()
RETURNS SETOF text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
WITH ours AS (
	SELECT f.oid, f.name FROM @extschema@.clinisync_functions() f
	UNION ALL
	/* cliniko_setup() makes this one, and looks whose it is */
	SELECT to_regprocedure('@extschema@.cliniko_claimed_organization()'), 'cliniko_claimed_organization')
SELECT format('function %s', p.oid::regprocedure)
FROM pg_proc p
WHERE p.pronamespace = '@extschema@'::regnamespace AND p.proname IN (SELECT o.name FROM ours o)
	AND NOT EXISTS (SELECT FROM ours o WHERE o.oid = p.oid)
UNION ALL
/* f('x') is a cast where there is a type f */
SELECT format('type %s', format_type(t.oid, NULL))
FROM pg_type t
WHERE t.typnamespace = '@extschema@'::regnamespace AND t.typname IN (SELECT o.name FROM ours o)
$$;
COMMENT ON FUNCTION @extschema@.clinisync_impostors() IS
'Functions and types in the extension''s schema that bear the name of one of our functions and are not: a call that was meant for ours could be theirs.';

CREATE FUNCTION @extschema@.clinisync_guard()
RETURNS event_trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	ours CONSTANT regnamespace = (SELECT e.extnamespace FROM pg_extension e WHERE e.extname = 'clinisync');
	impostor text;
BEGIN
	IF ours::text <> '@extschema@' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'feature_not_supported',
			MESSAGE = 'the schema @extschema@ has clinisync in it and keeps its name',
			HINT = 'To have clinisync elsewhere, drop the extension and create it there.';
	END IF;

	/* as clinisync_impostors() has it, which who runs this may not call; a stranger's is not held against others */
	WITH names AS (
		SELECT p.oid, p.proname AS name
		FROM pg_extension e
			JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
			JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass
		WHERE e.extname = 'clinisync'
		UNION ALL SELECT p.oid, p.proname FROM pg_proc p
		WHERE p.pronamespace = ours AND p.proname = 'cliniko_claimed_organization' AND p.pronargs = 0
		UNION ALL SELECT 0, 'cliniko_claimed_organization')
	SELECT i.description INTO impostor
	FROM (
			SELECT format('function %s', p.oid::regprocedure), p.proowner
			FROM pg_proc p
			WHERE p.pronamespace = ours AND p.proname IN (SELECT n.name FROM names n)
				AND p.oid NOT IN (SELECT n.oid FROM names n)
			UNION ALL
			SELECT format('type %s', format_type(t.oid, NULL)), t.typowner
			FROM pg_type t
			WHERE t.typnamespace = ours AND t.typname IN (SELECT n.name FROM names n)
		) AS i (description, owner)
	WHERE pg_has_role(i.owner, 'USAGE');
	IF FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'reserved_name',
			MESSAGE = format('the name of %s is clinisync''s in this schema', impostor),
			HINT = 'Give it another name, or make it in another schema.';
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.clinisync_guard() IS
'Of the event trigger of that name: refuses functions and types that bear the name of one of our functions in the extension''s schema, and another name for that.';

CREATE FUNCTION @extschema@.clinisync_objects()
RETURNS TABLE (object text, oid oid, owner oid, acl aclitem[])
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format('ON TABLE %s', t.oid::regclass), t.oid, t.owner, c.relacl
FROM @extschema@.clinisync_tables() t JOIN pg_class c ON c.oid = t.oid
UNION ALL
SELECT format('(%I) ON TABLE %s', c.attname, t.oid::regclass), t.oid, t.owner, c.attacl
FROM @extschema@.clinisync_tables() t JOIN pg_attribute c ON c.attrelid = t.oid AND c.attacl IS NOT NULL
UNION ALL
SELECT format('ON SEQUENCE %s', s.oid::regclass), s.oid, s.relowner, s.relacl
FROM @extschema@.clinisync_tables() t
	JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
		AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
	JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
UNION ALL
SELECT format('ON FUNCTION %s', p.oid::regprocedure), p.oid, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
FROM pg_proc p
WHERE p.oid = to_regprocedure('@extschema@.cliniko_claimed_organization()')
$$;
COMMENT ON FUNCTION @extschema@.clinisync_objects() IS
'What cliniko_setup() makes, with its privileges: the tables, those of their columns that have any, their sequences, and the function that the policies call.';

CREATE FUNCTION @extschema@.clinisync_privileges()
RETURNS TABLE (object text, oid oid, grantor oid, grantee oid, privilege text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT o.object, o.oid, a.grantor, a.grantee, a.privilege_type
FROM (
		SELECT b.object, b.oid, b.owner, b.acl FROM @extschema@.clinisync_objects() b
		UNION ALL
		SELECT format('ON FUNCTION %s', f.oid::regprocedure), f.oid, f.owner, f.acl
		FROM @extschema@.clinisync_functions() f
	) AS o, aclexplode(o.acl) a
WHERE a.grantee <> o.owner
$$;
COMMENT ON FUNCTION @extschema@.clinisync_privileges() IS
'What others than the owner may do with what is ours: on what, as it follows GRANT ALL, by whose grant, whom (0: PUBLIC), and what.';

CREATE FUNCTION @extschema@.clinisync_policies()
RETURNS TABLE (description text, roles oid[], shows_more boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format('%s on %s, for %s', quote_ident(p.polname), t.oid::regclass,
			  (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE r::regrole::text END, ', ') FROM unnest(p.polroles) r)),
	p.polroles, p.polpermissive AND p.polcmd IN ('r', '*')
FROM @extschema@.clinisync_tables() t JOIN pg_policy p ON p.polrelid = t.oid
WHERE p.polname NOT IN ('cliniko_own_organization', 'cliniko_admin')
$$;
COMMENT ON FUNCTION @extschema@.clinisync_policies() IS
'The policies of the tables that are not ours: in words, whose they are (0: PUBLIC), and whether they let more be seen.';

CREATE FUNCTION @extschema@.clinisync_writers()
RETURNS SETOF text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format('%s on %s, for %s', string_agg(DISTINCT p.privilege, ', '), p.oid::regclass,
			  CASE p.grantee WHEN 0 THEN 'PUBLIC' ELSE p.grantee::regrole::text END)
FROM @extschema@.clinisync_privileges() p
	JOIN @extschema@.clinisync_tables() t USING (oid)
WHERE p.privilege <> 'SELECT'
GROUP BY p.oid, p.grantee
$$;
COMMENT ON FUNCTION @extschema@.clinisync_writers() IS
'Who but their owner may do more with the tables than read, in words. cliniko_grant() never grants that.';

CREATE OR REPLACE FUNCTION @extschema@.clinisync_structural_obstacles(owner regrole)
RETURNS SETOF text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format('%s is not a table', t.relation)
FROM @extschema@.clinisync_tables() t
WHERE t.relkind NOT IN ('r', 'p')
UNION ALL
SELECT format('%s belongs to %s: find out who made it; if that role is to own every patient, call cliniko_setup(%L); '
			  'if not, move it out of the way', t.relation, t.owner, t.owner::text)
FROM @extschema@.clinisync_tables() t
WHERE t.owner <> clinisync_structural_obstacles.owner
UNION ALL
SELECT format('the function cliniko_claimed_organization() belongs to %s, who could change what everybody sees: '
			  'give it to the tables'' owner, or drop it', p.proowner::regrole)
FROM pg_proc p
WHERE p.oid = to_regprocedure('@extschema@.cliniko_claimed_organization()')
	AND p.proowner <> clinisync_structural_obstacles.owner
UNION ALL
SELECT format('the name of the %s is clinisync''s: drop it', i)
FROM @extschema@.clinisync_impostors() i
UNION ALL
/* patients.id may have any type that fills itself: nothing refers to it */
SELECT format('%s.%s is %s, but must be %s', l.relation, l.column_name,
			  format_type(a.atttypid, a.atttypmod), l.type)
FROM @extschema@.clinisync_columns() l
	JOIN @extschema@.clinisync_tables() t USING (relation)
	JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = l.column_name AND NOT a.attisdropped
WHERE format_type(a.atttypid, a.atttypmod) <> l.type
	AND NOT (l.type = 'text' AND a.atttypid = 'varchar'::regtype)
	AND NOT (l.relation = 'patients' AND l.column_name = 'id')
UNION ALL
SELECT format('%s.%s is a generated column', t.relation, a.attname)
FROM @extschema@.clinisync_columns() l
	JOIN @extschema@.clinisync_tables() t USING (relation)
	JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = l.column_name AND NOT a.attisdropped
WHERE a.attgenerated <> ''
UNION ALL
/* a column that we do not fill must fill itself, and so must every id */
SELECT format('%s.%s %s', t.relation, a.attname,
			  CASE WHEN a.attname = 'id' THEN 'has no default' ELSE 'is NOT NULL and has no default' END)
FROM @extschema@.clinisync_tables() t
	JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
	LEFT JOIN @extschema@.clinisync_columns() l
		ON l.relation = t.relation AND l.column_name = a.attname
WHERE NOT a.atthasdef AND a.attidentity = ''
	AND t.relkind IN ('r', 'p')
	AND (l.column_name = 'id' OR l.column_name IS NULL AND a.attnotnull)
UNION ALL
SELECT format('constraint %s of %s is %s, but must be %s', k.constraint_name, k.relation,
			  pg_get_constraintdef(o.oid), k.definition)
FROM @extschema@.clinisync_constraints() k
	JOIN @extschema@.clinisync_tables() t USING (relation)
	JOIN pg_constraint o ON o.conrelid = t.oid AND o.conname = k.constraint_name
WHERE k.contype = 'u' AND pg_get_constraintdef(o.oid) <> k.definition
UNION ALL
/* the other two may keep a primary key of their own: nothing conflicts with it */
SELECT format('%s has another primary key than (organization_id)', t.relation)
FROM @extschema@.clinisync_tables() t
	JOIN pg_constraint o ON o.conrelid = t.oid AND o.contype = 'p'
WHERE t.relation = 'cliniko_organizations'
	AND pg_get_constraintdef(o.oid) <> 'PRIMARY KEY (organization_id)'
UNION ALL
SELECT format('the name %s is taken', w.name)
FROM (SELECT k.relation, k.constraint_name FROM @extschema@.clinisync_constraints() k
	  WHERE k.contype IN ('p', 'u')
	  UNION ALL SELECT x.relation, x.index_name FROM @extschema@.clinisync_indexes() x) AS w (relation, name)
	JOIN pg_class c ON c.relnamespace = '@extschema@'::regnamespace AND c.relname = w.name
	LEFT JOIN pg_index i ON i.indexrelid = c.oid
	LEFT JOIN @extschema@.clinisync_tables() t ON t.relation = w.relation
WHERE i.indrelid IS DISTINCT FROM t.oid OR i.indrelid IS NULL
$$;

CREATE OR REPLACE FUNCTION @extschema@.clinisync_obstacles(owner regrole)
RETURNS SETOF text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	probe record;
BEGIN
	RETURN QUERY
	SELECT o.* FROM @extschema@.clinisync_structural_obstacles(owner) o ORDER BY 1;
	/* only now is it safe to look into the tables, and do their columns fit the queries */
	IF FOUND THEN
		RETURN;
	END IF;

	FOR probe IN
		SELECT p.query
		FROM (
			SELECT l.relation, '{}'::name[] AS columns,
				format('SELECT %L FROM (SELECT FROM @extschema@.%I LIMIT 1) r',
					   format('%s has rows, but no %s', l.relation, l.column_name), l.relation)
			FROM @extschema@.clinisync_columns() l
				JOIN @extschema@.clinisync_tables() t USING (relation)
			WHERE l.definition = 'NOT NULL'
				AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.oid
								AND a.attname = l.column_name AND NOT a.attisdropped)
			UNION ALL
			SELECT l.relation, ARRAY[l.column_name],
				format('SELECT %L || n FROM (SELECT count(*) AS n FROM @extschema@.%I '
					   'WHERE %I IS NULL) r WHERE n > 0',
					   format('%s rows without %s: ', l.relation, l.column_name),
					   l.relation, l.column_name)
			FROM @extschema@.clinisync_columns() l
				JOIN @extschema@.clinisync_tables() t USING (relation)
			/* part of the primary key that it will have */
			WHERE l.column_name = 'organization_id'
				AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conrelid = t.oid AND o.contype = 'p')
			UNION ALL
			VALUES
			('patients', '{organization_id,cliniko_patient_id}'::name[],
			 'SELECT format(''patients %s are the same Cliniko patient %s'',
							string_agg(format(''%s'', p.%ROW%), '', '' ORDER BY p.ctid), p.cliniko_patient_id)
			  FROM @extschema@.patients p
			  WHERE p.cliniko_patient_id IS NOT NULL
			  GROUP BY p.organization_id, p.cliniko_patient_id
			  HAVING count(*) > 1
			  ORDER BY min(p.ctid) LIMIT 20'),
			('cliniko_organizations', '{organization_id}',
			 'SELECT format(''cliniko_organizations has %s rows of organization %s'', count(*), o.organization_id)
			  FROM @extschema@.cliniko_organizations o
			  GROUP BY o.organization_id HAVING count(*) > 1
			  ORDER BY o.organization_id LIMIT 20'),
			('sync_logs', '{organization_id,status}',
			 'SELECT format(''sync_logs has %s running rows of organization %s'', count(*), l.organization_id)
			  FROM @extschema@.sync_logs l
			  WHERE l.status = ''running''
			  GROUP BY l.organization_id HAVING count(*) > 1
			  ORDER BY l.organization_id LIMIT 20'),
			('sync_logs', '{status}',
			 'SELECT format(''sync_logs.status is %L in %s rows, but must be running, completed or failed'',
							l.status, count(*))
			  FROM @extschema@.sync_logs l
			  WHERE l.status NOT IN (''running'', ''completed'', ''failed'')
			  GROUP BY l.status ORDER BY l.status LIMIT 20')
		) AS p (relation, columns, query)
			JOIN @extschema@.clinisync_tables() t USING (relation)
		WHERE p.columns <@ ARRAY(SELECT a.attname FROM pg_attribute a
								 WHERE a.attrelid = t.oid AND NOT a.attisdropped)
	LOOP
		/* a table of patients that has no id yet names its rows by their place */
		RETURN QUERY
		SELECT o.* FROM @extschema@.clinisync_execute_as(owner, replace(probe.query, '%ROW%', CASE WHEN EXISTS (
			SELECT FROM pg_attribute a WHERE a.attrelid = to_regclass('@extschema@.patients')
				AND a.attname = 'id' AND NOT a.attisdropped) THEN 'id' ELSE 'ctid' END)) o;
	END LOOP;
END
$$;

CREATE FUNCTION @extschema@.clinisync_comments()
RETURNS TABLE (object text, comment text)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
VALUES
	('TABLE @extschema@.cliniko_organizations', 'clinisync: the clinics that are connected to Cliniko, one row each'),
	('COLUMN @extschema@.cliniko_organizations.api_key_sealed',
	 'the Cliniko API key, encrypted with a key that is outside the database (clinisync.key_file)'),
	('TABLE @extschema@.patients', 'clinisync: every patient of every connected clinic, as Cliniko last showed it'),
	('COLUMN @extschema@.patients.cliniko_patient_id', 'the patient''s id in Cliniko, an int64 that Cliniko sends as a string'),
	('COLUMN @extschema@.patients.phone', 'the first mobile number, else the first number, as typed'),
	('COLUMN @extschema@.patients.cliniko_deleted_at', 'Cliniko''s own deleted_at'),
	('COLUMN @extschema@.patients.extra', 'what Cliniko sent under keys that this version does not know'),
	('COLUMN @extschema@.patients.record_hash', 'hash of the record as Cliniko sent it; a row whose hash is unchanged is not written'),
	('COLUMN @extschema@.patients.last_synced_at', 'when the content of this row last changed here'),
	('COLUMN @extschema@.patients.deleted_at', 'when Cliniko confirmed that this patient no longer exists there'),
	('TABLE @extschema@.sync_logs', 'clinisync: one row for each run, its progress while it runs, and how it ended'),
	('COLUMN @extschema@.sync_logs.checkpoint',
	 'where the run resumes if its worker ends; committed together with the patients up to there')
$$;
COMMENT ON FUNCTION @extschema@.clinisync_comments() IS
'The comments of the tables: on what, as COMMENT ON has it, and the text.';

CREATE FUNCTION @extschema@.clinisync_claim()
RETURNS TABLE (comment text, definition text)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $claim$
/* bound to its operators when it is made, whatever the search_path of its callers; as caller.c has it */
VALUES ('clinisync: the organization that the caller''s token names, at the path that clinisync.org_claim has; NULL: none',
$$ CREATE OR REPLACE FUNCTION @extschema@.cliniko_claimed_organization() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (SELECT token.claims #>> CASE WHEN token.path LIKE '{%' THEN token.path::text[] ELSE string_to_array(token.path, '.') END
		FROM (SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb,
					 coalesce(nullif(current_setting('clinisync.org_claim', true), ''), 'org_id'))
			AS token (claims, path)) $$)
$claim$;
COMMENT ON FUNCTION @extschema@.clinisync_claim() IS
'cliniko_claimed_organization(), which the policies call and which outlives the extension with them: its comment, by which this version is known, and the statement that makes it.';

CREATE FUNCTION @extschema@.cliniko_setup(owner text DEFAULT NULL)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
SET quote_all_identifiers = off
AS $$
DECLARE
	tables CONSTANT name[] = ARRAY['cliniko_organizations', 'patients', 'sync_logs'];
	caller CONSTANT regrole = quote_ident(current_user)::regrole;
	keeper regrole;
	maker regrole;
	changes text[] = '{}';
	obstacles text[];
	kept oid[];
	statement text;
BEGIN
	PERFORM @extschema@.clinisync_lock();
	keeper = CASE WHEN owner IS NOT NULL THEN @extschema@.clinisync_role(owner)
		ELSE coalesce(@extschema@.clinisync_said_owner(), caller) END;
	/* who makes what needs CREATE on the schema: the caller where the owner may not */
	maker = CASE WHEN has_schema_privilege(keeper, '@extschema@'::regnamespace::oid, 'CREATE')
		THEN keeper ELSE caller END;
	/* work on the tables is done as their owner, who has to reach them */
	IF NOT has_schema_privilege(keeper, '@extschema@'::regnamespace::oid, 'USAGE') THEN
		statement = format('GRANT USAGE ON SCHEMA @extschema@ TO %s', keeper);
		EXECUTE statement;
		changes = changes || statement;
	END IF;

	obstacles = ARRAY(SELECT @extschema@.clinisync_obstacles(keeper));
	IF obstacles <> '{}' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'the existing tables cannot be adopted',
			DETAIL = array_to_string(obstacles, E';\n') || '.',
			HINT = 'Nothing was changed. Put right what is listed, or move the table out of the way, '
				'and call cliniko_setup() again.';
	END IF;
	IF @extschema@.clinisync_said_owner() IS DISTINCT FROM keeper THEN
		PERFORM @extschema@.clinisync_say_owner(keeper);
	END IF;

	/* what is there; of all else, privileges by default are taken back */
	kept = ARRAY(SELECT o.oid FROM @extschema@.clinisync_objects() o);

	FOR statement IN
		SELECT format('CREATE TABLE @extschema@.%I ()%s', t,
					  /* room on the page: progress is written as HOT updates */
					  CASE t WHEN 'sync_logs' THEN ' WITH (fillfactor = 50)' ELSE '' END)
		FROM unnest(tables) t
		WHERE to_regclass(format('@extschema@.%I', t)) IS NULL
	LOOP
		PERFORM @extschema@.clinisync_execute_as(maker, statement);
		changes = changes || statement;
	END LOOP;
	FOR statement IN
		SELECT format('ALTER TABLE @extschema@.%I OWNER TO %s', t.relation, keeper)
		FROM @extschema@.clinisync_tables() t
		WHERE t.owner <> keeper
	LOOP
		PERFORM @extschema@.clinisync_execute_as(maker, statement);
	END LOOP;

	FOR statement IN
		SELECT format('ALTER TABLE @extschema@.%I %s', l.relation,
					  string_agg(concat_ws(' ', format('ADD COLUMN %I', l.column_name), l.type, l.definition),
								 ', ' ORDER BY l.ordinality))
		FROM @extschema@.clinisync_columns() WITH ORDINALITY l
			(relation, column_name, type, definition, ordinality)
		WHERE NOT EXISTS (SELECT FROM pg_attribute a
						  WHERE a.attrelid = to_regclass(format('@extschema@.%I', l.relation))
							AND a.attname = l.column_name AND NOT a.attisdropped)
		GROUP BY l.relation
		ORDER BY l.relation
	LOOP
		PERFORM @extschema@.clinisync_execute_as(maker, statement);
		changes = changes || statement;
	END LOOP;

	/* a column that is new to rows that were synced before is filled by the next run, which is a full one */
	IF EXISTS (SELECT FROM unnest(changes) AS c WHERE c LIKE 'ALTER TABLE @extschema@.patients ADD COLUMN %') THEN
		PERFORM @extschema@.clinisync_execute_as(keeper,
			'UPDATE @extschema@.patients SET record_hash = NULL WHERE record_hash IS NOT NULL');
		PERFORM @extschema@.clinisync_execute_as(keeper,
			'UPDATE @extschema@.cliniko_organizations SET updated_at = clock_timestamp()');
	END IF;

	FOR statement IN
		/* a table that has a primary key of its own keeps it */
		SELECT format('ALTER TABLE @extschema@.%I ADD CONSTRAINT %I %s',
					  k.relation, k.constraint_name, k.definition)
		FROM @extschema@.clinisync_constraints() k
		WHERE NOT EXISTS (SELECT FROM pg_constraint o
						  WHERE o.conrelid = to_regclass(format('@extschema@.%I', k.relation))
							AND (o.conname = k.constraint_name OR o.contype = 'p' AND k.contype = 'p'))
		UNION ALL
		/* a sequence would tell each clinic how often the others are synced; as STORE_NEW_ID has it */
		SELECT 'ALTER TABLE @extschema@.sync_logs ALTER COLUMN id DROP IDENTITY, '
			   'ALTER COLUMN id SET DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint'
		FROM pg_attribute a
		WHERE a.attrelid = to_regclass('@extschema@.sync_logs') AND a.attname = 'id' AND a.attidentity <> ''
			AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conrelid = a.attrelid AND o.contype = 'p'
								AND pg_get_constraintdef(o.oid) <> 'PRIMARY KEY (organization_id, id)')
	LOOP
		PERFORM @extschema@.clinisync_execute_as(maker, statement);
		changes = changes || statement;
	END LOOP;

	FOR statement IN
		/* what 0.1.0 had in the place of patients_inactive */
		SELECT format('DROP INDEX @extschema@.%I', c.relname)
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
		WHERE i.indrelid = to_regclass('@extschema@.patients') AND c.relname = 'patients_not_active'
		UNION ALL
		SELECT x.definition
		FROM @extschema@.clinisync_indexes() x
		WHERE to_regclass(format('@extschema@.%I', x.index_name)) IS NULL
	LOOP
		PERFORM @extschema@.clinisync_execute_as(maker, statement);
		changes = changes || statement;
	END LOOP;

	FOR statement IN
		SELECT c.definition
		FROM @extschema@.clinisync_claim() c
		WHERE obj_description(to_regprocedure('@extschema@.cliniko_claimed_organization()'), 'pg_proc')
			IS DISTINCT FROM c.comment
	LOOP
		PERFORM @extschema@.clinisync_execute_as(maker, statement);
		PERFORM @extschema@.clinisync_execute_as(maker, format('ALTER FUNCTION %s OWNER TO %s', p.oid::regprocedure, keeper))
		FROM pg_proc p
		WHERE p.oid = to_regprocedure('@extschema@.cliniko_claimed_organization()') AND p.proowner <> keeper;
		PERFORM @extschema@.clinisync_execute_as(keeper,
			format('COMMENT ON FUNCTION @extschema@.cliniko_claimed_organization() IS %L', c.comment))
		FROM @extschema@.clinisync_claim() c;
		changes = changes || 'CREATE FUNCTION @extschema@.cliniko_claimed_organization()'::text;
	END LOOP;

	FOR statement IN
		SELECT DISTINCT format('REVOKE ALL %s FROM %s', p.object,
			CASE p.grantee WHEN 0 THEN 'PUBLIC' ELSE p.grantee::regrole::text END)
		FROM @extschema@.clinisync_privileges() p
			JOIN @extschema@.clinisync_objects() o USING (oid)
		WHERE p.oid <> ALL (kept)
	LOOP
		PERFORM @extschema@.clinisync_execute_as(keeper, statement);
	END LOOP;

	FOR statement IN
		SELECT format('ALTER TABLE @extschema@.%I ENABLE ROW LEVEL SECURITY', t.relation)
		FROM @extschema@.clinisync_tables() t JOIN pg_class c ON c.oid = t.oid
		WHERE NOT c.relrowsecurity
		UNION ALL
		SELECT format('CREATE POLICY cliniko_own_organization ON @extschema@.%I FOR SELECT '
					  'USING (organization_id = @extschema@.cliniko_claimed_organization())', t.relation)
		FROM @extschema@.clinisync_tables() t
		WHERE NOT EXISTS (SELECT FROM pg_policy p
						  WHERE p.polrelid = t.oid AND p.polname = 'cliniko_own_organization')
		UNION ALL
		/* who may read a table calls it through the policies; it tells no more than the caller's own claim */
		SELECT 'GRANT EXECUTE ON FUNCTION @extschema@.cliniko_claimed_organization() TO PUBLIC'
		WHERE NOT EXISTS (SELECT FROM @extschema@.clinisync_privileges() p
						  WHERE p.oid = to_regprocedure('@extschema@.cliniko_claimed_organization()') AND p.grantee = 0)
	LOOP
		PERFORM @extschema@.clinisync_execute_as(keeper, statement);
		changes = changes || statement;
	END LOOP;

	IF changes <> '{}' THEN
		PERFORM @extschema@.clinisync_execute_as(keeper, format('COMMENT ON %s IS %L', c.object, c.comment))
		FROM @extschema@.clinisync_comments() c;
	END IF;

	RETURN jsonb_build_object(
		'success', true,
		'message', CASE changes WHEN '{}' THEN 'The tables are up to date' ELSE 'The tables are ready' END,
		'owner', keeper::text,
		'changes', to_jsonb(changes),
		'policies', (SELECT coalesce(jsonb_agg(p.description ORDER BY p.description), '[]')
					 FROM @extschema@.clinisync_policies() p WHERE p.shows_more),
		'privileges', (SELECT coalesce(jsonb_agg(w ORDER BY w), '[]') FROM @extschema@.clinisync_writers() w));
END
$$;
COMMENT ON FUNCTION @extschema@.cliniko_setup(text) IS
'Makes the tables cliniko_organizations, patients and sync_logs, or brings those that exist up to date; safe to repeat. owner: the role whose the tables are to be, which is remembered; by default the one that was told before, else the caller. A table that belongs to somebody else is an obstacle. Answers {success, message, owner, changes: [statements], policies: [those of yours that let more be seen], privileges: [who else may change the tables]}. Raises object_not_in_prerequisite_state, with the obstacles listed and nothing changed, where an existing table does not fit.';

COMMENT ON FUNCTION @extschema@.cliniko_connect(text, text, text) IS
'Connects an organisation, under any id of the application''s, to a Cliniko account by its API key; again, to exchange the key or the name. api_key: the key, or file:PATH, the name of a file on the server''s machine that has the key in it and is read once, for superusers and roles with the privileges of pg_read_server_files. Makes the tables when they are missing. The key''s suffix names the shard (Cliniko: "-au1"; none means au1). Does not call Cliniko. Answers {success, message, organization_id, name, shard}. Raises PT400 INVALID_ORGANIZATION_ID or INVALID_API_KEY; of a file, 42501, 58P01 where there is none, or 42809 where it is no regular one.';

CREATE OR REPLACE FUNCTION @extschema@.cliniko_list_organizations()
RETURNS jsonb
LANGUAGE c STABLE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME';

COMMENT ON FUNCTION @extschema@.cliniko_active_patients(text, int, int, text, timestamptz) IS
'The patients of an organisation that are neither archived nor deleted, in the order of their Cliniko ids. max_rows: 1 to 500; skip_rows: how many to pass over; search: part of a name or an e-mail address, in any case; last_synced_after: only those whose content changed here since. Answers {patients, pagination: {total (of a search: 10000 or more: so many or more), limit, offset, has_next}}; Cliniko''s ids are strings. Raises PT400 INVALID_ARGUMENT, PT404.';

CREATE OR REPLACE FUNCTION @extschema@.cliniko_sync_all_organizations(only_changes boolean DEFAULT false)
RETURNS SETOF jsonb
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME';

CREATE FUNCTION @extschema@.cliniko_adopt_keys()
RETURNS jsonb
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION @extschema@.cliniko_adopt_keys() IS
'Has this database use the API keys that were sealed in another one, of which it is a copy or a restored dump, or by an earlier version; until then they cannot be read here. The key file must have the key that they were sealed with. Answers {success, message, adopted, unreadable (API keys that stayed as they were)}. Raises PT409 CREDENTIALS_UNREADABLE, with nothing changed, where none of these can be read.';

CREATE OR REPLACE FUNCTION @extschema@.clinisync_level_functions()
RETURNS TABLE (level text, function_name name)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
VALUES
	('viewer', 'cliniko_sync_logs'::name),
	('viewer', 'cliniko_status'),
	('viewer', 'cliniko_list_organizations'),
	('viewer', 'cliniko_active_patients'),
	('manager', 'cliniko_sync_all'),
	('manager', 'cliniko_sync'),
	('manager', 'cliniko_sync_changes'),
	('manager', 'cliniko_cancel_sync'),
	('manager', 'cliniko_test_connection'),
	('admin', 'cliniko_connect'),
	('admin', 'cliniko_disconnect'),
	('admin', 'cliniko_set_sync_enabled'),
	('admin', 'cliniko_sync_all_organizations')
$$;

CREATE OR REPLACE FUNCTION @extschema@.clinisync_set_admins(roles oid[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	names CONSTANT text = (SELECT string_agg(r::regrole::text, ', ') FROM unnest(roles) r);
BEGIN
	PERFORM @extschema@.clinisync_execute_as(t.owner, CASE
		WHEN names IS NULL THEN
			format('DROP POLICY IF EXISTS cliniko_admin ON @extschema@.%I', t.relation)
		WHEN EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = t.oid AND p.polname = 'cliniko_admin') THEN
			format('ALTER POLICY cliniko_admin ON @extschema@.%I TO %s', t.relation, names)
		ELSE
			format('CREATE POLICY cliniko_admin ON @extschema@.%I FOR SELECT TO %s USING (true)', t.relation, names)
		END)
	FROM @extschema@.clinisync_tables() t;
END
$$;

CREATE FUNCTION @extschema@.cliniko_revoke(role text)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
SET quote_all_identifiers = off
AS $$
DECLARE
	whom CONSTANT regrole = @extschema@.clinisync_role(role);
	g record;
BEGIN
	PERFORM @extschema@.clinisync_lock();

	/* each grant is its grantor's to take, with what the role has granted on; what it owns, it may by owning */
	FOR g IN
		SELECT DISTINCT p.object, p.grantor::regrole AS grantor,
			has_schema_privilege(p.grantor, '@extschema@'::regnamespace::oid, 'USAGE') AS reaches
		FROM @extschema@.clinisync_privileges() p WHERE p.grantee = whom
	LOOP
		/* who cannot reach the schema any more reaches it for that */
		IF NOT g.reaches THEN
			EXECUTE format('GRANT USAGE ON SCHEMA @extschema@ TO %s', g.grantor);
		END IF;
		PERFORM @extschema@.clinisync_execute_as(g.grantor, format('REVOKE ALL %s FROM %s CASCADE', g.object, whom));
		IF NOT g.reaches THEN
			EXECUTE format('REVOKE USAGE ON SCHEMA @extschema@ FROM %s', g.grantor);
		END IF;
	END LOOP;
	PERFORM @extschema@.clinisync_execute_as(a.grantor, format('REVOKE USAGE ON SCHEMA @extschema@ FROM %s CASCADE', whom))
	FROM pg_namespace n, aclexplode(n.nspacl) a
	WHERE n.oid = '@extschema@'::regnamespace AND a.grantee = whom AND a.privilege_type = 'USAGE' AND n.nspowner <> whom
		/* the tables' owner, who does all work on them, has to reach them */
		AND NOT EXISTS (SELECT FROM @extschema@.clinisync_tables() t WHERE t.owner = whom);
	IF whom = ANY (@extschema@.clinisync_admins()) THEN
		PERFORM @extschema@.clinisync_set_admins(array_remove(@extschema@.clinisync_admins(), whom::oid));
	END IF;

	RETURN jsonb_build_object('success', true, 'message', 'Revoked', 'role', whom::text,
		'policies', (SELECT coalesce(jsonb_agg(p.description ORDER BY p.description), '[]')
					 FROM @extschema@.clinisync_policies() p WHERE whom = ANY (p.roles)));
END
$$;
COMMENT ON FUNCTION @extschema@.cliniko_revoke(text) IS
'Takes from a role whatever it may do with the tables and the functions of clinisync, whoever granted it, and what the role has granted to others in turn; what it owns it keeps, and what it has as a member of other roles. Runs that it started go on. Safe to repeat. Answers {success, message, role, policies: [those of yours that name the role]}, which would let it see again what they say if it is granted anything later. Raises PT400 INVALID_ARGUMENT without a role.';

CREATE FUNCTION @extschema@.cliniko_grant(role text, level text)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
SET quote_all_identifiers = off
AS $$
DECLARE
	whom CONSTANT regrole = @extschema@.clinisync_role(role);
	levels CONSTANT text[] = ARRAY['viewer', 'manager', 'admin'];
	granted CONSTANT text[] = levels[:array_position(levels, level)];
	policies jsonb;
	statement text;
BEGIN
	IF granted IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'PT400',
			MESSAGE = 'a level is needed',
			DETAIL = 'INVALID_ARGUMENT',
			HINT = format('Pass a role and one of %s, as in cliniko_grant(''reporting'', ''viewer'').',
						  array_to_string(levels, ', '));
	END IF;
	PERFORM @extschema@.cliniko_setup();
	policies = @extschema@.cliniko_revoke(role) -> 'policies';

	IF NOT has_schema_privilege(whom, '@extschema@'::regnamespace::oid, 'USAGE') THEN
		EXECUTE format('GRANT USAGE ON SCHEMA @extschema@ TO %s', whom);
	END IF;
	/* all of patients, also columns to come; of the others neither key nor checkpoint */
	PERFORM @extschema@.clinisync_execute_as(t.owner, format('GRANT SELECT %s ON TABLE @extschema@.%I TO %s',
		CASE WHEN t.relation <> 'patients' THEN
			(SELECT format('(%s)', string_agg(quote_ident(l.column_name), ', '))
			 FROM @extschema@.clinisync_columns() l
			 WHERE l.relation = t.relation AND l.column_name NOT IN ('api_key_sealed', 'checkpoint'))
		END, t.relation, whom))
	FROM @extschema@.clinisync_tables() t
	WHERE t.owner <> whom;
	FOR statement IN
		SELECT format('GRANT EXECUTE ON FUNCTION %s TO %s', f.oid::regprocedure, whom)
		FROM @extschema@.clinisync_functions() f
			JOIN @extschema@.clinisync_level_functions() l ON l.function_name = f.name
		WHERE l.level = ANY (granted) AND f.owner <> whom
	LOOP
		EXECUTE statement;
	END LOOP;
	IF level = 'admin' THEN
		PERFORM @extschema@.clinisync_set_admins(@extschema@.clinisync_admins() || whom::oid);
	END IF;

	RETURN jsonb_build_object('success', true, 'message', 'Granted', 'role', whom::text, 'level', level,
		'policies', policies);
END
$$;
COMMENT ON FUNCTION @extschema@.cliniko_grant(text, text) IS
'Lets a role use clinisync. level: viewer (logs, status, patients and the list of organisations), manager (and start, cancel and test) or admin (and connect, disconnect, enable, and all organisations); of the first two, only the organisation that the caller''s token names. It replaces the level that the role had, as cliniko_revoke() takes it. Makes the tables when they are missing. Answers {success, message, role, level, policies: [those of yours that name the role, and let it see what they say]}. Raises PT400 INVALID_ARGUMENT.';

/* whose the tables are, 0.1.0 did not note: those that it has used all the same */
INSERT INTO @extschema@.clinisync_owner (role)
SELECT min(r.rolname)
FROM @extschema@.clinisync_tables() t JOIN pg_roles r ON r.oid = t.owner
HAVING count(*) = 3 AND min(t.owner::oid) = max(t.owner::oid);

/*
 * Nobody but their owner has any privilege on what this script has made, nor on what
 * no level may call, whatever default privileges say; and no name of ours is anybody else's.
 */
DO $$
DECLARE
	statement text;
	impostors text;
BEGIN
	FOR statement IN
		SELECT DISTINCT format('REVOKE ALL ON %s FROM %s', o.object,
			CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)
		FROM (
				SELECT format('FUNCTION %s', f.oid::regprocedure), f.owner, f.acl
				FROM @extschema@.clinisync_functions() f
				WHERE f.name NOT IN (SELECT l.function_name FROM @extschema@.clinisync_level_functions() l)
				UNION ALL
				SELECT format('TABLE %s', c.oid::regclass), c.relowner, c.relacl
				FROM pg_class c
				WHERE c.oid = '@extschema@.clinisync_owner'::regclass
			) AS o (object, owner, acl), aclexplode(o.acl) a
		WHERE a.grantee <> o.owner
	LOOP
		EXECUTE statement;
	END LOOP;

	SELECT string_agg(i, ', ') INTO impostors
	FROM @extschema@.clinisync_impostors() i;
	IF impostors IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'reserved_name',
			MESSAGE = format('names that clinisync needs are taken: %s', impostors),
			HINT = 'Find out who made these. Drop them, or create the extension in another schema.';
	END IF;
END
$$;

CREATE EVENT TRIGGER clinisync_guard ON ddl_command_end
WHEN TAG IN ('CREATE FUNCTION', 'CREATE PROCEDURE', 'CREATE AGGREGATE', 'CREATE TYPE', 'CREATE DOMAIN',
	'ALTER FUNCTION', 'ALTER PROCEDURE', 'ALTER ROUTINE', 'ALTER AGGREGATE', 'ALTER TYPE', 'ALTER DOMAIN',
	'CREATE EXTENSION', 'ALTER EXTENSION', 'ALTER SCHEMA')
EXECUTE FUNCTION @extschema@.clinisync_guard();
COMMENT ON EVENT TRIGGER clinisync_guard IS
'clinisync: its schema keeps its name, and nothing in it bears the name of one of our functions';

/*
 * What 0.1.0 has sealed is bound to its organization alone, and opens in any database.
 * It is bound to this one now, and not accepted afterwards. Where that cannot be, or there
 * are no tables yet, the update goes on: cliniko_adopt_keys() can be called at any time.
 */
DO $$
BEGIN
	PERFORM @extschema@.cliniko_adopt_keys();
EXCEPTION
	WHEN SQLSTATE 'PT409' THEN
		NULL;
	WHEN OTHERS THEN
		RAISE WARNING USING
			MESSAGE = format('the API keys of 0.1.0 could not be adopted: SQLSTATE %s', SQLSTATE),
			HINT = 'Put right what is in the way, and run: SELECT cliniko_adopt_keys();';
END
$$;
