# One worker keeps hundreds of clinics going side by side, and each database
# has a worker of its own.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = Clinisync->new('main', settings => "log_min_messages = debug1\n");

# Given 200 clinics of 120 patients,
my @accounts = $db->cliniko->accounts(200, patients => 118, archived => 2);
$db->sql(join ';', map { "SELECT cliniko_connect('$_', '$_')" } map { $_->key } @accounts);

# when all are started in one statement, then as many requests as there may be
# runs side by side are in flight together, and all runs complete,
my $log_start = -s $db->node->logfile;
$_->gates(1) for @accounts;
is($db->sql('SELECT count(*) FROM cliniko_sync_all_organizations()'), 200, '200 runs are started');
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
my $held = 0;
$held = grep { $_->summary->{patients_requests} } @accounts while $held < 64 && time < $deadline;
is($held, 64, '64 clinics are asked about together');
cmp_ok($db->cliniko->totals->{in_flight}, '>=', 64, 'and the requests are in flight together');
$_->gates() for @accounts;
$db->wait_until(q(SELECT count(*) = 0 FROM sync_logs WHERE status = 'running'));
is( $db->sql(
		q(SELECT count(*) FROM sync_logs
		   WHERE status = 'completed' AND records_success = 120
			 AND metadata @> '{"inserted": 120, "errors": []}')),
	200, '200 runs completed');
is($db->sql('SELECT string_agg(DISTINCT n::text, $$, $$)
			   FROM (SELECT count(*) n FROM patients GROUP BY organization_id) counts'),
	120, 'every clinic has its 120 patients');
$db->is_copy_of($accounts[$_]->key, $accounts[$_], "clinic $_") for 0, 111, 199;

# by one worker.
my $log = slurp_file($db->node->logfile, $log_start);
my $workers = () = $log =~ /starting background worker process "clinisync worker"/g;
is($workers, 1, 'one worker did it all');

# Given that no worker is there, when clinics are started one after another,
# each in a transaction of its own and faster than a worker can come, then that
# takes no more worker slots than a server has, and one worker is what remains.
$db->terminate_worker;
my $requests = $db->cliniko->totals->{requests};
$db->sql(q(DO $$
	BEGIN
		FOR i IN 1..100 LOOP
			PERFORM cliniko_sync_all('clinic' || i || '-au1');
			COMMIT;
		END LOOP;
	END $$));
$db->wait_until(q(SELECT count(*) = 0 FROM sync_logs WHERE status = 'running'));
is($db->sql(q(SELECT count(*) FROM sync_logs WHERE metadata @> '{"unchanged": 120}')),
	100, '100 runs completed that were started one by one');
# (two pages, and which account it is)
is($db->cliniko->totals->{requests} - $requests, 300, 'no page was fetched twice');
$db->wait_for_workers(1);

# Given that only two may run side by side, when four are started, then the
# others wait for their turn and complete too.
$db->set(max_running_syncs => 2);
my @few = map { $db->add_clinic("few$_", patients => 10) } 1 .. 4;
$_->gates(1) for @few;
$db->start_all(map { "few$_" } 1 .. 4);
$_->await_gate(1) for @few[ 0, 1 ];
is($few[2]->summary->{requests}, 0, 'the third waits');
is($db->newest_run('few3')->{metadata}{step}, 'queued', 'and says so');
$_->open_gate(1) for @few;
$db->wait_for_runs(map { "few$_" } 1 .. 4);
is($db->newest_run("few$_")->{status}, 'completed', "few$_: completed") for 1 .. 4;

# Given two databases, when both are synced, then both are under way at once,
# each by its own worker, and neither sees the other's patients.
my $other = $db->new_database('other');
my $here = $db->add_clinic('same_name', patients => 150);
my $there = $other->cliniko->account('KEY-there-au1', patients => 170);
$other->connect('same_name', $there);
$_->gates(2) for $here, $there;
$_->start('same_name') for $db, $other;
$_->await_gate(2) for $here, $there;
is($_->workers, 1, $_->name . ': one worker') for $db, $other;
$_->open_gate(2) for $here, $there;
$_->wait_for_runs('same_name') for $db, $other;
$db->is_copy_of('same_name', $here, 'postgres');
$other->is_copy_of('same_name', $there, 'other');

$db->finish;
