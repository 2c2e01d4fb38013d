# A run that has to wait says so and for what, holds nobody up, and can be
# cancelled or resumed like any other.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');

sub wait_for_waiting
{
	my ($org) = @_;
	$db->wait_until(
		"SELECT metadata ->> 'step' = 'waiting' FROM sync_logs
		  WHERE organization_id = '$org' ORDER BY id DESC LIMIT 1");
	return $db->newest_run($org);
}

sub is_in_the_future
{
	my ($run, $test) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($db->sql("SELECT '$run->{metadata}{waiting_until}'::timestamptz > now()"), 't', $test);
}

# Given a Cliniko that wants to be left alone for 50 seconds, when a run meets
# that, then it waits and says so.
my $account = $db->add_clinic('limited', patients => 250);
$account->faults({ kind => 'rate_limited', seconds => 50, request => 2, times => 1000 });
$db->start('limited');
my $run = wait_for_waiting('limited');
is($run->{status}, 'running', 'limited: running');
is($run->{records_success}, 100, 'limited: what came before is stored');
is_in_the_future($run, 'limited: waiting_until');
like($run->{metadata}{waiting_for}, qr/limit/, 'limited: waiting_for');
is($run->{metadata}{rate_limited}, 1, 'limited: counted');

# Others are not held up by it,
$db->add_clinic('other', patients => 250);
is($db->sync('other')->{status}, 'completed', 'another clinic goes on');
is($db->newest_run('limited')->{metadata}{step}, 'waiting', 'while the first still waits');

# and a cancel is obeyed.
$db->call(q(cliniko_cancel_sync('limited')));
$run = $db->newest_run('limited');
is($run->{metadata}{error_type}, 'SYNC_CANCELLED', 'limited: cancelled');
ok(!exists $run->{metadata}{waiting_until}, 'limited: waits no longer');
$account->faults();
$run = $db->sync('limited');
is($run->{metadata}{inserted}, 150, 'limited: the next run has the rest');
$db->is_copy_of('limited', $account, 'limited');

# Given a limit of our own, when it is reached, then the run waits for that.
$db->set(requests_per_minute => 2);
$account = $db->add_clinic('modest', patients => 350);
$db->start('modest');
$run = wait_for_waiting('modest');
like($run->{metadata}{waiting_for}, qr/clinisync\.requests_per_minute/, 'modest: waiting_for');
is_in_the_future($run, 'modest: waiting_until');
is($account->summary->{requests}, 2, 'modest: no more requests than allowed');
is($run->{metadata}{retries}, 0, 'modest: nothing was retried');

# That limit is the clinic's: to cancel the run and start another changes nothing.
my $steady = $db->add_clinic('steady', patients => 350);
$db->start('steady');
my $until = wait_for_waiting('steady')->{metadata}{waiting_until};
for my $again (1 .. 3)
{
	$db->call(q(cliniko_cancel_sync('steady')));
	$db->start('steady');
	$run = wait_for_waiting('steady');
	is($run->{metadata}{waiting_until}, $until, "steady, started again ($again): waits for the same moment");
	is($run->{metadata}{api_requests}, 0, "steady, started again ($again): has asked for nothing");
}
is($steady->summary->{requests}, 2, 'steady: no more requests than allowed');
$db->call(q(cliniko_cancel_sync('steady')));

# A worker that takes the run up later, under another limit, goes on.
$db->terminate_worker;
$db->set(requests_per_minute => 0);
$db->newest_run('modest');
$db->wait_for_runs('modest');
is($db->newest_run('modest')->{metadata}{inserted}, 350, 'modest: completed');
is(scalar $account->pages, 4, 'modest: nothing was fetched twice');
$db->is_copy_of('modest', $account, 'modest');

$db->finish;
