# Logs that are older than clinisync.log_retention go when a run ends; the newest
# ten of each organisation stay, and what later runs build upon.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

my $db = Clinisync->new('main');

# Make an organisation's runs look older by some days.
sub age
{
	my ($org, $days) = @_;
	$db->sql("UPDATE sync_logs SET started_at = started_at - interval '$days days',
		completed_at = completed_at - interval '$days days' WHERE organization_id = '$org'");
}

# Insert logs of runs that ended days ago, the oldest first.
sub add_logs
{
	my ($org, $status, $type, @days) = @_;
	my $days = join ', ', @days;
	$db->sql("INSERT INTO sync_logs (organization_id, operation_type, status, started_at, completed_at)
		SELECT '$org', '$type', '$status', now() - d * interval '1 day', now() - d * interval '1 day'
		  FROM unnest(ARRAY[$days]) WITH ORDINALITY AS l (d, nr) ORDER BY nr");
}

# How many logs an organisation has, of those that match.
sub logs
{
	my ($org, $condition) = @_;
	return $db->sql("SELECT count(*) FROM sync_logs WHERE organization_id = '$org' AND $condition");
}

# Sync to the end, and past the housekeeping: until a worker that would have
# more to do has left.
sub sync_and_tidy
{
	my ($org) = @_;
	my $run = $db->sync($org);
	$db->wait_for_workers(0);
	return $run;
}
$db->set(idle_timeout => '1ms');
$db->sql('SELECT cliniko_setup()');

# Given hundreds of old logs, more than are deleted at once, when a run ends,
# then the old ones are gone, and those that are not old are there.
$db->add_clinic($_, patients => 20) for qw(many few other);
add_logs('many', 'failed', 'full_patients', reverse 91 .. 390);
add_logs('many', 'failed', 'full_patients', reverse 1 .. 89);
add_logs('other', 'failed', 'full_patients', reverse 91 .. 120);
is(sync_and_tidy('many')->{status}, 'completed', 'many: completed');
is(logs('many', "started_at < now() - interval '90 days'"), 0, 'many: the old ones are gone');
is(logs('many', "started_at >= now() - interval '90 days'"), 90, 'many: the others are there');
is(logs('other', 'true'), 30, q(many: another organisation's are there));

# When all are old, then the newest ten stay.
add_logs('few', 'failed', 'full_patients', reverse 100 .. 119);
sync_and_tidy('few');
is(logs('few', 'true'), 10, 'few: ten stay');
is(logs('few', "started_at > now() - interval '110 days'"), 10, 'few: the newest');

# When the last completed runs are old, then they stay too: the status and runs
# of changes go by them.
age('few', 200);
my $before = $db->call(q(cliniko_status('few')));
add_logs('few', 'completed', 'incremental_patients', 101);
add_logs('few', 'failed', 'full_patients', reverse 92 .. 99);
$db->connect('few', $db->cliniko->account('KEY-few-au1', patients => 20));
$db->sql(q(UPDATE cliniko_organizations SET updated_at = now() - interval '1 year',
	sync_enabled = true WHERE organization_id = 'few'));
add_logs('few', 'failed', 'full_patients', reverse 1 .. 12);
my $account = $db->cliniko->account('KEY-few-au1', patients => 20);
$account->faults({ kind => 'status', status => 403, request => 'every' });
is(sync_and_tidy('few')->{status}, 'failed', 'last completed: another one fails');
is(logs('few', "status = 'completed' AND operation_type = 'full_patients'"), 1,
	'last completed: the full one stays');
is(logs('few', "status = 'completed' AND operation_type = 'incremental_patients'"), 1,
	'last completed: the one of changes stays');
is(logs('few', "started_at < now() - interval '90 days'"), 2, 'last completed: no other old one');
is_deeply(
	$db->call(q(cliniko_status('few')))->{patient_counts}{total_in_cliniko},
	$before->{patient_counts}{total_in_cliniko},
	'last completed: the status says the same');
$account->reset;
is($db->start_changes('few')->{operation_type}, 'incremental_patients',
	'last completed: changes are still counted from it');
$db->wait_for_runs('few');

# Whoever wants to keep all of them can,
$db->set(log_retention => 0);
add_logs('other', 'failed', 'full_patients', reverse 1000 .. 1020);
sync_and_tidy('other');
is(logs('other', 'true'), 52, 'for ever: all are there');

# and a table that refers to a log keeps it, and no run fails by it.
$db->set(log_retention => '90d');
$db->sql(q(CREATE TABLE audits (organization_id text, sync_id bigint,
	FOREIGN KEY (organization_id, sync_id) REFERENCES sync_logs (organization_id, id));
	INSERT INTO audits SELECT organization_id, min(id) FROM sync_logs
	 WHERE organization_id = 'other' GROUP BY 1));
is(sync_and_tidy('other')->{status}, 'completed', 'referred to: completed');
is(logs('other', 'true'), 53, 'referred to: nothing is deleted');
like(PostgreSQL::Test::Utils::slurp_file($db->node->logfile),
	qr/log_retention could not be deleted: SQLSTATE 23503/, 'referred to: the server log says so');

$db->finish;
