"""Registries, with Debian's own docker-registry: log in, push what goes live, build on private images, log out; the password is nowhere else."""

import base64
import http.client
import json
import socket
import stat
import subprocess
import uuid
from pathlib import Path

import pytest
from conftest import HELLO_TEXT, STATE, base_image, docker, sh, wait_until

USER = "robot"


class Registry:
    """A registry of these tests, on loopback, that lets in one user."""

    def __init__(self, folder):
        self.password = f"pw-{uuid.uuid4().hex}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        (folder / "htpasswd").write_text(sh("htpasswd", "-niB", USER, stdin=self.password).stdout)
        (folder / "config.yml").write_text(json.dumps({
            "version": 0.1, "log": {"level": "error"}, "storage": {"filesystem": {"rootdirectory": str(folder / "images")}, "delete": {"enabled": True}},
            "http": {"addr": self.address}, "auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}}))
        self.process = subprocess.Popen(["docker-registry", "serve", str(folder / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.ask("/v2/")[0] == 200)

    def ask(self, path):
        """Ask the registry as its user; give the status and what it says."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request("GET", path, headers={"Authorization": "Basic " + base64.b64encode(f"{USER}:{self.password}".encode()).decode()})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        except OSError:
            return 0, {}
        finally:
            connection.close()

    def tags(self, name):
        return sorted(self.ask(f"/v2/{name}/tags/list")[1].get("tags") or [])


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    registry = Registry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.process.terminate()
    registry.process.wait()


@pytest.fixture
def private_image(registry, tmp_path):
    """An image that is in the registry only."""
    name = f"{registry.address}/base/private:1"
    docker("tag", base_image(), name)
    login = ["--config", str(tmp_path / "login")]
    assert sh("docker", *login, "login", "-u", USER, "--password-stdin", registry.address, stdin=registry.password).returncode == 0
    docker(*login, "push", "-q", name)
    docker("rmi", name)
    return name


@pytest.fixture
def login(registry, bare):
    """Log an app in, by a password on standard input."""
    bare.person.ok("registry:login", "--password-stdin", bare.name, registry.address, USER, stdin=registry.password + "\n")
    return bare


def on_record(app):
    """What the registry's file of an app says, and who may read it."""
    path = app.folder / "docker" / "config.json"
    return json.loads(path.read_text())["auths"], stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode), path.owner()


def test_a_release_that_went_live_is_pushed(registry, login):
    assert on_record(login) == ({registry.address: {"auth": base64.b64encode(f"{USER}:{registry.password}".encode()).decode()}}, 0o600, 0o700, "dokku")
    for key, value in (("server", registry.address), ("push-on-release", "true"), ("push-extra-tags", "latest,stable")):
        login.ok("registry:set", key, value)
    report = json.loads(login.ok("registry:report", "--format", "json"))
    assert (report["server"], report["computed-push-on-release"], report["global-server"]) == (registry.address, "true", "docker.io")
    name = f"dokku/{login.name}"
    assert f"-----> Pushing {registry.address}/{name}:v1" in login.deploy()
    assert registry.tags(name) == ["latest", "stable", "v1"]
    login.ok("registry:set", "image-repo", "team/site")
    login.ok("registry:set", "push-extra-tags")
    login.ok("config:set", "GREETING=two")
    assert registry.tags("team/site") == ["v2"] and login.get() == (200, "two")
    login.ok("ps:restart")
    login.ok("ps:scale", "web=2")
    assert registry.tags("team/site") == ["v2"]
    assert registry.address not in docker("images", "--format", "{{.Repository}}")


def test_a_template_names_the_images_of_every_app(registry, login):
    person = login.person
    try:
        person.ok("registry:set", "--global", "image-repo-template", "'apps/{{ .AppName }}'")
        person.ok("registry:set", "--global", "server", registry.address)
        login.ok("registry:set", "push-on-release", "true")
        login.deploy()
        assert registry.tags(f"apps/{login.name}") == ["v1"]
    finally:
        person.ok("registry:set", "--global", "image-repo-template")
        person.ok("registry:set", "--global", "server")


def test_a_push_that_fails_is_told_and_undoes_nothing(registry, bare):
    bare.ok("registry:set", "server", registry.address)
    bare.ok("registry:set", "push-on-release", "true")
    said = bare.deploy()
    assert "docker push failed" in said and "the release is live all the same" in said
    assert bare.get() == (200, HELLO_TEXT) and bare.releases()[0][-1] == "live"
    assert registry.tags(f"dokku/{bare.name}") == [] and registry.address not in docker("images", "--format", "{{.Repository}}")


@pytest.mark.parametrize("whose", ["app", "server"])
def test_a_build_stands_on_a_private_image_until_logout(registry, private_image, bare, whose):
    dockerfile = (bare.work / "Dockerfile").read_text().replace(f"FROM {base_image()}", f"FROM {private_image}")
    bare.rejected(Dockerfile=dockerfile)
    subject, file = ([bare.name], bare.folder / "docker" / "config.json") if whose == "app" else ([], STATE / ".docker" / "config.json")
    bare.person.ok("registry:login", *subject, registry.address, USER, registry.password)
    try:
        assert registry.address in json.loads(file.read_text())["auths"]
        bare.deploy(Dockerfile=dockerfile)
        assert bare.get() == (200, HELLO_TEXT)
    finally:
        assert f"Removing login credentials for {registry.address}" in bare.person.ok("registry:logout", *subject, registry.address)
    assert registry.address not in file.read_text()
    assert "failed" in bare.rejected(Dockerfile=dockerfile + "ENV AGAIN=1\n")


def test_an_app_with_a_login_of_its_own_has_those_of_the_server_too(registry, private_image, bare):
    bare.person.ok("registry:login", "--global", "--password-stdin", registry.address, USER, stdin=registry.password)
    try:
        (bare.folder / "docker").mkdir(mode=0o700)
        (bare.folder / "docker" / "config.json").write_text(json.dumps({"auths": {"elsewhere.example.com": {"auth": "eDp5"}}}))
        sh("chown", "-R", "dokku:dokku", bare.folder / "docker")
        bare.deploy(Dockerfile=(bare.work / "Dockerfile").read_text().replace(f"FROM {base_image()}", f"FROM {private_image}"))
        assert not list(bare.folder.glob("tree.*"))
    finally:
        bare.person.ok("registry:logout", "--global", registry.address)


def test_an_app_is_made_of_a_private_image(registry, private_image, login):
    login.ok("config:set", "--no-restart", "PORT=8080")
    login.ok("ps:set", "start-cmd", "'exec sleep 1000'")
    login.ok("checks:skip")
    login.ok("checks:set", "default-wait", "1")
    login.ok("git:from-image", private_image)
    assert login.ok("run", "cat", "/etc/debian_version").strip() and login.containers() == [f"{login.name}.web.1"]


def test_a_wrong_password_is_told_and_keeps_nothing(registry, bare):
    said = bare.person.ssh("registry:login", bare.name, registry.address, USER, "wrong-" + registry.password)
    assert said.returncode == 1 and "docker login failed" in said.stderr and "wrong-" not in said.stderr
    assert not (bare.folder / "docker" / "config.json").exists()


def test_the_password_is_nowhere_but_in_its_file(registry, login):
    login.ok("registry:set", "server", registry.address)
    login.ok("registry:set", "push-on-release", "true")
    pushing = login.start_push()
    secrets = [registry.password.encode(), base64.b64encode(f"{USER}:{registry.password}".encode())]
    seen = set()

    def look():
        """Look at the words of every process while the push runs."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.update(secret for secret in secrets if secret in path.read_bytes())
            except OSError:
                pass
        return pushing.process.poll() is not None

    wait_until(look, 300)
    assert pushing.end()[0] == 0, pushing.output
    assert seen == set() and not any(secret.decode() in pushing.output for secret in secrets)
    told = docker("inspect", f"{login.name}.web.1") + docker("history", "--no-trunc", f"dokku/{login.name}:v1") + docker("image", "inspect", f"dokku/{login.name}:v1")
    files = [path for folder in (STATE, Path("/var/log/nginx")) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(secret.decode() in told for secret in secrets)
    holding = {path for path in files if any(secret in path.read_bytes() for secret in secrets)}
    assert holding == {login.folder / "docker" / "config.json"}
    assert "registry:login" in (STATE / "events.log").read_text()


@pytest.mark.parametrize("words", [("server", "'-x'"), ("server", "'a b'"), ("server", "'host;id'"), ("image-repo", "Upper"), ("image-repo", "../x"), ("image-repo", "a:b"),
                                   ("image-repo-template", "'{{ .Other }}'"), ("push-extra-tags", "'a b'"), ("push-extra-tags", "-x"), ("colour", "red")])
def test_words_that_name_no_image_are_refused(bare, words):
    bare.refused("registry:set", *words, code=2)


def test_a_deploy_key_may_not_log_in(deployer, live, registry):
    for words in (("registry:login", live.name, registry.address, USER, "x"), ("registry:login", registry.address, USER, "x"),
                  ("registry:login", "--global", registry.address, USER, "x"), ("registry:logout", live.name, registry.address), ("registry:set", live.name, "server", "x")):
        deployer.refused(*words, code=77)
