"""Kill the product at every point of an operation and see that it ends well: `tests/chaos/run [OPERATION...]`.

An operation is carried out once to count its points (see launcher.py), then again and again, each time killed at
another point. After each kill:

    - the app has answered, and answers, as before the operation or as after it, and in no other way;
    - `ps:restore` and `tick` end well, state and what is served agree, and nothing is left that does not belong;
    - the next push is live.

Every second point is pushed to before anything is restored, every other one is restored first.
"""

import contextlib
import fcntl
import http.client
import json
import os
import pwd
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from pathlib import Path

from conftest import DOMAIN, HELLO, ROOT, STATE, Person, base_image, docker, sh, wait_until

HERE = Path(__file__).parent
LIBRARY = Path("/usr/lib/dokku-py")
AUTHORIZED_KEYS = STATE / ".ssh" / "authorized_keys"
POLLS_COUNTED = 1  # how often the same chain of doors is killed when it changes nothing
KEPT = set("ENV LINKS DOMAINS SCALE CURRENT LAST CREATED PORT PROBATION FAILED lock pushes minder asking releases repo.git properties".split())  # of an app
FRONT_DOOR = """#!/bin/sh
# What sshd runs for the key: the front door, counted. The client chooses the point by a file, for it can't hand down an environment.
case $SSH_ORIGINAL_COMMAND in git-receive-pack*) role=door ;; *) role=command ;; esac
export CHAOS_LOG={log} CHAOS_HOOKS={hooks} PATH={folder}/bin:$PATH
exec /usr/bin/python3 -IS {launcher} $role --as {key}
"""

GIT = """#!/bin/sh
# git, which notes what it does when somebody wants to know.
[ ! -e {log}/trace ] || export GIT_TRACE2_EVENT={log}/trace
exec {git} "$@"
"""
SHIM = """#!/bin/sh
# Count, and end the whole group where it is to end; then be the real program.
printf x >> {log}/step.{name}
point="shim {name} $(($(/usr/bin/wc -c < {log}/step.{name})))"
printf '["%s", true, ""]\\n' "$point" >> {log}/points
chosen=
read -r chosen < {log}/point || true
if [ "$point" = "$chosen" ]; then
    echo "$point $*" > {log}/killed
    kill -9 0
fi
exec {real} "$@"
"""


def lives(pid):
    """Say whether a process runs; one that has ended and was not waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def processes_of_dokku():
    """List the processes that work for the product; those of containers, where the same number may be another user, are not among them."""
    account, found = pwd.getpwnam("dokku").pw_uid, []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == account and lives(folder.name) and os.readlink(folder / "ns" / "pid") == os.readlink("/proc/self/ns/pid"):
                found.append(folder.name)
    return found


class Bench:
    """The launcher laid out where the user dokku can read it, a key to ask with, and what stood here before."""

    def __init__(self):
        self.lock = open("/run/dokku-chaos.lock", "w")  # one at a time: each takes what another makes for strays
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.folder = Path(tempfile.mkdtemp(prefix="dokku-chaos-"))
        self.folder.chmod(0o755)
        self.log, self.key = self.folder / "log", f"chaos-{uuid.uuid4().hex[:8]}"
        self.log.mkdir()
        self.log.chmod(0o777)
        self.launcher = self.folder / "launcher.py"
        shutil.copy(HERE / "launcher.py", self.launcher)
        self.hooks = self.folder / "hooks"
        self.hooks.mkdir()
        self.script(self.hooks / "pre-receive", f"#!/bin/sh\nexec /usr/bin/python3 -IS {self.launcher} hook git-hook\n")
        words = {"folder": self.folder, "log": self.log, "hooks": self.hooks, "launcher": self.launcher, "key": self.key}
        self.script(self.folder / "front-door", FRONT_DOOR.format(**words))
        (self.folder / "bin").mkdir()
        self.script(self.folder / "bin" / "git", GIT.format(log=self.log, git=shutil.which("git")))
        self.person = self.admit()
        self.quiet()
        self.before = self.belongings()

    def admit(self):
        """Have sshd run our front door for a new key, which the product knows by another, so that there is a caller."""
        known, person = Person(self.folder / "known"), Person(self.folder / "person")
        done = sh("dokku", "ssh-keys:add", self.key, "-", stdin=known.public)
        assert done.returncode == 0, done.stderr
        with AUTHORIZED_KEYS.open("a") as file:  # lines that are not the product's are kept
            file.write(f'command="{self.folder / "front-door"}",restrict {person.public}')
        return person

    @staticmethod
    def script(path, text):
        path.write_text(text)
        path.chmod(0o755)

    def close(self):
        AUTHORIZED_KEYS.write_text("".join(line for line in AUTHORIZED_KEYS.read_text().splitlines(True) if str(self.folder) not in line))
        sh("dokku", "ssh-keys:remove", self.key)
        shutil.rmtree(self.folder)
        self.lock.close()

    def belongings(self):
        """List all that the product has on this machine, by kinds; files of locks and the crontab stay once they are there."""
        state = {str(path.relative_to(STATE)) for depth in ("*", "*/*", "nginx/*/*") for path in STATE.glob(depth) if path.parent.name != "locks"} - {"crontab"}
        return {"containers": set(docker("ps", "-a", "--format", "{{.Names}}").split()), "networks": set(docker("network", "ls", "-q").split()),
                "volumes": set(docker("volume", "ls", "-q").split()), "images": set(docker("images", "-q", "--no-trunc").split()),
                "files": state | {str(path) for path in Path("/tmp").glob("dokku-crash-*")}}

    def quiet(self):
        """Wait until nothing works for the product any more."""
        wait_until(lambda: not processes_of_dokku(), 120)

    def carry_out(self, argv, point="", **options):
        """Run a client to its end, and wait until all that it began has ended; give its code, its words and the points reached."""
        for name, text in (("points", ""), ("killed", ""), ("point", point)):
            (self.log / name).write_text(text)
            (self.log / name).chmod(0o666)
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, errors="replace",
                              timeout=300, check=False, **{"env": self.person.environment(), "stdin": subprocess.DEVNULL, **options})
        self.quiet()
        points = [json.loads(line) for line in (self.log / "points").read_text().splitlines()]
        return done.returncode, done.stdout + done.stderr, points

    def ask(self, *words, point=""):
        return self.carry_out(["ssh", *self.person.options, "--", "dokku@127.0.0.1", *words], point)

    def killed(self):
        return (self.log / "killed").read_text().strip()


class Watch:
    """Somebody who keeps asking the app through nginx and remembers every answer."""

    def __init__(self, host):
        self.host, self.seen, self.going = host, {}, threading.Event()
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self):
        while not self.going.wait(0.02):
            self.seen.setdefault(answer_of(self.host), time.strftime("%H:%M:%S"))

    def end(self):
        self.going.set()
        self.thread.join()
        return self.seen


def answer_of(host):
    """Ask the app through nginx; give what it says, or what went wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=30)
    try:
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        body = answer.read().decode().strip()
        return body if answer.status == 200 else f"status {answer.status}"
    except (OSError, http.client.HTTPException) as error:
        return f"error {error!r}"
    finally:
        connection.close()


class Subject:
    """A tiny app that says which image and which config it runs with: `m3 w2`."""

    def __init__(self, bench, scripts=False):
        self.bench, self.name = bench, f"c-{uuid.uuid4().hex[:8]}"
        self.host, self.folder, self.mark, self.turn = f"{self.name}.{DOMAIN}", STATE / "apps" / self.name, 0, 0
        self.work = bench.folder / self.name
        shutil.copytree(HELLO, self.work)
        (self.work / "Procfile").write_text('web: GREETING="$MARK $WORD" exec perl /server.pl\nrelease: exit 0\n')
        if scripts:  # every kind of container that a deploy may start
            (self.work / "app.json").write_text('{"scripts": {"dokku": {"predeploy": "touch /pre", "postdeploy": "true"}}}')
        self.git("init", "-q", "-b", "main")

    def git(self, *words):
        done = sh("git", *words, cwd=self.work, env=self.bench.person.environment())
        assert done.returncode == 0, done.stderr

    def commit(self):
        """Commit a tree whose image says another mark; its layers with files are those of before."""
        self.mark += 1
        (self.work / "Dockerfile").write_text(f"FROM {base_image()}\nCOPY server.pl /server.pl\nEXPOSE 8080\nENV MARK=m{self.mark}\n")
        self.git("add", "-A")
        self.git("commit", "-qm", f"m{self.mark}")

    def push(self, point=""):
        return self.bench.carry_out(["git", "push", f"dokku@127.0.0.1:{self.name}", "main"], point, cwd=self.work)

    def deploy(self):
        """Push a new commit; it must be live afterwards."""
        self.commit()
        code, output, _ = self.push()
        assert code == 0, f"the push failed:\n{output}"
        assert self.answer() == self.wanted(f"m{self.mark}"), f"{self.answer()!r} answers after a push of m{self.mark}:\n{output}"

    def ok(self, command, *words):
        code, output, _ = self.bench.ask(command, self.name, *words)
        assert code == 0, f"{command} failed:\n{output}"
        return output

    def answer(self):
        return answer_of(self.host)

    def read(self, name):
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / name).read_text()
        return ""

    def word(self):
        """Read the config var that the app says."""
        return "".join(json.loads(line.partition("=")[2]) for line in self.read("ENV").splitlines() if line.startswith("WORD="))

    def wanted(self, mark):
        return f"{mark} {self.word()}".strip()

    def count(self):
        """Read how many web processes there should be."""
        return int("".join(line.partition("=")[2] for line in self.read("SCALE").splitlines()) or 1)

    def releases(self):
        """List what became of each release."""
        rows = [line.split() for line in self.ok("releases").splitlines()]
        return {int(row[0][1:]): row[-1] for row in rows if row and row[0].startswith("v")}

    def destroy(self):
        sh("dokku", "--force", "apps:destroy", self.name)
        docker("image", "prune", "--force", "--filter", f"label=com.dokku.app-name={self.name}")
        shutil.rmtree(self.work)
        self.bench.before = self.bench.belongings()

    # --- what must hold after a crash was mended ---

    def strays(self):
        """List all that does not belong to what the state says."""
        have, before = self.bench.belongings(), self.bench.before
        dynos = [f"web.{number + 1}" for number in range(self.count())] if self.folder.exists() and self.read("CURRENT") else []
        mine = {"containers": {f"{self.name}.{dyno}" for dyno in dynos}, "networks": set(), "volumes": set(), "images": self.images(),
                "files": {f"apps/{self.name}", f"nginx/{self.name}.conf", "nginx/candidate/_server.conf"} if self.folder.exists() else set()}
        new = [(kind, thing) for kind in mine for thing in sorted(have[kind] - before[kind] - mine[kind])]
        found = [f"{kind}: {thing}" for kind, thing in new if not thing.startswith("addresses/")]
        found += [f"missing {kind}: {thing}" for kind in mine for thing in sorted((mine[kind] | before[kind]) - have[kind]) if kind != "files"]
        return found + self.stray_addresses(dynos) + self.stray_tags() + self.stray_files()

    def images(self):
        return set(docker("images", "-q", "--no-trunc", f"dokku/{self.name}").split())

    def stray_addresses(self, dynos):
        rows = [path.name.split("=") for path in (STATE / "addresses").iterdir()]
        wanted = [[self.name, self.read("CURRENT").strip(), dyno] for dyno in dynos]
        have = sorted(row[1:] for row in rows if f"addresses/{'='.join(row)}" not in self.bench.before["files"])
        return [] if have == wanted else [f"addresses: {have}, wanted {wanted}"]

    def stray_tags(self):
        """List names of images that no release which ran goes by, and releases whose image has no name."""
        if not self.folder.exists() or not self.read("CURRENT"):
            return [f"image names: {self.images()}"] if self.images() else []
        have = set(docker("images", f"dokku/{self.name}", "--format", "{{.Tag}}").split())
        released = {f"v{number}": status for number, status in self.releases().items()}
        alive = {number for number, status in released.items() if status in ("live", "replaced")}
        live = self.read("CURRENT").strip().partition(".")[0]
        newest = docker("images", "-q", f"dokku/{self.name}:latest"), docker("images", "-q", f"dokku/{self.name}:{live}")
        return [f"image names: {sorted(have - alive - {'latest'})}"] * bool(have - alive - {"latest"}) \
            + [f"latest is not {live}"] * (newest[0] != newest[1]) + [f"{live} is {released[live]}"] * (released[live] != "live") \
            + [f"{number} never ran, and is {released[number]}" for number in alive if int(number[1:]) > int(live[1:])]

    def stray_files(self):
        if not self.folder.exists():
            return []
        repository = self.folder / "repo.git"
        found = [path for path in self.folder.iterdir() if path.name not in KEPT]
        found += [*self.folder.rglob(".*"), *repository.rglob("*.lock"), *(repository / "objects").glob("tmp_*")]
        found += [path for path in (self.folder / "lock", *(STATE / "locks").iterdir()) if sh("flock", "-n", path, "true").returncode]
        return [f"file: {path.relative_to(self.folder.parent)}" for path in found]

    def restore(self):
        """Have the product mend what a crash left; then all must agree, and nothing be left."""
        self.ok("ps:restore")
        done = sh("dokku", "tick")
        assert done.returncode == 0, f"tick failed:\n{done.stdout}{done.stderr}"
        self.bench.quiet()
        left = self.strays()
        assert not left, "left after ps:restore and tick: " + "; ".join(left)
        assert self.answer().partition(" ")[2] == self.word(), f"{self.answer()!r} is served, and the config on record says {self.word()!r}"
        for domain in self.read("DOMAINS").split():
            assert answer_of(domain) == self.answer(), f"{domain} is on record, and nginx answers it with {answer_of(domain)!r}"


# --- the operations ---


class Operation:
    """Something a user does to an app that runs: how to begin, what to ask for, and what is served afterwards."""

    words: tuple = ()
    hurts: tuple = ()  # points that every sample holds, by a part of their names

    def prepare(self, subject):
        """Bring the app to where the operation can be carried out."""

    def finish(self, bench):
        """Leave the machine as it was."""

    def after(self, subject):
        """Say what is served once the operation is done."""
        return subject.answer()

    def facts(self, subject):
        """Give what the operation changes: by it one sees whether a kill came before or after."""
        return subject.answer(), subject.read("SCALE"), subject.read("DOMAINS")

    def act(self, subject, point=""):
        return subject.bench.ask(*(word.format(app=subject.name, turn=subject.turn) for word in self.words), point=point)

    def check(self, subject, restore_first):
        """See that the app is whole."""
        if restore_first:
            subject.restore()
        subject.deploy()
        subject.restore()


class Deploy(Operation):
    """A push of a new commit."""

    hurts = ("allot_address>write_text>os.rename",  # an address is chosen and not on record
             "reload_nginx>run>subprocess.Popen",  # the vhost is renamed, nginx has not been told
             "hook tag_image>_post:tag 1",  # the image that predeploy left has no name yet
             "hook write_current>write_text>os.rename",  # nginx serves the new release, the old one is on record
             "hook rename_container>_post:rename",  # recorded, and the old ones not yet retiring
             "hook write_lines>write_text>os.rename",  # about to put them on record
             "stop_container>_post:stop", "remove_container>_delete:containers",  # in the middle of retiring
             "hook end")  # recorded, and git has not moved its ref

    def prepare(self, subject):
        subject.commit()

    def after(self, subject):
        return subject.wanted(f"m{subject.mark}")

    def act(self, subject, point=""):
        return subject.push(point)


class Config(Operation):
    """A change of a config var."""

    words = ("config:set", "{app}", "WORD=w{turn}")

    def after(self, subject):
        return f"{subject.answer().partition(' ')[0]} w{subject.turn}"


class Rollback(Operation):
    """The release before, image and config; what is served then was seen when that one ran."""

    words = ("rollback", "{app}")

    def prepare(self, subject):
        self.earlier = subject.answer()
        subject.ok("config:set", f"WORD=x{subject.turn}")

    def after(self, subject):
        return self.earlier


class ScaleUp(Operation):
    """More processes of a type."""

    words = ("ps:scale", "{app}", "web=3")

    def prepare(self, subject):
        subject.ok("ps:scale", "web=1")


class ScaleDown(Operation):
    """Fewer processes of a type."""

    words = ("ps:scale", "{app}", "web=1")

    def prepare(self, subject):
        subject.ok("ps:scale", "web=3")


class Restart(Operation):
    """New processes of the same release."""

    words = ("ps:restart", "{app}")


class Domains(Operation):
    """Another set of domains; the one that is asked all along is in both."""

    words = ("domains:set", "{app}", "{app}." + DOMAIN, "{app}-{turn}." + DOMAIN)


class Destroy(Operation):
    """The removal of an app: afterwards it is whole, or it can be removed again and nothing is left."""

    words = ("--force", "apps:destroy", "{app}")

    def after(self, subject):
        return None

    def check(self, subject, restore_first):
        if restore_first and subject.folder.exists() and subject.answer() == subject.wanted(f"m{subject.mark}"):
            subject.deploy()
        if not restore_first:
            subject.bench.ask("ps:restore", subject.name)  # which may be impossible by now, and must do no harm
        code, output, _ = subject.bench.ask("--force", "apps:destroy", subject.name)
        assert code in (0, 20), output
        assert sh("dokku", "tick").returncode == 0
        subject.bench.quiet()
        assert not subject.folder.exists() and not subject.strays(), f"left of a destroyed app: {subject.strays()}"
        assert subject.answer() == "status 404"


class First(Operation):
    """The first push, which makes the app."""

    def after(self, subject):
        return None

    def act(self, subject, point=""):
        subject.commit()
        return subject.push(point)

    def check(self, subject, restore_first):
        if restore_first and subject.folder.exists():
            subject.ok("ps:restore")
        subject.deploy()
        subject.restore()


class Upgrade(Operation):
    """Another version of the product, by its install.sh; each program that this starts is a point, and each door of each `dokku`."""

    programs = ("basename cat chmod chown cp cut docker dokku env find grep hostname id install ln mkdir mktemp mv pgrep readlink rm service "
                "sha256sum sort ssh-keygen sync usermod visudo").split()

    def lay_out(self, bench):
        """Lay two versions out, and a program of each name that counts before it becomes the real one."""
        self.versions, self.shims = [bench.folder / "one", bench.folder / "two"], bench.folder / "shims"
        self.shims.mkdir()
        for folder in self.versions:
            folder.mkdir()
            for name in ("dokku_py.py", "install.sh", "templates"):
                sh("cp", "-r", ROOT / name, folder)
            with (folder / "dokku_py.py").open("a") as file:
                file.write(f"# {folder.name}\n")
        for name in self.programs:
            real = f"/usr/bin/python3 -IS {bench.launcher} setup" if name == "dokku" else shutil.which(name)
            if real:
                bench.script(self.shims / name, SHIM.format(log=bench.log, name=name, real=real))

    def facts(self, subject):
        return os.readlink(LIBRARY / "current")

    def prepare(self, subject):
        if not hasattr(self, "shims"):
            self.lay_out(subject.bench)

    def act(self, subject, point=""):
        for path in subject.bench.log.glob("step.*"):
            path.unlink()
        self.versions.reverse()
        environment = {**os.environ, "PATH": f"{self.shims}:{os.environ['PATH']}", "CHAOS_LOG": str(subject.bench.log)}
        return subject.bench.carry_out([self.versions[0] / "install.sh", "--key", subject.bench.folder / "known" / "key.pub"], point,
                                       env=environment, start_new_session=True)

    def check(self, subject, restore_first):
        assert subject.answer() == subject.wanted(f"m{subject.mark}")
        assert sh("/usr/bin/dokku", "version").returncode == 0, "a killed upgrade left no program"
        if restore_first:
            subject.restore()
        code, output, _ = self.act(subject)
        assert code == 0, output
        left = [*LIBRARY.glob("*.new"), *LIBRARY.glob("versions/.new*"), *Path("/usr/bin").glob("dokku.*"), *Path("/etc").glob(".dokku-py*")]
        assert not left and len(list(LIBRARY.glob("versions/*"))) <= 2, left
        subject.restore()

    def finish(self, bench):
        """Install the checkout again."""
        done = sh(ROOT / "install.sh", "--key", bench.folder / "known" / "key.pub")
        assert done.returncode == 0, done.stderr


class OnService(Operation):
    """Something done to a PostgreSQL service with rows in it, beside an app that runs: the rows are those of before or of after, and the next try completes."""

    engine = "postgres"

    def prepare(self, subject):
        if not hasattr(self, "service"):
            self.service = f"c-{uuid.uuid4().hex[:8]}"
            self.home, self.dump = STATE / "services" / self.engine / self.service, subject.bench.folder / "dump"
            self.ask(subject, "create")
            self.sql("CREATE TABLE words (word TEXT); INSERT INTO words SELECT 'kept ' || n FROM generate_series(1, 50) n;")
            self.keep(subject)
        self.sql(f"DELETE FROM words WHERE word LIKE 'turn%'; INSERT INTO words VALUES ('turn {subject.turn}');")
        self.ready(subject)

    @staticmethod
    def keep(subject):
        """Count what is there now as belonging here, but for the app's addresses."""
        subject.bench.before = subject.bench.belongings()
        subject.bench.before["files"] = {name for name in subject.bench.before["files"] if f"={subject.name}=" not in name}

    def ready(self, subject):
        """Bring the service to where the operation can be carried out."""

    def ask(self, subject, verb, *words):
        code, output, _ = subject.bench.ask(f"{self.engine}:{verb}", *words, self.service)
        assert code == 0, f"{verb} failed:\n{output}"
        return output

    def sql(self, text):
        done = sh("dokku", f"{self.engine}:connect", self.service, stdin=text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rows(self):
        """Read what the service holds: how many rows are kept always, and the words of this turn."""
        return self.sql("\\pset format unaligned\n\\t\nSELECT count(*) FROM words WHERE word LIKE 'kept%'; SELECT word FROM words WHERE word LIKE 'turn%' ORDER BY 1;").split("\n", 2)[-1]

    def facts(self, subject):
        return subject.read("LINKS"), (self.home / "service.json").read_text()

    def expected(self, subject):
        """Say which words there may be after a kill, and then which there are once all is done."""
        return [f"turn {subject.turn}"], [f"turn {subject.turn}"]

    def again(self, subject):
        """Carry the operation out once more; it must succeed."""
        code, output, _ = self.act(subject)
        assert code == 0, output

    def check(self, subject, restore_first):
        may, must = self.expected(subject)
        if restore_first:
            assert sh("dokku", "tick").returncode == 0
            wait_until(lambda: sh("dokku", f"{self.engine}:connect", self.service, stdin="SELECT 1;").returncode == 0)
            assert self.rows().splitlines()[0] == "50" and self.rows().splitlines()[1:] in [[word] for word in may], self.rows()
        self.again(subject)
        assert self.rows().splitlines() == ["50", *must], self.rows()
        assert sh("dokku", "tick").returncode == 0
        subject.bench.quiet()
        record = json.loads((self.home / "service.json").read_text())
        folders = {path.name for path in self.home.iterdir() if path.name.startswith(("data", "tmp", "backup"))}
        assert folders == {record["data"], *record["kept"].split()[:1]}, folders
        names = docker("ps", "-a", "--filter", f"label=com.dokku.service=dokku.{self.engine}.{self.service}", "--format", "{{.Names}}").split()
        assert names == [f"dokku.{self.engine}.{self.service}"], names
        subject.restore()

    def finish(self, bench):
        if hasattr(self, "service"):
            done = sh("dokku", f"{self.engine}:destroy", "--force", self.service)
            assert done.returncode == 0, done.stderr
            sh("rm", "-rf", STATE / "data" / "backups" / self.engine / self.service)


class Link(OnService):
    """A link between an app and a service."""

    def ready(self, subject):
        subject.bench.ask(f"{self.engine}:unlink", self.service, subject.name)

    def act(self, subject, point=""):
        return subject.bench.ask(f"{self.engine}:link", self.service, subject.name, point=point)

    def again(self, subject):
        code, output, _ = self.act(subject)
        assert code == 0 or "Already linked as DATABASE_URL" in output, output
        assert "DATABASE_URL" in subject.ok("config:show") and subject.read("LINKS") == f"{self.engine} {self.service}\n"

    def finish(self, bench):
        for app in sh("dokku", f"{self.engine}:links", self.service).stdout.split():
            sh("dokku", f"{self.engine}:unlink", self.service, app)
        super().finish(bench)


class Import(OnService):
    """A dump that takes the place of what a service holds."""

    def ready(self, subject):
        with self.dump.open("w") as file:
            assert subprocess.run(["dokku", f"{self.engine}:export", self.service], stdout=file, check=False).returncode == 0
        self.sql("UPDATE words SET word = 'turn over' WHERE word LIKE 'turn%';")

    def act(self, subject, point=""):
        words = ["ssh", *subject.bench.person.options, "--", "dokku@127.0.0.1", f"{self.engine}:import", self.service]
        with self.dump.open() as file:
            return subject.bench.carry_out(words, point, stdin=file)

    def expected(self, subject):
        return ["turn over", f"turn {subject.turn}"], [f"turn {subject.turn}"]


class UpgradeService(OnService):
    """Another image for a service, whose data is loaded beside it."""

    def ready(self, subject):
        self.ask(subject, "upgrade", "--confirm")
        image = json.loads((self.home / "service.json").read_text())["image"]
        docker("tag", image, f"c-newer/{self.engine}:{subject.turn}")
        self.keep(subject)

    def act(self, subject, point=""):
        return subject.bench.ask(f"{self.engine}:upgrade", "--image", f"c-newer/{self.engine}", "--image-version", str(subject.turn), self.service, point=point)

    def again(self, subject):
        code, output, _ = self.act(subject)
        assert code == 0 or "still keeps" in output, output

    def finish(self, bench):
        super().finish(bench)
        docker("rmi", *docker("images", f"c-newer/{self.engine}", "--format", "{{.Repository}}:{{.Tag}}").split())


class Backup(OnService):
    """A backup of a service."""

    def act(self, subject, point=""):
        return subject.bench.ask(f"{self.engine}:backup", self.service, point=point)

    def facts(self, subject):
        return self.ask(subject, "backup-list")

    def again(self, subject):
        super().again(subject)
        assert "1 tables" in self.ask(subject, "backup-verify")


class Restore(OnService):
    """A backup that takes the place of what a service holds."""

    def ready(self, subject):
        self.ask(subject, "backup")
        self.sql("UPDATE words SET word = 'turn over' WHERE word LIKE 'turn%';")

    def act(self, subject, point=""):
        return subject.bench.ask(f"{self.engine}:restore", self.service, point=point)

    def expected(self, subject):
        return ["turn over", f"turn {subject.turn}"], [f"turn {subject.turn}"]


OPERATIONS = {"deploy": Deploy, "config:set": Config, "rollback": Rollback, "scale-up": ScaleUp, "scale-down": ScaleDown, "ps:restart": Restart,
              "domains:set": Domains, "apps:destroy": Destroy, "first-push": First, "upgrade": Upgrade}
ON_SERVICES = {"link": Link, "import": Import, "upgrade-service": UpgradeService, "backup": Backup, "restore": Restore}
OPERATIONS |= ON_SERVICES


class Run:
    """An operation, carried out on one app after the other until all chosen points were tried."""

    def __init__(self, bench, name):
        self.bench, self.name, self.operation, self.subject = bench, name, OPERATIONS[name](), None
        self.points = []

    def fresh(self):
        """Have an app that runs; a first push has none yet, and a destroyed app is not used again."""
        if self.subject and self.name not in ("apps:destroy", "first-push"):
            return self.subject
        self.close()
        self.subject = Subject(self.bench, scripts=self.name == "deploy")
        if self.name != "first-push":
            self.subject.deploy()
        return self.subject

    def close(self):
        if self.subject:
            self.subject.destroy()
        self.subject = None

    def end(self):
        self.close()
        self.operation.finish(self.bench)

    def begin(self, subject):
        """Bring the app to where the operation can be carried out, and have it ask for something new."""
        subject.turn += 1
        self.operation.prepare(subject)

    def all_points(self):
        """Carry the operation out once, unharmed, and list its points; of polls that change nothing only the first few."""
        subject = self.fresh()
        if self.name == "deploy":
            [subject.deploy() for _ in range(6)]  # so that old images are let go, too
        self.begin(subject)
        code, output, points = self.operation.act(subject)
        assert code == 0, output
        return [(point, effect) for point, effect, _ in points if effect or int(point.split()[2]) <= POLLS_COUNTED]

    def choose(self, count, seed):
        """Choose so many points: where it hurts, then each role in its turn, half of them before an effect, no chain twice while there are others."""
        chance, left = random.Random(f"{seed} {self.name}"), list(self.points)
        renamed = [text for text in self.operation.hurts if not any(text in point for point, _ in left)]
        assert not renamed, f"no such points any more: {renamed}"
        chosen = [next(row for row in reversed(left) if text in row[0]) for text in self.operation.hurts]
        roles = sorted({point.split()[0] for point, _ in left})
        while left and len(chosen) < count:
            role, effects = roles[len(chosen) % len(roles)], chance.random() < 0.5
            own = [row for row in left if row[0].split()[0] == role] or left
            own = [row for row in own if row[1]] or own if effects else own
            chain = chance.choice(sorted({row[0].rpartition(" ")[0] for row in own}))
            chosen.append(chance.choice([row for row in own if row[0].rpartition(" ")[0] == chain]))
            left = [row for row in left if not row[0].startswith(chain + " ")] or [row for row in self.points if row not in chosen]
        return [point for point, _ in chosen]

    def attempt(self, point, restore_first):
        """Kill the operation at a point, and see that all ends well; give what came of the kill: old, new or unreached."""
        subject = self.fresh()
        self.begin(subject)
        old, new, before = subject.answer(), self.operation.after(subject), self.operation.facts(subject)
        watch = Watch(subject.host) if new is not None else None
        try:
            _, output, _ = self.operation.act(subject, point)
            killed, answer, changed = self.bench.killed(), subject.answer(), self.operation.facts(subject) != before
            if watch:
                assert answer in (old, new), f"{answer!r} is served; before the operation it was {old!r}, after it {new!r}\n{output}"
            self.operation.check(subject, restore_first)
        finally:
            seen = watch.end() if watch else {}
        if watch:
            odd = {word: at for word, at in seen.items() if word not in (old, new, subject.answer())}
            assert not odd, f"answered {odd}; before the operation {old!r}, after it {new!r}"
        return "unreached" if not killed else "new" if changed else "old"


def try_points(bench, name, count=None, seed="1", say=print):
    """Try the points of an operation, all or so many; give the outcome of each, failures with their reason."""
    run, outcomes = Run(bench, name), {}
    try:
        run.points = run.all_points()
        points = run.choose(count, seed) if count else [point for point, _ in run.points if re.search(os.environ.get("CHAOS_ONLY", ""), point)]
        for number, point in enumerate(points):
            began = time.monotonic()
            try:
                outcomes[point] = run.attempt(point, number % 2 == 0)
            except (AssertionError, OSError, subprocess.SubprocessError):
                outcomes[point] = f"FAILED {traceback.format_exc()}"
                run.close()
            say(f"{number + 1}/{len(points)} {name}: {point}: {outcomes[point]} ({time.monotonic() - began:.1f} s)")
    finally:
        run.end()
    return outcomes


def main(names):
    """Try every point of the operations named, or of all; print the table for docs/reliability.md."""
    bench = Bench()
    rows = []
    count = int(os.environ.get("CHAOS_COUNT", "0")) or None
    try:
        for name in names or OPERATIONS:
            began = time.monotonic()
            outcomes = try_points(bench, name, count, os.environ.get("CHAOS_SEED", "1"), say=lambda text: print(text, flush=True))
            kinds = [outcome.split()[0] for outcome in outcomes.values()]
            counts = [kinds.count(kind) for kind in ("old", "new", "unreached", "FAILED")]
            rows.append([name, len(kinds), *counts, f"{time.monotonic() - began:.0f} s"])
    finally:
        bench.close()
        print("| operation | points | old | new | not reached | failed | time |\n|---|--:|--:|--:|--:|--:|--:|")
        for row in rows:
            print("| " + " | ".join(str(cell) for cell in row) + " |")
    return 1 if any(row[5] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
