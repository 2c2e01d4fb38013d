# A run that is committed in the very moment in which the idle worker retires
# is picked up all the same: by that worker, or by another.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

my $patience = $PostgreSQL::Test::Utils::timeout_default;
my $db = Clinisync->new('main');
my $client = $db->session;

# Given a worker that retires soon after it has nothing to do any more,
$db->set(idle_timeout => '10ms');
$db->add_clinic('clinic', patients => 1);

# when 200 runs are started, one after another, each as long after the end of
# the one before as it took the worker to retire: a little longer if the worker
# was still there the last time, a little less if another had to come, and by more
# the more often that was so; so that, on any machine, most calls meet it in the
# moment of its leaving. Then every run ends. The
# table is polled and not cliniko_sync_logs(), which would make good what was
# lost.
my $same = $client->query_safe(
	qq(CREATE TEMP TABLE met (same boolean);
	DO \$\$
	DECLARE
		pause interval = '10 ms';
		least_step CONSTANT interval = '0.02 ms';
		step interval = least_step;
		stayed boolean;
		stayed_before boolean;
		deadline timestamptz;
		worker int;
		last_worker int;
	BEGIN
		FOR i IN 1..200 LOOP
			PERFORM cliniko_sync_all('clinic');
			COMMIT;
			worker = NULL;
			deadline = clock_timestamp() + interval '$patience s';
			WHILE EXISTS (SELECT FROM sync_logs WHERE status = 'running') LOOP
				SELECT coalesce(max(pid), worker) INTO worker FROM pg_stat_activity
				 WHERE backend_type = 'clinisync worker';
				COMMIT;
				IF clock_timestamp() > deadline THEN
					RAISE EXCEPTION 'run % was not picked up', i;
				END IF;
			END LOOP;
			deadline = clock_timestamp() + pause;
			stayed = worker IS NOT DISTINCT FROM last_worker;
			step = CASE WHEN stayed = stayed_before THEN step * 1.5 ELSE greatest(step / 2, least_step) END;
			pause = CASE WHEN stayed THEN pause + step ELSE greatest(pause - step, '0') END;
			INSERT INTO met VALUES (stayed);
			stayed_before = stayed;
			last_worker = worker;
			WHILE clock_timestamp() < deadline LOOP
			END LOOP;
		END LOOP;
	END \$\$;
	SELECT count(*) FROM met WHERE same));
is($db->sql(q(SELECT count(*) FROM sync_logs WHERE status = 'completed')),
	200, '200 runs completed');
note("$same calls met the worker of the run before");
cmp_ok($same, '>', 20, 'some calls met the old worker');
cmp_ok($same, '<', 180, 'some calls needed another');

# Given a call that has found a worker, when that worker has nothing else to
# do before the call is committed, then it stays until then.
my $account = $db->add_clinic('holder', patients => 1);
$account->gates(1);
$db->start('holder');
$account->await_gate(1);
$client->query_safe('BEGIN');
$client->query_safe(q(SELECT cliniko_sync_all('clinic')));
$account->open_gate(1);
$db->wait_for_runs('holder');
$client->query_safe('COMMIT');
$db->wait_for_runs('clinic');
is($db->newest_run('clinic')->{status}, 'completed', 'committed after the last work: completed');
$db->wait_for_workers(0);
pass('then the worker retires');

$client->quit;
$db->finish;
