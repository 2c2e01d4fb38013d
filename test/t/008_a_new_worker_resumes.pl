# A run whose worker is gone, for whatever reason, is resumed by the next call
# or poll where it was: nothing is stored twice, nothing is missing, and
# nothing is fetched twice but the page that was under way.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');
$db->set(page_size => 20);

# Sync a new clinic of 130 patients until so many are stored and the fourth
# request is held back; answers the account and the run by then.
sub sync_half
{
	my ($org, $stored, %options) = @_;
	my $account = $db->add_clinic($org, patients => 124, archived => 6, %options);

	$account->gates(4);
	$db->start($org);
	$account->await_gate(4);
	$db->wait_until("SELECT records_success >= $stored FROM sync_logs WHERE organization_id = '$org'");
	return ($account, $db->newest_run($org));
}

# Check that the run went on to its end as if nothing had happened.
sub is_resumed
{
	my ($org, $account, $before) = @_;
	$db->wait_for_runs($org);
	my $run = $db->newest_run($org);
	my @pages = $account->pages;
	my %times;

	is($run->{id}, $before->{id}, "$org: the same run");
	is($run->{status}, 'completed', "$org: completed");
	Clinisync::is_accounted_for($run, 130, $org);
	is($run->{metadata}{inserted}, 130, "$org: all are inserted, each once");
	is($run->{metadata}{progress_percent}, 100, "$org: 100 percent");
	$db->is_copy_of($org, $account, $org);

	$times{$_}++ for @pages;
	is_deeply([ grep { $times{$_} > 1 } sort keys %times ],
		[ $pages[3] ], "$org: only the page under way was fetched again");
	is(scalar @pages, 8, "$org: so many requests");
}

# Given a run in the middle, when its worker is terminated, then the run is
# still there,
my ($account, $before) = sync_half('by_logs', 60);
$db->terminate_worker;
is($db->sql('SELECT status FROM sync_logs'), 'running', 'terminated: still running');
is($db->workers, 0, 'terminated: nobody looks after it');
$account->gates();

# and the poll of a front end has it go on.
my $poll = $db->newest_run('by_logs');
is($poll->{records_success}, 60, 'the poll shows what is stored');
is_resumed('by_logs', $account, $before);

# So does one of the status,
($account, $before) = sync_half('by_status', 60);
$db->terminate_worker;
$account->gates();
is($db->call(q(cliniko_status('by_status')))->{sync_status}, 'running', 'status: running');
is_resumed('by_status', $account, $before);

# so does asking for a sync,
($account, $before) = sync_half('by_call', 60);
$db->terminate_worker;
$account->gates();
is_deeply(
	[ @{ $db->start('by_call') }{qw(sync_id message)} ],
	[ $before->{id}, 'Sync already running' ],
	'call: the same run');
is_resumed('by_call', $account, $before);

# so does asking for one of another clinic,
($account, $before) = sync_half('by_other', 60);
$db->terminate_worker;
$account->gates();
$db->add_clinic('another', patients => 1);
$db->start('another');
is_resumed('by_other', $account, $before);

# so does what happens after a crash of the whole server.
($account, $before) = sync_half('by_crash', 60);
$db->flush;
$db->node->stop('immediate');
$account->gates();
$db->node->start;
is($db->newest_run('by_crash')->{records_success}, 60, 'crash: what was stored is stored');
is_resumed('by_crash', $account, $before);

# A crash may take back batches that were not on disk yet, but only as a whole:
# what the run says is what is in the table, and it goes on from there.
$db->node->append_conf('postgresql.conf', "wal_writer_delay = 10s\n");
$db->node->restart;
($account, $before) = sync_half('by_loss', 60);
$db->node->stop('immediate');
$account->gates();
$db->node->start;
my $left = $db->sql(q(SELECT records_success FROM sync_logs WHERE organization_id = 'by_loss'));
is($left, $db->stored('by_loss'), 'loss: the run says what is there');
note("loss: $left of $before->{records_success} are left");
$db->newest_run('by_loss');
$db->wait_for_runs('by_loss');
my $run = $db->newest_run('by_loss');
is_deeply([ @$run{qw(id status)}, $run->{metadata}{inserted} ],
	[ $before->{id}, 'completed', 130 ], 'loss: the same run, with everybody once');
$db->is_copy_of('by_loss', $account, 'loss');

# What has ended stays so.
$db->add_clinic('by_end', patients => 130);
$run = $db->sync('by_end');
$db->node->stop('immediate');
$db->node->start;
is_deeply([ @{ $db->newest_run('by_end') }{qw(id status)} ], [ $run->{id}, 'completed' ],
	'end: what was completed before a crash is completed');
is($db->stored('by_end'), 130, 'end: with everybody');

# It is no different where pages are fetched by created_at, each of which
# begins with where the one before it ended.
($account, $before) = sync_half('by_creation', 35, sort_by_id => 'rejected');
$db->terminate_worker;
$account->gates();
$db->newest_run('by_creation');
$db->wait_for_runs('by_creation');
$run = $db->newest_run('by_creation');
is($run->{id}, $before->{id}, 'by creation: the same run');
is($run->{status}, 'completed', 'by creation: completed');
Clinisync::is_accounted_for($run, 130, 'by creation');
is($run->{metadata}{inserted}, 130, 'by creation: all are inserted, each once');
$db->is_copy_of('by_creation', $account, 'by creation');

$db->finish;
