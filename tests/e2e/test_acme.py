"""Certificates of a real authority that speaks ACME: got, renewed, revoked, refused; the challenge goes through nginx."""

import base64
import contextlib
import http.server
import json
import os
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from conftest import HELLO_TEXT, STATE, sh, wait_until
from test_tls import https, openssl, shake

HOSTS = Path("/etc/hosts")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """pebble, and the name server that it asks, which answers 127.0.0.1 for every name; gives how to reach it and whom it signs for."""
    folder = tmp_path_factory.mktemp("pebble")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key", "-out", folder / "crt", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2")
    (folder / "config").write_text(json.dumps({"pebble": {
        "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000", "certificate": str(folder / "crt"), "privateKey": str(folder / "key"), "httpPort": 80, "tlsPort": 443}}))
    os.chmod(folder, 0o755)
    for parent in folder.parents[:2]:
        os.chmod(parent, 0o755)  # lego runs as dokku
    names = ["pebble-challtestsrv", "-defaultIPv6", "", "-defaultIPv4", "127.0.0.1", "-http01", "", "-https01", "", "-tlsalpn01", "", "-dns01", "127.0.0.1:8053", "-management", "127.0.0.1:8055"]
    running = [subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}) for words, log in (
        (names, (folder / "names.log").open("w")), (["pebble", "-config", str(folder / "config"), "-dnsserver", "127.0.0.1:8053"], (folder / "pebble.log").open("w")))]
    wait_until(lambda: sh("curl", "-sk", "https://127.0.0.1:14000/dir").returncode == 0 and sh("curl", "-sk", "https://127.0.0.1:15000/roots/0").returncode == 0)
    (folder / "root").write_text(sh("curl", "-sk", "https://127.0.0.1:15000/roots/0").stdout)
    yield folder
    for process in running:
        process.terminate()
        process.wait()


@pytest.fixture
def certified(authority, switch):
    """An app that an authority may certify: a name that leads here, and a mail address."""
    old = HOSTS.read_text()
    HOSTS.write_text(f"{old}127.0.0.1 {switch.host} two-{switch.host}\n")
    switch.deploy()
    switch.ok("letsencrypt:set", "email", "somebody@example.com")
    switch.ok("letsencrypt:set", "server", "https://localhost:14000/dir")

    def lego(command, *words):
        return sh("env", f"LEGO_CA_CERTIFICATES={authority / 'crt'}", "dokku", command, *words)
    switch.lego = lego
    yield switch
    HOSTS.write_text(old)


@pytest.fixture
def trusting(authority):
    return ssl.create_default_context(cafile=str(authority / "root"))


def serial(app, context):
    with shake(app.host, context) as stream:
        return stream.getpeercert()["serialNumber"]


@contextlib.contextmanager
def asked_all_along(ask):
    """Ask from four threads, one connection after the other; give the answers, among them what went wrong."""
    answers, over = [], threading.Event()

    def go_on():
        while not over.wait(0.01):
            try:
                answers.append(ask())
            except Exception as error:
                answers.append(repr(error))

    threads = [threading.Thread(target=go_on) for _ in range(4)]
    [thread.start() for thread in threads]
    try:
        yield answers
    finally:
        over.set()
        [thread.join() for thread in threads]


def test_a_certificate_is_got_renewed_and_revoked(certified, trusting):
    app = certified
    done = app.lego("letsencrypt:enable", app.name)
    assert done.returncode == 0 and f"{app.name} answers by https: {app.host}" in done.stdout, done.stdout + done.stderr
    assert https(app.host, trusting)[2] == HELLO_TEXT
    first = serial(app, trusting)
    again = app.lego("letsencrypt:enable", app.name)
    assert again.returncode == 0 and "needs no renewal" in again.stdout and serial(app, trusting) == first, "nothing changed: nobody is asked"
    with asked_all_along(lambda: https(app.host, trusting)[2]) as answers:
        forced = app.lego("letsencrypt:enable", app.name, "--force")
        assert forced.returncode == 0, forced.stderr
        second = serial(app, trusting)
        assert second != first
        app.ok("letsencrypt:set", "graceperiod", "999999999")
        renewed = app.lego("letsencrypt:auto-renew")
    assert set(answers) == {HELLO_TEXT} and len(answers) > 20, "nobody noticed"
    assert renewed.returncode == 0 and serial(app, trusting) not in (first, second), renewed.stderr
    app.ok("domains:add", f"two-{app.host}")
    assert app.lego("letsencrypt:enable", app.name).returncode == 0
    with shake(app.host, trusting) as stream:
        assert {name for _, name in stream.getpeercert()["subjectAltName"]} == {app.host, f"two-{app.host}"}, "another domain is another certificate"
    app.ok("config:set", "A=1")
    assert https(app.host, trusting)[2] == HELLO_TEXT
    assert app.name in app.person.ok("letsencrypt:list") and app.ok("letsencrypt:active") == "true\n"
    assert "letsencrypt:auto-renew" in sh("crontab", "-u", "dokku", "-l").stdout
    app.person.ok("letsencrypt:cron-job", "--remove")
    assert "letsencrypt:auto-renew" not in sh("crontab", "-u", "dokku", "-l").stdout
    app.person.ok("letsencrypt:cron-job", "--add")
    app.ok("letsencrypt:cleanup")
    done = app.lego("letsencrypt:revoke", app.name)
    assert done.returncode == 0, done.stderr
    assert app.get() == (200, HELLO_TEXT) and "has no certificate of an authority" in app.refused("letsencrypt:active")
    assert not (STATE / "acme" / "apps" / app.name).exists()


def test_what_leads_elsewhere_asks_no_authority_and_changes_nothing(certified, authority):
    app = certified
    app.ok("domains:set", "nowhere.invalid")
    before = (authority / "pebble.log").stat().st_size
    done = app.lego("letsencrypt:enable", app.name)
    assert done.returncode == 1 and "does not reach this server" in done.stderr, done.stderr
    assert (authority / "pebble.log").stat().st_size == before and not (STATE / "acme" / "apps" / app.name).exists()
    app.ok("domains:set", "*.example.com")
    assert "A wildcard is certified by DNS only" in app.refused("letsencrypt:enable")
    app.ok("domains:clear")
    app.ok("letsencrypt:set", "email")
    assert "No mail address is set" in app.refused("letsencrypt:enable")
    for command in ("letsencrypt:disable", "letsencrypt:revoke", "letsencrypt:cleanup"):
        assert "has no certificate of an authority" in app.refused(command)
    assert app.get() == (200, HELLO_TEXT)


def test_an_authority_that_refuses_or_is_away_changes_nothing(certified, trusting, new_app):
    app = certified
    app.ok("letsencrypt:set", "server", "https://localhost:1/dir")
    done = app.lego("letsencrypt:enable", app.name)
    assert done.returncode != 0 and "No certificate was issued" in done.stderr, done.stderr
    assert app.get() == (200, HELLO_TEXT) and not (STATE / "acme" / "apps" / app.name).exists()
    app.ok("letsencrypt:set", "server", "https://localhost:14000/dir")
    assert app.lego("letsencrypt:enable", app.name).returncode == 0
    number = serial(app, trusting)
    app.ok("letsencrypt:set", "server", "https://localhost:1/dir")
    assert app.lego("letsencrypt:enable", app.name, "--force").returncode != 0
    assert serial(app, trusting) == number, "the one it has goes on serving"
    app.ok("domains:set", app.host)
    other = new_app()
    app.ok("apps:rename", other.name)
    assert serial(app, trusting) == number and other.ok("letsencrypt:active") == "true\n", "it goes along with the app"
    other.ok("letsencrypt:disable")
    assert app.get() == (200, HELLO_TEXT)


class Provider(http.server.BaseHTTPRequestHandler):
    """A DNS provider, as lego's httpreq speaks to it: it tells the name server that pebble asks."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.headers["Authorization"] == "Basic " + base64.b64encode(b"me:word").decode()
        what = {"/present": ("set-txt", {"host": asked["fqdn"], "value": asked["value"]}), "/cleanup": ("clear-txt", {"host": asked["fqdn"]})}.get(self.path)
        done = known and what and sh("curl", "-sf", "-d", json.dumps(what[1]), f"http://127.0.0.1:8055/{what[0]}").returncode == 0
        self.send_response(200 if done else 403)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


def test_a_wildcard_is_certified_by_dns(certified, trusting, stranger):
    app = certified
    app.ok("domains:set", f"*.{app.name}.example.com", f"{app.name}.example.com")
    assert "by DNS only" in app.refused("letsencrypt:enable")
    provider = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    app.person.ok("deploy:allow", app.name, stdin=stranger.public)
    assert stranger.ssh("letsencrypt:set", app.name, "dns-provider-EXEC_PATH", "/bin/sh").returncode == 77
    for key, value in (("dns-provider", "httpreq"), ("dns-propagation", "skip"), ("dns-provider-HTTPREQ_ENDPOINT", f"http://127.0.0.1:{provider.server_port}"),
                       ("dns-provider-HTTPREQ_USERNAME", "me")):
        app.ok("letsencrypt:set", key, value)
    try:
        assert app.lego("letsencrypt:enable", app.name).returncode != 0 and app.get()[0] == 404, "the provider does not know us"
        app.ok("letsencrypt:set", "dns-provider-HTTPREQ_PASSWORD", "-", stdin="word\n")
        assert oct((app.folder / "properties" / "letsencrypt.dns").stat().st_mode & 0o777) == "0o600" and "word" not in app.ok("letsencrypt:report")
        done = app.lego("letsencrypt:enable", app.name)
        assert done.returncode == 0, done.stdout + done.stderr
        for name in (f"any.{app.name}.example.com", f"{app.name}.example.com"):
            assert https(name, trusting)[2] == HELLO_TEXT
        assert "needs no renewal" in app.lego("letsencrypt:enable", app.name).stdout
        app.ok("letsencrypt:disable")
    finally:
        provider.shutdown()


def test_a_name_that_leads_elsewhere_is_asked_for_when_that_is_forced(certified, trusting):
    """A router that does not lead back to itself: this server is not reached from here, the authority reaches it."""
    app = certified
    HOSTS.write_text(HOSTS.read_text().replace(f"127.0.0.1 {app.host}", f"127.0.0.1 x-{app.host}"))
    assert "does not reach this server" in app.lego("letsencrypt:enable", app.name).stderr
    done = app.lego("letsencrypt:enable", app.name, "--force")
    assert done.returncode == 0, done.stderr
    assert https(app.host, trusting)[2] == HELLO_TEXT
    app.ok("letsencrypt:disable")
