# Every patient of a clinic arrives, with every field as Cliniko has it, and a
# sync that finds nothing new writes nothing.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

# autovacuum and timed checkpoints would write while the WAL is measured
my $db = Clinisync->new('main', settings => "autovacuum = off\ncheckpoint_timeout = 1h\n");
$db->set(requests_in_flight => 4);

# Given a clinic of 648 active and 12 archived patients, some of them merged,
my $account = $db->add_clinic('clinic', patients => 648, archived => 12, merged => 4);

# when it is synced, then all of them arrive.
my $run = $db->sync('clinic');
is($run->{status}, 'completed', 'first run: completed');
is($run->{records_success}, 660, 'first run: 660 stored');
Clinisync::is_accounted_for($run, 660, 'first run');
is($run->{metadata}{inserted}, 660, 'first run: 660 inserted');
is($run->{metadata}{archived}, 12, 'first run: 12 archived');
is($run->{metadata}{progress_percent}, 100, 'first run: 100 percent');
$db->is_copy_of('clinic', $account, 'first run');

my $status = $db->call(q(cliniko_status('clinic')));
is($status->{sync_status}, 'completed', 'status: completed');
is_deeply(
	[ @{ $status->{patient_counts} }{qw(total_in_cliniko synced_to_database active archived)} ],
	[ 660, 660, 648, 12 ],
	'status: all counts');

# When nothing has changed in Cliniko, then nothing is written here.
my $versions = "SELECT string_agg(xmin::text || ctid::text, ',' ORDER BY id) FROM patients";
my $versions_before = $db->sql($versions);
# whichever page is changed from here on enters the WAL as a whole
$db->sql('CHECKPOINT');
my $wal_before = $db->sql('SELECT pg_current_wal_lsn()');
$run = $db->sync('clinic');
my $wal = $db->sql("SELECT pg_current_wal_lsn() - '$wal_before'");
is($run->{metadata}{unchanged}, 660, 'second run: 660 unchanged');
Clinisync::is_accounted_for($run, 660, 'second run');
is($db->sql($versions), $versions_before, 'second run: no row was written');
note("second run: $wal bytes of WAL");
cmp_ok($wal / 660, '<', 60, 'second run: under 60 bytes of WAL a patient');

# When some patients have changed, then those are written.
my $done = $account->mutate(edit => 7, archive => 3, unarchive => 1, add => 2);
my %changed = map { $_ => 1 } map { @{ $done->{$_} } } qw(edited archived unarchived);
my $changed = keys %changed;
$run = $db->sync('clinic');
is_deeply(
	[ @{ $run->{metadata} }{qw(inserted updated unchanged)} ],
	[ 2, $changed, 660 - $changed ],
	"third run: 2 inserted, $changed updated");
Clinisync::is_accounted_for($run, 662, 'third run');
$db->is_copy_of('clinic', $account, 'third run');

$db->finish;
