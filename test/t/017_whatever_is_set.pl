# Whatever a database is set to, whoever owns the tables and wherever they
# are: the worker does the same.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');
$db->set(requests_in_flight => 4);

# Given a database with the extension in a schema of its own, tables of an
# ordinary role's, and settings that would upset many a program,
my $odd = $db->new_database('odd', empty => 1);
$odd->sql(
	q(CREATE SCHEMA clinic;
	  CREATE ROLE app;
	  GRANT ALL ON SCHEMA clinic TO app;
	  CREATE EXTENSION clinisync SCHEMA clinic;
	  SELECT clinic.cliniko_setup(owner => 'app')));
my %settings = (
	search_path => q(''),
	array_nulls => 'off',
	backslash_quote => 'off',
	bytea_output => 'escape',
	check_function_bodies => 'off',
	client_encoding => 'LATIN1',
	client_min_messages => 'debug5',
	cursor_tuple_fraction => '0',
	datestyle => q('German'),
	default_transaction_deferrable => 'on',
	default_transaction_isolation => 'serializable',
	default_transaction_read_only => 'on',
	enable_indexscan => 'off',
	exit_on_error => 'on',
	extra_float_digits => '-15',
	from_collapse_limit => '1',
	geqo_threshold => '2',
	idle_in_transaction_session_timeout => q('1ms'),
	idle_session_timeout => q('1ms'),
	intervalstyle => 'iso_8601',
	join_collapse_limit => '1',
	lc_messages => q('C'),
	lock_timeout => q('1ms'),
	log_duration => 'on',
	log_min_messages => 'debug5',
	log_parameter_max_length_on_error => '-1',
	log_statement => q('all'),
	maintenance_work_mem => q('1MB'),
	max_parallel_workers_per_gather => '0',
	max_stack_depth => q('100kB'),
	plan_cache_mode => 'force_custom_plan',
	quote_all_identifiers => 'on',
	role => 'app',
	row_security => 'off',
	session_replication_role => 'replica',
	standard_conforming_strings => 'off',
	statement_timeout => q('1ms'),
	synchronous_commit => 'off',
	temp_tablespaces => 'nowhere',
	timezone => q('Asia/Kathmandu'),
	transform_null_equals => 'on',
	work_mem => q('64kB'),
	xmlbinary => 'hex',
	xmloption => 'document');
$settings{transaction_timeout} = q('1ms')
  if $db->sql(q(SELECT count(*) FROM pg_settings WHERE name = 'transaction_timeout'));

# for the database, for the tables' owner, and for the role as which the
# worker's session begins,
$db->sql(
	join ";\n",
	map { my $whose = $_; map { "ALTER $whose SET $_ = $settings{$_}" } sort keys %settings }
	  'DATABASE odd', 'ROLE app IN DATABASE odd', 'ROLE CURRENT_USER IN DATABASE odd');

# and an organisation whose id is as odd, with a patient whom the table refuses,
my $org = q(o''"\\é {1,2} %s $1);
my $account = $db->cliniko->account('KEY-odd-au1', patients => 250, archived => 5);
my $refused = $account->truth->[7]{id};

# and a worker that is slow to connect, and says much meanwhile, which is when an
# interrupt is served,
$odd->node->append_conf('postgresql.conf', 'post_auth_delay = 1');
$odd->node->reload;

# when it is synced, then everything arrives as anywhere, and a bad record
# costs one record.
{
	# what the sessions of this test need there; the worker has none of it
	local $ENV{PGOPTIONS} = join ' ', map { "-c $_" } qw(search_path=clinic statement_timeout=0
	  lock_timeout=0 idle_session_timeout=0 idle_in_transaction_session_timeout=0
	  default_transaction_read_only=off standard_conforming_strings=on client_encoding=UTF8
	  client_min_messages=notice exit_on_error=off role=none
	  post_auth_delay=0 log_min_messages=warning);
	$ENV{PGOPTIONS} .= ' -c transaction_timeout=0' if $settings{transaction_timeout};

	$odd->connect($org, $account);
	$odd->sql("ALTER TABLE patients ADD CONSTRAINT refused CHECK (cliniko_patient_id <> $refused)");
	my $run = $odd->sync($org);
	is($run->{status}, 'completed', 'odd: completed');
	Clinisync::is_accounted_for($run, 255, 'odd');
	is($run->{records_failed}, 1, 'odd: one is refused');
	$odd->sql('ALTER TABLE patients DROP CONSTRAINT refused');
	is($odd->sync($org)->{metadata}{unchanged}, 254, 'odd: the others are there');
	$odd->is_copy_of($org, $account, 'odd');
	$account->mutate(edit => 3);
	is($odd->sync($org)->{metadata}{updated}, 3, 'odd: updated');
}

$odd->node->append_conf('postgresql.conf', 'post_auth_delay = 0');
$odd->node->reload;

# When somebody holds a lock on the table for long, then the run says that it
# waits, holds up no other, and goes on.
my $locked = $db->add_clinic('locked', patients => 120);
my $holder = $db->session;
$holder->query_safe('BEGIN; ALTER TABLE patients ADD COLUMN shoe_size int');
$db->add_clinic('beside', patients => 20);
$db->start('locked');
$db->wait_until(
	q(SELECT metadata ->> 'waiting_for' = 'the database'
		FROM sync_logs WHERE organization_id = 'locked'));
is($db->newest_run('locked')->{status}, 'running', 'locked: the run waits');
$db->start('beside');
$db->wait_until(
	q(SELECT metadata ->> 'step' <> 'queued' FROM sync_logs WHERE organization_id = 'beside'));
$holder->query_safe('COMMIT');
$db->wait_for_runs('locked', 'beside');
is($db->newest_run('locked')->{status}, 'completed', 'locked: completed');
is($db->stored('locked'), 120, 'locked: every patient is there');
$holder->quit;

$db->finish;
