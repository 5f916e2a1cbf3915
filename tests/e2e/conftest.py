"""The installed product, through its front door: real ssh, git, nginx and Docker on this machine."""

import http.client
import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest

HELLO = Path(__file__).parent.parent / "apps" / "hello"
STATE = Path("/var/lib/dokku")
DOCKER = ["/usr/bin/docker", "-H", "unix:///var/run/docker.sock"]


def sh(*argv, stdin=None, **options):
    return subprocess.run([str(word) for word in argv], input=stdin, capture_output=True, text=True, timeout=300, **options)


def wait_until(truth, seconds=60):
    deadline = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


class Person:
    """Somebody with an ssh key of their own."""

    def __init__(self, folder):
        self.key = folder / "key"
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        self.public = self.key.with_suffix(".pub").read_text()
        self.options = ["-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no",
                        "-o", f"UserKnownHostsFile={folder / 'hosts'}", "-o", "LogLevel=ERROR"]

    def ssh(self, *words, stdin=""):
        return sh("ssh", *self.options, "--", "dokku@127.0.0.1", *words, stdin=stdin)

    def ok(self, *words, stdin=""):
        done = self.ssh(*words, stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def environment(self):
        return {**os.environ, "GIT_SSH_COMMAND": " ".join(["ssh", *self.options]), "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t",
                "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}

    def push(self, work, app, ref="main", *options):
        return sh("git", "push", *options, f"dokku@127.0.0.1:{app}", ref, cwd=work, env=self.environment())


class App:
    """An app of one test: a work tree, and the server's app of that name."""

    def __init__(self, person, folder):
        self.person, self.work, self.name = person, folder / "work", f"t-{uuid.uuid4().hex[:8]}"
        sh("cp", "-r", HELLO, self.work)
        sh("git", "init", "-q", "-b", "main", self.work)

    def write(self, **files):
        for name, text in files.items():
            (self.work / name.replace("_json", ".json")).write_text(text)
        sh("git", "add", "-A", cwd=self.work)
        sh("git", "commit", "-qm", "x", "--allow-empty", cwd=self.work, env=self.person.environment())
        return self

    def push(self, **files):
        self.write(**files)
        done = self.person.push(self.work, self.name)
        return done.returncode, done.stdout + done.stderr

    def deploy(self, **files):
        code, output = self.push(**files)
        assert code == 0, output
        return output

    def get(self, path="/"):
        connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=30)
        connection.request("GET", path, headers={"Host": f"{self.name}.test.local"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode().strip()

    def containers(self, *options):
        return sh(*DOCKER, "ps", *options, "--filter", f"label=com.dokku.app-name={self.name}", "--format", "{{.Names}}").stdout.split()

    def ok(self, command, *words, **options):
        return self.person.ok(command, self.name, *words, **options)


@pytest.fixture(scope="session")
def admin(tmp_path_factory):
    person = Person(tmp_path_factory.mktemp("admin"))
    name = f"test-{uuid.uuid4().hex[:8]}"
    done = sh("dokku", "ssh-keys:add", name, "-", stdin=person.public)
    assert done.returncode == 0, done.stderr
    sh("dokku", "domains:set-global", "test.local")
    yield person
    sh("dokku", "ssh-keys:remove", name)


@pytest.fixture
def app(admin, tmp_path):
    app = App(admin, tmp_path)
    yield app
    sh("dokku", "--force", "apps:destroy", app.name)


@pytest.fixture
def stranger(tmp_path):
    folder = tmp_path / "stranger"
    folder.mkdir()
    return Person(folder)
