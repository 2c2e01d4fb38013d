# On a standby everything can be read and nothing is started; and when it is
# promoted in the middle of a run, the run is resumed there: nothing is stored
# twice, nothing is missing.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Cluster;
use Test::More;

# How a run comes to go on after the promotion: what the servers are set to,
# and what is done.
my %ways = (
	by_poll => {
		settings => '',
		resume => sub { $_[0]->newest_run('clinic') }
	},
	by_launcher => {
		settings => "shared_preload_libraries = 'clinisync'\n",
		resume => sub { }
	});

# Make a standby of a server that has a synced clinic; answers its database.
sub standby_of
{
	my ($primary, $name) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$primary->node->backup('backup');
	$node->init_from_backup($primary->node, 'backup', has_streaming => 1);
	# the test's way of copying a backup loses the file's mode
	chmod(0600, $node->data_dir . '/clinisync.key') or die $!;
	$node->start;
	return $primary->on($node);
}

# Check that a standby answers what the primary does, and starts nothing.
sub can_be_read_but_not_used
{
	my ($standby, $primary, $test) = @_;

	$primary->node->wait_for_catchup($standby->node);
	for my $call (
		# how long a run has taken goes on between two calls
		q(cliniko_sync_logs('clinic')), q(cliniko_status('clinic') - 'sync_duration'),
		q(cliniko_list_organizations()), q(cliniko_active_patients('clinic', 500)))
	{
		is_deeply($standby->call($call), $primary->call($call), "$test: $call");
	}
	for my $call (
		q(cliniko_sync_all('clinic')), q(cliniko_sync_changes('clinic')),
		q(cliniko_sync_all_organizations()), q(cliniko_cancel_sync('clinic')),
		q(cliniko_connect('clinic', 'KEY-au1')), q(cliniko_disconnect('clinic')),
		q(cliniko_set_sync_enabled('clinic', false)), q(cliniko_rotate_key()),
		q(cliniko_adopt_keys()))
	{
		my $refusal = $standby->refusal("SELECT $call");

		like($refusal, qr/PT503/, "$test: not $call");
		like($refusal, qr/^DETAIL:\s+READ_ONLY_STANDBY$/m, "$test: not $call: DETAIL");
	}
	is($standby->workers, 0, "$test: no worker is there");
}

for my $way (sort keys %ways)
{
	# Given a primary with a synced clinic, and its standby,
	my $primary = Clinisync->new("primary_$way",
		settings => $ways{$way}{settings}, init => { allows_streaming => 1 });
	my $account = $primary->add_clinic('clinic', patients => 145, archived => 5);
	is($primary->sync('clinic')->{status}, 'completed', "$way: the primary syncs");
	my $standby = standby_of($primary, "standby_$way");

	# when the standby is asked, then it answers what it has, and starts nothing;
	can_be_read_but_not_used($standby, $primary, $way);
	is($standby->call(q(cliniko_test_connection('clinic')))->{status}, 'connected',
		"$way: the standby can test the connection, with the key file of the backup");

	# also while the primary is in the middle of a run.
	$account->mutate(add => 250);
	$account->reset;
	# of which the next one is the resumed run's
	$account->gates(3, 4);
	my $id = $primary->start('clinic')->{sync_id};
	$account->await_gate(3);
	$primary->wait_until("SELECT records_success = 200 FROM sync_logs WHERE id = $id");
	$primary->flush;
	can_be_read_but_not_used($standby, $primary, "$way, in a run");
	is($standby->newest_run('clinic')->{status}, 'running', "$way: the standby shows the run");

	# When the primary is lost and the standby promoted, then the run is there,
	$primary->node->stop('immediate');
	$standby->node->promote;
	is($standby->sql("SELECT status || ' ' || records_success FROM sync_logs WHERE id = $id"),
		'running 200', "$way: the promoted server has the run");
	$account->gates();

	# and goes on where it was.
	$ways{$way}{resume}->($standby);
	$standby->wait_for_runs('clinic');
	my $run = $standby->newest_run('clinic');
	my @pages = $account->pages;
	my %times;
	is($run->{id}, $id, "$way: the same run");
	is($run->{status}, 'completed', "$way: completed");
	Clinisync::is_accounted_for($run, 400, $way);
	is_deeply([ @{ $run->{metadata} }{qw(inserted unchanged)} ], [ 250, 150 ], "$way: all are inserted, each once");
	$standby->is_copy_of('clinic', $account, $way);
	$times{$_}++ for @pages;
	is_deeply([ grep { $times{$_} > 1 } sort keys %times ],
		[ $pages[2] ], "$way: only the page under way was fetched again");
	is($standby->sql('SELECT count(*) FROM patients WHERE deleted_at IS NOT NULL'), 0, "$way: nobody is marked");

	# The promoted server is as good as the first was.
	$account->mutate(edit => 3);
	is($standby->sync('clinic')->{metadata}{updated}, 3, "$way: the next run");
	is($standby->sync_changes('clinic')->{status}, 'completed', "$way: and one of what changed");
	my $other = $standby->add_clinic('other', patients => 20);
	$standby->sync('other');
	$standby->is_copy_of('other', $other, "$way: another clinic");
	is($standby->workers, 1, "$way: with one worker");
	$standby->is_quiet;
}
done_testing();
