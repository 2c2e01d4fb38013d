# Starting a sync returns at once, whatever Cliniko does; starting it again
# answers the run that is under way; and what is rolled back has not happened.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use JSON::PP;
use Test::More;

my $db = Clinisync->new('main');
my $client = $db->session;

# Given a Cliniko that hangs, when a sync is started, then the call returns
# while the request is still being held.
my $account = $db->add_clinic('clinic', patients => 120);
$account->gates(1);
my ($answer, $milliseconds) = split /\n/, $client->query_safe(
	q(SELECT clock_timestamp() AS before \gset
	  SELECT cliniko_sync_all('clinic');
	  SELECT extract(milliseconds FROM clock_timestamp() - :'before')));
note("cliniko_sync_all returned after $milliseconds ms");
my $started = decode_json($answer);
my $id = $started->{sync_id};
is_deeply(
	$started,
	{
		success => JSON::PP::true(),
		message => 'Sync started',
		organization_id => 'clinic',
		sync_id => $id,
		operation_type => 'full_patients'
	},
	'a first call starts a run');
$account->await_gate(1);
is($account->summary->{in_flight}, 1, 'Cliniko has not answered yet');

# When it is asked again, then it answers the same run, under either name.
for my $function (qw(cliniko_sync_all cliniko_sync))
{
	my $again = $db->call("$function('clinic')");
	is($again->{sync_id}, $id, "$function again: the same run");
	is($again->{message}, 'Sync already running', "$function again: says so");
	ok($again->{success}, "$function again: succeeds");
}

# When two sessions ask at the same time, then the second one gets the run of
# the first as soon as that is committed.
my $other = $db->add_clinic('other', patients => 10);
$other->gates(1);
my $second = $db->session;
$client->query_safe('BEGIN');
my $first_answer = decode_json($client->query_safe(q(SELECT cliniko_sync_all('other'))));
my $pid = $second->query_safe('SELECT pg_backend_pid()');
$second->query_until(qr/asking/, q(
	\echo asking
	SELECT cliniko_sync_all('other');
));
$db->wait_until("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid");
$client->query_safe('COMMIT');
my $second_answer = decode_json($second->query_safe(''));
is($second_answer->{sync_id}, $first_answer->{sync_id}, 'at the same time: one run');
is($second_answer->{message}, 'Sync already running', 'at the same time: says so');

# When Cliniko answers, then the run completes, and the next call starts another.
$account->open_gate(1);
$other->open_gate(1);
$db->wait_for_runs('clinic', 'other');
is($db->newest_run('clinic')->{status}, 'completed', 'the run completes');
is($db->newest_run('clinic')->{id}, $id, 'and was the only one');
my $run = $db->sync('clinic');
isnt($run->{id}, $id, 'the next call starts another run');

# When a run is cancelled, then it ends at once, what it stored stays, and the
# next one can begin while Cliniko still hangs.
$account = $db->add_clinic('cancelled', patients => 250);
$account->gates(2);
$id = $db->start('cancelled')->{sync_id};
$db->wait_until('SELECT count(*) = 100 FROM patients WHERE organization_id = $$cancelled$$');
$answer = $db->call(q(cliniko_cancel_sync('cancelled')));
is($answer->{sync_id}, $id, 'cancelled: answers which run');
$run = $db->newest_run('cancelled');
is($run->{status}, 'failed', 'cancelled: failed');
is($run->{metadata}{error_type}, 'SYNC_CANCELLED', 'cancelled: error_type');
ok(@{ $run->{metadata}{errors} }, 'cancelled: errors');
ok(defined $run->{completed_at}, 'cancelled: completed_at');
is($run->{records_success}, 100, 'cancelled: counters are kept');
$run = $db->sync('cancelled');
is($run->{status}, 'completed', 'after a cancelled run: completed');
is_deeply([ @{ $run->{metadata} }{qw(unchanged inserted)} ],
	[ 100, 150 ], 'after a cancelled run: only the rest is new');
$db->is_copy_of('cancelled', $account, 'after a cancelled run');

# Given that no worker is there, when the call is rolled back, then the worker
# that it asked for finds nothing to do.
$db->terminate_worker;
$db->set(idle_timeout => '1ms');
my $undone = $db->add_clinic('undone', patients => 10);
$client->query_safe('BEGIN');
$client->query_safe(q(SELECT cliniko_sync_all('undone')));
$db->wait_for_workers(1);
is($undone->summary->{requests}, 0, 'not yet committed: nothing runs');
$client->query_safe('ROLLBACK');
$db->wait_for_workers(0);
is($undone->summary->{requests}, 0, 'rolled back: nothing ran');
is($db->call(q(cliniko_sync_logs('undone')))->{total_count}, 0, 'rolled back: no run');

# nor does one that is there already, and the same for a savepoint;
$account->reset;
$account->gates(1);
$db->start('cancelled');
$account->await_gate(1);
$client->query_safe('BEGIN');
$client->query_safe(q(SELECT cliniko_sync_all('undone')));
$client->query_safe('ROLLBACK');
$client->query_safe('BEGIN');
$client->query_safe('SAVEPOINT s');
$client->query_safe(q(SELECT cliniko_sync_all('undone')));
$client->query_safe('ROLLBACK TO s');
$client->query_safe('COMMIT');
$account->open_gate('all');
$db->wait_for_runs('cancelled');
$db->wait_for_workers(0);
is($undone->summary->{requests}, 0, 'rolled back beside a worker: nothing ran');

# and what is committed does run, also in the transaction whose savepoint took
# the worker back that had been asked for first.
$client->query_safe('BEGIN');
$client->query_safe('SAVEPOINT s');
$client->query_safe(q(SELECT cliniko_sync_all('undone')));
$db->wait_for_workers(1);
$client->query_safe('ROLLBACK TO s');
$db->wait_for_workers(0);
$client->query_safe(q(SELECT cliniko_sync_all('undone')));
$client->query_safe('COMMIT');
$db->wait_for_runs('undone');
is($db->newest_run('undone')->{status}, 'completed', 'committed: completed');

$client->quit;
$second->quit;
$db->finish;
