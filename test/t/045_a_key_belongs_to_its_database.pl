# A sealed API key opens in the database that it was sealed in, and in no other:
# not in a copy of it, not in a row that was taken elsewhere, until a superuser has
# it adopted. It stays with its database when that is renamed or upgraded.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = Clinisync->new('main');
my $node = $db->node;
my $key_file = $node->data_dir . '/clinisync.key';

# A database whose worker leaves when it has no work, so that it can be copied and renamed.
sub database
{
	my ($name, %options) = @_;
	my $database = $db->new_database($name, %options);

	$database->set(idle_timeout => '1ms');
	return $database;
}

sub sealed
{
	my ($database, $org) = @_;
	return $database->sql(
		"SELECT encode(api_key_sealed, 'hex') FROM cliniko_organizations WHERE organization_id = '$org'");
}

sub put_sealed
{
	my ($database, $org, $sealed) = @_;
	$database->sql(
		"UPDATE cliniko_organizations SET api_key_sealed = '\\x$sealed' WHERE organization_id = '$org'");
}

# Whether a clinic's key can be used.
sub opens
{
	my ($database, $org, $test) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $answer = $database->call("cliniko_test_connection('$org')");
	is($answer->{status}, 'connected', "$test: the key opens") or diag(explain($answer));
}

# Whether it cannot, neither for a test of the connection nor for a run, and both say
# what can be done.
sub is_closed
{
	my ($database, $org, $test, $advice) = @_;
	my $answer = $database->call("cliniko_test_connection('$org')");
	my $run = $database->sync($org);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply([ $answer->{error_code}, $run->{metadata}{error_type} ],
		[ ('CREDENTIALS_UNREADABLE') x 2 ], "$test: the key does not open");
	like("$answer->{message} $run->{error_details}", qr/$advice.* $advice/, "$test: what to do is said");
}

# An API key as 0.1.0 sealed it: for its organization alone.
sub sealed_by_010
{
	my ($org, $key) = @_;
	my ($file_key) = slurp_file($key_file) =~ /^([0-9a-f]{64})$/m;
	my $program = q(
		const { createCipheriv, createHash, randomBytes } = require('node:crypto');
		const [fileKey, org, apiKey] = process.argv.slice(1);
		const key = Buffer.from(fileKey, 'hex');
		const id = createHash('sha256').update('clinisync key id\0').update(key).digest().subarray(0, 4);
		const head = Buffer.concat([Buffer.from([1]), id]);
		const nonce = randomBytes(12);
		const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(Buffer.concat([head, Buffer.from(org)]));
		const text = Buffer.concat([cipher.update(apiKey), cipher.final()]);
		console.log(Buffer.concat([head, nonce, text, cipher.getAuthTag()]).toString('hex')));
	my ($sealed, $error);
	IPC::Run::run([ 'node', '-e', $program, $file_key, $org, $key ], '<', \'', '>', \$sealed, '2>', \$error)
	  or die $error;
	chomp $sealed;
	return $sealed;
}

# Given two databases of a server, with a clinic of the same name in each,
my $app = database('app');
$app->add_clinic('clinic', patients => 20);
is($app->sync('clinic')->{status}, 'completed', 'the clinic syncs');
my $neighbour = database('neighbour');
$neighbour->connect('clinic', $db->cliniko->account('KEY-neighbour-au1', patients => 7));
$neighbour->connect('own', $db->cliniko->account('KEY-own-au1', patients => 5));

# when one is copied, then its key does not open there, and nothing else is lost;
$app->wait_for_workers(0);
my $copy = database('copy', copy_of => 'app');
is_closed($copy, 'clinic', 'a copy', qr/cliniko_adopt_keys\(\)/);
is($copy->stored('clinic'), 20, 'a copy: its patients are there');
like($copy->refusal('SELECT cliniko_rotate_key()'), qr/PT409.*cliniko_adopt_keys\(\)/s,
	'a copy: nor does a rotation make it its own');

# when a row's value is taken to the other, then it does not open there either, also
# not with that one's number in the place of its own, or after a rotation.
my $neighbours = sealed($neighbour, 'clinic');
my $taken = sealed($app, 'clinic');
put_sealed($neighbour, 'clinic', $taken);
is_closed($neighbour, 'clinic', 'taken elsewhere', qr/cliniko_adopt_keys\(\)/);
my $renumbered = substr($taken, 0, 10) . substr($neighbours, 10, 8) . substr($taken, 18);
put_sealed($neighbour, 'clinic', $renumbered);
is_closed($neighbour, 'clinic', 'renumbered', qr/altered/);
put_sealed($neighbour, 'clinic', $taken);
my $answer = $neighbour->call('cliniko_rotate_key()');
is_deeply([ @$answer{qw(resealed unreadable)} ], [ 1, 1 ], 'rotated: only what is its own');
is(sealed($neighbour, 'clinic'), $taken, 'rotated: the other is as it was');
is_closed($neighbour, 'clinic', 'rotated', qr/cliniko_adopt_keys\(\)/);

# Only a superuser can have it adopted,
$db->sql('CREATE ROLE boss');
$copy->sql(q(SELECT cliniko_grant('boss', 'admin')));
$answer = sealed($copy, 'clinic');
like($copy->refusal('SET ROLE boss; SELECT cliniko_adopt_keys()'), qr/42501.*cliniko_adopt_keys/s,
	'an admin cannot adopt');

# and only while the key file can open it;
rename($key_file, "$key_file.away") or die $!;
like($copy->refusal('SELECT cliniko_adopt_keys()'),
	qr/PT409.*^DETAIL:\s+CREDENTIALS_UNREADABLE\n.*^HINT:.*missing/ms, 'without the key file: refused');
rename("$key_file.away", $key_file) or die $!;
is(sealed($copy, 'clinic'), $answer, 'neither has changed anything');

# then it opens there, and where it came from as well.
$answer = $copy->call('cliniko_adopt_keys()');
is_deeply([ @$answer{qw(message adopted unreadable)} ], [ 'Adopted', 1, 0 ], 'adopted: the answer');
opens($copy, 'clinic', 'adopted');
is($copy->sync('clinic')->{metadata}{unchanged}, 20, 'adopted: the copy syncs');
opens($app, 'clinic', 'adopted: the first');
is($copy->call('cliniko_adopt_keys()')->{adopted}, 0, 'adopted: once');

# Of several, those that cannot be opened stay as they are, and are counted.
put_sealed($neighbour, 'own', $renumbered);
$answer = $neighbour->call('cliniko_adopt_keys()');
is_deeply([ @$answer{qw(adopted unreadable)} ], [ 1, 0 ], 'of its own, none is adopted');
put_sealed($neighbour, 'own', substr($taken, 0, -2) . '00');
put_sealed($neighbour, 'clinic', $taken);
$answer = $neighbour->call('cliniko_adopt_keys()');
is_deeply([ @$answer{qw(message adopted unreadable)} ],
	[ 'Adopted, but not every API key could be read', 1, 1 ], 'one that was altered is counted');
opens($neighbour, 'clinic', 'the other');

# A database that is renamed keeps its keys.
$_->wait_for_workers(0) for $app, $copy;
$db->sql('ALTER DATABASE app RENAME TO renamed');
$app->{name} = 'renamed';
opens($app, 'clinic', 'renamed');

# What 0.1.0 has sealed is this database's own after an update, without another call;
my $old = database('old', version => '0.1.0');
my $other = $db->cliniko->account('KEY-other-au1', patients => 3);
$old->connect('clinic', $other);
my $of_010 = sealed_by_010('clinic', $other->key);
put_sealed($old, 'clinic', $of_010);
is_closed($old, 'clinic', 'of 0.1.0, before the update', qr/cliniko_adopt_keys\(\)/);
$old->sql('ALTER EXTENSION clinisync UPDATE');
opens($old, 'clinic', 'of 0.1.0, updated');
isnt(sealed($old, 'clinic'), $of_010, 'of 0.1.0, updated: sealed anew');

# and from then on its like is refused, there as anywhere else, unless it is adopted.
for my $database ($old, $neighbour)
{
	put_sealed($database, 'clinic', $of_010);
	is_closed($database, 'clinic', "of 0.1.0, in $database->{name}", qr/cliniko_adopt_keys\(\)/);
}
$neighbour->call('cliniko_adopt_keys()');
opens($neighbour, 'clinic', 'of 0.1.0, adopted');

# An update succeeds also where the key cannot be read.
my $lost = database('lost', version => '0.1.0');
$lost->connect('clinic', $other);
put_sealed($lost, 'clinic', substr($of_010, 0, -2) . '00');
$lost->sql('ALTER EXTENSION clinisync UPDATE');
is_closed($lost, 'clinic', 'of 0.1.0, unreadable', qr/cliniko_adopt_keys\(\)/);

# or its row not be written, of which it warns.
my $kept = database('kept', version => '0.1.0');
$kept->connect('clinic', $other);
put_sealed($kept, 'clinic', $of_010);
$kept->sql(
	q(CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';
	  CREATE TRIGGER keep BEFORE UPDATE ON cliniko_organizations FOR EACH ROW EXECUTE FUNCTION keep()));
$kept->sql('ALTER EXTENSION clinisync UPDATE');
$node->wait_for_log(qr/WARNING:  the API keys of 0\.1\.0 could not be adopted: SQLSTATE P0001/);
$kept->sql('DROP FUNCTION keep() CASCADE');
is($kept->call('cliniko_adopt_keys()')->{adopted}, 1, 'of 0.1.0, kept: adopted when that is over');
opens($kept, 'clinic', 'of 0.1.0, kept');

# When the server is upgraded, and has its key file, then the keys open.
$db->is_quiet(expected => qr/could not be adopted/);
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
my $bindir = $node->config_data('--bindir');
chdir $PostgreSQL::Test::Utils::tmp_check or die $!;
$node->command_ok(
	[
		'pg_upgrade', '--no-sync', '-d', $node->data_dir, '-D', $new->data_dir, '-b', $bindir,
		'-B', $bindir, '-s', $new->host, '-p', $node->port, '-P', $new->port
	],
	'pg_upgrade');
append_to_file($new->data_dir . '/clinisync.key', slurp_file($key_file));
chmod 0600, $new->data_dir . '/clinisync.key';
$new->start;
my $upgraded = $app->on($new);
opens($upgraded, 'clinic', 'upgraded');
is($upgraded->sync('clinic')->{metadata}{unchanged}, 20, 'upgraded: it syncs');

$upgraded->finish;
