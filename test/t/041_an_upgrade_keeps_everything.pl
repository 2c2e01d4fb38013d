# A database of any earlier version is updated while a run is under way: the run
# is completed, the next one finds nothing to write, roles may do what they might,
# and in the end the catalogs are those of a database in which this version was
# created.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

# The earlier versions: test/run has installed the script of each, and so must
# have been given it.
my $root = "$FindBin::RealBin/../..";
my @versions = map { m{clinisync--([^/-]+)\.sql$} } sort glob("$root/test/upgrade/*.sql");
my @updated = map { m{clinisync--([^/]+)--[^/]+\.sql$} } sort glob("$root/sql/*--*--*.sql");
is_deeply(\@versions, \@updated, 'every version that can be updated is in test/upgrade');

my %levels = (seer => 'viewer', registrar => 'manager', boss => 'admin');
my $extension = q(pg_extension WHERE extname = 'clinisync');

# Everything in a database that is clinisync's, by the name of the object: what
# defines it, who owns it, who may do what with it, and its comment. Columns are
# compared by name, since those that an upgrade adds come last.
my $catalogs = q(
CREATE FUNCTION pg_temp.privileges(acl aclitem[]) RETURNS jsonb LANGUAGE sql
	RETURN (SELECT jsonb_agg(item::text ORDER BY item::text) FROM unnest(acl) AS item);
SELECT jsonb_object_agg(object, facts)
FROM (
	SELECT 'extension', jsonb_build_array(e.extversion, e.extrelocatable, e.extnamespace::regnamespace,
		e.extowner::regrole, e.extconfig::regclass[], obj_description(e.oid, 'pg_extension'))
	FROM pg_extension e WHERE e.extname = 'clinisync'
	UNION ALL
	SELECT 'member: ' || pg_describe_object(d.classid, d.objid, d.objsubid), 'true'
	FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'clinisync'
	WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	UNION ALL
	SELECT 'function: ' || p.oid::regprocedure, jsonb_build_array(pg_get_functiondef(p.oid),
		p.proowner::regrole, pg_temp.privileges(coalesce(p.proacl, acldefault('f', p.proowner))), obj_description(p.oid, 'pg_proc'))
	FROM pg_proc p
	WHERE p.proname ~ '^(cliniko|clinisync)_'
	UNION ALL
	SELECT 'relation: ' || c.oid::regclass, jsonb_build_array(c.relkind, c.relpersistence, c.reloptions,
		c.relrowsecurity, c.relforcerowsecurity, c.relreplident, c.relowner::regrole,
		pg_temp.privileges(coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))),
		obj_description(c.oid, 'pg_class'), CASE c.relkind WHEN 'i' THEN pg_get_indexdef(c.oid) END)
	FROM pg_class c
	WHERE c.relnamespace = 'public'::regnamespace
	UNION ALL
	SELECT format('column: %s.%s', a.attrelid::regclass, a.attname), jsonb_build_array(
		format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, a.attstorage,
		a.attcollation::regcollation, pg_get_expr(f.adbin, f.adrelid), pg_temp.privileges(a.attacl),
		col_description(a.attrelid, a.attnum))
	FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
		LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
	WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
	UNION ALL
	SELECT format('constraint: %s of %s', o.conname, o.conrelid::regclass),
		jsonb_build_array(pg_get_constraintdef(o.oid), obj_description(o.oid, 'pg_constraint'))
	FROM pg_constraint o
	WHERE o.connamespace = 'public'::regnamespace
	UNION ALL
	SELECT format('policy: %s of %s', p.polname, p.polrelid::regclass), jsonb_build_array(p.polcmd,
		p.polpermissive, p.polroles::regrole[], pg_get_expr(p.polqual, p.polrelid),
		pg_get_expr(p.polwithcheck, p.polrelid), obj_description(p.oid, 'pg_policy'))
	FROM pg_policy p
	UNION ALL
	SELECT 'event trigger: ' || t.evtname, jsonb_build_array(t.evtevent, t.evtowner::regrole, t.evtfoid::regprocedure,
		t.evtenabled, t.evttags, obj_description(t.oid, 'pg_event_trigger'))
	FROM pg_event_trigger t
	UNION ALL
	SELECT format('trigger: %s of %s', t.tgname, t.tgrelid::regclass), to_jsonb(pg_get_triggerdef(t.oid))
	FROM pg_trigger t
	WHERE NOT t.tgisinternal
) AS everything (object, facts));

sub catalogs
{
	my ($database) = @_;
	return decode_json($database->sql($catalogs));
}

# What differs between two databases, by object.
sub differences
{
	my ($upgraded, $fresh) = map { catalogs($_) } @_;
	my $text = JSON::PP->new->canonical->pretty->allow_nonref;

	return map { "$_ is " . $text->encode($upgraded->{$_}) . 'not ' . $text->encode($fresh->{$_}) }
	  grep { $text->encode($upgraded->{$_}) ne $text->encode($fresh->{$_}) }
	  sort keys %{ { %$upgraded, %$fresh } };
}

sub is_like_fresh
{
	my ($upgraded, $fresh, $test) = @_;
	my @differences = differences($upgraded, $fresh);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(scalar @differences, 0, "$test: the catalogs are those of a fresh database")
	  or diag(join "\n", @differences);
}

sub grant_levels
{
	my ($database) = @_;
	$database->sql(join '', map { "SELECT cliniko_grant('$_', '$levels{$_}');" } sort keys %levels);
}

# What each role sees of a clinic: its patients, logs and connection.
sub sights
{
	my ($database) = @_;
	return { map { $_ => $database->as_role($_, { org_id => 'clinic' },
				q(SELECT (SELECT count(*) FROM patients), (SELECT count(*) FROM sync_logs) > 0,
						 (SELECT count(*) FROM cliniko_organizations),
						 cliniko_status('clinic') ->> 'sync_status')) } keys %levels };
}

# What is asked to be compared is there to be compared.
my $db = Clinisync->new('main');
$db->sql(join '', map { "CREATE ROLE $_;" } sort keys %levels);
my $version = $db->sql("SELECT extversion FROM $extension");
$db->sql('SELECT cliniko_setup()');
grant_levels($db);
my $objects = catalogs($db);
for my $kind (('extension', 'member', 'function', 'relation', 'column', 'constraint', 'policy', 'event trigger'))
{
	cmp_ok(scalar(grep { /^$kind\b/ } keys %$objects), '>=', 1, "fresh: kinds of objects: $kind");
}
is(join("\n", grep { /^member: (?!function |event trigger |table clinisync_owner$|type clinisync_owner)/ } sort keys %$objects), '',
	'fresh: every member is of a kind that is compared');

for my $earlier (@versions)
{
	# Given a database of the earlier version, as a package's upgrade leaves it with
	# the new library, with a clinic that was synced and roles of each level,
	my $old = $db->new_database('from_' . $earlier =~ tr/./_/r, version => $earlier);
	is($old->sql("SELECT extversion FROM $extension"), $earlier, "$earlier: is installed");
	my $account = $old->add_clinic('clinic', patients => 118, archived => 2);
	grant_levels($old);
	is($old->sync('clinic')->{metadata}{inserted}, 120, "$earlier: syncs, with the new library");
	my $sights = sights($old);
	my $everything = q(SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM patients p
						WHERE organization_id = 'clinic');
	my $patients = $old->sql($everything);

	# with a dump of it, and a run that is under way,
	my $dump = "$PostgreSQL::Test::Utils::tmp_check/$earlier.sql";
	$old->node->command_ok([ 'pg_dump', '-f', $dump, $old->name ], "$earlier: pg_dump");
	my $under_way = $old->add_clinic('under_way', patients => 250);
	$under_way->gates(2);
	my $run = $old->start('under_way');
	$under_way->await_gate(2);
	$old->wait_until(q(SELECT records_success = 100 FROM sync_logs WHERE organization_id = 'under_way'));
	my $worker = $old->worker_pid;

	# when it is updated as the operators' guide says,
	$old->sql('ALTER EXTENSION clinisync UPDATE');
	$old->sql('SELECT cliniko_setup()');

	# then the run goes on where it was, in the same worker, and is completed,
	is($old->sql("SELECT extversion FROM $extension"), $version, "$earlier: is updated");
	is($old->worker_pid, $worker, "$earlier: the worker is the same");
	is($old->newest_run('under_way')->{status}, 'running', "$earlier: the run is under way");
	$under_way->open_gate(2);
	$old->wait_for_runs('under_way');
	my $completed = $old->newest_run('under_way');
	is_deeply([ @$completed{qw(id status)}, $completed->{metadata}{inserted} ],
		[ $run->{sync_id}, 'completed', 250 ], "$earlier: the run is completed");
	Clinisync::is_accounted_for($completed, 250, "$earlier: the run");
	$old->is_copy_of('under_way', $under_way, "$earlier: the run");

	# every patient is the same, and roles see what they saw;
	is($old->sql($everything), $patients, "$earlier: every row is the same");
	my $boss = delete $sights->{boss};
	my $after = sights($old);
	isnt(delete $after->{boss}, $boss, "$earlier: who sees every clinic sees the other, too");
	is_deeply($after, $sights, "$earlier: who sees one clinic sees the same");
	is($old->as_role('boss', {}, 'SELECT count(*) FROM cliniko_sync_all_organizations()'), 2,
		"$earlier: the job of an administrator starts every clinic");
	$old->wait_for_runs(qw(clinic under_way));

	# the next sync finds nothing to write, and the one of changes what is new;
	$run = $old->sync('clinic');
	is_deeply([ $run->{status}, @{ $run->{metadata} }{qw(inserted updated unchanged)} ],
		[ 'completed', 0, 0, 120 ], "$earlier: the next sync: nothing is written");
	$account->mutate(add => 1, edit => 2);
	$run = $old->sync_changes('clinic');
	is($run->{status}, 'completed', "$earlier: a sync of changes");
	$old->is_copy_of('clinic', $account, "$earlier: a sync of changes");

	# and the catalogs are as if there had been no earlier version.
	grant_levels($old);
	is_like_fresh($old, $db, $earlier);

	# When the dump is restored where only this version is, then it is of this version,
	my $restored = $db->new_database($old->name . '_restored', empty => 1);
	$restored->node->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $restored->name ],
		"$earlier: restored without an error");
	is($restored->sql("SELECT extversion FROM $extension"), $version, "$earlier: restored: is updated");
	$restored->sql('SELECT cliniko_setup()');
	grant_levels($restored);
	is_like_fresh($restored, $db, "$earlier: restored");

	# and syncs what has changed since, once its API keys are adopted.
	is($restored->call('cliniko_adopt_keys()')->{adopted}, 1, "$earlier: restored: adopted");
	$run = $restored->sync('clinic');
	is_deeply([ $run->{status}, @{ $run->{metadata} }{qw(inserted updated unchanged)} ],
		[ 'completed', 1, 2, 118 ], "$earlier: restored: syncs");
}

$db->finish;
