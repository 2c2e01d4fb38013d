# A run belongs to the tables, not to the role that started it: roles are
# granted, revoked and dropped while it is under way, and it completes; but
# what a role could do ends with its level.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Clinisync;
use Test::More;

# (a wait for a lock is to be seen in the log)
my $db = Clinisync->new('main', settings => "log_lock_waits = on\ndeadlock_timeout = 10ms\n");

# Given tables that belong to a role that is no superuser, and notes on who
# writes them,
$db->sql(
	q(CREATE ROLE keeper;
	  GRANT CREATE ON SCHEMA public TO keeper;
	  SELECT cliniko_setup('keeper');
	  CREATE TABLE writers (who name, what text);
	  CREATE FUNCTION note_writer() RETURNS trigger LANGUAGE plpgsql
	  SET search_path = pg_catalog, public AS
	  'BEGIN INSERT INTO writers VALUES (current_user, TG_TABLE_NAME); RETURN NULL; END';
	  GRANT INSERT ON writers TO keeper;
	  CREATE TRIGGER note_writer AFTER INSERT OR UPDATE ON patients EXECUTE FUNCTION note_writer();
	  CREATE TRIGGER note_writer AFTER INSERT OR UPDATE ON sync_logs EXECUTE FUNCTION note_writer();
	  CREATE TRIGGER note_writer AFTER INSERT OR UPDATE ON cliniko_organizations
		EXECUTE FUNCTION note_writer();
	  CREATE ROLE registrar; CREATE ROLE boss; CREATE ROLE watcher;
	  SELECT cliniko_grant('registrar', 'manager'), cliniko_grant('boss', 'admin');));

# Everything that a role may do with what is clinisync's.
sub privileges
{
	my ($role) = @_;
	return $db->sql(
		qq(SELECT string_agg(what, ',' ORDER BY what) FROM (
			SELECT 'table ' || relname FROM pg_class
			 WHERE relname IN ('patients', 'sync_logs', 'cliniko_organizations')
			   AND (has_table_privilege('$role', oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
					OR has_any_column_privilege('$role', oid, 'SELECT, INSERT, UPDATE'))
			UNION ALL
			/* cliniko_claimed_organization() is everybody's: policies call it */
			SELECT 'function ' || proname FROM pg_proc
			 WHERE (proname LIKE 'cliniko%' OR proname LIKE 'clinisync%')
			   AND proname <> 'cliniko_claimed_organization'
			   AND has_function_privilege('$role', oid, 'EXECUTE')
			UNION ALL
			SELECT 'policy ' || polname FROM pg_policy
			 WHERE (SELECT oid FROM pg_roles WHERE rolname = '$role') = ANY (polroles)) w (what)));
}

sub claims { return { org_id => $_[0] }; }

# Start a run of a new clinic of 250 patients as this role, of which Cliniko
# answers one page and no more.
sub hold
{
	my ($org, $role) = @_;
	my $account = $db->add_clinic($org, patients => 250);

	$account->gates(2);
	my $answer = $db->call_as($role, claims($org), "cliniko_sync_all('$org')");
	is($answer->{message}, 'Sync started', "$org: $role starts it");
	$account->await_gate(2);
	$db->wait_until("SELECT records_success = 100 FROM sync_logs WHERE id = $answer->{sync_id}");
	return $account;
}

# Let it go on, and check that it completes.
sub is_completed
{
	my ($org, $account) = @_;

	is($account->summary->{in_flight}, 1, "$org: it is held all that time");
	$account->open_gate(2);
	$db->wait_for_runs($org);
	my $run = $db->newest_run($org);
	is($run->{status}, 'completed', "$org: completed");
	is(scalar $account->pages, 3, "$org: without a detour");
	$db->is_copy_of($org, $account, $org);
}

# when a role of level manager starts a run, then all of it is written as the
# tables' owner,
my $account = hold('plain', 'registrar');
is_completed('plain', $account);
is($db->sql(q(SELECT string_agg(DISTINCT who || ' ' || what, ', ') FROM writers)),
	'keeper cliniko_organizations, keeper patients, keeper sync_logs',
	q(all is written with the owner's rights));

# and when the role is lowered, or revoked, then the run completes, and the
# role can do no more with it than its level says;
$account = hold('lowered', 'registrar');
$db->sql(q(SELECT cliniko_grant('registrar', 'viewer')));
is($db->call_as('registrar', claims('lowered'), q(cliniko_status('lowered')))->{sync_status},
	'running', 'lowered: the role can see it');
like($db->refusal(Clinisync::request('registrar', claims('lowered')) . q(SELECT cliniko_cancel_sync('lowered'))),
	qr/42501/, 'lowered: but no more');
is_completed('lowered', $account);

$db->sql(q(SELECT cliniko_grant('registrar', 'manager')));
$account = hold('revoked', 'registrar');
$db->sql(q(SELECT cliniko_revoke('registrar')));
is(privileges('registrar'), '', 'revoked: the role has no privilege left');
for my $statement (
	q(SELECT cliniko_status('revoked')),
	q(SELECT cliniko_cancel_sync('revoked')),
	q(SELECT count(*) FROM patients),
	q(SELECT count(*) FROM sync_logs),
	q(SELECT organization_id FROM cliniko_organizations))
{
	like($db->refusal(Clinisync::request('registrar', claims('revoked')) . $statement),
		qr/42501/, "revoked: not even $statement");
}
is_completed('revoked', $account);

# also when it is revoked in a session that had used it before.
$db->sql(q(SELECT cliniko_grant('registrar', 'manager')));
my $session = $db->session(on_error_stop => 0);
$session->query_safe(Clinisync::request('registrar', claims('plain')));
like($session->query_safe(q(SELECT cliniko_status('plain'))), qr/completed/, 'a session in use');
$db->sql(q(SELECT cliniko_revoke('registrar')));
$session->query(q(SELECT cliniko_status('plain')));
like($session->{stderr}, qr/permission denied/, 'is refused once its role is revoked');
$session->{stderr} = '';
$db->sql(q(SELECT cliniko_grant('registrar', 'manager')));
$session->query_safe(Clinisync::request('registrar', claims('revoked')));
like($session->query_safe(q(SELECT cliniko_status('revoked'))), qr/completed/, 'and served once it is granted again');
$session->query(q(SELECT cliniko_status('plain')));
like($session->{stderr}, qr/organization not found/, 'with the claim of the moment');
$session->{stderr} = '';
$session->quit;

# When the role that started a run is dropped, then the run completes, and
# nothing of the role remains;
$account = hold('dropped', 'registrar');
$db->sql('DROP OWNED BY registrar; DROP ROLE registrar');
is_completed('dropped', $account);

# and so it is when the admin who connected the clinic is dropped, whose
# policy goes with him: other admins keep it.
$db->sql(q(CREATE ROLE deputy; SELECT cliniko_grant('deputy', 'admin')));
my $orphan = $db->cliniko->account('KEY-orphan-au1', patients => 250);
$db->call_as('boss', {}, q(cliniko_connect('orphan', 'KEY-orphan-au1')));
$orphan->gates(2);
is($db->call_as('boss', {}, q(cliniko_sync_all('orphan')))->{message}, 'Sync started', 'orphan: the admin starts it');
$orphan->await_gate(2);
is($db->as_role('boss', {}, 'SELECT count(*) FROM cliniko_organizations'), 5, 'an admin sees all clinics');
is($db->as_role('deputy', {}, 'SELECT count(*) FROM cliniko_organizations'), 5, 'so does another');
$db->sql('DROP OWNED BY boss; DROP ROLE boss');
is_completed('orphan', $orphan);
my $admins = q(SELECT string_agg(DISTINCT r::regrole::text, ',')
				 FROM pg_policy, unnest(polroles) r WHERE polname = 'cliniko_admin');
is($db->sql($admins), 'deputy', 'the policy of admins is for the other alone');
is($db->as_role('deputy', {}, 'SELECT count(*) FROM cliniko_organizations'), 5, 'who still sees all clinics');
is($db->call_as('deputy', {}, q(cliniko_test_connection('orphan')))->{status}, 'connected',
	'and can use the key that was connected');
$db->sql(q(SELECT cliniko_revoke('deputy')));
is($db->sql(q(SELECT count(*) FROM pg_policy WHERE polname = 'cliniko_admin')), 0,
	'with the last admin, the policy goes');
is(privileges('deputy'), '', 'and every privilege');

# It goes as well when the last admin is dropped; then admins can be made again.
$db->sql(
	q(SELECT cliniko_grant('deputy', 'admin');
	  DROP OWNED BY deputy; DROP ROLE deputy;
	  CREATE ROLE deputy));
is($db->sql(q(SELECT count(*) FROM pg_policy p WHERE polname = 'cliniko_admin')), 0,
	'with the last admin dropped, the policy goes');
is($db->sql(q(SELECT count(*) FROM pg_policy WHERE polname = 'cliniko_own_organization')), 3,
	'but not the one for everybody');
is(privileges('deputy'), '', 'a role of the same name begins with nothing');
$db->sql(q(SELECT cliniko_grant('deputy', 'admin')));
is($db->as_role('deputy', {}, 'SELECT count(*) FROM cliniko_organizations'), 5, 'a new admin sees all clinics');

# When roles are granted, all levels of them, and revoked while a run is under
# way, then the run completes,
$db->sql(q(CREATE ROLE registrar; SELECT cliniko_grant('registrar', 'manager')));
$account = hold('busy', 'registrar');
for my $level (qw(viewer manager admin viewer))
{
	$db->sql("SELECT cliniko_grant('watcher', '$level')");
}
$db->sql(q(SELECT cliniko_revoke('watcher')));
is_completed('busy', $account);

# also when it wants to store its next page meanwhile: it waits for the lock.
$account = hold('locked_out', 'registrar');
my $grantor = $db->session;
$grantor->query_safe('BEGIN');
$grantor->query_safe(q(SELECT cliniko_grant('watcher', 'admin')));
my $log_start = -s $db->node->logfile;
$account->open_gate(2);
$db->node->wait_for_log(qr/still waiting for AccessShareLock on relation/, $log_start);
is($grantor->query_safe(q(SELECT count(*) FROM patients WHERE organization_id = 'locked_out')),
	100, 'locked out: nothing is stored');
$grantor->query_safe('COMMIT');
$db->wait_for_runs('locked_out');
is($db->newest_run('locked_out')->{status}, 'completed', 'locked out: completed');
$db->is_copy_of('locked_out', $account, 'locked out');
$grantor->quit;

# And when the tables change hands, and that is said, then the run goes on as
# their new owner.
$account = hold('handed_over', 'registrar');
$db->sql(
	q(CREATE ROLE heir;
	  GRANT ALL ON SCHEMA public TO heir; GRANT INSERT ON writers TO heir;
	  TRUNCATE writers;
	  REASSIGN OWNED BY keeper TO heir;));
like($db->refusal(q(SELECT cliniko_status('handed_over'))), qr/PT409.* belongs to heir,.*TABLES_OF_ANOTHER_OWNER/s,
	'handed over: not without a word');
$db->sql(q(SELECT cliniko_setup('heir')));
is_completed('handed_over', $account);
is($db->sql(q(SELECT string_agg(DISTINCT who, ',') FROM writers)), 'heir', 'handed over: by the new owner');

$db->finish;
