# However much a server is told to log, to explain and to keep of statements, a
# run leaves no patient's data and no API key there: not when it goes well, not
# when records are refused by a constraint or by a trigger that quotes them, and
# not when it ends in the middle of one.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Encode qw(encode_utf8);
use JSON::PP;
use MIME::Base64;
use PostgreSQL::Test::Utils;
use Test::More;

my $key = 'MS0xNzg-SecretBodyOfTheKey-0815';
my $db = Clinisync->new('main');
$db->set(requests_in_flight => 4);
my $node = $db->node;

# What of a record tells of a person.
my @telling = qw(
  address_1 address_2 address_3 appointment_notes custom_fields date_of_birth dva_card_number
  email emergency_contact first_name invoice_extra_information label last_name medicare notes
  old_reference_id patient_phone_numbers preferred_first_name);

# The words of a value, of a length that does not come about by chance, and as
# they are in whatever way a text is quoted.
sub words
{
	my ($value) = @_;
	return () if !defined $value || JSON::PP::is_bool($value);
	return map { words($_) } @$value if ref $value eq 'ARRAY';
	return map { words($value->{$_}) } grep { /^(?:sections|fields|number|normalized_number|value)$/ } keys %$value
	  if ref $value eq 'HASH';
	return grep { length >= 6 } split /[\r\n\t"'\\]+/, encode_utf8($value);
}

# Given a clinic, which was connected before the server was told to log all
# statements, with a record that cannot be, and some that the user's own
# constraint, index and triggers refuse,
my $account = $db->cliniko->account("$key-au1", patients => 170, archived => 10);
$db->connect('clinic', $account);
my @ids = $account->ids;
$account->mutate(set => { id => $ids[5], fields => { date_of_birth => 'Zq2023-02-31' } });
$account->mutate(
	set => [ map { { id => $_, fields => { last_name => 'Zq1 Twin' } } } @ids[ 8, 9 ] ]);
my %words = map { $_ => 1 } map { words([ @$_{@telling} ]) } @{ $account->truth };
my $word = join '|', map { quotemeta } sort keys %words;
my $secret = qr/(?<!\w)(?:$word)(?!\w)|zq[0-9]+|SecretBody|\Q${\ encode_base64("$key-au1:", '') }\E/i;
cmp_ok(scalar keys %words, '>', 500, 'there is a lot to be found');

$db->sql(
	qq(ALTER TABLE patients ADD CONSTRAINT not_this CHECK (cliniko_patient_id <> $ids[7]);
	   CREATE UNIQUE INDEX one_twin ON patients (last_name) WHERE cliniko_patient_id IN ($ids[8], $ids[9]);
	   CREATE TABLE complaints (id bigint, code text);
	   CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql AS \$\$
	   DECLARE
			code text = (SELECT c.code FROM public.complaints c WHERE c.id = NEW.cliniko_patient_id);
	   BEGIN
			IF code = 'wait' THEN
				PERFORM set_config('lock_timeout', '0', true);
				PERFORM pg_advisory_xact_lock(length(NEW.last_name) * 0 + 1);
			ELSIF code IS NOT NULL THEN
				-- everything that an error can be given, of which names look like names
				RAISE EXCEPTION 'no % here', NEW.last_name
					USING ERRCODE = code, DETAIL = concat(NEW.email), HINT = NEW.label,
					SCHEMA = 'public', TABLE = 'patients', DATATYPE = NEW.last_name,
					CONSTRAINT = NEW.last_name, COLUMN = NEW.first_name;
			END IF;
			RETURN NEW;
	   END \$\$;
	   CREATE TRIGGER complain BEFORE INSERT OR UPDATE ON patients
			FOR EACH ROW EXECUTE FUNCTION complain();
	   INSERT INTO complaints VALUES ($ids[11], 'P0001');));

# and a server that logs, explains and keeps all that it can.
$node->append_conf('postgresql.conf', <<'END');
shared_preload_libraries = 'pg_stat_statements, auto_explain'
log_statement = all
log_duration = on
log_lock_waits = on
log_min_messages = debug5
log_min_error_statement = debug5
log_min_duration_statement = 0
log_error_verbosity = verbose
log_parameter_max_length = -1
log_parameter_max_length_on_error = -1
track_activity_query_size = 64kB
pg_stat_statements.track = all
auto_explain.log_min_duration = 0
auto_explain.log_analyze = on
auto_explain.log_verbose = on
auto_explain.log_triggers = on
auto_explain.log_nested_statements = on
END
$node->append_conf('postgresql.conf', 'auto_explain.log_parameter_max_length = -1')
  if $node->pg_version >= 16;
$node->restart;
$db->sql('CREATE EXTENSION pg_stat_statements');
my $listener = $db->session;
$listener->query_safe('LISTEN clinisync');

# When it is synced, then four records are refused;
my $run = $db->sync('clinic');
is_deeply([ @$run{qw(status records_failed)} ], [ 'completed', 4 ], 'four records are refused');

# when the trigger raises what ends a run, or what is tried again,
for my $code (qw(XX000 PT404 42P01 08006))
{
	$db->sql("UPDATE complaints SET code = '$code'");
	is($db->sync('clinic')->{metadata}{error_type}, 'DATABASE_ERROR', "$code: failed");
}
for my $code (qw(55P03 40P01 53100 57014))
{
	$db->sql("UPDATE complaints SET code = '$code'");
	$db->start('clinic');
	$db->wait_until(q(SELECT metadata ->> 'waiting_for' = 'the database' FROM sync_logs WHERE status = 'running'));
	is($db->call(q(cliniko_cancel_sync('clinic')))->{success}, 1, "$code: tried again, and cancelled");
}

# when a worker is interrupted, and another terminated, while the trigger has a
# record in hand,
my $lock = $db->session;
$lock->query_safe('SELECT pg_advisory_lock(1)');
$db->sql(q(UPDATE complaints SET code = 'wait'));
my $is_waiting = q(SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted));
my $backends = q(FROM pg_stat_activity WHERE backend_type = 'clinisync worker');
my @activities;
$db->start('clinic');
for my $end (qw(pg_cancel_backend pg_terminate_backend))
{
	$db->wait_until($is_waiting);
	push @activities, $db->sql('SELECT a FROM pg_stat_activity a');
	$db->sql("SELECT $end(pid) $backends");
	# a batch that was interrupted is repeated
	$db->wait_until("SELECT NOT EXISTS (SELECT $backends)") if $end eq 'pg_terminate_backend';
}
$lock->quit;
$db->sql('DELETE FROM complaints');
$db->newest_run('clinic');
$db->wait_for_runs('clinic');
is($db->newest_run('clinic')->{status}, 'completed', 'terminated: resumed and completed');

# when everybody is written again, and some have changed, and whatever is called,
$db->sql('UPDATE patients SET record_hash = NULL');
is($db->sync('clinic')->{metadata}{updated}, 177, 'written again');
$account->mutate(edit => 3);
is($db->sync_changes('clinic')->{metadata}{updated}, 3, 'some have changed');
$db->call("$_('clinic')")
  for qw(cliniko_test_connection cliniko_status cliniko_sync_logs cliniko_active_patients);
push @activities, $db->sql('SELECT a FROM pg_stat_activity a');

# then none of it is where it must not be.
my %places = (
	'the server log' => slurp_file($node->logfile),
	'pg_stat_statements' => $db->sql('SELECT s FROM pg_stat_statements s'),
	'pg_stat_activity' => join("\n", @activities),
	sync_logs => $db->sql('SELECT l FROM sync_logs l'),
	notifications => join("\n", map { $listener->query_safe('SELECT 1') } 1 .. 2));

# What is looked for would be found, and each place has much to tell.
like($db->sql('SELECT p FROM patients p'), $secret, 'patients has it');
my %tells = (
	'the server log' => qr/Query Text: INSERT INTO public\.patients .*Trigger complain/s,
	'pg_stat_statements' => qr/INSERT INTO public\.patients/,
	'pg_stat_activity' => qr/syncing 1 organization/,
	sync_logs => qr/Patient ID $ids[11]: refused by the database/,
	notifications => qr/"organization_id": "clinic"/);
for my $place (sort keys %places)
{
	like($places{$place}, $tells{$place}, "$place tells a lot");
	my @found = grep { /$secret/ } split /\n/, $places{$place};
	is(scalar @found, 0, "neither a key nor a patient's data is in $place")
	  or diag(join "\n", map { /$secret/; "$&: " . substr($_, 0, 300) } splice(@found, 0, 20));
}

$db->finish;
