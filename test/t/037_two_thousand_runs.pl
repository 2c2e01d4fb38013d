# A worker that has done two thousand runs is as large as one that has done some
# hundreds, and holds as many descriptors.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = Clinisync->new('main');
$db->set(page_size => 20);
my @orgs = map { "clinic$_" } 1 .. 40;
# some whose patients all fit a page, and some with a bad record
my %accounts = map { my $org = $orgs[$_]; $org => $db->add_clinic($org, patients => 15 + $_ % 3 * 15) }
  0 .. $#orgs;
$accounts{clinic7}->mutate(set => { id => "$_", fields => { date_of_birth => '2023-02-31' } })
  for map { $_->{id} } $accounts{clinic7}->truth->[3];

# How much memory of its own the worker has resident, in kB, and how many
# descriptors.
sub size
{
	my $pid = $db->sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'clinisync worker'));
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB$/m;
	my @descriptors = glob("/proc/$pid/fd/*");

	return ($kb, scalar @descriptors, $pid);
}

# Run so many rounds, in each of which every clinic is synced, with changes, with
# failures that pass, with a clinic that fails, and with one that is cancelled.
sub rounds
{
	my ($count) = @_;

	for my $round (1 .. $count)
	{
		$accounts{clinic1}->mutate(edit => 5);
		$accounts{clinic2}->mutate(remove => 1, add => 1);
		$accounts{clinic3}->faults({ kind => 'truncated_json', request => 'every', times => 1 })
		  if $round == 1;
		$accounts{clinic4}->faults({ kind => 'status', status => 401, request => 'every' });
		$accounts{clinic3}->reset if $round == 2;
		$db->start_all(@orgs);
		$db->wait_for_runs(grep { $_ ne 'clinic3' } @orgs);
		# whose requests fail for ever in the first round
		$db->call(q(cliniko_cancel_sync('clinic3'))) if $round == 1;
		$db->wait_for_runs('clinic3');
	}
}

# Given a worker that has done 1,000 runs, when it has done as many more,
rounds(25);
my ($kb_before, $descriptors_before, $pid_before) = size();
rounds(25);
my ($kb, $descriptors, $pid) = size();
note("$kb_before kB and $descriptors_before descriptors after 1,000 runs, "
	  . "$kb kB and $descriptors after 2,000");

# then it is the same worker, and no larger: what goes up and down is how many of
# its connections, two for each clinic at most, are still open.
is($db->sql('SELECT count(*) FROM sync_logs'), 2000, '2,000 runs were done');
is($pid, $pid_before, 'by one worker');
cmp_ok($kb - $kb_before, '<', 1024, 'its resident size is flat') unless $ENV{SANITIZE};
cmp_ok($descriptors, '<', 40 + 2 * @orgs, 'so is its number of descriptors');
is($db->sql(q(SELECT count(*) FROM sync_logs WHERE status = 'failed'
	AND organization_id NOT IN ('clinic3', 'clinic4'))), 0, 'nothing failed but what had to');

$db->finish;
