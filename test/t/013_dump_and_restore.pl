# The tables are the user's: a dump keeps what the user has added to them, and
# who may do what, but no API key; it restores without an error, and goes on to
# be synced; and dropping the extension takes no row away.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = Clinisync->new('main');

# Given a synced database with columns, an index and triggers of the user's,
my $account = $db->add_clinic('clinic', patients => 118, archived => 2);
$db->sql(
	q(ALTER TABLE patients ADD COLUMN shoe_size int DEFAULT 42, ADD COLUMN shouted_name text;
	  CREATE INDEX patients_by_name ON patients (organization_id, lower(last_name));
	  CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$
	  BEGIN
		NEW.shouted_name = upper(NEW.last_name);
		RETURN NEW;
	  END $$;
	  CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON patients
		FOR EACH ROW EXECUTE FUNCTION shout();
	  CREATE TABLE arrivals (cliniko_patient_id bigint);
	  CREATE FUNCTION note_arrival() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
	  BEGIN
		INSERT INTO arrivals VALUES (NEW.cliniko_patient_id);
		RETURN NULL;
	  END $$;
	  CREATE TRIGGER note_arrival AFTER INSERT OR UPDATE ON patients
		FOR EACH ROW EXECUTE FUNCTION note_arrival();));
is($db->sync('clinic')->{metadata}{inserted}, 120, 'the first database is synced');
is($db->sql('SELECT count(*) FROM patients WHERE shouted_name = upper(last_name)'),
	120, 'the triggers were at work');
$db->sql(q(UPDATE patients SET shoe_size = 37 WHERE shouted_name LIKE '%1'));

# another clinic, and a role of each level, the user's own grants beside it,
$db->add_clinic('neighbour', patients => 7);
$db->sync('neighbour');
$db->sql(
	q(CREATE ROLE seer; CREATE ROLE registrar; CREATE ROLE boss; CREATE ROLE bookkeeper;
	  SELECT cliniko_grant('seer', 'viewer'), cliniko_grant('registrar', 'manager'),
			 cliniko_grant('boss', 'admin');
	  GRANT SELECT (organization_id, shoe_size) ON patients TO bookkeeper));

# when it is dumped and restored into an empty database,
my $node = $db->node;
my $dump = "$PostgreSQL::Test::Utils::tmp_check/clinisync.dump.sql";
$node->command_ok([ 'pg_dump', '-f', $dump, $db->name ], 'pg_dump');
my $restored = $db->new_database('restored', empty => 1);
$node->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $restored->name ],
	'restored without an error');

# then everything is there,
my $everything = q(SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM patients p);
is($restored->sql($everything), $db->sql($everything), 'every row is the same');
is($restored->sql('SELECT count(*) FROM patients WHERE shoe_size = 37'),
	$db->sql('SELECT count(*) FROM patients WHERE shoe_size = 37'),
	q(so is what the user put there));
my $layout =
  q(SELECT string_agg(d, E'\n' ORDER BY d) FROM (
		SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'patients'::regclass
		UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'patients'::regclass
		UNION ALL SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint
		UNION ALL SELECT attname || format_type(atttypid, atttypmod) FROM pg_attribute
				   WHERE attrelid = 'patients'::regclass AND attnum > 0
		UNION ALL SELECT polname || pg_get_expr(polqual, polrelid) FROM pg_policy) defs (d));
is($restored->sql($layout), $db->sql($layout), 'so are indexes, triggers and constraints');
is($restored->newest_run('clinic')->{status}, 'completed', 'so are the logs');

# with who may do what,
my @roles = qw(seer registrar boss bookkeeper);
my $privileges =
  q(SELECT string_agg(what, E'\n' ORDER BY what) FROM (
		SELECT concat_ws(' ', relname, relrowsecurity, relforcerowsecurity, r,
						 has_table_privilege(r, c.oid, 'SELECT'),
						 has_table_privilege(r, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'))
		  FROM pg_class c, unnest('{@ROLES@}'::name[]) r
		 WHERE relname IN ('patients', 'sync_logs', 'cliniko_organizations')
		UNION ALL
		SELECT concat_ws(' ', attrelid::regclass, attname, r, has_column_privilege(r, attrelid, attname, 'SELECT'))
		  FROM pg_attribute, unnest('{@ROLES@}'::name[]) r
		 WHERE attrelid IN ('patients'::regclass, 'sync_logs'::regclass, 'cliniko_organizations'::regclass)
		   AND attnum > 0
		UNION ALL
		SELECT concat_ws(' ', p.oid::regprocedure, r, has_function_privilege(r, p.oid, 'EXECUTE'))
		  FROM pg_proc p, unnest('{@ROLES@,public}'::name[]) r
		 WHERE proname ~ '^(cliniko|clinisync)_'
		UNION ALL
		SELECT concat_ws(' ', polrelid::regclass, polname, polcmd, r::regrole)
		  FROM pg_policy, unnest(polroles) r) w (what));
$privileges =~ s/\@ROLES\@/join ',', @roles/ge;

sub is_guarded_alike
{
	my ($copy, $test) = @_;
	is($copy->sql($privileges), $db->sql($privileges), "$test: the same privileges and policies");
	for my $case (
		[ seer => 'clinic', '120|1|1' ],
		[ registrar => 'neighbour', '7|1|1' ],
		[ seer => 'nobody', '0|0|0' ],
		[ boss => 'nobody', '127|2|2' ])
	{
		my ($role, $org, $expected) = @$case;
		my $seen = q(SELECT (SELECT count(*) FROM patients), (SELECT count(*) FROM cliniko_organizations),
			(SELECT count(DISTINCT organization_id) FROM sync_logs));
		is($copy->as_role($role, { org_id => $org }, $seen), $expected,
			"$test: what $role sees of $org");
	}
	is($copy->call_as('seer', { org_id => 'clinic' }, q(cliniko_active_patients('clinic')))
		  ->{pagination}{total}, 118, "$test: also by function");
	like($copy->refusal(Clinisync::request('seer', { org_id => 'clinic' }) . $_), qr/42501/,
		"$test: refused: $_")
	  for q(SELECT cliniko_sync_all('clinic')), 'SELECT api_key_sealed FROM cliniko_organizations',
	  'UPDATE patients SET notes = NULL';
}
cmp_ok($db->sql($privileges) =~ tr/\n//, '>', 400, 'there are many privileges to compare');
is_guarded_alike($_, $_->name) for $db, $restored;

# and once the API keys that came with the dump are adopted, the next sync finds nothing new,
is($restored->sync('clinic')->{metadata}{error_type}, 'CREDENTIALS_UNREADABLE', 'restored: not by itself');
is($restored->call('cliniko_adopt_keys()')->{adopted}, 2, 'restored: adopted');
my $arrivals = $restored->sql('SELECT count(*) FROM arrivals');
my $run = $restored->sync('clinic');
is($run->{status}, 'completed', 'restored: syncs');
is($run->{metadata}{unchanged}, 120, 'restored: nothing is written');
is($restored->sql('SELECT count(*) FROM arrivals'), $arrivals, 'restored: no trigger fired');

# and what is new arrives, with new ids of our own that collide with none.
$account->mutate(add => 3, edit => 2);
$run = $restored->sync('clinic');
is_deeply([ @{ $run->{metadata} }{qw(inserted updated)} ], [ 3, 2 ], 'restored: goes on');
is($restored->sql('SELECT count(*) FROM arrivals'), $arrivals + 5, 'restored: the triggers fire');
is($restored->sql('SELECT count(*) FROM patients WHERE shoe_size = 37'),
	$db->sql('SELECT count(*) FROM patients WHERE shoe_size = 37'),
	q(restored: an update leaves the user's column alone));

# When a dump was made in the middle of a run, then the run goes on where the
# dump was restored.
my $middle = $db->add_clinic('middle', patients => 150);
$middle->gates(2);
$db->start('middle');
$middle->await_gate(2);
$db->wait_until(q(SELECT records_success = 100 FROM sync_logs WHERE organization_id = 'middle'));
$node->command_ok([ 'pg_dump', '-f', $dump, $db->name ], 'pg_dump in the middle of a run');
$middle->open_gate(2);
$db->wait_for_runs('middle');
my $resumed = $db->new_database('resumed', empty => 1);
$node->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $resumed->name ],
	'restored without an error');
$resumed->call('cliniko_adopt_keys()');
is($resumed->newest_run('middle')->{status}, 'running', 'middle: still running');
$resumed->wait_for_runs('middle');
is($resumed->newest_run('middle')->{metadata}{inserted}, 150, 'middle: resumed');
is($resumed->stored('middle'), 150, 'middle: complete');

# When a dump is restored on another server, then it holds no API key, nor what
# opens one, and all but that is there.
my $custom = "$PostgreSQL::Test::Utils::tmp_check/clinisync.dump";
$node->command_ok([ 'pg_dump', '-Fc', '-Z0', '-f', $custom, $db->name ], 'pg_dump, custom');
$node->command_ok([ 'pg_dump', '-f', $dump, $db->name ], 'pg_dump, once more');
my $key_file = $node->data_dir . '/clinisync.key';
my ($file_key) = slurp_file($key_file) =~ /^([0-9a-f]{64})$/m;
for my $file ($dump, $custom)
{
	my $content = slurp_file($file);
	is_deeply(
		[ grep { index($content, $_) >= 0 }
			  map { ($_, unpack 'H*', $_) } $account->key, $file_key, pack('H*', $file_key) ],
		[], 'no key is in the dump');
}
my $elsewhere = Clinisync->new('elsewhere');
$elsewhere->sql(join '', map { "CREATE ROLE $_;" } @roles);
my $moved = $elsewhere->new_database('moved', empty => 1);
$moved->set(base_url => $db->cliniko->base_url);
$elsewhere->node->command_ok([ 'pg_restore', '-e', '-d', $moved->name, $custom ],
	'pg_restore on another server');
# what boss sees is told of two clinics
$moved->sql(join '', map { "DELETE FROM $_ WHERE organization_id = 'middle';" }
	  qw(patients sync_logs cliniko_organizations));
is_guarded_alike($moved, 'another server');
$run = $moved->sync('clinic');
is_deeply([ $run->{status}, $run->{metadata}{error_type} ], [qw(failed CREDENTIALS_UNREADABLE)],
	'another server: without the file of keys, no run');

# With the file of keys put there, and these adopted, the next sync completes without connecting.
my $copy = $elsewhere->node->data_dir . '/clinisync.key';
append_to_file($copy, slurp_file($key_file));
chmod 0600, $copy;
is($moved->call('cliniko_adopt_keys()')->{adopted}, 2, 'another server: adopted');
$run = $moved->sync('clinic');
is($run->{status}, 'completed', 'another server: with the file of keys, it completes');
is_deeply([ @{ $run->{metadata} }{qw(inserted updated unchanged)} ], [ 3, 2, 118 ],
	'another server: with what changed since the dump');
$elsewhere->node->stop;

# When the extension is dropped, then every patient and every log stays.
my $rows = q(SELECT (SELECT count(*) FROM patients), (SELECT count(*) FROM sync_logs),
					(SELECT count(*) FROM cliniko_organizations));
my $before = $restored->sql($rows);
$restored->sql('DROP EXTENSION clinisync');
is($restored->sql($rows), $before, 'dropped: every row stays');
is($restored->as_role('seer', { org_id => 'clinic' }, 'SELECT count(*) FROM patients'), 123,
	'dropped: who could read patients still can');
is($restored->as_role('seer', { org_id => 'nobody' }, 'SELECT count(*) FROM patients'), 0,
	q(dropped: and nobody else's));
$restored->sql('CREATE EXTENSION clinisync; SELECT cliniko_setup()');
is($restored->sync('clinic')->{metadata}{unchanged}, 123, 'created again: nothing to write');

$db->finish;
