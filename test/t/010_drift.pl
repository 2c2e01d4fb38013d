# Patients who are archived, removed, edited and added while a run is between
# two pages never cost anybody else: whoever was there throughout arrives.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');
$db->set(page_size => 25);

# Keep everything that a run ever says of its progress: while the size of the
# job goes up and down, the percentage may not.
$db->sql(
	q(SELECT cliniko_setup();
	  CREATE TABLE history AS SELECT 1 AS seq, * FROM sync_logs WITH NO DATA;
	  ALTER TABLE history ALTER seq SET NOT NULL, ALTER seq ADD GENERATED ALWAYS AS IDENTITY;
	  CREATE FUNCTION keep_history() RETURNS trigger LANGUAGE plpgsql AS
	  'BEGIN INSERT INTO public.history OVERRIDING USER VALUE SELECT 0, NEW.*; RETURN NULL; END';
	  CREATE TRIGGER keep_history AFTER UPDATE ON sync_logs
		FOR EACH ROW EXECUTE FUNCTION keep_history();));

# The ids at these places of a list of records.
sub ids
{
	my ($records, @places) = @_;
	return [ map { $_->{id} } @$records[@places] ];
}

for my $order (qw(honoured rejected ignored))
{
	# Given a clinic of 200 patients, of whom Cliniko has sent two pages when
	# it is asked for the next,
	my $org = "sort_$order";
	my $account = $db->add_clinic($org, patients => 190, archived => 10, sort_by_id => $order);
	my $held = 3;
	my $before = $account->truth;

	$account->gates($held);
	$db->start($org);
	$account->await_gate($held);

	# when patients change who were fetched already, who are just being
	# fetched, and who have yet to be fetched; those at the edges of pages
	# above all,
	my $removed = ids($before, 0, 24, 25, 26, 49, 50, 51, 74, 75, 99, 100, 120 .. 150, 199);
	my $archived = ids($before, 2, 23, 27, 48, 52, 73, 76, 98, 101, 160, 198);
	my $edited = ids($before, 3, 22, 28, 47, 53, 72, 77, 97, 102, 161, 197);
	my $added = $account->mutate(
		archive => $archived,
		edit => $edited,
		remove => $removed,
		add => 30)->{added};
	my $after = $account->truth;
	my @stored = keys %{ $db->rows($org) };

	# and more with every page that follows, of whom many at once,
	$account->mutate(
		generate_on_request => [
			map {
				{
					request => $held + $_,
					remove => ids($before, 170 + $_),
					add => $_ == 4 ? 60 : 2,
					edit => 1
				}
			} 1 .. 9
		]);
	$account->open_gate($held);
	$db->wait_for_runs($org);

	# then the run is complete, and everybody who was there throughout is in
	# the table, also those who were there from the change on;
	my $run = $db->newest_run($org);
	is($run->{status}, 'completed', "$org: completed");
	Clinisync::is_accounted_for($run, $run->{metadata}{patients_found}, $org);
	my $rows = $db->rows($org);
	my %now = map { $_->{id} => 1 } @{ $account->truth };
	my @throughout = grep { $now{ $_->{id} } } @$after;
	note(sprintf '%d patients were there throughout', scalar @throughout);
	is_deeply([ grep { !$rows->{$_} } map { $_->{id} } @throughout ],
		[], "$org: whoever was there throughout is in the table");
	is_deeply([ grep { !$rows->{$_} } @$added ], [], "$org: so is who was added early");

	# whoever was stored stays, also without being in Cliniko any more;
	is_deeply([ grep { !$rows->{$_} } @stored ], [], "$org: no row vanished");

	# and the next run brings every change.
	$run = $db->sync($org);
	my $truth = $account->truth;
	is($run->{status}, 'completed', "$org, again: completed");
	Clinisync::is_accounted_for($run, scalar @$truth, "$org, again");
	$db->has_records($org, $truth, "$org, again: every field of every patient");
}

is( $db->sql(
		q(SELECT count(*) FROM (
			SELECT (metadata ->> 'progress_percent')::float8 AS percent,
				max((metadata ->> 'progress_percent')::float8)
					OVER (PARTITION BY id ORDER BY seq ROWS UNBOUNDED PRECEDING) AS highest
			FROM history) steps WHERE percent < highest)),
	0, 'the percentage never fell');
cmp_ok($db->sql('SELECT count(*) FROM history'), '>', 60, 'however often it was told');
is( $db->sql(
		q(SELECT count(*) FROM history
		   WHERE records_success + records_failed > records_processed
			  OR records_processed <> coalesce((metadata ->> 'patients_found')::bigint, 0))),
	0, 'and no counter contradicted another');

# Given a Cliniko that honours the filter by id, but not the order, and whose pages
# rise by chance, when it is synced, then those whom such a page hides arrive too.
$db->set(page_size => 7);
my $hidden = $db->add_clinic('hidden', patients => 18, ids => 'mixed', sort_by_id => 'ignored',
	absent => 'missing', seed => 186947);
my @ids = map { $_->{id} } @{ $hidden->truth };
my $run = $db->sync('hidden');
is($run->{status}, 'completed', 'a page that rises by chance: completed');
$db->is_copy_of('hidden', $hidden, 'a page that rises by chance');

# When as many are deleted as a page has hidden, so that their number says nothing,
# then those arrive as well.
my $evened = $db->add_clinic('evened', patients => 18, ids => 'mixed', sort_by_id => 'ignored',
	absent => 'missing', seed => 186947);
$evened->gates(4);
$db->start('evened');
$evened->await_gate(4);
$db->wait_until(q(SELECT count(*) = 15 FROM patients WHERE organization_id = 'evened'));
$evened->mutate(remove => [ (sort keys %{ $db->rows('evened') })[ 0 .. 2 ] ]);
$evened->open_gate(4);
is($db->ended_run('evened')->{status}, 'completed', 'as many hidden as deleted: completed');
$db->has_records('evened', $evened->truth, 'as many hidden as deleted: everybody is there');

# When as many are added as a page has hidden, so that their number does not even
# fall, then those arrive as well.
my $added = $db->add_clinic('added', patients => 18, ids => 'mixed', sort_by_id => 'ignored',
	absent => 'missing', seed => 186947);
my $early = $added->truth;
$added->mutate(generate_on_request => { request => 2, add => 3 });
is($db->sync('added')->{status}, 'completed', 'as many hidden as added: completed');
$db->has_records('added', $early, 'as many hidden as added: everybody is there');

# What Cliniko says wrongly to these requests: that there are these patients, and no others.
sub shown
{
	my ($records, @requests) = @_;
	return map { { kind => 'status', status => 200, request => $_,
		body => { patients => $records, total_entries => scalar @$records, links => {} } } } @requests;
}

# When Cliniko says twice, wrongly, that nobody is left, then all are counted, and
# the run goes on.
$db->set(page_size => 20);
my $twice = $db->add_clinic('twice', patients => 100);
$twice->faults(shown([], 3, 4));
is($db->sync('twice')->{status}, 'completed', 'nobody is left, said twice: completed');
$db->is_copy_of('twice', $twice, 'nobody is left, said twice');

# When it says so for a while, also when all are counted, then that is not believed.
for my $order (qw(honoured rejected))
{
	my $org = "while_$order";
	my $while = $db->add_clinic($org, patients => 100, sort_by_id => $order);
	$while->faults(shown([], 3 .. 7));
	is($db->sync($org)->{status}, 'completed', "$org: completed");
	$db->is_copy_of($org, $while, $org);
}

# Given a Cliniko that does not honour the order by id, when its first page by
# creation shows the newest alone, then the others arrive all the same;
my $newest = $db->add_clinic('newest', patients => 100, sort_by_id => 'rejected');
my @newest = @{ $newest->truth }[ 90 .. 99 ];
$newest->faults(shown(\@newest, 2));
$run = $db->sync('newest');
is($run->{status}, 'completed', 'the newest alone: completed');
Clinisync::is_accounted_for($run, 100, 'the newest alone');
$db->is_copy_of('newest', $newest, 'the newest alone');

# and where it shows them alone again when it is asked anew, the run is not completed.
$newest->reset;
$newest->faults(shown(\@newest, 2, 6));
$run = $db->sync('newest');
is($run->{status}, 'failed', 'the newest alone, again: failed');
is($run->{metadata}{error_type}, 'INCOMPLETE_ENUMERATION', 'the newest alone, again: says why');

$db->finish;
