#!/usr/bin/env python3
"""Measure the installed product against the cost of its parts, in one run on one machine: only the ratios mean something.

    sudo tests/bench/run [rounds]           latency and deploys
    sudo tests/bench/run [rounds] apps      beside 10, 100, 500 and 1,000 apps
    sudo tests/bench/run [rounds] restore   10, 50 and 200 containers are started again (half an hour)
    sudo tests/bench/run [rounds] large     all of these
    sudo tests/bench/run [rounds] builds    apps without a Dockerfile, against Dockerfiles written by hand (some minutes)

Each row: what was done, the product's median, the median of the floor (the same work done by hand), their ratio,
and the ratio aimed at. The exit code is 0 whatever comes out: machines are noisy, people judge.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "e2e"), str(Path(__file__).parent.parent.parent)]
sys.path += map(str, Path("/usr/lib/dokku-py/venv/lib").glob("python3*/site-packages"))
import dokku_py  # noqa: E402
from conftest import APPS, DOCKER, DOMAIN, PROCFILE, STATE, SWITCH, App, Person, ask, base_image, docker, sh  # noqa: E402

ROUNDS = int(next((word for word in sys.argv[1:] if word.isdigit()), 7))


def settled():
    """Wait until nothing of a change is still retiring."""
    while any(path.stat().st_size for path in STATE.glob("apps/*/RETIRING")):
        time.sleep(0.1)


def median(work, rounds=ROUNDS):
    """Time some work so many times, each after the machine came to rest; give the median in seconds."""
    times = []
    for _ in range(rounds):
        settled()
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def ran(*argv, **options):
    """Run a program that must succeed."""
    done = sh(*argv, **options)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def row(what, product, floor, goal):
    """Print one line of the table."""
    print(f"| {what} | {product * 1000:.0f} | {floor * 1000:.0f} | {product / floor:.2f} | {goal} |", flush=True)


def answers(host, text=None):
    """Wait until nginx gives that app's answer."""
    while True:
        try:
            status, body = ask(host)
            if status == 200 and (text is None or body == text):
                return
        except OSError:
            pass
        time.sleep(0.005)


def cli_rows(app):
    """Latency of commands that change nothing."""
    floor = median(lambda: subprocess.run(["/usr/bin/python3", "-c", "pass"], check=True), 30)
    for words in (["version"], ["apps:list"], ["config", app.name], ["help"], ["ps:report", app.name]):
        row(f"`dokku {words[0]}` / `python3 -c pass`", median(lambda words=words: ran("dokku", *words), 30), floor, 4)
    ssh = ["ssh", *app.person.options, "dokku@127.0.0.1"]
    ran("dokku", "ssh-keys:add", "--role", "operator", "--apps", "nothing-here", "bench-stranger", "-", stdin=Person(app.work.parent / "stranger").public)
    refused = [median(lambda name=name: sh("dokku", "--as", "bench-stranger", env={**os.environ, "SSH_ORIGINAL_COMMAND": f"ps:restart {name}"}), 60) for name in (app.name, "no-such-app")]
    ran("dokku", "ssh-keys:remove", "bench-stranger")
    row("a refusal for somebody else's app / for one that does not exist", *refused, 1)
    row("`ssh dokku@host version` / the same command without ssh", median(lambda: ran(*ssh, "version")), median(lambda: ran("dokku", "version")), "-")


class Floor:
    """The parts of a deploy, done by hand."""

    def __init__(self, app, folder):
        self.app, self.folder = app, folder
        self.image = docker("inspect", "--format", "{{.Image}}", f"{app.name}.web.1")
        self.port = 2022
        ran("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host")
        (folder / "keys").write_text(app.person.public)
        self.sshd = subprocess.Popen(["/usr/sbin/sshd", "-D", "-p", str(self.port), "-h", folder / "host", "-o", f"AuthorizedKeysFile={folder / 'keys'}",
                                      "-o", "StrictModes=no", "-o", "PidFile=none", "-o", "PermitRootLogin=yes"], stderr=subprocess.DEVNULL)
        ran("git", "init", "-q", "--bare", folder / "floor.git")
        self.git = {**app.person.environment()}
        time.sleep(0.5)

    def push(self):
        self.app.git("commit", "-q", "--allow-empty", "-m", "x")
        ran("git", "push", "-q", f"ssh://root@127.0.0.1:{self.port}{self.folder}/floor.git", "main", cwd=self.app.work, env=self.git)

    def build(self):
        ran(*DOCKER, "build", "-q", self.app.work, env={**os.environ, "DOCKER_BUILDKIT": "1"})

    def start(self):
        """Create and start through the API on the same network, wait until it listens, test and reload nginx.

        A reload counts until the old workers no longer accept: only then is the new configuration the one served.
        Removing the container is not counted.
        """
        client = self.client
        began = time.perf_counter()
        identity = client.create_container(self.image, environment={"PORT": "8080"}, host_config=client.create_host_config(init=True, network_mode="dokku"))["Id"]
        client.start(identity)
        address = client.inspect_container(identity)["NetworkSettings"]["Networks"]["dokku"]["IPAddress"]
        while True:
            try:
                import socket
                socket.create_connection((address, 8080), 1).close()
                break
            except OSError:
                time.sleep(0.005)
        reloaded()
        spent = time.perf_counter() - began
        client.remove_container(identity, force=True)
        return spent

    @property
    def client(self):
        import docker as sdk
        self.kept = getattr(self, "kept", None) or sdk.APIClient(base_url="unix:///var/run/docker.sock", version="auto")
        return self.kept

    def start_median(self):
        return statistics.median(self.start() for _ in range(ROUNDS))

    def end(self):
        self.sshd.terminate()


def deploy_rows(app, folder):
    """A push, a config change and a rollback against their parts."""
    floor = Floor(app, folder)
    try:
        start = floor.start_median()
        parts = median(floor.push) + median(floor.build) + start
    finally:
        floor.end()
    row("push of an empty commit -> live / its parts", median(lambda: (app.push(), answers(app.host))), parts, 1.5)
    count = iter(range(1000))

    def change():
        value = f"n{next(count)}"
        ran("dokku", "config:set", app.name, f"GREETING={value}")
        answers(app.host, value)

    row("`config:set` -> live / create, start, ready, reload", median(change), start, 1.5)
    row("`rollback` -> live / create, start, ready, reload", median(lambda: ran("dokku", "rollback", app.name)), start, 1.5)
    row("`ps:restart` -> live / create, start, ready, reload", median(lambda: ran("dokku", "ps:restart", app.name)), start, 1.5)


def restore_rows(app):
    """Bring many stopped processes up again, against the engine doing so by itself."""
    for count in (10, 50, 200):
        ran("dokku", "ps:scale", app.name, f"worker={count // 2}", f"clock={count - count // 2}", timeout=1800)
        settled()
        names = [name for name in app.containers("-a") if ".web." not in name]
        stop = lambda names=names: ran(*DOCKER, "kill", *names, timeout=1800)  # noqa: E731

        def timed(*words, stop=stop):
            stop()
            began = time.perf_counter()
            ran(*words, timeout=1800)
            return time.perf_counter() - began

        floor = statistics.median(timed(*DOCKER, "start", *names) for _ in range(3))
        row(f"`ps:restore` of {count} containers / `docker start` of them", statistics.median(timed("dokku", "ps:restore", app.name) for _ in range(3)), floor, "-")
    ran("dokku", "ps:scale", app.name, "worker=0", "clock=0", timeout=1800)


def many_apps_rows(app):
    """Work on one app beside many others, against testing and reloading nginx with them."""
    apps, vhosts, text = STATE / "apps", STATE / "nginx", (STATE / "nginx" / f"{app.name}.conf").read_text()
    made = []
    try:
        for count in (10, 100, 500, 1000):
            while len(made) < count:
                name = f"bench-{len(made)}"
                (apps / name).mkdir()
                (apps / name / "CREATED").write_text("1\n")
                (vhosts / f"{name}.conf").write_text(text.replace(app.name, name))
                made.append(name)
            ran("chown", "-R", "dokku:dokku", *(apps / name for name in made), *(vhosts / f"{name}.conf" for name in made))
            sizes = iter(range(2, 1000))
            row(f"`apps:list` of {count} / `python3 -c pass`", median(lambda: ran("dokku", "apps:list")), median(lambda: ran("/usr/bin/python3", "-c", "pass")), "-")
            row(f"`nginx:set` beside {count} apps / nginx's own test and reload", median(lambda: ran("dokku", "nginx:set", app.name, "client-max-body-size", f"{next(sizes)}m")),
                median(reloaded), "-")
    finally:
        for name in made:
            ran("rm", "-r", apps / name, vhosts / f"{name}.conf")
        ran("nginx", "-s", "reload")


BY_HAND = {  # the app, a line of it that changes with each push, an equivalent Dockerfile
    "flask": ("app.py", "{parts['user']}", """
        FROM {image} AS dependencies
        WORKDIR /app
        RUN python -m venv /venv
        COPY requirements.txt .
        RUN --mount=type=secret,id=ca --mount=type=cache,id=bench-pip,target=/root/.cache/pip PIP_CERT=/run/secrets/ca /venv/bin/pip install -r requirements.txt
        FROM {image}
        WORKDIR /app
        ENV PATH=/venv/bin:$PATH
        COPY --from=dependencies /venv /venv
        COPY . .
        USER 10001
        CMD exec gunicorn app:app --bind 0.0.0.0:$PORT"""),
    "express": ("src/server.ts", "Hello from", """
        FROM {image} AS dependencies
        WORKDIR /app
        COPY package.json package-lock.json ./
        RUN --mount=type=secret,id=ca --mount=type=cache,id=bench-npm,target=/root/.npm NODE_EXTRA_CA_CERTS=/run/secrets/ca npm ci
        FROM dependencies AS built
        COPY . .
        RUN npm run build
        FROM dependencies AS production
        RUN npm prune --omit=dev
        FROM {image}
        WORKDIR /app
        ENV NODE_ENV=production
        COPY --from=production /app/node_modules node_modules
        COPY package.json .
        COPY --from=built /app/dist dist
        USER 10001
        CMD ["npm", "start"]"""),
}


def build_rows(person, folder):
    """A first and a second push of apps without a Dockerfile, against `docker build` of one written by hand with the other parts of a push."""
    sizes = []
    for name, image in (("flask", "python"), ("express", "node")):
        file, line, text = BY_HAND[name]
        app = App(person, folder, APPS / name)
        first = seconds(lambda: (app.deploy(), answers(app.host)))
        base = next(found for found in docker("images", "--format", "{{.Repository}}:{{.Tag}}", f"dokku-images/{image}").split())
        (folder / f"{name}.Dockerfile").write_text(textwrap.dedent(text).replace("{image}", base).replace("id=bench-", f"id={app.name}-"))
        command = [*DOCKER, "build", "-q", "-t", f"bench-{name}", "--secret", "id=ca,src=/etc/ssl/certs/ca-certificates.crt", "-f", folder / f"{name}.Dockerfile", app.work]
        by_hand = lambda: ran(*command, env={**os.environ, "DOCKER_BUILDKIT": "1"})  # noqa: E731
        count, source = iter(range(1000)), (app.work / file).read_text()
        try:
            row(f"{name}: first push -> live / `docker build` alone, nothing cached", first, seconds(by_hand), "-")
            times, builds, floors = [], [], []
            for _ in range(ROUNDS):
                (app.work / file).write_text(source.replace(line, f"{line} {next(count)}"))
                floors.append(seconds(by_hand))
                began = time.perf_counter()
                output = app.deploy()
                answers(app.host)
                times.append(time.perf_counter() - began)
                builds.append(float(re.search(r"\((\d+\.\d) s\)", output)[1]))
            floor = Floor(app, folder)
            floor.image = f"bench-{name}"
            parts = statistics.median(floors) + median(floor.push) + floor.start_median()
            floor.end()
            row(f"{name}: second push, its build alone / `docker build` after the same change", statistics.median(builds), statistics.median(floors), 1.3)
            row(f"{name}: second push -> live / that, git push by hand, start and reload", statistics.median(times), parts, 1.3)
            own, hand = (int(docker("image", "inspect", "-f", "{{.Size}}", found)) / 2**20 for found in (f"dokku/{app.name}:latest", f"bench-{name}"))
            sizes.append(f"{name}: image of {own:.0f} MB, by hand {hand:.0f} MB")
        finally:
            ran("dokku", "--force", "apps:destroy", app.name)
            sh(*DOCKER, "rmi", f"bench-{name}")
            ran("rm", "-rf", folder / "host", folder / "host.pub", folder / "floor.git")
    print("\n" + "\n".join(sizes))


def seconds(work):
    """Time some work once."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def reloaded():
    """Have nginx test its configuration and take it, seen by its workers."""
    ran("nginx", "-t", "-q")
    old = dokku_py.worker_processes()
    ran("nginx", "-s", "reload")
    while any(map(dokku_py.worker_accepts, old)):
        time.sleep(0.005)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        person = Person(folder)
        ran("dokku", "ssh-keys:add", "bench", "-", stdin=person.public)
        old = ran("dokku", "--quiet", "domains:report", "--global", "--domains-global-vhosts").split()
        ran("dokku", "domains:set-global", DOMAIN)
        if "builds" in sys.argv:
            print("| what | ms | floor, ms | ratio | goal |\n|---|--:|--:|--:|--:|")
            try:
                return build_rows(person, folder)
            finally:
                ran("dokku", "ssh-keys:remove", "bench")
                ran("dokku", "domains:set-global", *old)
        app = App(person, folder, SWITCH)
        print(f"{base_image()}, {os.cpu_count()} processors, median of {ROUNDS}\n\n| what | ms | floor, ms | ratio | goal |\n|---|--:|--:|--:|--:|")
        try:
            app.deploy(Procfile=PROCFILE)
            kinds = {word for word in sys.argv[1:] if not word.isdigit()} or {"plain"}
            if kinds & {"plain", "large"}:
                cli_rows(app)
                deploy_rows(app, folder)
            restore_rows(app) if kinds & {"large", "restore"} else None
            many_apps_rows(app) if kinds & {"large", "apps"} else None
        finally:
            ran("dokku", "--force", "apps:destroy", app.name)
            ran("dokku", "ssh-keys:remove", "bench")
            ran("dokku", "domains:set-global", *old)


if __name__ == "__main__":
    main()
