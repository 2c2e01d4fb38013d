# The tables are the user's: a dump keeps what the user has added to them,
# restores without an error, and goes on to be synced; and dropping the
# extension takes no row away.

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
	  CREATE FUNCTION note_arrival() RETURNS trigger LANGUAGE plpgsql AS $$
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

# and the next sync finds nothing new,
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
is($resumed->newest_run('middle')->{status}, 'running', 'middle: still running');
$resumed->wait_for_runs('middle');
is($resumed->newest_run('middle')->{metadata}{inserted}, 150, 'middle: resumed');
is($resumed->stored('middle'), 150, 'middle: complete');

# When the extension is dropped, then every patient and every log stays.
my $rows = q(SELECT (SELECT count(*) FROM patients), (SELECT count(*) FROM sync_logs),
					(SELECT count(*) FROM cliniko_organizations));
my $before = $restored->sql($rows);
$restored->sql('DROP EXTENSION clinisync');
is($restored->sql($rows), $before, 'dropped: every row stays');
$restored->sql('CREATE EXTENSION clinisync');
is($restored->sync('clinic')->{metadata}{unchanged}, 123, 'created again: nothing to write');

$db->finish;
