# Real jobs of pg_cron start the sync of every clinic that is enabled, each
# once and whatever becomes of the others; and a role of level admin is enough.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

Clinisync::need_pg_cron();
my $db = Clinisync->new('main', settings => "max_worker_processes = 16\n");
my $node = $db->node;

# Given a server with pg_cron, which connects as the job's role like any client,
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'pg_cron'\ncron.database_name = 'postgres'\n"
	  . "cron.host = '" . $node->host . "'\n");
$node->restart;
$db->sql(q(CREATE EXTENSION pg_cron; CREATE ROLE nightly LOGIN; CREATE ROLE desk LOGIN;));

# Fill a database with clinics: two that are enabled, one that is not, one that
# is disconnected, one whose run is under way, and one whose key is wrong.
my @enabled = qw(first second under_way wrong_key);
my %accounts;

sub fill
{
	my ($database, $synced) = @_;
	my $name = $database->name;
	my %here;

	for my $org (qw(first second disabled disconnected under_way))
	{
		my $account = $database->cliniko->account("KEY-$name-$org-au1", patients => 120);
		$database->connect($org, $account);
		$here{$org} = $account;
	}
	if ($synced)
	{
		$database->start_all(keys %here);
		$database->wait_for_runs(keys %here);
	}
	$_->reset for values %here;
	$database->sql(
		q(SELECT cliniko_connect('wrong_key', 'NobodysKey-au1');
		  SELECT cliniko_set_sync_enabled('disabled', false);
		  SELECT cliniko_disconnect('disconnected');
		  SELECT cliniko_grant('nightly', 'admin');
		  SELECT cliniko_grant('desk', 'manager')));
	# a minute must not be too long to wait for an answer
	$database->set(request_timeout => '10min');
	$here{under_way}->gates(2);
	$database->start('under_way');
	$here{under_way}->await_gate(2);
	$accounts{$name} = \%here;
}

my $changes = $db->new_database('changes');
my $whole = $db->new_database('whole');
fill($db, 0);
fill($changes, 1);
fill($whole, 0);
$accounts{changes}{first}->mutate(edit => 2, add => 1);
my %before = map { $_->name => $_->sql('SELECT max(id) FROM sync_logs') } $db, $changes, $whole;

# when jobs are due: one that a role of level admin has scheduled for itself,
# one of a superuser's, for changes only, one of that role's in another
# database, and one of a role that may not do that,
my $command = 'SELECT cliniko_sync_all_organizations()';
$db->sql('GRANT USAGE ON SCHEMA cron TO nightly');
$db->as_role('nightly', {}, "SELECT cron.schedule('own', '* * * * *', '$command')");
$db->sql(
	qq(SELECT cron.schedule_in_database('changes', '* * * * *',
			'SELECT cliniko_sync_all_organizations(only_changes => true)', 'changes');
	   SELECT cron.schedule_in_database('whole', '* * * * *', '$command', 'whole', 'nightly');
	   SELECT cron.schedule_in_database('refused', '* * * * *', '$command', 'changes', 'desk');));
is($db->sql(q(SELECT username FROM cron.job WHERE jobname = 'own')), 'nightly',
	'the role has a job of its own');
$db->wait_until(
	q(SELECT count(DISTINCT jobid) = 4 FROM cron.job_run_details
	   WHERE status IN ('succeeded', 'failed')));

# then (and for this test, no second time)
$db->sql('SELECT cron.unschedule(jobid) FROM cron.job');
my $job = 'SELECT string_agg(DISTINCT d.status, $$,$$) FROM cron.job_run_details d WHERE ';
is($db->sql("$job username = 'nightly' AND database = 'postgres'"), 'succeeded',
	'the job of a role of level admin succeeds');
is($db->sql("$job username = 'nightly' AND database = 'whole'"), 'succeeded',
	'so does the one in another database');
is($db->sql("$job command LIKE '%only_changes%'"), 'succeeded', q(so does the superuser's));
is($db->sql("$job username = 'desk'"), 'failed', 'the job of a role that may not fails');
like($db->sql(q(SELECT return_message FROM cron.job_run_details WHERE username = 'desk')),
	qr/permission denied for function cliniko_sync_all_organizations/, 'and says why');
is($db->sql('SELECT count(*) FROM cron.job_run_details'), 4, 'each job ran once');

for my $database ($db, $changes, $whole)
{
	my $name = $database->name;
	my $account = $accounts{$name};
	my $operation_type = $name eq 'changes' ? 'incremental_patients' : 'full_patients';
	my $new = "FROM sync_logs WHERE id > $before{$name}";

	# every clinic that is enabled was started, once, but for the one whose run
	# was under way, which is still the same run;
	$database->wait_for_runs(qw(first second wrong_key));
	is($database->sql("SELECT string_agg(organization_id, ',' ORDER BY organization_id) $new"),
		'first,second,wrong_key', "$name: each that is enabled was started once");
	is($database->sql("SELECT status FROM sync_logs WHERE organization_id = 'under_way'
						ORDER BY id DESC LIMIT 1"), 'running', "$name: the run under way goes on");
	is($account->{$_}->summary->{requests}, 0, "$name: nothing was asked of $_")
	  for qw(disabled disconnected);

	# what cannot work fails by itself,
	my $run = $database->newest_run('wrong_key');
	is_deeply([ $run->{status}, $run->{metadata}{error_type} ],
		[qw(failed CLINIKO_AUTH_FAILED)], "$name: a wrong key is told");

	# and the others complete.
	for my $org (qw(first second))
	{
		$run = $database->newest_run($org);
		is_deeply([ @$run{qw(status operation_type)} ], [ 'completed', $operation_type ],
			"$name: $org completed");
		$database->is_copy_of($org, $account->{$org}, "$name: $org");
	}
	$account->{under_way}->open_gate(2);
	$database->wait_for_runs('under_way');
	is($database->newest_run('under_way')->{id}, $before{$name}, "$name: it was one run");
	is($database->newest_run('under_way')->{status}, 'completed', "$name: which completed");
	$database->is_copy_of('under_way', $account->{under_way}, "$name: under_way");
}
is($changes->newest_run('first')->{records_processed}, 3, 'only what changed was synced');

$db->finish;
