# A run of changes fetches who was changed or archived since the last complete
# run, and nobody else; and whatever happens to it, afterwards the table equals
# Cliniko.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use POSIX qw(strftime);
use Test::More;

my $db = Clinisync->new('main');
my $overlap = '10 minutes';
$db->set(page_size => 10);

# Keep everything that a run ever says of its progress.
$db->sql(
	q(SELECT cliniko_setup();
	  CREATE TABLE history AS SELECT 1 AS seq, * FROM sync_logs WITH NO DATA;
	  ALTER TABLE history ALTER seq SET NOT NULL, ALTER seq ADD GENERATED ALWAYS AS IDENTITY;
	  CREATE FUNCTION keep_history() RETURNS trigger LANGUAGE plpgsql AS
	  'BEGIN INSERT INTO public.history OVERRIDING USER VALUE SELECT 0, NEW.*; RETURN NULL; END';
	  CREATE TRIGGER keep_history AFTER UPDATE ON sync_logs
		FOR EACH ROW EXECUTE FUNCTION keep_history();));

# Make a clinic that was synced completely an hour ago; from now on the
# simulator counts requests from 1.
sub synced_clinic
{
	my ($org, %options) = @_;
	my $account = $db->add_clinic($org, patients => 95, archived => 5, %options);

	$db->sync($org)->{status} eq 'completed' or die "$org was not synced\n";
	$db->sql("UPDATE sync_logs SET started_at = started_at - interval '1 hour'
			   WHERE organization_id = '$org';
			  UPDATE cliniko_organizations SET updated_at = updated_at - interval '1 hour'
			   WHERE organization_id = '$org'");
	$account->reset;
	return $account;
}

# The moment from which on a run that begins now has to look, as a URL has it.
sub moment
{
	my ($org) = @_;
	return $db->sql(
		qq(SELECT to_char((started_at - interval '$overlap') AT TIME ZONE 'UTC',
						  'YYYY-MM-DD"T"HH24:MI:SS"Z"')
			 FROM sync_logs WHERE organization_id = '$org' AND status = 'completed'
			ORDER BY id DESC LIMIT 1));
}

# The filters of the requests for patients so far, each as a list.
sub filters
{
	my ($account) = @_;
	my @filters;

	for my $url ($account->pages)
	{
		$url =~ s/%([0-9A-F]{2})/chr hex $1/ge;
		push @filters, [ sort $url =~ /q\[\]=([^&]*)/g ];
	}
	return @filters;
}

sub updated_since { return [ 'archived_at:*', "updated_at:>=$_[0]" ]; }
sub archived_since { return [ "archived_at:>=$_[0]", "updated_at:<$_[0]" ]; }

# Ids of patients that are active, so many after so many others.
sub active_ids
{
	my ($account, $skip, $count) = @_;
	my @active = grep { !$_->{archived_at} } @{ $account->truth };
	return map { $_->{id} } @active[ $skip .. $skip + $count - 1 ];
}

# Archive patients as Cliniko may do it: updated_at does not move.
sub archive_silently
{
	my ($account, @ids) = @_;
	my $now = strftime('%Y-%m-%dT%H:%M:%SZ', gmtime);
	my %fields = (archived_at => $now, updated_at => '2024-03-05T01:02:03Z');
	$account->mutate(set => [ map { { id => $_, fields => \%fields } } @ids ]);
}

# What would tell that a row was written.
sub versions
{
	my ($org) = @_;
	return $db->sql(
		"SELECT string_agg(ctid::text || xmin, ',' ORDER BY id) FROM patients
		  WHERE organization_id = '$org'");
}

sub is_run_of_changes
{
	my ($run, $found, $test) = @_;
	my $metadata = $run->{metadata};

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($run->{status}, 'completed', "$test: completed");
	is_deeply([ $run->{operation_type}, $metadata->{sync_type} ],
		[ ('incremental_patients') x 2 ], "$test: a run of changes");
	Clinisync::is_accounted_for($run, $found, $test);
	is_deeply([ @$metadata{qw(progress_percent success_rate)} ], [ 100, 100 ], "$test: 100 percent");
}

sub counts
{
	my ($run) = @_;
	return [ @{ $run->{metadata} }{qw(inserted updated unchanged)} ];
}

# Given a clinic that was synced completely, when patients are edited, archived,
# taken back and added, and only changes are synced,
my $account = synced_clinic('clinic');
my $since = moment('clinic');
$account->mutate(edit => 3, archive => 2, unarchive => 1, add => 4);
my $answer = $db->start_changes('clinic');
$db->wait_for_runs('clinic');
my $run = $db->newest_run('clinic');

# then they arrive and nobody else is fetched,
is_deeply(
	[ @$answer{qw(message operation_type sync_id)} ],
	[ 'Sync started', 'incremental_patients', $run->{id} ],
	'changes: the answer');
is_run_of_changes($run, 10, 'changes');
is_deeply(counts($run), [ 4, 6, 0 ], 'changes: four are new, six are not');
is($run->{metadata}{archived}, 2, 'changes: two are archived');
is_deeply([ filters($account) ],
	[ updated_since($since), archived_since($since) ],
	'changes: the two requests ask for what changed since the last run began, and a bit longer');
is($run->{metadata}{api_requests}, 3, 'changes: so says the run, and asked whose key it is');
$db->is_copy_of('clinic', $account, 'changes');

# and the status tells of the run, but of the size of the last full one.
my $status = $db->call(q(cliniko_status('clinic')));
is_deeply(
	[ @$status{qw(sync_status operation_type last_sync)} ],
	[ 'completed', 'incremental_patients', $run->{completed_at} ],
	'changes: the status');
is_deeply(
	[ @{ $status->{patient_counts} }{qw(total_in_cliniko synced_to_database active archived)} ],
	[ 100, 104, 98, 6 ],
	'changes: the counts');
is( $db->call(q(cliniko_sync_logs('clinic', operation_type => 'incremental_patients')))
	  ->{total_count}, 1, 'changes: the logs can be asked for it');

# When that is done again, then it begins where that run began, and what it
# sees once more is not written.
$since = moment('clinic');
my $before = versions('clinic');
$account->reset;
$run = $db->sync_changes('clinic');
is_run_of_changes($run, 10, 'again');
is_deeply(counts($run), [ 0, 0, 10 ], 'again: nothing is new');
is(versions('clinic'), $before, 'again: nothing is written');
is_deeply([ filters($account) ], [ updated_since($since), archived_since($since) ],
	'again: the moment is that of the last run');

# A patient who was changed in the very second is found, one before is not.
$account = synced_clinic('edge');
$since = moment('edge');
my @ids = active_ids($account, 5, 2);
my $earlier = strftime('%Y-%m-%dT%H:%M:%SZ',
	gmtime($db->sql("SELECT extract(epoch FROM timestamptz '$since')::bigint - 1")));
$account->mutate(
	set => [
		{ id => $ids[0], fields => { notes => 'then', updated_at => $since } },
		{ id => $ids[1], fields => { notes => 'before', updated_at => $earlier } }
	]);
is_run_of_changes($db->sync_changes('edge'), 1, 'the very second');
is($db->sql(q(SELECT string_agg(notes, ',') FROM patients
			   WHERE organization_id = 'edge' AND notes IN ('then', 'before'))),
	'then', 'the very second: found');

# When nothing has changed, then a run of nothing completes.
$account = synced_clinic('quiet');
$before = versions('quiet');
$run = $db->sync_changes('quiet');
is_run_of_changes($run, 0, 'nothing changed');
is_deeply(counts($run), [ 0, 0, 0 ], 'nothing changed: nothing counted');
is($run->{metadata}{patients_stored}, 0, 'nothing changed: patients_stored');
is(scalar $account->pages, 2, 'nothing changed: two requests');
is(versions('quiet'), $before, 'nothing changed: nothing written');

# Given patients whose archiving did not move updated_at, one who was removed,
# and one who counts as deleted here, when changes are synced, then the
# archived ones are found, and those who are gone are left alone;
$account = synced_clinic('silent');
my ($gone, $deleted, $back, @silent) = active_ids($account, 40, 6);
archive_silently($account, @silent);
$account->mutate(edit => [$back], archive => [ active_ids($account, 0, 1) ]);
$db->sql("UPDATE patients SET deleted_at = now() WHERE cliniko_patient_id IN ($deleted, $back)");
$account->mutate(remove => [ $gone, $deleted ]);
my $untouched = "SELECT string_agg(p::text || xmin, ',' ORDER BY id) FROM patients p
				  WHERE cliniko_patient_id IN ($gone, $deleted)";
$before = $db->sql($untouched);
$run = $db->sync_changes('silent');
is_run_of_changes($run, 5, 'archived silently');
is_deeply(counts($run), [ 0, 5, 0 ], 'archived silently: found, nobody twice');
is($run->{metadata}{archived}, 4, 'archived silently: so many archived');
is($db->sql($untouched), $before, 'archived silently: who is gone is left alone');
$db->has_records('silent', $account->truth, 'archived silently: the table has all of Cliniko');

# and who is back is not deleted any more.
is($run->{metadata}{restored}, 1, 'restored: counted');
is($db->sql("SELECT deleted_at IS NULL FROM patients WHERE cliniko_patient_id = $back"),
	't', 'restored: not deleted');

# When a changed record is bad, then it is accounted for as well.
$account = synced_clinic('bad');
$account->mutate(edit => 2);
$account->mutate(set => { id => (active_ids($account, 9, 1))[0], fields => { date_of_birth => '2023-02-31' } });
$run = $db->sync_changes('bad');
is_deeply([ @$run{qw(status records_processed records_success records_failed)} ],
	[ 'completed', 3, 2, 1 ], 'a bad record: accounted for');
is($run->{metadata}{success_rate}, 66.6, 'a bad record: success_rate');

# Given a clinic that was never synced, when changes are synced, then that is a
# full run, in the same row;
$account = $db->add_clinic('fresh', patients => 60, archived => 5);
$answer = $db->start_changes('fresh');
is($answer->{operation_type}, 'full_patients', 'first ever: the answer says full_patients');
$db->wait_for_runs('fresh');
$run = $db->newest_run('fresh');
is_deeply(
	[ @$run{qw(id status operation_type)}, $run->{metadata}{sync_type} ],
	[ $answer->{sync_id}, 'completed', ('full_patients') x 2 ],
	'first ever: the run is a full one');
is($db->call(q(cliniko_sync_logs('fresh')))->{total_count}, 1, 'first ever: one row');
$db->is_copy_of('fresh', $account, 'first ever');
is($db->sync_changes('fresh')->{operation_type}, 'incremental_patients', 'first ever: then changes');

# so it is after a full run that failed, or was cancelled;
$account = $db->add_clinic('failed', patients => 60);
$account->faults({ kind => 'status', status => 403, request => 3 });
is($db->sync('failed')->{status}, 'failed', 'failed: the full run');
is($db->sync_changes('failed')->{operation_type}, 'full_patients', 'failed: full again');
$db->is_copy_of('failed', $account, 'failed');

$account = $db->add_clinic('cancelled', patients => 60);
$account->gates(2);
$db->start('cancelled');
$account->await_gate(2);
$db->call(q(cliniko_cancel_sync('cancelled')));
$account->gates();
is($db->sync_changes('cancelled')->{operation_type}, 'full_patients', 'cancelled: full again');
$db->is_copy_of('cancelled', $account, 'cancelled');

# but where a complete run came before those, changes are counted from that one.
$account = synced_clinic('relapse');
$since = moment('relapse');
$account->mutate(edit => 30, add => 2);
$account->faults({ kind => 'status', status => 403, request => 2, times => 2 });
is($db->sync('relapse')->{status}, 'failed', 'relapse: a full run fails');
is($db->sync_changes('relapse')->{status}, 'failed', 'relapse: a run of changes fails');
is($db->newest_run('relapse')->{metadata}{error_type}, 'CLINIKO_FORBIDDEN', 'relapse: and says why');
$account->reset;
$run = $db->sync_changes('relapse');
is_run_of_changes($run, 32, 'relapse');
is_deeply((filters($account))[0], updated_since($since), 'relapse: since the last complete run');
$db->is_copy_of('relapse', $account, 'relapse');

# Change more than a page in each part: 20 edits and 23 additions, all within
# a moment; and 25 who are archived silently.
sub change_much
{
	my ($account) = @_;
	my @ids = active_ids($account, 10, 50);
	archive_silently($account, @ids[ 25 .. 49 ]);
	$account->mutate(edit => [ @ids[ 0 .. 19 ] ], add => 23);
	return 68;
}

# What was asked for, from whichever end of its range.
sub asked_for
{
	my ($account) = @_;
	return map { s/(id:%3[CE]\d+)&sort=id:\w+/$1/r } $account->pages;
}

# The pages that were fetched more than once.
sub fetched_twice
{
	my ($account) = @_;
	my %times;
	$times{$_}++ for asked_for($account);
	return grep { $times{$_} > 1 } sort keys %times;
}

# By order, the number of the last request of each part.
my %last_requests;

for my $order (qw(honoured rejected ignored))
{
	# Whichever way the account lists its patients,
	my $org = "much_$order";
	$account = synced_clinic($org, sort_by_id => $order);
	my $found = change_much($account);
	$since = moment($org);
	$run = $db->sync_changes($org);
	is_run_of_changes($run, $found, $org);
	is_deeply(counts($run), [ 23, 45, 0 ], "$org: everybody is counted once");
	$db->is_copy_of($org, $account, $org);
	my @parts = map { [ grep { !/^(id|created_at):/ } @$_ ] } filters($account);
	my @first = grep { "@$_" eq "@{ $parts[0] }" } @parts;
	my $first = @first;
	is_deeply(\@parts,
		[ (updated_since($since)) x $first, (archived_since($since)) x (@parts - $first) ],
		"$org: the parts come one after the other");
	$last_requests{$order} = [ $first, scalar @parts ];
	note("$org: @{ $last_requests{$order} }");

	# also while patients change between two pages.
	$org = "moving_$order";
	$account = synced_clinic($org, sort_by_id => $order);
	change_much($account);
	@ids = active_ids($account, 50, 8);
	$account->mutate(
		generate_on_request =>
		  [ map { { request => $_, edit => 2, add => 1, remove => [ pop @ids ] } } 3 .. 10 ]);
	$run = $db->sync_changes($org);
	is($run->{status}, 'completed', "$org: completed");
	Clinisync::is_accounted_for($run, $run->{metadata}{patients_found}, $org);
	is($db->sync_changes($org)->{status}, 'completed', "$org, again: completed");
	$db->has_records($org, $account->truth, $org);
}

# Where Cliniko ignores the order, only the second part may show it.
$account = synced_clinic('late', sort_by_id => 'ignored');
archive_silently($account, active_ids($account, 20, 35));
$run = $db->sync_changes('late');
is_run_of_changes($run, 35, 'late');
$db->is_copy_of('late', $account, 'late');

# Given a run of changes that is held in the middle of its first part, or of
# its second, when its worker is terminated, then the next one goes on from
# there: by id, nothing is fetched twice but the page under way.
for my $order (qw(honoured ignored))
{
	for my $part (1, 2)
	{
		my $org = "resumed_${order}_$part";
		$account = synced_clinic($org, sort_by_id => $order);
		my $found = change_much($account);
		my $gate = $last_requests{$order}[ $part - 1 ];
		$account->gates($gate);
		$answer = $db->start_changes($org);
		$account->await_gate($gate);
		my $stored = $part == 1 ? 40 : 63;
		$db->wait_until("SELECT records_success = $stored FROM sync_logs WHERE id = $answer->{sync_id}")
		  if $order eq 'honoured';
		my $checkpoint = "SELECT checkpoint ->> 'part' FROM sync_logs WHERE id = $answer->{sync_id}";
		$db->terminate_worker;
		is($db->sql($checkpoint), $part == 1 ? 'updated' : 'archived', "$org: in the middle of part $part");
		$account->gates();
		is($db->newest_run($org)->{status}, 'running', "$org: still running");
		$db->wait_for_runs($org);
		$run = $db->newest_run($org);
		is($run->{id}, $answer->{sync_id}, "$org: the same run");
		is_run_of_changes($run, $found, $org);
		is_deeply(counts($run), [ 23, 45, 0 ], "$org: everybody once");
		$db->is_copy_of($org, $account, $org);
		is_deeply([ fetched_twice($account) ], [ (asked_for($account))[ $gate - 1 ] ],
			"$org: only the page under way was fetched twice")
		  if $order eq 'honoured';
	}
}

# When Cliniko fails in the middle of either part, then the run goes on.
$account = synced_clinic('faulty');
my $found = change_much($account);
$account->faults(
	{ kind => 'status', status => 500, request => 2 },
	{ kind => 'rate_limited', seconds => 0, request => 8 });
$run = $db->sync_changes('faulty');
is_run_of_changes($run, $found, 'faulty');
is_deeply([ @{ $run->{metadata} }{qw(retries rate_limited)} ], [ 2, 1 ], 'faulty: retried');
$db->is_copy_of('faulty', $account, 'faulty');

# Given a run of changes that is held, when a full one is asked for, then the
# answer is the run that is under way; and the other way round;
$account = synced_clinic('held');
$found = change_much($account);
$account->gates(7);
$answer = $db->start_changes('held');
$account->await_gate(7);
$db->wait_until("SELECT records_success >= 43 FROM sync_logs WHERE id = $answer->{sync_id}");
is_deeply(
	[ @{ $db->start('held') }{qw(sync_id message operation_type)} ],
	[ $answer->{sync_id}, 'Sync already running', 'incremental_patients' ],
	'held: the full run is the one under way');

# and when it is cancelled, then the next one finds what it had not come to.
is($db->call(q(cliniko_cancel_sync('held')))->{sync_id}, $answer->{sync_id}, 'held: cancelled');
$run = $db->newest_run('held');
is_deeply([ $run->{status}, $run->{metadata}{error_type} ], [qw(failed SYNC_CANCELLED)],
	'held: the run says so');
$account->gates();
my $done = $run->{records_success};
$run = $db->sync_changes('held');
is_run_of_changes($run, $found, 'held, again');
is($run->{metadata}{unchanged}, $done, 'held, again: what was stored is unchanged');
$db->is_copy_of('held', $account, 'held, again');

$account->reset;
$account->gates(1);
$answer = $db->start('held');
$account->await_gate(1);
is_deeply(
	[ @{ $db->start_changes('held') }{qw(sync_id message operation_type)} ],
	[ $answer->{sync_id}, 'Sync already running', 'full_patients' ],
	'held: the run of changes is the full one under way');
$account->open_gate(1);
$db->wait_for_runs('held');

# Whatever happened, no percentage fell, and none was 100 too early.
my $percent = q((metadata ->> 'progress_percent')::float8);
is( $db->sql(
		qq(SELECT count(*) FROM (
			SELECT $percent AS percent,
				max($percent) OVER (PARTITION BY id ORDER BY seq ROWS UNBOUNDED PRECEDING) AS highest
			FROM history) steps WHERE percent < highest)),
	0, 'the percentage never fell');
is( $db->sql(
		qq(SELECT count(*) FROM history WHERE operation_type = 'incremental_patients'
			AND ($percent >= 100) <> (status = 'completed'))),
	0, 'it is 100 when the run is completed, and not before');
is( $db->sql(
		q(SELECT count(*) FROM history
		   WHERE records_success + records_failed > records_processed
			  OR metadata ->> 'sync_type' <> operation_type)),
	0, 'no counter contradicted another');
cmp_ok($db->sql(q(SELECT count(*) FROM history WHERE operation_type = 'incremental_patients')),
	'>', 100, 'however often it was told');

$db->finish;
