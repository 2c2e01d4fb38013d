# A disk that is full costs time and nothing else: a run waits for room, says
# so, and goes on by itself; if there is none for too long, it fails and keeps
# what it has.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

# The disk that test/run has mounted; else a directory that the server takes
# for one, which is full while the ballast is there.
my $mounted = $ENV{SMALL_DISK};
local $ENV{SMALL_DISK} = $mounted || PostgreSQL::Test::Utils::tempdir;
my $ballast = "$ENV{SMALL_DISK}/ballast";
note($mounted ? 'the disk is mounted' : 'the disk is pretended');

# Start a server that takes it for one.
sub start
{
	my $library = "$PostgreSQL::Test::Utils::tmp_check/full_disk.so";

	return Clinisync->new('main') if $mounted;
	system_or_bail('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../full_disk.c", '-ldl');
	local $ENV{LD_PRELOAD} = $library;
	return Clinisync->new('main');
}

sub fill
{
	my $block = 'x' x 4096;

	open(my $file, '>', $ballast) or die "$ballast: $!";
	return if !$mounted;
	1 while syswrite($file, $block);
	die "$ballast: $!" if !$!{ENOSPC};
}

sub make_room
{
	unlink($ballast) or die "$ballast: $!";
}

my $db = start();

# Start a run of a new clinic of 250 patients that Cliniko answers one page
# of, and no more.
sub hold
{
	my ($org) = @_;
	my $account = $db->add_clinic($org, patients => 242, archived => 8);

	$account->gates(2);
	$db->start($org);
	$account->await_gate(2);
	$db->wait_until("SELECT records_success = 100 FROM sync_logs WHERE organization_id = '$org'");
	return $account;
}

sub is_completed
{
	my ($org, $account) = @_;
	my $run = $db->newest_run($org);

	is($run->{status}, 'completed', "$org: completed");
	is($run->{records_failed}, 0, "$org: nobody is left out");
	Clinisync::is_accounted_for($run, 250, $org);
	$db->is_copy_of($org, $account, $org);
}

# Given patients on a disk of their own, and a run in the middle,
mkdir("$ENV{SMALL_DISK}/space") or die $!;
$db->sql("CREATE TABLESPACE small LOCATION '$ENV{SMALL_DISK}/space'");
$db->sql(
	q(SELECT cliniko_setup();
	  ALTER TABLE patients SET TABLESPACE small;
	  ALTER INDEX patients_pkey SET TABLESPACE small;
	  ALTER INDEX patients_org_cliniko_patient_unique SET TABLESPACE small));
my $account = hold('clinic');
my $patients = q(SELECT string_agg(md5(p::text), '' ORDER BY id) FROM patients p);
my $before = $db->sql($patients);

# when the disk gets full, then the run waits, and says so, as does another's,
fill();
my $log_start = -s $db->node->logfile;
$account->open_gate(2);
my $waits = q(SELECT metadata ->> 'waiting_for' = 'the database' FROM sync_logs WHERE organization_id = );
$db->wait_until("$waits 'clinic'");
my $neighbour = $db->add_clinic('neighbour', patients => 242, archived => 8);
$db->start('neighbour');
$db->wait_until("$waits 'neighbour'");
my $run = $db->newest_run('clinic');
is($run->{status}, 'running', 'full: the run is running');
is_deeply([ @{ $run->{metadata} }{qw(step waiting_for)} ], [ 'waiting', 'the database' ], 'full: and waits');
is($run->{records_success}, 100, 'full: nothing is stored');
is($db->sql("$patients WHERE organization_id = 'clinic'"), $before, 'full: nothing is lost');
$db->node->wait_for_log(qr/sync $run->{id} waits for the database: SQLSTATE 53100/, $log_start);

# through several attempts, without asking Cliniko again,
$db->wait_until(
	"SELECT metadata ->> 'waiting_until' > '$run->{metadata}{waiting_until}'
	   FROM sync_logs WHERE organization_id = 'clinic'");
is(scalar $account->pages, 3, 'full: Cliniko is left alone');

# and when there is room, then it goes on by itself, and nothing is lost.
make_room();
$db->wait_for_runs('clinic', 'neighbour');
is_completed('clinic', $account);
is_completed('neighbour', $neighbour);
is(scalar $account->pages, 3, 'room: nothing was fetched twice');

# When there is no room for as long as a run keeps trying, then it fails and
# says why, and keeps what it has;
$db->set(retry_window => '1s');
$account = hold('hopeless');
fill();
$account->open_gate(2);
$db->wait_for_runs('hopeless');
$run = $db->newest_run('hopeless');
is($run->{status}, 'failed', 'no room: failed');
is($run->{metadata}{error_type}, 'DATABASE_ERROR', 'no room: DATABASE_ERROR');
like($run->{error_details}, qr/SQLSTATE 53100/, 'no room: the log says why');
ok($run->{metadata}{retry_recommended}, 'no room: another try is recommended');
is($run->{records_success}, 100, 'no room: 100 were stored');
is($db->stored('hopeless'), 100, 'no room: and are kept');

# and when there is room again, then the next run stores the rest.
make_room();
$db->set(retry_window => '1h');
$run = $db->sync('hopeless');
is_completed('hopeless', $account);
is_deeply([ @{ $run->{metadata} }{qw(inserted unchanged)} ], [ 150, 100 ], 'room again: only the rest is stored');
is($db->sql('SELECT count(*) FROM patients WHERE deleted_at IS NOT NULL'), 0, 'nobody is marked as deleted');

$db->finish;
