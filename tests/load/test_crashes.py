"""Whatever dies - a process, nginx, Docker - the app serves its recorded release again with nobody's help, at the same address."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from conftest import HELLO_TEXT, docker, docker_answers, sh, start_docker, wait_until


@pytest.fixture
def serving(switch):
    """An app that serves its first release, and the record of it that must not change."""
    switch.deploy()
    switch.before = record_of(switch)
    yield switch
    switch.settle()
    assert record_of(switch) == switch.before


def record_of(app):
    """What must be the same before and after: the release, its container, its image and its address."""
    facts = app.inspect()
    return (app.folder / "CURRENT").read_text(), facts["Id"], facts["Image"], facts["NetworkSettings"]["Networks"]["dokku"]["IPAddress"]


def answers(app, path="/"):
    """Ask once; nothing while nginx is down, or when the app dies over the request."""
    try:
        return app.get(path)
    except OSError:
        return None


def serves(app):
    """Say whether the app answers ten times in a row."""
    return all(answers(app) == (200, HELLO_TEXT) for _ in range(10))


def alive(pid):
    """Say whether a process lives; one that only waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end(pids, number):
    """Send a signal to processes, and wait until they are gone."""
    for pid in pids:
        os.kill(pid, number)
    wait_until(lambda: not any(map(alive, pids)))


def end_docker(number):
    """End dockerd by a signal, and its containerd with it."""
    daemon, below = (int(Path(path).read_text()) for path in ("/var/run/docker.pid", "/var/run/docker/containerd/containerd.pid"))
    end([daemon], number)
    wait_until(lambda: not alive(below))
    assert not docker_answers()
    for name in ("docker.pid", "docker-ssd.pid", "docker/containerd/containerd.pid"):  # where no init takes zombies, they would count as alive
        Path("/var/run", name).unlink(missing_ok=True)


def test_a_process_that_ends(serving):
    for count in (1, 2):
        answers(serving, "/die")
        wait_until(lambda: serving.inspect()["RestartCount"] == count and serves(serving))


def test_every_process_in_the_container_is_killed(serving):
    main = serving.inspect()["State"]["Pid"]
    for pid in [int(pid) for pid in docker("top", f"{serving.name}.web.1", "-o", "pid").split()[1:]]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    wait_until(lambda: serving.inspect()["State"]["Pid"] not in (0, main) and serves(serving))


def test_a_process_that_runs_out_of_memory(serving):
    docker("update", "--memory", "60m", "--memory-swap", "60m", f"{serving.name}.web.1")
    answers(serving, "/eat")
    wait_until(lambda: serving.inspect()["RestartCount"] == 1 and serves(serving))
    events = docker("events", "--since", "300s", "--until", str(int(time.time()) + 1), "--filter", f"container={serving.name}.web.1",
                    "--format", "{{json .}}").splitlines()
    assert "oom" in [json.loads(event)["status"] for event in events]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nginx_restarts(serving, number):
    master = int(Path("/run/nginx.pid").read_text())
    workers = [int(pid) for pid in sh("pgrep", "-P", str(master)).stdout.split()]
    end([master, *workers] if number == signal.SIGKILL else [master], number)
    wait_until(lambda: not any(map(alive, workers)))
    assert answers(serving) is None
    assert sh("service", "nginx", "start").returncode == 0
    wait_until(lambda: serves(serving))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_docker_restarts(serving, number):
    end_docker(number)
    start_docker()
    wait_until(lambda: serves(serving), 180)  # after KILL, Docker leaves everything down, and cron's tick brings it up


def test_docker_restarts_while_old_processes_retire(switch):
    """The old release must neither come back nor stay, and the new one must keep its address."""
    switch.deploy()
    switch.ok("config:set", "IGNORE_TERM=1")
    switch.deploy(new="file")
    assert (switch.folder / "RETIRING").exists()
    address = record_of(switch)
    end_docker(signal.SIGTERM)
    start_docker()
    wait_until(lambda: serves(switch), 120)
    assert record_of(switch) == address
    sh("dokku", "tick")
    switch.settle()
    assert switch.get() == (200, HELLO_TEXT)
