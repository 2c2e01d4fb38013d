# An hour in which Cliniko answers nothing but errors costs a run that hour, and
# nothing else. The server's clock is put forward instead of waiting (clock.c).

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

my $temp = PostgreSQL::Test::Utils::tempdir();
my $ahead_us = 0;

# Put the server's clock forward.
sub put_forward
{
	my ($us) = @_;

	$ahead_us += $us;
	# in place: the server has mapped it
	open(my $file, '+<', "$temp/clock") or die $!;
	binmode $file;
	syswrite($file, pack('q', $ahead_us)) == 8 or die $!;
	close($file);
}

open(my $file, '>', "$temp/clock") or die $!;
print $file pack('q', 0);
close($file);
system_or_bail('cc', '-shared', '-fPIC', '-o', "$temp/clock.so", "$FindBin::RealBin/clock.c", '-ldl');
my $db = Clinisync->new('main',
	environment => { LD_PRELOAD => "$temp/clock.so", CLOCK_FILE => "$temp/clock" });

# Given a clinic of which one page has arrived when an outage begins,
my $account = $db->add_clinic('clinic', patients => 250);
$account->faults({ kind => 'status', status => 503, request => 2, times => 100_000 });
$db->start('clinic');
$db->wait_until(q(SELECT records_success = 100 AND metadata ->> 'step' = 'waiting' FROM sync_logs));

# when that lasts for an hour,
my $begin = $db->sql('SELECT clock_timestamp()');
my $waits = 0;
my $run;
while ($db->sql("SELECT clock_timestamp() <= timestamptz '$begin' + interval '1 hour'") eq 't')
{
	# the clock goes on to the end of the pause, and the worker takes a look at it
	my ($retries, $until_us) = split /\|/, $db->sql(
		q(SELECT metadata ->> 'retries', ceil(extract(epoch FROM
				(metadata ->> 'waiting_until')::timestamptz - clock_timestamp()) * 1e6)
			FROM sync_logs));
	put_forward($until_us + 1_000_000) if $until_us > 0;
	$db->sql('SELECT pg_reload_conf()');
	$db->wait_until(qq(SELECT status <> 'running' OR (metadata ->> 'retries')::int > $retries
			AND metadata ->> 'step' = 'waiting' FROM sync_logs));
	$waits++;
	$run = $db->newest_run('clinic');
	last if $run->{status} ne 'running';
}

# then the run is not failed, but waits, and says for what and until when,
is($run->{status}, 'running', 'after an hour: running');
is($run->{metadata}{step}, 'waiting', 'after an hour: waiting');
is($run->{metadata}{waiting_for}, 'Cliniko to answer again', 'after an hour: for what');
is($db->sql("SELECT '$run->{metadata}{waiting_until}' > timestamptz '$begin' + interval '1 hour'"),
	't', 'after an hour: until when');
is($run->{records_success}, 100, 'after an hour: what was stored is there');
cmp_ok($waits, '>', 50, 'after an hour: it kept trying');
cmp_ok($waits, '<', 200, 'after an hour: but not all the time');

# and when Cliniko answers again, then it completes.
$account->faults();
put_forward(60_000_000);
$db->sql('SELECT pg_reload_conf()');
$db->wait_for_runs('clinic');
$run = $db->newest_run('clinic');
is($run->{status}, 'completed', 'after the outage: completed');
cmp_ok($run->{metadata}{duration_ms}, '>', 3_600_000, 'after the outage: it took more than an hour');
$db->is_copy_of('clinic', $account, 'after the outage');

$db->finish;
