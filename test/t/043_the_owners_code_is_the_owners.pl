# Whatever the tables' owner has attached to them, or put in the place of one,
# runs as the owner if it runs at all, whoever calls and whatever is called; and
# it changes nothing in the caller's session.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use List::Util qw(uniq);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = Clinisync->new('main');
my $log = $db->node->logfile;
my @tables = qw(cliniko_organizations patients sync_logs);

# Given tables of an ordinary role's, who has attached a trap to whatever takes
# one: it says in the server's log as whom it runs, and meddles with settings;
$db->sql(
	q(CREATE ROLE keeper; CREATE ROLE viewer; CREATE ROLE desk; CREATE ROLE boss;
	  CREATE ROLE outsider SUPERUSER;
	  GRANT USAGE, CREATE ON SCHEMA public TO keeper;
	  SELECT cliniko_setup('keeper');
	  SELECT cliniko_grant('viewer', 'viewer'); SELECT cliniko_grant('desk', 'manager');
	  SELECT cliniko_grant('boss', 'admin'); SELECT cliniko_grant('keeper', 'admin')));
my $account = $db->add_clinic('clinic', patients => 120, archived => 10);
$db->sync('clinic');
$db->sql(
	q(SET ROLE keeper;
	  CREATE FUNCTION public.trap(kind text) RETURNS bool LANGUAGE plpgsql IMMUTABLE
	  SET search_path = pg_catalog, pg_temp AS $$
	  BEGIN
		RAISE LOG 'a % ran as %', kind, current_user;
		RETURN true;
	  END $$;
	  CREATE FUNCTION public.trap_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
	  BEGIN
		PERFORM public.trap('trigger');
		PERFORM pg_catalog.set_config(s.name, s.setting, false)
		FROM (VALUES ('search_path', 'evil, pg_catalog'), ('work_mem', '77kB'), ('statement_timeout', '77min'),
					 ('request.jwt.claims', '{"org_id": "evil"}'), ('timezone', 'Asia/Kathmandu'),
					 ('session_replication_role', 'replica')) AS s (name, setting)
		WHERE s.name <> 'session_replication_role';
		IF TG_LEVEL = 'STATEMENT' OR TG_OP = 'DELETE' THEN RETURN NULL; END IF;
		RETURN NEW;
	  END $$;)
	  . join '', map {
		my $table = $_;
		qq(CREATE TRIGGER trap_row BEFORE INSERT OR UPDATE ON public.$table
			FOR EACH ROW EXECUTE FUNCTION public.trap_trigger();
		   CREATE TRIGGER trap_statement AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON public.$table
			FOR EACH STATEMENT EXECUTE FUNCTION public.trap_trigger();
		   CREATE CONSTRAINT TRIGGER trap_deferred AFTER INSERT OR UPDATE ON public.$table
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.trap_trigger();
		   CREATE RULE trap AS ON DELETE TO public.$table DO ALSO SELECT public.trap('rule');
		   CREATE POLICY trap ON public.$table USING (public.trap('policy')) WITH CHECK (public.trap('policy'));
		   CREATE POLICY trap_strictly ON public.$table AS RESTRICTIVE USING (public.trap('restrictive policy'));
		   ALTER TABLE public.$table ADD CONSTRAINT trap CHECK (public.trap('constraint')),
			ADD COLUMN trap_default bool DEFAULT public.trap('default'),
			ADD COLUMN trap_generated bool GENERATED ALWAYS AS (public.trap('generated column')) STORED;
		   CREATE INDEX trap_$table ON public.$table ((public.trap('index'))) WHERE public.trap('index predicate'););
	  } @tables);

# Who ran what, since the log was this long.
sub runners
{
	my ($from) = @_;
	my %runners = map { $_ => 1 } slurp_file($log, $from) =~ /a [a-z ]+ ran as (\w+)/g;
	return join ',', sort keys %runners;
}

my %calls = (
	read => q(SELECT cliniko_sync_logs('clinic', 3); SELECT cliniko_status('clinic');
		SELECT cliniko_list_organizations(); SELECT cliniko_active_patients('clinic', search => 'a');),
	manage => q(SELECT cliniko_sync_all('clinic'); SELECT cliniko_cancel_sync('clinic');
		SELECT cliniko_sync_changes('clinic'); SELECT cliniko_cancel_sync('clinic');
		SELECT cliniko_test_connection('clinic');),
	administer => q(SELECT cliniko_set_sync_enabled('clinic', false); SELECT cliniko_set_sync_enabled('clinic', true);
		SELECT cliniko_connect('clinic', 'KEY-clinic-au1'); SELECT cliniko_sync_all_organizations();
		SELECT cliniko_cancel_sync('clinic'); SELECT cliniko_connect('another', 'KEY-another-au1');
		SELECT cliniko_disconnect('another');),
	own => q(SELECT cliniko_rotate_key(); SELECT cliniko_adopt_keys();),
	set_up => q(ALTER TABLE patients DROP COLUMN pronouns, DROP CONSTRAINT patients_org_cliniko_patient_unique;
		ALTER TABLE sync_logs DROP CONSTRAINT sync_logs_status_check; DROP INDEX sync_logs_failed;
		SELECT cliniko_setup(); SELECT cliniko_grant('viewer', 'admin'); SELECT cliniko_revoke('viewer');
		SELECT cliniko_grant('viewer', 'viewer');));
my %may = (
	viewer => [qw(read)],
	desk => [qw(read manage)],
	boss => [qw(read manage administer)],
	keeper => [qw(read manage administer)],
	outsider => [qw(read manage administer own set_up)]);
my $settings = q(SELECT string_agg(name || '=' || setting, ',' ORDER BY name) FROM pg_settings
	 WHERE name <> 'role' AND name !~ '^(clinisync|plpgsql)[.]'
	UNION ALL SELECT current_setting('request.jwt.claims'););

# when each calls what each may, in one transaction or in many,
for my $role (sort keys %may)
{
	for my $kind (@{ $may{$role} })
	{
		my $from = -s $log;
		my $printed = $db->as_role($role, { org_id => 'clinic' },
			"$settings BEGIN; $calls{$kind} COMMIT; $settings");
		my @settings = grep { /search_path=|org_id/ && !/success/ } split /\n/, $printed;

		# then it is the owner who runs all that, and nothing is left of it.
		is(runners($from) =~ s/^$/keeper/r, 'keeper', "$role: $kind: it is the owner who runs it");
		is_deeply([ @settings[ 0, 1 ] ], [ @settings[ -2, -1 ] ], "$role: $kind: the session is as it was");
	}
}
$db->wait_for_runs('clinic');
# (a direct SELECT of the test's own would plan with the owner's expressions)
my $from = -s $log;
$db->start('clinic');
$db->wait_until(q(SELECT cliniko_status('clinic') ->> 'sync_status' = 'completed'));
is(runners($from), 'keeper', 'the worker: it is the owner who runs it');

# What a caller has queued runs as the caller, whatever name it has, and a foreign
# key of another schema's is no trouble.
$db->sql(
	q(CREATE SCHEMA app; GRANT REFERENCES ON patients TO outsider; GRANT CREATE ON SCHEMA public TO viewer;
	  ALTER TABLE patients ADD CONSTRAINT old_reference UNIQUE (organization_id, old_reference_id) DEFERRABLE;
	  CREATE TABLE app.visits (organization_id text, patient bigint,
		CONSTRAINT visits_patient FOREIGN KEY (organization_id, patient)
		REFERENCES patients (organization_id, cliniko_patient_id) DEFERRABLE INITIALLY DEFERRED)));
$from = -s $log;
$db->as_role('viewer', { org_id => 'clinic' },
	q(CREATE TABLE public.bait (i int);
	  CREATE FUNCTION public.pay() RETURNS trigger LANGUAGE plpgsql AS
	  'BEGIN RAISE LOG ''a bait ran as %'', current_user; RETURN NULL; END';
	  CREATE CONSTRAINT TRIGGER old_reference AFTER INSERT ON public.bait
		DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.pay();
	  BEGIN; INSERT INTO public.bait VALUES (1); SELECT cliniko_list_organizations(); COMMIT;));
is_deeply([ uniq slurp_file($log, $from) =~ /a bait ran as (\w+)/g ], ['viewer'],
	'what a caller has queued runs as the caller');

# The owner's triggers see neither the statement that has called, which may hold an
# API key, nor the token that came with it.
$db->sql(
	q(CREATE TABLE public.seen (what text); GRANT INSERT ON seen TO keeper;
	  SET ROLE keeper;
	  CREATE FUNCTION public.spy() RETURNS trigger LANGUAGE plpgsql AS $$
	  DECLARE context text;
	  BEGIN
		GET DIAGNOSTICS context = PG_CONTEXT;
		INSERT INTO public.seen VALUES (concat_ws(E'\n', 'seen:', current_query(), context,
			current_setting('request.headers', true), current_setting('request.cookies', true)));
		RETURN NEW;
	  END $$;
	  CREATE TRIGGER spy BEFORE INSERT OR UPDATE ON cliniko_organizations
		FOR EACH ROW EXECUTE FUNCTION public.spy()));
$db->sql(
	q(SET request.headers = '{"authorization": "Bearer SECRET-token"}'; SET request.cookies = '{"t": "SECRET-cookie"}';
	  SELECT cliniko_connect('clinic', 'SECRET-one-au1');
	  DO $$ BEGIN PERFORM cliniko_connect('clinic', 'SECRET-two-au1'); END $$;
	  SELECT current_setting('request.headers') LIKE '%SECRET-token%', current_query() LIKE '%current_query%'))
  =~ /^t\|t$/m or fail('the session is as it was');
is($db->sql(q(SELECT count(*) > 0, count(*) FILTER (WHERE what LIKE '%SECRET%') FROM seen)), 't|0',
	'the owner sees neither keys nor tokens');
$db->sql('DROP TRIGGER spy ON cliniko_organizations');
$db->connect('clinic', $account);

# A trigger that lets no run in costs an error, not the server's memory.
$db->wait_for_runs('clinic');
$db->sql(
	q(SET ROLE keeper;
	  CREATE FUNCTION public.keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
	  CREATE TRIGGER keep_out BEFORE INSERT ON sync_logs FOR EACH ROW EXECUTE FUNCTION public.keep_out()));
like($db->refusal(q(SELECT cliniko_sync_all('clinic'))), qr/ERROR:  55000: no run can be inserted into public[.]sync_logs/,
	'a trigger that keeps runs out');
$db->sql('DROP TRIGGER keep_out ON sync_logs');

# A column of another type is not taken for what it was.
$db->sql(q(ALTER TABLE sync_logs RENAME COLUMN id TO kept; ALTER TABLE sync_logs ADD COLUMN id text DEFAULT 'x'));
like($db->refusal(qq(SET request.jwt.claims = '{"org_id": "clinic"}'; SELECT $_)), qr/ERROR:  /, "an id of another type: $_")
  for q(cliniko_sync_all('clinic')), q(cliniko_cancel_sync('clinic'));
$db->sql(q(ALTER TABLE sync_logs DROP COLUMN id; ALTER TABLE sync_logs RENAME COLUMN kept TO id));

# The owner of the schema exchanges a table while a call waits for it: the call does
# not touch what is there then.
my $exchanged = $db->new_database('exchanged');
$exchanged->sql(
	q(GRANT USAGE, CREATE ON SCHEMA public TO keeper; SELECT cliniko_setup('keeper');
	  SELECT cliniko_connect('clinic', 'KEY-clinic-au1');
	  CREATE ROLE lord; GRANT CREATE ON DATABASE exchanged TO lord; ALTER SCHEMA public OWNER TO lord));
my ($lord, $caller) = ($exchanged->session, $exchanged->session);
my $pid = $caller->query_safe('SELECT pg_backend_pid()');
$from = -s $log;
$lord->query_safe('SET ROLE lord; BEGIN; DROP TABLE public.cliniko_organizations');
$caller->query_until(qr/asking/, "\\set ON_ERROR_STOP 0\n\\echo asking\nSELECT cliniko_set_sync_enabled('clinic', false);\n");
$exchanged->wait_until("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid");
$lord->query_safe(
	q(CREATE TABLE public.cliniko_organizations (organization_id text PRIMARY KEY, name text, api_key_sealed bytea,
		shard text, sync_enabled boolean, account_id text, created_at timestamptz, updated_at timestamptz);
	  CREATE FUNCTION public.bait() RETURNS trigger LANGUAGE plpgsql AS
	  'BEGIN RAISE LOG ''a bait ran as %'', current_user; RETURN NULL; END';
	  CREATE TRIGGER bait BEFORE UPDATE ON public.cliniko_organizations FOR EACH STATEMENT EXECUTE FUNCTION public.bait();
	  INSERT INTO public.cliniko_organizations (organization_id) VALUES ('clinic');
	  GRANT ALL ON public.cliniko_organizations TO keeper;
	  COMMIT));
$exchanged->wait_until("SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $pid");
like(slurp_file($log, $from), qr/ERROR: .*public[.]cliniko_organizations is another table than a moment ago/,
	'exchanged: the call is refused');
is_deeply([ slurp_file($log, $from) =~ /a bait ran as (\w+)/g ], [], 'exchanged: nothing of the schema owner runs');
like($exchanged->refusal(q(SELECT cliniko_status('clinic'))), qr/TABLES_OF_ANOTHER_OWNER/, 'exchanged: nor later');
$_->quit for $lord, $caller;

# A view, or a foreign table, in the place of a table is not read, nor written
# to: the call says so.
for my $table (@tables)
{
	$db->sql(qq(
		ALTER TABLE $table RENAME TO kept;
		GRANT SELECT ON kept TO keeper;
		SET ROLE keeper;
		CREATE VIEW $table AS SELECT * FROM kept WHERE trap('view');
		GRANT SELECT ON $table TO viewer, desk, boss;));
	$from = -s $log;
	for my $call (map { grep { /\S/ } split /;\s*/, $_ } @calls{qw(read manage administer own)})
	{
		like($db->refusal("SET ROLE outsider; $call"),
			qr/ERROR:  PT409: public\.$table is not a table\nDETAIL:  SETUP_REQUIRED/,
			"a view in the place of $table: $call");
	}
	for my $call (q(cliniko_setup()), q(cliniko_setup('keeper')), q(cliniko_grant('viewer', 'viewer')))
	{
		like($db->refusal("SET ROLE outsider; SELECT $call"),
			qr/ERROR:  55000: the existing tables cannot be adopted\nDETAIL:  $table is not a table/,
			"a view in the place of $table: $call");
	}
	is(runners($from), '', "a view in the place of $table: it is not read");
	$db->sql("DROP VIEW $table; ALTER TABLE kept RENAME TO $table");
}

$db->finish;
