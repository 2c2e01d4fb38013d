# Whatever the database's encoding: SQL_ASCII takes every name as it is; others,
# which cannot hold every name, refuse to sync and say why; and all that can be
# read there is read in the client's encoding.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Encode qw(encode_utf8);
use JSON::PP;
use Test::More;

# Clients send and want UTF-8, whatever the database has.
local $ENV{PGCLIENTENCODING} = 'UTF8';
my $db = Clinisync->new('main');
my $ascii = $db->new_database('ascii', encoding => 'SQL_ASCII');
my $latin1 = $db->new_database('latin1', encoding => 'LATIN1');

# Names that LATIN1 has, and that it has not.
my $umlauts = encode_utf8("Praxis Z\x{f6}\x{eb}");
my $kanji = encode_utf8("Praxis \x{7f8e}\x{54b2}");

# The answer of Cliniko's that holds all of these patients, with every
# character but ASCII escaped.
sub escaped_page
{
	my ($account) = @_;
	my $truth = $account->truth;
	return JSON::PP->new->ascii->encode(
		{ patients => $truth, total_entries => scalar @$truth, links => {} });
}

# Given a database in SQL_ASCII, when a clinic is synced whose patients have
# names of many scripts, then each arrives as it is,
my $account = $ascii->add_clinic('ascii', patients => 145, archived => 5);
$ascii->sql("SELECT cliniko_connect('ascii', '" . $account->key . "', '$kanji')");
cmp_ok(scalar(grep { ($_->{first_name} // '') =~ /[^\0-\x{ff}]/ } @{ $account->truth }),
	'>', 5, 'there are names that LATIN1 has not');
my $run = $ascii->sync('ascii');
is($run->{status}, 'completed', 'ascii: completed');
is($run->{records_failed}, 0, 'ascii: nobody is left out');
Clinisync::is_accounted_for($run, 150, 'ascii');
$ascii->is_copy_of('ascii', $account, 'ascii');

# also where Cliniko escapes all that is not ASCII,
my $escaped = $ascii->add_clinic('escaped', patients => 60);
my ($first) = map { $_->{id} } @{ $escaped->truth };
$escaped->mutate(set => { id => $first, fields => { custom_fields => { note => "nul \0, \x{1f33b}" } } });
$escaped->faults({ kind => 'status', status => 200, request => 1, body => escaped_page($escaped) });
$run = $ascii->sync('escaped');
is($run->{status}, 'completed', 'escaped: completed');
is_deeply($run->{metadata}{errors}, [], 'escaped: nobody is left out');
$ascii->is_copy_of('escaped', $escaped, 'escaped');

# and every function answers, in UTF-8.
is($ascii->call(q(cliniko_status('ascii')))->{patient_counts}{synced_to_database}, 150, 'ascii: the status');
is($ascii->call(q(cliniko_test_connection('ascii')))->{status}, 'connected', 'ascii: a test of the connection');
is($ascii->sql(q(SELECT name FROM cliniko_organizations WHERE organization_id = 'ascii')),
	$kanji, 'ascii: the name of the clinic');
my ($named) = grep { !$_->{archived_at} && ($_->{first_name} // '') =~ /^\w*[^\0-\x{ff}]\w*$/ } @{ $account->truth };
my $search = encode_utf8($named->{first_name});
my $found = $ascii->call("cliniko_active_patients('ascii', 500, search => '$search')")->{patients};
is_deeply([ grep { $_->{cliniko_patient_id} eq $named->{id} } @$found ]->[0]{first_name},
	$named->{first_name}, 'ascii: a patient is found by name');
my $active = $ascii->call(q(cliniko_active_patients('ascii', 500)));
is($active->{pagination}{total}, 145, 'ascii: the active patients');
my $odd = encode_utf8("klinik-\x{fc}");
$ascii->sql("SELECT cliniko_connect('$odd', '" . $account->key . "')");
is($ascii->sync($odd)->{organization_id}, "klinik-\x{fc}", 'ascii: an id that is not ASCII');
$account->mutate(edit => 3);
is($ascii->sync('ascii')->{metadata}{updated}, 3, 'ascii: what has changed is told from what has not');

# Given a database in LATIN1, when a clinic is synced, then the run is refused
# before anything is asked of Cliniko, and says what to do,
$account = $latin1->add_clinic('latin1', patients => 150);
$latin1->sql("SELECT cliniko_connect('latin1', '" . $account->key . "', '$umlauts')");
$account->reset;
for my $start (qw(start start_changes))
{
	$latin1->$start('latin1');
	$latin1->wait_for_runs('latin1');
	$run = $latin1->newest_run('latin1');
	is($run->{status}, 'failed', "latin1: $start: failed");
	is($run->{metadata}{error_type}, 'CONFIGURATION_ERROR', "latin1: $start: CONFIGURATION_ERROR");
	like($run->{error_details}, qr/encoding is LATIN1: create one with ENCODING 'UTF8'/,
		"latin1: $start: what to do");
	is_deeply($run->{metadata}{errors}, [ $run->{error_details} ], "latin1: $start: so say the errors");
	ok(!$run->{metadata}{retry_recommended}, "latin1: $start: another try is not recommended");
}
is($account->summary->{requests}, 0, 'latin1: Cliniko is not asked');
is($latin1->stored('latin1'), 0, 'latin1: nobody is stored');

# and every function answers what it has, in any encoding that a client wants.
is($latin1->call(q(cliniko_status('latin1')))->{sync_status}, 'failed', 'latin1: the status');
is($latin1->call(q(cliniko_sync_logs('latin1')))->{total_count}, 2, 'latin1: the logs');
is($latin1->sql(q(SELECT name FROM cliniko_organizations)), $umlauts, 'latin1: the name of the clinic');
like($latin1->refusal("SELECT cliniko_connect('latin1', '" . $account->key . "', '$kanji')"),
	qr/22P05/, 'latin1: a name that it has not is refused');
$latin1->sql(
	encode_utf8(
		"INSERT INTO patients (organization_id, cliniko_patient_id, first_name)
		 VALUES ('latin1', 1, 'Zo\x{eb}')"));
is( $latin1->call(encode_utf8("cliniko_active_patients('latin1', search => 'zo\x{eb}')"))->{patients}[0]{first_name},
	"Zo\x{eb}", 'latin1: a patient that was there is found');

# So does a test of the connection, whatever Cliniko says of the account:
# names that the database has are told as they are, others refused or left out.
for my $name ("Z\x{f6}\x{eb}", "\x{7f8e}\x{54b2}")
{
	my $settings = { account => { id => '7', name => $name, country_code => 'AU' } };

	$account->reset;
	$account->faults({ kind => 'status', path => '/settings/public', status => 200, request => 1,
			body => JSON::PP->new->encode($settings) });
	my $answer = $latin1->call(q(cliniko_test_connection('latin1')));
	is($answer->{status}, 'connected', 'latin1: a test of the connection');
	is($answer->{account}{name}, ord($name) < 256 ? $name : undef, 'latin1: the name of the account');
}

# Nothing of it has ended a worker.
is($_->workers, 1, $_->name . ': the worker is there') for $ascii, $latin1;
$db->finish;
