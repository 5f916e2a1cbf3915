"""Whatever dies - a process, nginx, Docker - the app serves its recorded release again with nobody's help, at the same address."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from conftest import HELLO_TEXT, docker, docker_answers, sh, start_docker, stop_docker, wait_until


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


def master_pid():
    return int(Path("/run/nginx.pid").read_text())


def dockerd_pid():
    return int(Path("/var/run/docker.pid").read_text())


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


@pytest.mark.parametrize("how", ["restart", "killed"])
def test_nginx_restarts(serving, how):
    old = master_pid()
    if how == "restart":
        sh("service", "nginx", "restart")
    else:
        workers = [int(pid) for pid in sh("pgrep", "-P", str(old)).stdout.split()]
        for pid in [old, *workers]:
            os.kill(pid, signal.SIGKILL)
        sh("service", "nginx", "start")
    wait_until(lambda: serves(serving))
    assert master_pid() != old
    serving.ok("config:set", "--no-restart", "UNUSED=1")


@pytest.mark.parametrize("how", ["restart", "killed"])
def test_docker_restarts(serving, how):
    if how == "restart":
        stop_docker()
    else:
        pid = dockerd_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid))
    assert not docker_answers()
    start_docker()
    wait_until(lambda: serves(serving), 120)


def alive(pid):
    """Say whether a process lives; one that only waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_docker_restarts_while_old_processes_retire(switch):
    """The old release must neither come back nor stay, and the new one must keep its address."""
    switch.deploy()
    switch.ok("config:set", "IGNORE_TERM=1")
    switch.deploy(new="file")
    assert (switch.folder / "RETIRING").exists()
    address = record_of(switch)
    stop_docker()
    start_docker()
    wait_until(lambda: serves(switch), 120)
    assert record_of(switch) == address
    sh("dokku", "tick")
    switch.settle()
    assert switch.get() == (200, HELLO_TEXT)
