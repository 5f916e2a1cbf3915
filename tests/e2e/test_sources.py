"""Ways by which code comes to an app besides a push: other servers by git, https and ssh, archives, images; and that no secret shows on the way."""

import base64
import contextlib
import http.server
import io
import json
import os
import shutil
import ssl
import stat
import subprocess
import tarfile
import threading
import time
import uuid
import zipfile
from pathlib import Path

import pytest
from conftest import DOCKER, STATE, docker, free_port, make_repository, quoted, sh, wait_until

COPY_ALL = "FROM debian:bookworm\nCOPY . /all\nRUN cp /all/server.pl /server.pl\nEXPOSE 8080\nCMD perl /server.pl\n"


def served(app, folder, name="code"):
    """Commit what the app's work tree holds, and put it where a server finds it; give the commit."""
    app.write()
    target = folder / f"{name}.git"
    if not target.exists():
        sh("git", "init", "-q", "--bare", "-b", "main", target)
    app.git("push", "-q", "--force", str(target), "HEAD:main")
    return app.git("rev-parse", "HEAD")


# --- by git ---


def test_a_branch_is_fetched_and_deployed_when_asked(bare, git_server):
    address, folder = git_server
    first = served(bare, folder)
    bare.ok("git:sync", f"{address}/code.git")
    assert not bare.containers() and first[:7] in bare.ok("git:status")
    assert "nothing changed" in bare.ok("git:sync", f"{address}/code.git", "--build-if-changes")  # but it never ran
    assert bare.get()[0] == 200 and bare.ok("git:report", "--git-sha").strip() == first
    assert "nothing changed" in bare.ok("git:sync", "--build-if-changes", f"{address}/code.git")
    assert len(bare.releases()) == 1
    second = served(bare, folder)
    assert "nothing changed" not in bare.ok("git:sync", "--build-if-changes", f"{address}/code.git")
    assert bare.ok("git:report", "--git-sha").strip() == second and bare.releases()[0][-2:] == ["git:sync", "live"]
    bare.ok("git:sync", "--build", f"{address}/code.git")
    assert len(bare.releases()) == 3
    assert sh("git", "-C", bare.work, "ls-remote", f"dokku@127.0.0.1:{bare.name}", env=bare.person.environment()).stdout.split() == [
        second, "HEAD", second, "refs/heads/main"], "what is fetched for a while only is shown to nobody"


def test_branches_tags_and_commits(bare, git_server):
    address, folder = git_server
    first = served(bare, folder)
    bare.git("push", "-q", str(folder / "code.git"), "HEAD:refs/tags/v1.0")
    second = served(bare, folder)
    bare.git("push", "-q", str(folder / "code.git"), "HEAD:topic/new")
    third = served(bare, folder)
    for ref, commit in (("v1.0", first), ("topic/new", second), (third, third), (first, first), ("refs/heads/main", third), ("main", third)):
        bare.ok("git:sync", f"{address}/code.git", ref)
        assert commit[:7] in bare.ok("git:status"), ref
    for ref, code in (("nowhere", 1), ("f" * 40, 1), ("--upload-pack=touch", 2), ("a..b", 2), ("main:refs/heads/other", 2)):
        bare.refused("git:sync", f"{address}/code.git", "--", ref, code=code)
    assert third[:7] in bare.ok("git:status")


def test_the_branch_that_is_named_becomes_the_deploy_branch_once(bare, git_server):
    address, folder = git_server
    served(bare, folder)
    bare.git("push", "-q", str(folder / "code.git"), "HEAD:live")
    deploy_branch = ("git:report", "--git-deploy-branch")
    bare.ok("git:sync", "--skip-deploy-branch", f"{address}/code.git", "live")
    assert bare.ok(*deploy_branch).strip() == ""
    bare.ok("git:sync", f"{address}/code.git", "live")
    assert bare.ok(*deploy_branch).strip() == "live"
    bare.ok("git:sync", f"{address}/code.git", "main")
    assert bare.ok(*deploy_branch).strip() == "live"
    bare.write()
    bare.git("push", "-q", str(folder / "code.git"), "HEAD:live")
    bare.ok("git:sync", f"{address}/code.git")
    assert bare.git("rev-parse", "HEAD")[:7] in bare.ok("git:status"), "without a name, the branch that deploys"
    bare.ok("ps:rebuild")
    assert bare.get()[0] == 200


def test_what_can_not_be_deployed_is_not_kept(app, git_server):
    address, folder = git_server
    app.deploy()
    old = app.git("rev-parse", "HEAD")
    app.write(Dockerfile="FROM debian:bookworm\nRUN exit 3\n")
    served(app, folder)
    app.refused("git:sync", "--build", f"{address}/code.git")
    app.assert_untouched()
    assert old[:7] in app.ok("git:status")
    app.refused("git:sync", "--build", f"{address}/nothing.git")
    app.assert_untouched()


@pytest.mark.parametrize("address", ["/etc", "file:///etc", "../other", "ext::sh -c id", "ext::sh%20-c%20id", "--upload-pack=id", "-oProxyCommand=id", "fd::17",
                                     "ssh://-oProxyCommand=id/x", "-u@host:x", "https://somebody:hunter2@example.com/x", "ftp://example.com/x", "host:path", ""])
def test_addresses_that_are_refused(bare, address):
    for words in (("git:sync", bare.name, "--", address), ("git:from-archive", bare.name, "--", address or "x"), ("clone", f"{bare.name}-two", "--", address)):
        assert "hunter2" not in bare.person.refused(*quoted(*words), code=2)
    assert bare.person.ssh("apps:exists", f"{bare.name}-two").returncode == 20


def test_an_app_that_does_not_exist(admin):
    for words in (("git:sync", "t-nothing", "https://127.0.0.1:1/x"), ("git:from-archive", "t-nothing", "-"), ("git:from-image", "t-nothing", "debian"),
                  ("git:load-image", "t-nothing", "debian"), ("git:unlock", "t-nothing"), ("ssh:install", "t-nothing"), ("ssh:public", "t-nothing")):
        assert "App t-nothing does not exist" in admin.refused(*words, code=20)


def test_clone_makes_an_app(new_app, git_server):
    address, folder = git_server
    app = new_app()
    commit = served(app, folder)
    app.ok("clone", f"{address}/code.git", "main")
    assert app.get()[0] == 200 and app.ok("git:report", "--git-sha").strip() == commit
    assert "Name is already taken" in app.refused("clone", f"{address}/code.git")


class Leads(http.server.BaseHTTPRequestHandler):
    """Leads whoever comes to the address behind the first slash, and notes that he came."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(302)
        self.send_header("Location", self.path[1:])
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def leads():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Leads)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0x7f000001", "10.1.2.3", "169.254.169.254"])
def test_nothing_inside_this_network_is_fetched_for_an_app(bare, leads, host):
    """What answers there trusts whoever comes from this server: a cloud's metadata, an admin page."""
    bare.person.ok("git:set", bare.name, "private-hosts", "elsewhere.example.com")
    for words in (("git:from-archive", bare.name, f"http://{host}:{leads.server_port}/x.tar"), ("git:sync", bare.name, f"http://{host}:{leads.server_port}/x.git")):
        refused = bare.person.refused(*words)
        assert "belongs to this server or its network" in refused and f"git:set {bare.name} private-hosts elsewhere.example.com {host}" in refused, refused
    assert leads.asked == []


def test_a_trusted_host_leads_nowhere_inside_this_network(bare, leads):
    bare.person.ok("git:set", bare.name, "private-hosts", "localhost")
    start, inside = f"http://localhost:{leads.server_port}/", f"http://127.0.0.1:{leads.server_port}/secret"
    assert "belongs to this server or its network" in bare.person.refused("git:from-archive", bare.name, start + inside)
    assert leads.asked == ["/" + inside]
    assert "without an end" in bare.person.refused("git:from-archive", bare.name, start + start + start + start + start + start + start + inside)


def test_a_deploy_key_may_not_trust_hosts(bare, stranger):
    bare.person.ok("deploy:allow", bare.name, stdin=stranger.public)
    assert stranger.ssh("git:set", bare.name, "private-hosts", "localhost").returncode == 77


# --- secrets ---


class Watch:
    """Looks at the words of every process while something runs, for what must never stand there."""

    def __init__(self, *secrets):
        self.secrets, self.seen, self.looks = [secret.encode() for secret in secrets], [], 0

    def __enter__(self):
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self):
        while not self.ended.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    words = path.read_bytes()
                    self.seen += [words for secret in self.secrets if secret in words]
            self.looks += 1
            time.sleep(0.002)

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        assert self.looks > 5 and self.seen == []


def assert_kept_only_in(secret, *paths):
    """A secret stands in these files of the server, which only their owner reads, and nowhere else: not in logs, events or crash logs."""
    found = sh("grep", "-rlF", "-e", secret, STATE, "/var/log", "--exclude-dir=docker").stdout.split()
    assert sorted(found) == sorted(map(str, paths)), found
    assert not sh("grep", "-lF", "-e", secret, *Path("/tmp").glob("dokku-crash-*"), "/dev/null").stdout
    for path in paths:
        facts = os.stat(path)
        assert stat.S_IMODE(facts.st_mode) == 0o600 and facts.st_uid == os.stat(STATE).st_uid


def assert_not_in_images(secret, app):
    """A secret stands in no image of the app, in no layer and no history."""
    images = sh(*DOCKER, "images", "-q", f"dokku/{app.name}").stdout.split()
    assert images
    for image in images:
        assert secret not in docker("history", "--no-trunc", image) + docker("inspect", image)
        layers = subprocess.run([*DOCKER, "save", image], capture_output=True, check=True).stdout
        assert secret.encode() not in layers


def assert_not_in_docker(secret, app):
    """A secret stands in no image of the app, and in nothing Docker knows of its containers."""
    assert_not_in_images(secret, app)
    for container in app.containers("-a"):
        assert secret not in docker("inspect", container)


def test_a_config_var_is_with_the_apps_processes_and_in_its_own_files_only(switch):
    """Through a build, a release command, app.json's commands, a one-off and a change: it comes by standard input, and goes by the engine's socket."""
    secret = uuid.uuid4().hex
    switch.ok("apps:create")
    kept = lambda *numbers: [switch.folder / "ENV", *(switch.folder / "releases" / f"v{number}" / "ENV" for number in numbers)]  # noqa: E731
    with Watch(secret):
        switch.ok("config:import", "-", stdin=f"SECRET={secret}\n")
        switch.deploy(Procfile="web: exec perl /server.pl\nrelease: test -n \"$SECRET\"\n",
                      app_json=json.dumps({"scripts": {"dokku": {"predeploy": "test -n \"$SECRET\" && touch /made", "postdeploy": "test -n \"$SECRET\""}}}))
        switch.ok("run", "test", "-n", "x")
        switch.ok("config:set", "OTHER=1")
        switch.ok("ps:restart")
        switch.ok("releases:info", "v1")
        switch.ok("report")
        inspected = switch.ok("ps:inspect")
    assert secret not in inspected
    assert_kept_only_in(secret, *kept(1, 2))
    assert_not_in_images(secret, switch)
    assert f"SECRET={secret}" in docker("exec", f"{switch.name}.web.1", "env")


# --- by https, with a name and password ---


class Handler(http.server.BaseHTTPRequestHandler):
    """Git by `git http-backend` and files, for those who know the password; the paths that misbehave are for everyone."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.do_GET()

    def answer(self, status, content=b"", **fields):
        """With its length: without one the end of the answer is an end of TLS that GnuTLS takes for an attack."""
        self.send_response(status)
        for name, value in {**fields, "Content-Length": str(len(content))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path.startswith("/to/"):
            self.answer(302, Location=base64.urlsafe_b64decode(path[4:]).decode())
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**16))
        elif self.headers.get("Authorization") != "Basic " + base64.b64encode(f"robot:{self.server.password}".encode()).decode():
            self.answer(401, WWW_Authenticate='Basic realm="git"')
        elif path.startswith("/files/"):
            self.answer(200, (self.server.folder / Path(path).name).read_bytes())
        else:
            self.backend(path, query)

    def backend(self, path, query):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {"PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.server.folder), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query,
                       "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)), "HOME": "/nonexistent",
                       "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""), "GIT_PROTOCOL": self.headers.get("Git-Protocol", "")}
        answer = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True).stdout
        head, _, content = answer.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.answer(int(fields.pop("Status", "200").split()[0]), content, **fields)


def openssl(*words):
    done = sh("openssl", *words)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority that this machine trusts for as long as the tests run; gives a certificate of it for localhost, and its key."""
    folder = tmp_path_factory.mktemp("authority")
    ca, key, request, crt = (folder / name for name in ("ca.crt", "key", "request", "crt"))
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "ca.key", "-out", ca, "-subj", "/CN=test authority", "-days", "2")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", folder / "ca.key", "-CAcreateserial", "-out", crt, "-days", "2", "-extfile", folder / "names")
    trusted = Path("/usr/local/share/ca-certificates") / f"dokku-test-{uuid.uuid4().hex[:8]}.crt"
    shutil.copy(ca, trusted)
    assert sh("update-ca-certificates").returncode == 0
    yield crt, key
    trusted.unlink()
    sh("update-ca-certificates", "--fresh")


def serve(folder, *certificate):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.password = folder, f"pass-{uuid.uuid4().hex}"
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f"{'https' if certificate else 'http'}://localhost:{server.server_port}"
    return server


@pytest.fixture
def https(authority, tmp_path, admin):
    """A real https server with a private repository and files."""
    folder = tmp_path / "https"
    folder.mkdir()
    server = serve(folder, *authority)
    yield server
    server.shutdown()
    sh("dokku", "git:auth", "localhost")


def test_a_private_repository_by_https(bare, https):
    commit = served(bare, https.folder)
    bare.write()
    address = f"{https.address}/code.git"
    refused = bare.refused("git:sync", "--build", address)
    assert "can't be fetched" in refused and "git:auth" in refused
    bare.person.refused("git:auth-status", "localhost")
    with Watch(https.password):
        bare.person.ok("git:auth", "localhost", "robot", "-", stdin=f"{https.password}\n")
        output = bare.person.ssh("--trace", "git:sync", "--build", bare.name, address)
    assert output.returncode == 0 and https.password not in output.stdout + output.stderr, output.stderr
    assert bare.get()[0] == 200 and bare.ok("git:report", "--git-sha").strip() == commit
    bare.person.ok("git:auth-status", "localhost")
    bare.person.ok("git:auth-status", "localhost", "robot", "-", stdin=https.password)
    for password in ("wrong", https.password[:-1], https.password + "x"):
        bare.person.refused("git:auth-status", "localhost", "robot", "-", stdin=password)
    assert_kept_only_in(https.password, STATE / ".netrc")
    assert_not_in_docker(https.password, bare)
    bare.person.ok("git:auth", "other.example.com", "some+body@example.com", "else")
    bare.person.ok("git:auth", "localhost")
    bare.person.refused("git:auth-status", "localhost")
    bare.person.ok("git:auth-status", "other.example.com", "some+body@example.com", "else")
    bare.person.ok("git:auth", "other.example.com")
    assert_kept_only_in(https.password)
    bare.refused("git:sync", address)


@pytest.mark.parametrize("password", ["two words", "line\nmachine evil.example.com login a password b", '"quoted"', "#comment", ""])
def test_passwords_that_netrc_can_not_hold(admin, password):
    done = admin.ssh("git:auth", "localhost", "robot", "-", stdin=password)
    if "\n" in password:  # only the first line is the password
        assert done.returncode == 0 and "evil" not in (STATE / ".netrc").read_text()
        admin.ok("git:auth", "localhost")
    else:
        assert done.returncode == 2 and "Traceback" not in done.stderr
    admin.refused("git:auth-status", "localhost")


def test_a_server_whose_certificate_nobody_vouches_for(bare, tmp_path):
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key", "-out", tmp_path / "crt", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost", "-days", "2")
    server = serve(tmp_path, tmp_path / "crt", tmp_path / "key")
    assert "certificate" in bare.refused("git:sync", f"{server.address}/code.git")
    assert "certificate" in bare.refused("git:from-archive", f"{server.address}/files/x")
    server.shutdown()


# --- by ssh, with a key ---


@pytest.fixture
def ssh_server(tmp_path, admin):
    """A real sshd of its own on loopback that serves repositories to the keys in a file; give its port, the folder, and that file."""
    folder, port = tmp_path / "ssh", free_port()
    folder.mkdir()
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host")
    keys, log = folder / "keys", folder / "log"
    keys.write_text("")
    (folder / "config").write_text(f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {keys}\nStrictModes no\n"
                                   f"PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPidFile {folder}/pid\n")
    assert sh("/usr/sbin/sshd", "-f", folder / "config", "-E", log).returncode == 0
    known = (STATE / ".ssh" / "known_hosts").read_text() if (STATE / ".ssh" / "known_hosts").exists() else None
    yield port, folder, keys
    os.kill(int((folder / "pid").read_text()), 15)
    (STATE / ".ssh" / "known_hosts").unlink(missing_ok=True)
    if known:
        (STATE / ".ssh" / "known_hosts").write_text(known)
        shutil.chown(STATE / ".ssh" / "known_hosts", "dokku", "dokku")


def new_key(folder, *options):
    sh("ssh-keygen", "-q", "-N", "", "-C", "robot", "-f", folder / "robot", *(options or ["-t", "ed25519"]))
    return (folder / "robot").read_text(), (folder / "robot.pub").read_text()


def test_a_private_repository_and_its_submodule_by_ssh_with_the_key_of_an_app(bare, ssh_server, tmp_path):
    port, folder, keys = ssh_server
    private, public = new_key(tmp_path)
    keys.write_text(public)
    address = f"ssh://root@127.0.0.1:{port}{folder}"
    commit = make_repository(bare, folder / "part", note="from the submodule")
    bare.write(Dockerfile=COPY_ALL.replace("COPY", f"RUN --mount=type=secret,id=ssh_key,target=/key : {bare.name}; sha256sum < /key > /digest\nCOPY", 1),
               dot_gitmodules=f'[submodule "part"]\n\tpath = part\n\turl = {address}/part\n')
    bare.git("update-index", "--add", "--cacheinfo", f"160000,{commit},part")
    bare.git("commit", "-qm", "submodule")
    sh("git", "init", "-q", "--bare", folder / "code.git")
    bare.git("push", "-q", str(folder / "code.git"), "HEAD:main")
    bare.refused("ssh:public")
    bare.refused("ssh:info")
    with Watch(*private.splitlines()[1:-1]):
        bare.ok("ssh:install", stdin=private.replace("\n", "\r\n").rstrip())  # as a clipboard may bring it
        assert "allow-host" in bare.refused("git:sync", f"{address}/code.git", "main")
        bare.person.ok("git:allow-host", f"127.0.0.1:{port}")
        bare.person.ok("git:allow-host", f"127.0.0.1:{port}")
        bare.ok("git:sync", "--build", f"{address}/code.git", "main")
    assert bare.get("/file/all/part/note") == (200, "from the submodule")
    assert bare.get("/file/digest")[1].split()[0] == sh("sha256sum", bare.folder / "ssh_key").stdout.split()[0], "the build had the key"
    assert bare.ok("ssh:public").split()[:2] == public.split()[:2]
    assert sh("ssh-keygen", "-lf", tmp_path / "robot.pub").stdout.split()[1] in bare.ok("ssh:info")
    secret = (bare.folder / "ssh_key").read_text().splitlines()[3]  # what ssh-keygen wrote anew: the seed is in it
    assert_kept_only_in(secret, bare.folder / "ssh_key")
    assert_not_in_docker(secret, bare)
    known = (STATE / ".ssh" / "known_hosts").read_text().splitlines()
    assert len(known) == len(set(known)), "trusting a host twice adds nothing"
    bare.ok("ssh:remove")
    assert_kept_only_in(secret)
    assert "can't be fetched" in bare.refused("git:sync", f"{address}/code.git", "main")


@pytest.mark.parametrize("options", [("-t", "rsa", "-b", "2048"), ("-t", "rsa", "-b", "2048", "-m", "PEM"), ("-t", "ecdsa")])
def test_keys_of_other_kinds(bare, tmp_path, options):
    private, public = new_key(tmp_path, *options)
    bare.ok("ssh:install", stdin=private)
    assert bare.ok("ssh:public").split()[:2] == public.split()[:2]


def test_what_is_no_private_key(bare, tmp_path):
    private, public = new_key(tmp_path)
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", tmp_path / "locked")
    for text in ("", "hello", public, private[:100], (tmp_path / "locked").read_text(), "x" * 2**17):
        assert private.splitlines()[2] not in bare.refused("ssh:install", stdin=text, code=2)
        assert not (bare.folder / "ssh_key").exists()


def test_the_key_of_the_server(bare, ssh_server):
    port, folder, keys = ssh_server
    key = STATE / ".ssh" / "id_ed25519"
    if key.exists():
        pytest.skip("this server has a key of its own, which a test must not replace")
    try:
        bare.person.refused("git:public-key")
        public = bare.person.ok("git:generate-deploy-key")
        assert public == bare.person.ok("git:generate-deploy-key") == bare.person.ok("git:public-key"), "there is one key, and it stays"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        keys.write_text(public)
        bare.person.ok("git:allow-host", f"127.0.0.1:{port}")
        served(bare, folder)
        bare.ok("git:sync", "--build", f"ssh://root@127.0.0.1:{port}{folder}/code.git")
        assert bare.get()[0] == 200
        assert_not_in_docker(key.read_text().splitlines()[2], bare)
    finally:
        key.unlink(missing_ok=True)
        key.with_suffix(".pub").unlink(missing_ok=True)


@pytest.mark.parametrize("address", ["-oProxyCommand=id", "host name", "127.0.0.1:1", "127.0.0.1:x", "no.such.host.invalid", ""])
def test_hosts_that_can_not_be_trusted(admin, address):
    done = admin.ssh(*quoted("git:allow-host", "--", address))
    assert done.returncode in (1, 2) and done.stderr.startswith(" !     ") and "Traceback" not in done.stderr


# --- archives ---


def packed(tree, kind, around=""):
    """Pack a tree, perhaps with one folder around all of it."""
    target = io.BytesIO()
    names = [path.relative_to(tree) for path in sorted(tree.rglob("*")) if path.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(tree / name, f"{around}{name}")
    else:
        with tarfile.open(fileobj=target, mode="w:gz" if kind == "tar.gz" else "w") as archive:
            for name in names:
                archive.add(tree / name, f"{around}{name}")
    return target.getvalue()


def send(app, content, *words):
    """Send an archive on standard input; give the exit code and what was said."""
    done = subprocess.run(["ssh", *app.person.options, "--", "dokku@127.0.0.1", "git:from-archive", *words, app.name, "-"], input=content, capture_output=True, timeout=300)
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_on_standard_input(bare, kind):
    bare.write(Dockerfile=COPY_ALL)
    code, output = send(bare, packed(bare.work, kind, "blog-1.0/"), "--archive-type", kind)
    assert code == 0, output
    assert bare.get("/file/all/Dockerfile")[0] == 200 and bare.get("/file/all/.git/HEAD")[0] == 404
    (bare.work / "note").write_text("second")
    code, output = send(bare, packed(bare.work, kind))
    assert code == 0, output
    assert bare.get("/file/all/note") == (200, "second")
    assert [row[-2] for row in bare.releases()] == ["git:from-archive"] * 2
    sh("git", "clone", "-q", f"dokku@127.0.0.1:{bare.name}", bare.work.with_name("copy"), env=bare.person.environment())
    log = sh("git", "-C", bare.work.with_name("copy"), "log", "--format=%s by %an <%ae>").stdout.splitlines()
    assert log == ["From - by dokku <dokku@localhost>"] * 2, "each archive is a commit on top of the last"
    done = bare.person.push(bare.work, bare.name, "main", "--force")
    assert done.returncode == 0, done.stderr


def test_the_author_of_the_commit(bare):
    code, output = send(bare, packed(bare.work, "tar"))
    done = subprocess.run(["ssh", *bare.person.options, "--", "dokku@127.0.0.1", "git:from-archive", bare.name, "-", "'Ann <Evil> Other'", "ann@example.com"],
                          input=packed(bare.work, "tar"), capture_output=True, timeout=300)
    assert code == 0 and done.returncode == 0, done.stderr
    sh("git", "clone", "-q", f"dokku@127.0.0.1:{bare.name}", bare.work.with_name("copy"), env=bare.person.environment())
    assert sh("git", "-C", bare.work.with_name("copy"), "log", "-1", "--format=%an|%ae").stdout == "Ann Evil Other|ann@example.com\n"


def test_an_archive_from_an_address(bare, https):
    (https.folder / "code.zip").write_bytes(packed(bare.work, "zip", "code-main/"))
    address = f"{https.address}/files/code.zip"
    assert "401" in bare.refused("git:from-archive", address)
    with Watch(https.password):
        bare.person.ok("git:auth", "localhost", "robot", "-", stdin=https.password)
        bare.ok("git:from-archive", address)
        bare.ok("git:from-archive", f"{https.address}/to/{base64.urlsafe_b64encode(address.encode()).decode()}")
    assert bare.get()[0] == 200
    assert_kept_only_in(https.password, STATE / ".netrc")
    assert_not_in_docker(https.password, bare)


def test_addresses_of_archives_that_lead_astray(app, https):
    app.deploy()
    plain = serve(https.folder)
    (https.folder / "code.tar").write_bytes(packed(app.work, "tar"))
    app.person.ok("git:auth", "localhost", "robot", "-", stdin=plain.password)
    for target in (f"{plain.address}/files/code.tar", "file:///etc/passwd", "ftp://127.0.0.1/x", f"{https.address}/nothing"):
        assert "root:" not in app.refused("git:from-archive", f"{https.address}/to/{base64.urlsafe_b64encode(target.encode()).decode()}"), target
    app.ok("git:set", "archive-max-size", "1m")
    assert "can't be fetched" in app.refused("git:from-archive", f"{https.address}/endless")
    code, output = send(app, bytes(2**21))
    assert code == 1 and "larger than 1m" in output
    app.assert_untouched()
    plain.shutdown()


@pytest.mark.parametrize("what", ["absolute", "dots", "hard link", "device", "bomb", "many", "cut off", "nothing", "text"])
def test_a_hostile_archive_changes_nothing(live, what):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.add(live.work / "Dockerfile", "Dockerfile")
        row = tarfile.TarInfo({"absolute": "/tmp/owned", "dots": "../../../../tmp/owned"}.get(what, "row"))
        row.type = {"hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}.get(what, tarfile.REGTYPE)
        row.linkname, row.size = "/etc/shadow" if what == "hard link" else "", 0
        if what in ("absolute", "dots", "hard link", "device"):
            archive.addfile(row)
        for number in range(10_001 if what == "many" else 0):
            archive.addfile(tarfile.TarInfo(f"f{number}"))
        if what == "bomb":
            row.size = 3 * 2**30
            archive.fileobj.write(row.tobuf())
            archive.offset += 512
    sent = {"cut off": content.getvalue()[:-30], "nothing": b"", "text": b"hello\n"}.get(what, content.getvalue())
    releases, running = len(live.releases()), live.inspect()["Id"]
    code, output = send(live, sent)
    assert code == 1 and "read-archive" in output and "Traceback" not in output, output
    assert live.get()[0] == 200 and live.inspect()["Id"] == running and len(live.releases()) == releases
    assert not os.path.exists("/tmp/owned") and not list(live.folder.glob("tree.*"))
    assert live.git("rev-parse", "HEAD")[:7] in live.ok("git:status")


def test_links_of_an_archive_stay_links(bare):
    content = io.BytesIO()
    bare.write(Dockerfile=COPY_ALL)
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("Dockerfile", "server.pl"):
            archive.add(bare.work / name, name)
        for name, target in (("out", "/etc/passwd"), ("door", "/tmp"), ("Procfile", "/etc/shadow")):
            row = tarfile.TarInfo(name)
            row.type, row.linkname = tarfile.SYMTYPE, target
            archive.addfile(row)
        row = tarfile.TarInfo("door/owned")
        archive.addfile(row)
        row = tarfile.TarInfo("run")
        row.mode = 0o6755
        archive.addfile(row)
    code, output = send(bare, content.getvalue())
    assert code == 0, output
    assert bare.get("/file/all/out")[1] != Path("/etc/passwd").read_text().strip() and not os.path.exists("/tmp/owned")
    assert docker("exec", f"{bare.name}.web.1", "stat", "-c", "%a", "/all/run") == "755"
    assert docker("exec", f"{bare.name}.web.1", "ls", "/all/door") == "owned"


def test_a_client_that_leaves_while_it_sends(app):
    app.deploy()
    content = packed(app.work, "tar")
    process = subprocess.Popen(["ssh", *app.person.options, "--", "dokku@127.0.0.1", "git:from-archive", app.name, "-"], stdin=subprocess.PIPE)
    process.stdin.write(content[:len(content) // 512 // 2 * 512])
    process.stdin.flush()
    wait_until(lambda: list(app.folder.glob("tree.*")))
    process.kill()
    process.wait()
    app.assert_untouched()
    assert len(app.releases()) == 1


def test_a_file_of_the_server_is_for_root(bare, tmp_path):
    path = tmp_path.parent / "code.tar"
    path.write_bytes(packed(bare.work, "tar"))
    os.chmod(tmp_path.parent, 0o755)
    os.chmod(tmp_path.parent.parent, 0o755)
    bare.refused("git:from-archive", str(path), code=2)
    done = sh("dokku", "git:from-archive", bare.name, path)
    assert done.returncode == 0, done.stderr
    assert bare.get()[0] == 200


# --- images ---


@pytest.fixture
def image(new_app):
    """An image that somebody built elsewhere."""
    app, name = new_app(), f"test/{uuid.uuid4().hex[:8]}:1.0"
    docker("build", "-q", "-t", name, str(app.work))
    yield name
    sh(*DOCKER, "image", "rm", "-f", name)


def test_an_image_is_deployed(bare, image):
    bare.ok("git:from-image", image)
    assert bare.get()[0] == 200 and bare.ok("git:report", "--git-source-image").strip() == image
    sh("git", "clone", "-q", f"dokku@127.0.0.1:{bare.name}", bare.work.with_name("copy"), env=bare.person.environment())
    assert (bare.work.with_name("copy") / "Dockerfile").read_text() == f"FROM {image}\n"
    bare.ok("import:docker", image)
    assert len(bare.releases()) == 2
    bare.write()
    assert bare.person.push(bare.work, bare.name, "main", "--force").returncode == 0
    assert bare.ok("git:report", "--git-source-image").strip() == ""


@pytest.mark.parametrize("name", ["--rm", "-it", "debian AS x", "a\nRUN id", "$IMAGE", "", "../x", "no.such.registry.invalid/x:1"])
def test_images_that_are_none(bare, name):
    done = bare.person.ssh(*quoted("git:from-image", bare.name, "--", name))
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr and not bare.containers("-a"), done.stderr
    assert bare.ok("git:report", "--git-source-image").strip() == ""


def test_an_image_on_standard_input(bare, image):
    content = subprocess.run([*DOCKER, "save", image], capture_output=True, check=True).stdout
    docker("image", "rm", image)
    command = ["ssh", *bare.person.options, "--", "dokku@127.0.0.1", "git:load-image", bare.name]
    done = subprocess.run([*command, "test/other:1"], input=content, capture_output=True, timeout=300)
    assert done.returncode == 1 and b"No image test/other:1 came" in done.stderr
    assert subprocess.run([*command, image], input=b"hello", capture_output=True, timeout=300).returncode == 1
    done = subprocess.run([*command, image], input=content, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert bare.get()[0] == 200


def test_files_beside_an_image(bare, image, tmp_path):
    folder = tmp_path.parent / f"beside-{bare.name}"
    (folder / "only").mkdir(parents=True)
    (folder / "Procfile").write_text("web: GREETING=beside exec perl /server.pl\n")
    (folder / "only" / "note").write_text("x")
    for path in (tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    bare.refused("git:from-image", "--build-dir", "/etc", image, code=2)
    done = sh("dokku", "git:from-image", "--build-dir", folder, bare.name, image)
    assert done.returncode == 0, done.stderr
    assert bare.get() == (200, "beside")


def test_the_dockerfile_of_an_image_stands_where_the_app_looks_for_it(bare, image):
    bare.ok("builder-dockerfile:set", "dockerfile-path", "deploy/Dockerfile")
    bare.ok("git:from-image", image)
    assert bare.get()[0] == 200


# --- the repository ---


def test_the_history_is_in_the_tree_when_it_is_wanted(bare):
    bare.ok("git:set", "keep-git-dir", "true")
    bare.write()
    bare.deploy(Dockerfile=COPY_ALL)
    commit = bare.git("rev-parse", "HEAD")
    copy = bare.work.with_name("image")
    docker("cp", f"{bare.name}.web.1:/all", str(copy))
    shutil.chown(copy, 0, 0)
    git = ("git", "-c", "safe.directory=*", "-C", copy)
    assert sh(*git, "log", "--format=%H").stdout.split()[0] == commit and len(sh(*git, "log", "--format=%H").stdout.split()) == 2
    assert sh(*git, "status", "--porcelain").stdout == "" and sh(*git, "fsck", "--strict").returncode == 0
    bare.ok("git:set", "keep-git-dir", "false")
    bare.ok("ps:rebuild")
    assert bare.get("/file/all/.git/HEAD")[0] == 404


def test_what_killed_pushes_left_is_removed_and_what_is_missing_is_made(bare):
    repository = bare.folder / "repo.git"
    bare.deploy()
    (repository / "HEAD.lock").write_text("")
    (repository / "refs" / "heads" / "main.lock").write_text("")
    bare.ok("git:unlock", "--force")
    assert not list(repository.glob("*.lock")) and not list(repository.glob("refs/heads/*.lock"))
    shutil.rmtree(repository)
    bare.ok("git:initialize")
    bare.deploy()


def test_a_deploy_key_brings_code_to_its_app_and_no_further(live, deployer, bare):
    deployer.ok("git:unlock", live.name)
    for words in (("git:sync", bare.name, "https://127.0.0.1:1/x"), ("git:from-archive", bare.name, "-"), ("git:from-image", bare.name, "debian"), ("git:unlock", bare.name),
                  ("git:load-image", live.name, "debian"), ("git:auth", "localhost", "a", "b"), ("git:auth-status", "localhost"), ("git:allow-host", "127.0.0.1"),
                  ("git:generate-deploy-key",), ("git:public-key",), ("ssh:install", live.name), ("ssh:public", live.name), ("ssh:remove", live.name),
                  ("clone", "t-stolen", "https://127.0.0.1:1/x"), ("git:from-archive", "t-nothing", "-")):
        deployer.refused(*words, code=77)
    assert "can't be fetched" in deployer.refused("git:sync", live.name, "https://127.0.0.1:1/x")


def test_the_events_tell_who_and_what_and_no_more(bare):
    bare.ok("ssh:remove")
    bare.refused("git:sync", "https://127.0.0.1:1/some-secret-path")
    lines = [json.loads(line) for line in (STATE / "events.log").read_text().splitlines()]
    own = [line for line in lines if line.get("app") == bare.name]
    assert [line["command"] for line in own][-2:] == ["ssh:remove", "git:sync"] and "some-secret-path" not in json.dumps(own)
