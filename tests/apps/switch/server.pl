# A web server that misbehaves on demand, in what perl-base has; a child per request.
#   At start:  SAYS=text (printed), CHATTER=lines, BOOT_SECONDS, EXIT_AT_START=code, BIND=address
#   On TERM:   ends at once, requests in flight are lost; IGNORE_TERM=1 goes on; GRACEFUL=1 ends when the requests in flight are answered
#   Paths:     / (GREETING)  /env/NAME  /print/TEXT  /slow/SECONDS/WORD  /status/CODE  /die  /eat (all memory)  /headers
#              /as/TYPE/COUNT (so many letters)  /health (UNHEALTHY)  /file/PATH  /stream/COUNT (lines, ten a second)  /socket (a websocket that echoes)
use strict; use warnings; use Socket;
$| = 1;
socket(my $server, PF_INET, SOCK_STREAM, 0) or die $!;
$SIG{CHLD} = 'IGNORE';
$SIG{TERM} = $ENV{IGNORE_TERM} ? 'IGNORE' : sub { print "got TERM\n"; if ($ENV{GRACEFUL}) { close $server; 1 while wait > 0 } exit 0 };
$SIG{USR1} = sub { exit 7 };
$SIG{USR2} = sub { my @all; push @all, 'x' x 1e7 while 1 };
print "$ENV{SAYS}\n" if $ENV{SAYS};
print "line $_\n" for 1 .. ($ENV{CHATTER} || 0);
exit $ENV{EXIT_AT_START} if defined $ENV{EXIT_AT_START};
select undef, undef, undef, $ENV{BOOT_SECONDS} || 0;
setsockopt($server, SOL_SOCKET, SO_REUSEADDR, 1);
bind($server, sockaddr_in($ENV{PORT}, inet_aton($ENV{BIND} || '0.0.0.0'))) or die $!;
listen($server, 1024) or die $!;
print "listening on $ENV{PORT}\n";

sub stream {
    my ($client, $count) = @_;
    syswrite $client, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    for my $number (1 .. $count) {
        my $line = "$ENV{DOKKU_RELEASE} $number\n";
        syswrite($client, sprintf("%x\r\n%s\r\n", length $line, $line)) or exit;
        select undef, undef, undef, 0.1;
    }
    syswrite $client, "0\r\n\r\n";
}

sub echo_frames {    # RFC 6455: short masked text frames come, unmasked ones go; the release is put before each
    my ($client, $key) = @_;
    my $accept = `printf %s '${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11' | sha1sum | cut -c1-40 | perl -ne 'print pack "H*", substr(\$_, 0, 40)' | base64`;
    chomp $accept;
    syswrite $client, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: $accept\r\n\r\n";
    while (read($client, my $head, 6) == 6) {
        my ($type, $length, @mask) = unpack 'C6', $head;
        read $client, my $masked, $length & 127;
        my $index = 0;
        my $text = "$ENV{DOKKU_RELEASE} " . join '', map { chr(ord($_) ^ $mask[$index++ % 4]) } split //, $masked;
        syswrite $client, pack('CC', 0x81, length $text) . $text;
    }
}

while (1) {
    accept(my $client, $server) or next;
    next if fork;
    $SIG{TERM} = 'DEFAULT';
    my ($path) = (<$client> || '') =~ m{^\S+ (\S+)} or exit;
    my $headers = '';
    while (my $line = <$client>) { last if $line =~ /^\r?\n$/; $headers .= $line }
    read $client, my $given, $1 if $headers =~ /^Content-Length: (\d+)/mi;
    my ($word, $rest) = $path =~ m{^/([^/]*)/?(.*)};
    my ($type, $status, $body) = ('', 200, ($ENV{GREETING} || 'Hello from dokku_py') . "\n");
    if    ($word eq 'env')     { ($status, $body) = defined $ENV{$rest} ? (200, $ENV{$rest}) : (404, "$rest is not set\n") }
    elsif ($word eq 'print')   { print "$rest\n" }
    elsif ($word eq 'slow')    { my ($seconds, $text) = split m{/}, $rest; select undef, undef, undef, $seconds; $body = "$text\n" x 100 if $text }
    elsif ($word eq 'status')  { $status = $rest }
    elsif ($word eq 'die')     { kill 'USR1', getppid }
    elsif ($word eq 'eat')     { kill 'USR2', getppid }
    elsif ($word eq 'headers') { $body = $headers }
    elsif ($word eq 'health')  { ($status, $body) = $ENV{UNHEALTHY} ? (500, "sick\n") : (200, "all well\n") }
    elsif ($word eq 'file')    { local $/; my $file; ($status, $body) = open($file, '<', "/$rest") ? (200, scalar <$file>) : (404, "no file\n") }
    elsif ($word eq 'as')      { ($type, $body) = ("Content-Type: $1\r\n", 'x' x $2) if $rest =~ m{^(.+)/(\d+)$} }
    elsif ($word eq 'stream')  { stream($client, $rest); exit }
    elsif ($word eq 'socket')  { echo_frames($client, $headers =~ /^Sec-WebSocket-Key: (\S+)/mi); exit }
    syswrite $client, "HTTP/1.1 $status OK\r\n${type}Content-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
    exit;
}
