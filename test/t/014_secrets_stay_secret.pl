# An API key is nowhere but in the worker's memory, since it is kept sealed, and
# no patient's name leaves the table patients: whatever happens, and however
# much is logged.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use File::Find;
use MIME::Base64;
use PostgreSQL::Test::Utils;
use Test::More;

# Surnames of the simulator's patients, and what is made of them.
my $name = qr/zq[0-9]+/i;
my $key = 'MS0xNzg-SecretBodyOfTheKey-0815';
my $bad_key = 'SecretBodyOfTheKey with blanks';

# Given a server that logs all that it can, but for the statements themselves,
my $db = Clinisync->new('main',
	settings => "log_min_messages = debug1\n"
	  . "log_error_verbosity = verbose\n"
	  . "log_parameter_max_length_on_error = -1\n");

# and a clinic that holds a bad record, one that the user's own constraint
# refuses, and one that a trigger complains of with all it knows,
my $account = $db->cliniko->account("$key-au1", patients => 95, archived => 5);
$db->connect('clinic', $account);
my @ids = map { $_->{id} } @{ $account->truth };
$account->mutate(set => { id => $ids[5], fields => { date_of_birth => 'Zq2023-02-31' } });
$db->sql(
	qq(ALTER TABLE patients ADD CONSTRAINT not_this CHECK (cliniko_patient_id <> $ids[7]);
	   CREATE UNIQUE INDEX one_postcode ON patients (last_name, first_name)
			WHERE cliniko_patient_id IN ($ids[8], $ids[9]);
	   CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql AS \$\$
	   BEGIN
			RAISE EXCEPTION 'no % here', NEW.last_name USING DETAIL = NEW.email, HINT = NEW.label;
	   END \$\$;
	   CREATE TRIGGER complain BEFORE INSERT ON patients FOR EACH ROW
			WHEN (NEW.cliniko_patient_id = $ids[11]) EXECUTE FUNCTION complain();));
$account->mutate(
	set => [
		map { { id => $_, fields => { first_name => 'Twin', last_name => 'Zq1 Twin' } } }
		  @ids[ 8, 9 ]
	]);

# when it is synced,
my $run = $db->sync('clinic');
is($run->{status}, 'completed', 'the run is completed');
is($run->{records_failed}, 4, 'four records are refused');
is(scalar @{ $run->{metadata}{errors} }, 4, 'and told');

# when runs fail in any way, with answers that tell of patients and keys,
$db->set(retry_window => 0);
my $gossip = qq({"message": "No Zq123 for key $key-au1"});
for my $fault (
	(map { { kind => 'status', status => $_, body => $gossip } } 400, 401, 403, 404, 422, 429, 500),
	map { { kind => $_ } } qw(truncated_json reset_mid_body redirect))
{
	$account->faults({ %$fault, request => 'every' });
	is($db->sync('clinic')->{status}, 'failed', ($fault->{status} // $fault->{kind}) . ': failed');
	$db->call(q(cliniko_test_connection('clinic')));
}
$account->faults();

# when a key is malformed, in every way in which a statement can be sent,
for my $statement (
	"SELECT cliniko_connect('clinic', '$bad_key')",
	"SELECT cliniko_connect('', '$key-au1')",
	"DO \$\$ BEGIN PERFORM cliniko_connect('clinic', '$bad_key'); END \$\$",
	"PREPARE p AS SELECT cliniko_connect(\$1, \$2); EXECUTE p('clinic', '$bad_key')")
{
	isnt(scalar $db->node->psql('postgres', $statement), 0, 'a malformed call is refused');
}
my $script = "$PostgreSQL::Test::Utils::tmp_check/connect.sql";
append_to_file($script, 'SELECT cliniko_connect(:org, :key);');
$db->node->command_checks_all(
	[
		qw(pgbench --no-vacuum --transactions=1 --protocol=extended --define=org=clinic),
		"--define=key=$bad_key", "--file=$script", 'postgres'
	],
	2, [qr/^/], [qr/this is not a Cliniko API key/], 'so is one with parameters');

# when the key is tried, exchanged and forgotten, and its worker terminated,
my $session = $db->session;
$session->query_safe("SELECT cliniko_connect('clinic', '$key-au1')");
$db->call(q(cliniko_test_connection('clinic')));
$account->reset;
$account->gates(1);
$db->start('clinic');
$account->await_gate(1);
$db->terminate_worker;
$account->gates();
$db->newest_run('clinic');
$db->wait_for_runs('clinic');

# then none of it is where it must not be.
my $log = slurp_file($db->node->logfile);
my $logs = $db->sql('SELECT string_agg(l::text, chr(10)) FROM sync_logs l');
my ($dump) = run_command([ 'pg_dump', '-d', $db->node->connstr('postgres') ]);
my ($patients) = run_command(
	[ 'pg_dump', '-t', 'patients', '-d', $db->node->connstr('postgres') ]);

# what is looked for would be found
like($patients, $name, 'names are in the table patients');
like($log, qr/registering background worker "clinisync worker"/, 'the log tells a lot');
like($log, qr/PT400/, 'also of malformed keys');
like($logs, qr/Patient ID/, 'the logs tell of patients');

is_deeply([ grep { /SecretBody/ } split /\n/, $log ], [], 'no key is in the server log');
is(index($log, encode_base64("$key-au1:", '')), -1, 'also not as it is sent');
is_deeply([ grep { /SecretBody/ } split /\n/, $dump ], [], 'no key is in a dump');
is_deeply([ grep { /$name/ } split /\n/, $log ], [], 'no name is in the server log');
is_deeply([ grep { /$name/ } split /\n/, $logs ], [], 'no name is in sync_logs');
my $activity = $db->sql('SELECT string_agg(a::text, chr(10)) FROM pg_stat_activity a');
like($activity, qr/cliniko_connect/, 'the session that passed a key is still there');
is_deeply([ grep { /SecretBody|$name/ } split /\n/, $activity ],
	[], 'neither is in pg_stat_activity');

# Nor is a key in any file of the server's, be it a table's or the WAL.
$db->sql('CHECKPOINT');
my $sealed = pack 'H*', $db->sql(q(SELECT encode(api_key_sealed, 'hex') FROM cliniko_organizations));
my $table = $db->node->data_dir . '/' . $db->sql(q(SELECT pg_relation_filepath('cliniko_organizations')));
my %files;
find(
	{
		no_chdir => 1,
		wanted => sub { $files{$_} = slurp_file($_) if -f }
	},
	$db->node->data_dir);
cmp_ok(index($files{$table}, $sealed), '>', 0, 'the sealed key is in its table');
is_deeply([ grep { index($files{$_}, 'SecretBody') >= 0 } sort keys %files ],
	[], 'no key is in any file of the server');

$session->quit;
$db->finish;
