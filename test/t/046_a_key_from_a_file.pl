# An API key can be in a file that the server reads once: then it is in no statement,
# and so in no log, however a statement that connects a clinic is sent or goes wrong.
# Only those may name a file who may read the server's files in any case, and nothing
# of a file's content is told.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use POSIX qw(mkfifo);
use Test::More;

# Given a server that logs, explains and keeps all that it can,
my $db = Clinisync->new('main', settings => <<'END');
shared_preload_libraries = 'pg_stat_statements, auto_explain'
log_statement = all
log_min_messages = debug1
log_min_error_statement = debug5
log_min_duration_statement = 0
log_error_verbosity = verbose
log_parameter_max_length_on_error = -1
pg_stat_statements.track = all
auto_explain.log_min_duration = 0
auto_explain.log_nested_statements = on
END
my $node = $db->node;
$db->sql('CREATE EXTENSION pg_stat_statements');
my $directory = PostgreSQL::Test::Utils::tempdir();
my $key = 'MS0xNzg-SecretBodyOfTheKey-au1';
my $account = $db->cliniko->account($key, patients => 12);

# Put something into a file of this name; answers what to pass for it.
sub put
{
	my ($name, $content) = @_;
	unlink "$directory/$name";
	append_to_file("$directory/$name", $content);
	return "file:$directory/$name";
}

sub connects
{
	my ($org, $passed) = @_;
	return $db->call("cliniko_connect('$org', '$passed', 'A Clinic')");
}

# and a key in a file, with a line's end behind it, when a clinic is connected by that,
my $file = put('key', "$key\n");
my $answer = connects('clinic', $file);
is_deeply([ @$answer{qw(message name shard)} ], [ 'Connected', 'A Clinic', 'au1' ], 'connected');

# then the file is not needed any more;
unlink "$directory/key" or die $!;
is($db->call(q(cliniko_test_connection('clinic')))->{status}, 'connected', 'the connection works');
is($db->sync('clinic')->{status}, 'completed', 'so does a run');
put('key', $key);

# what else is in the place of a key is none, and nothing of it is told;
my %files = (
	empty => '',
	'a blank line' => "\n",
	'two lines' => "$key\n$key\n",
	'a comment' => "# SecretBody\n$key\n",
	'a colon' => "file:$key",
	'a NUL' => "$key\0",
	'too large' => $key . ' ' x 1024);
for my $name (sort keys %files)
{
	my $refusal = $db->refusal("SELECT cliniko_connect('other', '" . put($name, $files{$name}) . "')");
	like($refusal, qr/PT400.*^DETAIL:\s+INVALID_API_KEY$/ms, "$name: no key");
	unlike($refusal, qr/SecretBody/, "$name: of which nothing is told");
}

# and where there is no such file, that is said, at once.
mkfifo("$directory/pipe", 0600) or die $!;
mkdir("$directory/directory") or die $!;
chmod(0, substr(put('closed', $key), length 'file:')) or die $!;
for my $case (
	[ nowhere => '58P01', qr/could not open the file "\Q$directory\E\/nowhere": No such file/ ],
	[ closed => '42501', qr/could not open the file .* Permission denied.*HINT:.*server's user/s ],
	[ pipe => '42809', qr/is not a regular file/ ],
	[ directory => '42809', qr/is not a regular file/ ])
{
	my ($name, $sqlstate, $message) = @$case;
	my $refusal = $db->refusal("SELECT cliniko_connect('other', 'file:$directory/$name')");
	like($refusal, qr/ERROR:  $sqlstate: .*$message|ERROR:  $sqlstate: $message/s, "$name: refused");
}
is($db->sql(q(SELECT count(*) FROM cliniko_organizations)), 1, 'nothing was connected by these');

# An administrator may name a file when he may read the server's files, and not before.
$db->sql(q(CREATE ROLE boss; SELECT cliniko_grant('boss', 'admin')));
for my $path ('key', 'nowhere')
{
	like($db->refusal("SET ROLE boss; SELECT cliniko_connect('other', 'file:$directory/$path')"),
		qr/ERROR:  42501: permission denied to read an API key.*HINT:.*pg_read_server_files/s,
		"an administrator: not $path");
}
$db->sql('GRANT pg_read_server_files TO boss');
is($db->call_as('boss', {}, "cliniko_connect('other', '$file')")->{message}, 'Connected',
	'an administrator who may read the server\'s files');

# When a statement goes wrong in whichever way, or is sent in another,
for my $statement (
	"SELECT nowhere.cliniko_connect('clinic', '$file')",
	"SELECT cliniko_connect('clinic', '$file', 1)",
	"SELECT cliniko_connect('', '$file')",
	"SELECT cliniko_connect('clinic', '$file'); SELECT 1 / 0",
	"SELECT cliniko_connect('clinic', '$file'), 1 / (random() * 0)::int")
{
	isnt($db->refusal($statement), 'not refused', "refused: $statement");
}
$db->sql("DO \$\$ BEGIN PERFORM cliniko_connect('clinic', '$file'); END \$\$");
$db->sql("PREPARE p AS SELECT cliniko_connect(\$1, \$2); EXECUTE p('clinic', '$file')");
my $session = $db->session;
$session->query_safe("SELECT cliniko_connect('clinic', '$file')");
my $script = "$PostgreSQL::Test::Utils::tmp_check/connect_by_file.sql";
append_to_file($script, 'SELECT cliniko_connect(:org, :key);');
$node->command_ok(
	[
		qw(pgbench --no-vacuum --transactions=1 --protocol=extended --define=org=clinic),
		"--define=key=$file", "--file=$script", 'postgres'
	],
	'with parameters');

# then the key is nowhere that statements are.
my %places = (
	'the server log' => slurp_file($node->logfile),
	pg_stat_statements => $db->sql('SELECT s FROM pg_stat_statements s'),
	pg_stat_activity => $db->sql('SELECT a FROM pg_stat_activity a'));
for my $place (sort keys %places)
{
	like($places{$place}, qr/cliniko_connect/, "$place has the statements");
	unlike($places{$place}, qr/SecretBody/, "no key is in $place");
}
like($places{'the server log'}, qr/\Q$file\E/, 'the file is in the log');
$session->quit;

$db->finish;
