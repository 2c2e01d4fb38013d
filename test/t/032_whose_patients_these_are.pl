# A key of another Cliniko account is noticed before a patient of that account
# is stored among those of the first.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');
my $account = $db->add_clinic('clinic', patients => 120, account_id => '111');

# Given a clinic that was synced, when its key is exchanged for another clinic's,
is($db->sync('clinic')->{status}, 'completed', 'synced');
is($db->sql('SELECT account_id FROM cliniko_organizations'), '111', 'the account is known');
my $other = $db->cliniko->account('OTHER-au1', patients => 30, account_id => '222');
my $rows = 'SELECT string_agg(p.*::text || p.xmin, $$,$$ ORDER BY id) FROM patients p';
my $before = $db->sql($rows);
$db->connect('clinic', $other);

# then a test says so and what to do, and a run fails before it stores anything,
my $test = $db->call(q(cliniko_test_connection('clinic')));
is_deeply([ @$test{qw(status error_code)}, $test->{account}{id} ],
	[ 'failed', 'ACCOUNT_MISMATCH', '222' ], 'another account: the test fails');
like($test->{message}, qr/cliniko_connect\(\)/, 'another account: the test says what to do');
for my $sync (qw(sync sync_changes))
{
	my $run = $db->$sync('clinic');

	is_deeply([ $run->{status}, $run->{metadata}{error_type}, $run->{records_success} ],
		[ 'failed', 'ACCOUNT_MISMATCH', 0 ], "another account, $sync: the run fails");
	like($run->{error_details}, qr/another Cliniko account.*cliniko_connect\(\)/,
		"another account, $sync: and says what to do");
	is($db->sql($rows), $before, "another account, $sync: nothing is stored");
}

# also where the answers come in any order.
$other->faults({ kind => 'delay', ms => 300, path => '/settings/public', request => 4 });
$other->gates($other->summary->{patients_requests} + 1);
$db->start('clinic');
$db->wait_for_runs('clinic');
is($db->sql($rows), $before, 'another account, in any order: nothing is stored');
$other->reset;
$other->faults({ kind => 'status', status => 500, path => '/settings/public', request => 1 });
is($db->sync('clinic')->{metadata}{error_type}, 'ACCOUNT_MISMATCH', 'another account, told late: noticed');
is($db->sql($rows), $before, 'another account, told late: nothing is stored');

# When another key of the same account is used, then all is well.
my $second = $db->cliniko->account('SECOND-au1', patients => 120, account_id => '111', seed => 1);
$db->connect('clinic', $second);
is($db->call(q(cliniko_test_connection('clinic')))->{status}, 'connected', 'a second key: connected');
is($db->sync('clinic')->{status}, 'completed', 'a second key: completed');

# A key whose role may not know the account is not refused, and forgets nothing.
my $scheduler = $db->cliniko->account('SCHEDULER-au1', patients => 120, role => 'scheduler');
$db->connect('clinic', $scheduler);
is($db->sync('clinic')->{status}, 'completed', 'a low role: completed');
is($db->sql('SELECT account_id FROM cliniko_organizations'), '111', 'a low role: the account stays known');

# When the owner says that the organisation has moved, then the new account is
# taken on, and known from then on.
$db->connect('clinic', $other);
$db->sql(q(UPDATE cliniko_organizations SET account_id = NULL));
is($db->sync('clinic')->{status}, 'completed', 'moved: completed');
is($db->sql('SELECT account_id FROM cliniko_organizations'), '222', 'moved: the account is known');
$db->has_records('clinic', $other->truth, 'moved: its patients are there');

$db->finish;
