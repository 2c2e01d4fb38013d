# Whatever happens to an account and to those who sync it, and in whatever
# combination: a run that is completed has missed nobody, one that has failed
# says why, nothing that was stored disappears, and in the end everybody is there.
#
# What happens is drawn at random, in rounds of many accounts side by side. A round
# is drawn from one number, its seed: there are as many rounds as there are seeds
# below, and they are the same each time. SEED=... takes that number and those that
# follow it instead. With SOAK_SECONDS (make soak), rounds go on until these are over,
# from SEED or else from the time of day. What a seed does not decide is how requests
# and deaths fall together: it may take a few tries until a round fails again.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use JSON::PP;
use List::Util qw(max min shuffle);
use Test::More;

my $accounts_in_a_round = 20;
my $most_held = 4;
my $largest = 400;
my $most_removed = 5;
my $most_drifts = 3;
# each has once found something
my @seeds = (101_017, 200_004, 825_065);

my $db = Clinisync->new('main');
$db->set(
	max_response_size => '2MB',
	# a request that is held or stalls is given up and sent again
	request_timeout => '2s',
	idle_timeout => '50ms');

#
# What is drawn
#

# A whole number of this range.
sub between
{
	my ($low, $high) = @_;
	return $low + int(rand($high - $low + 1));
}

sub pick { return $_[ rand @_ ]; }
sub chance { return rand() < $_[0]; }

# Every fault that the simulator knows.
my @faults = (
	(map { { kind => 'status', status => $_ } } 400, 401, 403, 404, 408, 422, 429, 500, 502, 503, 504),
	{ kind => 'status', status => 200, body => '<html>' },
	{ kind => 'status', status => 200, body => 'null' },
	(map { { kind => 'wrong_total', by => $_ } } -100, -2, -1, 1, 2, 100),
	(map { { kind => 'delay', ms => $_ } } 20, 300),
	{ kind => 'rate_limited', seconds => 0 },
	{ kind => 'rate_limited', seconds => 0, retry_after => '1' },
	{ kind => 'big', megabytes => 3 },
	{ kind => 'gzip_bomb', megabytes => 8 },
	map { { kind => $_ } }
	  qw(bad_id disorder duplicate empty_object html latin1 lone_surrogate no_patients nul redirect
	  repeat_page reset_before_headers reset_mid_body stall truncated_json));

# An account of any size and kind.
sub draw_account
{
	my $size = chance(0.3) ? between(0, 30) : between(0, $largest);
	my $archived = chance(0.5) ? between(0, $size) : 0;
	return (
		patients => $size - $archived,
		archived => $archived,
		merged => between(0, $archived),
		ids => pick(qw(snowflake old mixed)),
		absent => pick(qw(null empty missing mixed)),
		sort_by_id => pick(qw(honoured honoured rejected ignored)),
		gzip => pick(JSON::PP::true, JSON::PP::false),
		latency_ms => pick(0, 0, between(1, 20)),
		seed => between(1, 1_000_000),
		# there are many, and few of them are read twice
		warm => JSON::PP::false);
}

# Faults of some requests from one number on.
sub draw_faults
{
	my ($from, $pages) = @_;
	return map { { %{ pick(@faults) }, request => $from + between(0, $pages), times => between(1, 3) } }
	  1 .. pick(0, 1, 1, 2, 3);
}

# Mutations of patients that come with some requests from one number on. In two
# syncs, they leave somebody: where patients were listed, no run believes that there
# are none.
sub draw_drift
{
	my ($from, $pages, $size) = @_;
	return map {
		my %drift = (request => $from + between(0, $pages));
		$drift{$_} = between(1, $most_removed)
		  for (shuffle(qw(add remove edit archive unarchive)))[ 0 .. between(0, 2) ];
		$drift{remove} = min($drift{remove}, int(max($size - 1, 0) / $most_drifts / 2)) if $drift{remove};
		\%drift
	} 1 .. pick(0, 0, 1, $most_drifts);
}

# What an administrator does while a clinic's request is held.
my %deaths = (
	terminate => sub { $db->terminate_worker },
	interrupt => sub {
		$db->sql(q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'clinisync worker'));
	},
	restart => sub { $db->node->restart },
	crash => sub { $db->node->stop('immediate'); $db->node->start; },
	# is refused where the run has just ended
	cancel => sub { $db->refusal("SELECT cliniko_cancel_sync('$_[0]')") },
	disconnect => sub { $db->call("cliniko_disconnect('$_[0]')") });
my @deaths = (qw(restart crash disconnect), ('terminate') x 4, ('interrupt') x 2, ('cancel') x 3);

#
# What is promised
#

# What was drawn for each clinic, for the log of a failed test.
my %drawn;
my %count = map { $_ => 0 } qw(rounds accounts runs completed failed deaths);

# The patients that the table has of each clinic: {org => {all => {id => 1}, deleted => {id => 1}}}.
sub rows_of_all
{
	my %rows;
	for my $line (split /\n/, $db->sql(
			q(SELECT organization_id, string_agg(cliniko_patient_id::text, ' '),
				string_agg(cliniko_patient_id::text, ' ') FILTER (WHERE deleted_at IS NOT NULL)
			  FROM patients GROUP BY 1)))
	{
		my ($org, $all, $deleted) = split /\|/, $line, -1;
		$rows{$org} = {
			all => { map { $_ => 1 } split / /, $all },
			deleted => { map { $_ => 1 } split / /, $deleted }
		};
	}
	return \%rows;
}

# What of a run contradicts what is promised of all runs.
sub contradictions
{
	my ($run, $account, $before, $rows) = @_;
	my $metadata = $run->{metadata};
	my @now = $account->ids;
	my @wrong;

	$count{runs}++;
	$count{ $run->{status} }++;
	push @wrong, 'a patient who exists is marked as deleted' if grep { $rows->{deleted}{$_} } @now;
	push @wrong, 'completed_at is missing' unless $run->{completed_at};
	if ($run->{status} eq 'completed')
	{
		my %now = map { $_ => 1 } @now;
		my @missing = grep { $now{$_} && !$rows->{all}{$_} } @$before;
		my $sum = $run->{records_failed};

		$sum += $metadata->{$_} for qw(inserted updated unchanged);
		push @wrong, "$sum records are accounted for of $metadata->{patients_found}"
		  if $sum != $metadata->{patients_found} || $sum != $run->{records_processed};
		push @wrong, "missing: @missing" if @missing > $run->{records_failed};
	}
	elsif ($run->{status} eq 'failed')
	{
		push @wrong, 'it does not say why'
		  unless $metadata->{error_type} && $run->{error_details} && @{ $metadata->{errors} };
		push @wrong, 'an internal error' if ($metadata->{error_type} // '') eq 'INTERNAL_ERROR';
	}
	else
	{
		push @wrong, "it is $run->{status}";
	}
	if (@wrong)
	{
		my @requests = map { "$_->{status} $_->{path}" } @{ $account->summary->{log} };
		diag(explain($run, $drawn{ $run->{organization_id} }, \@requests));
	}
	return map { "$run->{organization_id}, run $run->{id}: $_" } @wrong;
}

# Wait until a request of a clinic is held; false where its run ends before.
sub is_held
{
	my ($org, $account, $request) = @_;
	for (1 .. 3000)
	{
		return 1 if $account->summary->{patients_requests} >= $request;
		return 0 unless $db->sql("SELECT count(*) FROM sync_logs WHERE organization_id = '$org' AND status = 'running'");
	}
	die "waited in vain for request $request of $org\n";
}

# Run a sync of each clinic, with deaths while requests at gates are held, and
# check what is promised.
sub sync_all
{
	my ($accounts, $gates, $test) = @_;
	my @orgs = sort keys %$accounts;
	my %before = map { $_ => [ $accounts->{$_}->ids ] } @orgs;

	$db->sql(
		q(DROP TABLE IF EXISTS seen;
		  CREATE TABLE seen AS SELECT organization_id, id, cliniko_patient_id FROM patients));
	$accounts->{$_}->gates($gates->{$_}) for keys %$gates;
	$db->start_all(@orgs);
	for my $org (sort keys %$gates)
	{
		my $death = pick(@deaths);

		next unless is_held($org, $accounts->{$org}, $gates->{$org});
		note("$test: $death, at request $gates->{$org} of $org");
		$deaths{$death}->($org);
		$count{deaths}++;
		$accounts->{$org}->open_gate($gates->{$org});
		# as front ends do
		$db->sql('SELECT count(cliniko_sync_logs(organization_id, 1)) FROM cliniko_organizations');
	}
	$db->wait_for_runs(@orgs);

	my $rows = rows_of_all();
	my $runs = $db->call(
		q(jsonb_object_agg(organization_id, cliniko_sync_logs(organization_id, 1) -> 'logs' -> 0)
		  FROM cliniko_organizations));
	my @wrong = map { contradictions($runs->{$_}, $accounts->{$_}, $before{$_}, $rows->{$_} // {}) } @orgs;
	is(join("\n", @wrong), '', "$test: every run keeps its promises");
	is( $db->sql('SELECT count(*) FROM (TABLE seen EXCEPT SELECT organization_id, id, cliniko_patient_id FROM patients) s'),
		0, "$test: no row disappeared");
	is($db->sql(q(SELECT count(*) FROM sync_logs WHERE status = 'running')), 0, "$test: no run is left over");
	return $runs;
}

# One round, whose every choice follows from its seed.
sub round
{
	my ($round_seed) = @_;
	my $test = "seed $round_seed";
	my @orgs = map { "clinic$_" } 1 .. $accounts_in_a_round;
	my (%accounts, %gates, %sizes);

	# Given accounts of every kind, in an empty table,
	srand($round_seed);
	my $page_size = pick(7, 20, 50, 100);
	my %settings = (
		page_size => $page_size,
		batch_size => pick(5, 50),
		requests_in_flight => pick(1, 2, 4, 16),
		# more than are held
		max_running_syncs => pick($most_held + 2, 64));
	$db->set(%settings);
	$db->sql('TRUNCATE patients, sync_logs') if $count{rounds};
	for my $org (@orgs)
	{
		my %options = draw_account();
		$accounts{$org} = $db->add_clinic($org, %options);
		$sizes{$org} = $options{patients} + $options{archived};
		$drawn{$org} = { %settings, %options };
	}
	$count{rounds}++;
	$count{accounts} += @orgs;

	# when they are synced, twice, through trouble,
	for my $time (qw(first second))
	{
		# some fail at the first trouble, others try again
		$db->set(retry_window => pick(0, '3s', '1h'));
		%gates = ();
		for my $org (@orgs)
		{
			my $pages = max(1, int($sizes{$org} / $page_size));
			my $from = 1;

			$accounts{$org}->reset;
			# nothing goes wrong before the request that is held
			$gates{$org} = $from = between(1, $pages) if keys %gates < $most_held && chance(0.2);
			my @faults = draw_faults($from, $pages + 1);
			my @drift = draw_drift($from, $pages + 1, $sizes{$org});
			$accounts{$org}->faults(@faults);
			$accounts{$org}->mutate(generate_on_request => \@drift);
			$drawn{$org}{$time} = { faults => \@faults, drift => \@drift, gate => $gates{$org} };
		}
		sync_all(\%accounts, \%gates, "$test, $time");
		$db->connect($_, $accounts{$_}) for @orgs;
	}

	# and once more without any, then everybody is there.
	$_->reset for values %accounts;
	$db->set(retry_window => '1h');
	my $runs = sync_all(\%accounts, {}, "$test, calm");
	my $rows = rows_of_all();
	my @wrong;
	for my $org (@orgs)
	{
		my @ids = $accounts{$org}->ids;
		my $run = $runs->{$org};
		my $live = grep { $rows->{$org}{all}{$_} && !$rows->{$org}{deleted}{$_} } @ids;

		push @wrong, "$org: $run->{status}, $run->{records_success} stored, $live of ${\ scalar @ids} there"
		  unless $run->{status} eq 'completed' && $run->{records_success} == @ids && $live == @ids;
	}
	is(join("\n", @wrong), '', "$test, calm: everybody is there");

	# Every field of one of the clinics is as it is in Cliniko.
	my ($small) = sort { $sizes{$a} <=> $sizes{$b} } grep { $sizes{$_} >= 20 } @orgs;
	$db->has_records($small, $accounts{$small}->truth, "$test, calm: every field of $small");
}

my $end = time + ($ENV{SOAK_SECONDS} // 0);
if (defined $ENV{SEED} || defined $ENV{SOAK_SECONDS})
{
	my $first = $ENV{SEED} // time % 1_000_000;
	@seeds = map { $first + $_ } 0 .. $#seeds;
	# while there is time, further ones follow
	$#seeds = 0 if defined $ENV{SOAK_SECONDS};
}
while (@seeds && Test::More->builder->is_passing)
{
	my $seed = shift @seeds;

	round($seed);
	push @seeds, $seed + 1 if time < $end;
}
note("$count{rounds} rounds, $count{accounts} accounts, $count{runs} runs ("
	  . "$count{completed} completed, $count{failed} failed), $count{deaths} deaths");

$db->finish;
