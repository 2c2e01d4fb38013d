# How requests travel: encrypted, to the address that was configured and to
# nobody else, within limits of memory and descriptors, and cancelled at once.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Cliniko;
use IO::Select;
use IO::Socket::INET;
use MIME::Base64;
use PostgreSQL::Test::Utils;
use Test::More;

my $patience = $PostgreSQL::Test::Utils::timeout_default;
my $directory = PostgreSQL::Test::Utils::tempdir;

# A place to connect to, where nobody answers.
sub listener
{
	my ($address) = @_;
	return IO::Socket::INET->new(Listen => 64, LocalAddr => $address)
	  // die "cannot listen at $address: $!\n";
}

sub address
{
	my ($listener) = @_;
	return $listener->sockhost . ':' . $listener->sockport;
}

# Whether anybody has connected to it.
sub was_visited
{
	my ($listener) = @_;
	return IO::Select->new($listener)->can_read(0) ? 1 : 0;
}

# The head of the next request that comes in; the connection is then closed.
sub next_request
{
	my ($listener) = @_;
	my $head = '';

	IO::Select->new($listener)->can_read($patience) or die "nobody has connected\n";
	my $connection = $listener->accept;
	while ($head !~ /\r\n\r\n/)
	{
		$connection->sysread($head, 4096, length $head) or die "the request broke off: $head\n";
	}
	return $head;
}

# Make a certificate of this name and host: self-signed, or signed by another.
sub certificate
{
	my ($name, $host, $signer) = @_;
	my ($cert, $key, $request, $extensions) =
	  map { "$directory/$name.$_" } qw(crt key csr ext);
	my @signed_by = $signer
	  ? (-CA => $signer->{cert}, -CAkey => $signer->{key}, '-CAcreateserial')
	  : (-signkey => $key);

	append_to_file($extensions, $host ? "subjectAltName = DNS:$host\n" : "basicConstraints = CA:TRUE\n");
	system_or_bail(qw(openssl req -new -newkey rsa:2048 -nodes),
		-subj => "/CN=$name", -keyout => $key, -out => $request);
	system_or_bail(qw(openssl x509 -req -days 2),
		-in => $request, -out => $cert, -extfile => $extensions, @signed_by);
	return { cert => $cert, key => $key };
}

my $ca = certificate('authority');
my $right = certificate('right', 'localhost', $ca);
my $wrong_name = certificate('wrong_name', 'elsewhere.example', $ca);
my $self_signed = certificate('self_signed', 'localhost');

# Given a server whose OpenSSL would speak any version of TLS and use any
# cipher, and whose way to the internet is a proxy,
append_to_file("$directory/lax.cnf", <<'END');
openssl_conf = settings
[settings]
ssl_conf = contexts
[contexts]
system_default = lax
[lax]
MinProtocol = TLSv1
CipherString = DEFAULT:@SECLEVEL=0
END
my $proxy = listener('127.0.0.1');
my $db;
{
	local $ENV{OPENSSL_CONF} = "$directory/lax.cnf";
	local $ENV{https_proxy} = 'http://' . address($proxy);
	local $ENV{no_proxy} = 'localhost,127.0.0.1';
	$db = Clinisync->new('main');
}
my $account = $db->add_clinic('clinic', patients => 148, archived => 2);

# Start a connection test; wait for its end with end_of().
sub begin_test
{
	my ($org) = @_;
	my $client = $db->session(on_error_stop => 0);
	my $pid = $client->query_safe('SELECT pg_backend_pid()');

	$client->query_until(qr/asking/,
		"\\echo asking\nSELECT cliniko_test_connection('$org');\n\\echo it has ended\n");
	return ($client, $pid);
}

sub end_of
{
	my ($client) = @_;
	my $output = $client->query_until(qr/it has ended/, '');

	$client->quit;
	return "$output$client->{stderr}";
}

# Check that neither a connection test nor a run gets through to Cliniko.
sub is_refused
{
	my ($error, $reason, $test) = @_;
	my $requests = $account->summary->{requests};

	$db->set(retry_window => 0);
	my $answer = $db->call(q(cliniko_test_connection('clinic')));
	my $run = $db->sync('clinic');
	$db->set(retry_window => '1h');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply([ $answer->{error_code}, $run->{status}, $run->{metadata}{error_type} ],
		[ $error, 'failed', $error ], "$test: $error");
	like($run->{error_details}, $reason, "$test: the run says why");
	is($account->summary->{requests}, $requests, "$test: no request arrives");
}

# https only: when base_url is set to anything else, then the setting is
# refused, but for http on the loopback interface.
for my $url (
	'http://api.au1.cliniko.com/v1', 'http://127.0.0.1.evil.example/v1',
	'http://localhost.evil.example', 'http://127.0.0.1@evil.example',
	'http://127.0.0.1:x@evil.example', 'http://127.0.0.2:8080', 'http://10.0.0.1',
	'http://[::2]', 'HTTP://127.0.0.1', 'ftp://127.0.0.1', 'file:///etc/passwd',
	'https://key@evil.example', 'https://', 'https:///v1', '//evil.example', 'evil.example')
{
	like($db->refusal("LOAD 'clinisync'; ALTER DATABASE postgres SET clinisync.base_url = '$url'"),
		qr/22023.*invalid value/, "base_url $url is refused");
}
for my $url ('https://evil.example/v1', 'http://127.0.0.1:8080/v1', 'http://localhost',
	'http://[::1]:8080')
{
	$db->sql("LOAD 'clinisync'; ALTER DATABASE postgres SET clinisync.base_url = '$url'");
	pass("base_url $url is accepted");
}

# TLS 1.2 or later: given a Cliniko that speaks nothing later than a version,
# when that is 1.2 or 1.3, then a sync completes.
$db->set(ca_file => $ca->{cert});
for my $version (qw(TLSv1.2 TLSv1.3))
{
	my $tls = $db->cliniko->behind_tls(%$right, max_version => $version);

	$db->set(base_url => $tls->base_url);
	$db->sql('TRUNCATE patients');
	is($db->sync('clinic')->{status}, 'completed', "$version: completed");
	$db->is_copy_of('clinic', $account, $version);
	is($db->call(q(cliniko_test_connection('clinic')))->{status}, 'connected', "$version: connected");
}

# When it is 1.1, then nobody gets through, although others would.
my $old = $db->cliniko->behind_tls(%$right, max_version => 'TLSv1.1');
{
	local $ENV{OPENSSL_CONF} = "$directory/lax.cnf";
	system_or_bail(qw(curl --silent --show-error --fail --output /dev/null --noproxy *),
		qw(--tlsv1.0 --tls-max 1.1 --cacert), $ca->{cert},
		$old->base_url =~ s{/v1$}{/control/totals}r);
}
$db->set(base_url => $old->base_url);
is_refused('NETWORK_ERROR', qr/SSL connect error/, 'TLS 1.1');

# Always verified: when the certificate is nobody's whom ca_file knows, or is
# of another host, then nobody gets through.
my $tls = $db->cliniko->behind_tls(%$self_signed);
$db->set(base_url => $tls->base_url);
is_refused('NETWORK_ERROR', qr/certificate.* not OK/, 'a self-signed certificate');
$db->set(ca_file => $self_signed->{cert});
is($db->sync('clinic')->{status}, 'completed', 'a self-signed certificate that is known: completed');
$tls = $db->cliniko->behind_tls(%$right);
$db->set(base_url => $tls->base_url);
is_refused('NETWORK_ERROR', qr/certificate.* not OK/, 'an unknown authority');
$db->set(ca_file => '');
is_refused('NETWORK_ERROR', qr/certificate.* not OK/, q(an authority that the system does not know));
$db->set(ca_file => $ca->{cert}, base_url => $tls->base_url =~ s/localhost/127.0.0.1/r);
is_refused('NETWORK_ERROR', qr/certificate.* not OK/, 'an address instead of the name');
$tls = $db->cliniko->behind_tls(%$wrong_name);
$db->set(base_url => $tls->base_url);
is_refused('NETWORK_ERROR', qr/certificate.* not OK/, 'a certificate of another host');
$db->set(ca_file => "$directory/nothing");
is_refused('NETWORK_ERROR', qr/CA cert/, 'a ca_file that is missing');
$db->set(ca_file => '', base_url => $db->cliniko->base_url);

# No redirects: when an answer is one, then the run fails, and where it leads
# to nobody goes.
my $elsewhere = listener('127.0.0.2');
$db->set(retry_window => 0);
for my $status (301, 302, 303, 307, 308)
{
	$account->faults({ kind => 'status', status => $status, request => 'every',
		headers => { Location => 'http://' . address($elsewhere) . '/v1/patients' } });
	my $run = $db->sync('clinic');
	is_deeply([ $run->{status}, $run->{metadata}{error_type} ],
		[ 'failed', 'CLINIKO_REDIRECT' ], "redirected by $status: failed");
	is($db->call(q(cliniko_test_connection('clinic')))->{error_code},
		'CLINIKO_REDIRECT', "redirected by $status: not connected");
}
is(was_visited($elsewhere), 0, 'nobody went where the redirects lead');
$db->set(retry_window => '1h');

# The host is the one that was configured: when an answer names another one,
# then the run completes without going there.
$db->sql('TRUNCATE patients');
$account->reset;
$account->faults({ kind => 'next_elsewhere', host => address($elsewhere), request => 'every' });
is($db->sync('clinic')->{status}, 'completed', 'a next page elsewhere: completed');
$db->is_copy_of('clinic', $account, 'a next page elsewhere');
is(was_visited($elsewhere), 0, 'nobody went where the next page is said to be');
my $visitor = IO::Socket::INET->new(PeerAddr => address($elsewhere));
is(was_visited($elsewhere), 1, 'a visitor would have been noticed');

# When none is configured, then it is the shard's.
$db->set(base_url => '');
for my $key ('KEY-uk2', 'KEY-of-old')
{
	my $shard = $key eq 'KEY-uk2' ? 'uk2' : 'au1';

	$db->call("cliniko_connect('shard', '$key')");
	my ($client) = begin_test('shard');
	for (1 .. 4)
	{
		like(next_request($proxy), qr/^CONNECT api\.$shard\.cliniko\.com:443 HTTP/,
			"$key: the host is the shard's");
	}
	like(end_of($client), qr/NETWORK_ERROR/, "$key: and no other is tried");
}

# The note of the shard decides nothing: when who may write the table has changed
# it, then the key goes nowhere.
my $thief = listener('127.0.0.3');
for my $shard ("'" . address($thief) . "/x'", "'uk3'", "'AU1'", 'NULL')
{
	$db->sql("UPDATE cliniko_organizations SET shard = $shard WHERE organization_id = 'shard'");
	is($db->call("cliniko_test_connection('shard')")->{error_code}, 'CREDENTIALS_UNREADABLE',
		"a shard of $shard: not connected");
	my $run = $db->sync('shard');
	is_deeply([ $run->{status}, $run->{metadata}{error_type} ],
		[ 'failed', 'CREDENTIALS_UNREADABLE' ], "a shard of $shard: failed");
	like($run->{error_details}, qr/Its shard (was changed|is missing): pass the API key to cliniko_connect/,
		"a shard of $shard: why, and what to do");
}
is(was_visited($thief), 0, 'a changed shard: no key was sent there');
is(was_visited($proxy), 0, 'a changed shard: no key was sent anywhere');

# Basic authentication: when something is asked, then the key is the user, and
# there is no password; nor is the key anywhere else.
my $ear = listener('127.0.0.1');
$db->set(base_url => 'http://' . address($ear) . '/v1');
my ($client) = begin_test('clinic');
for (1 .. 4)
{
	my $head = next_request($ear);
	my ($credentials) = $head =~ /^Authorization: Basic (\S+)\r$/m;

	is(decode_base64($credentials // ''), $account->key . ':', 'the key is the user, without a password');
	unlike($head, qr/${\$account->key}/, 'it is nowhere else');
}
end_of($client);

# Bytes are counted after decompression: given a worker that has had its
# biggest answers, when one of 512 MB comes, compressed, then the run fails,
# and the worker has not grown by much.
sub peak_kb
{
	my ($pid) = @_;
	my ($peak) = slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+) kB$/m;
	return $peak;
}

sub worker_pid
{
	return $db->sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'clinisync worker'));
}

$db->set(base_url => $db->cliniko->base_url, max_response_size => '1MB');
$account->reset;
$db->sql('TRUNCATE patients');
$db->sync('clinic');
my $worker = worker_pid();
my $before = peak_kb($worker);
$account->faults({ kind => 'gzip_bomb', megabytes => 512, request => 'every' });
my $run = $db->sync('clinic');
is_deeply([ $run->{status}, $run->{metadata}{error_type} ],
	[ 'failed', 'RESPONSE_TOO_LARGE' ], 'a gzip bomb: failed');
is(worker_pid(), $worker, 'a gzip bomb: the worker is the same');
my $growth = peak_kb($worker) - $before;
note("the worker's peak grew by $growth kB");
cmp_ok($growth, '<', 8 * 1024, 'a gzip bomb: the worker has hardly grown');

# However an answer is compressed, it is read, or asked for again.
my %encodings = (
	gzip_members => [ 0, 'gzip in two members' ],
	gzip_cut => [ 1, 'gzip that is cut off' ],
	gzip_garbage => [ 1, 'gzip with garbage behind it' ],
	not_gzip => [ 1, 'no gzip, whatever the header says' ],
	unknown_encoding => [ 1, 'an encoding that nobody asked for' ]);
for my $kind (sort keys %encodings)
{
	my ($retries, $name) = @{ $encodings{$kind} };

	$account->reset;
	$account->faults({ kind => $kind, request => 1 });
	$db->sql('TRUNCATE patients');
	$run = $db->sync('clinic');
	is_deeply([ $run->{status}, $run->{metadata}{retries} ], [ 'completed', $retries ], "$name: $retries retries");
	$db->is_copy_of('clinic', $account, $name);
}

# Nothing that can jump out of libcurl is called in its callbacks: they, and
# what they call here, call nothing else than this.
my %harmless = map { $_ => 1 } qw(AcquireExternalFD ReleaseExternalFD Max Min clock_gettime close
  curl_multi_assign epoll_ctl memcpy realloc sizeof socket if while for switch return);
my $source = slurp_file("$FindBin::RealBin/../../src/transport.c");
my %functions = $source =~ /^(\w+)\([^;{]*\)\n\{\n(.*?)^\}$/msg;
my @to_check = $source =~ /curl_\w+_setopt\(\S+, \w+FUNCTION, (\w+)\)/g;
is_deeply([ sort @to_check ], [qw(on_body on_close_socket on_open_socket on_socket on_timer)],
	'the callbacks of libcurl are known');
for (my $i = 0; $i < @to_check; $i++)
{
	my $body = $functions{ $to_check[$i] } // '';

	isnt($body, '', "$to_check[$i]() is there");
	$body =~ s{/\*.*?\*/}{}sg;
	my @called = grep { !$harmless{$_} } $body =~ /(\w+)\s*\(/g;
	is_deeply([ grep { !$functions{$_} } @called ], [], "$to_check[$i]() calls nothing that could jump");
	for my $name (@called)
	{
		push @to_check, $name if $functions{$name} && !grep { $_ eq $name } @to_check;
	}
}

# libcurl is initialized where requests are made, and so never by the
# postmaster, which does no more than load the library.
my %files = map { m{([^/]+)$} => slurp_file($_) } glob("$FindBin::RealBin/../../src/*.c");
is_deeply([ grep { $files{$_} =~ /curl_global_init/ } sort keys %files ],
	['transport.c'], 'curl_global_init() is in one file');
like($functions{transport_create}, qr/curl_global_init/, 'in transport_create()');
is(scalar(() = $source =~ /curl_global_init/g), 1, 'and nowhere else');
is_deeply([ grep { $files{$_} =~ /\btransport_create\(/ && $_ ne 'transport.c' } sort keys %files ],
	[qw(connection.c worker.c)], 'which the worker and the connection test call');
my ($init) = $files{'clinisync.c'} =~ /^_PG_init\(void\)\n\{\n(.*?)^\}$/ms;
is_deeply([ $init =~ /(\w+)\(/g ], [qw(settings_define attendance_request_memory launcher_register)],
	'_PG_init() defines the settings and registers the launcher');
unlike($files{$_}, qr/transport_|curl_/, "_PG_init(): $_ knows nothing of requests")
  for qw(settings.c attendance.c launcher.c);

# A connection test obeys a cancel at once: when Cliniko does not answer, or
# does not even greet, then the call ends while that lasts.
sub is_cancelled_at_once
{
	my ($client, $pid, $test) = @_;
	my $start = time;

	is($db->sql("SELECT pg_cancel_backend($pid)"), 't', "$test: cancelled");
	like(end_of($client), qr/canceling statement due to user request/, "$test: obeyed");
	cmp_ok(time - $start, '<', 300, "$test: long before the request's timeout of ten minutes");
}

$account->reset;
$account->gates(1, 2);
my ($asking, $pid) = begin_test('clinic');
$account->await_gate($_) for 1, 2;
is_cancelled_at_once($asking, $pid, 'an answer that is held');
$account->open_gate('all');
my $silent = listener('127.0.0.1');
$db->set(base_url => 'https://localhost:' . $silent->sockport);
($asking, $pid) = begin_test('clinic');
IO::Select->new($silent)->can_read($patience) or die "nobody has connected\n";
is_cancelled_at_once($asking, $pid, 'a greeting that is held');

# Descriptors are taken from those that PostgreSQL keeps free: given a server
# whose processes may open but a few files, and a worker that has done a run,
my $few = Clinisync->new('few', settings => "max_files_per_process = 64\n");
$few->set(max_running_syncs => 1000, requests_in_flight => 4);
$few->add_clinic('alone', patients => 120);
is($few->sync('alone')->{status}, 'completed', 'few descriptors, one clinic: completed');
# far more requests than descriptors, so that most wait in the queue
my @crowd = map { $_->key } $few->cliniko->accounts(150, patients => 120);
$few->sql(join ';', map { "SELECT cliniko_connect('$_', '$_')" } @crowd);

# How many descriptors the worker has open that are not PostgreSQL's files.
sub network_descriptors
{
	my $pid = $few->sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'clinisync worker'));
	return scalar grep { m{^[^/]} } map { readlink($_) // () } glob("/proc/$pid/fd/*");
}

# when many clinics are synced together, again and again, and then at another
# host, then all runs complete, few requests at a time and none in vain, and the
# worker has no more open than before and the idle connections that libcurl keeps: four for each
# request that the last run has at a time.
my $at_first = network_descriptors();
my $local = $few->cliniko->base_url =~ s/127\.0\.0\.1/localhost/r;
for my $test ('a crowd', 'a crowd again', 'a crowd elsewhere')
{
	$few->set(base_url => $local) if $test =~ /elsewhere/;
	$few->start_all(@crowd);
	$few->wait_for_runs(@crowd);
	is( $few->sql(
			q(SELECT string_agg(DISTINCT format('%s %s, %s retries', status, records_success, metadata ->> 'retries'), '; ')
			   FROM sync_logs WHERE id IN (SELECT max(id) FROM sync_logs GROUP BY organization_id))),
		'completed 120, 0 retries', "few descriptors, $test: all completed");
	cmp_ok(network_descriptors(), '<=', $at_first + 8, "few descriptors, $test: none was lost");
}
cmp_ok($few->cliniko->totals->{max_in_flight}, '<=', 64 / 3, 'few descriptors: few requests at a time');
is($few->workers, 1, 'few descriptors: the worker is still there');

# The time of a request begins when it leaves: given clinics that all wait for
# what is held, and between them take every connection there is,
my $held = $few->cliniko->account('KEY-held-au1', patients => 10);
my @waiting = map { "waiting$_" } 1 .. 20;
$few->connect($_, $held) for @waiting;
my ($late, $cancelled, $clock) =
  map { $few->add_clinic($_, patients => 10) } qw(late cancelled clock);
$few->set(request_timeout => '10min', requests_in_flight => 1);
$held->gates(1 .. @waiting);
$few->start_all(@waiting);
$held->await_gate(1);

# when another one has waited behind them for longer than its request may take,
# as one shows that was sent after it was queued, by a session of its own,
sub have_taken_up
{
	my ($org) = @_;
	$few->start($org);
	$few->wait_until(
		"SELECT metadata ->> 'step' = 'connecting' FROM sync_logs WHERE organization_id = '$org'");
}

$few->set(request_timeout => '10s');
have_taken_up('late');
# the worker queues a run's request before it looks for another run
have_taken_up('cancelled');
$clock->gates(1);
is($few->call(q(cliniko_test_connection('clock')))->{error_code},
	'NETWORK_ERROR', 'a queue: as long as a request may take has passed');
is($late->summary->{requests}, 0, 'a queue: another clinic has waited for longer');

# when one more is cancelled, and what was held is let go, then that request leaves,
# and is in time; the cancelled one never leaves; and nothing is asked for again.
$few->set(request_timeout => '40s');
$few->call(q(cliniko_cancel_sync('cancelled')));
# the worker drops a run that was cancelled before it takes up another one
have_taken_up('clock');
$held->gates();
$few->wait_for_runs(@waiting, 'late', 'clock');
is( $few->sql(
		q(SELECT string_agg(DISTINCT format('%s %s, %s retries', status, records_success, metadata ->> 'retries'), '; ')
		   FROM sync_logs WHERE organization_id ~ '^(waiting|late|clock)')),
	'completed 10, 0 retries', 'a queue: all the others completed, none of their requests was in vain');
is($cancelled->summary->{requests}, 0, 'a queue: the request of the cancelled one never left');

# When the worker ends while requests are queued, then the next one completes
# their runs.
$held->reset;
$held->gates(1 .. @waiting);
$few->start_all(@waiting);
$held->await_gate(1);
$few->terminate_worker;
$held->gates();
$few->newest_run($waiting[0]);
$few->wait_for_runs(@waiting);
is( $few->sql(
		q(SELECT string_agg(DISTINCT status, '; ')
		   FROM sync_logs WHERE id IN (SELECT max(id) FROM sync_logs GROUP BY organization_id)
			AND organization_id ~ '^waiting')),
	'completed', 'a queue: the next worker completes what was queued');

# When a session that does not know the setting sets an address that is not
# accepted, then the worker does not take it over either.
my $trap = listener('127.0.0.2');
$few->set(base_url => 'http://' . address($trap) . '/v1');
is($few->sync('alone')->{status}, 'completed', 'an unchecked base_url: completed as before');
is(was_visited($trap), 0, 'an unchecked base_url: nobody went there');
$few->cliniko->is_content;
$few->node->stop;

$db->finish;
