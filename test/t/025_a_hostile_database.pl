# Whatever a user did to the database: no run hangs for ever, no patient is
# lost or marked as deleted, no trigger gains anything, and the log says what
# is wrong. Once it is undone, the next run has everything right again.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

# (waits for locks are to be seen in the log)
my $db = Clinisync->new('main',
	settings => "log_lock_waits = on\ndeadlock_timeout = 10ms\nmax_worker_processes = 16\n");
$db->sql('CREATE ROLE keeper');
$db->set(page_size => 20);
give_to_keeper($db);

# Have the tables belong to a role that is no superuser.
sub give_to_keeper
{
	my ($database) = @_;
	$database->sql(q(GRANT ALL ON SCHEMA public TO keeper; SELECT cliniko_setup('keeper')));
}

# Start a run of a new clinic of 60 patients that Cliniko answers one page
# of, and no more.
sub hold
{
	my ($org, $database) = @_;
	my $account = ($database // $db)->add_clinic($org, patients => 56, archived => 4);

	$account->gates(2);
	($database // $db)->start($org);
	$account->await_gate(2);
	($database // $db)
	  ->wait_until("SELECT records_success = 20 FROM sync_logs WHERE organization_id = '$org'");
	return $account;
}

# Make a trigger on the patients of an organisation.
sub trigger
{
	my ($org, $body) = @_;
	return qq(CREATE FUNCTION hostile() RETURNS trigger LANGUAGE plpgsql
			  SET search_path = pg_catalog, public AS \$\$
			  BEGIN $body; RETURN NEW; END \$\$;
			  CREATE TRIGGER hostile BEFORE INSERT OR UPDATE ON patients FOR EACH ROW
				WHEN (NEW.organization_id = '$org') EXECUTE FUNCTION hostile(););
}
my $no_trigger = 'DROP FUNCTION hostile() CASCADE';

sub is_completed
{
	my ($org, $account, $test, $database) = @_;
	my $run = ($database // $db)->newest_run($org);

	is($run->{status}, 'completed', "$test: completed");
	Clinisync::is_accounted_for($run, 60, $test);
	is($run->{records_failed}, 0, "$test: nobody is left out");
	($database // $db)->is_copy_of($org, $account, $test);
}

sub nobody_is_marked
{
	my ($database, $test) = @_;
	is( $database->sql(
			'SELECT count(*) FROM patients WHERE deleted_at IS NOT NULL OR missing_sync_id IS NOT NULL'),
		0, "$test: nobody is marked as missing or deleted");
}

# How often the server's log has said something since this position.
sub times_logged
{
	my ($pattern, $log_start) = @_;
	return scalar(() = slurp_file($db->node->logfile, $log_start) =~ /$pattern/g);
}

# Wait until it has said so this many times.
sub wait_for_times_logged
{
	my ($pattern, $log_start, $times) = @_;
	$db->node->wait_for_log(qr/(?:$pattern[^\0]*){$times}/, $log_start);
}

# Given runs that are held in the middle, when the table of patients is
# changed so that none can be stored any more, then the run fails and says
# why, and keeps what it has; when that is undone, then the next run has
# everything.
my %damages = (
	dropped_column => [
		'ALTER TABLE patients DROP COLUMN email', q(SELECT cliniko_setup('keeper')),
		'CONFIGURATION_ERROR', qr/cliniko_setup\(\)/
	],
	renamed_table => [
		'ALTER TABLE patients RENAME TO patienten', 'ALTER TABLE patienten RENAME TO patients',
		'CONFIGURATION_ERROR', qr/cliniko_setup\(\)/
	],
	dropped_key => [
		'ALTER TABLE patients DROP CONSTRAINT patients_org_cliniko_patient_unique',
		q(SELECT cliniko_setup('keeper')),
		'DATABASE_ERROR', qr/SQLSTATE 42P10/
	],
	rule => [
		'CREATE RULE hostile AS ON INSERT TO patients DO ALSO NOTIFY hostile',
		'DROP RULE hostile ON patients',
		'DATABASE_ERROR', qr/SQLSTATE 0A000/
	],
	broken_trigger =>
	  [ trigger('broken_trigger', 'PERFORM nowhere()'), $no_trigger, 'DATABASE_ERROR', qr/SQLSTATE 42883/ ],
	revoked => [
		'REVOKE ALL ON patients FROM keeper', 'GRANT ALL ON patients TO keeper',
		'DATABASE_ERROR', qr/SQLSTATE 42501/
	]);
for my $org (sort keys %damages)
{
	my ($damage, $repair, $error_type, $reason) = @{ $damages{$org} };
	my $log_start = -s $db->node->logfile;
	my $account = hold($org);

	$db->sql($damage);
	$account->open_gate(2);
	$db->wait_for_runs($org);
	is($db->sql("SELECT status || ' ' || (metadata ->> 'error_type') FROM sync_logs WHERE organization_id = '$org'"),
		"failed $error_type", "$org: failed, $error_type");
	like($db->sql("SELECT error_details FROM sync_logs WHERE organization_id = '$org'"),
		$reason, "$org: the log says why");
	is(times_logged(qr/LOG:  sync \d+ could not be stored: $reason/, $log_start),
		$error_type eq 'DATABASE_ERROR' ? 1 : 0, "$org: the server's log tells of it once");
	$db->sql($repair);
	is($db->stored($org), 20, "$org: what was stored is kept");
	$db->sync($org);
	is_completed($org, $account, "$org, repaired");
}
nobody_is_marked($db, 'damages');

# When a trigger sets what is the transaction's, then that ends with its statement.
my $read_only = hold('read_only_trigger');
$db->sql(trigger('read_only_trigger', 'SET TRANSACTION READ ONLY'));
$read_only->open_gate(2);
$db->wait_for_runs('read_only_trigger');
is_completed('read_only_trigger', $read_only, 'read_only_trigger');
$db->sql($no_trigger);

# When a rule has them left out without a word, then they count as failed, and
# as soon as the rule is gone they arrive.
my $account = hold('left_out');
$db->sql('CREATE RULE hostile AS ON INSERT TO patients DO INSTEAD NOTHING');
$account->open_gate(2);
$db->wait_for_runs('left_out');
my $run = $db->newest_run('left_out');
is($run->{records_failed}, 40, 'left out: counted as failed');
Clinisync::is_accounted_for($run, 60, 'left out');
$db->sql('DROP RULE hostile ON patients');
$db->sync('left_out');
is_completed('left_out', $account, 'left out, repaired');

# Given a run that is held, when a column of ours is declared NOT NULL, then it
# costs whom it concerns, and the errors name the column.
$account = hold('not_null');
my $rows = $db->rows('not_null');
my @to_come = sort grep { !$rows->{$_} } map { $_->{id} } @{ $account->truth };
my @without = splice(@to_come, 0, 2);
$account->mutate(
	set => [
		(map { { id => $_, fields => { notes => undef } } } @without),
		map { { id => $_, fields => { notes => 'There.' } } } @to_come
	]);
$db->sql(
	q(UPDATE patients SET notes = '-', record_hash = NULL WHERE notes IS NULL;
	  ALTER TABLE patients ALTER COLUMN notes SET NOT NULL));
$account->open_gate(2);
$db->wait_for_runs('not_null');
$run = $db->newest_run('not_null');
is($run->{status}, 'completed', 'not null: completed');
Clinisync::is_accounted_for($run, 60, 'not null');
is_deeply([ sort @{ $run->{metadata}{errors} } ],
	[ map { qq(Patient ID $_: column "notes" refuses its value (SQLSTATE 23502)) } @without ],
	'not null: the errors name the patients and the column');
$db->sql('ALTER TABLE patients ALTER COLUMN notes DROP NOT NULL');

# When the user's own column has no default, then nobody can be stored, the
# run fails, and whoever is there stays as he was.
$db->sql(
	q(ALTER TABLE patients ADD COLUMN shoe_size int NOT NULL DEFAULT 43;
	  ALTER TABLE patients ALTER COLUMN shoe_size DROP DEFAULT;
	  UPDATE patients SET record_hash = NULL WHERE organization_id = 'not_null'));
$run = $db->sync('not_null');
is($run->{metadata}{error_type}, 'DATABASE_CONSTRAINT_ERROR', 'own column: DATABASE_CONSTRAINT_ERROR');
like($run->{metadata}{errors}[1], qr/column "shoe_size" refuses/, 'own column: the errors name it');
is($db->stored('not_null'), 58, 'own column: nobody is lost');
$db->sql('ALTER TABLE patients DROP COLUMN shoe_size');
$db->sync('not_null');
is_completed('not_null', $account, 'own column dropped');

# Given a trigger that never comes to an end, when its run is cancelled, then
# that is done at once, and is seen,
my $asleep = $db->count_workers . q( AND wait_event = 'PgSleep');
$account = hold('asleep');
$db->sql(trigger('asleep', 'PERFORM pg_sleep(100000)'));
$account->open_gate(2);
$db->wait_until("SELECT ($asleep) = 1");
is($db->call(q(cliniko_cancel_sync('asleep')))->{message}, 'Sync cancelled', 'asleep: it can be cancelled');
is($db->newest_run('asleep')->{metadata}{error_type}, 'SYNC_CANCELLED', 'asleep: and is');
is($db->call(q(cliniko_status('asleep')))->{sync_status}, 'failed', 'asleep: the status can be read');

# when the statement is cancelled, then the worker goes on, and serves others,
my $worker = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'clinisync worker');
my $pid = $db->sql($worker);
$db->sql("SELECT pg_cancel_backend($pid)");
is($db->stored('asleep'), 20, 'asleep: what was stored stays');
my $other = $db->add_clinic('beside', patients => 60);
$db->sync('beside');
is_completed('beside', $other, 'asleep: another clinic');
is($db->sql($worker), $pid, 'asleep: by the same worker');

# and when the worker is terminated, then it ends at once; and once the
# trigger is gone, a poll has the run go on.
$account->reset;
$db->start('asleep');
$db->wait_until("SELECT ($asleep) = 1");
$db->terminate_worker;
is($db->sql(q(SELECT status FROM sync_logs WHERE organization_id = 'asleep' ORDER BY id DESC LIMIT 1)),
	'running', 'asleep: a terminated run is not lost');
$db->sql($no_trigger);
$db->newest_run('asleep');
$db->wait_for_runs('asleep');
is_completed('asleep', $account, 'asleep');

# Given triggers that raise what means that the run is to wait, or has ended,
# when they do, then the run neither fails nor asks Cliniko without end,
my %raises = (serialization_failure => '40001', gone => 'PT410');
for my $org (sort keys %raises)
{
	my $log_start = -s $db->node->logfile;
	$account = hold($org);
	$db->sql(trigger($org, "RAISE SQLSTATE '$raises{$org}'"));
	$account->open_gate(2);
	$other = $db->add_clinic("beside_$org", patients => 60);
	is($db->sync("beside_$org")->{status}, 'completed', "$org: another clinic goes on");
	is($db->newest_run($org)->{status}, 'running', "$org: the run waits");
	$db->sql($no_trigger);
	# and goes on by itself when they are gone.
	$db->wait_for_runs($org);
	is_completed($org, $account, $org);
	cmp_ok($account->summary->{requests}, '<', 20, "$org: Cliniko was left alone");
}

# Given a trigger that tries to become more than the tables' owner is, when it
# is run by the worker, then all its attempts are refused.
my @attempts = (
	"SET ROLE $ENV{PGUSER}",
	"SET LOCAL ROLE $ENV{PGUSER}",
	'SET ROLE NONE',
	'RESET ROLE',
	"SET SESSION AUTHORIZATION $ENV{PGUSER}",
	'SET SESSION AUTHORIZATION DEFAULT',
	'RESET SESSION AUTHORIZATION',
	"SELECT set_config('role', '$ENV{PGUSER}', false)",
	"SELECT set_config('session_authorization', '$ENV{PGUSER}', true)",
	'ALTER ROLE keeper SUPERUSER',
	"GRANT $ENV{PGUSER} TO keeper",
	"COPY attempts FROM PROGRAM 'id'",
	"SELECT pg_read_file('clinisync.key')",
	q(SELECT lo_import('clinisync.key')),
	'SELECT cliniko_rotate_key()',
	q(SET clinisync.base_url = 'http://127.0.0.1:1/v1'),
	q(ALTER DATABASE postgres SET clinisync.base_url = 'http://127.0.0.1:1/v1'),
	"SET session_replication_role = 'replica'",
	q(LOAD '/tmp/hostile'),
	'CREATE TEMP TABLE hostile ()',
	q(CREATE FUNCTION hostile_c() RETURNS int LANGUAGE c AS '$libdir/clinisync', 'cliniko_rotate_key'),
	'DISCARD ALL', 'COMMIT', 'ROLLBACK');
my $attempts = join ', ', map { s/'/''/gr =~ s/.*/'$&'/sr } @attempts;
my $try_all = qq(
	DECLARE attempt text;
	BEGIN
		FOREACH attempt IN ARRAY ARRAY[$attempts] LOOP
			BEGIN
				EXECUTE attempt;
				INSERT INTO attempts VALUES (attempt, 'was let', current_user, session_user);
			EXCEPTION WHEN OTHERS THEN
				INSERT INTO attempts VALUES (attempt, sqlstate, current_user, session_user);
			END;
		END LOOP;
	END);
$db->sql(
	q(CREATE TABLE attempts (attempt text, result text, who name, session name);
	  ALTER TABLE attempts OWNER TO keeper;
	  GRANT SELECT ON cliniko_organizations TO keeper;)
	  . trigger('ambitious', $try_all));
$account = $db->add_clinic('ambitious', patients => 56, archived => 4);
$db->sync('ambitious');
is_completed('ambitious', $account, 'ambitious');
is($db->sql('SELECT count(DISTINCT attempt) FROM attempts'), scalar @attempts, 'ambitious: it was tried');
is($db->sql(q(SELECT DISTINCT attempt FROM attempts WHERE result = 'was let')), '', 'ambitious: all is refused');
is($db->sql('SELECT DISTINCT who FROM attempts'), 'keeper', q(ambitious: it stays the tables' owner));
is($db->sql(q(SELECT rolsuper FROM pg_roles WHERE rolname = 'keeper')), 'f', 'ambitious: the owner is no superuser');
$db->sql("$no_trigger; DROP TABLE attempts");

# Given a trigger that changes the settings of the session and lets go of its
# locks, when it is run by the worker, then it changes nothing beyond its own
# transaction: other runs are as safe as before.
my %settings = (
	default_transaction_read_only => 'on',
	default_transaction_isolation => 'serializable',
	exit_on_error => 'on',
	lock_timeout => '0',
	search_path => 'hostile, pg_catalog',
	statement_timeout => '1ms',
	timezone => 'Asia/Kathmandu',
	work_mem => '64kB');
my $meddle = join '; ', 'PERFORM pg_advisory_unlock_all()',
  map { "PERFORM set_config('$_', '$settings{$_}', false)" } sort keys %settings;
$db->sql(
	q(CREATE SCHEMA hostile; GRANT USAGE ON SCHEMA hostile TO PUBLIC;
	  CREATE FUNCTION hostile.clock_timestamp() RETURNS timestamptz LANGUAGE sql
	  AS $$ SELECT pg_catalog.now() - interval '1 century' $$;)
	  . trigger('meddling', $meddle));
$account = $db->add_clinic('meddling', patients => 56, archived => 4);
$db->sync('meddling');
is_completed('meddling', $account, 'meddling');
is($db->sql(q(SELECT count(*) FROM sync_logs WHERE updated_at < now() - interval '1 year')),
	0, 'meddling: our statements mean what they meant');
$pid = $db->sql($worker);
$account = hold('after_meddling');
is($db->sql($worker), $pid, 'meddling: the worker has survived it');
is($db->sql(q(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 25452 AND objid = 1 AND pid = ) . $pid),
	1, 'meddling: and is known to be there');
my $holder = $db->session;
$holder->query_safe('BEGIN; LOCK TABLE patients');
$account->open_gate(2);
$db->wait_until(
	q(SELECT metadata ->> 'waiting_for' = 'the database'
		FROM sync_logs WHERE organization_id = 'after_meddling'));
$holder->query_safe('COMMIT');
$db->wait_for_runs('after_meddling');
is_completed('after_meddling', $account, 'after meddling');
$db->sql("$no_trigger; DROP SCHEMA hostile CASCADE");

# Given a session that holds the table of patients for longer than several
# attempts, then the run says that it waits, and so does another clinic's; its
# log can be read; and no attempt holds up anybody else's,
my $waits = q(SELECT metadata ->> 'waiting_for' = 'the database' FROM sync_logs
			   WHERE status = 'running' AND organization_id = );
$account = hold('patients_held');
$holder->query_safe('BEGIN; LOCK TABLE patients');
my $log_start = -s $db->node->logfile;
$account->open_gate(2);
$db->wait_until("$waits 'patients_held'");
$other = $db->add_clinic('held_too', patients => 56, archived => 4);
$db->start('held_too');
$db->wait_until("$waits 'held_too'");
wait_for_times_logged(qr/still waiting for \w+ on relation/, $log_start, 6);
for my $org (qw(patients_held held_too))
{
	$run = $db->newest_run($org);
	is($run->{status}, 'running', "$org: the log can be read, and says running");
	is($run->{metadata}{waiting_for}, 'the database', "$org: and what the run waits for");
	ok(defined $run->{metadata}{waiting_until}, "$org: and until when");
}
# and when the table is let go, then both complete.
$holder->query_safe('COMMIT');
$db->wait_for_runs('patients_held', 'held_too');
is_completed('patients_held', $account, 'patients held');
is_completed('held_too', $other, 'held too');

# So it is when the table of runs is held, so that the run cannot even say
# that it waits: against writing, then it can be read meanwhile; or entirely.
for my $mode ('EXCLUSIVE', 'ACCESS EXCLUSIVE')
{
	my $org = lc "logs_$mode" =~ tr/ /_/r;
	$account = hold($org);
	$holder->query_safe("BEGIN; LOCK TABLE sync_logs IN $mode MODE");
	$log_start = -s $db->node->logfile;
	$account->open_gate(2);
	wait_for_times_logged(qr/still waiting for \w+ on relation/, $log_start, 4);
	is($db->newest_run($org)->{records_success}, 20, "$mode: the log can be read")
	  if $mode eq 'EXCLUSIVE';
	is($db->stored($org), 20, "$mode: nothing is stored meanwhile");
	$holder->query_safe('COMMIT');
	$db->wait_for_runs($org);
	is_completed($org, $account, $mode);
}

# When a lock outlasts the time for which a run keeps trying, then the run
# fails and says why, and keeps what it has.
$db->set(retry_window => 1);
$account = hold('held_for_long');
$holder->query_safe('BEGIN; LOCK TABLE patients');
$account->open_gate(2);
$db->wait_for_runs('held_for_long');
$run = $db->newest_run('held_for_long');
is($run->{metadata}{error_type}, 'DATABASE_ERROR', 'held for long: DATABASE_ERROR');
like($run->{error_details}, qr/SQLSTATE 55P03/, 'held for long: because of the lock');
$holder->query_safe('COMMIT');
is($db->stored('held_for_long'), 20, 'held for long: what was stored is kept');
$holder->quit;
$db->set(retry_window => 3600);
$db->sync('held_for_long');
is_completed('held_for_long', $account, 'held for long, started again');

# Given databases in which nobody, or no run, can write the table of runs,
# when a run is in the middle, then it stays as it is, the log says why, the
# worker is not busy with it, and it goes on by itself when that is undone.
my $on_logs = q(CREATE FUNCTION hostile() RETURNS trigger LANGUAGE plpgsql
				SET search_path = pg_catalog, public AS $$ BEGIN %s; END $$;
				CREATE TRIGGER hostile BEFORE UPDATE ON sync_logs FOR EACH ROW EXECUTE FUNCTION hostile());
my $as_it_was = 'DROP %s sync_logs; ALTER TABLE kept RENAME TO sync_logs';

# The owner puts another table, or a view, in the place of the table of runs, whose
# columns have the names that they had, but these other values.
sub looks_like
{
	my ($kind, %values) = @_;
	my $columns = join ', ', map { ($values{$_} // $_) . " AS $_" }
	  qw(organization_id id operation_type status started_at completed_at records_processed
	  records_success records_failed metadata error_details checkpoint updated_at);
	my $guard = $kind eq 'VIEW' ? '' : q(; ALTER TABLE sync_logs ENABLE ROW LEVEL SECURITY;
		CREATE POLICY cliniko_own_organization ON sync_logs USING (true));
	return qq(SET ROLE keeper; ALTER TABLE sync_logs RENAME TO kept;
			  CREATE $kind sync_logs AS SELECT $columns FROM kept$guard);
}
my %walls = (
	raising => [ sprintf($on_logs, q(RAISE 'no')), $no_trigger, qr/could not be stored: SQLSTATE P0001/ ],
	leaving_out => [ sprintf($on_logs, 'RETURN NULL'), $no_trigger, qr/cannot be updated, or has ended/ ],
	rule => [
		'CREATE RULE hostile AS ON UPDATE TO sync_logs DO INSTEAD NOTHING',
		'DROP RULE hostile ON sync_logs',
		qr/cannot be updated, or has ended/
	],
	no_privilege => [
		'REVOKE ALL ON sync_logs FROM keeper', 'GRANT ALL ON sync_logs TO keeper',
		qr/could not look for work: SQLSTATE 42501/
	],
	no_schema => [
		'REVOKE ALL ON SCHEMA public FROM PUBLIC, keeper',
		'GRANT ALL ON SCHEMA public TO keeper; GRANT USAGE ON SCHEMA public TO PUBLIC',
		qr/could not look for work: SQLSTATE 42501/
	],
	other_types => [
		looks_like('TABLE', organization_id => '1::bigint'), sprintf($as_it_was, 'TABLE'),
		qr/could not take up sync \d+: SQLSTATE 42883/
	],
	view => [
		looks_like('VIEW', id => 'id + 1000', operation_type => 'NULL::text', metadata => 'NULL::jsonb'),
		sprintf($as_it_was, 'VIEW'), qr/(?:could not look for work|waits for the database): SQLSTATE PT409/
	],
	another_owner => [
		'ALTER TABLE patients OWNER TO CURRENT_USER', 'ALTER TABLE patients OWNER TO keeper',
		qr/(?:could not look for work|waits for the database): SQLSTATE PT409/
	],
	unguarded => [
		'ALTER TABLE patients DISABLE ROW LEVEL SECURITY', 'ALTER TABLE patients ENABLE ROW LEVEL SECURITY',
		qr/(?:could not look for work|waits for the database): SQLSTATE PT409/
	]);
my (%walled, %accounts);
for my $name (sort keys %walls)
{
	$walled{$name} = $db->new_database($name);
	$walled{$name}->set(page_size => 20);
	give_to_keeper($walled{$name});
	$accounts{$name} = hold($name, $walled{$name});
}
for my $name (sort keys %walls)
{
	my ($build, undef, $reason) = @{ $walls{$name} };
	my $database = $walled{$name};

	$log_start = -s $db->node->logfile;
	$database->sql($build);
	$accounts{$name}->open_gate(2);
	$db->node->wait_for_log($reason, $log_start);
	is($database->sql('SELECT status, records_success FROM sync_logs'),
		'running|20', "$name: the run stays as it was");
	$walls{$name}[3] = $log_start;
}
$db->add_clinic('meanwhile', patients => 60);
is($db->sync('meanwhile')->{status}, 'completed', 'walls: another database is not concerned');
for my $name (sort keys %walls)
{
	my (undef, $pull_down, $reason, $since) = @{ $walls{$name} };

	cmp_ok(times_logged($reason, $since), '<', 20, "$name: the worker does not try without end");
	$walled{$name}->sql($pull_down);
}
for my $name (sort keys %walls)
{
	$walled{$name}->wait_for_runs($name);
	is_completed($name, $accounts{$name}, $name, $walled{$name});
	nobody_is_marked($walled{$name}, $name);
}
$walled{other_types}->sql('ALTER TABLE cliniko_organizations ALTER api_key_sealed TYPE bigint USING 1');
unlike($walled{other_types}->refusal(q(SELECT cliniko_test_connection('other_types'))),
	qr/server closed the connection/, 'other_types: a caller gets an answer, too');

# Given tables whose owner is made subject to row-level security, when a
# clinic is synced, then the worker sees what it has to.
$account = hold('forced');
$db->sql(join '; ', map { "ALTER TABLE $_ FORCE ROW LEVEL SECURITY" } qw(patients sync_logs cliniko_organizations));
$account->open_gate(2);
$db->wait_for_runs('forced');
is_completed('forced', $account, 'forced');
is($db->sync('forced')->{metadata}{unchanged}, 60, 'forced: who is there is known');
$db->sql(join '; ', map { "ALTER TABLE $_ NO FORCE ROW LEVEL SECURITY" } qw(patients sync_logs cliniko_organizations));

nobody_is_marked($db, 'after all that');
is($db->sql(q(SELECT count(*) FROM sync_logs WHERE status = 'running')), 0, 'no run is left running');
is($db->workers, 1, 'one worker is there');
$db->finish;
