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

CREATE OR REPLACE FUNCTION @extschema@.cliniko_setup(owner regrole DEFAULT quote_ident(current_user)::regrole)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
	tables CONSTANT name[] = ARRAY['cliniko_organizations', 'patients', 'sync_logs'];
	changes text[] = '{}';
	obstacles text[];
	statement text;
BEGIN
	/* one setup at a time in a database */
	PERFORM pg_advisory_xact_lock('pg_extension'::regclass::int, hashtext('cliniko_setup'));

	obstacles = ARRAY(SELECT @extschema@.clinisync_obstacles(owner));
	IF obstacles <> '{}' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'the existing tables cannot be adopted',
			DETAIL = array_to_string(obstacles, E';\n') || '.',
			HINT = 'Nothing was changed. Put right what is listed, or move the table out of the way, '
				'and call cliniko_setup() again.';
	END IF;

	FOR statement IN
		SELECT format('CREATE TABLE @extschema@.%I ()%s', t,
					  /* room on the page: progress is written as HOT updates */
					  CASE t WHEN 'sync_logs' THEN ' WITH (fillfactor = 50)' ELSE '' END)
		FROM unnest(tables) t
		WHERE to_regclass(format('@extschema@.%I', t)) IS NULL
	LOOP
		EXECUTE statement;
		changes = changes || statement;
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
		EXECUTE statement;
		changes = changes || statement;
	END LOOP;

	/* a column that is new to rows that were synced before is filled by the next run, which is a full one */
	IF EXISTS (SELECT FROM unnest(changes) AS c WHERE c LIKE 'ALTER TABLE @extschema@.patients ADD COLUMN %') THEN
		UPDATE @extschema@.patients SET record_hash = NULL WHERE record_hash IS NOT NULL;
		UPDATE @extschema@.cliniko_organizations SET updated_at = clock_timestamp();
	END IF;

	/* a table that has a primary key of its own keeps it */
	FOR statement IN
		SELECT format('ALTER TABLE @extschema@.%I ADD CONSTRAINT %I %s',
					  k.relation, k.constraint_name, k.definition)
		FROM @extschema@.clinisync_constraints() k
		WHERE NOT EXISTS (SELECT FROM pg_constraint o
						  WHERE o.conrelid = to_regclass(format('@extschema@.%I', k.relation))
							AND (o.conname = k.constraint_name OR o.contype = 'p' AND k.contype = 'p'))
	LOOP
		EXECUTE statement;
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
		EXECUTE statement;
		changes = changes || statement;
	END LOOP;

	FOR statement IN
		SELECT format('ALTER TABLE @extschema@.%I OWNER TO %s', t.relation, cliniko_setup.owner)
		FROM @extschema@.clinisync_tables() t
		WHERE t.owner <> cliniko_setup.owner
	LOOP
		EXECUTE statement;
	END LOOP;

	/* work on the tables is done as their owner, who has to reach them */
	IF NOT has_schema_privilege(owner, '@extschema@'::regnamespace::oid, 'USAGE') THEN
		statement = format('GRANT USAGE ON SCHEMA @extschema@ TO %s', owner);
		EXECUTE statement;
		changes = changes || statement;
	END IF;

	IF to_regprocedure('@extschema@.cliniko_claimed_organization()') IS NULL THEN
		/* bound to its operators here, whatever the search_path of its callers */
		CREATE FUNCTION @extschema@.cliniko_claimed_organization() RETURNS text
		LANGUAGE sql STABLE PARALLEL SAFE
		RETURN (SELECT coalesce(token.claims ->> token.path, token.claims #>> string_to_array(token.path, '.'))
				FROM (SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb,
							 coalesce(nullif(current_setting('clinisync.org_claim', true), ''), 'org_id'))
					AS token (claims, path));
		REVOKE ALL ON FUNCTION @extschema@.cliniko_claimed_organization() FROM PUBLIC;
		COMMENT ON FUNCTION @extschema@.cliniko_claimed_organization() IS
			'clinisync: the organization that the caller''s token names, as clinisync.org_claim says where; NULL: none';
		EXECUTE format('ALTER FUNCTION @extschema@.cliniko_claimed_organization() OWNER TO %s', owner);
		changes = changes || 'CREATE FUNCTION @extschema@.cliniko_claimed_organization()'::text;
	END IF;

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
	LOOP
		EXECUTE statement;
		changes = changes || statement;
	END LOOP;

	IF changes <> '{}' THEN
		COMMENT ON TABLE @extschema@.cliniko_organizations IS
			'clinisync: the clinics that are connected to Cliniko, one row each';
		COMMENT ON COLUMN @extschema@.cliniko_organizations.api_key_sealed IS
			'the Cliniko API key, encrypted with a key that is outside the database (clinisync.key_file)';
		COMMENT ON TABLE @extschema@.patients IS
			'clinisync: every patient of every connected clinic, as Cliniko last showed it';
		COMMENT ON COLUMN @extschema@.patients.cliniko_patient_id IS
			'the patient''s id in Cliniko, an int64 that Cliniko sends as a string';
		COMMENT ON COLUMN @extschema@.patients.phone IS
			'the first mobile number, else the first number, as typed';
		COMMENT ON COLUMN @extschema@.patients.cliniko_deleted_at IS
			'Cliniko''s own deleted_at';
		COMMENT ON COLUMN @extschema@.patients.extra IS
			'what Cliniko sent under keys that this version does not know';
		COMMENT ON COLUMN @extschema@.patients.record_hash IS
			'hash of the record as Cliniko sent it; a row whose hash is unchanged is not written';
		COMMENT ON COLUMN @extschema@.patients.last_synced_at IS
			'when the content of this row last changed here';
		COMMENT ON COLUMN @extschema@.patients.deleted_at IS
			'when Cliniko confirmed that this patient no longer exists there';
		COMMENT ON TABLE @extschema@.sync_logs IS
			'clinisync: one row for each run, its progress while it runs, and how it ended';
		COMMENT ON COLUMN @extschema@.sync_logs.checkpoint IS
			'where the run resumes if its worker ends; committed together with the patients up to there';
	END IF;

	RETURN jsonb_build_object(
		'success', true,
		'message', CASE changes WHEN '{}' THEN 'The tables are up to date' ELSE 'The tables are ready' END,
		'owner', owner::text,
		'changes', to_jsonb(changes));
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.cliniko_list_organizations()
RETURNS jsonb
LANGUAGE c STABLE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME';

CREATE OR REPLACE FUNCTION @extschema@.cliniko_sync_all_organizations(only_changes boolean DEFAULT false)
RETURNS SETOF jsonb
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME';

CREATE OR REPLACE FUNCTION @extschema@.cliniko_revoke(role regrole)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
	statement text;
BEGIN
	IF role IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'PT400',
			MESSAGE = 'a role is needed',
			DETAIL = 'INVALID_ARGUMENT',
			HINT = 'Pass the name of a role, as in cliniko_revoke(''reporting'').';
	END IF;
	/* one change of the tables at a time, as in cliniko_setup() */
	PERFORM pg_advisory_xact_lock('pg_extension'::regclass::int, hashtext('cliniko_setup'));

	FOR statement IN
		/* what an owner may do, it may by owning */
		SELECT format('REVOKE ALL ON TABLE @extschema@.%I FROM %s', t.relation, role)
		FROM @extschema@.clinisync_tables() t
		WHERE t.owner <> role
		UNION ALL
		SELECT format('REVOKE ALL ON FUNCTION %s FROM %s', p.oid::regprocedure, role)
		FROM pg_proc p
		WHERE p.pronamespace = '@extschema@'::regnamespace
			AND p.proowner <> role
			AND (p.proname = 'cliniko_claimed_organization'
				 OR EXISTS (SELECT FROM pg_depend d
							WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
								AND d.refclassid = 'pg_extension'::regclass
								AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clinisync')))
		UNION ALL
		SELECT format('REVOKE USAGE ON SCHEMA @extschema@ FROM %s', role)
		FROM pg_namespace n
		WHERE n.oid = '@extschema@'::regnamespace AND n.nspowner <> role
			/* the tables' owner, who does all work on them, has to reach them */
			AND NOT EXISTS (SELECT FROM @extschema@.clinisync_tables() t WHERE t.owner = role)
	LOOP
		EXECUTE statement;
	END LOOP;
	IF role = ANY (@extschema@.clinisync_admins()) THEN
		PERFORM @extschema@.clinisync_set_admins(array_remove(@extschema@.clinisync_admins(), role::oid));
	END IF;

	RETURN jsonb_build_object('success', true, 'message', 'Revoked', 'role', role::text);
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.cliniko_grant(role regrole, level text)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
	levels CONSTANT text[] = ARRAY['viewer', 'manager', 'admin'];
	granted CONSTANT text[] = levels[:array_position(levels, level)];
	statement text;
BEGIN
	IF role IS NULL OR granted IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'PT400',
			MESSAGE = 'a role and a level are needed',
			DETAIL = 'INVALID_ARGUMENT',
			HINT = format('Pass a role and one of %s, as in cliniko_grant(''reporting'', ''viewer'').',
						  array_to_string(levels, ', '));
	END IF;
	/* whose the tables are was said when the first was made; a stranger's patients are in the way */
	PERFORM @extschema@.cliniko_setup(coalesce(
		(SELECT t.owner FROM @extschema@.clinisync_tables() t WHERE t.relation = 'cliniko_organizations'),
		quote_ident(current_user)::regrole));
	PERFORM @extschema@.cliniko_revoke(role);

	FOR statement IN
		SELECT format('GRANT USAGE ON SCHEMA @extschema@ TO %s', role)
		WHERE NOT has_schema_privilege(role, '@extschema@'::regnamespace::oid, 'USAGE')
		UNION ALL
		/* all of patients, also columns to come; of the others neither key nor checkpoint */
		SELECT format('GRANT SELECT %s ON TABLE @extschema@.%I TO %s',
			CASE WHEN t.relation <> 'patients' THEN
				(SELECT format('(%s)', string_agg(quote_ident(l.column_name), ', '))
				 FROM @extschema@.clinisync_columns() l
				 WHERE l.relation = t.relation AND l.column_name NOT IN ('api_key_sealed', 'checkpoint'))
			END, t.relation, role)
		FROM @extschema@.clinisync_tables() t
		WHERE t.owner <> role
		UNION ALL
		SELECT format('GRANT EXECUTE ON FUNCTION %s TO %s', p.oid::regprocedure, role)
		FROM @extschema@.clinisync_level_functions() f
			JOIN pg_proc p ON p.proname = f.function_name AND p.pronamespace = '@extschema@'::regnamespace
		WHERE f.level = ANY (granted) AND p.proowner <> role
	LOOP
		EXECUTE statement;
	END LOOP;
	IF level = 'admin' THEN
		PERFORM @extschema@.clinisync_set_admins(@extschema@.clinisync_admins() || role::oid);
	END IF;

	RETURN jsonb_build_object('success', true, 'message', 'Granted', 'role', role::text, 'level', level);
END
$$;

CREATE FUNCTION @extschema@.cliniko_adopt_keys()
RETURNS jsonb
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cliniko_adopt_keys() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cliniko_adopt_keys() IS
'Has this database use the API keys that were sealed in another one, of which it is a copy or a restored dump, or by an earlier version; until then they cannot be read here. The key file must have the key that they were sealed with. Answers {success, message, adopted, unreadable (API keys that stayed as they were)}. Raises PT409 CREDENTIALS_UNREADABLE, with nothing changed, where none of these can be read.';

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

COMMENT ON FUNCTION @extschema@.cliniko_connect(text, text, text) IS
'Connects an organisation, under any id of the application''s, to a Cliniko account by its API key; again, to exchange the key or the name. api_key: the key, or file:PATH, the name of a file on the server''s machine that has the key in it and is read once, for superusers and roles with the privileges of pg_read_server_files. Makes the tables when they are missing. The key''s suffix names the shard (Cliniko: "-au1"; none means au1). Does not call Cliniko. Answers {success, message, organization_id, name, shard}. Raises PT400 INVALID_ORGANIZATION_ID or INVALID_API_KEY; of a file, 42501, 58P01 where there is none, or 42809 where it is no regular one.';
