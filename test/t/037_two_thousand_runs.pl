# A worker that has done two thousand runs uses as much memory as one that has done
# some hundreds, and as many descriptors.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

# Given a server whose processes tell how much they have allocated (allocated.c),
my $directory = PostgreSQL::Test::Utils::tempdir();
system_or_bail('cc', '-O2', '-shared', '-fPIC', '-o', "$directory/allocated.so", "$FindBin::RealBin/allocated.c");
my $db = Clinisync->new('main',
	environment => { LD_PRELOAD => "$directory/allocated.so", ALLOCATED_DIRECTORY => $directory });
$db->set(page_size => 20, idle_timeout => '1d');

# clinics, of which some have all their patients in a page, and one has a bad record;
my @orgs = map { "clinic$_" } 1 .. 40;
my %accounts = map { my $org = $orgs[$_]; $org => $db->add_clinic($org, patients => 15 + $_ % 3 * 15) }
  0 .. $#orgs;
$accounts{clinic7}->mutate(set => { id => "$_", fields => { date_of_birth => '2023-02-31' } })
  for map { $_->{id} } $accounts{clinic7}->truth->[3];

# and a quarter whose every run fails, and another whose every run is cancelled, since
# nothing that it asks for ever arrives.
my @refused = @orgs[ 10 .. 19 ];
my @stuck = @orgs[ 20 .. 29 ];
$accounts{$_}->faults({ kind => 'status', status => 401, request => 'every' }) for @refused;
$accounts{$_}->faults({ kind => 'truncated_json', request => 'every' }) for @stuck;

# How much memory the worker uses, and how much of its own is resident, in kB, and how
# many descriptors it has, when it has waited for work for a while. A memory context takes
# blocks with malloc(), and each is twice as large as the last, so that only how much of
# them is used shows whether it has grown.
sub size
{
	my $worker = q(FROM pg_stat_activity WHERE backend_type = 'clinisync worker');
	$db->wait_until("SELECT count(*) = 1 $worker AND query = 'waiting for work'
						AND wait_event = 'Extension' AND state_change < now() - interval '1 s'");
	my $pid = $db->worker_pid;

	unlink "$directory/$pid";
	kill(POSIX::SIGRTMAX(), $pid) == 1 or die "there is no process $pid\n";
	$db->wait_until("SELECT (pg_stat_file('$directory/$pid', true)).size IS NOT NULL");
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB$/m;
	my @descriptors = glob("/proc/$pid/fd/*");

	# this has the worker look for work, so it is the last
	my $log = -s $db->node->logfile;
	my $total = qr/Grand total: (\d+) bytes in .* (\d+) used$/m;
	$db->sql("SELECT pg_log_backend_memory_contexts($pid)");
	$db->node->wait_for_log($total, $log);
	my ($blocks, $used) = slurp_file($db->node->logfile, $log) =~ $total;

	return {
		pid => $pid,
		used => int((slurp_file("$directory/$pid") - $blocks + $used) / 1024),
		resident => $kb,
		descriptors => scalar @descriptors
	};
}

# Run so many rounds, in each of which every clinic is synced, with changes.
sub rounds
{
	my ($count) = @_;
	my %is_stuck = map { $_ => 1 } @stuck;

	for (1 .. $count)
	{
		$accounts{clinic1}->mutate(edit => 5);
		$accounts{clinic2}->mutate(remove => 1, add => 1);
		$db->start_all(@orgs);
		$db->wait_for_runs(grep { !$is_stuck{$_} } @orgs);
		$db->sql(join ';', map { "SELECT cliniko_cancel_sync('$_')" } @stuck);
		$db->wait_for_runs(@stuck);
	}
}

# Given a worker that has done 1,000 runs, when it has done as many more,
rounds(25);
my $before = size();
rounds(25);
my $after = size();
note("$_: $before->{$_} after 1,000 runs, $after->{$_} after 2,000")
  for qw(used resident descriptors);

# then it is the same worker, and uses no more, but for what its caches and connections
# happen to hold: had each run left half a kilobyte, or each that failed or was cancelled
# two, that would show. What is resident beyond that is what the allocator keeps of
# memory that was freed, which may be 8 MB (KEPT_MEMORY in worker.c), and depends on which
# runs were side by side. What goes up and down is how many of its connections, two for
# each clinic at most, are still open.
is($db->sql('SELECT count(*) FROM sync_logs'), 2000, '2,000 runs were done');
is($after->{pid}, $before->{pid}, 'by one worker');
SKIP:
{
	skip 'a sanitizer has a malloc() of its own', 2 if $ENV{SANITIZE};
	cmp_ok($after->{used} - $before->{used}, '<', 400, 'it uses no more memory');
	cmp_ok($after->{resident} - $before->{resident}, '<', 8 * 1024, 'nor is much more of it resident');
}
cmp_ok($after->{descriptors}, '<', 40 + 2 * @orgs, 'nor does it use more descriptors');
is($db->sql(
	q(SELECT CASE status WHEN 'failed' THEN metadata ->> 'error_type' ELSE status END COLLATE "C", count(*)
		FROM sync_logs GROUP BY 1 ORDER BY 1)),
	"CLINIKO_AUTH_FAILED|500\nSYNC_CANCELLED|500\ncompleted|1000", 'nothing failed but what had to');

$db->finish;
