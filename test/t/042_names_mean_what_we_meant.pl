# Whoever may create objects in the extension's schema has made a function and
# an operator for every name that clinisync's SQL uses, for every type that it
# is used with. None of them is ever called, by anybody's statement or call.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::RealBin/../..";
my $db = Clinisync->new('main');
my $log = $db->node->logfile;

# The text of all SQL that is ours: the install script, and the string literals
# of the C source.
my $sql = slurp_file("$root/sql/clinisync.sql") =~ s{/\*.*?\*/|--[^\n]*}{ }gsr;
for my $file (glob "$root/src/*.c $root/src/*.h")
{
	my $source = slurp_file($file) =~ s{/\*.*?\*/|^\#include[^\n]*}{ }gsmr;
	$sql .= ' ' . join ' ', $source =~ /"((?:[^"\\]|\\.)*)"/g;
}
my %names = map { lc $_ => 1 } $sql =~ /\b([a-z_][a-z_0-9]*)\b/gi;
my %symbols = map { $_ => 1 } $sql =~ /(?<![-+*\/<>=~!@#%^&|`?])([-+*\/<>=~!@#%^&|`?]{1,4})(?![-+*\/<>=~!@#%^&|`?])/g;

# Those of them that PostgreSQL knows, and our own.
sub known
{
	my ($database, $catalog, $column, $words) = @_;
	my %known = map { $_ => 1 } split /\n/, $database->sql("SELECT DISTINCT $column FROM $catalog");
	return sort grep { $known{$_} } keys %$words;
}
my @functions = known($db, 'pg_proc', 'proname', \%names);
# what stands for an operator in the grammar
my @operators = known($db, 'pg_operator', 'oprname',
	{ %symbols, map { $_ => 1 } qw(= <> < > <= >= || ~~ ~~* !~~ + -) });
cmp_ok(scalar @functions, '>=', 60, 'functions are found');
cmp_ok(scalar @operators, '>=', 15, 'operators are found');

# Ours are for us alone: whoever takes one is refused.
my @own = grep { /^clini(?:ko|sync)_/ } @functions;
@functions = grep { !/^clini(?:ko|sync)_/ } @functions;
cmp_ok(scalar @own, '>=', 30, 'functions of our own are found');

my @types = qw(text name varchar oid int4 int8 jsonb timestamptz
  text[] name[] varchar[] oid[] int4[] int8[]);

# Make the traps, as a role that may CREATE in the schema. Each says in the
# server's log who has sprung it, and in which statement where there is one: a
# statement of the test's own would not mean what it says, either.
sub make_traps
{
	my ($database) = @_;
	my ($functions, $operators, $types) =
	  map { join ',', map { "'$_'" } @$_ } \@functions, \@operators, \@types;
	my $made = $database->sql(qq(
		SET ROLE neighbour;
		CREATE FUNCTION pg_temp.make_traps() RETURNS int LANGUAGE plpgsql
		SET search_path = pg_catalog, pg_temp AS \$make\$
		DECLARE
			types CONSTANT text[] = ARRAY[$types];
			f text; o text; a text; b text; made int = 0;
		BEGIN
			FOREACH f IN ARRAY ARRAY[$functions] LOOP
				FOR a IN
					SELECT '' UNION ALL SELECT t FROM unnest(types) t
					UNION ALL SELECT t || ',' || u FROM unnest(types) t, unnest(types) u
					UNION ALL SELECT t || ',' || t || ',' || t FROM unnest(types) t
				LOOP
					BEGIN
						EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS text LANGUAGE plpgsql AS %L',
									   f, a, trap_body(f));
						made = made + 1;
					EXCEPTION WHEN syntax_error THEN
					END;
				END LOOP;
			END LOOP;
			FOREACH a IN ARRAY types LOOP
				FOREACH b IN ARRAY types LOOP
					EXECUTE format('CREATE FUNCTION public.trap(%s, %s) RETURNS bool LANGUAGE plpgsql AS %L',
								   a, b, trap_body('operator'));
					FOREACH o IN ARRAY ARRAY[$operators] LOOP
						BEGIN
							EXECUTE format('CREATE OPERATOR public.%s (leftarg = %s, rightarg = %s, function = public.trap)',
										   o, a, b);
							made = made + 1;
						EXCEPTION WHEN syntax_error OR duplicate_function OR invalid_function_definition THEN
							/* => is no name; what is another's negator, say, may be there */
						END;
					END LOOP;
				END LOOP;
			END LOOP;
			RETURN made;
		END \$make\$;
		SELECT pg_temp.make_traps()) =~ s/trap_body\(([^()]+)\)/format('BEGIN
			RAISE LOG ''trap %% sprung by %% in %%'', %L, current_user,
				pg_catalog.translate(pg_catalog.current_query(), E''\\n\\t'', ''  '');
			RETURN NULL; END', $1)/gr);

	cmp_ok($made, '>=', 8000, $database->name . ': the traps are there');
}

# As that role, make functions of our own names. Answers how many were made, and
# how many refused.
sub take_our_names
{
	my ($database) = @_;
	my ($names, $types) = map { join ',', map { "'$_'" } @$_ } \@own, \@types;
	return split /\|/, $database->sql(qq(
		SET ROLE neighbour;
		CREATE FUNCTION pg_temp.take_our_names(OUT made int, OUT refused int) LANGUAGE plpgsql
		SET search_path = pg_catalog, pg_temp AS \$take\$
		DECLARE
			types CONSTANT text[] = ARRAY[$types];
			f text; a text;
		BEGIN
			made = 0; refused = 0;
			FOREACH f IN ARRAY ARRAY[$names] LOOP
				FOR a IN
					SELECT '' UNION ALL SELECT t FROM unnest(types) t
					UNION ALL SELECT t || ',' || u FROM unnest(types) t, unnest('{text,int4}'::text[]) u
					UNION ALL SELECT t || ',' || t || ',' || t FROM unnest(types) t
				LOOP
					BEGIN
						EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS text LANGUAGE sql RETURN NULL', f, a);
						made = made + 1;
					EXCEPTION
						WHEN reserved_name THEN refused = refused + 1;
						WHEN duplicate_function THEN /* it is ours itself */
					END;
				END LOOP;
			END LOOP;
		END \$take\$;
		SELECT * FROM pg_temp.take_our_names()));
}

# What is made of the neighbour's objects by anything but another of them.
my $depending = q(
	SELECT pg_catalog.count(*) FROM pg_catalog.pg_depend d
	 WHERE (d.refclassid, d.refobjid) IN (
			SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oid FROM pg_catalog.pg_proc p
			 WHERE p.proowner OPERATOR(pg_catalog.=) 'neighbour'::pg_catalog.regrole
			UNION ALL
			SELECT 'pg_catalog.pg_operator'::pg_catalog.regclass, o.oid FROM pg_catalog.pg_operator o
			 WHERE o.oprowner OPERATOR(pg_catalog.=) 'neighbour'::pg_catalog.regrole)
	   AND d.classid OPERATOR(pg_catalog.<>) 'pg_catalog.pg_operator'::pg_catalog.regclass);

# Every documented call, as each of those who may make it.
sub call_everything
{
	my ($database, $org) = @_;
	my $claims = { org_id => $org };
	my $read = "SELECT cliniko_sync_logs('$org', 1, 'running', 'full_patients');
		SELECT cliniko_status('$org'); SELECT cliniko_list_organizations();
		SELECT cliniko_active_patients('$org', 50, 0, 'a', 'yesterday');
		SELECT cliniko_claimed_organization();";
	my $manage = "BEGIN; SELECT cliniko_sync_all('$org'); SELECT cliniko_cancel_sync('$org');
		SELECT cliniko_sync_changes('$org'); SELECT cliniko_cancel_sync('$org');
		SELECT cliniko_sync('$org'); SELECT cliniko_cancel_sync('$org');
		SELECT cliniko_test_connection('$org'); ROLLBACK;";
	my $administer = "BEGIN; SELECT cliniko_set_sync_enabled('$org', true);
		SELECT cliniko_connect('$org', 'KEY-$org-au1', 'A clinic');
		SELECT cliniko_sync_all_organizations(true); SELECT cliniko_cancel_sync('$org'); ROLLBACK;";

	for my $order ('public, pg_catalog', 'pg_catalog, public', '')
	{
		my $set = "SET search_path = '';" =~ s/''/$order || "''"/er;
		my @calls = map { $order ? $_ : s/\b(cliniko_)/public.$1/gr } $read, $manage, $administer,
		  "SELECT cliniko_setup('keeper'); SELECT cliniko_grant('desk', 'viewer');
		   SELECT cliniko_revoke('desk'); SELECT cliniko_grant('desk', 'manager');
		   SELECT cliniko_rotate_key(); SELECT cliniko_adopt_keys();";

		$database->as_role('viewer', $claims, "$set $calls[0]");
		$database->as_role('desk', $claims, "$set $calls[0] $calls[1]");
		$database->as_role($_, {}, "$set $calls[0] $calls[1] $calls[2]") for qw(boss keeper);
		$database->sql("$set " . join '', @calls);
	}
}

# A clinic's life: first sync, nothing new, changes, deletions.
sub live
{
	my ($database, $org, %options) = @_;
	my $account = $database->add_clinic($org, patients => 130, archived => 20);
	my $test = $database->name;

	$database->sync($org);
	$account->mutate(edit => 5, add => 3, archive => 2);
	$database->sync_changes($org);
	$account->mutate(remove => 4);
	my $run = $database->sync($org);
	is($run->{status}, 'completed', "$test: the last run is completed") or diag(explain($run));
	is($run->{metadata}{deleted}, 4, "$test: who is gone is marked");
	call_everything($database, $org);
}

sub has_sprung_none
{
	my ($database) = @_;
	my @sprung = slurp_file($log) =~ /(trap .* sprung by .*)/g;
	my %sprung = map { $_ => 1 } @sprung;

	is(join("\n", sort keys %sprung), '', $database->name . ': no trap was sprung');
	is($database->sql($depending), 0, $database->name . ': nothing is built upon a trap');
}

sub prepare_roles
{
	my ($database) = @_;
	$database->sql(
		q(SELECT cliniko_setup('keeper');
		  SELECT cliniko_grant('viewer', 'viewer'); SELECT cliniko_grant('desk', 'manager');
		  SELECT cliniko_grant('boss', 'admin'); SELECT cliniko_grant('keeper', 'admin')));
}

$db->sql(
	q(CREATE ROLE neighbour; CREATE ROLE keeper; CREATE ROLE viewer; CREATE ROLE desk;
	  CREATE ROLE boss));

# Given traps that were there first,
my $before = $db->new_database('before', empty => 1);
$before->sql('GRANT CREATE ON SCHEMA public TO neighbour, keeper');
make_traps($before);
# (the extension is not created beside functions of its own names)
my ($made, $refused) = take_our_names($before);
cmp_ok($made, '>=', 1500, 'before: our names can be taken');
like($before->refusal('CREATE EXTENSION clinisync'),
	qr/ERROR:  (?:42939: names that clinisync needs are taken|42723: function "\w+" already exists)/,
	'before: the extension is not created beside them');
$before->sql(
	q(DO $$
	  DECLARE drops text;
	  BEGIN
		SELECT pg_catalog.string_agg(pg_catalog.format('DROP FUNCTION %s', p.oid::pg_catalog.regprocedure), ';')
		INTO drops FROM pg_catalog.pg_proc p WHERE p.proname OPERATOR(pg_catalog.~) '^(cliniko|clinisync)_';
		EXECUTE drops;
	  END $$));
$before->sql('CREATE EXTENSION clinisync');
$before->configure;
prepare_roles($before);
# when a clinic lives there, then no trap is sprung.
live($before, 'early');
has_sprung_none($before);

# The same with traps that come later,
my $after = $db->new_database('after');
$after->sql('GRANT CREATE ON SCHEMA public TO neighbour, keeper');
prepare_roles($after);
make_traps($after);
($made, $refused) = take_our_names($after);
is($made, 0, 'after: none of our names can be taken');
cmp_ok($refused, '>=', 1500, 'after: each was tried');
live($after, 'late');
has_sprung_none($after);

# and in tables of the owner's own making, whose columns are not text.
my $adopted = $db->new_database('adopted');
$adopted->sql(
	q(GRANT CREATE ON SCHEMA public TO neighbour, keeper;
	  SET ROLE keeper;
	  CREATE TABLE patients (organization_id varchar(255) NOT NULL, cliniko_patient_id bigint NOT NULL,
		first_name varchar(255), last_name varchar, email varchar, phone varchar);
	  CREATE TABLE cliniko_organizations (organization_id varchar NOT NULL, name varchar, shard varchar,
		account_id varchar);
	  CREATE TABLE sync_logs (organization_id varchar NOT NULL, status varchar NOT NULL,
		operation_type varchar NOT NULL, error_details varchar)));
prepare_roles($adopted);
make_traps($adopted);
live($adopted, 'adopted');
has_sprung_none($adopted);

$db->finish;
