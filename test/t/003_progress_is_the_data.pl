# What a poll reads is true: patients, counters and percentage come from one
# transaction, new values show often enough, and the percentage never falls.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use JSON::PP;
use List::Util qw(uniq);
use Test::More;

my $db = Clinisync->new('main');
my $client = $db->session;

# One poll: the newest run as a front end gets it, and, as "rows", how many
# patients are in the table at the very same moment.
sub poll
{
	my ($org) = @_;
	return decode_json($client->query_safe(
		"SELECT cliniko_sync_logs('$org', 1) -> 'logs' -> 0 || jsonb_build_object('rows',
			(SELECT count(*) FROM patients WHERE organization_id = '$org'))"));
}

# What is inconsistent in a series of polls of a clinic's first run.
sub inconsistencies
{
	my ($found, @polls) = @_;
	my $percent = 0;
	my @wrong;

	for my $i (0 .. $#polls)
	{
		my $poll = $polls[$i];
		my $metadata = $poll->{metadata};
		my $accounted = $poll->{records_success} + $poll->{records_failed};

		push @wrong, "poll $i: $poll->{records_success} stored, but $poll->{rows} rows"
		  if $poll->{records_success} != $poll->{rows};
		push @wrong, "poll $i: $accounted of $poll->{records_processed}"
		  if $accounted > $poll->{records_processed};
		push @wrong, "poll $i: processed and found differ"
		  if $poll->{records_processed} != ($metadata->{patients_found} // 0);
		push @wrong, "poll $i: $metadata->{patients_found} found"
		  if ($metadata->{patients_found} // $found) != $found;
		push @wrong, "poll $i: patients_stored"
		  if ($metadata->{patients_stored} // 0) != $poll->{records_success};
		push @wrong, "poll $i: fell from $percent to $metadata->{progress_percent}"
		  if $metadata->{progress_percent} < $percent;
		push @wrong, "poll $i: $metadata->{progress_percent} percent for $accounted"
		  if abs($metadata->{progress_percent} - 100 * $accounted / $found) > 0.1;
		$percent = $metadata->{progress_percent};
	}
	return @wrong;
}

# Given a clinic whose pages are let through one by one, each only after the
# page before it was seen in a poll,
my $account = $db->add_clinic('gated', patients => 648, archived => 12);
my $pages = 14;    # 660 by 50, rounded up
$db->set(page_size => 50);
$account->gates(1 .. $pages);
$db->start('gated');
$account->await_gate(1);

# when nothing was found yet, then nothing is claimed;
my @polls = poll('gated');
is($polls[0]{status}, 'running', 'before the first page: running');
is($polls[0]{records_processed}, 0, 'before the first page: nothing found');
ok(!exists $polls[0]{metadata}{patients_found}, 'before the first page: no patients_found');
ok(!exists $polls[0]{metadata}{patients_stored}, 'before the first page: no patients_stored');

# when a page is stored, then a poll sees it, and the next request is on its
# way by then.
for my $page (1 .. $pages - 1)
{
	my $stored = 50 * $page;

	$account->open_gate($page);
	$account->await_gate($page + 1);
	$db->wait_until("SELECT records_success = $stored FROM sync_logs");
	push @polls, poll('gated');
}
$account->open_gate($pages);
$db->wait_for_runs('gated');
push @polls, poll('gated');

my @values = uniq map { $_->{metadata}{progress_percent} } @polls;
is(scalar @values, $pages + 1, 'one by one: every page is a new value of progress_percent');
is_deeply([ inconsistencies(660, @polls) ], [], 'one by one: every poll is consistent');
like(join(' ', uniq map { $_->{metadata}{step} } @polls),
	qr/^(queued|connecting) (fetching )?storing completed$/,
	'one by one: the steps');
is($polls[-1]{metadata}{progress_percent}, 100, 'one by one: 100 percent at the end');
is($polls[-1]{status}, 'completed', 'one by one: completed');
cmp_ok(scalar(grep { $_->{metadata}{estimated_remaining} } @polls),
	'>=', $pages - 1, 'one by one: it is said what remains');

# Given a clinic that answers in its own time, when a client polls as fast as
# it can, then no poll is inconsistent either.
$account = $db->add_clinic('free', patients => 1500, latency_ms => 20);
$db->start('free');
@polls = ();
do { push @polls, poll('free') } until $polls[-1]{status} ne 'running';
is_deeply([ inconsistencies(1500, grep { $_->{metadata}{patients_found} } @polls) ],
	[], 'freely: every poll is consistent');
is($polls[-1]{metadata}{progress_percent}, 100, 'freely: 100 percent at the end');
note(sprintf '%d polls saw %d values', scalar @polls,
	scalar uniq map { $_->{metadata}{progress_percent} } @polls);

# When the database takes its time to store a page, then the next one is asked
# for meanwhile.
$account = $db->add_clinic('slow', patients => 75);
$client->query_safe('BEGIN; LOCK TABLE patients IN SHARE MODE');
$account->gates(2);
$db->start('slow');
$account->await_gate(2);
is($db->stored('slow'), 0, 'the second page is asked for before the first is stored');
$client->query_safe('COMMIT');
$account->open_gate(2);
$db->wait_for_runs('slow');
$db->is_copy_of('slow', $account, 'slow');

# Given large pages, when they are stored, then each of them shows in parts.
$db->set(page_size => 100);
$client->query_safe('LISTEN clinisync');
$account = $db->add_clinic('heard', patients => 300);
$db->sync('heard');
# the last is sent a moment after the end can be seen
my $heard = '';
my $patience = time + $PostgreSQL::Test::Utils::timeout_default;
$heard .= $client->query_safe('SELECT 1')
  until $heard =~ /payload ".*"heard".*"completed".*" received/ || time > $patience;
my @payloads =
  grep { $_->{organization_id} eq 'heard' }
  map { decode_json($_) } $heard =~ /notification "clinisync" with payload "(.*)" received/g;
is_deeply(
	[ grep { $_ > 0 } uniq map { $_->{progress_percent} } @payloads ],
	[ 16.6, 33.3, 50, 66.6, 83.3, 100 ],
	'who listens hears of every 50 patients');
is($payloads[-1]{status}, 'completed', 'who listens hears of the end');

# When notifications are to be anonymous, then they tell neither clinic nor run;
# and when they are off, then there are none.
sub heard_of
{
	my ($level) = @_;
	$db->set(notify => $level);
	my $marker = "after $level";
	my $clinic = $db->add_clinic("told_$level", patients => 100);
	$db->sync("told_$level");
	# what the worker committed before it was asked to say this comes before this
	$db->set(notify => 'on');
	$db->sync("told_$level");
	my $log = '';
	my $patience = time + $PostgreSQL::Test::Utils::timeout_default;
	$log .= $client->query_safe('SELECT 1')
	  until $log =~ /payload ".*"told_$level".*"completed".*" received/ || time > $patience;
	my @told = map { decode_json($_) } $log =~ /notification "clinisync" with payload "(.*)" received/g;
	my ($first) = grep { exists $told[$_]{organization_id} } 0 .. $#told;
	return [ map { join ',', sort keys %$_ } @told[ 0 .. $first - 1 ] ];
}
is_deeply([ uniq @{ heard_of('anonymous') } ], ['progress_percent,status'],
	'anonymous: who listens hears neither of clinics nor of runs');
is_deeply(heard_of('off'), [], 'off: who listens hears nothing');

$client->quit;
$db->finish;
