# A web server in what perl-base has: a child per request; GREETING is what it says.
use strict; use warnings; use Socket;
$SIG{CHLD} = 'IGNORE';
socket(my $server, PF_INET, SOCK_STREAM, 0) or die $!;
setsockopt($server, SOL_SOCKET, SO_REUSEADDR, 1);
bind($server, sockaddr_in($ENV{PORT} || 5000, INADDR_ANY)) or die $!;
listen($server, 128) or die $!;
print "listening on $ENV{PORT}\n";
while (1) {
    accept(my $client, $server) or next;
    next if fork;
    while (my $line = <$client>) { last if $line =~ /^\r?\n$/ }
    my $body = ($ENV{GREETING} || 'Hello from dokku_py') . "\n";
    syswrite $client, "HTTP/1.1 200 OK\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
    exit;
}
