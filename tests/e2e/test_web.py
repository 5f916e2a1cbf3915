"""The way from a client to an app: port maps, the proxy, every nginx property, logs, custom and pushed configuration."""

import http.client
import json
import re
import socket

import dokku_py as product
import pytest
from conftest import DOMAIN, HELLO_TEXT, STATE, ask, docker, quoted, sh, wait_until

NOT_FOUND = (404, "No app answers to this name here.")


def nginx_dump(app):
    """What nginx itself says it reads of an app's configuration."""
    done = sh("nginx", "-T")
    assert done.returncode == 0, done.stderr
    found = re.search(rf"^# configuration file {STATE}/nginx/{app.name}\.conf:\n(.*?)(?=^# configuration file|\Z)", done.stdout, re.M | re.S)
    return found[1] if found else ""


@pytest.fixture
def port():
    """A port of this host that nothing uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def programs_port():
    """A port on which another program listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def by_port(app):
    """Serve an app by a port of its own; give the port."""
    app.ok("domains:disable")
    return int(app.ok("url").strip().rpartition(":")[2])


# --- properties ---

SEEN = {
    "access-log-format": ("combined", "access_log /var/log/nginx/{app}-access.log combined;"),
    "allowed-addresses": ("127.0.0.0/8 ::1", "allow ::1;"),
    "access-log-path": ("/var/log/nginx/other-access.log", "access_log /var/log/nginx/other-access.log;"),
    "bind-address-ipv4": ("127.0.0.1", "listen 127.0.0.1:80;"),
    "bind-address-ipv6": ("::1", "listen [::1]:80;"),
    "client-body-timeout": ("11s", "client_body_timeout 11s;"),
    "client-header-timeout": ("12s", "client_header_timeout 12s;"),
    "client-max-body-size": ("13m", "client_max_body_size 13m;"),
    "error-log-path": ("off", "error_log /dev/null crit;"),
    "gzip": ("off", "gzip off;"),
    "keepalive-timeout": ("14s", "keepalive_timeout 14s;"),
    "lingering-timeout": ("15s", "lingering_timeout 15s;"),
    "proxy-buffer-size": ("16k", "proxy_buffer_size 16k;"),
    "proxy-buffering": ("off", "proxy_buffering off;"),
    "proxy-buffers": ("16 8k", "proxy_buffers 16 8k;"),
    "proxy-busy-buffers-size": ("24k", "proxy_busy_buffers_size 24k;"),
    "proxy-connect-timeout": ("17s", "proxy_connect_timeout 17s;"),
    "proxy-keepalive": ("18", "keepalive 18;"),
    "proxy-read-timeout": ("19s", "proxy_read_timeout 19s;"),
    "proxy-send-timeout": ("20s", "proxy_send_timeout 20s;"),
    "proxy-request-buffering": ("off", "proxy_request_buffering off;"),
    "rate-limit": ("100r/s", "limit_req_status 429;"),
    "trusted-proxies": ("192.0.2.1", "set_real_ip_from 192.0.2.1;"),
    "send-timeout": ("21s", "send_timeout 21s;"),
    "underscore-in-headers": ("on", "underscores_in_headers on;"),
    "x-forwarded-for-value": ("$proxy_add_x_forwarded_for", "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"),
    "x-forwarded-port-value": ("8443", "proxy_set_header X-Forwarded-Port 8443;"),
    "x-forwarded-proto-value": ("$http_x_forwarded_proto", "proxy_set_header X-Forwarded-Proto $http_x_forwarded_proto;"),
    "x-forwarded-ssl": ("on", "proxy_set_header X-Forwarded-Ssl on;"),
}
ELSEWHERE = {"proxy-protocol", "rate-burst", "allow-template", "disable-custom-config", "nginx-conf-sigil-path"}  # below, and in test_routing.py
WITH_TLS = {"hsts", "hsts-include-subdomains", "hsts-max-age", "hsts-preload"}


def test_no_nginx_property_is_left_out():
    assert {key for noun, key in product.PROPERTIES if noun == "nginx"} == set(SEEN) | ELSEWHERE | WITH_TLS


@pytest.mark.parametrize("key", SEEN)
def test_an_nginx_property_takes_effect_at_once_and_is_taken_back(live, key):
    value, directive = SEEN[key][0], SEEN[key][1].format(app=live.name)
    assert directive not in nginx_dump(live)
    live.ok("nginx:set", key, *quoted(value))
    try:
        assert directive in nginx_dump(live)
        assert live.get() == (200, HELLO_TEXT)
        assert live.ok("nginx:report", f"--nginx-computed-{key}") == f"{value}\n"
    finally:
        live.ok("nginx:set", key)
    assert directive not in nginx_dump(live)
    assert live.get() == (200, HELLO_TEXT)


@pytest.mark.parametrize("key", sorted(WITH_TLS))
def test_what_acts_with_tls_is_kept_and_reported(live, key):
    value = "1" if key == "hsts-max-age" else "false"
    live.ok("nginx:set", key, value)
    assert live.ok("nginx:report", f"--nginx-{key}") == f"{value}\n"
    live.ok("nginx:set", key)


def test_the_apps_value_wins_over_the_servers_and_that_over_the_default(live):
    assert "send_timeout 60s;" in nginx_dump(live)
    try:
        live.person.ok("nginx:set", "--global", "send-timeout", "41s")
        assert "send_timeout 41s;" in nginx_dump(live)
        live.ok("nginx:set", "send-timeout", "42s")
        assert "send_timeout 42s;" in nginx_dump(live)
        rows = json.loads(live.ok("nginx:report", "--format", "json"))
        assert (rows["send-timeout"], rows["computed-send-timeout"], rows["global-send-timeout"]) == ("42s", "42s", "41s")
        live.ok("nginx:set", "send-timeout")
        assert "send_timeout 41s;" in nginx_dump(live)
    finally:
        live.ok("nginx:set", "send-timeout")
        live.person.ok("nginx:set", "--global", "send-timeout")
    assert "send_timeout 60s;" in nginx_dump(live)


@pytest.mark.parametrize("scope", ["app", "global"])
def test_a_value_that_nginx_refuses_is_put_back(live, scope):
    """busy buffers must hold the buffer of the header: only nginx knows that."""
    before = nginx_dump(live)
    subject = live.name if scope == "app" else "--global"
    said = live.person.refused("nginx:set", subject, "proxy-busy-buffers-size", "1k")
    assert '"proxy_busy_buffers_size" must be equal to or greater' in said
    assert live.ok("nginx:report", "--nginx-computed-proxy-busy-buffers-size") == "16k\n"
    assert nginx_dump(live) == before and live.get() == (200, HELLO_TEXT)


@pytest.mark.parametrize("key, value", [("proxy-read-timeout", "1s; include /etc/passwd"), ("bind-address-ipv4", "everywhere"), ("x-forwarded-ssl", "a b"),
                                        ("access-log-path", "/etc/cron.d/x"), ("access-log-path", "/var/log/nginx/../../etc/x"), ("proxy-buffers", "8"),
                                        ("access-log-format", "a;b"), ("underscore-in-headers", "maybe"), ("x-forwarded-for-value", "$a}")])
def test_a_bad_value_is_refused_in_a_line(live, key, value):
    before = nginx_dump(live)
    assert "nginx:set" not in live.refused("nginx:set", key, *quoted(value), code=2)
    assert nginx_dump(live) == before


def test_the_body_limit_is_seen_by_clients(live):
    body = "x" * 2_000_000
    connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=60)

    def post():
        connection.request("POST", "/", body=body, headers={"Host": live.host})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    assert post() == 413
    live.ok("nginx:set", "client-max-body-size", "3m")
    assert post() == 200
    live.ok("nginx:set", "client-max-body-size")


def headers_seen(app, *pairs):
    """Send headers and give those that the app received, names as they came, as lines."""
    request = "".join(f"{name}: {value}\r\n" for name, value in pairs)
    with socket.create_connection(("127.0.0.1", 80), 60) as client:
        client.sendall(f"GET /headers HTTP/1.1\r\nHost: {app.host}\r\n{request}Connection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 200"), answer
    return answer.partition("\r\n\r\n")[2].splitlines()


FORGED = [(f"X{first}Forwarded{second}{name}", "6.6.6.6") for name in ("For", "Proto", "Port", "Ssl", "Host", "Server", "Prefix", "Scheme", "Protocol", "User")
          for first in "-_" for second in "-_"] + [("Forwarded", "for=6.6.6.6"), ("X-Real-IP", "6.6.6.6"), ("X_Real_IP", "6.6.6.6"), ("Proxy", "6.6.6.6")]


def test_what_clients_send_as_forwarded_never_reaches_the_app(live):
    plain = headers_seen(live, *FORGED, ("X-Own", "kept"))
    assert "6.6.6.6" not in "\n".join(plain)
    for line in ("X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Port: 80", "X-Real-IP: 127.0.0.1", f"Host: {live.host}", "X-Own: kept"):
        assert line in plain, plain
    try:
        live.ok("nginx:set", "underscore-in-headers", "on")
        with_underscores = headers_seen(live, *FORGED, ("X_Own", "kept"))
        assert "6.6.6.6" not in "\n".join(with_underscores) and "X_Own: kept" in with_underscores
        live.ok("nginx:set", "x-forwarded-for-value", quoted("$proxy_add_x_forwarded_for")[0])
        live.ok("nginx:set", "x-forwarded-ssl", quoted("$http_x_forwarded_ssl")[0])
        trusting = headers_seen(live, ("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-Ssl", "on"))
        assert "X-Forwarded-For: 6.6.6.6, 127.0.0.1" in trusting and "X-Forwarded-Ssl: on" in trusting
    finally:
        for key in ("underscore-in-headers", "x-forwarded-for-value", "x-forwarded-ssl"):
            live.ok("nginx:set", key)
    assert "X_Own: kept" not in headers_seen(live, ("X_Own", "kept"))


@pytest.mark.parametrize("kind, count, packed", [("application/json", 20000, True), ("text/css", 20000, True), ("application/json", 100, False), ("image/png", 20000, False)])
def test_text_is_compressed_for_those_who_take_it(live, kind, count, packed):
    for accepted in (True, False):
        connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=60)
        connection.request("GET", f"/as/{kind}/{count}", headers={"Host": live.host, **({"Accept-Encoding": "gzip"} if accepted else {})})
        answer = connection.getresponse()
        assert (answer.getheader("Content-Encoding") == "gzip", len(answer.read()) < count) == (packed and accepted, packed and accepted)
        assert not packed or answer.getheader("Vary") == "Accept-Encoding"
        connection.close()


def test_a_connection_is_upgraded_with_and_without_kept_connections(live):
    def echo():
        with socket.create_connection(("127.0.0.1", 80), 60) as client:
            client.sendall(f"GET /socket HTTP/1.1\r\nHost: {live.host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                           "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
            stream = client.makefile("rb")
            assert stream.readline().startswith(b"HTTP/1.1 101")
            assert b"Upgrade: websocket\r\n" in list(iter(stream.readline, b"\r\n"))
            client.sendall(b"\x81\x85\0\0\0\0hello")  # RFC 6455: a text frame of five bytes, masked with zeros
            length = stream.read(2)[1]
            assert stream.read(length).endswith(b" hello")

    echo()
    assert "Connection: close" in headers_seen(live)
    live.ok("nginx:set", "proxy-keepalive", "4")
    echo()
    assert not [line for line in headers_seen(live) if line.startswith("Connection:")]
    live.ok("nginx:set", "proxy-keepalive")


def test_an_address_of_its_own(live, switch, port):
    """On an address that an app binds, a name that has no app there gets the page of ours, not the app."""
    switch.deploy()
    try:
        switch.ok("nginx:set", "bind-address-ipv4", "127.0.0.1")
        assert switch.get() == (200, HELLO_TEXT)
        assert ask("nobody.example.com") == NOT_FOUND and ask(live.host) == NOT_FOUND
        switch.ok("nginx:set", "bind-address-ipv4")
        assert live.get() == (200, HELLO_TEXT)
        own = by_port(switch)
        switch.ok("nginx:set", "bind-address-ipv4", "127.0.0.1")  # nginx can't open this one while it holds all
        assert ask("any", port=own) == (200, HELLO_TEXT)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", own), 5)
        switch.ok("nginx:set", "bind-address-ipv4")
        socket.create_connection(("127.0.0.2", own), 5).close()
    finally:
        switch.ok("nginx:set", "bind-address-ipv4")
    assert live.get() == (200, HELLO_TEXT)


def test_a_static_listener_stands_in_for_the_processes(bare, live):
    address = docker("inspect", "-f", "{{.NetworkSettings.Networks.dokku.IPAddress}}", f"{live.name}.web.1")
    assert bare.get()[0] == 502
    bare.ok("network:set", "static-web-listener", f"{address}:8080")
    assert bare.get() == (200, HELLO_TEXT)
    assert "is not an IP address" in bare.refused("network:set", "static-web-listener", "localhost:80", code=2)
    bare.ok("network:set", "static-web-listener")
    assert bare.get()[0] == 502


# --- ports ---


def test_an_app_without_maps(live):
    assert "No port mappings configured for app" in live.refused("ports:list")
    assert live.ok("ports:report", "--ports-map-detected") == "http:80:8080\n"
    assert json.loads(live.ok("ports:report", "--format", "json")) == {"map": "", "map-detected": "http:80:8080"}


def test_port_maps_are_added_set_removed_and_cleared(live, port):
    done = live.person.ssh("ports:add", live.name, f"http:{port}:8080")
    try:
        assert done.returncode == 0 and done.stderr == f" !     {live.name} is no longer served on 80\n" and live.get() == NOT_FOUND
        live.ok("ports:set", "http:80:8080", f"http:{port}:8080")
        assert live.ok("ports:list") == (f"-----> Port mappings for {live.name}\n    scheme  host port  container port\n    http    80         8080\n"
                                         f"    http    {port:<5}      8080\n")
        assert live.person.ok("--quiet", "ports:list", live.name).split()[0] == "http"
        assert live.ok("ports:report", "--ports-map") == f"http:80:8080 http:{port}:8080\n"
        assert live.get() == (200, HELLO_TEXT) and ask(live.host, port=port) == (200, HELLO_TEXT)
        assert live.ok("urls").split() == [f"http://{live.host}", f"http://{live.host}:{port}"]
        assert ask("nobody.example.com", port=port) == NOT_FOUND
        live.ok("ports:add", f"http:{port}:8081")
        assert ask(live.host, port=port)[0] == 502, "nothing listens on 8081 in the container"
        live.ok("ports:remove", "80")
        assert live.get() == NOT_FOUND
        live.ok("ports:set", "http:80:8080")
        assert live.get() == (200, HELLO_TEXT)
        with pytest.raises(OSError):
            ask(live.host, port=port)
        assert f"has no port map '{port}'" in live.refused("ports:remove", str(port))
        live.ok("ports:remove", "http:80:8080")
        assert live.get() == (200, HELLO_TEXT), "the detected map serves"
    finally:
        live.ok("ports:clear")
    assert live.get() == (200, HELLO_TEXT)


@pytest.mark.parametrize("words, code, said", [
    ("80", 2, "is not SCHEME:HOST-PORT:CONTAINER-PORT"), ("http:80", 2, "is not SCHEME"), ("ftp:21:21", 2, "is not SCHEME"), ("http:0:80", 2, "is not a port"),
    ("http:80:70000", 2, "is not a port"), ("http:443:80", 2, "443 for https"), ("https:443:8080", 1, "has no certificate"), ("grpcs:50051:50051", 1, "has no certificate"), ("grpc:80:50051", 2, "port 80 is for http"),
    ("http:22:8080", 1, "22 is used by a program of the user root"), ("'http:80:80;'", 2, "is not a port"), ("-1", 2, "")])
def test_maps_that_can_not_be(live, words, code, said):
    assert said in live.refused("ports:add", words, code=code)
    assert live.ok("ports:report", "--ports-map") == "\n" and live.get() == (200, HELLO_TEXT)


def test_apps_share_a_port_by_their_names_and_no_other_way(live, switch, bare, port, programs_port):
    live.ok("ports:set", "http:80:8080", f"http:{port}:8080")
    try:
        switch.deploy(Dockerfile=(switch.work / "Dockerfile").read_text() + "ENV GREETING=other\n")
        switch.ok("ports:set", f"http:{port}:8080", "http:80:8080")
        assert ask(live.host, port=port) == (200, HELLO_TEXT) and ask(switch.host, port=port) == (200, "other")
        assert f"{port} is used by " in switch.refused("domains:disable")
        assert ask(switch.host, port=port) == (200, "other"), "refused, it stays as it was"
        switch.ok("ports:clear")
        own = by_port(switch)
        assert f"{own} is used by {switch.name}" in bare.refused("ports:add", f"http:{own}:5000")
        assert f"{programs_port} is used by a program of the user root" in bare.refused("ports:add", f"http:{programs_port}:5000")
        assert f"{programs_port} is used by" in bare.refused("proxy:set", "proxy-port", str(programs_port))
        assert f"{port} is used by {live.name}" in switch.refused("ports:set", f"http:{port}:8080")
        assert ask("any", port=own) == (200, "other")
    finally:
        live.ok("ports:clear")


def test_a_clone_never_takes_a_port_that_it_can_not_share(switch, new_app, port):
    switch.deploy()
    switch.ok("domains:disable")
    switch.ok("ports:set", f"http:{port}:8080")
    clone = new_app()
    switch.ok("apps:clone", clone.name)
    own = int(clone.ok("url").strip().rpartition(":")[2])
    assert own != port and ask("any", port=own) == (200, HELLO_TEXT) and ask("any", port=port) == (200, HELLO_TEXT)
    assert switch.ok("ports:report", "--ports-map") == f"http:{port}:8080\n" and clone.ok("ports:report", "--ports-map") == "\n"


def test_the_proxy_port_is_that_of_the_detected_map(live, port):
    live.ok("proxy:set", "proxy-port", str(port))
    try:
        assert ask(live.host, port=port) == (200, HELLO_TEXT) and live.get() == NOT_FOUND
        assert live.ok("ports:report", "--ports-map-detected") == f"http:{port}:8080\n"
        assert live.ok("proxy:report", "--proxy-computed-proxy-port") == f"{port}\n"
        assert "is reserved for administrators" in live.refused("proxy:set", "proxy-port", "81", code=2)
    finally:
        live.ok("proxy:set", "proxy-port")
    assert live.get() == (200, HELLO_TEXT)


def test_a_map_of_port_80_is_served_by_a_port_of_its_own_where_there_is_no_name(switch):
    switch.deploy()
    switch.ok("ports:set", "http:80:8080")
    own = by_port(switch)
    assert own != 80 and ask("any", port=own) == (200, HELLO_TEXT) and switch.get() == NOT_FOUND
    switch.ok("domains:enable")
    assert switch.get() == (200, HELLO_TEXT)


# --- without nginx ---


def bindings(app):
    return app.inspect()["HostConfig"]["PortBindings"] or {}


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by port"])
def test_an_app_without_nginx_is_published_by_docker(switch, port, named):
    switch.deploy(Procfile="web: exec perl /server.pl\n")
    own = 0 if named else by_port(switch)
    done = switch.person.ssh("proxy:disable", switch.name)
    assert done.returncode == 0 and "which leaves a gap" in done.stderr
    own = own or int(switch.ok("url").strip().rpartition(":")[2])
    assert switch.ok("url") == f"http://127.0.0.1:{own}\n" and switch.ok("proxy:report", "--proxy-enabled") == "false\n"
    assert ask("any", port=own) == (200, HELLO_TEXT) and switch.get() == NOT_FOUND and not nginx_dump(switch)
    assert bindings(switch) == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(own)}]}
    wait_until(lambda: switch.person.ssh("doctor", switch.name).returncode == 0)

    said = switch.deploy(Dockerfile=(switch.work / "Dockerfile").read_text() + "ENV GREETING=second\n")
    assert "Stopping the old web.1 first: two can't run at once" in said and ask("any", port=own) == (200, "second")
    switch.settle()
    switch.rejected(Procfile="web: exit 3\n")
    wait_until(lambda: switch.containers() == [f"{switch.name}.web.1"])
    wait_until(lambda: ask_or_nothing(own) == (200, "second"))
    switch.git("revert", "--no-edit", "HEAD")

    switch.ok("ps:scale", "web=2")
    switch.ok("ps:scale", "web=1")
    switch.ok("ps:stop")
    assert ask_or_nothing(own) is None
    switch.ok("ps:start")
    assert ask("any", port=own) == (200, "second")

    switch.ok("ports:set", f"http:{port}:8080")
    assert ask("any", port=port) == (200, "second") and ask_or_nothing(own) is None
    switch.ok("network:set", "bind-all-interfaces", "true")
    assert bindings(switch) == {"8080/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(port)}]} and ask("any", port=port) == (200, "second")
    switch.ok("ports:clear")

    switch.ok("proxy:enable")
    assert bindings(switch) == {} and switch.ok("proxy:report", "--proxy-enabled") == "true\n"
    assert (switch.get() if named else ask("any", port=own)) == (200, "second")
    switch.settle()
    wait_until(lambda: switch.person.ssh("doctor", switch.name).returncode == 0)


def ask_or_nothing(port):
    try:
        return ask("any", port=port)
    except (OSError, http.client.HTTPException):
        return None


def test_a_killed_change_of_the_proxy_is_found_and_mended(switch):
    """What is on record is all that a kill leaves: the fact, and nothing done about it yet."""
    switch.deploy(Procfile="web: exec perl /server.pl\n")
    switch.settle()
    own = by_port(switch)
    for name, change in (("without", (switch.folder / "NO_PROXY").touch), ("with", (switch.folder / "NO_PROXY").unlink)):
        change()
        said = switch.person.ssh("doctor", switch.name).stdout
        assert "nginx does not serve what is on record" in said and "Docker does not publish the ports on record" in said
        switch.person.ssh("doctor", switch.name, "--fix")
        wait_until(lambda: switch.person.ssh("doctor", switch.name).returncode == 0)
        assert ask("any", port=own) == (200, HELLO_TEXT) and bool(bindings(switch)) is (name == "without")
        switch.settle()


def test_a_stopped_app_changes_its_proxy_and_starts_that_way(switch):
    switch.deploy()
    switch.ok("ps:stop")
    switch.ok("proxy:disable")
    assert switch.containers() == []
    switch.ok("ps:start")
    own = int(switch.ok("url").strip().rpartition(":")[2])
    assert ask("any", port=own) == (200, HELLO_TEXT)
    switch.ok("ps:stop")
    switch.ok("proxy:enable")
    switch.ok("ps:start")
    assert switch.get() == (200, HELLO_TEXT) and ask_or_nothing(own) is None


def test_without_a_process_that_comes_up_the_proxy_stays(switch):
    switch.deploy(Procfile="web: exec perl /server.pl\n")
    record = switch.folder / "releases" / "v1" / "ENV"
    record.write_text(record.read_text() + 'EXIT_AT_START="9"\n')
    assert "exit code 9" in switch.refused("proxy:disable")
    assert switch.ok("proxy:report", "--proxy-enabled") == "true\n"
    switch.assert_untouched()


def test_a_port_that_an_option_of_docker_publishes_goes_from_release_to_release(switch, port):
    switch.person.ok("apps:create", switch.name)
    switch.ok("docker-options:add", "deploy", f"--publish=127.0.0.1:{port}:8080")
    switch.deploy()
    assert ask("any", port=port) == (200, HELLO_TEXT)
    switch.deploy(Dockerfile=(switch.work / "Dockerfile").read_text() + "ENV GREETING=second\n")
    assert ask("any", port=port) == (200, "second") and switch.get() == (200, "second")


def test_the_configuration_is_cleared_and_built_again(live):
    live.ok("proxy:clear-config")
    assert live.get() == NOT_FOUND and not nginx_dump(live)
    assert "nginx does not serve what is on record" in live.person.ssh("doctor", live.name).stdout
    live.ok("proxy:build-config")
    assert live.get() == (200, HELLO_TEXT)
    assert "Name one app, or give --all" in live.person.refused("proxy:build-config", code=2)


# --- logs, and nginx itself ---


def test_the_logs_of_an_app(live):
    live.get("/print/seen-in-the-access-log")
    assert "/print/seen-in-the-access-log" in live.ok("nginx:access-logs")
    follower = live.person.start("nginx:access-logs", live.name, "-t")
    follower.when("seen-in-the-access-log")
    live.get("/print/while-following")
    follower.when("while-following")
    follower.signal(2)
    live.ok("nginx:set", "proxy-read-timeout", "1s")
    assert live.get("/slow/3")[0] == 504
    live.ok("nginx:set", "proxy-read-timeout")
    assert "upstream timed out" in live.ok("nginx:error-logs")
    live.ok("nginx:set", "access-log-path", "off")
    live.get("/print/unlogged")
    assert f"nginx keeps no access log of {live.name}" in live.refused("nginx:access-logs")
    live.ok("nginx:set", "access-log-path")
    assert "unlogged" not in live.ok("nginx:access-logs")


def test_a_follower_of_logs_that_goes_away_leaves_nothing_running(live):
    follower = live.person.start("nginx:error-logs", live.name, "-t")
    tail = f"tail -n 100 -F /var/log/nginx/{live.name}-error.log"
    wait_until(lambda: sh("pgrep", "-fx", tail).returncode == 0)
    follower.signal(9)
    wait_until(lambda: sh("pgrep", "-fx", tail).returncode == 1)


def test_nginx_is_stopped_started_and_reloaded(live):
    try:
        live.person.ok("nginx:stop")
        with pytest.raises(OSError):
            live.get()
    finally:
        live.person.ok("nginx:start")
    assert live.get() == (200, HELLO_TEXT)
    live.person.ok("nginx:reload")
    assert live.get() == (200, HELLO_TEXT)


def test_what_nginx_refuses_is_named_and_cleaned_away(live, bare):
    live.person.ok("nginx:validate-config")
    vhost, quarantined = STATE / "nginx" / f"{bare.name}.conf", STATE / "nginx" / "quarantined" / f"{bare.name}.conf"
    vhost.write_text("server { listen nonsense; }\n")
    assert f"nginx refuses the configuration of {bare.name}.conf" in live.person.refused("nginx:validate-config")
    live.ok("nginx:validate-config")
    assert vhost.exists()
    done = live.person.ssh("nginx:validate-config", "--clean")
    assert done.returncode == 0 and f"nginx refuses the configuration of {bare.name}.conf" in done.stderr
    assert not vhost.exists() and quarantined.exists() and live.get() == (200, HELLO_TEXT)
    bare.ok("proxy:build-config")
    assert bare.get()[0] == 502
    quarantined.unlink()


# --- custom configuration ---


def put_custom(app, text):
    """Put a file beside an app's vhost, as an administrator does by hand."""
    folder = app.folder / "nginx.conf.d"
    folder.mkdir(exist_ok=True)
    (folder / "own.conf").write_text(text)


def test_a_file_of_the_administrator_is_part_of_the_vhost(switch):
    switch.deploy()
    put_custom(switch, "gzip on;\nlocation /own { return 200 'by hand'; }\n")
    switch.ok("proxy:build-config")
    assert switch.get("/own") == (200, "by hand") and switch.get() == (200, HELLO_TEXT)
    switch.ok("nginx:set", "disable-custom-config", "true")
    assert switch.get("/own") == (200, HELLO_TEXT)
    switch.ok("nginx:set", "disable-custom-config")
    assert switch.get("/own") == (200, "by hand")
    switch.person.ok("--force", "apps:destroy", switch.name)
    assert not list((STATE / "apps").glob(f".{switch.name}.*")), "the files of root go too"


def test_a_bad_file_of_one_app_keeps_no_other_from_being_changed(switch, live):
    switch.deploy()
    put_custom(switch, "nonsense;\n")
    assert 'unknown directive "nonsense"' in switch.refused("proxy:build-config")
    assert switch.get() == (200, HELLO_TEXT), "what nginx has read still serves"
    done = live.person.ssh("nginx:set", live.name, "send-timeout", "43s")
    assert done.returncode == 0 and f"nginx refuses the configuration of {switch.name}.conf" in done.stderr
    assert "send_timeout 43s;" in nginx_dump(live) and live.get() == (200, HELLO_TEXT)
    live.ok("nginx:set", "send-timeout")
    assert "is in quarantine" in switch.person.ssh("doctor", switch.name).stdout
    put_custom(switch, "")
    assert switch.ok("doctor", "--fix").endswith("All is as it should be.\n")
    assert switch.get() == (200, HELLO_TEXT)


TEMPLATE = """{% for port, servers in upstreams.items() if servers %}
upstream {{ app }}-web-{{ port }} { {% for server in servers %}server {{ server }};{% endfor %} }
{% endfor %}
{% for listener in listeners %}
server {
    listen {{ listener.host }};
    server_name {{ domains | join(" ") }};
    access_log {{ access_log }};
    error_log {{ error_log }};
    client_max_body_size {{ settings["client-max-body-size"] }};
    add_header X-Template MARK;
    location / { proxy_pass http://{{ app }}-web-{{ listener.container }}; proxy_set_header Host $http_host; }
}
{% endfor %}
"""


def header(app, name):
    connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=60)
    connection.request("GET", "/", headers={"Host": app.host})
    answer = connection.getresponse()
    return answer.status, answer.getheader(name)


def test_a_vhost_template_of_the_tree(switch):
    switch.deploy(**{"nginx.conf.j2": TEMPLATE.replace("MARK", "first")})
    assert header(switch, "X-Template") == (200, None), "not without an administrator's word"
    switch.ok("nginx:set", "allow-template", "true")
    assert header(switch, "X-Template") == (200, "first")
    switch.ok("nginx:set", "client-max-body-size", "9m")
    assert "client_max_body_size 9m;" in nginx_dump(switch) and header(switch, "X-Template") == (200, "first")
    (switch.work / "web").mkdir()
    switch.ok("nginx:set", "nginx-conf-sigil-path", "web/vhost.j2")
    switch.deploy(**{"web/vhost.j2": TEMPLATE.replace("MARK", "second")})
    assert header(switch, "X-Template") == (200, "second")
    switch.ok("rollback")
    assert header(switch, "X-Template") == (200, "first")
    switch.ok("config:set", "A=1")
    assert header(switch, "X-Template") == (200, "first")
    switch.ok("nginx:set", "allow-template")
    assert header(switch, "X-Template") == (200, None) and switch.get() == (200, HELLO_TEXT)


@pytest.mark.parametrize("text, said", [
    ("server { listen 80; include /etc/passwd; }", "may not use include"),
    ('server {\n"include" /etc/passwd; }', "may not use include"),
    ("server { listen 80; access_log /etc/cron.d/x; }", "may not use access_log"),
    ("server { listen 80; location / { content_by_lua_block { x } } }", "may not use content_by_lua_block"),
    ("load_module modules/x.so;", "may not use load_module"),
    ("server { listen nonsense; }", "nginx refuses the configuration"),
    ("server { listen 80; {{ nothing_like_it }} }", "can't be rendered: 'nothing_like_it' is undefined"),
    ("{% for %}", "can't be rendered"),
    ("{{ ''.__class__.__mro__ }}", "can't be rendered"),
    ("{% include '/etc/passwd' %}", "can't be rendered"),
])
def test_a_template_that_asks_too_much_rejects_the_push(template_app, text, said):
    assert said in template_app.rejected(**{"nginx.conf.j2": text})
    template_app.assert_untouched()


@pytest.fixture(scope="module")
def template_app(live):
    """The app of this file, while its tree may bring a template."""
    live.ok("nginx:set", "allow-template", "true")
    yield _Untouched(live)
    live.ok("nginx:set", "allow-template")
    live.deploy(**{"nginx.conf.j2": None})
    live.settle("web.1", "worker.1")


class _Untouched:
    """The shared app, whose two processes must both be left alone."""

    def __init__(self, app):
        self.rejected = app.rejected
        self.assert_untouched = lambda: app.assert_untouched(dynos=("web.1", "worker.1"))


def test_a_template_is_not_read_through_a_link(switch):
    switch.deploy()
    (switch.work / "out").symlink_to("/etc")
    switch.ok("nginx:set", "allow-template", "true")
    switch.ok("nginx:set", "nginx-conf-sigil-path", "out/hostname")
    assert "Switching to the new processes" in switch.deploy()
    assert switch.get() == (200, HELLO_TEXT) and "proxy_busy_buffers_size" in nginx_dump(switch)


# --- who may ---


@pytest.mark.parametrize("words", ["ports:set {app} http:80:5000", "proxy:disable {app}", "proxy:clear-config --all", "nginx:stop", "nginx:reload", "nginx:set {app} hsts false",
                                   "nginx:access-logs {app}", "nginx:validate-config --clean", "network:set {app} bind-all-interfaces true"])
def test_a_deploy_key_may_push_and_change_nothing_of_this(deployer, live, words):
    assert "Your key may not do this" in deployer.refused(*words.format(app=live.name).split(), code=77)
    assert live.get() == (200, HELLO_TEXT)


def test_an_unknown_name_is_answered_by_no_app(live):
    assert ask(f"nobody.{DOMAIN}") == NOT_FOUND
