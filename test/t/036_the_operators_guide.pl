# docs/OPERATIONS.md can be followed to the letter: its queries find trouble, and
# nothing on a healthy system; its statements work from the first to the last;
# and whatever the code says of errors is explained in the documentation.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

Clinisync::need_pg_cron();

my $root = "$FindBin::RealBin/../..";
my $guide = slurp_file("$root/docs/OPERATIONS.md");
my $errors = slurp_file("$root/docs/ERROR_HANDLING.md");
my $openapi = slurp_file("$root/http/openapi.yaml");

# The SQL of the guide, in its order: the section that it is in, what the comment
# in its first line says of it, and the statements.
my @blocks;
for my $section (split /^(?=## )/m, $guide)
{
	my ($title) = $section =~ /^## (.*)/;

	while ($section =~ /^ *```sql\n(.*?)^ *```$/gms)
	{
		my $sql = $1;
		my ($comment) = $sql =~ /\A *-- (.*)/;
		push @blocks, { section => $title, comment => $comment // '', sql => $sql };
	}
}

# Some of these blocks: those of which a condition holds.
sub blocks
{
	my ($condition) = @_;
	return grep { $condition->() } @blocks;
}

# The one block that has these words in it.
sub block
{
	my ($words) = @_;
	my @found = blocks(sub { index($_->{sql}, $words) >= 0 });
	die scalar(@found) . " blocks with $words\n" if @found != 1;
	return $found[0]{sql};
}

# What an alert finds, as monitoring asks: the first column of its rows.
sub alert
{
	my ($database, $block) = @_;
	my $rows = $database->sql("SET ROLE clinic_monitor;\n$block->{sql}");
	return join ' ', map { (split /\|/)[0] } split /\n/, $rows;
}

# What all alerts find, by their names.
sub alerts
{
	my ($database) = @_;
	return { map { $_->{comment} =~ s/^alert: //r => alert($database, $_) }
		  blocks(sub { $_->{comment} =~ /^alert:/ }) };
}

my $db = Clinisync->new('main',
	settings => "shared_preload_libraries = 'pg_cron, clinisync'\n"
	  . "cron.database_name = 'postgres'\n"
	  . "max_worker_processes = 16\n");
my $node = $db->node;

#
# The queries
#

# Given a role for monitoring, made as the guide says, and a healthy system: one
# clinic synced, one whose run is under way and one whose run waits, both for
# hours by now, and one that is connected but disabled,
$db->sql('SELECT cliniko_setup()');
$db->sql(block('CREATE ROLE clinic_monitor'));
my %accounts = map { $_ => $db->add_clinic($_, patients => 120) }
  qw(clinic-1 old bad under_way waiting disabled);
$db->start_all(qw(clinic-1 old bad));
$db->wait_for_runs(qw(clinic-1 old bad));
$db->call(q(cliniko_set_sync_enabled('disabled', false)));
$accounts{under_way}->gates(2);
$accounts{waiting}->faults({ kind => 'rate_limited', seconds => 50, request => 2, times => 1000 });
$db->start_all(qw(under_way waiting));
$accounts{under_way}->await_gate(2);
$db->wait_until(q(SELECT bool_or(organization_id = 'waiting' AND metadata ->> 'step' = 'waiting')
					 AND bool_or(organization_id = 'under_way' AND records_success = 100)
					FROM sync_logs));
$db->sql(q(UPDATE sync_logs SET started_at = started_at - interval '3 hours' WHERE status = 'running';
		   UPDATE sync_logs SET updated_at = updated_at - interval '3 hours'
			WHERE organization_id = 'waiting';
		   UPDATE cliniko_organizations SET created_at = now() - interval '1 year'
			WHERE organization_id NOT IN ('under_way', 'waiting')));

# when the alerts are asked, then none has found anything,
my %nothing = map { $_ => '' } (
	'stalled runs', 'old data', 'never synced', 'failures', 'losses that were not believed',
	'patients that were not stored', 'no launcher');
is_deeply(alerts($db), \%nothing, 'healthy: no alert finds anything');

# and every other query is answered, those for monitoring to its role.
for my $block (blocks(sub { $_->{sql} =~ /\A *(?:--.*\n)? *(?:SELECT|LOAD)\b/ }))
{
	next if $block->{comment} ne '' || $block->{sql} =~ /\b(?:cliniko_\w+|pg_terminate_backend)\(/;
	my ($name) = $block->{sql} =~ /(.*)/;
	my $role = $block->{section} eq 'Monitoring' ? 'SET ROLE clinic_monitor;' : '';

	my ($code, undef, $error) = $node->psql('postgres', "$role\n$block->{sql}", on_error_stop => 1);
	is($code, 0, "answered: $block->{section}: $name") or diag($error);
}

# The overviews show what there is.
my @monitor = ('SET ROLE clinic_monitor', block('AS last_status'));
is(scalar(split /\n/, $db->sql(join ";\n", @monitor)), 6, 'overview: every clinic');
my $under_way = $db->sql(block('AS per_second'));
like($under_way, qr/^under_way\|.*\|storing\|/m, 'overview: what is under way');
like($under_way, qr/^waiting\|.*\|waiting\|.*\|Cliniko's request limit\|20/m, 'overview: what waits');
my $processes = $db->sql(join ";\n", 'SET ROLE clinic_monitor', block('wait_event, xact_start'));
like($processes, qr/^clinisync launcher\|\|\d+\|.*\|idle\|/m, 'overview: the launcher');
like($processes, qr/^clinisync worker\|postgres\|\d+\|.*\|active\|syncing 2 organizations\|/m,
	'overview: the worker');
is(scalar(split /\n/, $db->sql(block('pg_stat_user_tables'))), 3, 'overview: three tables');

# When there is trouble of each kind, then each alert finds its own, and that alone:
# a run that has not said anything for six minutes,
$db->sql(q(UPDATE sync_logs SET updated_at = now() - interval '6 minutes'
			WHERE organization_id = 'under_way'));
# data of more than a day ago,
$db->sql(q(UPDATE sync_logs SET started_at = started_at - interval '27 hours'
			WHERE organization_id = 'old'));
# a clinic that nobody has synced,
$db->add_clinic('new');
$db->sql(q(UPDATE cliniko_organizations SET created_at = now() - interval '25 hours'
			WHERE organization_id = 'new'));
# one whose key may not see patients, and one whose run was cancelled,
$db->add_clinic('refused', patients => 5)
  ->faults({ kind => 'status', status => 403, request => 'every' });
$db->sync('refused');
$db->add_clinic('cancelled', patients => 5)->gates(1);
$db->start('cancelled');
$db->call(q(cliniko_cancel_sync('cancelled')));
# one that has lost more patients than can be believed,
$accounts{'clinic-1'}->mutate(remove => 21);
$db->sync('clinic-1');
# and one with a patient whom the table refuses.
my $id = $accounts{bad}->mutate(add => 1)->{added}[0];
$db->sql("ALTER TABLE patients ADD CHECK (cliniko_patient_id <> $id)");
is($db->sync('bad')->{status}, 'completed', 'trouble: a bad patient costs a patient');

is_deeply(
	alerts($db),
	{   %nothing,
		'stalled runs' => 'under_way',
		'old data' => 'old',
		'never synced' => 'new',
		'failures' => 'CLINIKO_FORBIDDEN',
		'losses that were not believed' => 'clinic-1',
		'patients that were not stored' => 'bad'
	},
	'trouble: each alert finds its own');
like($db->sql(block('alert: stalled runs')), qr/^under_way\|\d+\|storing\|\|00:\d\d:.*\|\d+$/,
	'stalled: since when, and with a worker');
like($db->sql(block('alert: failures')), qr/^CLINIKO_FORBIDDEN\|1\|1\|14\.3\|f\|/,
	'failures: how many, and that they do not pass');
like($db->sql(block('AS first_20')), qr/^21\|\{/, 'missing: who they are');
like($db->sql(block('AS refused')), qr/^waiting\|1\|1\|/, 'rate limits: who met one');

# When the run goes on, then it is stalled no longer.
$accounts{under_way}->open_gate('all');
$db->wait_for_runs('under_way');
is(alerts($db)->{'stalled runs'}, '', 'going on: no alert');

# When the launcher ends, then its alert says so until it is back.
$db->sql(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE backend_type = 'clinisync launcher'));
my $launcher = block('alert: no launcher') =~ s/;\s*\z//r =~ s/\A.*\n//r;
$db->wait_until("SELECT EXISTS ($launcher)");
$db->wait_until("SELECT NOT EXISTS ($launcher)");
pass('launcher: missed, and back');

# When somebody has locked the table, then it is told who.
my $session = $db->session;
$session->query_safe('BEGIN; LOCK TABLE patients IN SHARE MODE');
my $pid = $session->query_safe('SELECT pg_backend_pid()');
like($db->sql(block('FROM pg_locks')), qr/^$pid\|\w+\|idle in transaction\|patients\|ShareLock\|/,
	'locked: by whom');
$session->quit;

# When two clinics are of one account, then it is told which.
my $twin = $db->cliniko->account('KEY-twin-au1', patients => 5, account_id => '4711');
$db->connect($_, $twin) for qw(twin_a twin_b);
$db->start_all(qw(twin_a twin_b));
$db->wait_for_runs(qw(twin_a twin_b));
like($db->sql(block('HAVING count(*) > 1')), qr/^4711\|\{twin_a,twin_b\}$/m,
	'one account: which clinics');

# When a run has no worker, as after the restoration of a dump, then it is
# found; and the guide's one call resumes it.
my $asleep = $db->new_database('asleep');
my $account = $asleep->add_clinic('clinic-1', patients => 10);
$asleep->sql(q(INSERT INTO sync_logs (organization_id, operation_type, status, updated_at)
			   VALUES ('clinic-1', 'full_patients', 'running', now() - interval '1 hour')));
like($asleep->sql(block('alert: stalled runs')), qr/^clinic-1\|\d+\|\|\|01:\d\d:\d\d.*\|$/,
	'no worker: found, and that there is none');
my @resume = grep { /^SELECT cliniko_status.*LIMIT 1;$/ } map { split /\n/ } map { $_->{sql} } @blocks;
is(scalar @resume, 2, 'no worker: the call is in the guide, for a failover and an upgrade');
is($asleep->sql($resume[0]), 'running', 'no worker: the call');
$asleep->wait_for_runs('clinic-1');
$asleep->is_copy_of('clinic-1', $account, 'no worker: resumed');

# When an outage has outlasted the runs, then what failed of it is started again,
# and nothing else.
$asleep->set(retry_window => 0);
$account->faults({ kind => 'status', status => 503, request => 'every' });
is($asleep->sync('clinic-1')->{metadata}{error_type}, 'CLINIKO_UNAVAILABLE', 'outage: failed');
$account->faults();
$asleep->connect('wrong', $asleep->cliniko->account('KEY-wrong-au1', patients => 5));
$asleep->cliniko->account('KEY-wrong-au1')
  ->faults({ kind => 'status', status => 403, request => 'every' });
$asleep->sync('wrong');
is($asleep->sql(block(q(l.metadata ->> 'retry_recommended'))), 'clinic-1|Sync started', 'outage: again');
$asleep->wait_for_runs('clinic-1');
is($asleep->newest_run('clinic-1')->{status}, 'completed', 'outage: completed');

#
# The statements
#

# Given a database of the guide's name, with a synced clinic, a run that is under
# way, and a copy of it,
$db->sql('CREATE EXTENSION pg_cron; DROP OWNED BY clinic_monitor; DROP ROLE clinic_monitor');
my $app = $db->new_database('app');
$app->set(idle_timeout => '1ms');
$account = $app->add_clinic('clinic-1', patients => 150);
$ENV{CLINIKO_KEY} = $account->key;
my $key_file = "$PostgreSQL::Test::Utils::tmp_check/cliniko.key";
append_to_file($key_file, $account->key);
$app->sync('clinic-1');
$account->reset;
$account->gates(2);
$app->start('clinic-1');
$account->await_gate(2);
my $dump = "$PostgreSQL::Test::Utils::tmp_check/app.sql";
$node->command_ok([ 'pg_dump', '-f', $dump, 'app' ], 'pg_dump');
my $copy = $db->new_database('copy', empty => 1);
$node->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-f', $dump, 'copy' ], 'restored');
$account->open_gate('all');
$app->wait_for_runs('clinic-1');

# when the guide is followed from its first statement to its last, then each of
# them works.
for my $block (@blocks)
{
	my %places = ('in the database of pg_cron' => 'postgres', 'in the copy' => 'copy');
	my ($name) = $block->{sql} =~ /\A *(?:--.*\n)? *(.*)/;
	# the file that the guide has an administrator put where a test may not
	my ($code, undef, $error) = $node->psql($places{ $block->{comment} } // 'app',
		$block->{sql} =~ s{/run/cliniko\.key}{$key_file}r, on_error_stop => 1);

	is($code, 0, "followed: $block->{section}: $name") or diag($error);
	next if $app->sql(q(SELECT to_regclass('sync_logs') IS NULL)) eq 't';
	$app->wait_for_runs('clinic-1');
	if ($block->{sql} =~ /cliniko_sync_all\('clinic-1'\)/)
	{
		is($app->newest_run('clinic-1')->{status}, 'completed', "followed: $name: completed");
	}
}

# In the end the copy did not sync, and of clinisync nothing is left in the
# database but the settings, for which the guide prints the statements.
is($copy->sql(q(SELECT string_agg(status || coalesce(metadata ->> 'error_type', ''), ' ' ORDER BY id)
				  FROM sync_logs)), 'completed failedSYNC_CANCELLED', 'the copy did not sync');
is($copy->sql('SELECT count(*) FROM patients'), 150, 'the copy has every patient');
is($db->sql('SELECT count(*) FROM cron.job'), 0, 'no job is left');
is( $app->sql(
		q(SELECT count(*) FROM pg_class WHERE relname ~ '^(patients|sync_logs|cliniko)'
		  UNION ALL SELECT count(*) FROM pg_proc WHERE proname ~ '^(cliniko|clinisync)_')),
	"0\n0", 'no table and no function is left');
$app->sql($app->sql(block('AS statement')));
is($app->sql(block('AS statement')), '', 'no setting is left');
$app->wait_for_workers(0);

#
# The words
#

# The source of the library, without the files of which no error reaches a caller.
my %source = map { m{([^/]+)$}; $1 => slurp_file($_) } glob("$root/src/*.c");
my $callers = join '', map { $source{$_} } grep { $_ !~ /^(?:store|batch)\.c$/ } sort keys %source;

# Every line that the server's log may have of us is explained.
my @lines;
for my $file (sort keys %source)
{
	while ($source{$file} =~ /ereport\(LOG,\s*\(errmsg\((.*?)\)\)?[,)]/gs)
	{
		my $format = $1 =~ s/INT64_FORMAT/"%s"/gr;
		my $line = join '', $format =~ /"((?:[^"\\]|\\.)*)"/g;
		$line =~ s/\\"/"/g;
		push @lines, $line;
	}
}
cmp_ok(scalar @lines, '>=', 9, 'the log: lines are found');
for my $line (@lines)
{
	my $pattern = join '\S+', map { quotemeta } split /%[sd]/, $line, -1;
	ok($guide =~ /^\| `$pattern`/m, "the log: explained: $line");
}

# Every error_type is explained, says whether it may pass as the code has it, and
# is known to the REST API;
my %types = $source{'cliniko.c'} =~ /^\t\t"([A-Z_]+)",.*?, (true|false)\},$/gms;
cmp_ok(scalar keys %types, '>=', 17, 'error types: found');
for my $type (sort keys %types)
{
	my $again = $types{$type} eq 'true' ? 'yes' : 'no';
	ok($errors =~ /^\| `$type` \|.*\| $again \|$/m, "error types: $type is explained");
	ok($openapi =~ /^        - $type$/m, "error types: $type is in openapi.yaml");
}

# so is every DETAIL that is a code,
my $sql = slurp_file("$root/sql/clinisync.sql");
my %details = map { $_ => 1 } "$callers$sql" =~ /(?:errdetail\(|\bDETAIL = )["']([A-Z_]+)["']/g;
cmp_ok(scalar keys %details, '>=', 11, 'details: found');
ok($errors =~ /^\| `PT\d+` \| `$_` \|/m, "details: $_ is explained") for sort keys %details;

# and every SQLSTATE, of which PostgreSQL has the names.
my $includes = $node->config_data('--includedir-server');
my %sqlstates = map { s/[', ]//gr }
  join("\n", slurp_file("$includes/utils/errcodes.h"), slurp_file("$root/src/clinisync.h")) =~
  /^#define ERRCODE_(\w+)\s+MAKE_SQLSTATE\(([^)]*)\)/gm;
my %raised = map { $sqlstates{$_} => 1 } $callers =~ /errcode\(ERRCODE_(\w+)\)/g;
$raised{$_} = 1 for $sql =~ /ERRCODE = '(\w{5})'/g;
$raised{ $sqlstates{ uc $_ } } = 1 for $sql =~ /ERRCODE = '([a-z_]{6,})'/g;
cmp_ok(scalar keys %raised, '>=', 8, 'SQLSTATEs: found');
ok($errors =~ /^\| `$_` \|/m, "SQLSTATEs: $_ is explained") for sort keys %raised;

$db->finish;
