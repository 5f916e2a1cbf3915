"""Databases and their like as services: real servers, an app that keeps words in them, and what is left when something goes wrong."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
from conftest import APPS, DOCKER, STATE, App, destroyed, docker, free_port, sh, start_docker, stop_docker, wait_until

VARIABLES = {"postgres": "DATABASE_URL", "mariadb": "DATABASE_URL", "redis": "REDIS_URL", "memcached": "MEMCACHED_URL", "rabbitmq": "RABBITMQ_URL", "valkey": "REDIS_URL"}
TEMPLATES = Path(__file__).parents[2] / "templates"
RCLONE = Path(sys.executable).parent / "rclone"
KEEPING = [name for name in VARIABLES if name != "memcached"]


@pytest.fixture(scope="module")
def words(admin, tmp_path_factory):
    """An app that keeps words in the servers it is linked to; every test unlinks what it linked."""
    app = App(admin, tmp_path_factory.mktemp("words"), APPS / "databases")
    app.deploy()
    yield app
    destroyed(app)


class Service:
    """A service of one test."""

    def __init__(self, admin, engine, *flags):
        self.admin, self.engine, self.name = admin, engine, f"t-{uuid.uuid4().hex[:8]}"
        self.container, self.folder = f"dokku.{engine}.{self.name}", STATE / "services" / engine / self.name
        self.output = admin.ok(f"{engine}:create", *flags, self.name)

    def ok(self, verb, *rest, stdin="", flags=()):
        return self.admin.ok(f"{self.engine}:{verb}", *flags, self.name, *rest, stdin=stdin)

    def refused(self, verb, *rest, stdin="", flags=(), code=1):
        return self.admin.refused(f"{self.engine}:{verb}", *flags, self.name, *rest, stdin=stdin, code=code)

    def link(self, app, *flags):
        """Link the app; give the config var that it got."""
        before = set(json.loads(app.ok("config:export", "--format", "json")))
        self.ok("link", app.name, flags=flags)
        new, = set(json.loads(app.ok("config:export", "--format", "json"))) - before
        return new

    def dsn(self):
        return self.ok("info", flags=("--dsn",)).strip()

    def inspect(self):
        return json.loads(docker("inspect", self.container))[0]

    def export(self, path):
        """Write a dump to a file, as ssh gives it."""
        with path.open("wb") as file:
            done = subprocess.run(["ssh", *self.admin.options, "dokku@127.0.0.1", f"{self.engine}:export", self.name], stdout=file, stderr=subprocess.PIPE, timeout=300)
        assert done.returncode == 0, done.stderr
        return path

    def load(self, path, verb="import", code=0):
        """Give a file to the service on standard input."""
        with path.open("rb") as file:
            done = subprocess.run(["ssh", *self.admin.options, "dokku@127.0.0.1", f"{self.engine}:{verb}", self.name], stdin=file, capture_output=True, timeout=300)
        assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr
        return done.stderr.decode()

    def left(self):
        """List what there is of the service: its containers, its network, its folder."""
        containers = docker("ps", "-a", "--filter", f"label=com.dokku.service={self.container}", "--format", "{{.Names}}").split()
        return [*containers, *docker("network", "ls", "--filter", f"name=^{self.container}$", "--format", "{{.Name}}").split(), *([str(self.folder)] if self.folder.exists() else [])]

    def folders(self):
        """List the folders that hold data of it or did."""
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith(("data.", "tmp.", "backup")))

    def assert_whole(self):
        """One server on one data folder, and nothing that a command left behind."""
        wait_until(lambda: self.left() == [self.container, self.container, str(self.folder)])
        assert len(self.folders()) <= 1, self.folders()


@pytest.fixture(scope="module")
def valkey_image():
    """Valkey is in Debian from 13 on: where this host's release is older, its image is made of that release's packages, by the product's own scripts."""
    if docker("images", "-q", "dokku-images/valkey") or "Candidate: 8" in sh("apt-cache", "policy", "valkey-server").stdout:
        return
    refused = sh("dokku", "valkey:create", "t-none")
    assert refused.returncode == 1 and "valkey can't be made of this host's packages: E: Unable to locate package valkey-server" in refused.stderr, refused.stderr
    assert not (STATE / "services" / "valkey" / "t-none").exists()
    images = TEMPLATES / "images"
    script = (images / "debian" / "rootfs").read_text().replace(". /etc/os-release\n", ". /etc/os-release\nVERSION_CODENAME=trixie\n")
    with tempfile.TemporaryFile() as tree:
        subprocess.run(["sh", "-c", script], stdout=tree, check=True)
        tree.seek(0)
        subprocess.run([*DOCKER, "import", "-", "t-newer/trixie"], stdin=tree, stdout=subprocess.DEVNULL, check=True)
    done = sh(*DOCKER, "build", "-q", "--build-arg", "BASE=t-newer/trixie", "-t", "dokku-images/valkey:8.1", images / "valkey", env={**os.environ, "DOCKER_BUILDKIT": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def service(admin, words, request):
    """Make services; at the end they are unlinked and gone."""
    made = []

    def make(engine, *flags):
        request.getfixturevalue("valkey_image") if engine == "valkey" else None
        made.append(Service(admin, engine, *flags))
        return made[-1]

    yield make
    for one in made:
        for app in sh("dokku", f"{one.engine}:links", one.name).stdout.split():
            sh("dokku", f"{one.engine}:unlink", one.name, app)
        done = sh("dokku", f"{one.engine}:destroy", "--force", one.name)
        assert done.returncode == 0 or "does not exist" in done.stderr, done.stderr
        assert one.left() == []
        sh("rm", "-rf", STATE / "data" / "backups" / one.engine / one.name)


def write(app, variable, word):
    assert app.get(f"/write/{variable}/{word}") == (200, "written")


def read(app, variable):
    return app.get(f"/read/{variable}")


@pytest.mark.parametrize("engine", VARIABLES)
def test_an_app_keeps_words_through_its_link_and_cannot_without(service, words, engine):
    one = service(engine)
    assert f"{one.name}" in words.person.ok(f"{engine}:list").split() and one.ok("info", flags=("--status",)).strip() == "running"
    variable = one.link(words)
    assert variable == VARIABLES[engine]
    write(words, variable, "first")
    assert read(words, variable) == (200, "first")
    assert words.person.ok(f"{engine}:app-links", words.name).split() == [one.name] and one.ok("links").split() == [words.name]
    one.ok("linked", words.name)
    words.deploy(other="1")
    assert read(words, variable) == (200, "first"), "a redeploy changes nothing"
    if engine != "memcached":
        one.ok("restart")
        wait_until(lambda: read(words, variable) == (200, "first"))
    address = one.dsn()
    one.ok("unlink", words.name)
    assert variable not in json.loads(words.ok("config:export", "--format", "json"))
    one.refused("linked", words.name)
    words.ok("config:set", f"OTHER_URL={address}")
    assert read(words, "OTHER_URL")[0] == 500, "the address alone does not lead there: the network is another"
    words.ok("config:unset", "OTHER_URL")
    one.assert_whole()


def test_a_service_goes_while_containers_in_its_network_are_ending(service):
    """A container that is being removed can't be disconnected any more, and holds the network until its end."""
    one = service("memcached")
    image = docker("inspect", "--format", "{{.Image}}", one.container)
    members = [docker("run", "-d", "--network", one.container, "--entrypoint", "sleep", image, "1000") for _ in range(8)]
    ending = subprocess.Popen(["sh", "-c", 'for one in "$@"; do docker -H unix:///var/run/docker.sock rm -f "$one"; done', "-", *members], stdout=subprocess.DEVNULL)
    done = one.admin.ssh("memcached:destroy", "--force", one.name)
    assert (done.returncode, "is left" in done.stderr, one.left()) == (0, False, []), done.stderr
    ending.wait(60)


@pytest.mark.parametrize("engine", KEEPING)
def test_what_was_exported_is_there_again_after_destroy_and_import(service, words, engine, tmp_path):
    one = service(engine)
    variable = one.link(words)
    for word in ("first", "second"):
        write(words, variable, word)
    dump = one.export(tmp_path / "dump")
    one.ok("unlink", words.name)
    one.ok("destroy", flags=("--force",))
    assert one.left() == []
    two = service(engine)
    two.load(dump)
    variable = two.link(words)
    if engine == "rabbitmq":
        assert "words" in two.ok("connect"), "in a service of another name, too"
    assert read(words, variable) == (200, "first second" if engine != "rabbitmq" else ""), "of RabbitMQ, queues and users are kept, not messages"
    two.assert_whole()


POSTGRES_SCHEMA = """
CREATE TABLE makers (id SERIAL PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE things (id BIGSERIAL PRIMARY KEY, maker INT NOT NULL REFERENCES makers, body BYTEA, "odd name" TEXT, at TIMESTAMPTZ DEFAULT '2026-01-02 03:04:05+06');
INSERT INTO makers (name) VALUES ('Żółw ☂ 漢字 🐢'), (E'line\\nbreak\\ttab'), ('quote '' and " and \\');
INSERT INTO things (maker, body, "odd name") SELECT 1 + n % 3, decode(repeat(md5(n::text), 40), 'hex') || '\\x00ff0a0d'::bytea, chr(19968 + n) FROM generate_series(1, 500) n;
SELECT setval('things_id_seq', 9000);
CREATE VIEW counts AS SELECT maker, count(*) AS number FROM things GROUP BY maker;
CREATE INDEX ON things (maker);
"""
POSTGRES_FACTS = """
SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM things t; SELECT md5(string_agg(name, '|' ORDER BY id)) FROM makers;
SELECT * FROM counts ORDER BY 1; SELECT last_value FROM things_id_seq; SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1;
"""
MARIADB_SCHEMA = """
CREATE TABLE makers (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(99) NOT NULL UNIQUE) DEFAULT CHARSET utf8mb4;
CREATE TABLE things (id BIGINT AUTO_INCREMENT PRIMARY KEY, maker INT NOT NULL, body BLOB, `odd name` TEXT, FOREIGN KEY (maker) REFERENCES makers (id)) DEFAULT CHARSET utf8mb4;
SET NAMES utf8mb4;
INSERT INTO makers (name) VALUES ('Żółw ☂ 漢字 🐢'), ('line\\nbreak\\ttab'), ('quote '' and " and \\\\');
INSERT INTO things (maker, body, `odd name`) SELECT 1 + seq % 3, CONCAT(UNHEX(REPEAT(MD5(seq), 40)), UNHEX('00FF0A0D1A')), CONCAT('n', seq) FROM seq_1_to_500;
ALTER TABLE things AUTO_INCREMENT = 9000;
CREATE VIEW counts AS SELECT maker, COUNT(*) AS number FROM things GROUP BY maker;
"""
MARIADB_FACTS = """
SET SESSION group_concat_max_len = 10000000; SET NAMES utf8mb4;
SELECT MD5(GROUP_CONCAT(id, maker, HEX(body), `odd name` ORDER BY id)) FROM things; SELECT MD5(GROUP_CONCAT(name ORDER BY id)) FROM makers;
SELECT * FROM counts ORDER BY 1; SELECT AUTO_INCREMENT FROM information_schema.tables WHERE table_name = 'things';
"""
SCHEMAS = {"postgres": (POSTGRES_SCHEMA, POSTGRES_FACTS, "INSERT INTO things (maker) VALUES (77);"), "mariadb": (MARIADB_SCHEMA, MARIADB_FACTS, "INSERT INTO things (maker) VALUES (77);")}


@pytest.fixture
def full(service):
    """Make a database with blobs, unicode, sequences and foreign keys; give it, and a function that says what it holds."""
    def make(engine):
        schema, facts, _ = SCHEMAS[engine]
        one = service(engine)
        one.ok("connect", stdin=schema)
        return one, one.ok("connect", stdin=facts)
    return make


def facts_of(one):
    return one.ok("connect", stdin=SCHEMAS[one.engine][1])


@pytest.mark.parametrize("engine, verb", [("postgres", "connect"), ("mariadb", "console:admin")])
def test_what_would_not_come_along_is_not_lost(full, engine, verb, tmp_path):
    one, facts = full(engine)
    dump = one.export(tmp_path / "dump")
    one.ok(verb, stdin="CREATE DATABASE more;")
    said = one.load(dump, code=1)
    assert f"{one.name} also holds more, which would not come along" in said and facts_of(one) == facts
    assert "also holds more" in one.refused("upgrade")
    one.ok(verb, stdin="DROP DATABASE more;")
    one.load(dump)
    assert facts_of(one) == facts
    one.assert_whole()


def test_no_change_of_a_running_service_ends_it_in_vain(service):
    one = service("redis")
    one.ok("connect", stdin="SET kept word\n")
    begun = one.inspect()["State"]["StartedAt"]
    assert "With appendonly, the server would not read" in one.refused("upgrade", flags=("--config-options", "'--AppendOnly yes'"), code=2)
    assert "does not exist" in one.refused("set", "post-start-network", "no-such-network")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "listens on" in one.refused("expose", str(taken.getsockname()[1]))
    assert "already exists" in one.refused("clone", one.name)
    assert one.inspect()["State"]["StartedAt"] == begun and "word" in one.ok("connect", stdin="GET kept\n")


@pytest.mark.parametrize("engine", SCHEMAS)
def test_a_database_moves_whole(full, service, engine, tmp_path):
    one, facts = full(engine)
    assert "500" in one.ok("connect", stdin="SELECT count(*) FROM things;") and len(facts.splitlines()) > 5
    dump = one.export(tmp_path / "dump")
    one.ok("destroy", flags=("--force",))
    two = service(engine)
    two.load(dump)
    assert facts_of(two) == facts
    done = two.admin.ssh(f"{engine}:connect", two.name, stdin=SCHEMAS[engine][2])
    assert "foreign key" in (done.stdout + done.stderr).lower(), "keys still hold"
    facts = facts_of(two)
    clone = f"{two.name}-2"
    two.ok("clone", clone)
    try:
        assert two.admin.ok(f"{engine}:connect", clone, stdin=SCHEMAS[engine][1]) == facts
        assert two.dsn() != two.admin.ok(f"{engine}:info", "--dsn", clone).strip(), "it has a password of its own"
    finally:
        two.admin.ok(f"{engine}:destroy", "--force", clone)
    two.assert_whole()


@pytest.mark.parametrize("engine", KEEPING)
def test_what_is_no_whole_dump_is_refused_and_changes_nothing(service, words, engine, tmp_path):
    one = service(engine)
    variable = one.link(words)
    write(words, variable, "first")
    dump, bad = one.export(tmp_path / "dump"), tmp_path / "bad"
    content = dump.read_bytes()
    assert len(content) > 60
    wrongs = [b"", b"GIF89a" + os.urandom(2000), content[:len(content) // 2]]
    if engine == "postgres":
        wrongs.append(sh("docker", "exec", one.container, "pg_dump", "-U", "postgres", one.name.replace("-", "_")).stdout.rpartition("--\n-- PostgreSQL database dump complete")[0].encode())
        assert len(wrongs[-1]) > 500
    for wrong in wrongs:
        bad.write_bytes(wrong)
        error = one.load(bad, code=1)
        assert " !     " in error and ("as it was" in error or "nothing was changed" in error), error
        assert read(words, variable) == (200, "first")
    one.assert_whole()


def test_secrets_stand_on_no_command_line_and_in_no_environment_of_the_server(service, words):
    one = service("postgres")
    secret = one.dsn().partition("@")[0].rpartition(":")[2]
    assert len(secret) == 32
    assert secret not in json.dumps(one.inspect()["Config"]) and secret not in json.dumps(one.inspect()["HostConfig"])
    variable = one.link(words)
    assert secret not in sh("ps", "-eo", "args").stdout
    assert secret not in words.person.ok("events") and secret not in one.ok("logs")
    for path in one.folder.rglob("*PASSWORD"):
        assert path.stat().st_mode & 0o077 == 0
    assert one.folder.stat().st_mode & 0o077 == 0
    assert variable == "DATABASE_URL"


def test_a_password_is_read_from_standard_input_and_not_from_a_local_command_line(admin, service):
    name = f"t-{uuid.uuid4().hex[:8]}"
    refused = sh("dokku", "redis:create", "--password", "open-sesame", name)
    assert refused.returncode != 0 and "standard input" in refused.stderr
    try:
        admin.ok("redis:create", "--password", "-", name, stdin="open-sesame\n")
        assert ":open-sesame@" in admin.ok("redis:info", "--dsn", name)
    finally:
        admin.ok("redis:destroy", "--force", name)


def test_what_waits_for_an_import_acts_on_what_the_import_made(service, words, tmp_path):
    one = service("postgres")
    one.ok("connect", stdin="CREATE TABLE things (id INT); INSERT INTO things SELECT generate_series(1, 500);")
    dump = one.export(tmp_path / "dump")
    one.ok("connect", stdin="DELETE FROM things;")
    loading = subprocess.Popen(["sh", "-c", f"ssh {' '.join(one.admin.options)} dokku@127.0.0.1 postgres:import {one.name} < {dump}"], stderr=subprocess.DEVNULL)
    wait_until(lambda: sh("flock", "-n", one.folder / "lock", "true").returncode or loading.poll() is not None)
    one.ok("link", words.name)
    assert loading.wait() == 0
    sh("dokku", "tick")
    assert "500" in one.ok("connect", stdin="SELECT count(*) FROM things;")
    one.assert_whole()


def test_a_dump_that_takes_the_service_its_user_is_refused(service, tmp_path):
    one = service("mariadb")
    one.ok("connect", stdin="CREATE TABLE things (id INT); INSERT INTO things VALUES (7);")
    user = one.dsn().split("//")[1].split(":")[0]
    (tmp_path / "sql").write_text(f"-- MariaDB dump\nCREATE TABLE others (id INT);\nDROP USER `{user}`@`%`;\n-- Dump completed\n")
    assert "as it was" in one.load(tmp_path / "sql", code=1)
    assert "7" in one.ok("connect", stdin="SELECT * FROM things;")
    one.assert_whole()


def test_a_dump_without_a_table_of_this_database_is_refused(service, tmp_path):
    one = service("mariadb")
    one.ok("connect", stdin="CREATE TABLE things (id INT);")
    (tmp_path / "sql").write_text("-- MariaDB dump\nCREATE DATABASE other; USE other; CREATE TABLE t (id INT);\n-- Dump completed\n")
    assert "no table" in one.load(tmp_path / "sql", code=1)
    assert "things" in one.ok("connect", stdin="SHOW TABLES;")
    one.assert_whole()


def test_a_service_without_its_data_is_not_begun_anew(service):
    one = service("redis")
    record = json.loads((one.folder / "service.json").read_text())
    one.ok("stop")
    (one.folder / record["data"]).rename(one.folder / "elsewhere")
    assert "is missing" in one.refused("start")
    (one.folder / "elsewhere").rename(one.folder / record["data"])
    one.ok("start")
    one.assert_whole()


def test_names_of_links_do_not_collide_and_one_may_be_promoted(service, words):
    one, two = service("redis"), service("redis")
    assert one.link(words) == "REDIS_URL"
    second = two.link(words)
    assert second == "DOKKU_REDIS_AQUA_URL"
    assert "Already linked" in one.refused("link", words.name)
    two.ok("promote", words.name)
    config = json.loads(words.ok("config:export", "--format", "json"))
    assert config["REDIS_URL"] == two.dsn() and one.dsn() in config.values()
    assert "already" in two.refused("promote", words.name)
    one.ok("unlink", words.name)
    assert one.dsn() not in json.loads(words.ok("config:export", "--format", "json")).values()
    assert one.link(words, "--alias", "QUEUE", "--querystring", "db=3") == "QUEUE_URL"
    assert words.get("/read/QUEUE_URL")[0] == 200
    assert json.loads(words.ok("config:export", "--format", "json"))["QUEUE_URL"] == f"{one.dsn()}?db=3"
    one.ok("unlink", words.name)
    assert "is taken" in one.refused("link", words.name, flags=("--alias", "REDIS"))
    words.ok("config:set", "--no-restart", "REDIS_DATABASE_SCHEME=rediss")
    releases = len(words.releases())
    assert one.link(words, "--no-restart") not in ("REDIS_URL", "QUEUE_URL")
    assert len(words.releases()) == releases and any(value.startswith("rediss://") for value in json.loads(words.ok("config:export", "--format", "json")).values())
    words.ok("config:unset", "--no-restart", "REDIS_DATABASE_SCHEME")


def test_an_app_that_does_not_come_up_keeps_its_links(service, switch):
    switch.deploy(Dockerfile="FROM debian:bookworm\nCOPY server.pl /\nCMD [ -z \"$REDIS_URL\" ] && exec perl /server.pl\n")
    one = service("redis")
    one.refused("link", switch.name)
    assert "REDIS_URL" not in switch.ok("config:show") and one.ok("links").split() == []
    switch.assert_untouched()


def test_the_other_dialect_names_the_app_first(admin, words, tmp_path):
    name = f"t-{uuid.uuid4().hex[:8]}"
    admin.ok("postgresql:create", name)
    try:
        admin.ok("postgresql:link", words.name, name)
        assert words.get("/write/DATABASE_URL/word") == (200, "written")
        assert "word" in admin.ok("postgresql:console", words.name, name, stdin="SELECT * FROM words;")
        assert words.name in admin.ok("postgresql:info", words.name, name)
        sh("sh", "-c", f"ssh {' '.join(admin.options)} dokku@127.0.0.1 postgresql:dump {words.name} {name} > {tmp_path}/dump")
        admin.ok("postgresql:console", words.name, name, stdin="DELETE FROM words;")
        assert sh("sh", "-c", f"ssh {' '.join(admin.options)} dokku@127.0.0.1 postgresql:import {words.name} {name} < {tmp_path}/dump").returncode == 0
        assert words.get("/read/DATABASE_URL") == (200, "word")
        assert "1" in admin.ok("postgresql:console:admin", name, stdin="SELECT 1;")
        admin.ok("postgresql:unlink", words.name, name)
    finally:
        sh("dokku", "postgres:unlink", name, words.name)
        admin.ok("postgresql:delete", "--force", name)


def test_a_port_of_the_host_leads_to_it_only_when_asked_and_only_from_here(service):
    one, port = service("redis"), free_port()
    assert not any((one.inspect()["HostConfig"]["PortBindings"] or {}).values())
    one.ok("expose", port)
    assert one.inspect()["HostConfig"]["PortBindings"] == {"6379/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
    assert one.ok("info", flags=("--exposed-ports",)).strip() == f"127.0.0.1:{port}"
    assert sh("python3", "-c", f"import socket; s = socket.create_connection(('127.0.0.1', {port}), 5); s.send(b'PING\\r\\n'); print(s.recv(99))").stdout.startswith("b'-NOAUTH")
    one.ok("unexpose")
    assert not any((one.inspect()["HostConfig"]["PortBindings"] or {}).values())


def test_a_stopped_service_stays_so_and_a_dead_one_comes_back(service):
    one = service("redis")
    one.ok("exists")
    assert one.ok("enter", "redis-server", "--version").startswith("Redis server")
    one.ok("pause")
    one.ok("start")
    one.ok("stop")
    sh("dokku", "tick")
    assert not one.inspect()["State"]["Running"] and one.ok("info", flags=("--status",)).strip() in ("exited", "missing")
    one.ok("start")
    assert one.inspect()["State"]["Running"] and one.inspect()["Config"]["StopTimeout"] == 60, "a reboot gives it time, too"
    docker("rm", "-f", one.container)
    assert "no container" in one.refused("logs")
    done = sh("dokku", "doctor")
    assert f"redis {one.name}" in done.stdout and "does not run" in done.stdout
    sh("dokku", "tick")
    assert one.inspect()["State"]["Running"]
    one.assert_whole()


def test_data_outlives_docker_and_the_machine(service, words):
    one, two = service("postgres"), service("redis")
    names = {one.link(words): "here", two.link(words): "there"}
    for variable, word in names.items():
        write(words, variable, word)
    stop_docker()
    start_docker()
    for variable, word in names.items():
        wait_until(lambda: read(words, variable) == (200, word))
    docker("kill", one.container, two.container, f"{words.name}.web.1")
    stop_docker()
    start_docker()
    assert sh("dokku", "boot").returncode == 0
    for variable, word in names.items():
        wait_until(lambda: read(words, variable) == (200, word))


def tagged(one, version):
    """Give the service's image another name and version, as if it were newer; give the name."""
    docker("tag", one.inspect()["Config"]["Image"], f"t-newer/{one.engine}:{version}")
    return f"t-newer/{one.engine}"


@pytest.mark.parametrize("engine", SCHEMAS)
def test_an_upgrade_is_loaded_and_compared_beside_it_and_the_old_data_is_kept(full, engine):
    one, facts = full(engine)
    image = tagged(one, "next")
    try:
        output = one.ok("upgrade", flags=("--image", image, "--image-version", "next"))
        assert "2 tables" in output and "kept" in output
        assert facts_of(one) == facts and one.inspect()["Config"]["Image"] == f"{image}:next"
        assert len(one.folders()) == 2
        assert "--confirm" in one.refused("upgrade", flags=("--image", image, "--image-version", "next"))
        one.ok("upgrade", flags=("--confirm", "--restart-apps"))
        assert len(one.folders()) == 1 and facts_of(one) == facts
        one.refused("upgrade", flags=("--image", "t-newer/none", "--image-version", "1"))
        assert facts_of(one) == facts
        one.assert_whole()
    finally:
        one.ok("destroy", flags=("--force",))
        docker("rmi", f"{image}:next")


@pytest.mark.parametrize("engine", [*SCHEMAS])
def test_a_backup_is_verified_and_restored_and_a_damaged_one_is_told(full, engine):
    one, facts = full(engine)
    assert one.ok("info", flags=("--backup-verified",)).strip() == "never"
    one.ok("backup")
    first = one.ok("backup-list").split()[0]
    assert "2 tables" in one.ok("backup:verify")
    assert one.ok("info", flags=("--backup-verified",)).startswith(first)
    one.ok("connect", stdin="DELETE FROM things;")
    one.ok("restore", first)
    assert facts_of(one) == facts
    packs = sorted((STATE / "data" / "backups" / engine / one.name / "repository" / "data").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    packs[-1].chmod(0o600)
    content = bytearray(packs[-1].read_bytes())
    content[len(content) // 2] ^= 0xff
    packs[-1].write_bytes(content)
    one.refused("backup:verify")
    one.refused("restore")
    assert facts_of(one) == facts
    one.assert_whole()


def test_backups_go_by_a_schedule_are_few_and_outlive_the_service(service):
    one = service("redis")
    one.refused("backup-schedule", "nonsense", code=2)
    one.ok("backup-schedule", "'3 4 * * *'", flags=("--keep", "2"))
    assert f"3 4 * * * /usr/bin/dokku redis:backup {one.name}" in one.ok("backup-schedule-cat")
    assert f"3 4 * * * /usr/bin/dokku redis:backup {one.name}" in sh("crontab", "-l", "-u", "dokku").stdout
    for _ in range(3):
        one.ok("backup")
    assert f"no backup of {one.name} was verified this month (last was none)" in sh("dokku", "doctor").stdout
    one.ok("backup-verify")
    newest = one.ok("backup-list").splitlines()[-1].split()[0]
    said = [line for line in sh("dokku", "doctor").stdout.splitlines() if one.name in line]
    assert len(said) == 1 and said[0].startswith(f"redis {one.name}: last verified backup {newest} at 2"), said
    verified = STATE / "data" / "backups" / "redis" / one.name / "verified"
    os.utime(verified, (time.time() - 32 * 86400,) * 2)
    assert f"no backup of {one.name} was verified this month (last was {newest} at 2" in sh("dokku", "doctor").stdout
    assert len(one.ok("backup:list").splitlines()) == 2
    one.ok("backup-unschedule")
    assert one.name not in sh("crontab", "-l", "-u", "dokku").stdout
    output = one.ok("destroy", flags=("--force",))
    assert "backups are kept" in output


def test_backups_leave_the_server_encrypted_over_sftp(full, tmp_path):
    one, facts = full("postgres")
    place = tmp_path / "far"
    place.mkdir()
    shutil.chown(place, "dokku", "dokku")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055) if folder != Path("/") else None
    assert "backup-set-encryption" in one.refused("backup", str(place))
    one.ok("backup-set-encryption", stdin="a long passphrase\n")
    one.ok("backup", str(place))
    stored = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    assert len(stored) > 1000 and b"PGDMP" not in stored and b"things" not in stored
    assert "2 tables" in one.ok("backup:verify")
    server = SftpServer(tmp_path)
    try:
        one.ok("backup", f"sftp:127.0.0.1:{server.place}")
        assert "2 tables" in one.ok("backup:verify")
        assert (server.place / "config").exists()
    finally:
        server.stop()
    assert facts_of(one) == facts


def test_backups_go_to_a_bucket(full, tmp_path):
    """Against a server that speaks S3 and checks the signatures."""
    one, facts = full("postgres")
    port, stored = free_port(), tmp_path / "stored"
    (stored / "bucket").mkdir(parents=True)
    command = [RCLONE, "--config=/dev/null", "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "AKIA,the-secret", stored]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)))
    try:
        one.ok("backup-set-encryption", stdin="a long passphrase\n")
        one.ok("backup-auth", "AKIA", "-", "us-east-1", "v4", f"http://127.0.0.1:{port}", stdin="not-the-secret\n")
        assert "refused" not in one.refused("backup", "bucket/here")
        assert not [path for path in stored.rglob("*") if path.is_file()], "a wrong key stores nothing"
        one.ok("backup-auth", "AKIA", "-", "us-east-1", "v4", f"http://127.0.0.1:{port}", stdin="the-secret\n")
        one.ok("backup", "bucket/here")
        content = b"".join(path.read_bytes() for path in (stored / "bucket" / "here").rglob("*") if path.is_file())
        assert len(content) > 1000 and b"PGDMP" not in content
        assert len(one.ok("backup-list").splitlines()) == 1 and "2 tables" in one.ok("backup-verify")
        one.ok("connect", stdin="DELETE FROM things;")
        one.ok("restore")
        assert facts_of(one) == facts
    finally:
        server.terminate()
        server.wait()


def test_an_export_shows_how_much_has_come_and_spares_the_terminal(service, tmp_path):
    one = service("postgres")
    one.ok("connect", stdin="CREATE TABLE noise AS SELECT gen_random_uuid()::text || gen_random_uuid() AS word FROM generate_series(1, 200000);")
    terminal, ours = os.openpty()
    with (tmp_path / "dump").open("wb") as file:
        done = subprocess.run(["dokku", "postgres:export", one.name], stdin=subprocess.DEVNULL, stdout=file, stderr=ours, timeout=300)
    os.set_blocking(terminal, False)
    said = os.read(terminal, 2**16).decode()
    assert done.returncode == 0 and "\r" in said and said.rstrip().endswith("MB"), said
    assert int(said.split()[-2]) >= 1 and (tmp_path / "dump").stat().st_size > 2**20
    done = subprocess.run(["dokku", "postgres:export", one.name], stdin=subprocess.DEVNULL, stdout=ours, stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == 2 and b"> FILE" in done.stderr
    done = subprocess.run(["dokku", "--quiet", "postgres:import", one.name], stdin=(tmp_path / "dump").open("rb"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == 0 and b"MB" not in done.stderr
    os.close(terminal), os.close(ours)


class SftpServer:
    """An ssh server of the test's own on loopback, which the user dokku reaches by its ssh configuration and a key made for it."""

    def __init__(self, folder):
        self.place, self.port, self.home = folder / "sftp", free_port(), Path(os.path.expanduser("~dokku")) / ".ssh"
        self.place.mkdir()
        shutil.chown(self.place, "dokku", "dokku")
        for name in ("host", "client"):
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
        (folder / "authorized").write_text((folder / "client.pub").read_text())
        (folder / "sshd_config").write_text(f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
                                            f"StrictModes no\nUsePAM no\nPidFile none\nSubsystem sftp internal-sftp\n")
        key = self.home / "t-sftp"
        self.home.mkdir(exist_ok=True)
        key.write_text((folder / "client").read_text())
        key.chmod(0o600)
        self.config = self.home / "config"
        self.old = self.config.read_text() if self.config.exists() else None
        self.config.write_text(f"Host 127.0.0.1\n  Port {self.port}\n  IdentityFile {key}\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n" + (self.old or ""))
        for path in (key, self.config, self.home):
            shutil.chown(path, "dokku", "dokku")
        self.key = key
        self.process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.key.unlink()
        self.config.unlink() if self.old is None else self.config.write_text(self.old)


def test_destroy_asks_and_refuses_while_an_app_needs_it(service, words, admin):
    one = service("redis")
    one.link(words)
    assert f"is linked to {words.name}" in one.refused("destroy", flags=("--force",))
    one.ok("unlink", words.name)
    assert "nothing was removed" in one.refused("destroy", stdin="something else\n")
    assert one.left()
    one.ok("destroy", stdin=f"{one.name}\n")
    assert one.left() == [] and "does not exist" in one.refused("info")
    assert "already exists" in admin.refused("redis:create", service("redis").name)


def test_an_app_that_goes_says_which_services_stay(service, new_app, admin):
    app, one = new_app(), service("redis")
    app.deploy()
    one.link(app)
    output = admin.ssh("--force", "apps:destroy", app.name)
    assert output.returncode == 0 and one.name in output.stdout + output.stderr
    assert one.ok("links").split() == []
    one.assert_whole()


def test_a_key_for_one_service_opens_no_other(service, new_person, admin):
    one, two = service("redis"), service("redis")
    person = new_person()
    name = f"test-{uuid.uuid4().hex[:8]}"
    done = sh("dokku", "ssh-keys:add", "--role", "operator", "--apps", f"redis:{one.name}", name, "-", stdin=person.public)
    assert done.returncode == 0, done.stderr
    person.ok("redis:restart", one.name)
    strange = person.refused("redis:restart", two.name, code=77)
    assert strange == person.refused("redis:restart", "no-such-service", code=77)
    person.refused("redis:info", one.name, code=77)
    person.refused("redis:list", code=77)


def test_nothing_leaves_the_server_without_a_passphrase_and_what_opens_a_bucket_is_forgotten(service):
    one, port = service("redis"), free_port()
    secrets = STATE / "data" / "backups" / "redis" / one.name
    one.ok("backup-auth", "AKIA", "-", "eu-1", "v4", f"http://127.0.0.1:{port}", stdin="the-secret\n")
    assert "backup-set-encryption" in one.refused("backup", "my-bucket/folder")
    one.ok("backup-set-encryption", stdin="a long passphrase\n")
    assert "the-secret" in (secrets / "bucket").read_text() and all((secrets / name).stat().st_mode & 0o077 == 0 for name in ("bucket", "passphrase"))
    done = one.admin.ssh("redis:backup", one.name, "my-bucket/folder")
    assert done.returncode != 0 and "connection refused" in done.stderr and "the-secret" not in done.stderr, done.stderr
    assert "is a passphrase" in one.refused("backup-set-encryption", stdin="another one\n")
    assert one.ok("info", flags=("--backup-where",)).strip() == str(secrets), "a place that never worked is forgotten"
    one.ok("backup")
    one.ok("backup-deauth")
    one.ok("backup-unset-encryption")
    assert len(one.ok("backup-list").splitlines()) == 1
    assert not (secrets / "bucket").exists() and not (secrets / "passphrase").exists()
    one.assert_whole()


def test_engines_without_a_server_here_say_so(admin):
    for engine in ("mysql", "mongo"):
        assert "not run against the real server" in admin.ok(f"{engine}:help")


def test_words_that_would_break_a_server_are_refused(admin):
    name = f"t-{uuid.uuid4().hex[:8]}"
    for flags, stdin in ((("--config-options", "'--a \"b'"), ""), (("--config-options", "'--appendonly yes'"), ""), (("--custom-env", "'A B=1'"), "")):
        assert "Traceback" not in admin.refused("redis:create", *flags, name, stdin=stdin, code=2)
    assert "password" in admin.refused("redis:create", "--password", "-", name, stdin="p@ss w#rd!\n", code=2)
    assert "does not exist" in admin.refused("redis:info", name)


def test_a_developer_puts_no_service_into_a_network_of_others(service, new_person):
    one, person, name = service("memcached"), new_person(), f"test-{uuid.uuid4().hex[:8]}"
    done = sh("dokku", "ssh-keys:add", "--role", "developer", "--apps", "blog,redis:mine-*", name, "-", stdin=person.public)
    assert done.returncode == 0, done.stderr
    person.refused("redis:create", "--initial-network", one.container, "mine-x", code=77)
    person.refused("redis:create", "other", code=77)


def test_a_create_that_fails_leaves_nothing(admin):
    name = f"t-{uuid.uuid4().hex[:8]}"
    admin.refused("redis:create", "--config-options", "'--no-such-option 1'", name)
    assert not (STATE / "services" / "redis" / name).exists() and not docker("ps", "-aq", "--filter", f"label=com.dokku.service=dokku.redis.{name}")
    assert "does not exist" in admin.refused("redis:info", name)


def test_limits_and_variables_reach_the_container(service):
    one = service("redis", "--memory", "64", "--custom-env", "'TZ=Europe/Vienna;LEVEL=debug'")
    facts = one.inspect()
    assert facts["HostConfig"]["Memory"] == 64 * 2**20 and {"TZ=Europe/Vienna", "LEVEL=debug"} <= set(facts["Config"]["Env"])
