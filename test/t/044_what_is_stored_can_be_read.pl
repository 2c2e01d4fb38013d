# Whatever Cliniko sends, what is stored of it can be read, dumped and restored:
# no number is written out at a length that nobody can read, and a record that is
# too large costs itself.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = Clinisync->new('main');
my $node = $db->node;

# Given a clinic of patients with as many numbers of as many digits as jsonb takes, in a
# column of their own, in a field that is JSON, and in one that is text,
my @numbers = ('1e131071') x 50_000;
my $numbers = join ',', @numbers;
my %records = (
	1 => qq("first_name": "Ann"),
	2 => qq("first_name": "Bea", "invented": [$numbers]),
	3 => qq("first_name": "Cid", "custom_fields": {"sections": [$numbers]}),
	4 => qq("first_name": "Dan", "notes": 1e131071, "pronouns": 1e131071),
	# jsonb takes none of these
	5 => qq("first_name": "Eve", "invented": [1e131072, -1E+999999999999, 1e-16384, ) . '9' x 131_073 . ']',
	# these it takes, and they are no longer than numbers are
	6 => qq("first_name": "Fay", "invented": [-0.5e-30, 1.25e3, 12345678901234567890.12, 1E39]),
	# at the ends of time, and as deep as it may be
	7 => qq("first_name": "Gus", "created_at": "0001-01-01T00:00:00+15:59", )
	  . qq("updated_at": "9999-12-31T23:59:60-15:59", "date_of_birth": "0001-01-01", "invented": )
	  . '[' x 100 . ']' x 100,
	# and this is no record that anybody has
	8 => qq("first_name": "Hal", "invented": [$numbers,$numbers]));
my $account = $db->add_clinic('clinic', patients => scalar keys %records);
my $page = join ', ', map { qq({"id": "$_", $records{$_}}) } sort keys %records;
my $total = keys %records;
$account->faults(
	{
		kind => 'status',
		status => 200,
		body => qq({"patients": [$page], "total_entries": $total, "links": {}}),
		request => 'every'
	});

# when it is synced, then all but the last are stored, as they were sent;
my $run = $db->sync('clinic');
is($run->{status}, 'completed', 'the run is completed');
Clinisync::is_accounted_for($run, $total, 'the run');
is_deeply($run->{metadata}{errors}, ['Patient ID 8: the record is larger than 512 kB'],
	'the record that is too large costs itself, and is told');
my $row = 'FROM patients WHERE first_name =';
is($db->sql(qq(SELECT jsonb_array_length(extra -> 'invented'), left(extra #>> '{invented,49999}', 20) $row 'Bea')),
	'50000|1e131071', 'numbers that are too long are strings, as they were sent');
is($db->sql(qq(SELECT left(custom_fields #>> '{sections,0}', 20) $row 'Cid')), '1e131071', 'also in a field that is JSON');
is($db->sql(qq(SELECT notes, left(pronouns #>> '{}', 20) $row 'Dan')), '1e131071|1e131071', 'also alone');
is($db->sql(qq(SELECT length(extra #>> '{invented,3}'), extra #>> '{invented,1}' $row 'Eve')),
	'131073|-1E+999999999999', 'so are those that jsonb does not take');
is( $db->sql(qq(SELECT extra -> 'invented' $row 'Fay')),
	'[-0.0000000000000000000000000000005, 1250, 12345678901234567890.12, 1' . '0' x 39 . ']',
	'all others are numbers');

# and they can be read, in all ways,
my $stored = $total - 1;
is($db->sql('SELECT count(p::text), count(to_jsonb(p)::text) FROM patients p'), "$stored|$stored",
	'every row can be read as text');
cmp_ok($db->sql('SELECT max(length(p::text)) FROM patients p'), '<', 10 * 1024 * 1024, 'none is of a length to fear');
is(scalar @{ $db->call(q(cliniko_active_patients('clinic')))->{patients} }, $stored, 'all are listed');

# dumped, and restored.
my $everything = q(SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM patients p);
my $dump = "$PostgreSQL::Test::Utils::tmp_check/read_again.sql";
$node->command_ok([ 'pg_dump', '-f', $dump, $db->name ], 'pg_dump');
my $restored = $db->new_database('restored', empty => 1);
$node->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $restored->name ], 'restored');
is($restored->sql($everything), $db->sql($everything), 'every row is the same');

# The next sync finds nothing to write.
is($db->sync('clinic')->{metadata}{unchanged}, $stored, 'synced again: nothing is written');

$db->finish;
