# Whichever request of a run fails, once, and however it fails: the run is
# completed with every patient in the table, or it has failed and says why, and
# nothing that was stored is lost.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use JSON::PP;
use Test::More;

# Every failure, and what becomes of the run: "completes" after another try; or
# "costs one record", which may be missing or stored as it came; or the
# error_type with which it fails.
my $html = '<!DOCTYPE html><html><body><h1>Something went wrong</h1></body></html>';
my %faults = (
	'401' => [ { kind => 'status', status => 401, body => '{}' }, 'CLINIKO_AUTH_FAILED' ],
	'403' => [ { kind => 'status', status => 403, body => '{}' }, 'CLINIKO_FORBIDDEN' ],
	'404' => [ { kind => 'status', status => 404, body => '{}' }, 'CLINIKO_NOT_FOUND' ],
	'408' => [ { kind => 'status', status => 408 }, 'completes' ],
	'429 with a reset' => [ { kind => 'rate_limited', seconds => 1 }, 'completes' ],
	'429 with Retry-After: 0' =>
	  [ { kind => 'status', status => 429, headers => { 'Retry-After' => '0' } }, 'completes' ],
	'429 with a reset an hour ahead' => [ { kind => 'rate_limited', seconds => 3600 }, 'completes' ],
	'429 with a reset an hour ago' => [ { kind => 'rate_limited', seconds => -3600 }, 'completes' ],
	'500, HTML' => [ { kind => 'status', status => 500, body => $html }, 'completes' ],
	'502' => [ { kind => 'status', status => 502, body => $html }, 'completes' ],
	'503' => [ { kind => 'status', status => 503, body => $html }, 'completes' ],
	'504' => [ { kind => 'status', status => 504 }, 'completes' ],
	'a reset before headers' => [ { kind => 'reset_before_headers' }, 'completes' ],
	'a reset in mid-body' => [ { kind => 'reset_mid_body' }, 'completes' ],
	'a stalled body' => [ { kind => 'stall' }, 'completes' ],
	'truncated JSON' => [ { kind => 'truncated_json' }, 'completes' ],
	'200, HTML' => [ { kind => 'html' }, 'completes' ],
	'200, {}' => [ { kind => 'empty_object' }, 'completes' ],
	'200 without patients' => [ { kind => 'no_patients' }, 'completes' ],
	'200 with nobody' => [ { kind => 'status', status => 200,
			body => { patients => [], total_entries => 0, links => {} } }, 'completes' ],
	'a total too large' => [ { kind => 'wrong_total', by => 1 }, 'completes' ],
	'a total too small' => [ { kind => 'wrong_total', by => -1 }, 'completes' ],
	'a total of one page' => [ { kind => 'wrong_total', by => -900 }, 'completes' ],
	'a repeated page' => [ { kind => 'repeat_page' }, 'completes' ],
	'ids out of order' => [ { kind => 'disorder' }, 'completes' ],
	'a duplicate id' => [ { kind => 'duplicate' }, 'completes' ],
	'an id that is no number' => [ { kind => 'bad_id' }, 'costs one record' ],
	'a body of 20 MB' => [ { kind => 'big', megabytes => 20 }, 'RESPONSE_TOO_LARGE' ],
	'gzip that is cut off' => [ { kind => 'gzip_cut' }, 'completes' ],
	'an encoding that nobody asked for' => [ { kind => 'unknown_encoding' }, 'completes' ],
	'a gzip bomb' => [ { kind => 'gzip_bomb', megabytes => 8 }, 'RESPONSE_TOO_LARGE' ],
	'a wrong charset' => [ { kind => 'latin1' }, 'completes' ],
	'a lone surrogate' => [ { kind => 'lone_surrogate' }, 'costs one record' ],
	'a NUL' => [ { kind => 'nul' }, 'costs one record' ],
	'301 to another host' => [ { kind => 'redirect' }, 'CLINIKO_REDIRECT' ]);

# What the run is that is hit: whether everybody is in the table before it, and
# how many were removed in Cliniko since; and how many requests it takes: where
# somebody was removed, the last one asks for them.
my @runs = (
	{ name => 'first sync', stored => 0, removed => 0, in_flight => 1, requests => 10 },
	{ name => 're-sync', stored => 1000, removed => 0, in_flight => 1, requests => 10 },
	{ name => 're-sync after removals', stored => 1000, removed => 15, in_flight => 1, requests => 11 },
	{ name => 'first sync, side by side', stored => 0, removed => 0, in_flight => 4, requests => 10 },
	{ name => 're-sync after removals, side by side', stored => 1000, removed => 15, in_flight => 4,
		requests => 11 });
my $requests = 11;

my $db = Clinisync->new('main');
$db->set(
	max_running_syncs => 100,
	max_response_size => '4MB',
	request_timeout => '5s');

# Given a clinic of 1,000 patients, archived ones among them, of whom the table
# has a faithful copy,
my $model = $db->add_clinic('model', patients => 960, archived => 40);
is($db->sync('model')->{status}, 'completed', 'the model: completed');
$db->is_copy_of('model', $model, 'the model');
my @removed = map { $_->{id} } @{ $model->truth }[ map { 33 + 66 * $_ } 0 .. 14 ];

# and as many clinics with the same patients as there are failures of requests,
my @cells = map {
	my $fault = $_;
	map { { fault => $fault, request => $_ } } 1 .. $requests
} sort keys %faults;
my @accounts = $db->cliniko->accounts(scalar @cells, like => $model->key, gzip => JSON::PP::false());
for my $i (0 .. $#cells)
{
	$cells[$i]{account} = $accounts[$i];
	$cells[$i]{org} = $accounts[$i]->key;
}
$db->sql(join ';', map { "SELECT cliniko_connect('$_->{org}', '$_->{org}')" } @cells);

# Run a sync of each of these cells; answers what became of them, by organisation:
# the run, and how many rows there are, how many of them are as Cliniko has
# them, and how many are marked as deleted, of these the removed ones.
my $columns = $db->sql(
	q(SELECT string_agg('%1$s.' || quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
	   WHERE attrelid = 'patients'::regclass AND attnum > 0 AND NOT attisdropped AND attname
		NOT IN ('organization_id', 'id', 'record_hash', 'first_synced_at', 'last_synced_at',
				'missing_sync_id', 'deleted_at')));
my ($ours, $theirs) = map { $columns =~ s/%1\$s/$_/gr } qw(p m);
my $removed = join ', ', @removed;

sub sync_all
{
	my @orgs = map { $_->{org} } @_;
	my $list = join ', ', map { "'$_'" } @orgs;
	$db->start_all(@orgs);
	$db->wait_for_runs(@orgs);
	return $db->call(
		qq(jsonb_object_agg(o.organization_id, jsonb_build_object(
				'run', cliniko_sync_logs(o.organization_id, 1) -> 'logs' -> 0, 'rows', rows,
				'same', same, 'marked', marked, 'marked_rightly', marked_rightly))
			FROM cliniko_organizations o CROSS JOIN LATERAL (
				SELECT count(*) AS rows,
					count(*) FILTER (WHERE ($ours) IS NOT DISTINCT FROM ($theirs)) AS same,
					count(p.deleted_at) AS marked,
					count(p.deleted_at) FILTER (WHERE p.cliniko_patient_id IN ($removed))
						AS marked_rightly
				FROM patients p
				LEFT JOIN patients m ON m.organization_id = 'model'
					AND m.cliniko_patient_id = p.cliniko_patient_id
				WHERE p.organization_id = o.organization_id) counts
		   WHERE o.organization_id IN ($list)));
}

# Whether a run ends at the fault.
sub ends_run
{
	my ($cell) = @_;
	return $faults{ $cell->{fault} }[1] =~ /^[A-Z_]+$/;
}

# What is wrong with a run that was hit by a fault, as sentences.
sub complaints
{
	my ($hit, $cell, $result) = @_;
	my ($run, $rows, $same, $marked) = @$result{qw(run rows same marked)};
	my ($failed, $success, $metadata) = @$run{qw(records_failed records_success metadata)};
	my $outcome = $faults{ $cell->{fault} }[1];
	my $spoiled = $outcome eq 'costs one record' ? 1 : 0;
	my $stored = $hit->{stored} || $success;
	my @wrong;

	if (!ends_run($cell))
	{
		my $found = 1000 - $hit->{removed};
		my $sum = $failed;

		$sum += $metadata->{$_} for qw(inserted updated unchanged);
		push @wrong, "it is $run->{status}" if $run->{status} ne 'completed';
		push @wrong, "it found $run->{records_processed}" if $run->{records_processed} != $found;
		push @wrong, "it accounts for $sum" if $sum != $found || $success + $failed != $found;
		push @wrong, "$failed records failed" if $failed > $spoiled;
		push @wrong, 'the errors do not tell them' if @{ $metadata->{errors} } != $failed;
		push @wrong, "$same of $rows rows are as Cliniko has them"
		  if $rows != $stored || $same < 1000 - $spoiled;
	}
	else
	{
		my $error_type = $metadata->{error_type} // 'none';

		push @wrong, "it is $run->{status} after $metadata->{retries} retries"
		  if $run->{status} ne 'failed';
		push @wrong, "its error_type is $error_type" if $error_type ne $outcome;
		push @wrong, "$same of $rows rows are as Cliniko has them, of $stored"
		  if $rows != $stored || $same != $stored;
		push @wrong, "$marked patients are marked" if $marked > 0;
	}
	# all those who were removed are marked by a complete run, and nobody else
	push @wrong, "$result->{marked_rightly} of $marked patients are rightly marked"
	  if $marked != $result->{marked_rightly} ||
	  ($run->{status} eq 'completed' && $marked != $hit->{removed});
	push @wrong, 'the fault did not happen'
	  if $cell->{account}->summary->{patients_requests} < $cell->{request};
	return @wrong;
}

for my $hit (@runs)
{
	# and, for a first sync, with all these patients in Cliniko and none in the table,
	if (!$hit->{stored})
	{
		$db->sql(q(DELETE FROM patients WHERE organization_id <> 'model'));
		$db->cliniko->account($_->{org}, like => $model->key, gzip => JSON::PP::false()) for @cells;
	}
	$db->set(requests_in_flight => $hit->{in_flight});
	my @hit_cells = grep { $_->{request} <= $hit->{requests} } @cells;

	# when one request of each clinic's run fails, in one way,
	for my $cell (@hit_cells)
	{
		my ($fault) = @{ $faults{ $cell->{fault} } };

		$cell->{account}->reset;
		$cell->{account}->mutate(remove => \@removed) if $hit->{removed};
		# what ends a run goes on until it has ended: on a slow machine an answer may
		# come after the request's timeout, and is then asked for again
		$cell->{account}->faults(
			{ %$fault, request => $cell->{request}, times => ends_run($cell) ? 1_000_000 : 1 });
	}
	my $results = sync_all(@cells);

	# then the run is complete, or it has failed as it should, and nothing is lost;
	for my $cell (@hit_cells)
	{
		is(join('; ', complaints($hit, $cell, $results->{ $cell->{org} })), '',
			"$hit->{name}, request $cell->{request}, $cell->{fault}: $faults{$cell->{fault}}[1]");
	}
	note(sprintf '%s: %d cells', $hit->{name}, scalar @hit_cells);

	# and what is lacking comes with the next run.
	my @lacking = grep { $results->{ $_->{org} }{same} < 1000 } @cells;
	$_->{account}->reset for @lacking;
	$results = sync_all(@lacking);
	is_deeply(
		[ grep { $results->{$_}{run}{status} ne 'completed' || $results->{$_}{same} != 1000 }
			  map { $_->{org} } @lacking ],
		[], "$hit->{name}: " . @lacking . ' clinics have everybody after the next run');
}

$db->finish;
