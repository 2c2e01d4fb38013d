# The simulator of Cliniko's API, as a test sees it: a process of its own, and
# the accounts in it.
#
#	my $cliniko = Cliniko->new;
#	my $account = $cliniko->account('KEY-au1', patients => 648);
#	$account->gates(3);
#	...
#	$account->await_gate(3);
#	$account->open_gate(3);
#
# What the options, faults and mutations are is told by the simulator itself
# (test/cliniko/cliniko.mjs --help).

package Cliniko;

use strict;
use warnings;

use FindBin;
use HTTP::Tiny;
use IPC::Open2;
use JSON::PP;
use Test::More;

# Start one of the programs in test/cliniko. It ends when its standard input
# does, so one whose test has died does not stay.
sub launch
{
	my ($program, @options) = @_;
	my $pid = open2(my $output, my $input, 'node', "$FindBin::RealBin/../cliniko/$program",
		'--until-stdin-closes', @options);

	my ($url) = (readline($output) // '') =~ m{^listening on (https?://\S+)$}
	  or die "$program did not start\n";
	return (pid => $pid, input => $input, url => $url);
}

# Start a simulator.
sub new
{
	my ($class) = @_;
	return bless {
		launch('cliniko.mjs'),
		# longer than it waits for a request to reach a gate; and on a kept
		# connection, content waits 40 ms for the headers to be acknowledged
		http => HTTP::Tiny->new(timeout => 600, keep_alive => 0)
	}, $class;
}

# What clinisync.base_url has to be.
sub base_url
{
	my ($self) = @_;
	return "$self->{url}/v1";
}

# Make an account, or make it anew.
sub account
{
	my ($self, $key, %options) = @_;
	$self->control('PUT', "accounts/$key", \%options);
	return Cliniko::Account->new($self, $key);
}

# Make many accounts that are alike; answers them in order.
sub accounts
{
	my ($self, $count, %options) = @_;
	my $made = $self->control('POST', 'accounts', { count => $count, template => \%options });
	return map { Cliniko::Account->new($self, $_) } @{ $made->{keys} };
}

sub totals
{
	my ($self) = @_;
	return $self->control('GET', 'totals');
}

# Whether all requests since the start kept to the rules that Cliniko documents.
sub is_content
{
	my ($self) = @_;
	my $totals = $self->totals;
	my @violations = (@{ $totals->{details} }, @{ $totals->{stray_violations} });

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(scalar @violations, 0, q(every request kept to Cliniko's rules))
	  or diag(explain(\@violations));
}

sub control
{
	my ($self, $method, $path, $content) = @_;
	my $answer = $self->{http}->request($method, "$self->{url}/control/$path",
		defined $content ? { content => encode_json($content) } : {});

	die "$method /control/$path: $answer->{status} $answer->{content}\n"
	  unless $answer->{success};
	return decode_json($answer->{content});
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!);
	close($self->{input});
	waitpid($self->{pid}, 0);
}

# The same simulator behind TLS: cert and key are files, max_version the latest
# version of TLS that is spoken. Answers what has a base_url of its own.
sub behind_tls
{
	my ($self, %options) = @_;
	my ($port) = $self->{url} =~ /(\d+)$/;
	my @options = map { '--' . tr/_/-/r => $options{$_} } sort keys %options;
	return bless { launch('tls.mjs', '--target' => $port, @options) }, ref $self;
}

package Cliniko::Account;

sub new
{
	my ($class, $cliniko, $key) = @_;
	return bless { cliniko => $cliniko, key => $key }, $class;
}

sub key
{
	my ($self) = @_;
	return $self->{key};
}

sub control
{
	my ($self, $method, $path, $content) = @_;
	return $self->{cliniko}->control($method, "accounts/$self->{key}$path", $content);
}

# Hold the requests for patients that have these numbers, counted from 1.
sub gates
{
	my ($self, @requests) = @_;
	$self->control('PUT', '/gates', [ map { int } @requests ]);
}

# Return once this request is being held.
sub await_gate
{
	my ($self, $request) = @_;
	$self->control('GET', "/gates/$request/reached");
}

# Let a request go, also one that has yet to come; 'all' of them.
sub open_gate
{
	my ($self, $request) = @_;
	$self->control('POST', "/gates/$request/open");
}

# Plan faults, instead of those that were planned before.
sub faults
{
	my ($self, @faults) = @_;
	$self->control('PUT', '/faults', \@faults);
}

# Change patients; answers whom, by id: {archived => [...], added => [...]}.
sub mutate
{
	my ($self, %mutations) = @_;
	return $self->control('POST', '/mutations', \%mutations);
}

# Forget what was counted and planned; requests are counted from 1 again.
sub reset
{
	my ($self) = @_;
	$self->control('POST', '/reset');
}

# Every patient, archived ones included, exactly as the API would send it.
sub truth
{
	my ($self) = @_;
	return $self->control('GET', '/patients');
}

# The ids of all these patients, in rising order.
sub ids
{
	my ($self) = @_;
	return @{ $self->control('GET', '/ids') };
}

# What was asked of this account so far.
sub summary
{
	my ($self) = @_;
	return $self->control('GET', '');
}

# The URLs of the requests for patients so far, in the order of their arrival.
sub pages
{
	my ($self) = @_;
	return map { $_->{path} } grep { $_->{patients_request} } @{ $self->summary->{log} };
}

1;
