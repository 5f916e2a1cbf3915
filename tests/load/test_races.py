"""Many at once: each ends well or with a clear refusal, and the last state is one that somebody asked for."""

import re
import threading
import time

import pytest

import dokku_py
from conftest import STATE, SWITCH, App, destroyed, docker, sh, wait_until
from soak import deploy_once, held_locks, measure, processes_of_dokku, settled, soak

STRANGERS = 5  # sshd turns away who comes while ten others (MaxStartups) have not shown their key yet
REFUSALS = ("moved while this push waited", "[rejected]", "is at ", "but expected")
NUMBERED = "FROM debian:bookworm\nCOPY server.pl number /\nCMD perl /server.pl\n"


def start_gently(starts):
    """Start clients one after the other, each when few are at sshd's door; give them."""
    clients = []
    for start in starts:
        wait_until(lambda: strangers() < STRANGERS)
        clients.append(start())
        time.sleep(0.1)
    return clients


def strangers():
    """Count who has connected to sshd and has not shown a key yet."""
    titles = sh("ps", "-eo", "args").stdout.splitlines()
    return sum(title.startswith("sshd:") and ("[net]" in title or "[accepted]" in title) for title in titles)


def state_of(app):
    """The commit that is live, as the record has it, and as the repository has it."""
    current = (app.folder / "CURRENT").read_text().strip().partition(".")[0]
    info = dict(line.split(":", 1) for line in app.ok("releases:info", current).splitlines())
    return info["commit"].strip(), sh("git", f"--git-dir={app.folder / 'repo.git'}", "-c", "safe.directory=*", "rev-parse", "main").stdout.strip()


def assert_consistent(app, *dynos):
    """What is on record, what runs, what nginx forwards to and what was given out are the same, and nothing is left over."""
    wait_until(app.lock_is_free)
    app.settle(*dynos)
    commit, ref = state_of(app)
    assert commit == ref
    web = {app.inspect(dyno)["NetworkSettings"]["Networks"]["dokku"]["IPAddress"] for dyno in dynos or ["web.1"]}
    assert set(re.findall(r"^ *server ([0-9.]+):", app.ok("nginx:show-config"), re.M)) == web
    wait_until(lambda: {path.name.split("=")[0] for path in (STATE / "addresses").glob(f"*={app.name}=*")} == web)
    assert not list(app.folder.glob("tree.*")) and not list((app.folder / "repo.git" / "objects").glob("tmp_objdir-*"))
    assert app.get()[0] == 200


def assert_gone(app):
    """Nothing is left of an app that was destroyed."""
    wait_until(lambda: not app.containers("-a"))
    assert app.get()[0] == 404
    assert not docker("images", "-q", f"dokku/{app.name}")
    assert not list((STATE / "addresses").glob(f"*={app.name}=*")) and not list((STATE / "nginx").glob(f"**/{app.name}.conf"))
    wait_until(lambda: not list((STATE / "apps").glob(f".{app.name}.*")))
    assert not app.folder.exists()


def test_fifty_pushes_to_one_app_at_once(switch):
    switch.deploy(Dockerfile=NUMBERED, number="first")
    base, commits = switch.git("rev-parse", "HEAD"), {}
    for number in range(50):
        switch.write(number=f"number {number}")
        commits[number] = switch.git("rev-parse", "HEAD")
        switch.git("reset", "-q", "--hard", base)
    refs = {number: f"{commit}:refs/heads/{'main' if number % 5 else f'topic-{number}'}" for number, commit in commits.items()}
    pushes = dict(zip(refs, start_gently([lambda ref=ref: switch.person.start_push(switch.work, switch.name, ref) for ref in refs.values()])))
    results = {number: push.end() for number, push in pushes.items()}
    live = [number for number, (code, _) in results.items() if code == 0 and number % 5]
    assert len(live) == 1, "they all stand on the same commit: the first takes the branch, and to the others it has moved"
    for number, (code, output) in results.items():
        assert "Traceback" not in output and (code == 0 or any(words in output for words in REFUSALS)), output
        assert code == 0 or number % 5, f"a branch of its own is stored: {output}"
    assert any("is busy: push by" in output for _, output in results.values())
    assert state_of(switch)[0] == commits[live[0]]
    assert switch.get("/file/number") == (200, f"number {live[0]}")
    topics = switch.git("ls-remote", f"dokku@127.0.0.1:{switch.name}", "topic-*").split()
    assert sorted(topics[::2]) == sorted(commits[number] for number in range(0, 50, 5))
    assert len(switch.releases()) == 2, "a push that was refused uses no number"
    assert_consistent(switch)
    wait_until(lambda: processes_of_dokku() <= 1)


@pytest.fixture
def twenty(admin, tmp_path):
    """Twenty apps that were never pushed, each with a greeting and a build of its own."""
    made = [App(admin, tmp_path, SWITCH) for _ in range(20)]
    for app in made:
        app.write(Dockerfile=f"FROM debian:bookworm\nCOPY server.pl /\nRUN echo {app.name}; sleep 1\nENV GREETING={app.name}\nCMD perl /server.pl\n")
    yield made
    for app in made:
        destroyed(app)


def test_twenty_pushes_to_twenty_apps_at_once(twenty):
    most, going = [0], threading.Event()

    def count_builds():
        while not going.wait(0.05):
            most[0] = max(most[0], len(sh("pgrep", "-f", "docker build --iidfile").stdout.split()))

    counter = threading.Thread(target=count_builds)
    counter.start()
    try:
        pushes = start_gently([lambda app=app: app.person.start_push(app.work, app.name) for app in twenty])
        results = [push.end() for push in pushes]
    finally:
        going.set()
        counter.join()
    for app, (code, output) in zip(twenty, results):
        assert code == 0, output
        assert app.get() == (200, app.name)
        assert_consistent(app)
    assert 0 < most[0] <= dokku_py.BUILD_SLOTS
    assert any("which is what this server allows; waiting" in output for _, output in results)
    assert held_locks() == []


def test_first_pushes_of_an_app_at_once(switch):
    switch.write()
    pushes = [switch.person.start_push(switch.work, switch.name, ref) for ref in ("main", "main:one", "main:two", "main:three")]
    for push in pushes:
        code, output = push.end()
        assert code == 0, output
    assert_consistent(switch)


MOMENTS = ("remote: -----> Building", "remote: -----> Starting processes", "remote: -----> Switching", "remote: =====> Application deployed")


def push_against(app, moment, *words):
    """Push a new commit, and give a command at some moment of it; both must succeed."""
    push = app.start_push(number=moment)
    push.when(moment)
    done = app.person.ssh(*words)
    assert done.returncode == 0, done.stderr
    code, output = push.end()
    assert code == 0, output


def command_against(app, *words):
    """Give a command, and push a new commit as soon as it holds the lock; both must succeed."""
    client = app.person.start(*words)
    wait_until(lambda: not app.lock_is_free() or client.process.poll() is not None)
    app.deploy(number=f"after {words}")
    code, output = client.end()
    assert code == 0, output


def test_pushes_against_scale(switch):
    switch.deploy(Dockerfile=NUMBERED, number="first")
    for count, moment in enumerate(MOMENTS, 2):
        push_against(switch, moment, "ps:scale", switch.name, f"web={count % 3 + 1}")
        assert switch.get("/file/number") == (200, moment)
        assert_consistent(switch, *(f"web.{index + 1}" for index in range(count % 3 + 1)))
    command_against(switch, "ps:scale", switch.name, "web=1")
    assert switch.get("/file/number")[1].startswith("after")
    assert_consistent(switch)


def test_pushes_against_config(switch):
    switch.deploy(Dockerfile=NUMBERED, number="first")
    for count, moment in enumerate(MOMENTS):
        push_against(switch, moment, "config:set", switch.name, f"GREETING=greeting-{count}")
        assert switch.get("/file/number") == (200, moment)
        assert switch.get() == (200, f"greeting-{count}")
        assert_consistent(switch)
    command_against(switch, "config:set", switch.name, "GREETING=last")
    assert switch.get("/file/number")[1].startswith("after")
    assert switch.get() == (200, "last")
    assert_consistent(switch)


@pytest.mark.parametrize("moment", ["at once", *MOMENTS])
def test_a_push_against_destroy(switch, moment):
    switch.deploy()
    push = switch.start_push(number="1")
    if moment != "at once":
        push.when(moment)
    switch.person.ok("--force", "apps:destroy", switch.name)
    code, output = push.end()
    assert "Traceback" not in output and "bug" not in output
    if code or not switch.folder.exists():
        assert code == 0 or f"App {switch.name} does not exist" in output, output
        assert_gone(switch)
    else:
        assert_consistent(switch)
    switch.deploy(number="2")
    assert_consistent(switch)


def test_pushes_that_come_while_an_app_is_destroyed(switch):
    """Whichever comes first: a push is refused because the app is gone, or makes it anew."""
    for number in range(4):
        switch.deploy(number=str(number))
        client = switch.person.start("--force", "apps:destroy", switch.name)
        pushes = []
        for topic in range(6):
            pushes.append(switch.person.start_push(switch.work, switch.name, f"main:topic-{topic}"))
            time.sleep(0.1)
        assert client.end()[0] == 0
        for code, output in (push.end() for push in pushes):
            assert code == 0 or "does not exist" in output, output
            assert "Traceback" not in output and "This is a bug" not in output, output
        destroyed(switch)
        assert_gone(switch)


def test_settings_made_at_once_are_all_kept(bare):
    """Each reads, adds its own and writes: under the lock, or one takes another's away."""
    other = f"{bare.name}.example.org"
    words = [*(("config:set", "--no-restart", bare.name, f"KEY{number}=x") for number in range(6)),
             *(("domains:add", bare.name, f"d{number}.{other}") for number in range(6)),
             *(("ps:scale", bare.name, f"type{number}=2") for number in range(6))]
    for client in start_gently([lambda given=given: bare.person.start(*given) for given in words]):
        code, output = client.end()
        assert code == 0, output
    assert bare.ok("config:keys").split() == [f"KEY{number}" for number in range(6)]
    assert {f"d{number}.{other}" for number in range(6)} < set(bare.ok("domains").split())
    assert all(f"type{number}: 2" in " ".join(bare.ok("ps:scale").split()) for number in range(6))


def test_a_domain_that_two_apps_want_at_once_goes_to_one(new_app):
    wanting = [new_app() for _ in range(6)]
    for app in wanting:
        app.ok("apps:create")
    results = [client.end() for client in start_gently([lambda app=app: app.person.start("domains:add", app.name, f"one.{wanting[0].name}.org")
                                                        for app in wanting])]
    assert sorted(code for code, _ in results) == [0, 1, 1, 1, 1, 1], results
    assert all(code == 0 or "belongs to" in output for code, output in results)


def test_a_process_that_is_wanted_again_while_it_retires_is_there(switch):
    switch.ok("apps:create")
    switch.ok("config:set", "--no-restart", "IGNORE_TERM=1")
    switch.ok("ps:set", "stop-timeout-seconds", "10")
    switch.deploy()
    switch.ok("ps:scale", "web=3")
    switch.settle("web.1", "web.2", "web.3")
    switch.ok("ps:scale", "web=1")
    switch.ok("ps:scale", "web=3")
    wait_until(lambda: not (switch.folder / "RETIRING").exists(), 120)
    assert switch.containers() == [f"{switch.name}.web.{index}" for index in (1, 2, 3)]
    assert_consistent(switch, "web.1", "web.2", "web.3")


def test_processes_that_ignore_sigterm_do_not_queue(switch):
    switch.ok("apps:create")
    switch.ok("config:set", "--no-restart", "IGNORE_TERM=1")
    switch.ok("ps:set", "stop-timeout-seconds", "15")
    switch.deploy()
    for number in range(9):
        switch.ok("config:set", f"NUMBER={number}")
    switch.settle()  # 120 seconds, and one after the other would take 135


def test_ten_deploys_leave_nothing_behind(switch):
    found = soak(switch, 10, (6, 10))
    flat = {what: [counts[what] for counts in found.values()] for what in ("containers", "networks", "image names", "addresses", "locks held",
                                                                           "nginx workers", "virtual interfaces", "firewall rules")}
    assert all(first == last for first, last in flat.values()), flat
    assert found[10]["addresses"] == 1 and found[10]["locks held"] == 0
    assert found[10]["files in the state root"] <= found[6]["files in the state root"] + 4 * 4  # a folder and three files a release
    deploy_once(switch)
    wait_until(lambda: settled(switch), 30)
    assert measure(switch)["processes of dokku"] <= 1
