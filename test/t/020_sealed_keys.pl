# API keys are sealed with a key that is outside the database: whoever has the
# tables or a dump has no API key; and whatever happens to the file of keys,
# nothing is lost, and with the file put back all goes on.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = Clinisync->new('main', settings => "log_min_messages = debug1\n");
my $node = $db->node;
my $key_file = $node->data_dir . '/clinisync.key';
# a worker that has nothing to do leaves, and with it what it may know
$db->set(idle_timeout => '1ms', retry_window => 0);

# Every key that was ever in the file: none may show anywhere.
my %keys_seen;

sub keys_in_file
{
	my ($file) = @_;
	my @keys = grep { /^[0-9a-f]{64}$/ } split /\n/, slurp_file($file // $key_file);
	$keys_seen{$_} = 1 for @keys;
	return @keys;
}

# Put a file with this content in the place of what is there.
sub put
{
	my ($content, $mode, $file) = @_;
	$file //= $key_file;
	unlink $file;
	append_to_file($file, $content);
	chmod $mode, $file or die "chmod $file: $!\n";
}

sub sealed
{
	my ($org, $database) = @_;
	return ($database // $db)->sql(
		"SELECT encode(api_key_sealed, 'hex') FROM cliniko_organizations
		  WHERE organization_id = '$org'");
}

# Everything that must survive.
sub contents
{
	my ($database) = @_;
	return ($database // $db)->sql(
		q(SELECT (SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM patients p),
				 (SELECT md5(string_agg(o::text, ',' ORDER BY organization_id))
					FROM cliniko_organizations o)));
}

sub logs { return $db->sql(q(SELECT count(*), max(id) FROM sync_logs)); }

# Whether a clinic's key can be used.
sub opens
{
	my ($org, $test, $database) = @_;
	my $answer = ($database // $db)->call("cliniko_test_connection('$org')");
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($answer->{status}, 'connected', "$test: the key of $org opens") or diag(explain($answer));
}

# Whether it cannot, and both the test and a run say so and what to do.
sub is_unreadable
{
	my ($org, $advice, $test) = @_;
	my $answer = $db->call("cliniko_test_connection('$org')");

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply(
		[ $answer->{success} ? 1 : 0, @$answer{qw(status error_code)} ],
		[ 0, 'failed', 'CREDENTIALS_UNREADABLE' ],
		"$test: the connection test");
	like($answer->{message}, $advice, "$test: which says what to do");
	my $run = $db->sync($org);
	is_deeply(
		[ $run->{status}, $run->{metadata}{error_type} ],
		[qw(failed CREDENTIALS_UNREADABLE)],
		"$test: the run");
	like($run->{error_details}, $advice, "$test: which says what to do");
	unlike("$answer->{message} $run->{error_details}", qr{/|[0-9a-f]{64}}, "$test: without a path or a key");
}

# Given a clinic, when it is connected, then the file of keys is there, for
# nobody but the server;
ok(!-e $key_file, 'before the first key there is no file');
my $account = $db->add_clinic('clinic', patients => 30);
my $key = $account->key;
ok(-f $key_file, 'the first key makes the file');
is(sprintf('%04o', (stat $key_file)[2] & 07777), '0600', 'which nobody else can read');
is(scalar keys_in_file(), 1, 'with one key in it');
is($db->sync('clinic')->{status}, 'completed', 'the clinic syncs');

# no two sealed values are alike;
$db->connect('twin', $account);
my $first = sealed('clinic');
isnt(sealed('twin'), $first, 'the same API key is sealed differently for another clinic');
$db->connect('clinic', $account);
isnt(sealed('clinic'), $first, 'and for the same clinic, each time');
is(length sealed('clinic'), length $first, 'though they are of one length');

# and a dump has neither the API key nor what opens it.
for my $format (qw(plain custom))
{
	my $dump = "$PostgreSQL::Test::Utils::tmp_check/sealed.$format";
	$node->command_ok([ 'pg_dump', '-Z0', '-F', $format, '-f', $dump, $db->name ], "pg_dump, $format");
	my $content = slurp_file($dump);
	my ($hex) = keys_in_file();
	like($content, qr/cliniko_organizations/, "$format: a dump as it should be");
	is(index($content, $key), -1, "$format: without the API key");
	is(index($content, unpack 'H*', $key), -1, "$format: also not as bytea");
	is(index(lc $content, $hex), -1, "$format: without the key file's key");
	is(index($content, pack 'H*', $hex), -1, "$format: also not in binary");
}

# When a value is moved to another clinic's row, or altered, or is none, then
# it does not open, and the clinics beside it do.
$db->add_clinic('other', patients => 5);
my $others = sealed('other');
for my $case (
	[ moved => "(SELECT api_key_sealed FROM cliniko_organizations WHERE organization_id = 'clinic')" ],
	[ altered => "set_byte(api_key_sealed, 20, get_byte(api_key_sealed, 20) # 1)" ],
	[ 'of another tag' => "set_byte(api_key_sealed, octet_length(api_key_sealed) - 1,
		get_byte(api_key_sealed, octet_length(api_key_sealed) - 1) # 128)" ],
	[ truncated => "substr(api_key_sealed, 1, 20)" ],
	[ empty => "''::bytea" ],
	[ 'as before it was sealed' => "'\\x00'::bytea || '$key'::bytea" ])
{
	my ($name, $value) = @$case;
	$db->sql("UPDATE cliniko_organizations SET api_key_sealed = $value WHERE organization_id = 'other'");
	is_unreadable('other', qr/cliniko_connect\(\)/, $name);
	opens('clinic', $name);
	$db->sql("UPDATE cliniko_organizations SET api_key_sealed = '\\x$others'
			   WHERE organization_id = 'other'");
}
opens('other', 'as it was');

# When the file is missing, or can be read by others, or holds something else,
# then it is told, and nothing is lost;
my $content = slurp_file($key_file);
my @other_key = ('# another server\'s', '0123456789abcdef' x 4);
$keys_seen{ $other_key[1] } = 1;
my $contents = contents();
for my $case (
	[ 'missing', sub { unlink $key_file }, qr/missing: put it back/ ],
	[ 'exposed', sub { chmod 0644, $key_file }, qr/chmod 0600/ ],
	[ 'garbage', sub { put("garbage\n", 0600) }, qr/put it back/ ],
	[ 'empty', sub { put('', 0600) }, qr/put it back/ ],
	[ 'cut off', sub { put(substr($content, 0, -9), 0600) }, qr/put it back/ ],
	[ 'a directory', sub { unlink $key_file; mkdir $key_file }, qr/cannot be read/ ],
	[ 'of another key', sub { put(join("\n", @other_key, ''), 0600) }, qr/add that key's line/ ])
{
	my ($name, $break, $advice) = @$case;
	my $log_start = -s $node->logfile;

	$break->();
	is_unreadable('clinic', $advice, $name);
	is(contents(), $contents, "$name: nothing is lost");
	ok($name eq 'of another key'
		  || slurp_file($node->logfile, $log_start) =~ /cannot use its key file "\Q$key_file\E"/,
		"$name: the server's log has the path");

	# nor is it made anew, or worse, overwritten;
	ok(!-e $key_file, "$name: the file is not made when a key is to be opened") if $name eq 'missing';
	my $error = $db->refusal('SELECT cliniko_rotate_key()');
	like($error, qr/PT409.*^DETAIL:\s+CREDENTIALS_UNREADABLE\n.*^HINT:.*$advice/ms,
		"$name: no rotation");
	is(contents(), $contents, "$name: which changed nothing");
	ok(!-e $key_file, "$name: nor made a file") if $name eq 'missing';

	# and with the file put back, all goes on without connecting again.
	rmdir $key_file;
	put($content, 0600);
	is($db->sync('clinic')->{metadata}{unchanged}, 30, "$name, put back: the next sync completes");
}

# Given a backup of the file and of the database, when the key is rotated, then
# every value is another one and opens;
my $dump = "$PostgreSQL::Test::Utils::tmp_check/before_rotation.sql";
$node->command_ok([ 'pg_dump', '-f', $dump, $db->name ], 'a dump before the rotation');
my @orgs = qw(clinic other twin);
my %before = map { $_ => sealed($_) } @orgs;
my $neighbour = $db->new_database('neighbour');
my $next_door = $neighbour->add_clinic('clinic', patients => 3);
my $neighbours = sealed('clinic', $neighbour);
my @old_keys = keys_in_file();
my $answer = $db->call('cliniko_rotate_key()');
is_deeply([ @$answer{qw(resealed unreadable keys_in_file)} ], [ 3, 0, 2 ], 'rotated: the answer');
for my $org (@orgs)
{
	isnt(sealed($org), $before{$org}, "rotated: $org is sealed anew");
	opens($org, 'rotated');
}
my @keys = keys_in_file();
is_deeply([ @keys[ 1 .. $#keys ] ], \@old_keys, 'rotated: the file has a new key, and the old one behind it');
is(sprintf('%04o', (stat $key_file)[2] & 07777), '0600', 'rotated: nobody else can read it');
is_deeply([ grep { !/\.key$/ } glob("$key_file*") ], [], 'rotated: no other file is left');

# so do the keys of other databases, and of dumps, which a superuser has a copy
# adopt, and for which the old file is enough;
is(sealed('clinic', $neighbour), $neighbours, 'rotated: another database is as it was');
opens('clinic', 'rotated, another database', $neighbour);
my $restored = $db->new_database('restored', empty => 1);
$node->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $restored->name ],
	'the dump is restored');
my $new_content = slurp_file($key_file);
put($content, 0600);
is($restored->call('cliniko_adopt_keys()')->{adopted}, 3, 'the dump with the old file: adopted');
opens('clinic', 'the dump with the old file', $restored);
is_unreadable('clinic', qr/add that key's line/, 'the database with the old file');
put($new_content, 0600);
opens($_, 'rotated, the dump', $restored) for @orgs;

# a rotation that is rolled back leaves all as it was;
$db->sql('BEGIN; SELECT cliniko_rotate_key(); ROLLBACK');
keys_in_file();
opens($_, 'rolled back') for @orgs;
opens('clinic', 'rolled back, another database', $neighbour);

# of two at the same time, one waits for the other, also in another database;
my ($one, $two) = ($db->session, $neighbour->session);
$one->query_safe('BEGIN');
$one->query_safe('SELECT cliniko_rotate_key()');
my $pid = $two->query_safe('SELECT pg_backend_pid()');
$two->query_until(qr/asking/, "\\echo asking\nSELECT cliniko_rotate_key();\n");
$db->wait_until("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid");
$one->query_safe('COMMIT');
like($two->query_safe(''), qr/"resealed": 1\b/, 'at the same time: both succeed');
$_->quit for $one, $two;
is(scalar keys_in_file(), 5, 'at the same time: each added its key');
opens($_, 'at the same time') for @orgs;
opens('clinic', 'at the same time, another database', $neighbour);

# a value that cannot be opened is told and left alone;
$db->sql("UPDATE cliniko_organizations SET api_key_sealed = '\\x$others' WHERE organization_id = 'twin'");
$answer = $db->call('cliniko_rotate_key()');
is_deeply([ @$answer{qw(resealed unreadable)} ], [ 2, 1 ], 'one unreadable: told');
like($answer->{message}, qr/not every/, 'one unreadable: also to people');
is(sealed('twin'), $others, 'one unreadable: left alone');
opens($_, 'one unreadable') for qw(clinic other);

# and a run that is under way goes on, and so does one whose worker comes later.
$account->reset;
$account->gates(1);
$db->start('clinic');
$account->await_gate(1);
$db->call('cliniko_rotate_key()');
$account->open_gate(1);
$db->wait_for_runs('clinic');
is($db->newest_run('clinic')->{status}, 'completed', 'rotated during a run: it completes');
$account->reset;
$account->gates(1);
$db->start('clinic');
$account->await_gate(1);
$db->terminate_worker;
$db->call('cliniko_rotate_key()');
$account->gates();
$db->newest_run('clinic');
$db->wait_for_runs('clinic');
is($db->newest_run('clinic')->{status}, 'completed', 'rotated before a run is resumed: it completes');

# Nobody but a superuser can rotate, or see where the file is.
$db->sql(q(CREATE ROLE boss; SELECT cliniko_grant('boss', 'admin')));
my @before = keys_in_file();
like($db->refusal('SET ROLE boss; SELECT cliniko_rotate_key()'), qr/42501.*cliniko_rotate_key/s,
	'an admin cannot rotate');
is_deeply([ keys_in_file() ], \@before, 'nor change the file');
like($db->refusal(q(SET ROLE boss; SELECT cliniko_status('clinic'); SHOW clinisync.key_file)),
	qr/42501/, 'nor see where it is');
like($db->refusal(q(SET ROLE boss; SELECT cliniko_status('clinic'); SET clinisync.key_file = 'mine')),
	qr/42501/, 'nor say where it is to be');

# When the file is to be elsewhere, then it is made and used there.
my $directory = PostgreSQL::Test::Utils::tempdir();
my $elsewhere = "$directory/keys of clinisync";
$neighbour->set(key_file => $elsewhere);
$neighbour->connect('clinic', $next_door);
is(scalar keys_in_file($elsewhere), 1, 'elsewhere: made there');
is(sprintf('%04o', (stat $elsewhere)[2] & 07777), '0600', 'elsewhere: nobody else can read it');
is($neighbour->sync('clinic')->{status}, 'completed', 'elsewhere: a run reads it there');
is($neighbour->call('cliniko_rotate_key()')->{keys_in_file}, 2, 'elsewhere: rotated there');
keys_in_file($elsewhere);
is($neighbour->sync('clinic')->{status}, 'completed', 'elsewhere: after the rotation as well');

# When many connect in the same moment and there is no file yet, then all get
# the same key.
my $many = 24;
my $script = "$PostgreSQL::Test::Utils::tmp_check/race.sql";
append_to_file($script,
	"SELECT pg_advisory_lock_shared(1);\n"
	  . "SELECT cliniko_connect('race' || :client_id, '" . $next_door->key . "');\n");
$neighbour->set(key_file => "$directory/race");
my $starter = $neighbour->session;
$starter->query_safe('SELECT pg_advisory_lock(1)');
my $output;
my $pgbench = IPC::Run::start(
	[ qw(pgbench -n -j 4 -t 1 -c), $many, '-f', $script, $node->connstr($neighbour->name) ],
	'<', \'', '>&', \$output);
$db->wait_until("SELECT count(*) = $many FROM pg_stat_activity WHERE wait_event = 'advisory'");
$starter->quit;
ok($pgbench->finish, "$many connect at once") or diag($output);
is(scalar keys_in_file("$directory/race"), 1, 'at once: one key was made');
opens("race$_", 'at once', $neighbour) for 0 .. $many - 1;

# A file that people have edited is as good, and one that is full of keys does
# for all but a rotation.
my ($racing) = keys_in_file("$directory/race");
my @sixty_three = map { sprintf '%064x', $_ } 1 .. 63;
@keys_seen{@sixty_three} = ();
put("# ours\r\n\r\n" . uc($racing) . "\t\r\n", 0400, "$directory/race");
opens('race0', 'edited', $neighbour);
put(join("\n", @sixty_three, $racing), 0600, "$directory/race");
opens('race0', 'full', $neighbour);
$neighbour->connect('race1', $next_door);
opens('race1', 'full, connected again', $neighbour);
my $raced = contents($neighbour);
like($neighbour->refusal('SELECT cliniko_rotate_key()'), qr/HINT:.*remove those/, 'full: no rotation');
is(contents($neighbour), $raced, 'full: which changed nothing');
is(slurp_file("$directory/race"), join("\n", @sixty_three, $racing), 'full: nor the file');

# In all that time, no key came into the server's log.
my $log = slurp_file($node->logfile);
like($log, qr/registering background worker/, 'the log tells a lot');
ok(keys %keys_seen > 8, 'many keys were in use');
is_deeply([ grep { index($log, $_) >= 0 } $key, unpack('H*', $key), keys %keys_seen ],
	[], 'no key is in the server log');

$db->finish;
