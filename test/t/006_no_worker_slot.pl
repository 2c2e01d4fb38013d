# Where no background worker slot is free, the call says so and what to do,
# and leaves nothing behind.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

# Given a server with a single slot,
my $db = Clinisync->new('main',
	settings => "max_worker_processes = 1\nmax_logical_replication_workers = 0\n");
my $account = $db->add_clinic('clinic', patients => 10);

# which the worker of another database has taken,
my $other = $db->new_database('other');
my $holder = $other->add_clinic('holder', patients => 10);
$holder->gates(1);
$other->start('holder');
$holder->await_gate(1);

# when a sync is started, then it is refused with a hint,
my ($code, undef, $error) = $db->node->psql('postgres', q(SELECT cliniko_sync_all('clinic')),
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
isnt($code, 0, 'refused');
like($error, qr/PT503/, 'refused: SQLSTATE');
like($error, qr/^DETAIL:\s+NO_WORKER_AVAILABLE$/m, 'refused: DETAIL');
like($error, qr/^HINT:.*max_worker_processes/m, 'refused: HINT names the setting');

# and there is no run of which nobody would ever take care.
is($db->sql('SELECT count(*) FROM sync_logs'), 0, 'refused: no row was inserted');
is($db->call(q(cliniko_status('clinic')))->{sync_status}, 'never_synced', 'refused: never synced');

# The worker that is there is as useful as ever,
is($other->start('holder')->{message}, 'Sync already running', 'the other database has its worker');
$other->add_clinic('beside', patients => 10);
is($other->sync('beside')->{status}, 'completed', 'and can start more runs');

# and a run whose worker is gone waits without an error until a slot is free.
$db->sql(q(INSERT INTO sync_logs (organization_id, operation_type, status)
		   VALUES ('clinic', 'full_patients', 'running')));
is($db->newest_run('clinic')->{status}, 'running', 'a poll does not fail for want of a slot');
is($account->summary->{requests}, 0, 'nothing runs here');

# When the slot is free again, then the next poll is enough.
$other->set(idle_timeout => '1ms');
$holder->open_gate(1);
$other->wait_for_runs('holder');
$db->wait_until(q(SELECT cliniko_sync_logs('clinic', 1) @> '{"logs": [{"status": "completed"}]}'));
$db->is_copy_of('clinic', $account, 'with a free slot');

$db->finish;
