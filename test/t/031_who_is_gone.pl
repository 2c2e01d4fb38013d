# Who was deleted in Cliniko is marked here, and nobody else, ever: it takes a
# complete list that does not show a patient, and Cliniko's word on that patient.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');
$db->set(page_size => 25, retry_window => '3s');

# Make a clinic and sync it; answers the account.
sub synced_clinic
{
	my ($org, %options) = @_;
	my $account = $db->add_clinic($org, %options);

	is($db->sync($org)->{status}, 'completed', "$org: synced");
	$account->reset;
	return $account;
}

# The ids of patients of an account: those at some places of its list.
sub ids
{
	my ($account, @places) = @_;
	return map { $_->{id} } @{ $account->truth }[@places];
}

# The ids of an organisation's patients that are marked as deleted, in order.
sub deleted
{
	my ($org) = @_;
	return [ split /\n/, $db->sql("SELECT cliniko_patient_id FROM patients
		WHERE organization_id = '$org' AND deleted_at IS NOT NULL ORDER BY 1") ];
}

# The requests that named patients.
sub naming
{
	my ($account) = @_;
	return grep { /id:%3D/ } $account->pages;
}

for my $order (qw(honoured rejected ignored))
{
	# Given a clinic of 480 patients of whom Cliniko has lost some, at the
	# ends of its list, at the edges of pages, and a whole page in a row,
	my $org = "sort_$order";
	my $account = synced_clinic($org, patients => 450, archived => 30, sort_by_id => $order);
	my @gone = ids($account, 0, 24, 25, 26, 100 .. 112, 474, 479);
	my @left = grep { my $id = $_->{id}; !grep { $_ eq $id } @gone } @{ $account->truth };

	$account->mutate(remove => \@gone, edit => 3, add => 2);

	# when it is synced, then they are marked, and only they; and the rows stay.
	my $run = $db->sync($org);
	is($run->{status}, 'completed', "$org: completed");
	is_deeply(deleted($org), [ sort { $a <=> $b } @gone ], "$org: who is gone is marked");
	is($run->{metadata}{deleted}, 19, "$org: counted");
	is($run->{metadata}{patients_found}, 463, "$org: of those that Cliniko has");
	is($db->stored($org), 482, "$org: no row was lost");
	is($db->call("cliniko_status('$org')")->{patient_counts}{deleted}, 19, "$org: status");
	is( $db->sql("SELECT bool_and(missing_sync_id = $run->{id} AND deleted_at BETWEEN
			(SELECT started_at FROM sync_logs l WHERE l.id = $run->{id}) AND now())
			FROM patients WHERE organization_id = '$org' AND deleted_at IS NOT NULL"),
		't', "$org: when and by which run is told");

	# When it is synced again, then there is nothing to ask and nothing to write,
	my $before = $db->sql("SELECT string_agg(p.xmin::text, ',' ORDER BY id) FROM patients p
							WHERE organization_id = '$org'");
	$account->reset;
	$run = $db->sync($org);
	is_deeply([ @{ $run->{metadata} }{qw(deleted unchanged)} ], [ 0, 463 ], "$org: again: nothing");
	is(scalar naming($account), 0, "$org: again: nobody is asked for");
	is( $db->sql("SELECT string_agg(p.xmin::text, ',' ORDER BY id) FROM patients p
				   WHERE organization_id = '$org'"),
		$before, "$org: again: nothing is written");

	# and when one of them is back, then it is restored.
	$account->mutate(put => [ { %{ $left[10] }, id => "$gone[5]" } ]);
	$run = $db->sync($org);
	is($run->{metadata}{restored}, 1, "$org: back: restored");
	is(scalar @{ deleted($org) }, 18, "$org: back: not deleted any more");
}

# When Cliniko does not list patients that it has, then they are asked for, and
# stay; and the answer to that is believed only if it shows somebody.
my $account = synced_clinic('hidden', patients => 100);
my @hidden = ids($account, 30, 31);
my $truth = $account->truth;
my @hiding = map {
	my ($request, $total, @places) = @$_;
	{ kind => 'status', status => 200, request => $request,
		body => { patients => [ @$truth[@places] ], total_entries => $total, links => { next => 'https://x' } } }
} [ 1, 98, 0 .. 24 ], [ 2, 73, 25 .. 29, 32 .. 51 ];
$account->faults(@hiding);
my $run = $db->sync('hidden');
is($run->{status}, 'completed', 'hidden: completed');
is_deeply(deleted('hidden'), [], 'hidden: nobody is deleted');
is(scalar naming($account), 1, 'hidden: they were asked for');
is($run->{metadata}{deleted}, 0, 'hidden: nobody is counted');
ok(!exists $run->{metadata}{missing}, 'hidden: nobody is said to be missing');

for my $lie (
	[ 'shows nobody' => { patients => [], total_entries => 0, links => {} } ],
	[ 'shows others' => { patients => [ { id => '1' } ], total_entries => 1, links => {} } ],
	[ 'shows everybody' => { patients => [], total_entries => 100, links => { next => 'https://x' } } ])
{
	my ($name, $body) = @$lie;

	$account->reset;
	$account->faults(@hiding,
		map { { kind => 'status', status => 200, body => $body, request => $_ } } 5 .. 30);
	$run = $db->sync('hidden');
	is_deeply([ $run->{status}, $run->{metadata}{error_type} ],
		[ 'failed', 'INCOMPLETE_ENUMERATION' ], "an answer that $name: not believed");
	is_deeply(deleted('hidden'), [], "an answer that $name: nobody is deleted");
}
$account->reset;
is($db->sync('hidden')->{status}, 'completed', 'hidden: well again');
$db->is_copy_of('hidden', $account, 'hidden');

# When more patients are missing than can be believed, then the run says so and
# nobody is asked for; up to 20 are believed however few there were.
$account = synced_clinic('shrunk', patients => 300);
my @all = ids($account, 0 .. 299);
$account->mutate(remove => [ @all[ 0 .. 20 ] ]);
$run = $db->sync('shrunk');
is($run->{status}, 'completed', '21 of 300 are missing: completed');
is_deeply(deleted('shrunk'), [], '21 of 300 are missing: nobody is deleted');
is(scalar naming($account), 0, '21 of 300 are missing: nobody is asked for');
like($run->{metadata}{errors}[0], qr/More than 20 patients .* clinisync\.max_missing_percent/,
	'21 of 300 are missing: the run says so');
is($run->{records_success}, 279, '21 of 300 are missing: the others are synced');

# When that was meant, then the setting lets it pass.
$db->set(max_missing_percent => 8);
is($db->sync('shrunk')->{metadata}{deleted}, 21, 'meant: marked');
$db->set(max_missing_percent => 5);

$account = synced_clinic('small', patients => 20);
$account->mutate(remove => 20);
$run = $db->sync('small');
is_deeply([ $run->{status}, $run->{metadata}{deleted} ], [ 'completed', 20 ],
	'all 20 of a small clinic: marked');

$account = synced_clinic('emptied', patients => 400);
$account->mutate(remove => 400);
$run = $db->sync('emptied');
is_deeply([ $run->{status}, $run->{metadata}{deleted}, $db->stored('emptied') ],
	[ 'completed', 0, 400 ], 'a list of nobody: nobody is deleted');

# It makes no difference where in the list they are missing: how many can be
# believed is a matter of the whole clinic, also before its first page is stored.
$account = synced_clinic('front', patients => 600);
$account->mutate(remove => [ ids($account, 0 .. 24) ]);
is($db->sync('front')->{metadata}{deleted}, 25, 'the first 25 of 600: marked');
$account->mutate(remove => [ ids($account, 0 .. 159) ]);
$run = $db->sync('front');
is(scalar @{ deleted('front') }, 25, 'the first 160 of 575: nobody is deleted');
is($run->{metadata}{missing}, 160, 'the first 160 of 575: counted');
like($run->{metadata}{errors}[0], qr/More than 21 patients are missing/,
	'the first 160 of 575: the run says so');

# A run that fails, one that is cancelled and one of changes mark nobody.
$account = synced_clinic('partial', patients => 100);
$account->mutate(remove => 10);
$account->faults({ kind => 'status', status => 403, request => 4 });
is($db->sync('partial')->{status}, 'failed', 'partial: failed');
is_deeply(deleted('partial'), [], 'partial: nobody is deleted');
$account->reset;
$account->gates(4);
$db->start('partial');
$account->await_gate(4);
$db->call(q(cliniko_cancel_sync('partial')));
$account->reset;
is_deeply(deleted('partial'), [], 'cancelled: nobody is deleted');
is($db->sync_changes('partial')->{operation_type}, 'incremental_patients', 'changes: a run of them');
is_deeply(deleted('partial'), [], 'changes: nobody is deleted');

# When the worker ends while Cliniko is asked for those who are missing, then
# the next one goes on from there, without the list.
$db->set(page_size => 5);
$account->mutate(remove => 5);
$account->reset;
$account->gates(20);
$db->start('partial');
$account->await_gate(20);
is($db->newest_run('partial')->{metadata}{step}, 'reconciling', 'held: reconciling');
my @before = naming($account);
is(scalar @before, 3, 'held: asked for the third time');
$db->terminate_worker;
$account->open_gate('all');
$run = $db->newest_run('partial');
$db->wait_for_runs('partial');
$run = $db->newest_run('partial');
is_deeply([ $run->{status}, $run->{metadata}{deleted} ], [ 'completed', 15 ], 'resumed: marked');
is(scalar @{ deleted('partial') }, 15, 'resumed: all of them');
my @after = naming($account);
is($after[3], $before[2], 'resumed: with the request that was under way');
is($account->summary->{patients_requests}, 23, 'resumed: without the list');

# When the last patient of the list is deleted just before those are asked for who
# are missing, then the answer is believed all the same.
$db->set(page_size => 25);
$account = synced_clinic('fleeting', patients => 100);
my @fleeting = ids($account, 10, 20, 99);
$account->mutate(
	remove => [ @fleeting[ 0, 1 ] ],
	generate_on_request => { request => 5, remove => [ $fleeting[2] ] });
$run = $db->sync('fleeting');
is_deeply([ $run->{status}, $run->{metadata}{deleted}, $run->{metadata}{retries} ],
	[ 'completed', 2, 0 ], 'fleeting: marked');
$account->reset;
is($db->sync('fleeting')->{metadata}{deleted}, 1, 'fleeting: and the last one with the next run');

# Where the list is in the order of creation, rows whose changes are refused are
# not taken for missing.
$account = synced_clinic('refused', patients => 100, sort_by_id => 'rejected');
$account->mutate(set => [ map { { id => "$_", fields => { date_of_birth => '2023-02-31' } } } ids($account, 0 .. 29) ]);
$run = $db->sync('refused');
is_deeply([ $run->{status}, $run->{records_failed}, $run->{metadata}{missing} ],
	[ 'completed', 30, undef ], 'refused: nobody is missing');
is(scalar naming($account), 0, 'refused: nobody is asked for');
$db->set(page_size => 5);

# Whatever ends the worker or the run at that step, nobody is marked who was not
# confirmed to be gone, and the next run, or the same, marks all.
my %deaths = (
	stopped_at_once => [ 1, sub { $db->node->stop('immediate'); $db->node->start } ],
	stopped_fast => [ 1, sub { $db->node->restart } ],
	extension_dropped => [ 0, sub { $db->sql('DROP EXTENSION clinisync; CREATE EXTENSION clinisync; SELECT cliniko_setup()') } ],
	cancelled => [ 0, sub { $db->call(q(cliniko_cancel_sync('dying'))) } ],
	disconnected => [ 0, sub { $db->call(q(cliniko_disconnect('dying'))) } ]);
my $dying = synced_clinic('dying', patients => 100);
my $gone = 0;
for my $death (sort keys %deaths)
{
	my ($polled, $do) = @{ $deaths{$death} };

	$dying->reset;
	$dying->mutate(remove => 5);
	my $pages = int((100 - $gone - 5) / 5);
	$gone += 5;
	$dying->gates($pages + 1);
	$db->start('dying');
	$dying->await_gate($pages + 1);
	$do->();
	is(scalar @{ deleted('dying') }, $gone - 5, "$death: nobody is marked by that");
	$dying->open_gate('all');
	$db->newest_run('dying') if $polled;
	$db->wait_for_runs('dying');
	$db->connect('dying', $dying);
	is($db->sync('dying')->{status}, 'completed', "$death: then completed");
	is(scalar @{ deleted('dying') }, $gone, "$death: then all are marked");
	is($db->stored('dying'), 100, "$death: every row is there");
}

$db->finish;
