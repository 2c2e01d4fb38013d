# An API key, and what it is sealed with, is in a process's memory for as long as it is
# needed there, and no longer: when a call or a run has ended, in whichever way, neither
# clinisync nor libcurl has left anything of it behind.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use MIME::Base64;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

# Given a server whose processes tell what is in their memory (memory.c),
my $directory = PostgreSQL::Test::Utils::tempdir();
my $key = 'MS0xNzg-SecretBodyOfTheKey-0815-au1';
system_or_bail('cc', '-O2', '-shared', '-fPIC', '-o', "$directory/memory.so", "$FindBin::RealBin/memory.c");
my $db = Clinisync->new('main',
	environment => { LD_PRELOAD => "$directory/memory.so", MEMORY_DIRECTORY => $directory });
$db->set(requests_in_flight => 4, idle_timeout => '1d');

# What must not be found: of an API key the middle, as it is and as it is sent; of the
# key that seals, the beginning as it is in its file, and as many of its bytes as can be
# looked for.
sub texts
{
	my ($sealing_key) = slurp_file($db->node->data_dir . '/clinisync.key') =~ /^([0-9a-f]{64})$/m;
	my ($bytes) = pack('H*', $sealing_key) =~ /([^\xFF]{8,})/;
	return ('SecretBodyOfTheKey', substr(encode_base64("$key:", ''), 12, 24),
		substr($sealing_key, 0, 32), $bytes);
}

# How often each of these is in a process's memory, and where.
sub memory
{
	my ($pid) = @_;

	open(my $file, '>:raw', "$directory/texts") or die $!;
	print $file map { ($_ ^ "\xFF" x length) . "\0" } texts();
	close($file);
	unlink "$directory/$pid";
	kill(POSIX::SIGRTMAX(), $pid) == 1 or die "there is no process $pid\n";
	$db->wait_until("SELECT (pg_stat_file('$directory/$pid', true)).size IS NOT NULL");
	my @lines = split /\n/, slurp_file("$directory/$pid");
	return { counts => [ @lines[ 0 .. 3 ] ], places => join("\n", splice(@lines, 4)) };
}

sub has_key
{
	my ($pid, $test) = @_;
	my $found = memory($pid);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($found->{counts}[0] > 0 && $found->{counts}[1] > 0, "$test: the key is there, and what is sent");
}

sub has_no_key
{
	my ($pid, $test) = @_;
	my $found = memory($pid);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply($found->{counts}, [ 0, 0, 0, 0 ], "$test: nothing of the key is left")
	  or diag($found->{places});
}

# A worker that waits for work.
sub idle_worker
{
	my $worker = q(FROM pg_stat_activity WHERE backend_type = 'clinisync worker');
	$db->wait_until("SELECT count(*) = 1 $worker AND query = 'waiting for work'");
	return $db->worker_pid;
}

# and a clinic whose key is in a file, when a session connects it, exchanges, seals anew
# and mistakes it,
my $account = $db->cliniko->account($key, patients => 450, account_name => 'Harbour Physio');
append_to_file("$directory/key", "$key\n");
append_to_file("$directory/keys", "$key\n$key\n");
my $session = $db->session(on_error_stop => 0);
my $pid = $session->query_safe('SELECT pg_backend_pid()');
$session->query_safe("SELECT cliniko_connect('clinic', 'file:$directory/key')") for 1 .. 2;
has_no_key($pid, 'connected');
$session->query_safe('SELECT cliniko_rotate_key()');
has_no_key($pid, 'rotated');
$session->query_until(
	qr/this has ended/, qq(
	SELECT cliniko_connect('clinic', 'file:$directory/keys');
	SET clinisync.key_file = 'nowhere/to/be';
	SELECT cliniko_connect('clinic', 'file:$directory/key');
	RESET clinisync.key_file;
	\\echo this has ended\n));
like($session->{stderr}, qr/this is not a Cliniko API key.*API keys cannot be sealed/s, 'two calls fail');
has_no_key($pid, 'refused');

# over plain HTTP and over TLS, then the key is in its memory while it is needed, and
# not when the call has ended, or was cancelled;
my $certificate = "$directory/certificate";
system_or_bail(qw(openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2),
	qw(-subj /CN=localhost -addext subjectAltName=DNS:localhost), '-keyout', "$certificate.key",
	'-out', "$certificate.crt");
chmod 0600, "$certificate.key";
my $tls = $db->cliniko->behind_tls(cert => "$certificate.crt", key => "$certificate.key");
for my $cliniko ($db->cliniko, $tls)
{
	my $how = $cliniko == $tls ? 'TLS' : 'HTTP';

	$db->set(base_url => $cliniko->base_url, ca_file => "$certificate.crt");
	for my $end ('ended', 'cancelled')
	{
		$account->reset;
		$account->gates(1);
		$session->query_until(
			qr/asking/, q(
			\echo asking
			SELECT cliniko_test_connection('clinic') ->> 'status';
			\echo the call has ended
		));
		$account->await_gate(1);
		has_key($pid, "$how, a test of the connection");
		$end eq 'ended' ? $account->open_gate(1) : $db->sql("SELECT pg_cancel_backend($pid)");
		my $shown = $session->query_until(qr/the call has ended/, '');
		is(scalar($shown =~ /^connected$/m), $end eq 'ended' ? 1 : '', "$how: it has $end");
		has_no_key($pid, "$how, a test that has $end");
	}

	# and so it is with a worker and a run, which ends as completed,
	$account->reset;
	$account->gates(3);
	$db->start('clinic');
	$account->await_gate(3);
	has_key($db->worker_pid, "$how, a run");
	$account->open_gate(3);
	$db->wait_for_runs('clinic');
	has_no_key(idle_worker(), "$how, a run that is completed");
	is($db->newest_run('clinic')->{status}, 'completed', "$how: it is completed");

	# as cancelled,
	$account->reset;
	$account->gates(3);
	$db->start('clinic');
	$account->await_gate(3);
	$db->call(q(cliniko_cancel_sync('clinic')));
	has_no_key(idle_worker(), "$how, a run that was cancelled");
	$account->gates();

	# or as failed.
	$account->faults({ kind => 'status', status => 403, request => 'every' });
	is($db->sync('clinic')->{metadata}{error_type}, 'CLINIKO_FORBIDDEN', "$how: it has failed");
	has_no_key(idle_worker(), "$how, a run that has failed");
	$account->faults();
}
$session->quit;

$db->finish;
