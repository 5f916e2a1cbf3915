"""Who is sent elsewhere, asked for a password, kept out, or told to come again later; and what speaks gRPC."""

import base64
import contextlib
import io
import json
import re
import socket
import ssl
import tarfile
import threading
from pathlib import Path

import grpc
import pytest
from conftest import HELLO_TEXT, STATE, ask, base_image, free_port, sh, wait_until
from sockets import WebSocket
from test_tls import Authority, https


def located(host, path="/"):
    """Ask for a path of a host; give the status and where it leads."""
    found = sh("curl", "-sI", "-H", f"Host: {host}", f"http://127.0.0.1{path}").stdout
    return int(found.split()[1]), (re.search(r"(?im)^location: (\S+)", found) or [None, None])[1]


def login(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def pages(**files):
    """Pack pages as `tar c` does; give what goes to standard input."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as bundle:
        for name, text in files.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            if text.startswith("-> "):
                member.type, member.linkname = tarfile.SYMTYPE, text[3:]
                bundle.addfile(member)
            else:
                member.size = len(text)
                bundle.addfile(member, io.BytesIO(text.encode()))
    return raw.getvalue().decode("latin-1")


def test_domains_are_sent_elsewhere(live, switch):
    other = f"www-{live.name}.example.com"
    live.ok("redirect:set", other, live.host)
    try:
        assert located(other, "/a/b?c=d") == (301, f"http://{live.host}/a/b?c=d")
        live.ok("redirect:set", other, "https://elsewhere.example.com:8443", "307")
        assert located(other, "/a") == (307, "https://elsewhere.example.com:8443/a")
        assert live.ok("redirect") == f"{other} https://elsewhere.example.com:8443 307\n"
        assert live.get() == (200, HELLO_TEXT)
        switch.deploy()
        assert f"{other} belongs to {live.name}" in switch.refused("domains:add", other)
        assert f"{live.host} belongs to {live.name}" in switch.refused("redirect:set", live.host, switch.host)
        assert f"{other} is redirected" in live.refused("domains:add", other)
        for target in ("a b", "x;y", "$host", "javascript:alert(1)", "http://h/{"):
            assert "is no host" in live.refused("redirect:set", other, f"'{target}'", code=2)
        live.refused("redirect:set", other, live.host, "200", code=2)
        assert located(other, "/a")[0] == 307, "nothing was changed by a refusal"
        live.ok("config:set", "A=1")
        assert located(other, "/a")[0] == 307
    finally:
        live.ok("redirect:unset", other)
    assert ask(other)[0] == 404 and "has no redirect for" in live.refused("redirect:unset", other)


def test_domains_are_sent_to_the_first(live):
    names = [f"{word}-{live.name}.example.com" for word in ("a", "b")]
    live.ok("domains:redirect:set", *names)
    try:
        assert [located(name) for name in names] == [(301, f"http://{live.host}/")] * 2
        assert [line.split()[0] for line in live.ok("domains:redirect:get").splitlines()] == names
    finally:
        live.ok("domains:redirect:set")
    assert ask(names[0])[0] == 404 and live.ok("domains:redirect:get") == ""


def test_a_password_is_asked_for(live):
    secret = "it's a §ecret"
    live.ok("http-auth:enable", "somebody", "-", stdin=f"{secret}\n")
    try:
        assert live.get()[0] == 401 and live.get(**login("somebody", "wrong"))[0] == 401
        assert live.get(**login("somebody", secret)) == (200, HELLO_TEXT)
        live.ok("http-auth:add-user", "another", "word2")
        assert live.get(**login("another", "word2")) == (200, HELLO_TEXT)
        assert live.ok("http-auth:report", "--http-auth-users") == "somebody another\n" and live.ok("http-auth:report", "--http-auth-enabled") == "true\n"
        assert "auth_basic" in live.ok("http-auth:show-config")
        live.ok("http-auth:remove-user", "another")
        assert live.get(**login("another", "word2"))[0] == 401 and "knows no another" in live.refused("http-auth:remove-user", "another")
        live.ok("http-auth:add-allowed-ip", "127.0.0.1")
        assert live.get() == (200, HELLO_TEXT), "who comes from there needs none"
        live.ok("http-auth:remove-allowed-ip", "127.0.0.1")
        live.ok("http-auth:add-allowed-ip", "192.0.2.0/24")
        assert live.get()[0] == 401
        live.ok("http-auth:remove-allowed-ip", "192.0.2.0/24")
        for path in STATE.rglob("*"):
            if path.is_file() and path.parent.name != "auth":
                assert secret not in path.read_text(errors="replace"), path
        digest = (STATE / "nginx" / "auth" / live.name)
        assert secret not in digest.read_text() and "$6$" in digest.read_text()
        assert sh("runuser", "-u", "nobody", "--", "cat", digest).returncode != 0
        assert sh("runuser", "-u", "www-data", "--", "cat", digest).returncode == 0
        for user in ("a:b", "'a b'", "../x"):
            live.refused("http-auth:add-user", user, "x", code=2)
        done = sh("dokku", "http-auth:add-user", live.name, "third", "on-the-line")
        assert done.returncode == 2 and "seen by every user" in done.stderr
    finally:
        live.ok("http-auth:disable")
    assert live.get() == (200, HELLO_TEXT)


def test_passwords_in_the_other_dialect_and_for_a_clone(live, new_app):
    live.ok("htpasswd:add", "one", stdin="secret\n")
    try:
        assert live.get()[0] == 401 and live.get(**login("one", "secret"))[0] == 200
        copy = new_app()
        live.ok("apps:clone", copy.name)
        assert copy.get()[0] == 401 and copy.get(**login("one", "secret"))[0] == 200, "what is closed has no open clone"
        live.ok("htpasswd:remove", "one")
        assert live.get(**login("one", "secret"))[0] in (401, 403), "403 when nobody is left who may"
    finally:
        live.ok("htpasswd:disable")


def test_what_only_nginx_does_is_refused_without_nginx(switch):
    switch.deploy()
    switch.ok("proxy:disable")
    assert "without nginx" in switch.refused("http-auth:enable", "me", "-", stdin="x\n") and "without nginx" in switch.refused("maintenance:enable")
    switch.ok("proxy:enable")
    switch.ok("http-auth:enable", "me", "-", stdin="x\n")
    assert "asks for a password" in switch.refused("proxy:disable") and switch.get()[0] == 401
    switch.ok("http-auth:disable")
    switch.ok("domains:disable")
    assert "has no domain" in switch.refused("redirect:set", "a.example.com", "b.example.com")
    assert "has no domain" in switch.refused("domains:redirect:set", "a.example.com")


def test_a_page_answers_while_somebody_works_on_the_app(live):
    live.ok("maintenance:enable")
    try:
        status, body = live.get("/some/path")
        assert status == 503 and "Back soon" in body
        assert "Retry-After: 60" in sh("curl", "-si", "-H", f"Host: {live.host}", "http://127.0.0.1/").stdout
        assert live.ok("maintenance:report", "--maintenance-enabled") == "true\n"
        live.ok("maintenance:custom-page", stdin=pages(maintenance_html="<h1>Ours</h1>", logo_svg="<svg/>", link_txt="-> /etc/passwd"))
        assert live.get() == (503, "<h1>Ours</h1>") and live.get("/logo.svg") == (200, "<svg/>")
        assert live.get("/link.txt")[0] in (403, 503) and "root:" not in live.get("/link.txt")[1]
        live.deploy(more="1")
        assert live.get() == (503, "<h1>Ours</h1>"), "it stays over a deploy"
        exported = tarfile.open(fileobj=io.BytesIO(sh("dokku", "maintenance:custom-page-export", live.name).stdout.encode()))
        assert "./maintenance.html" in exported.getnames()
        for text in ("", "nonsense", pages(maintenance_html="x" * (2**24 + 1)), pages(readme_txt="x"), pages(**{"../../../tmp/x/out": "x"})):
            assert live.person.ssh("maintenance:custom-page", live.name, stdin=text).returncode != 0
        assert live.get() == (503, "<h1>Ours</h1>")
        live.ok("maintenance:custom-page-remove")
        assert "Back soon" in live.get()[1] and "no pages of its own" in live.refused("maintenance:custom-page-export")
    finally:
        live.ok("maintenance:disable")
    assert live.get() == (200, HELLO_TEXT)


def test_a_page_of_the_apps_own_stands_in_when_nothing_answers(live):
    live.ok("maintenance:custom-page", stdin=pages(**{"502_html": "<h1>Down</h1>"}))
    try:
        assert live.get() == (200, HELLO_TEXT)
        live.ok("ps:stop")
        assert live.get() == (502, "<h1>Down</h1>")
    finally:
        live.ok("ps:start")
        live.ok("maintenance:custom-page-remove")
    assert live.get() == (200, HELLO_TEXT)


def test_no_request_and_no_websocket_is_dropped_by_what_is_set_here(live, tmp_path):
    """Certificates, a page in the app's place, redirects and fifty reloads, under load and with a websocket open."""
    authority = Authority(tmp_path)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "root.crt"))
    live.ok("certs:add", stdin="".join(authority.issue(live.host)))
    failures, count, going = [], [0], threading.Event()

    def ask_on():
        while not going.wait(0.005):
            try:
                status = https(live.host, trusting)[0]
                count[0] += 1
                failures.extend([status] if status not in (200, 503) else [])
            except OSError as error:
                failures.append(error)

    socket_ = WebSocket(live, port=443, context=trusting)
    askers = [threading.Thread(target=ask_on) for _ in range(3)]
    [asker.start() for asker in askers]
    try:
        for _ in range(3):
            live.ok("certs:update", stdin="".join(authority.issue(live.host)))
            live.ok("maintenance:enable")
            live.ok("maintenance:disable")
            live.ok("redirect:set", f"r-{live.name}.example.com", live.host)
            live.ok("redirect:unset", f"r-{live.name}.example.com")
            assert socket_.say("there?").endswith(" there?")
        for _ in range(50):
            assert sh("dokku", "nginx:reload").returncode == 0
        assert socket_.say("still there?").endswith(" still there?")
    finally:
        going.set()
        [asker.join() for asker in askers]
        socket_.close()
        live.ok("certs:remove")
    assert count[0] > 50 and not failures, failures[:5]


SINK = r'''
use strict; use Socket;
socket(my $server, PF_INET, SOCK_STREAM, 0); setsockopt($server, SOL_SOCKET, SO_REUSEADDR, 1);
bind($server, sockaddr_in($ENV{PORT}, INADDR_ANY)) or die; listen($server, 100);
$SIG{CHLD} = 'IGNORE';
while (accept(my $client, $server)) {
    next if fork;
    my ($length, $seen) = (0, 0);
    while (my $line = <$client>) { last if $line =~ /^\r?$/; $length = $1 if $line =~ /^Content-Length: (\d+)/i }
    while ($seen < $length) { my $got = read($client, my $bytes, 65536 < $length - $seen ? 65536 : $length - $seen) or last; $seen += $got }
    syswrite $client, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " . length("$seen") . "\r\n\r\n$seen";
    exit;
}
'''


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_an_upload_of_a_gigabyte_takes_no_memory(switch, buffering):
    switch.deploy(**{"server.pl": SINK})
    assert sh("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Host: {switch.host}", "--data-binary", "@-", "http://127.0.0.1/", stdin="x" * 2**21).stdout == "413"
    switch.ok("nginx:set", "client-max-body-size", "0")
    switch.ok("nginx:set", "proxy-request-buffering", buffering)
    done = sh("sh", "-c", f"head -c 1073741824 /dev/zero | curl -s -T - -X POST -H 'Expect:' -H 'Content-Length: 1073741824' -H 'Transfer-Encoding:' -H 'Host: {switch.host}' http://127.0.0.1/")
    assert done.stdout == str(2**30), done
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().strip() == "nginx":
                assert int(re.search(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())[1]) < 100 * 1024


def test_ipv6_and_a_name_that_a_wildcard_of_another_app_covers(live, switch):
    switch.deploy(Procfile="web: GREETING=other exec perl /server.pl\n")
    wild = f"{switch.name}.example.com"
    switch.ok("domains:add", f"*.{wild}")
    said = live.ok("domains:add", f"one.{wild}")
    try:
        assert f"{switch.name} answers for *.{wild}; for one.{wild} it is {live.name} from now on" in said
        assert ask(f"one.{wild}") == (200, HELLO_TEXT) and ask(f"two.{wild}") == (200, "other")
        found = sh("curl", "-s", "-6", "-H", f"Host: two.{wild}", "http://[::1]/").stdout
        assert found.strip() == "other"
    finally:
        live.ok("domains:remove", f"one.{wild}")
    assert ask(f"one.{wild}") == (200, "other")


def test_a_certificate_that_ends_soon_is_told_at_each_push(live, tmp_path):
    live.ok("certs:add", stdin="".join(Authority(tmp_path).issue(live.host)))
    try:
        assert "ends within 14 days" in live.deploy(again="1")
        assert "its certificate ends within 14 days" in live.person.ssh("doctor", live.name).stdout
    finally:
        live.ok("certs:remove")


def test_addresses_rates_and_logs(live):
    live.ok("nginx:set", "allowed-addresses", "192.0.2.0/24")
    assert live.get()[0] == 403
    live.ok("nginx:set", "allowed-addresses", "'192.0.2.0/24 127.0.0.0/8'")
    assert live.get() == (200, HELLO_TEXT)
    live.ok("nginx:set", "allowed-addresses")
    for key, value in (("rate-limit", "1r/m"), ("rate-burst", "2")):
        live.ok("nginx:set", key, value)
    statuses = [live.get()[0] for _ in range(6)]
    assert statuses[:3] == [200] * 3 and statuses[3:] == [429] * 3
    live.ok("nginx:set", "rate-limit")
    live.ok("nginx:set", "rate-burst")
    live.ok("nginx:set", "access-log-format", "dokku_json")
    live.get('/a"b')
    last = sh("tail", "-n", "1", f"/var/log/nginx/{live.name}-access.log").stdout
    assert json.loads(last)["path"] == '/a"b' and json.loads(last)["status"] == 200
    live.ok("nginx:set", "access-log-format")
    for key, hostile in (("allowed-addresses", "1.2.3.4;}"), ("rate-limit", "1r/s;"), ("rate-burst", "x"), ("trusted-proxies", "all")):
        live.refused("nginx:set", key, f"'{hostile}'", code=2)
    assert live.get() == (200, HELLO_TEXT)


def test_who_comes_through_a_proxy_is_known_by_its_own_address(live):
    assert "x-forwarded-for: 127.0.0.1" in live.get("/headers", **{"X-Forwarded-For": "192.0.2.9"})[1].lower()
    live.ok("nginx:set", "trusted-proxies", "127.0.0.1")
    assert "x-forwarded-for: 192.0.2.9" in live.get("/headers", **{"X-Forwarded-For": "192.0.2.9"})[1].lower()
    live.ok("nginx:set", "trusted-proxies", "192.0.2.1")
    assert "x-forwarded-for: 127.0.0.1" in live.get("/headers", **{"X-Forwarded-For": "192.0.2.9"})[1].lower(), "nobody else is believed"
    live.ok("nginx:set", "trusted-proxies")


def test_proxy_protocol_is_for_all_apps_or_none(live, admin):
    assert "all of them" in live.refused("nginx:set", "proxy-protocol", "true", code=2)
    live.ok("nginx:set", "trusted-proxies", "127.0.0.1")
    admin.ok("nginx:set", "--global", "proxy-protocol", "true")
    try:
        with socket.create_connection(("127.0.0.1", 80), 10) as stream:
            stream.sendall(f"PROXY TCP4 192.0.2.9 127.0.0.1 1234 80\r\nGET /headers HTTP/1.1\r\nHost: {live.host}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: stream.recv(65536), b"")).decode().lower()
        assert "200 ok" in answer and "x-forwarded-for: 192.0.2.9" in answer
    finally:
        admin.ok("nginx:set", "--global", "proxy-protocol")
        live.ok("nginx:set", "trusted-proxies")
    assert live.get() == (200, HELLO_TEXT)


def test_what_nginx_would_be_told_is_shown_before_it_is(live):
    assert live.ok("nginx:diff") == ""
    served = STATE / "nginx" / f"{live.name}.conf"
    served.write_text(served.read_text().replace("client_max_body_size 1m", "client_max_body_size 9m"))
    told = live.ok("nginx:diff")
    assert "-    client_max_body_size 9m;" in told and "+    client_max_body_size 1m;" in told
    live.ok("proxy:build-config")
    assert live.ok("nginx:diff").strip() == ""


def test_each_domain_is_looked_at(live, tmp_path):
    live.ok("domains:add", "nowhere.invalid")
    try:
        rows = {row["domain"]: row for row in json.loads(live.ok("certs:doctor", "--format", "json"))}
        assert rows["nowhere.invalid"]["addresses"] == "none" and rows["nowhere.invalid"]["leads here"].startswith("no")
        key, leaf, middle = Authority(tmp_path).issue(live.host)
        live.ok("nginx:import-ssl", stdin=key + leaf + middle)
        rows = {row["domain"]: row for row in json.loads(live.ok("certs:doctor", "--format", "json"))}
        assert rows[live.host]["certificate"].startswith("ends ") and rows["nowhere.invalid"]["certificate"] == "for other names"
        assert rows[live.host]["renewed"] == "by nobody" and live.host in live.ok("certs:doctor")
    finally:
        live.ok("domains:remove", "nowhere.invalid")
        live.ok("certs:remove")


GRPC_SERVER = '''
import concurrent.futures, grpc
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/test.Echo/Say":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"echo " + request)
        if details.method == "/test.Echo/Count":
            return grpc.unary_stream_rpc_method_handler(lambda request, context: (str(number).encode() for number in range(5)))
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Echo(),))
server.add_insecure_port("0.0.0.0:50051")
server.start()
server.wait_for_termination()
'''


def test_grpc_in_the_clear_and_by_tls(app, tmp_path):
    (app.work / "Procfile").unlink(missing_ok=True)
    app.deploy(server_py=GRPC_SERVER, Dockerfile=f"FROM {base_image()}\nRUN apt-get update && apt-get install -y --no-install-recommends python3-grpcio\nCOPY server_py /server.py\nEXPOSE 50051\nCMD [\"python3\", \"/server.py\"]\n")
    clear, secure = free_port(), free_port()
    assert "port 80 is for http" in app.refused("ports:set", "grpc:80:50051", code=2)
    app.ok("ports:set", f"grpc:{clear}:50051")
    options = (("grpc.default_authority", app.host),)

    def call(channel):
        with channel:
            say = channel.unary_unary("/test.Echo/Say")(b"hi", timeout=20)
            return say, list(channel.unary_stream("/test.Echo/Count")(b"", timeout=20))

    wanted = b"echo hi", [b"0", b"1", b"2", b"3", b"4"]
    wait_until(lambda: sh("curl", "-s", "--http2-prior-knowledge", f"http://127.0.0.1:{clear}/").returncode == 0)
    assert call(grpc.insecure_channel(f"127.0.0.1:{clear}", options=options)) == wanted
    assert "has no certificate" in app.refused("ports:add", f"grpcs:{secure}:50051")
    authority = Authority(tmp_path)
    app.ok("certs:add", stdin="".join(authority.issue(app.host)))
    app.ok("ports:add", f"grpcs:{secure}:50051")
    trusting = grpc.ssl_channel_credentials((tmp_path / "root.crt").read_bytes())
    assert call(grpc.secure_channel(f"127.0.0.1:{secure}", trusting, options=(*options, ("grpc.ssl_target_name_override", app.host)))) == wanted
