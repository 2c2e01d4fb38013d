# What clinisync costs: nothing while nothing happens; a poll, whatever there is of
# other clinics and of history, what the clinic's own rows cost; and a run, no more
# requests, transactions, rows and WAL than it needs. All of it is counted, none timed.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

# Nobody but the test vacuums, analyses, or has a transaction here.
my $db = Clinisync->new('main', settings => "autovacuum = off\ncheckpoint_timeout = 1d\n");
my $node = $db->node;

# How many clinics there are, with how many patients each, and how long the history
# is of one of them, which has more than are counted, and of all others together.
# A plan that reads a table whole reads hundreds of times what is allowed here, so
# that a million rows would show no more than these.
my ($clinics, $patients, $history) = (500, 300, 60_000);
my $counted = 10_000;

# The plans, with what they read, of the statements that a call executes.
sub plans
{
	my ($call, $preamble) = @_;
	my ($code, undef, $notices) = $node->psql($db->name,
		"LOAD 'auto_explain';
		 SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;
		 SET auto_explain.log_analyze = on; SET auto_explain.log_buffers = on;
		 SET auto_explain.log_timing = off; SET auto_explain.log_format = json;
		 SET auto_explain.log_level = notice;
		 $preamble SELECT $call");
	die "$call: $notices\n" if $code != 0;
	my @plans = map { decode_json($_) } $notices =~ /NOTICE:  duration: \S+ ms  plan:\n(\{\n.*?^\})/gms;
	# the last is the call itself
	pop @plans;
	return map { $_->{Plan} } @plans;
}

# All nodes of a plan.
sub nodes
{
	my ($plan) = @_;
	return ($plan, map { nodes($_) } @{ $plan->{Plans} // [] });
}

# How many rows, of tables and indexes, plans have read, also those that a filter
# removed; how many buffers; and which nodes read a table in a way that has to
# read it whole.
sub cost
{
	my (@plans) = @_;
	my ($rows, $buffers) = (0, 0);
	my @whole;

	for my $plan (@plans)
	{
		$buffers += $plan->{"Shared $_ Blocks"} for qw(Hit Read);
		for my $scan (grep { $_->{'Node Type'} =~ /^(?:Seq|Index|Index Only|Bitmap Index) Scan$/ } nodes($plan))
		{
			$rows += $scan->{'Actual Loops'} *
			  ($scan->{'Actual Rows'} + ($scan->{'Rows Removed by Filter'} // 0));
			push @whole, "$scan->{'Node Type'} on " . ($scan->{'Relation Name'} // $scan->{'Index Name'})
			  if $scan->{'Node Type'} eq 'Seq Scan' || !$scan->{'Index Cond'};
		}
	}
	return ($rows, $buffers, @whole);
}

# Check what a call reads, as the owner and as a role under row-level security.
sub costs
{
	my ($call, $org, $most_rows, $most_buffers, $test) = @_;
	my %preambles = (owner => '', viewer => Clinisync::request('viewer', { org_id => $org }));

	for my $role (sort keys %preambles)
	{
		my @plans = plans($call, $preambles{$role});
		my ($rows, $buffers, @whole) = cost(@plans);

		cmp_ok(scalar @plans, '>=', 2, "$test, $role: $call: its statements are known");
		is("@whole", '', "$test, $role: $call: by index");
		cmp_ok($rows, '<=', $most_rows, "$test, $role: $call: rows");
		cmp_ok($buffers, '<=', $most_buffers, "$test, $role: $call: buffers");
		note("$test, $role: $call: $rows rows, $buffers buffers");
	}
}

# Given very many patients and logs,
$db->sql(
	qq(CREATE ROLE viewer; SELECT cliniko_grant('viewer', 'viewer');
	   INSERT INTO cliniko_organizations (organization_id)
		SELECT 'clinic' || c FROM generate_series(0, $clinics - 1) c;
	   INSERT INTO patients (organization_id, cliniko_patient_id, first_name, last_name, email,
							 archived_at, deleted_at)
		SELECT 'clinic' || g % $clinics, g, 'Zq' || g, 'Zq', g || '\@clinic.example',
			   CASE WHEN g % 10 = 0 THEN now() END, CASE WHEN g % 13 = 0 THEN now() END
		  FROM generate_series(0, $clinics * $patients - 1) g;
	   INSERT INTO sync_logs (organization_id, operation_type, status)
		SELECT CASE WHEN g % 2 = 0 THEN 'clinic1' ELSE 'clinic' || g / 2 % $clinics END,
			   'full_patients', CASE WHEN g % 2 = 0 OR g % 5 = 0 THEN 'failed' ELSE 'completed' END
		  FROM generate_series(1, 2 * $history) g WHERE g % 2 = 0 OR g / 2 % $clinics <> 1));

# also in a database that has never been analysed, when one polls, then it reads what
# is the clinic's own, in one clinic with an endless history as in another.
my $most = 4 * $patients;
for my $state ('never analysed', 'vacuumed')
{
	$db->sql('VACUUM ANALYZE') if $state eq 'vacuumed';
	# once each entry's row has been looked up, an index alone says what is visible
	my ($count, $probe) = $state eq 'vacuumed' ? (200, 60) : ($counted + 200, 60);

	costs(q(cliniko_sync_logs('clinic1', 1)), 'clinic1', $counted + 5, $count, $state);
	costs(q(cliniko_sync_logs('clinic2', 1)), 'clinic2', 2 * $history / $clinics + 5,
		2 * $history / $clinics + $probe, $state);
	costs(q(cliniko_sync_logs('clinic1', 100, 'failed', 'full_patients')), 'clinic1',
		$counted + 105, $count + 105, $state);
	# what there is none of
	costs($_, 'clinic1', 5, $probe, $state)
	  for q(cliniko_sync_logs('clinic1', 1, 'running')),
	  q(cliniko_sync_logs('clinic1', 1, 'completed')),
	  q(cliniko_sync_logs('clinic1', 1, 'completed', 'full_patients')),
	  q(cliniko_sync_logs('clinic1', 100, NULL, 'incremental_patients'));
	# all of the clinic's patients in one index, and those that are not active in another
	costs(q(cliniko_status('clinic1')), 'clinic1', 1.2 * $patients, $state eq 'vacuumed' ? 2 * $probe : $most, $state);
	costs(q(cliniko_active_patients('clinic1', 50, 0, 'zq1')), 'clinic1', $most, $most, $state);
	costs(q(cliniko_active_patients('clinic1', 50, 100)), 'clinic1', $most, $most, $state);
}

# What is counted is right, and more logs than are counted are told as so many.
is_deeply([ @{ $db->call(q(cliniko_sync_logs('clinic1', 1))) }{qw(total_count has_more)} ],
	[ $counted, JSON::PP::true ], 'an endless history');
is_deeply([ @{ $db->call(q(cliniko_status('clinic0')))->{patient_counts} }{qw(synced_to_database active archived deleted)} ],
	[ split /\|/, $db->sql(
		q(SELECT count(*) FILTER (WHERE deleted_at IS NULL),
				 count(*) FILTER (WHERE deleted_at IS NULL AND archived_at IS NULL),
				 count(*) FILTER (WHERE deleted_at IS NULL AND archived_at IS NOT NULL),
				 count(*) FILTER (WHERE deleted_at IS NOT NULL)
			FROM patients WHERE organization_id = 'clinic0')) ],
	'the status counts every patient');

# What a statement answers that is asked of another database.
sub from_outside
{
	my ($sql) = @_;
	return $node->safe_psql('template1', $sql);
}

# How much the worker has lived: its CPU time in ticks, how often it woke, and the
# transactions of its database.
sub life
{
	my ($pid) = @_;
	my @stat = split ' ', slurp_file("/proc/$pid/stat") =~ s/^.*\) //r;
	my ($woken) = slurp_file("/proc/$pid/status") =~ /^voluntary_ctxt_switches:\s+(\d+)$/m;
	my $transactions = from_outside("SELECT xact_commit + xact_rollback FROM pg_stat_database
									  WHERE datname = '$db->{name}'");

	return { ticks => $stat[11] + $stat[12], woken => $woken, transactions => $transactions };
}

# Given a worker that has nothing to do any more, after a run that made no connection
# which Cliniko might close,
$db->set(contact_email => '', idle_timeout => '1h');
$db->add_clinic('idle', patients => 1);
is($db->sync('idle')->{metadata}{error_type}, 'CONFIGURATION_ERROR', 'idle: there was a run');
my $pid = $db->worker_pid;
my $waits = "SELECT state = 'idle' AND wait_event IS NOT NULL FROM pg_stat_activity WHERE pid = $pid";
$node->poll_query_until('template1', $waits) or die "the worker does not wait\n";

# and nobody else who has to do with its database, when the server is at work,
my $others = "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = '$db->{name}' AND pid <> $pid";
$node->poll_query_until('template1', $others) or die "somebody stays\n";
my $before = life($pid);
from_outside(q(SELECT count(g::text) FROM generate_series(1, 2000000) g));

# then it does nothing, not even wake up.
is_deeply(life($pid), $before, 'idle: no CPU time, no wake-up, no transaction');

# Run a sync to its end, until the worker has left; answers what it took.
$db->set(contact_email => 'tests@clinic.example', idle_timeout => '1ms');
$db->terminate_worker;

sub taken
{
	my ($account) = @_;
	my $counters = q(SELECT jsonb_build_object(
		'xids', pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
		'wal', pg_current_wal_insert_lsn() - '0/0',
		'patients', (SELECT n_tup_ins + n_tup_upd FROM pg_stat_user_tables WHERE relname = 'patients'),
		'logs', (SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'sync_logs'),
		'logs_hot', (SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sync_logs')));
	my $before = decode_json($db->sql($counters));

	$account->reset;
	my $run = $db->sync('clinic');
	$db->wait_for_workers(0);
	my $after = decode_json($db->sql($counters));
	is($run->{status}, 'completed', 'the run is completed');
	return {
		requests => $account->summary->{requests},
		map { $_ => $after->{$_} - $before->{$_} } keys %$after
	};
}

# Check what a run took against what it may take: each request may be one
# transaction that writes the log once, and a few more are its beginning and end.
sub is_within
{
	my ($taken, $most, $test) = @_;

	$most->{logs} = $taken->{requests} + 4;
	$most->{xids} = $taken->{requests} + 6;
	cmp_ok($taken->{$_}, '<=', $most->{$_}, "$test: $_") for sort keys %$most;
	# its end alone is none: the status is in an index
	cmp_ok($taken->{logs} - $taken->{logs_hot}, '<=', 2, "$test: progress is written as HOT updates");
	note("$test: " . join ', ', map { "$_ $taken->{$_}" } sort keys %$taken);
}

# Given a clinic of 1,000, when it is synced for the first time, then a page takes one
# request and one transaction, and a patient one row.
my $account = $db->add_clinic('clinic', patients => 900, archived => 100);
is_within(taken($account), { requests => 12, patients => 1000, wal => 1300 * 1000 },
	'first run');

# When nothing has changed, then no patient is written.
is_within(taken($account), { requests => 12, patients => 0, wal => 60 * 1000 },
	'unchanged');

# When 5 % have, then they are, and no other.
$account->mutate(edit => 50);
is_within(taken($account), { requests => 12, patients => 50, wal => (60 + 200) * 1000 },
	'5 % changed');

# When pages are fetched side by side, then that takes hardly a request more, and
# no more transactions.
$db->set(requests_in_flight => 4);
is_within(taken($account), { requests => 15, patients => 0, wal => 60 * 1000 },
	'side by side, unchanged');
$db->sql('TRUNCATE patients');
is_within(taken($account), { requests => 15, patients => 1000, wal => 1300 * 1000 },
	'side by side, first run');
$db->set(requests_in_flight => 1);

# When the clinic has an endless history, then runs do not read it, and what is
# read is mostly what the test itself is told of, once for each.
$db->sql("INSERT INTO sync_logs (organization_id, operation_type, status)
	SELECT 'clinic', 'full_patients', 'failed' FROM generate_series(1, $history)");
my $read = q(SELECT coalesce(seq_tup_read, 0) + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'sync_logs');
my $reads = $db->sql($read);
taken($account);
is($db->sync_changes('clinic')->{operation_type}, 'incremental_patients', 'an endless history: changes');
$db->wait_for_workers(0);
cmp_ok($db->sql($read) - $reads, '<=', 2 * $counted + 1000, 'an endless history: no run reads it');

$db->finish;
