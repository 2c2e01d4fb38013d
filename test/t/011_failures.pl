# Whatever goes wrong between Cliniko and here, a run ends as the contract
# says, and the table has lost nothing by it.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use JSON::PP;
use Test::More;

# What happens to a clinic's requests, the error_type of a run to which it
# happens for ever, and whether it passes if it stops happening.
my %faults = (
	unauthorized => [ { kind => 'status', status => 401, body => '' }, 'CLINIKO_AUTH_FAILED', 0 ],
	forbidden => [ { kind => 'status', status => 403, body => '{}' }, 'CLINIKO_FORBIDDEN', 0 ],
	not_found => [ { kind => 'status', status => 404, body => 'no' }, 'CLINIKO_NOT_FOUND', 0 ],
	moved => [ { kind => 'redirect' }, 'CLINIKO_REDIRECT', 0 ],
	too_large => [ { kind => 'big', megabytes => 3 }, 'RESPONSE_TOO_LARGE', 0 ],
	bomb => [ { kind => 'gzip_bomb' }, 'RESPONSE_TOO_LARGE', 0 ],
	limited => [ { kind => 'rate_limited', seconds => 0 }, 'CLINIKO_RATE_LIMITED', 1 ],
	limited_plainly => [ { kind => 'status', status => 429, headers => { 'Retry-After' => '1' } },
		'CLINIKO_RATE_LIMITED', 1 ],
	broken => [ { kind => 'status', status => 500, body => '<html>oops' }, 'CLINIKO_UNAVAILABLE', 1 ],
	timed_out => [ { kind => 'status', status => 504 }, 'CLINIKO_UNAVAILABLE', 1 ],
	reset => [ { kind => 'reset_before_headers' }, 'NETWORK_ERROR', 1 ],
	torn => [ { kind => 'reset_mid_body' }, 'NETWORK_ERROR', 1 ],
	truncated => [ { kind => 'truncated_json' }, 'CLINIKO_UNAVAILABLE', 1 ],
	html => [ { kind => 'html' }, 'CLINIKO_UNAVAILABLE', 1 ],
	not_a_page => [ { kind => 'empty_object' }, 'CLINIKO_UNAVAILABLE', 1 ],
	hollow => [ { kind => 'status', status => 200,
			body => { patients => [], total_entries => 10, links => {} } },
		'INCOMPLETE_ENUMERATION', 1 ]);
my @orgs = sort keys %faults;
my @passing = grep { $faults{$_}[2] } @orgs;

my $db = Clinisync->new('main');
$db->set(
	page_size => 20,
	max_response_size => '2MB');
$db->add_clinic('unhurt', patients => 1);

# Have the worker give up what it retries, once it has done so for that long.
sub give_up_after
{
	my ($retry_window) = @_;
	$db->set(retry_window => $retry_window);
	# it takes that over when it looks for work
	$db->sync('unhurt');
}

# Run a sync of every clinic to its end; answers the runs, each with how many
# rows the clinic has then and what cliniko_status() says. for_ever: what is retried
# will not pass, so that it is given up, two seconds or more after the last page, when
# all have been retried.
sub sync_all
{
	my (%options) = @_;

	$db->set(retry_window => '1h');
	$db->start_all(@orgs);
	if ($options{for_ever})
	{
		my $passing = join ', ', map { "'$_'" } @passing;

		$db->wait_until("SELECT bool_and((metadata ->> 'retries')::int > 0)
			FROM sync_logs WHERE status = 'running' AND organization_id IN ($passing)");
		give_up_after('2s');
	}
	$db->wait_for_runs(@orgs);
	return $db->call(
		q(jsonb_object_agg(organization_id, cliniko_sync_logs(organization_id, 1) -> 'logs' -> 0
			|| jsonb_build_object('cliniko_status', cliniko_status(organization_id), 'rows',
				(SELECT count(*) FROM patients p WHERE p.organization_id = o.organization_id)))
		  FROM cliniko_organizations o));
}

sub is_failure
{
	my ($org, $run, $test) = @_;
	my (undef, $error_type, $passes) = @{ $faults{$org} };
	my $metadata = $run->{metadata};

	is($run->{status}, 'failed', "$test: failed");
	is($metadata->{error_type}, $error_type, "$test: $error_type");
	is_deeply(
		$metadata->{retry_recommended},
		$passes ? JSON::PP::true() : JSON::PP::false(),
		"$test: retry_recommended");
	ok(@{ $metadata->{errors} } && !grep({ $_ eq '' } @{ $metadata->{errors} }), "$test: errors");
	like($run->{error_details}, qr/^\S.*\.$/, "$test: error_details");
	is($metadata->{step}, 'failed', "$test: step");
	ok(defined $run->{completed_at}, "$test: completed_at");
	ok(($metadata->{retries} > 0) == $passes, "$test: " . ($passes ? 'retried' : 'not retried'));
}

# Given clinics of 50 patients of which Cliniko sends two of three pages, each
# with a fault of its own from then on,
my %accounts = map { $_ => $db->add_clinic($_, patients => 48, archived => 2) } @orgs;
$accounts{$_}->faults({ %{ $faults{$_}[0] }, request => 3, times => 1000 }) for @orgs;

# when they are synced, then each run fails and says why, and keeps what it had.
my $runs = sync_all(for_ever => 1);
for my $org (@orgs)
{
	my $run = $runs->{$org};

	is_failure($org, $run, $org);
	is($run->{records_success}, 40, "$org: 40 were stored");
	is($run->{rows}, 40, "$org: 40 are in the table");
	is($run->{records_processed}, 50, "$org: of 50 that were found");
	is($run->{cliniko_status}{sync_status}, 'failed', "$org: status");
}

# When the fault happens but once, then whatever passes is retried, and the
# run completes; and the others complete when they are started again.
for my $org (@orgs)
{
	$accounts{$org}->reset;
	$accounts{$org}->faults({ %{ $faults{$org}[0] }, request => 2 }) if $faults{$org}[2];
}
$runs = sync_all();
for my $org (@orgs)
{
	my $run = $runs->{$org};

	is($run->{status}, 'completed', "$org once: completed");
	# a kept connection that died is opened anew by libcurl without our doing
	is($run->{metadata}{retries}, $faults{$org}[2], "$org once: retries") if $org ne 'reset';
	is_deeply([ @{ $run->{metadata} }{qw(inserted unchanged)} ],
		[ 10, 40 ], "$org once: nothing had been lost");
	is(scalar $accounts{$org}->pages, 3 + $faults{$org}[2], "$org once: no more requests than that");
	$db->is_copy_of($org, $accounts{$org}, "$org once");
}
is($runs->{$_}{metadata}{rate_limited}, 1, "$_ once: rate_limited")
  for qw(limited limited_plainly);

# When it happens to the first request already, then nothing that is in the
# table is lost.
for my $org (@orgs)
{
	$accounts{$org}->reset;
	$accounts{$org}->faults({ %{ $faults{$org}[0] }, request => 'every' });
}
$runs = sync_all(for_ever => 1);
for my $org (@orgs)
{
	my $run = $runs->{$org};

	is_failure($org, $run, "$org from the start");
	is($run->{records_success}, 0, "$org from the start: nothing stored");
	is($run->{rows}, 50, "$org from the start: the table has lost nothing");
	is($run->{cliniko_status}{patient_counts}{synced_to_database},
		50, "$org from the start: nor does the status say so");
}

# When a later page says once, wrongly, that nobody is left, then it is asked
# again, in whatever order the patients are listed.
for my $order (qw(honoured rejected ignored))
{
	my $hollow = $db->add_clinic("hollow_$order", patients => 70, sort_by_id => $order);
	$hollow->faults({ kind => 'status', status => 200, request => 4,
		body => { patients => [], total_entries => 0, links => {} } });
	is($db->sync("hollow_$order")->{status}, 'completed', "nobody left, $order: completed");
	$db->is_copy_of("hollow_$order", $hollow, "nobody left, $order");
}

# Given an answer that stops in its middle, when that lasts for longer than a
# request may take, then the request has failed like any other.
my $stalled = $db->add_clinic('stalled', patients => 50);

# Start a run whose answers stall from its fourth request on, so many times. Until
# the third has failed, in passing, requests may take long on a slow machine.
sub stall
{
	my ($times) = @_;

	$db->set(request_timeout => '10min', retry_window => '1h');
	$stalled->reset;
	$stalled->gates(3);
	$stalled->faults({ kind => 'status', status => 500, request => 3 },
		{ kind => 'stall', request => 4, times => $times });
	$db->start('stalled');
	$stalled->await_gate(3);
	$db->set(request_timeout => '1s');
	$db->sync('unhurt');
	$stalled->gates();
}

stall(1000);
$db->wait_until(q(SELECT (metadata ->> 'retries')::int > 1 FROM sync_logs WHERE organization_id = 'stalled'));
give_up_after(0);
$db->wait_for_runs('stalled');
my $run = $db->newest_run('stalled');
is_deeply(
	[ $run->{status}, $run->{metadata}{error_type}, $run->{records_success} ],
	[ 'failed', 'NETWORK_ERROR', 40 ],
	'stalled: failed');
stall(1);
$db->wait_for_runs('stalled');
$run = $db->newest_run('stalled');
is($run->{status}, 'completed', 'stalled once: completed');
cmp_ok($run->{metadata}{retries}, '>', 1, 'stalled once: retried');
is(scalar $stalled->pages, 3 + $run->{metadata}{retries}, 'stalled once: and asked for again, no more often than that');
$db->is_copy_of('stalled', $stalled, 'stalled once');

$db->finish;
