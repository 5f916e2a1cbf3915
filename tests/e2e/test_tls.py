"""Certificates: an app answers by https with its own or the server's, http leads there, and what can't work is refused with its reason."""

import io
import re
import socket
import ssl
import subprocess
import tarfile

import pytest
from conftest import DOMAIN, HELLO_TEXT, STATE, ask, sh


def openssl(*words, stdin=""):
    done = subprocess.run(["openssl", *map(str, words)], input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Authority:
    """A root, an intermediate below it, and the certificates that this one signs."""

    def __init__(self, folder):
        self.folder = folder
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "root.key", "-out", folder / "root.crt", "-subj", "/CN=Test root", "-days", "2")
        self.sign("middle", "root", "/CN=Test intermediate", "basicConstraints=critical,CA:TRUE\n")

    def sign(self, name, by, subject, extensions, *options):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", self.folder / f"{name}.key", "-out", self.folder / f"{name}.csr", "-subj", subject)
        (self.folder / "extensions").write_text(extensions)
        openssl("x509", "-req", "-in", self.folder / f"{name}.csr", "-CA", self.folder / f"{by}.crt", "-CAkey", self.folder / f"{by}.key", "-CAcreateserial",
                "-out", self.folder / f"{name}.crt", "-extfile", self.folder / "extensions", *(options or ("-days", "2")))

    def issue(self, *domains, options=()):
        """Give a key, a certificate of the intermediate, and that one's own."""
        names = ",".join(f"DNS:{domain}" for domain in domains)
        self.sign("leaf", "middle", "/CN=leaf", f"subjectAltName={names}\nbasicConstraints=CA:FALSE\n", *options)
        return tuple((self.folder / name).read_text() for name in ("leaf.key", "leaf.crt", "middle.crt"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def trusting(authority):
    return ssl.create_default_context(cafile=str(authority.folder / "root.crt"))


@pytest.fixture
def port():
    """A port of this host that nothing uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def shake(name, context, port=443):
    """Shake hands under a name; give the socket."""
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname=name)


def https(name, context, path="/", port=443):
    """Ask by https; give the status, the header and the body."""
    with shake(name, context, port) as stream:
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: stream.recv(65536), b"")).partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        body = body.partition(b"\r\n")[2].rpartition(b"\r\n0\r\n")[0]
    return int(head.split()[1]), head.decode(), body.decode().strip()


def tar(**files):
    """Pack files as `tar cf -` does; give what goes to standard input."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as bundle:
        for name, text in files.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(text)
            bundle.addfile(member, io.BytesIO(text.encode()))
    return raw.getvalue().decode("latin-1")


def refused_in_peace(app, text, command="certs:add"):
    """Give a certificate that must be refused; what serves stays as it was."""
    before = app.get()
    done = app.person.ssh(command, app.name, stdin=text)
    assert done.returncode != 0 and app.get() == before, done.stdout
    return done.stderr


def test_a_certificate_serves_https_and_http_leads_there(live, authority, trusting):
    key, leaf, middle = authority.issue(live.host)
    said = live.ok("certs:add", stdin=tar(server_key=key, server_crt=leaf + middle))
    try:
        assert "Certificate installed" in said
        status, head, body = https(live.host, trusting)
        assert (status, body) == (200, HELLO_TEXT)
        assert "Strict-Transport-Security: max-age=15724800; includeSubDomains" in head
        assert ask(live.host, "/some/path?x=1")[0] == 301
        located = sh("curl", "-sI", "-H", f"Host: {live.host}", "http://127.0.0.1/some/path?x=1").stdout
        assert f"Location: https://{live.host}/some/path?x=1" in located
        assert sh("curl", "-s", "--http2", "--cacert", authority.folder / "root.crt", "--resolve", f"{live.host}:443:127.0.0.1", "-o", "/dev/null", "-w", "%{http_version}",
                  f"https://{live.host}/").stdout == "2"
        assert live.ok("url").strip() == f"https://{live.host}" and live.ok("urls").split() == [f"https://{live.host}", f"http://{live.host}"]
        assert live.ok("ports:report", "--ports-map-detected") == "http:80:8080 https:443:8080\n"
        report = live.ok("certs:report")
        assert live.host in report and "Ssl enabled:                   true" in report and "by its issuer" in report
        assert live.ok("certs:show", "key").strip() == key.strip() and live.ok("certs:show", "crt").strip() == (leaf + middle).strip()
        assert live.ok("ssl:public").strip() == (leaf + middle).strip()
        assert oct((STATE / "apps" / live.name / "CERTIFICATE").stat().st_mode & 0o777) == "0o600"
        live.ok("nginx:set", "hsts", "false")
        assert "Strict-Transport" not in https(live.host, trusting)[1]
        live.ok("nginx:set", "hsts")
        said = {"hsts-max-age": "60", "hsts-include-subdomains": "false", "hsts-preload": "true"}
        for key, value in said.items():
            live.ok("nginx:set", key, value)
        assert https(live.host, trusting)[1].endswith("Strict-Transport-Security: max-age=60; preload")
        for key in said:
            live.ok("nginx:set", key)
        live.ok("proxy:set", "proxy-ssl-port", "8443")
        assert https(live.host, trusting, port=8443)[2] == HELLO_TEXT
        assert f"Location: https://{live.host}:8443/" in sh("curl", "-sI", "-H", f"Host: {live.host}", "http://127.0.0.1/").stdout
        live.ok("proxy:set", "proxy-ssl-port")
    finally:
        live.ok("certs:remove")
    assert live.get() == (200, HELLO_TEXT) and live.ok("url").strip() == f"http://{live.host}"
    with pytest.raises((ssl.SSLError, OSError)):
        shake(live.host, trusting)
    assert "has no certificate" in live.refused("certs:show", "crt") and "has no certificate" in live.refused("certs:update", stdin=tar(a_key=key, a_crt=leaf))


def test_what_tls_offers(live, authority, trusting):
    key, leaf, middle = authority.issue(live.host)
    live.ok("certs:add", stdin=key + leaf + middle)
    try:
        for option, offered in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
            done = subprocess.run(["openssl", "s_client", "-connect", "127.0.0.1:443", "-servername", live.host, option, "-cipher", "ALL:@SECLEVEL=0"] if option != "-tls1_3" else
                                  ["openssl", "s_client", "-connect", "127.0.0.1:443", "-servername", live.host, option], input="", capture_output=True, text=True)
            assert (done.returncode == 0 and "Cipher is (NONE)" not in done.stdout) is offered, (option, done.stdout[-400:])
        weak = ssl.create_default_context(cafile=str(authority.folder / "root.crt"))
        weak.maximum_version = ssl.TLSVersion.TLSv1_2
        weak.set_ciphers("AES128-SHA:AES256-SHA:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, OSError)):
            shake(live.host, weak)
        unknown = ssl.create_default_context()
        unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
        with pytest.raises((ssl.SSLError, OSError)):  # no app's certificate is shown under a name that no app has
            shake(f"nobody.{DOMAIN}", unknown)
    finally:
        live.ok("ssl:forget")


def test_a_chain_is_put_in_order_and_one_that_lacks_a_link_is_told(live, authority, trusting):
    key, leaf, middle = authority.issue(live.host)
    try:
        live.ok("certs:add", stdin=middle + key + leaf)
        assert https(live.host, trusting)[2] == HELLO_TEXT
        done = live.person.ssh("certs:add", live.name, stdin=key + leaf)
        assert done.returncode == 0 and "intermediate certificate missing" in done.stderr, done.stderr
    finally:
        live.ok("certs:remove")


def test_what_is_refused_and_changes_nothing(live, authority):
    key, leaf, middle = authority.issue(live.host)
    other = authority.issue(live.host)[0]
    ended = authority.issue(live.host, options=("-not_before", "20200101000000Z", "-not_after", "20210101000000Z") if "-not_after" in openssl_help() else ("-days", "-1"))
    assert "does not belong to the certificate" in refused_in_peace(live, other + leaf)
    assert "has ended" in refused_in_peace(live, ended[0] + ended[1])
    for text in ("", "nonsense", leaf, tar(readme_txt="nothing"), key):
        assert "There is no" in refused_in_peace(live, text)
    assert "There is no" in refused_in_peace(live, tar(server_crt=leaf))
    authority.sign("leaf", "middle", "/O=Nobody", "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    assert "names no domain" in refused_in_peace(live, (authority.folder / "leaf.key").read_text() + (authority.folder / "leaf.crt").read_text())
    assert "can't be named from outside" in live.refused("certs:add", "/etc/passwd", "/etc/shadow", code=2)
    assert not (STATE / "apps" / live.name / "CERTIFICATE").exists()
    done = live.person.ssh("certs:add", live.name, stdin="".join(authority.issue("else.example.com")))
    assert done.returncode == 0 and f"not for {live.host}" in done.stderr
    live.ok("certs:remove")


def openssl_help():
    return subprocess.run(["openssl", "x509", "-help"], capture_output=True, text=True).stderr


def test_a_new_certificate_is_served_at_once_and_drops_nobody(live, authority, trusting):
    serials = []
    try:
        for command in ("certs:add", "certs:update"):
            live.ok(command, stdin="".join(authority.issue(live.host)))
            with shake(live.host, trusting) as stream:
                serials.append(stream.getpeercert()["serialNumber"])
        assert serials[0] != serials[1]
        live.ok("config:set", "A=1")
        assert https(live.host, trusting)[2] == HELLO_TEXT, "it outlives a deploy"
    finally:
        live.ok("certs:remove")


def test_the_servers_certificate_is_for_apps_whose_domains_it_names(admin, live, switch, authority, trusting):
    switch.deploy()
    switch.ok("domains:set", f"own-{switch.name}.example.com")
    admin.ok("certs:add", "--global", stdin="".join(authority.issue(f"*.{DOMAIN}")))
    try:
        assert https(live.host, trusting)[2] == HELLO_TEXT
        assert switch.ok("url").startswith("http://own-"), "the server's certificate is not for its domain"
        live.ok("certs:add", stdin="".join(authority.issue(live.host)))
        with shake(live.host, trusting) as stream:
            assert stream.getpeercert()["subjectAltName"] == (("DNS", live.host),), "its own goes first"
        live.ok("certs:remove")
        assert https(live.host, trusting)[2] == HELLO_TEXT
    finally:
        admin.ok("certs:remove", "--global")
    assert live.get() == (200, HELLO_TEXT)


def test_a_self_signed_certificate_and_a_request_for_an_authority(live, authority, trusting):
    try:
        request = live.ok("certs:generate", live.host)
        assert f"DNS:{live.host}" in openssl("req", "-noout", "-text", stdin=request[request.index("-----BEGIN"):])
        open_eyes = ssl.create_default_context()
        open_eyes.check_hostname, open_eyes.verify_mode = False, ssl.CERT_NONE
        assert https(live.host, open_eyes)[2] == HELLO_TEXT
        assert live.ok("ssl:info", "--ssl-verified") == "self signed\n"
        (authority.folder / "asked.csr").write_text(request[request.index("-----BEGIN"):])
        (authority.folder / "extensions").write_text(f"subjectAltName=DNS:{live.host}\n")
        signed = openssl("x509", "-req", "-in", authority.folder / "asked.csr", "-CA", authority.folder / "middle.crt", "-CAkey", authority.folder / "middle.key",
                         "-CAcreateserial", "-days", "2", "-extfile", authority.folder / "extensions")
        live.ok("ssl:certificate", stdin=signed + (authority.folder / "middle.crt").read_text())
        assert https(live.host, trusting)[2] == HELLO_TEXT
        for command in ("ssl:generate", "ssl:selfsigned"):
            live.ok(command)
            assert live.ok("certs:report", "--ssl-hostnames") == f"{live.host}\n"
    finally:
        live.ok("ssl:forget")


def test_a_map_of_https_needs_a_certificate_and_goes_with_it(live, authority, trusting, port):
    assert "has no certificate" in live.refused("ports:add", f"https:{port}:8080")
    live.ok("certs:add", stdin="".join(authority.issue(live.host)))
    try:
        live.ok("ports:set", "http:80:8080", f"https:{port}:8080")
        assert https(live.host, trusting, port=port)[2] == HELLO_TEXT
        with pytest.raises((ssl.SSLError, OSError)):
            shake(live.host, trusting)
        live.ok("certs:remove")
        assert live.get() == (200, HELLO_TEXT)
    finally:
        live.ok("ports:clear")
        live.person.ssh("certs:remove", live.name)


def test_nobody_but_who_may_configure_sees_a_key(live, authority, stranger):
    live.ok("certs:add", stdin="".join(authority.issue(live.host)))
    try:
        live.person.ok("deploy:allow", live.name, stdin=stranger.public)
        for words in (("certs:show", live.name, "key"), ("certs:add", live.name), ("certs:remove", live.name), ("certs:report", live.name)):
            assert stranger.ssh(*words).returncode == 77
        for path in STATE.rglob("*"):
            if path.is_file() and path.stat().st_mode & 0o077:
                assert "PRIVATE KEY" not in path.read_text(errors="replace"), path
        assert not re.search("PRIVATE KEY", live.ok("nginx:show-config"))
    finally:
        live.ok("certs:remove")
