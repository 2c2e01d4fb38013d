# A database with clinisync in it, as a test sees it.
#
#	my $db = Clinisync->new('main');
#	my $account = $db->cliniko->account('KEY-au1', patients => 648);
#	$db->connect('clinic', $account);
#	my $run = $db->sync('clinic');
#	is($run->{status}, 'completed', 'the run is completed');
#	$db->is_copy_of('clinic', $account, 'every patient is there');
#	$db->finish;
#
# Nothing here sleeps: runs, processes and log lines are polled for with a
# deadline, and requests are held at the simulator's gates.

package Clinisync;

use strict;
use warnings;

# How long to wait for what must happen, in seconds: where that passes, something is
# wrong, and not slow. PostgreSQL's modules read it when they are loaded.
BEGIN
{
	$ENV{PG_TEST_TIMEOUT_DEFAULT} ||= 900;
	$ENV{PGCTLTIMEOUT} ||= 900;
}

use Cliniko;
use Encode qw(encode_utf8);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# How a patient's 57 fields are stored. Links are objects that name another
# record; the column holds its id. The implied fields say nothing but the
# patient's own id. All others are typed columns of the field's name, text
# unless listed here.
my %LINKS = map { $_ => "${_}_id" }
  qw(concession_type latest_booking merged_with_patient referring_doctor);
my %IMPLIED = map { $_ => 1 }
  qw(appointments attendees invoices links medical_alerts patient_attachments relationships);
my %TIMESTAMPS = map { $_ => 1 } qw(archived_at created_at deleted_at merged_at updated_at);
my %RENAMED = (id => 'cliniko_patient_id', deleted_at => 'cliniko_deleted_at');
my %PLAIN = map { $_ => 1 } qw(
  accepted_email_marketing accepted_privacy_policy accepted_sms_marketing address_1 address_2
  address_3 appointment_notes city country country_code custom_fields date_of_birth
  dva_card_number email emergency_contact first_name gender gender_identity id
  invoice_default_to invoice_email invoice_extra_information label last_name medicare
  medicare_reference_number notes occupation old_reference_id patient_phone_numbers post_code
  preferred_first_name pronouns receives_cancellation_emails receives_confirmation_emails
  referral_source reminder_type sex state time_zone title);
die "a patient has 57 fields\n" if %LINKS + %IMPLIED + %TIMESTAMPS + %PLAIN != 57;

# Columns that do not come from Cliniko.
my @OWN_COLUMNS = qw(organization_id id record_hash first_synced_at last_synced_at
  missing_sync_id deleted_at);

my $json = JSON::PP->new->canonical->allow_nonref;

# Start a server and a simulator, and make the database "postgres" ready for
# both. settings: lines for the server's configuration file; init: more options
# for PostgreSQL::Test::Cluster's init; environment: what the server alone is to
# have in its environment.
sub new
{
	my ($class, $name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(extra => [ '--encoding=UTF8', '--no-locale' ], %{ $options{init} // {} });
	# the key that cliniko_connect() is given is no business of the log's
	$node->append_conf('postgresql.conf', "log_statement = none\n" . ($options{settings} // ''));
	{
		local %ENV = (%ENV, %{ $options{environment} // {} });
		$node->start;
	}
	my $self = bless {
		node => $node,
		name => 'postgres',
		cliniko => Cliniko->new
	}, $class;
	$self->prepare;
	return $self;
}

# Pass a test over where there is no pg_cron. Where Debian has it for this
# PostgreSQL, test/run has installed it.
sub need_pg_cron
{
	chomp(my $share = `pg_config --sharedir`);
	return if -e "$share/extension/pg_cron.control";
	die "pg_cron is not installed: test/run does that\n" if $ENV{IS_DEBIAN};
	plan skip_all => 'this PostgreSQL is not from a Debian package and has no pg_cron';
}

# Make another database of the same server, or one that is only to be restored.
# encoding: another than the server's; version: an earlier one of clinisync;
# copy_of: the name of one that it is a copy of.
sub new_database
{
	my ($self, $name, %options) = @_;
	my $other = bless { %$self, name => $name }, ref $self;
	my $encoding = $options{encoding};

	$self->sql("CREATE DATABASE $name"
		  . ($encoding ? " ENCODING '$encoding' TEMPLATE template0" : '')
		  . ($options{copy_of} ? " TEMPLATE $options{copy_of}" : ''));
	$options{empty} || $options{copy_of} ? $other->configure : $other->prepare($options{version});
	return $other;
}

# The same database on another server, such as a standby.
sub on
{
	my ($self, $node) = @_;
	return bless { %$self, node => $node }, ref $self;
}

sub prepare
{
	my ($self, $version) = @_;
	$self->sql('CREATE EXTENSION clinisync' . ($version ? " VERSION '$version'" : ''));
	$self->configure;
}

sub configure
{
	my ($self) = @_;
	$self->set(
		base_url => $self->cliniko->base_url,
		contact_email => 'tests@clinic.example',
		# one page after the other, so that a test knows which request is which;
		# tests to which that is all the same set it to what it is by default
		requests_in_flight => 1,
		# tests do in a second what a clinic does in an hour
		requests_per_minute => 0,
		# a request that is held is held, however long the test takes meanwhile
		request_timeout => '10min');
}

sub node { return $_[0]->{node}; }
sub name { return $_[0]->{name}; }
sub cliniko { return $_[0]->{cliniko}; }

# Set clinisync.* for this database. The worker takes it over when it next
# looks for work.
sub set
{
	my ($self, %settings) = @_;
	$self->sql(join '',
		map { "ALTER DATABASE $self->{name} SET clinisync.$_ = '$settings{$_}';\n" }
		  sort keys %settings);
}

# What a statement returns, as psql prints it; it must succeed.
sub sql
{
	my ($self, $sql) = @_;
	return $self->node->safe_psql($self->name, $sql);
}

# What an expression of type jsonb returns, such as a call of cliniko_status().
sub call
{
	my ($self, $expression) = @_;
	return decode_json($self->sql("SELECT $expression"));
}

# What a statement returns where PostgREST sends it: as this role, with the
# claims of a token.
sub as_role
{
	my ($self, $role, $claims, $sql) = @_;
	return $self->sql(request($role, $claims) . $sql);
}

# Likewise, of an expression of type jsonb.
sub call_as
{
	my ($self, $role, $claims, $expression) = @_;
	return decode_json($self->as_role($role, $claims, "SELECT $expression"));
}

sub request
{
	my ($role, $claims) = @_;
	my $token = $json->encode($claims);

	$token =~ s/'/''/g;
	return qq(SET ROLE "$role"; SET request.jwt.claims = '$token';\n);
}

# What is said of a statement that must fail, with its SQLSTATE.
sub refusal
{
	my ($self, $sql) = @_;
	my ($code, undef, $error) = $self->node->psql($self->name, $sql,
		on_error_stop => 1, extra_params => [ '-v', 'VERBOSITY=verbose' ]);

	return $code == 0 ? 'not refused' : $error;
}

# Have everything on disk that was committed so far, as any commit that waits
# for the disk does.
sub flush
{
	my ($self) = @_;
	$self->sql(q(SELECT pg_logical_emit_message(true, 'test', '')));
}

# A session that lasts.
sub session
{
	my ($self, %options) = @_;
	return $self->node->background_psql($self->name, %options);
}

# Wait until a query answers true.
sub wait_until
{
	my ($self, $query) = @_;
	$self->node->poll_query_until($self->name, $query) or die "waited in vain: $query\n";
}

sub connect
{
	my ($self, $org, $account) = @_;
	return $self->call("cliniko_connect('$org', '" . $account->key . "')");
}

# Make an account and connect an organisation of the same name to it.
sub add_clinic
{
	my ($self, $org, %options) = @_;
	my $account = $self->cliniko->account("KEY-$org-au1", %options);
	$self->connect($org, $account);
	return $account;
}

# Start a run; answers what cliniko_sync_all() does.
sub start
{
	my ($self, $org) = @_;
	return $self->call("cliniko_sync_all('$org')");
}

# Start a run of what changed; answers what cliniko_sync_changes() does.
sub start_changes
{
	my ($self, $org) = @_;
	return $self->call("cliniko_sync_changes('$org')");
}

# Start a run of each organisation, all in one statement.
sub start_all
{
	my ($self, @orgs) = @_;
	my $list = join ', ', map { "'$_'" } @orgs;
	$self->sql("SELECT cliniko_sync_all(org) FROM unnest(ARRAY[$list]) org");
}

# Wait until no run of these organisations is under way, by looking at the
# table: cliniko_sync_logs() would start a worker where one is missing, which
# must not be what makes a test pass. The operators are PostgreSQL's own, also
# where the columns are varchar and somebody has made others for that.
sub wait_for_runs
{
	my ($self, @orgs) = @_;
	my $list = join ', ', map { "'$_'" } @orgs;
	$self->wait_until(
		"SELECT NOT EXISTS (SELECT FROM sync_logs
		  WHERE status OPERATOR(pg_catalog.=) 'running'
			AND organization_id OPERATOR(pg_catalog.=) ANY (ARRAY[$list]))");
}

# The newest run of an organisation, as front ends see it. A failed test's log
# has what was read.
sub newest_run
{
	my ($self, $org) = @_;
	my $run = $self->call("cliniko_sync_logs('$org', 1)")->{logs}[0];

	note($self->name . ': ' . encode_utf8($json->encode($run)));
	return $run;
}

# Run a sync to its end; answers the run.
sub sync
{
	my ($self, $org) = @_;
	$self->start($org);
	return $self->ended_run($org);
}

# Run a sync of what changed to its end; answers the run.
sub sync_changes
{
	my ($self, $org) = @_;
	$self->start_changes($org);
	return $self->ended_run($org);
}

# The newest run of an organisation, once it has ended.
sub ended_run
{
	my ($self, $org) = @_;
	$self->wait_for_runs($org);
	my $run = $self->newest_run($org);

	die "nothing was waited for: the run of $org is running\n"
	  if $run && $run->{status} eq 'running';
	return $run;
}

# How many workers this database has.
sub workers
{
	my ($self) = @_;
	return $self->sql($self->count_workers);
}

sub wait_for_workers
{
	my ($self, $count) = @_;
	# from another database where this one might be gone
	$self->wait_until('SELECT (' . $self->count_workers . ") = $count");
}

sub count_workers
{
	my ($self) = @_;
	return "SELECT count(*) FROM pg_stat_activity
			 WHERE backend_type = 'clinisync worker' AND datname = '$self->{name}'";
}

# The process id of this database's worker.
sub worker_pid
{
	my ($self) = @_;
	return $self->sql("SELECT pid FROM pg_stat_activity
						WHERE backend_type = 'clinisync worker' AND datname = '$self->{name}'");
}

sub terminate_worker
{
	my ($self) = @_;
	$self->sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				 WHERE backend_type = 'clinisync worker' AND datname = '$self->{name}'");
	$self->wait_for_workers(0);
}

# How many patients of an organisation are in the table.
sub stored
{
	my ($self, $org) = @_;
	return $self->sql(
		"SELECT count(*) FROM patients WHERE organization_id OPERATOR(pg_catalog.=) '$org'");
}

# Every row of an organisation, by the patient's id in Cliniko. Ids are
# strings, since they have more digits than a double keeps.
sub rows
{
	my ($self, $org) = @_;
	my $ids = join ', ', map { "'$_', p.$_\::text" } 'cliniko_patient_id', sort values %LINKS;
	my $rows = $self->sql(
		"SET timezone = 'UTC';
		 SELECT to_jsonb(p) || jsonb_build_object($ids)
		   FROM patients p WHERE organization_id OPERATOR(pg_catalog.=) '$org'");
	return { map { $_->{cliniko_patient_id} => $_ } map { decode_json($_) } split /\n/, $rows };
}

# The row that a record must become: only the columns that come from Cliniko.
sub expected_row
{
	my ($record) = @_;
	my %row = (phone => undef, extra => undef);
	my %extra;

	for my $field (keys %LINKS, keys %PLAIN, keys %TIMESTAMPS)
	{
		my $value = $record->{$field};

		# null, "" and a missing key all mean that there is no value
		undef $value if defined $value && !ref $value && $value eq '';
		if (defined $value && $LINKS{$field})
		{
			($value) = $value->{links}{self} =~ m{([^/]+)$};
		}
		elsif (defined $value && $TIMESTAMPS{$field})
		{
			$value =~ s/Z$/+00:00/;
		}
		$row{ $LINKS{$field} // $RENAMED{$field} // $field } = $value;
	}
	for my $field (keys %$record)
	{
		$extra{$field} = $record->{$field}
		  unless $LINKS{$field} || $PLAIN{$field} || $TIMESTAMPS{$field} || $IMPLIED{$field};
	}
	$row{extra} = \%extra if %extra;

	# the number to call is the first mobile one, else the first
	my @numbers = grep { ($_->{number} // '') ne '' } @{ $row{patient_phone_numbers} // [] };
	my @mobiles = grep { ($_->{phone_type} // '') eq 'Mobile' } @numbers;
	$row{phone} = (@mobiles, @numbers)[0]{number} if @numbers;
	return \%row;
}

# A value as text that is the same for the same value; PostgreSQL has no text
# with a NUL in it and is given U+FFFD instead.
sub canonical
{
	my ($value) = @_;
	my $text = !defined $value ? 'null' : ref $value ? $json->encode($value) : "'$value'";

	$text =~ s/\0|\\u0000/\x{FFFD}/g;
	return $text;
}

# What is wrong with rows for these records, by id and column.
sub differences
{
	my ($rows, $records) = @_;
	my @differences;

	for my $record (@$records)
	{
		my $row = $rows->{ $record->{id} };
		my $expected = expected_row($record);

		if (!$row)
		{
			push @differences, "$record->{id} is missing";
			next;
		}
		delete @$row{@OWN_COLUMNS};
		for my $column (sort keys %{ { %$row, %$expected } })
		{
			my ($got, $wanted) = map { canonical($_->{$column}) } $row, $expected;

			push @differences, "$record->{id}: $column is $got, not $wanted"
			  if $got ne $wanted || !exists $row->{$column} || !exists $expected->{$column};
		}
	}
	return @differences;
}

sub are_none
{
	my ($differences, $test) = @_;
	my @first = @$differences;

	local $Test::Builder::Level = $Test::Builder::Level + 2;
	is(scalar @$differences, 0, $test)
	  or diag(encode_utf8(join "\n", splice(@first, 0, 20)));
}

# Whether these records, every field of them, are in the table.
sub has_records
{
	my ($self, $org, $records, $test) = @_;
	are_none([ differences($self->rows($org), $records) ], $test);
}

# Whether an organisation's rows are the account's patients, every one and
# every field, and nothing else.
sub is_copy_of
{
	my ($self, $org, $account, $test) = @_;
	my $truth = $account->truth;
	my $rows = $self->rows($org);
	my @differences = differences($rows, $truth);

	delete @$rows{ map { $_->{id} } @$truth };
	are_none([ @differences, map { "$_ should not be there" } sort keys %$rows ],
		"$test: the table equals Cliniko");
}

# Whether a run accounts for every patient that it found.
sub is_accounted_for
{
	my ($run, $found, $test) = @_;
	my $metadata = $run->{metadata};
	my $sum = $run->{records_failed};

	$sum += $metadata->{$_} for qw(inserted updated unchanged);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply([ $sum, @$run{qw(records_processed)}, $metadata->{patients_found} ],
		[ $found, $found, $found ], "$test: $found patients accounted for");
}

# The end of every test: Cliniko's rules were kept, and nothing happened in
# the server that its log calls alarming. expected: what lines of the log are
# like that the test itself has brought about.
sub finish
{
	my ($self, %options) = @_;
	$self->is_quiet(%options);
	done_testing();
}

# Likewise, of one of several servers.
sub is_quiet
{
	my ($self, %options) = @_;

	$self->cliniko->is_content;
	ok($self->node->stop, 'the server stops');
	my @alarms = grep { /\b(?:WARNING|PANIC|TRAP):|was terminated by signal/ }
	  split /\n/, slurp_file($self->node->logfile);
	@alarms = grep { !/$options{expected}/ } @alarms if $options{expected};
	is(scalar @alarms, 0, 'nothing alarming is in the server log') or diag(join "\n", @alarms);
}

1;
