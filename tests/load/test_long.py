"""Long answers and websockets outlive a switch: until they end, or until wait-to-retire has passed."""

import base64
import hashlib
import http.client
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from conftest import sh, wait_until

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class WebSocket:
    """A websocket client of short text frames."""

    def __init__(self, app):
        self.stream = socket.create_connection(("127.0.0.1", 80), 60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall(f"GET /socket HTTP/1.1\r\nHost: {app.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.file = self.stream.makefile("rb")
        assert self.file.readline().startswith(b"HTTP/1.1 101 ")
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(self.file.readline, b"\r\n"))
        assert headers["sec-websocket-accept"] == base64.b64encode(hashlib.sha1((key + MAGIC).encode()).digest()).decode().lower()

    def say(self, text):
        """Send a text; give what comes back, or nothing when the server has closed."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(text.encode()))
        try:
            self.stream.sendall(bytes([0x81, 0x80 | len(masked)]) + mask + masked)
            kind, length = self.file.read(2) or (0, 0)
        except OSError:
            return ""
        assert kind in (0, 0x81)
        return self.file.read(length).decode()

    def close(self):
        self.stream.shutdown(socket.SHUT_RDWR)
        self.stream.close()


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


def test_a_clock_set_back_does_not_keep_what_is_past_its_time(switch):
    """The deadline is written under a clock an hour ahead; the minder that must keep it goes by the right one."""
    switch.deploy()
    switch.ok("checks:set", "wait-to-retire", "8")
    old = WebSocket(switch)
    done = sh("env", "DONT_FAKE_MONOTONIC=1", "faketime", "-f", "+3600", "dokku", "ps:restart", switch.name)
    assert done.returncode == 0, done.stderr
    for pid in minders(switch):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not minders(switch))
    sh("dokku", "tick")
    assert old.say("after") == "v1 after"
    wait_until(lambda: old.say("still there?") == "")
    switch.settle()


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


@pytest.mark.parametrize("shift", ["+3600", "-3600"])
def test_a_changed_clock_ends_nothing_before_its_time_and_keeps_nothing_after_it(switch, shift):
    """Who minds the switch is born under another clock than the one under which its deadlines were written."""
    switch.deploy()
    old = WebSocket(switch)
    switch.deploy(new="file")
    for pid in minders(switch):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not minders(switch))
    done = sh("env", "DONT_FAKE_MONOTONIC=1", "faketime", "-f", shift, "dokku", "tick")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: minders(switch))
    time.sleep(3)  # as long as it takes to do wrong
    assert old.say("after") == "v1 after" and (switch.folder / "PROBATION").exists()
    old.close()
    switch.settle()
    assert switch.get()[0] == 200 and len(switch.containers()) == 1
