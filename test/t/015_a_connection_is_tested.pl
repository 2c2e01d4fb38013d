# The connection test tells whether a key works and what is behind it, what to
# do where it does not, and it obeys a cancel.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use JSON::PP;
use Test::More;

my $db = Clinisync->new('main');

sub test_connection
{
	my ($org) = @_;
	return $db->call("cliniko_test_connection('$org')");
}

# Given a key that works, when it is tested, then the answer tells what it is
# good for, and nothing is stored.
my $account = $db->add_clinic('clinic', patients => 648, archived => 12);
my $answer = test_connection('clinic');
is_deeply(
	[ @$answer{qw(success status organization_id total_patients active_patients role)} ],
	[ JSON::PP::true(), 'connected', 'clinic', 660, 648, 'administrator' ],
	'a key that works');
is($answer->{api_url}, $db->cliniko->base_url, 'its URL');
is_deeply(
	$answer->{account},
	{ id => '2000001', name => 'Clinic KEY-clinic' },
	'its account');
like($answer->{latency_ms}, qr/^\d+$/, 'its latency');
is($db->stored('clinic'), 0, 'no patient is stored');
is($db->workers, 0, 'no worker is started');

# When the key's role may not see the account, then it works all the same.
$db->add_clinic('scheduler', patients => 10, role => 'scheduler');
$answer = test_connection('scheduler');
is($answer->{status}, 'connected', 'a low role: connected');
is($answer->{total_patients}, 10, 'a low role: the patients');

# When Cliniko cannot be used, then the answer says so and what to do; it is
# an answer and not an error.
my %faults = (
	CLINIKO_AUTH_FAILED => { kind => 'status', status => 401 },
	CLINIKO_FORBIDDEN => { kind => 'status', status => 403 },
	CLINIKO_RATE_LIMITED => { kind => 'rate_limited', seconds => 50 },
	CLINIKO_UNAVAILABLE => { kind => 'html' },
	CLINIKO_REDIRECT => { kind => 'redirect' },
	NETWORK_ERROR => { kind => 'reset_mid_body' });
for my $error (sort keys %faults)
{
	$account->faults({ %{ $faults{$error} }, request => 'every' });
	$answer = test_connection('clinic');
	is_deeply(
		[ @$answer{qw(success status error_code)} ],
		[ JSON::PP::false(), 'failed', $error ],
		"$error: failed");
	like($answer->{message}, qr/^\S.+\.$/, "$error: says what to do");
}
$db->call(q(cliniko_connect('nobody', 'KEY-of-nobody-au1')));
is(test_connection('nobody')->{error_code}, 'CLINIKO_AUTH_FAILED', 'a key that nobody has');
$db->set(base_url => 'http://127.0.0.1:1/v1');
is(test_connection('clinic')->{error_code}, 'NETWORK_ERROR', 'nobody listens');
$db->set(base_url => $db->cliniko->base_url, contact_email => '');
$answer = test_connection('clinic');
is($answer->{error_code}, 'CONFIGURATION_ERROR', 'no contact e-mail');
like($answer->{message}, qr/clinisync\.contact_email/, 'the message names the setting');

# So does a run.
my $run = $db->sync('clinic');
is_deeply([ $run->{status}, $run->{metadata}{error_type} ],
	[qw(failed CONFIGURATION_ERROR)], 'nor is there a sync without it');
like($run->{error_details}, qr/ALTER DATABASE .* SET clinisync\.contact_email/,
	'the run names the command');
$db->set(contact_email => 'tests@clinic.example');

# Given a Cliniko that hangs, when the call is cancelled, then it ends.
$account->reset;
$account->gates(1);
my $client = $db->session(on_error_stop => 0);
my $pid = $client->query_safe('SELECT pg_backend_pid()');
$client->query_until(
	qr/asking/, q(
	\echo asking
	SELECT cliniko_test_connection('clinic');
	\echo the call has ended
));
$account->await_gate(1);
is($db->sql("SELECT pg_cancel_backend($pid)"), 't', 'the call is cancelled');
$client->query_until(qr/the call has ended/, '');
like($client->{stderr}, qr/canceling statement due to user request/, 'while Cliniko still hangs');
$client->quit;

$db->finish;
