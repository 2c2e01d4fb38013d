# Whatever ends a run, its worker, its extension, its database or the server,
# and at whatever step: the run goes on and is completed, or has failed and says
# why; nobody is missing, nobody is there twice, nobody is marked as deleted, and
# no page that was stored is fetched again.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Three pages and a half, stored in batches of fifty.
my %clinic = (patients => 340, archived => 10);
my $found = 350;
my $page_size = 100;

# The steps at which a run is held: by a request that Cliniko does not answer,
# by an outage, by a batch that cannot go on, or by other runs that are ahead of
# it. Each with the requests that were sent by then, as how many patients
# precede what they asked for, and how many patients are stored. Steps that would
# hold the worker, and so the other clinics, come last.
my @steps = (
	{ name => 'queued', held => 1, asked => [0], stored => 0 },
	{ name => 'first_page', held => 2, asked => [ 0, 100 ], stored => 100 },
	{ name => 'middle_page', held => 3, asked => [ 0, 100, 200 ], stored => 200 },
	{ name => 'last_page', held => 4, asked => [ 0, 100, 200, 300 ], stored => 300 },
	{ name => 'waiting', outage => 3, asked => [ 0, 100, 200 ], stored => 200 },
	{ name => 'amid_batch', held => 2, locked => 75, asked => [ 0, 100 ], stored => 50 },
	{ name => 'in_line', asked => [], stored => 0 });
my @orgs = map { $_->{name} } @steps;

# Every death: what is done to a database whose runs are all held, and what
# becomes of them. resumed: another worker takes them up; on: the worker has
# hardly noticed; failed: they have ended with this error_type.
my @deaths = (
	{ name => 'sigterm', then => 'resumed', by => \&send_sigterm },
	{ name => 'sigkill', then => 'resumed', crash => 1, by => \&send_sigkill },
	{ name => 'terminated', then => 'resumed', by => sub { $_[0]->terminate_worker } },
	{ name => 'cancelled_backend', then => 'on', by => \&cancel_backend },
	{ name => 'stopped_fast', then => 'resumed', by => sub { restart($_[0], 'fast') } },
	{ name => 'stopped_immediately', then => 'resumed', crash => 1,
		by => sub { restart($_[0], 'immediate') } },
	{ name => 'postmaster_killed', then => 'resumed', crash => 1, by => \&kill_postmaster },
	{ name => 'extension_dropped', then => 'failed', error => 'CONFIGURATION_ERROR',
		by => sub { $_[0]->sql('DROP EXTENSION clinisync') } },
	{ name => 'extension_anew', then => 'on',
		by => sub { $_[0]->sql('DROP EXTENSION clinisync; CREATE EXTENSION clinisync; SELECT cliniko_setup()') } },
	{ name => 'extension_updated', then => 'on', by => \&update_extension },
	{ name => 'dropped', then => 'nothing', by => \&drop_database },
	{ name => 'another_dropped', then => 'on', by => \&drop_another_database },
	{ name => 'cancelled', then => 'failed', error => 'SYNC_CANCELLED',
		by => sub { $_[0]->call("cliniko_cancel_sync('$_')") for @orgs } },
	{ name => 'disconnected', then => 'failed', error => 'SYNC_CANCELLED',
		by => sub { $_[0]->call("cliniko_disconnect('$_')") for @orgs } });

# How a run whose worker is gone finds another.
my @ways = (
	{ name => 'polled', preload => '', poll => 1 },
	{ name => 'launched', preload => 'clinisync', poll => 0 });

my $main = Clinisync->new('main', settings => "restart_after_crash = on\n");
my $witness = $main->add_clinic('witness', patients => 250);

#
# The deaths
#

# Do something, telling for how long it was done.
sub note_time
{
	my ($what, $do) = @_;
	my $start = time;
	$do->();
	note(sprintf '%s: %d ms', $what, 1000 * (time - $start));
}

# Whether this many requests to an account are being held.
sub is_held
{
	my ($account, $test) = @_;
	is($account->summary->{in_flight}, 1, $test);
}

# It ends though its requests are held, and one of its transactions.
sub send_sigterm
{
	my ($db, $accounts) = @_;
	is_held($accounts->{middle_page}, 'sigterm: Cliniko hangs');
	note_time('sigterm', sub { end_worker($db, 'TERM') });
}

# The server ends every session and begins anew, by itself.
sub send_sigkill
{
	my ($db) = @_;
	end_worker($db, 'KILL');
}

# Send the worker a signal, and wait until that process is gone; where there is a
# launcher, another one may be there by then.
sub end_worker
{
	my ($db, $signal) = @_;
	my $pid = $db->worker_pid;

	kill($signal, $pid);
	$db->wait_until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");
}

sub cancel_backend
{
	my ($db) = @_;
	$db->sql('SELECT pg_cancel_backend(' . $db->worker_pid . ')');
}

sub restart
{
	my ($db, $mode) = @_;
	$db->node->stop($mode);
	$db->node->start;
}

# A new server can start once every process of the old one has noticed.
sub kill_postmaster
{
	my ($db) = @_;
	my $node = $db->node;
	$node->kill9;
	# what start() believes to run may be what was killed
	$node->stop('fast', fail_ok => 1) until $node->start(fail_ok => 1);
}

# A next version is there: a script that replaces a function and adds one.
sub update_extension
{
	my ($db) = @_;
	my $version = $db->sql(q(SELECT extversion FROM pg_extension WHERE extname = 'clinisync'));
	my $next = "$version.1";
	my $script = $db->node->config_data('--sharedir') . "/extension/clinisync--$version--$next.sql";

	append_to_file("$script.$$",
		q(CREATE FUNCTION @extschema@.cliniko_next() RETURNS text LANGUAGE sql
			RETURN 'next';
		  CREATE OR REPLACE FUNCTION @extschema@.cliniko_sync(org text) RETURNS jsonb LANGUAGE sql
			SET search_path = pg_catalog, pg_temp
			AS 'SELECT @extschema@.cliniko_sync_all(org)';)) if !-e $script;
	rename "$script.$$", $script;
	$db->sql("ALTER EXTENSION clinisync UPDATE TO '$next'");
	is($db->sql(q(SELECT extversion FROM pg_extension WHERE extname = 'clinisync')),
		$next, "extension_updated: it is $next");
	like($db->refusal('ALTER EXTENSION clinisync SET SCHEMA pg_catalog'),
		qr/does not support SET SCHEMA/, 'extension_updated: it does not move');
}

# A run of another database does not notice.
sub drop_database
{
	my ($db) = @_;
	my $name = $db->name;

	$witness->reset;
	$witness->gates(2);
	$main->start('witness');
	$witness->await_gate(2);
	my $pid = $main->worker_pid;
	note_time('dropped', sub { $main->sql("DROP DATABASE $name WITH (FORCE)") });
	is($main->sql("SELECT count(*) FROM pg_stat_activity WHERE datname = '$name'"),
		0, 'dropped: it has no worker any more');
	is_held($witness, 'dropped: meanwhile Cliniko hangs for the run next door');
	is($main->worker_pid, $pid, 'dropped: its worker is still there');
	$witness->gates();
	$main->wait_for_runs('witness');
	my $run = $main->newest_run('witness');
	is($run->{status}, 'completed', 'dropped: the run next door is completed');
	Clinisync::is_accounted_for($run, 250, 'dropped: next door');
	is(scalar $witness->pages, 3, 'dropped: the run next door fetched nothing again');
}

# Every process of the server has to take notice, this worker too.
sub drop_another_database
{
	my ($db, $accounts) = @_;
	$main->new_database('another', empty => 1);
	note_time('another_dropped', sub { $main->sql('DROP DATABASE another') });
	is_held($accounts->{$_}, "another_dropped, $_: meanwhile Cliniko hangs")
	  for map { $_->{held} ? $_->{name} : () } @steps;
}

#
# Before
#

# Make a database that has a lock on which the batch of one clinic waits, in a
# transaction and for as long as it takes.
sub prepare
{
	my ($name) = @_;
	my $db = $main->new_database($name);

	$db->set(idle_timeout => '10ms', max_running_syncs => @orgs - 1);
	$db->sql(
		q(SELECT cliniko_setup();
		  CREATE FUNCTION wait_for_lock() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS
		  'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END';));
	return $db;
}

# Hold a run of a clinic at a step.
sub hold
{
	my ($db, $account, $step) = @_;
	my ($org, $held, $locked) = @$step{qw(name held locked)};

	$account->gates($held) if $held;
	$account->faults({ kind => 'status', status => 503, request => $step->{outage}, times => 1000 })
	  if $step->{outage};
	$db->sql(
		"CREATE TRIGGER wait_for_lock BEFORE INSERT ON patients FOR EACH ROW
			WHEN (NEW.organization_id = '$org' AND NEW.cliniko_patient_id = ${\ ($account->ids)[$locked]})
			EXECUTE FUNCTION wait_for_lock()") if $locked;
	$db->start($org);
	$account->await_gate($held) if $held;
	$db->wait_until(
		"SELECT records_success = $step->{stored}
			AND (metadata ->> 'step' = 'waiting') = ${\ ($step->{outage} ? 'true' : 'false')}
		   FROM sync_logs WHERE organization_id = '$org'");
	$db->wait_until(
		q(SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
			AND backend_type = 'clinisync worker' AND wait_event_type = 'Lock'))) if $locked;
}

# Let go of everything; the session that had the lock may have died too.
sub let_go
{
	my ($accounts, $session) = @_;
	eval { $session->quit };
	for my $account (values %$accounts)
	{
		$account->gates();
		$account->faults();
	}
}

#
# After
#

# What was asked of an account, as how many of its patients precede it. Where
# it was asked again since there was an outage, that counts once.
sub asked
{
	my ($account, $step) = @_;
	my @ids = $account->ids;
	my %place = (0 => 0, map { $ids[$_] => $_ + 1 } 0 .. $#ids);
	my @places = map { $place{$_} } map { /=id:%3E(\d+)/ ? $1 : /=id:(?!asc)/ ? () : 0 } $account->pages;

	return $step->{outage} ? once(@places) : @places;
}

# A list without repetitions that follow one another.
sub once
{
	my @list = @_;
	return map { $_ > 0 && $list[$_] == $list[ $_ - 1 ] ? () : $list[$_] } 0 .. $#list;
}

# Check that a run is complete, and that it was resumed where it was.
sub is_completed
{
	my ($run, $account, $step, $resumed, $test) = @_;
	my @asked = @{ $step->{asked} };
	my $next = $resumed ? $step->{stored} : @asked ? $asked[-1] + $page_size : 0;

	push @asked, $next and $next += $page_size while $next < $found || !@asked;
	@asked = once(@asked) if $step->{outage};
	is($run->{status}, 'completed', "$test: completed");
	Clinisync::is_accounted_for($run, $found, $test);
	is($run->{metadata}{inserted}, $found, "$test: everybody is inserted, once");
	is_deeply([ asked($account, $step) ], \@asked, "$test: no page that was stored is fetched again");
}

# Check that a run has failed as contracts say, and kept what it had stored.
sub is_failed
{
	my ($run, $step, $error, $stored, $test) = @_;
	my $metadata = $run->{metadata};

	is_deeply([ $run->{status}, $metadata->{error_type}, $metadata->{step} ],
		[ 'failed', $error, 'failed' ], "$test: failed, and says why");
	ok(defined $run->{completed_at} && $run->{error_details} && @{ $metadata->{errors} },
		"$test: and tells the details");
	is($run->{records_success}, $stored, "$test: what it stored is in the table");
	cmp_ok($stored, '>=', $step->{stored}, "$test: and is no less than before");
}

# Check that rows are a clinic's patients, each once.
sub is_whole
{
	my ($db, $org, $account, $test) = @_;
	my $rows = $db->sql(
		"SELECT string_agg(cliniko_patient_id::text, ' ' ORDER BY cliniko_patient_id)
		   FROM patients WHERE organization_id = '$org' AND deleted_at IS NULL");
	is($rows, join(' ', $account->ids), "$test: everybody is there, once");
	is($db->stored($org), $found, "$test: and nobody else");
}

# Check what has become of the runs, each of which has this id.
sub look_after
{
	my ($db, $accounts, $runs, $death, $way) = @_;
	my %stored = map { $_ => $db->stored($_) } @orgs;
	my %connected = map { $_ => 1 } split /\n/,
	  $db->sql('SELECT organization_id FROM cliniko_organizations WHERE shard IS NOT NULL');

	for my $step (@steps)
	{
		my $org = $step->{name};
		my $test = "$death->{name}, $way->{name}, $org";
		my $run = $db->newest_run($org);

		is($run->{id}, $runs->{$org}, "$test: the same run");
		if ($death->{then} eq 'failed')
		{
			is_failed($run, $step, $death->{error}, $stored{$org}, $test);
		}
		else
		{
			is_completed($run, $accounts->{$org}, $step, $death->{then} eq 'resumed', $test);
			is_whole($db, $org, $accounts->{$org}, $test);
		}
		$db->connect($org, $accounts->{$org}) unless $connected{$org};
	}

	# The next run finds all of what was stored as it is, and adds the rest.
	$db->start_all(@orgs);
	$db->wait_for_runs(@orgs);
	for my $org (@orgs)
	{
		my $test = "$death->{name}, $way->{name}, $org, again";
		my $run = $db->newest_run($org);

		is($run->{status}, 'completed', "$test: completed");
		is_deeply([ @{ $run->{metadata} }{qw(unchanged inserted)} ],
			[ $stored{$org}, $found - $stored{$org} ], "$test: what was stored had been stored well");
		is_whole($db, $org, $accounts->{$org}, $test);
	}
	is($db->sql(q(SELECT count(*) FROM sync_logs WHERE status = 'running')),
		0, "$death->{name}, $way->{name}: no run is left over");
	$db->is_copy_of('amid_batch', $accounts->{amid_batch}, "$death->{name}, $way->{name}")
	  if $death->{crash};
}

for my $way (@ways)
{
	if ($way->{preload} ne '')
	{
		$main->node->append_conf('postgresql.conf', "shared_preload_libraries = '$way->{preload}'");
		$main->node->restart;
	}
	for my $death (@deaths)
	{
		# Given a database with a run at each step,
		my $db = prepare("$death->{name}_$way->{name}");
		my $session = $db->session(on_error_stop => 0);
		my %accounts = map { $_ => $db->add_clinic($_, %clinic) } @orgs;

		$session->query('SELECT pg_advisory_lock(1)');
		hold($db, $accounts{ $_->{name} }, $_) for @steps;
		my %runs = map { split /\|/ } split /\n/, $db->sql('SELECT organization_id, id FROM sync_logs');

		# when it happens, and what was held is let go,
		my $pid = $db->worker_pid;
		$db->flush;
		$death->{by}->($db, \%accounts);
		let_go(\%accounts, $session);

		# then another worker takes up the runs, or this one goes on.
		if ($death->{then} eq 'nothing')
		{
			$db = prepare($db->name);
			$accounts{$_}->reset for @orgs;
			$db->connect($_, $accounts{$_}) for @orgs;
			$db->start_all(@orgs);
			$db->wait_for_runs(@orgs);
			is_whole($db, $_, $accounts{$_}, "$death->{name}, $way->{name}, $_") for @orgs;
			next;
		}
		if ($death->{error} && $death->{error} eq 'CONFIGURATION_ERROR')
		{
			# the worker ends the runs, also those that it had not begun, and leaves
			$db->wait_for_workers(0);
			$db->sql('CREATE EXTENSION clinisync; SELECT cliniko_setup()');
		}
		# the one whose run was in line asks, and that is enough for all
		$db->newest_run('in_line') if $way->{poll};
		$db->wait_for_runs(@orgs);
		look_after($db, \%accounts, \%runs, $death, $way);
	}
}

$main->finish(expected => qr/background worker "clinisync worker" \(PID \d+\) was terminated by signal 9/);
