"""Long answers and websockets outlive a switch: until they end, or until wait-to-retire has passed."""

import http.client
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from conftest import sh, wait_until
from sockets import WebSocket


class Stream(threading.Thread):
    """Somebody who reads a long answer to its end."""

    def __init__(self, app, count):
        super().__init__()
        self.connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=60)
        self.connection.request("GET", f"/stream/{count}", headers={"Host": app.host})
        self.answer = self.connection.getresponse()
        self.first, self.rest = self.answer.readline(), b""
        self.start()

    def run(self):
        try:
            self.rest = self.answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.rest = f"broken: {error!r}".encode()

    def lines(self):
        self.join()
        return (self.first + self.rest).decode().splitlines()


def test_a_long_answer_comes_whole_from_the_release_that_began_it(switch):
    switch.deploy()
    stream = Stream(switch, 100)
    switch.deploy(new="file")
    switch.ok("config:set", "A=1")
    assert stream.is_alive(), "it was to last longer than the changes"
    assert stream.lines() == [f"v1 {number}" for number in range(1, 101)]
    switch.settle()


def test_a_websocket_goes_on_with_the_old_release_and_its_end_retires_that(switch):
    switch.deploy()
    old = WebSocket(switch)
    assert old.say("before") == "v1 before"
    switch.deploy(new="file")
    new = WebSocket(switch)
    assert (old.say("after"), new.say("after")) == ("v1 after", "v2 after")
    assert len(switch.containers()) == 2
    old.close()
    switch.settle()
    assert new.say("still") == "v2 still"
    assert new.say("x" * 100) == "v2 " + "x" * 100
    new.close()


def test_wait_to_retire_ends_a_websocket_that_stays(switch):
    switch.deploy()
    switch.ok("checks:set", "wait-to-retire", "8")
    old = WebSocket(switch)
    switch.deploy(new="file")
    assert old.say("after") == "v1 after"
    wait_until(lambda: old.say("still there?") == "")
    switch.settle()
    assert switch.get()[0] == 200


def test_what_a_killed_switch_left_serving_answers_what_it_has_begun(switch):
    """A deploy killed between the reload and its record leaves nginx with a release that is not on record."""
    switch.deploy()
    switch.deploy(new="file")
    switch.settle()
    (switch.folder / "CURRENT").write_text("v1\n")
    stream = Stream(switch, 50)
    done = sh("dokku", "ps:restore", switch.name)
    assert done.returncode == 0, done.stderr
    assert stream.lines() == [f"v2 {number}" for number in range(1, 51)]
    wait_until(lambda: switch.get("/env/DOKKU_RELEASE") == (200, "v1"))
    switch.settle()


@pytest.mark.parametrize("between", ["another app is deployed", "the same app is configured"])
def test_a_connection_outlives_a_reload_that_came_before_the_switch(new_app, between):
    """nginx's worker that holds it was told to leave by an earlier reload, not by the one of the switch."""
    app, other = new_app(), new_app()
    app.deploy()
    other.deploy()
    socket_, stream = WebSocket(app), Stream(app, 150)
    if between == "another app is deployed":
        other.deploy(new="file")
    else:
        app.ok("nginx:set", "client-max-body-size", "2m")
    app.deploy(new="file")
    assert socket_.say("after") == "v1 after"
    assert stream.lines() == [f"v1 {number}" for number in range(1, 151)]
    socket_.close()
    app.settle()


def minders(app):
    """The processes that have the app's minder lock open."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(path) == str(app.folder / "minder"):
                found.add(int(path.parts[2]))
        except OSError:
            continue
    return found


SHIFTED = """
import sys, time
shift, wall, wall_ns = int(sys.argv[1]), time.time, time.time_ns
time.time, time.time_ns = lambda: wall() + shift, lambda: wall_ns() + shift * 10**9
sys.path.insert(0, "/usr/lib/dokku-py/current")
import dokku_py
dokku_py.front_door(sys.argv[2:])
"""


def under_clock(shift, *words):
    """Run a command whose wall clock, and that of the processes it leaves, is so many seconds off."""
    done = sh("/usr/lib/dokku-py/venv/bin/python3", "-c", SHIFTED, shift, *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shift", [3600, -3600])
def test_a_changed_clock_ends_nothing_before_its_time_and_keeps_nothing_after_it(switch, shift):
    """Who minds the switch is born under another clock than the one under which its deadlines were written."""
    switch.deploy()
    switch.ok("checks:set", "wait-to-retire", "15")
    one_off = switch.person.ok("run:detached", "--ttl-seconds", "1800", switch.name, "sleep", "1000").strip()
    assert one_off in switch.containers()
    old = WebSocket(switch)
    switch.deploy(new="file")
    for pid in minders(switch):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not minders(switch))
    under_clock(shift, "tick")
    wait_until(lambda: minders(switch))
    time.sleep(3)  # as long as it takes to do wrong
    assert old.say("after") == "v1 after" and (switch.folder / "PROBATION").exists()
    assert one_off in switch.containers()
    wait_until(lambda: old.say("still there?") == "")
    wait_until(lambda: len(switch.containers()) == 2)
    assert switch.get()[0] == 200 and one_off in switch.containers()


def test_a_one_off_ends_in_time_under_another_clock(switch):
    switch.deploy()
    one_off = switch.person.ok("run:detached", "--ttl-seconds", "2", switch.name, "sleep", "1000").strip()
    assert one_off in switch.containers()
    time.sleep(3)
    under_clock(-3600, "tick")
    assert one_off not in switch.containers()
