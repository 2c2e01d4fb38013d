# The ids of runs and of patients tell a clinic nothing of the others: no sequence
# counts for all of them. They grow with time, also where the clock was put back,
# and none is used twice.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');

# The ids of a clinic's patients, in their order, by the patient's id in Cliniko.
sub ids
{
	my ($database, $org) = @_;
	return split /\n/, $database->sql(
		"SELECT id FROM patients WHERE organization_id = '$org' ORDER BY cliniko_patient_id");
}

# When two clinics are synced,
my $account = $db->add_clinic('clinic', patients => 150);
my $other = $db->add_clinic('other', patients => 30);
my $before = $db->sql('SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint');
my @runs = map { $db->sync($_)->{id} } qw(clinic other clinic);

# then no sequence has counted,
is( $db->sql(q(SELECT string_agg(sequencename, ',') FROM pg_sequences WHERE last_value IS NOT NULL)),
	'', 'no sequence has counted');
is($db->sql(q(SELECT pg_get_serial_sequence('sync_logs', 'id'))), '', 'sync_logs has none');

# and ids are the moments at which rows were made.
my $after = $db->sql('SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint');
my @ids = ids($db, 'clinic');
is(scalar(grep { $_ < $before || $_ > $after + 150 } @runs, @ids), 0, 'ids are moments');
ok($runs[0] < $runs[1] && $runs[1] < $runs[2], 'those of runs grow');
is(scalar(grep { $ids[$_] <= $ids[ $_ - 1 ] } 1 .. $#ids), 0, 'so do those of patients');
cmp_ok($after, '<', 2**53, 'JavaScript can count to them');

# When patients change, then they keep their ids.
$account->mutate(edit => 20);
$db->sync('clinic');
is_deeply([ ids($db, 'clinic') ], \@ids, 'a patient keeps their id');

# When a row is deleted whose id is the greatest, and its patient comes again, then
# the id is another, since somebody may have noted the old one.
$db->sql("DELETE FROM patients WHERE organization_id = 'clinic' AND id = $ids[-1]");
$db->sync('clinic');
cmp_ok((ids($db, 'clinic'))[-1], '>', $ids[-1], 'an id is not used twice');

# When the clock was ahead, and has been put back, then ids grow all the same.
my $ahead = $after + 24 * 3600 * 1_000_000;
$db->sql("UPDATE patients SET id = $ahead WHERE organization_id = 'clinic' AND id = $ids[0];
		  UPDATE sync_logs SET id = $ahead WHERE organization_id = 'clinic' AND id = $runs[0]");
$account->mutate(add => 3);
is($db->sync('clinic')->{id}, $ahead + 1, 'the clock was put back: the next run is the newest');
is(join(' ', (ids($db, 'clinic'))[ -3 .. -1 ]), join(' ', map { $ahead + $_ } 1 .. 3),
	'and so are the next patients');
$db->is_copy_of('clinic', $account, 'clinic');
cmp_ok($db->sync('other')->{id}, '<', $ahead, 'another clinic does not see that');

# A row that somebody else writes gets an id of its own.
$db->sql(q(INSERT INTO patients (organization_id, cliniko_patient_id) VALUES ('mine', 1), ('mine', 2);
		   INSERT INTO sync_logs (organization_id, operation_type, status) VALUES ('mine', 'mine', 'completed')));
is(scalar(ids($db, 'mine')), 2, 'rows of other programs have ids');
cmp_ok($db->sql(q(SELECT id FROM sync_logs WHERE organization_id = 'mine')), '>', $after,
	'which of logs are moments, too');

# Tables that were there before number their rows as they did, where the primary key is
# another than ours; and where it is ours, ids are given also if they are always generated.
my %adopted = (
	counted => 'id bigserial PRIMARY KEY, organization_id text NOT NULL',
	uuid => 'id uuid PRIMARY KEY DEFAULT gen_random_uuid(), organization_id text NOT NULL',
	always => 'organization_id text, id bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (organization_id, id)');
for my $name (sort keys %adopted)
{
	my $adopted = $db->new_database($name, empty => 1);

	$adopted->sql(
		"CREATE TABLE patients ($adopted{$name});
		 CREATE TABLE sync_logs (organization_id text, id bigint GENERATED ALWAYS AS IDENTITY,
								 PRIMARY KEY (organization_id, id));
		 CREATE EXTENSION clinisync;
		 SELECT cliniko_setup()");
	my $patients = $adopted->add_clinic($name, patients => 120);
	is($adopted->sync($name)->{status}, 'completed', "$name: completed");
	$adopted->is_copy_of($name, $patients, $name);
	my @theirs = ids($adopted, $name);
	is("@theirs[0, -1]", '1 120', "$name: the table counts") if $name eq 'counted';
	cmp_ok($theirs[0], '>', $after, "$name: ids are moments") if $name eq 'always';
}

$db->finish;
