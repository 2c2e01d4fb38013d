# Whatever a database is set to, whoever owns the tables and wherever they
# are: the worker does the same.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');

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
	default_transaction_isolation => 'serializable',
	default_transaction_read_only => 'on',
	statement_timeout => q('1ms'),
	idle_in_transaction_session_timeout => q('1ms'),
	lock_timeout => q('1ms'),
	datestyle => q('German'),
	timezone => q('Asia/Kathmandu'),
	bytea_output => 'escape',
	standard_conforming_strings => 'off',
	row_security => 'off',
	session_replication_role => 'replica');
$db->sql("ALTER DATABASE odd SET $_ = $settings{$_}") for keys %settings;

# and an organisation whose id is as odd,
my $org = q(o''"\\é {1,2} %s $1);
my $account = $db->cliniko->account('KEY-odd-au1', patients => 250, archived => 5);

# when it is synced, then everything arrives as anywhere.
{
	# what the sessions of this test need there; the worker has none of it
	local $ENV{PGOPTIONS} = '-c search_path=clinic -c statement_timeout=0 -c lock_timeout=0'
	  . ' -c default_transaction_read_only=off -c standard_conforming_strings=on';

	$odd->connect($org, $account);
	my $run = $odd->sync($org);
	is($run->{status}, 'completed', 'odd: completed');
	Clinisync::is_accounted_for($run, 255, 'odd');
	$odd->is_copy_of($org, $account, 'odd');
	$account->mutate(edit => 3);
	is($odd->sync($org)->{metadata}{updated}, 3, 'odd: updated');
}

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
