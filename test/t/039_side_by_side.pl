# The pages of one clinic are fetched side by side, as many at a time as
# clinisync.requests_in_flight says, however the ids of its patients are spread;
# and what is promised of a run is kept as if they had come one by one.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');
$db->set(requests_in_flight => 4);

# Which of the requests for patients have nothing to show, by their URLs' bounds.
sub empty_pages
{
	my ($account) = @_;
	my @ids = $account->ids;
	my @empty;

	for my $page ($account->pages)
	{
		my ($after) = $page =~ /id:%3E(\d+)/;
		my ($below) = $page =~ /id:%3C(\d+)/;
		# as strings of one length, since they have more digits than a double keeps
		my ($low, $high) = map { sprintf '%020s', $_ } $after // 0, $below // '9' x 19;

		push @empty, $page unless grep { my $id = sprintf '%020s', $_; $id gt $low && $id lt $high } @ids;
	}
	return @empty;
}

# Given a clinic of 648, when it is synced, then both ends of the list are asked
# for at once, and then, before anything more is answered, four pages of the rest:
# that is all that three round trips need.
my $clinic = $db->add_clinic('clinic', patients => 600, archived => 48);
$clinic->gates(1 .. 6);
$db->start('clinic');
$clinic->await_gate($_) for 1, 2;
is_deeply([ sort map { /(sort=id:\w+)/ } $clinic->pages ], [ 'sort=id:asc', 'sort=id:desc' ],
	'clinic: both ends of the list, at once');
$clinic->open_gate($_) for 1, 2;
$clinic->await_gate($_) for 3 .. 6;
is($clinic->summary->{max_in_flight}, 4, 'clinic: four requests at a time');
$db->wait_until(q(SELECT records_success = 200 FROM sync_logs WHERE organization_id = 'clinic'));
$clinic->gates();
$db->wait_for_runs('clinic');
my $run = $db->newest_run('clinic');
is($run->{status}, 'completed', 'clinic: completed');
Clinisync::is_accounted_for($run, 648, 'clinic');
is($run->{metadata}{inserted}, 648, 'clinic: everybody once');
is($run->{metadata}{retries}, 0, 'clinic: without another try');
cmp_ok(scalar $clinic->pages, '<=', 8, 'clinic: seven pages take eight requests at most');
$db->is_copy_of('clinic', $clinic, 'clinic');

# Start a run of which no request is answered but the first at the upper end, which
# tells how many patients there are; answers how many requests it has at a time then.
sub crowd
{
	my ($org, $account, $in_flight) = @_;

	$account->gates(1 .. $in_flight + 1);
	$db->start($org);
	$account->await_gate($_) for 1 .. ($in_flight > 1 ? 2 : 1);
	my @first = $account->pages;
	$account->open_gate($_) for $in_flight > 1 ? grep { $first[ $_ - 1 ] =~ /sort=id:desc/ } 1, 2 : 1;
	$account->await_gate($in_flight + 1);
	return $account->summary->{in_flight};
}

# However ids are spread, there is more to ask for than one page after another,
# and hardly a request has nothing to show; with any number of requests at a time.
for my $in_flight (1, 2, 4, 16)
{
	$db->set(requests_in_flight => $in_flight);
	for my $ids (qw(snowflake old mixed))
	{
		my $test = "$in_flight at a time, $ids";
		my $org = "$ids$in_flight";
		# slow enough for requests to meet
		my $account = $db->add_clinic($org, patients => 1_480, archived => 20, ids => $ids,
			latency_ms => 30);

		is(crowd($org, $account, $in_flight), $in_flight, "$test: at a time");
		$account->gates();
		$db->wait_for_runs($org);
		$run = $db->newest_run($org);
		is($run->{status}, 'completed', "$test: completed");
		Clinisync::is_accounted_for($run, 1_500, $test);
		is($run->{metadata}{inserted}, 1_500, "$test: everybody once");
		is($db->stored($org), 1_500, "$test: in the table");
		# beside the account's, which is one of them
		is($account->summary->{max_in_flight}, $in_flight, "$test: and never more");
		cmp_ok(scalar $account->pages, '<=', 15 + 2 * $in_flight, "$test: hardly more requests than pages");
		cmp_ok(scalar empty_pages($account), '<=', $in_flight, "$test: hardly one for nobody");
		note("$test: " . scalar($account->pages) . ' requests, ' . scalar(empty_pages($account)) . ' for nobody');
	}
}
$db->set(requests_in_flight => 4);

# Given patients who are gone from Cliniko, all over the list, its very ends among
# them, when the clinic is synced again, then they are found wherever they were.
my @ids = $clinic->ids;
my @gone = @ids[ 0, 1, 99, 100, 101, 200, 321 .. 333, 546, 547, 548, 646, 647 ];
$db->set(max_missing_percent => 10);
$clinic->mutate(remove => \@gone);
$run = $db->sync('clinic');
is($run->{metadata}{deleted}, scalar @gone, 'gone: all are found');
is( $db->sql(q(SELECT string_agg(cliniko_patient_id::text, ' ' ORDER BY cliniko_patient_id) FROM patients
				WHERE organization_id = 'clinic' AND deleted_at IS NOT NULL)),
	join(' ', @gone), 'gone: and nobody else');

# Given a run with four requests under way, when its worker dies, then the next
# one asks for these again and for nothing else that was answered.
my $dying = $db->add_clinic('dying', patients => 1_500);
$dying->gates(7 .. 10);
$db->start('dying');
$dying->await_gate($_) for 7 .. 10;
$db->wait_until(q(SELECT records_success >= 600 FROM sync_logs WHERE organization_id = 'dying'));
my $before = $db->newest_run('dying');
$db->terminate_worker;
$dying->gates();
$run = $db->newest_run('dying');
is($run->{id}, $before->{id}, 'dying: the same run');
$db->wait_for_runs('dying');
$run = $db->newest_run('dying');
is($run->{status}, 'completed', 'dying: completed');
is($run->{metadata}{inserted}, 1_500, 'dying: everybody once');
$db->is_copy_of('dying', $dying, 'dying');
# at the joints of ranges, pages are short
cmp_ok(scalar $dying->pages, '<=', 15 + 4 + 6, 'dying: hardly more was asked for');

# Given a limit that is met by requests side by side, then the run stores what
# there is, and says that it waits, and for what.
my $limited = $db->add_clinic('limited', patients => 1_000);
$limited->faults({ kind => 'rate_limited', seconds => 50, request => 4, times => 1000 });
$db->start('limited');
$db->wait_until(
	q(SELECT metadata ->> 'step' = 'waiting' FROM sync_logs WHERE organization_id = 'limited'));
$run = $db->newest_run('limited');
like($run->{metadata}{waiting_for}, qr/Cliniko's request limit/, 'limited: says so');
is( $run->{records_success},
	100 * (@{ [ $limited->pages ] } - $limited->summary->{rate_limited}),
	'limited: with all that was answered in the table');
is($limited->summary->{in_flight}, 0, 'limited: and asks for nothing');
$db->call(q(cliniko_cancel_sync('limited')));

# Likewise, a limit of our own.
$db->set(requests_per_minute => 6);
my $modest = $db->add_clinic('modest', patients => 1_000);
$db->start('modest');
$db->wait_until(
	q(SELECT metadata ->> 'step' = 'waiting' FROM sync_logs WHERE organization_id = 'modest'));
$run = $db->newest_run('modest');
like($run->{metadata}{waiting_for}, qr/requests_per_minute/, 'modest: says so');
is($modest->summary->{requests}, 6, 'modest: no more requests than allowed');
is($run->{records_success}, 500, 'modest: with all that was answered in the table');
$db->call(q(cliniko_cancel_sync('modest')));
$db->set(requests_per_minute => 0);

# Given a Cliniko that is ailing, when several requests fail at once, then that is
# one failure, and the next pause is not longer for each of them.
my $ailing = $db->add_clinic('ailing', patients => 1_000);
$ailing->faults({ kind => 'status', status => 503, request => 3, times => 4 });
$run = $db->sync('ailing');
is($run->{status}, 'completed', 'ailing: completed');
is($run->{metadata}{retries}, 4, 'ailing: each was asked for again');
$db->is_copy_of('ailing', $ailing, 'ailing');

# Given a clinic whose two first pages show everybody there is by number, when one
# patient is deleted and another one added between them, then nobody is missed who
# stands between the pages.
my $met = $db->add_clinic('met', patients => 200);
my @before = $met->ids;
$met->mutate(generate_on_request => [ { request => 2, remove => [ $before[0] ], add => 1 } ]);
$run = $db->sync('met');
is($run->{status}, 'completed', 'met: completed');
$met->reset;
my %rows = map { $_ => 1 } split /\n/, $db->sql(q(SELECT cliniko_patient_id FROM patients WHERE organization_id = 'met'));
is_deeply([ grep { !$rows{$_} } @before[ 1 .. 199 ] ], [], 'met: nobody is missed');

# Given a Cliniko that says twice, at once, that there is nobody, then that is not
# believed.
my $nobody = $db->add_clinic('nobody', patients => 300);
$nobody->faults({ kind => 'status', status => 200, body => { patients => [], total_entries => 0, links => {} },
		request => 1, times => 2 });
$run = $db->sync('nobody');
is($run->{status}, 'completed', 'nobody: completed');
is($run->{metadata}{inserted}, 300, 'nobody: with everybody');

$db->finish;
