# Whatever an administrator drops or stops while Cliniko keeps the worker
# waiting: it is done at once, nothing crashes, and the patients stay.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');
# so that a worker that has nothing to do any more is seen to leave
$db->set(idle_timeout => '10ms');

# Start a run of a new clinic of 250 patients that Cliniko answers one page
# of, and no more.
sub hold
{
	my ($database, $org) = @_;
	my $account = $database->add_clinic($org, patients => 250);

	$account->gates(2);
	$database->start($org);
	$account->await_gate(2);
	$database->wait_until("SELECT records_success = 100 FROM sync_logs WHERE organization_id = '$org'");
	return $account;
}

# Given a run that is held, when another database is dropped, for which every
# process of the server has to take notice, then that is done meanwhile.
my $account = hold($db, 'clinic');
my $unrelated = $db->new_database('unrelated', empty => 1);
$db->sql('DROP DATABASE unrelated');
is($account->summary->{in_flight}, 1, 'another database is dropped while Cliniko hangs');
is($db->workers, 1, 'the worker is still there');

# When the extension is dropped, then that is done meanwhile too,
my $patients = $db->sql('SELECT string_agg(xmin::text || id::text, $$,$$ ORDER BY id) FROM patients');
$db->sql('DROP EXTENSION clinisync');
is($account->summary->{in_flight}, 1, 'the extension is dropped while Cliniko hangs');

# the worker ends the run and leaves when it comes to notice,
$account->open_gate(2);
$db->wait_for_workers(0);
is($db->sql(q(SELECT status || ' ' || (metadata ->> 'error_type') FROM sync_logs)),
	'failed CONFIGURATION_ERROR', 'the run is failed and says why');
is( $db->sql(
		q(SELECT completed_at IS NOT NULL AND error_details IS NOT NULL
			AND jsonb_array_length(metadata -> 'errors') > 0 FROM sync_logs)),
	't', 'and tells the details');

# and every patient is still there.
is($db->sql('SELECT string_agg(xmin::text || id::text, $$,$$ ORDER BY id) FROM patients'),
	$patients, 'no patient was touched');
is($db->sql(q(SELECT to_regproc('cliniko_sync_all') IS NULL)), 't', 'the functions are gone');

# When the extension is created again, then it takes up what is there.
$db->sql('CREATE EXTENSION clinisync; SELECT cliniko_setup()');
my $run = $db->sync('clinic');
is($run->{status}, 'completed', 'created again: completed');
is($run->{metadata}{unchanged}, 100, 'created again: what was there is unchanged');
is($run->{metadata}{inserted}, 150, 'created again: the rest is inserted');
$db->is_copy_of('clinic', $account, 'created again');

# When the extension is dropped while the worker idles, and created again,
# then the worker goes on as if nothing had happened.
$db->set(idle_timeout => '1min');
$db->sync('clinic');
is($db->workers, 1, 'the worker idles');
$db->sql('DROP EXTENSION clinisync; CREATE EXTENSION clinisync; SELECT cliniko_setup()');
$account->mutate(edit => 1);
is($db->sync('clinic')->{metadata}{updated}, 1, 'dropped while idle: goes on');

# When a database is dropped with a run held in it, then its worker goes and
# nobody else notices.
my $doomed = $db->new_database('doomed');
my $lost = hold($doomed, 'lost');
$db->sql('DROP DATABASE doomed WITH (FORCE)');
is($db->sql(q(SELECT count(*) FROM pg_stat_activity WHERE datname = 'doomed')),
	0, 'the doomed database has no worker any more');
is($db->sync('clinic')->{metadata}{unchanged}, 250, 'the other goes on');

# When a run is held and its clinic disconnected, then the run ends,
my $left = hold($db, 'left');
$db->call(q(cliniko_disconnect('left')));
$run = $db->newest_run('left');
is_deeply([ $run->{status}, $run->{metadata}{error_type} ],
	[qw(failed SYNC_CANCELLED)], 'disconnected: the run is cancelled');
$left->open_gate(2);
is($db->stored('left'), 100, 'disconnected: its patients stay');

# and when the server is stopped while a request is held, then it stops.
hold($db, 'stopped');
$db->finish;
