# A web server that misbehaves on demand, in what perl-base has; a child per request.
#   At start:  SAYS=text (printed), CHATTER=lines, BOOT_SECONDS, EXIT_AT_START=code, BIND=address, IGNORE_TERM=1
#   Paths:     / (GREETING)  /env/NAME  /print/TEXT  /slow/SECONDS  /status/CODE  /die  /headers  /health (UNHEALTHY)  /file/PATH
#              /upgrade (to a protocol that echoes lines)
use strict; use warnings; use Socket;
$| = 1;
$SIG{CHLD} = 'IGNORE';
$SIG{TERM} = $ENV{IGNORE_TERM} ? 'IGNORE' : sub { print "got TERM\n"; exit 0 };
$SIG{USR1} = sub { exit 7 };
print "$ENV{SAYS}\n" if $ENV{SAYS};
print "line $_\n" for 1 .. ($ENV{CHATTER} || 0);
exit $ENV{EXIT_AT_START} if defined $ENV{EXIT_AT_START};
select undef, undef, undef, $ENV{BOOT_SECONDS} || 0;
socket(my $server, PF_INET, SOCK_STREAM, 0) or die $!;
setsockopt($server, SOL_SOCKET, SO_REUSEADDR, 1);
bind($server, sockaddr_in($ENV{PORT}, inet_aton($ENV{BIND} || '0.0.0.0'))) or die $!;
listen($server, 128) or die $!;
print "listening on $ENV{PORT}\n";
while (1) {
    accept(my $client, $server) or next;
    next if fork;
    my ($path) = (<$client> || '') =~ m{^\S+ (\S+)} or exit;
    my $headers = '';
    while (my $line = <$client>) { last if $line =~ /^\r?\n$/; $headers .= $line }
    read $client, my $given, $1 if $headers =~ /^Content-Length: (\d+)/mi;
    my ($word, $rest) = $path =~ m{^/([^/]*)/?(.*)};
    my ($status, $body) = (200, ($ENV{GREETING} || 'Hello from dokku_py') . "\n");
    if    ($word eq 'env')     { ($status, $body) = defined $ENV{$rest} ? (200, $ENV{$rest}) : (404, "$rest is not set\n") }
    elsif ($word eq 'print')   { print "$rest\n" }
    elsif ($word eq 'slow')    { select undef, undef, undef, $rest }
    elsif ($word eq 'status')  { $status = $rest }
    elsif ($word eq 'die')     { kill 'USR1', getppid }
    elsif ($word eq 'headers') { $body = $headers }
    elsif ($word eq 'health')  { ($status, $body) = $ENV{UNHEALTHY} ? (500, "sick\n") : (200, "all well\n") }
    elsif ($word eq 'file')    { local $/; my $file; ($status, $body) = open($file, '<', "/$rest") ? (200, scalar <$file>) : (404, "no file\n") }
    elsif ($word eq 'upgrade') { syswrite $client, "HTTP/1.1 101 Switching\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"; syswrite $client, $_ while <$client>; exit }
    syswrite $client, "HTTP/1.1 $status OK\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
    exit;
}
