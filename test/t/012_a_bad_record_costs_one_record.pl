# A record that cannot be stored costs that record and nothing else, and is
# told by its id, without a value of the patient's.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');
$db->set(page_size => 40);

# The records but for those of these ids.
sub without
{
	my ($records, @ids) = @_;
	my %out = map { $_ => 1 } @ids;
	return [ grep { !$out{ $_->{id} } } @$records ];
}

# Check that a run is complete but for these patients.
sub is_complete_without
{
	my ($run, $account, $ids, $test) = @_;
	my $truth = $account->truth;
	my $metadata = $run->{metadata};

	is($run->{status}, 'completed', "$test: completed");
	is($run->{records_failed}, scalar @$ids, "$test: so many records failed");
	Clinisync::is_accounted_for($run, scalar @$truth, $test);
	is_deeply([ sort map { /^Patient ID (\d+): ./ ? $1 : $_ } @{ $metadata->{errors} } ],
		[ sort @$ids ], "$test: the errors name them");
	unlike("@{ $metadata->{errors} }", qr/Zq|2023|soon/i, "$test: and no value of theirs");
	$db->has_records($run->{organization_id}, without($truth, @$ids), "$test: all others are there");
	cmp_ok($metadata->{success_rate}, '<', 100, "$test: success_rate");
}

# Given a clinic with values that cannot be,
my $account = $db->add_clinic('clinic', patients => 96, archived => 4);
my @ids = map { $_->{id} } @{ $account->truth };
my %impossible = (
	$ids[0] => { date_of_birth => '2023-02-31' },
	$ids[50] => { archived_at => 'soon' },
	$ids[51] => { accepted_privacy_policy => 'soon' },
	$ids[52] => { latest_booking => { links => { self => 'https://api.au1.cliniko.com/v1/soon' } } },
	$ids[99] => { created_at => '2023-13-01T00:00:00Z' });
my @bad = sort keys %impossible;
my %possible = map { $_->{id} => $_ } @{ $account->truth };
$account->mutate(set => [ map { { id => $_, fields => $impossible{$_} } } @bad ]);

# when it is synced, then the others arrive.
my $run = $db->sync('clinic');
is_complete_without($run, $account, \@bad, 'impossible values');
is($db->stored('clinic'), 95, 'impossible values: five are missing');
is($run->{metadata}{progress_percent}, 100, 'impossible values: 100 percent');

# When the values are put right, then these arrive too.
$account->mutate(put => [ map { $possible{$_} } @bad ]);
$run = $db->sync('clinic');
is_deeply([ @{ $run->{metadata} }{qw(inserted unchanged)} ], [ 5, 95 ], 'put right: inserted');
$db->is_copy_of('clinic', $account, 'put right');

# When a patient who is stored already gets such a value, then the row stays
# as it was.
my $row = $db->rows('clinic')->{ $ids[0] };
$account->mutate(set => { id => $ids[0], fields => $impossible{ $ids[0] } });
$run = $db->sync('clinic');
is_complete_without($run, $account, [ $ids[0] ], 'gone bad');
is_deeply($db->rows('clinic')->{ $ids[0] }, $row, 'gone bad: the row is as it was');
$account->mutate(put => [ $possible{ $ids[0] } ]);

# Given constraints and triggers of the user's own, when they refuse some,
# then the others arrive.
my @refused = @ids[ 10, 11, 60 ];
my @dropped = @ids[ 30, 61 ];
my ($refused, $dropped) = map { join ', ', @$_ } \@refused, \@dropped;
$db->sql(
	qq(DELETE FROM patients;
	   ALTER TABLE patients ADD CONSTRAINT not_these CHECK (cliniko_patient_id NOT IN ($refused));
	   CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
	   CREATE TRIGGER leave_out BEFORE INSERT ON patients FOR EACH ROW
			WHEN (NEW.cliniko_patient_id IN ($dropped)) EXECUTE FUNCTION leave_out();));
$run = $db->sync('clinic');
is_complete_without($run, $account, [ @refused, @dropped ], 'refused');
is($db->stored('clinic'), 95, 'refused: five are missing');
my ($error) = grep { /$refused[0]/ } @{ $run->{metadata}{errors} };
like($error, qr/not_these/, 'refused: the error names the constraint');

# When they refuse everybody, then the run has failed, and the clinic next
# door has not noticed.
$db->sql(
	q(ALTER TABLE patients ADD CONSTRAINT nobody
		CHECK (organization_id <> 'refused_altogether')));
$db->add_clinic('refused_altogether', patients => 90);
my $neighbour = $db->add_clinic('neighbour', patients => 90);
$db->start_all(qw(refused_altogether neighbour));
$db->wait_for_runs(qw(refused_altogether neighbour));
$run = $db->newest_run('refused_altogether');
is($run->{status}, 'failed', 'all refused: failed');
is($run->{metadata}{error_type}, 'DATABASE_CONSTRAINT_ERROR', 'all refused: error_type');
is($run->{records_failed}, 90, 'all refused: counted');
cmp_ok(scalar @{ $run->{metadata}{errors} }, '<=', 101, 'all refused: not too many errors');
$db->is_copy_of('neighbour', $neighbour, 'the clinic next door');

# Given pages that are spoiled on their way, once: when a page is repeated,
# out of order, has a record twice, a wrong total or bytes that are no UTF-8,
# then the run goes on until everybody is there.
my @spoils = qw(repeat_page disorder duplicate wrong_total latin1);
my %spoiled = map { $_ => $db->add_clinic($_, patients => 90) } @spoils;
$spoiled{$_}->faults({ kind => $_, request => 2 }) for @spoils;
# and where a single record is, then it costs no more than that one, and the
# next run has it right.
my @marred = qw(bad_id lone_surrogate nul);
$spoiled{$_} = $db->add_clinic($_, patients => 90) for @marred;
$spoiled{$_}->faults({ kind => $_, request => 2 }) for @marred;
$db->start_all(@spoils, @marred);
$db->wait_for_runs(@spoils, @marred);
for my $kind (@spoils)
{
	$run = $db->newest_run($kind);
	is($run->{status}, 'completed', "$kind: completed");
	is($run->{records_success}, 90, "$kind: 90 stored");
	Clinisync::is_accounted_for($run, 90, $kind);
	$db->is_copy_of($kind, $spoiled{$kind}, $kind);
}
for my $kind (@marred)
{
	$run = $db->newest_run($kind);
	is($run->{status}, 'completed', "$kind: completed");
	Clinisync::is_accounted_for($run, 90, $kind);
	cmp_ok($run->{records_failed}, '<=', 1, "$kind: at most one record failed");
	$run = $db->sync($kind);
	is($run->{metadata}{unchanged}, 89, "$kind: no other was concerned");
	$db->is_copy_of($kind, $spoiled{$kind}, "$kind, again");
}
like($db->sql(q(SELECT metadata -> 'errors' FROM sync_logs WHERE organization_id = 'bad_id' ORDER BY id LIMIT 1)),
	qr/without a usable id/, 'bad_id: the error says so');

$db->finish;
