# With clinisync in shared_preload_libraries, runs that nobody looks after are
# resumed without anybody calling or polling.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = Clinisync->new('main',
	settings => "shared_preload_libraries = 'clinisync'\n"
	  . "max_worker_processes = 8\n"
	  . "max_prepared_transactions = 3\n"
	  . "log_min_messages = debug1\n");
my $node = $db->node;
my @others = map { $db->new_database("db$_") } 1 .. 3;
my @all = ($db, @others);
my $empty = $db->new_database('without_extension', empty => 1);
my %accounts;

# Start a run in a database and hold it after its first page.
sub hold
{
	my ($database) = @_;
	my $account = $database->add_clinic($database->name, patients => 250);

	$account->gates(2);
	$database->start($database->name);
	$account->await_gate(2);
	$database->wait_until(q(SELECT records_success = 100 FROM sync_logs WHERE status = 'running'));
	$accounts{ $database->name } = $account;
}

# Whether each held run goes on to its end, though nobody polls.
sub are_resumed
{
	my ($test, @databases) = @_;

	for my $database (@databases)
	{
		my $org = $database->name;
		my $account = $accounts{$org};

		$account->gates();
		$database->wait_for_runs($org);
		my $run = $database->newest_run($org);
		is($run->{status}, 'completed', "$test: $org: completed");
		is($run->{metadata}{inserted}, 250, "$test: $org: nobody twice");
		$database->is_copy_of($org, $account, "$test: $org");
		is(scalar $account->pages, 4, "$test: $org: only the page under way was fetched again");
		$database->sql('DELETE FROM patients; DELETE FROM sync_logs');
	}
}

sub launchers
{
	return $db->sql(q(SELECT count(*) FROM pg_stat_activity
					   WHERE backend_type = 'clinisync launcher'));
}

# How long a process has been busy, in hundredths of a second.
sub processor_time
{
	my ($pid) = @_;
	my @fields = split ' ', slurp_file("/proc/$pid/stat") =~ s/.*\)//sr;

	return $fields[11] + $fields[12];
}

# Wait until a line is in the server log from some place on.
sub wait_for_log
{
	my ($line, $from) = @_;
	$node->wait_for_log($line, $from);
}

# Given runs in four databases, when the server is restarted, then they are
# resumed, and nobody stays where there is nothing to do.
hold($_) for @all;
$node->restart;
are_resumed('restarted', @all);
is($empty->workers, 0, 'restarted: no worker where there is no extension');
is(launchers(), 1, 'restarted: there is a launcher');

# So it is when the server is stopped at once,
hold($_) for @all;
# a page that is not on disk yet would be fetched again
$db->flush;
$node->stop('immediate');
$node->start;
are_resumed('stopped at once', @all);

# and when a worker is terminated.
hold($db);
my $start = -s $node->logfile;
$db->terminate_worker;
are_resumed('terminated', $db);
wait_for_log(qr/LOG:  the clinisync worker of database "postgres" ended before its syncs had/, $start);

# Given two databases whose runs nobody can read, since a prepared transaction
# has them locked, when the server is restarted, then the others do not wait for
# these, whichever they are; and these go on once they can be read.
for my $places ([ 0, 1, 2, 3 ], [ 2, 3, 0, 1 ])
{
	my @locked = @all[ @$places[ 0, 1 ] ];
	my @free = @all[ @$places[ 2, 3 ] ];

	hold($_) for @all;
	$_->sql("BEGIN; LOCK TABLE sync_logs; PREPARE TRANSACTION '" . $_->name . "'") for @locked;
	$node->restart;
	are_resumed('beside locked databases', @free);
	$_->sql("COMMIT PREPARED '" . $_->name . "'") for @locked;
	are_resumed('unlocked', @locked);
}

# Given a worker that waits for a caller's transaction to end, when it is
# terminated, then another one waits, without being busy; and starts the run.
my $late = $db->add_clinic('late', patients => 10);
my $caller = $db->session;
$caller->query_safe(q(BEGIN; SELECT cliniko_sync_all('late')));
$db->wait_for_workers(1);
$db->terminate_worker;
$db->wait_for_workers(1);
my $before = processor_time($db->worker_pid);
$db->workers for 1 .. 30;
cmp_ok(processor_time($db->worker_pid) - $before, '<', 20, 'waiting for a caller: not busy');
$caller->query_safe('COMMIT');
$caller->quit;
$db->wait_for_runs('late');
is($db->newest_run('late')->{status}, 'completed', 'waiting for a caller: completed');
$db->sql('DELETE FROM patients; DELETE FROM sync_logs');

# Given a database that nobody can connect to any more, when the server is
# restarted, then that is tried again and again, less and less often, and said
# once; the others do not wait for it;
hold($_) for @all;
my $broken = $others[0];
my $path = $node->data_dir . '/base/'
  . $db->sql(q(SELECT oid FROM pg_database WHERE datname = 'db1')) . '/PG_VERSION';
$node->stop;
rename($path, "$path.away") or die $!;
$start = -s $node->logfile;
$node->start;
are_resumed('beside a broken database', @all[ 0, 2, 3 ]);
my $tries = 0;
wait_for_log(qr/(?:not a valid data directory.*?){3}/s, $start);
my $log = slurp_file($node->logfile, $start);
my $said = () = $log =~ /LOG:  the clinisync worker of database "db1" ended before/g;
is($said, 1, 'a broken database: said once');

# and when it can be connected to again, then its run goes on.
rename("$path.away", $path) or die $!;
are_resumed('mended', $broken);

# When there is no slot for a worker, then the launcher waits for one, and says
# so once.
hold($_) for @all;
$node->append_conf('postgresql.conf', 'max_worker_processes = 3');
$db->set(idle_timeout => '1ms');
$_->set(idle_timeout => '1ms') for @others;
$start = -s $node->logfile;
$node->restart;
wait_for_log(qr/LOG:  no background worker slot is free to resume syncs/, $start);
are_resumed('few slots', @all);

# When nothing is left to do, then the launcher is idle in no transaction, and
# has none of a database's statistics to its name.
is( $db->sql(
		q(SELECT state || ' ' || (xact_start IS NULL) || ' ' || (datid IS NULL) FROM pg_stat_activity
		   WHERE backend_type = 'clinisync launcher')),
	'idle true true', 'idle: no transaction, no database');

# When the launcher itself is terminated, then the next one finds what is to do.
hold($db);
$start = -s $node->logfile;
my $launcher = $db->sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'clinisync launcher'));
$db->sql("SELECT pg_terminate_backend($launcher)");
$db->wait_until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $launcher)");
$db->terminate_worker;
are_resumed('another launcher', $db);
is(launchers(), 1, 'another launcher: it is there');

# When pg_upgrade has the server started, then there is no launcher to write.
hold($db);
$node->stop;
my @pg_ctl = ('pg_ctl', '--silent', '--wait', '--pgdata', $node->data_dir);
system_or_bail(@pg_ctl, '--log', $node->logfile, '--options', '-b', 'start');
is(launchers(), 0, 'pg_upgrade: no launcher');
is($db->workers, 0, 'pg_upgrade: no worker');
system_or_bail(@pg_ctl, 'stop');
$node->start;
are_resumed('after pg_upgrade', $db);

# A database that is dropped with its worker in it is forgotten.
my $doomed = $db->new_database('doomed');
hold($doomed);
$db->sql('DROP DATABASE doomed WITH (FORCE)');
is($db->sql(q(SELECT count(*) FROM pg_stat_activity WHERE datname = 'doomed')), 0, 'dropped: gone');

$db->finish;
