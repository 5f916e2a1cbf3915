"""The installed product, through its front door: real ssh, git, nginx and Docker on this machine."""

import fcntl
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
APPS = ROOT / "tests" / "apps"
HELLO = APPS / "hello"
SWITCH = APPS / "switch"
STATE = Path("/var/lib/dokku")
DOCKER = ["/usr/bin/docker", "-H", "unix:///var/run/docker.sock"]
DOMAIN = "test.local"
HELLO_TEXT = "Hello from dokku_py"


# --- this machine ---


def sh(*argv, stdin=None, timeout=300, **options):
    """Run a program to its end."""
    return subprocess.run([str(word) for word in argv], input=stdin, capture_output=True, text=True, timeout=timeout, **options)


def wait_until(truth, seconds=60):
    """Wait until something holds; fail when it does not within a generous time."""
    deadline, code = time.monotonic() + seconds, truth.__code__
    while not truth():
        assert time.monotonic() < deadline, f"waited in vain at {Path(code.co_filename).name}:{code.co_firstlineno}"
        time.sleep(0.1)


def base_image():
    """Name the base image of this host's release, which the test apps stand on."""
    words = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return f"{words['ID']}:{words['VERSION_CODENAME']}"


def docker(*words):
    """Ask Docker, and give what it printed."""
    done = sh(*DOCKER, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def docker_answers():
    return sh(*DOCKER, "version").returncode == 0


def start_docker():
    """Start Docker as install.sh does: the init script gives up where its file limit is not allowed."""
    if sh("service", "docker", "start").returncode:
        with open("/var/log/docker.log", "ab") as log:
            subprocess.run(["start-stop-daemon", "--start", "--background", "--no-close", "--exec", "/usr/sbin/dockerd", "--pidfile",
                            "/var/run/docker-ssd.pid", "--make-pidfile", "--", "-p", "/var/run/docker.pid"], stdout=log, stderr=log, check=True)
    wait_until(docker_answers)


def stop_docker():
    """Stop Docker as a shutdown does, and wait until it and its containerd are gone."""
    pid = int(Path("/var/run/docker.pid").read_text())
    sh("service", "docker", "stop")
    if Path(f"/proc/{pid}").exists():  # it was started by hand
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}").exists() and not Path("/var/run/docker/containerd/containerd.pid").exists())


def ask(host, path="/", port=80, **headers):
    """Ask nginx for a path of a host; give the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": host, **headers})
    answer = connection.getresponse()
    return answer.status, answer.read().decode().strip()


class Person:
    """Somebody with an ssh key of their own."""

    def __init__(self, folder):
        folder.mkdir(exist_ok=True)
        self.key = folder / "key"
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "somebody", "-f", self.key)
        self.public = self.key.with_suffix(".pub").read_text()
        self.fingerprint = sh("ssh-keygen", "-lf", self.key).stdout.split()[1]
        self.options = ["-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no",
                        "-o", f"UserKnownHostsFile={folder / 'hosts'}", "-o", "LogLevel=ERROR"]

    def ssh(self, *words, stdin="", options=()):
        """Ask the server something; words are joined by blanks, as ssh does, so quote what needs it."""
        return sh("ssh", *self.options, *options, "--", "dokku@127.0.0.1", *words, stdin=stdin)

    def ok(self, *words, stdin="", options=()):
        done = self.ssh(*words, stdin=stdin, options=options)
        assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, *words, code=1, stdin=""):
        """Expect a refusal with that exit code, said without a traceback; give what stood on standard error."""
        done = self.ssh(*words, stdin=stdin)
        assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.stderr.startswith(" !     ") and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    def start(self, *words, options=()):
        """Ask the server something without waiting for the end."""
        return Started(["ssh", *self.options, *options, "--", "dokku@127.0.0.1", *words])

    def environment(self):
        return {**os.environ, "GIT_SSH_COMMAND": " ".join(["ssh", *self.options]), "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t",
                "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t", "GIT_CONFIG_GLOBAL": "/dev/null"}

    def push(self, work, app, ref="main", *options):
        return sh("git", "push", *options, f"dokku@127.0.0.1:{app}", *ref.split(), cwd=work, env=self.environment())

    def start_push(self, work, app, ref="main"):
        return Started(["git", "push", f"dokku@127.0.0.1:{app}", ref], cwd=work, env=self.environment())


class Started:
    """A client that runs beside the test, in a process group of its own, with its lines and when each came."""

    def __init__(self, argv, **options):
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        errors="replace", start_new_session=True, **options)
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def output(self):
        return "\n".join(line for _, line in self.lines)

    def when(self, text):
        """Wait for a line that holds the text; give when it came."""
        wait_until(lambda: any(text in line for _, line in self.lines) or self.process.poll() is not None)
        self.reader.join(0.5)
        times = [at for at, line in self.lines if text in line]
        assert times, f"{text!r} never came:\n{self.output}"
        return times[0]

    def type(self, text):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def end(self):
        """Wait for the end; give the exit code and everything printed."""
        code = self.process.wait(timeout=300)
        self.reader.join()
        return code, self.output


class App:
    """An app of one test: a work tree, and the server's app of that name."""

    def __init__(self, person, folder, source=HELLO):
        self.person, self.name = person, f"t-{uuid.uuid4().hex[:8]}"
        self.work = folder / self.name
        sh("cp", "-r", source, self.work)
        for dockerfile in self.work.glob("Dockerfile"):  # an app of a language has none
            dockerfile.write_text(dockerfile.read_text().replace("FROM debian:bookworm", f"FROM {base_image()}"))
        self.git("init", "-q", "-b", "main")
        self.host = f"{self.name}.{DOMAIN}"
        self.folder = STATE / "apps" / self.name

    def git(self, *words):
        done = sh("git", *words, cwd=self.work, env=self.person.environment())
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def write(self, **files):
        """Commit files; `a_json` is a.json, `dot_x` is .x, and None removes."""
        for name, text in files.items():
            path = self.work / name.replace("_json", ".json").replace("dot_", ".")
            path.unlink() if text is None else path.write_text(text.replace("FROM debian:bookworm", f"FROM {base_image()}"))
        self.git("add", "-A")
        self.git("commit", "-qm", "x", "--allow-empty")
        return self

    def push(self, **files):
        self.write(**files)
        done = self.person.push(self.work, self.name)
        return done.returncode, done.stdout + done.stderr

    def deploy(self, **files):
        code, output = self.push(**files)
        assert code == 0, output
        return output

    def rejected(self, **files):
        """Push what must be rejected; give what the pusher reads."""
        code, output = self.push(**files)
        assert code != 0 and "[remote rejected]" in output and "pre-receive hook declined" in output, output
        assert "Traceback" not in output, output
        return output

    def start_push(self, **files):
        self.write(**files)
        return self.person.start_push(self.work, self.name)

    def get(self, path="/", **headers):
        return ask(self.host, path, **headers)

    def containers(self, *options):
        """List the app's containers by name, running ones, or all with -a."""
        return sorted(docker("ps", *options, "--filter", f"label=com.dokku.app-name={self.name}", "--format", "{{.Names}}").split())

    def inspect(self, dyno="web.1"):
        return json.loads(docker("inspect", f"{self.name}.{dyno}"))[0]

    def settle(self, *dynos):
        """Wait until the containers are exactly these, and none else is left from earlier releases."""
        wanted = sorted(f"{self.name}.{dyno}" for dyno in dynos or ["web.1"])
        wait_until(lambda: self.containers("-a") == wanted, 120)

    def releases(self):
        """List the releases, newest first, each as its words."""
        return [line.split() for line in self.ok("releases").splitlines() if line.startswith("v")]

    def image(self):
        return self.inspect()["Image"]

    def ok(self, command, *words, **options):
        return self.person.ok(command, self.name, *words, **options)

    def refused(self, command, *words, **options):
        return self.person.refused(command, self.name, *words, **options)

    def lock_is_free(self):
        """Say whether the app's lock and the server's are free; that of cron's tick is not of an app's work."""
        locks = [self.folder / "lock", *(STATE / "locks").glob("*")]
        return all(sh("flock", "-n", lock, "true").returncode == 0 for lock in locks if lock.exists() and lock.name != "tick")

    def assert_untouched(self, answer=HELLO_TEXT, dynos=("web.1",)):
        """A failure left the old release serving, no lock held, and nothing half-made."""
        assert self.get() == (200, answer)
        wait_until(self.lock_is_free)
        assert not list(self.folder.glob("tree.*"))
        self.settle(*dynos)
        wait_until(lambda: not list((self.folder / "repo.git" / "objects").glob("tmp_objdir-*")))
        assert self.get() == (200, answer)


# --- fixtures ---


@pytest.fixture(scope="session")
def server():
    """The product is installed and reachable, and the base image is there. What is missing fails here."""
    assert sh("/usr/bin/dokku", "version").stdout.startswith("dokku version "), "run install.sh first"
    socket.create_connection(("127.0.0.1", 22), 5).close()
    if sh(*DOCKER, "image", "inspect", base_image()).returncode:
        done = sh("dokku", "images:build", "debian")
        assert done.returncode == 0, done.stderr
    old = (STATE / "VHOST").read_text().split() if (STATE / "VHOST").exists() else []
    assert sh("dokku", "domains:set-global", DOMAIN).returncode == 0
    assert sh("dokku", "git:set", "--global", "private-hosts", "localhost 127.0.0.1").returncode == 0  # where the tests' own servers are
    yield
    sh("dokku", "git:set", "--global", "private-hosts")
    sh("dokku", *(["domains:set-global", *old] if old else ["domains:clear-global"]))


@pytest.fixture(scope="session")
def admin(server, tmp_path_factory):
    person = Person(tmp_path_factory.mktemp("admin"))
    person.name = f"test-{uuid.uuid4().hex[:8]}"
    done = sh("dokku", "ssh-keys:add", person.name, "-", stdin=person.public)
    assert done.returncode == 0, done.stderr
    yield person
    sh("dokku", "ssh-keys:remove", person.name)


def destroyed(app):
    done = sh("dokku", "--force", "apps:destroy", app.name)
    assert done.returncode in (0, 20), done.stderr


@pytest.fixture
def app(admin, tmp_path):
    app = App(admin, tmp_path)
    yield app
    destroyed(app)


@pytest.fixture
def new_app(admin, tmp_path):
    """Make apps, of the kind whose behaviour is switched by config vars; not pushed yet."""
    made = []

    def make(source=SWITCH):
        made.append(App(admin, tmp_path, source))
        return made[-1]

    yield make
    for app in made:
        destroyed(app)


@pytest.fixture
def switch(new_app):
    """One app whose behaviour is switched by config vars; not pushed yet."""
    return new_app()


@pytest.fixture
def bare(new_app):
    """One app that was created and never pushed."""
    app = new_app()
    app.ok("apps:create")
    return app


@pytest.fixture
def no_revival():
    """Keep cron's tick from starting what a test has stopped behind the product's back."""
    assert sh("dokku", "tick").returncode == 0
    with (STATE / "locks" / "tick").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


PROCFILE = "web: exec perl /server.pl\nworker: echo worker-says-hello; exec sleep 1000\nclock: exec sleep 1000\n"


@pytest.fixture(scope="module")
def live(admin, tmp_path_factory):
    """An app with a web and a worker process, pushed once for all tests of a file: they leave it as they found it."""
    app = App(admin, tmp_path_factory.mktemp("live"), SWITCH)
    app.deploy(Procfile=PROCFILE)
    app.ok("ps:scale", "worker=1")
    yield app
    destroyed(app)


@pytest.fixture
def stranger(tmp_path):
    return Person(tmp_path / "stranger")


@pytest.fixture
def new_person(tmp_path):
    """Make people whose keys the server does not know; what it learns of them is forgotten afterwards."""
    made = []

    def make():
        made.append(Person(tmp_path / f"person{len(made)}"))
        return made[-1]

    yield make
    for person in made:
        sh("dokku", "ssh-keys:remove", person.fingerprint)


@pytest.fixture
def deployer(new_person, live):
    """Somebody whose key may push one app, `live`, and nothing else."""
    person = new_person()
    live.ok("deploy:allow", stdin=person.public)
    return person


def quoted(*words):
    """Quote words for ssh, which joins them by blanks."""
    return [shlex.quote(word) for word in words]


# --- other servers ---


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def git_server(tmp_path, admin):
    """A real git daemon on loopback; give its address and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    port, pid = free_port(), tmp_path / "daemon.pid"
    assert sh("git", "daemon", "--reuseaddr", "--export-all", "--detach", f"--pid-file={pid}", "--listen=127.0.0.1", f"--port={port}", f"--base-path={folder}").returncode == 0
    yield f"git://127.0.0.1:{port}", folder
    os.kill(int(pid.read_text()), signal.SIGTERM)


def make_repository(app, folder, **files):
    """Make a repository with these files, under a person's own name; give its commit."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "x"], ["rev-parse", "HEAD"]):
        done = sh("git", "-C", folder, *words, env=app.person.environment())
        assert done.returncode == 0, done.stderr
    return done.stdout.strip()
