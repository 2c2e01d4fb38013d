# Whatever a record holds, and in whichever way it leaves values out, it
# arrives as it is; and however the API orders patients, each arrives once.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use JSON::PP;
use Test::More;

my $db = Clinisync->new('main');
$db->set(requests_in_flight => 4);

# Given clinics of every kind,
my %kinds = (
	nulls => { absent => 'null', ids => 'old' },
	blanks => { absent => 'empty', ids => 'snowflake' },
	missing => { absent => 'missing', ids => 'mixed' },
	uncompressed => { absent => 'mixed', ids => 'mixed', gzip => JSON::PP::false() },
	unsortable => { absent => 'mixed', sort_by_id => 'rejected' },
	unsorted => { absent => 'mixed', sort_by_id => 'ignored' },
	empty => { patients => 0, archived => 0, merged => 0 },
	single => { patients => 0, archived => 1, merged => 0 });
my %accounts =
  map { $_ => $db->add_clinic($_, patients => 120, archived => 6, merged => 1, %{ $kinds{$_} }) }
  keys %kinds;
# small pages, so that there are enough for any disorder to show
$db->set(page_size => 30);

# when they are synced, then all that each has arrives.
$db->sql('SELECT cliniko_sync_all_organizations()');
$db->wait_for_runs(keys %kinds);
for my $kind (sort keys %kinds)
{
	my $run = $db->newest_run($kind);
	my $found = { empty => 0, single => 1 }->{$kind} // 126;

	is($run->{status}, 'completed', "$kind: completed");
	Clinisync::is_accounted_for($run, $found, $kind);
	is($run->{metadata}{progress_percent}, 100, "$kind: 100 percent");
	$db->is_copy_of($kind, $accounts{$kind}, $kind);
}

# When a record holds what is hard to store, or fields that no documentation
# names yet, then nothing of it is lost.
my $account = $accounts{nulls};
my ($odd, $plain) = map { $_->{id} } @{ $account->truth }[ 17, 18 ];
$account->mutate(
	set => [
		{
			id => $odd,
			fields => {
				first_name => "before\0after",
				last_name => qq[O'Sample'); DROP TABLE "patients"; -- \\ \x{1F40D} {a,"b"}],
				notes => "one\r\ntwo\ttab" . 'x' x 100_000,
				pronouns => { nominative => "a\0b" },
				custom_fields => {
					sections => [ { name => "\0", archived => JSON::PP::true(), fields => [] } ]
				},
				invented => { text => "a\0b", list => [ 1, undef, JSON::PP::false() ] },
				invented_too => ''
			}
		},
		{ id => $plain, fields => { invented => undef } }
	]);
my $run = $db->sync('nulls');
is($run->{status}, 'completed', 'odd values: completed');
is($run->{metadata}{updated}, 2, 'odd values: updated');
is_deeply($run->{metadata}{errors}, [], 'odd values: no errors');
$db->is_copy_of('nulls', $account, 'odd values');

$run = $db->sync('nulls');
is($run->{metadata}{unchanged}, 126, 'odd values: not written again');

$db->finish;
