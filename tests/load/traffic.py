#!/usr/bin/env python3
"""Ask an app through nginx at a steady rate, check every answer, and print what came of it as JSON.

    traffic.py HOST PATH OWN_SECONDS NEW_RATE KEPT_CLIENTS KEPT_RATE

New connections are made at NEW_RATE a second, whatever became of the earlier ones; KEPT_CLIENTS hold a connection
each and ask on it again and again, KEPT_RATE times a second all together. PATH gets a word of our own appended,
which the app must answer a hundred times. OWN_SECONDS is how long the app takes by itself.

A line on standard input names the phase that begins; its end ends the traffic, after the last answer.
"""

import asyncio
import collections
import json
import random
import sys
import time

HOST, PATH = sys.argv[1:3]
OWN_SECONDS, NEW_RATE, KEPT_CLIENTS, KEPT_RATE = float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
STALL_SECONDS = 0.5  # beyond what the app itself takes
PATIENCE_SECONDS = 60

PHASES = collections.defaultdict(collections.Counter)
FAILURES = []
NOW = {"phase": "begin", "number": 0, "going": True}


class ClosedIdle(Exception):
    """A connection that had served before was closed before the first byte of an answer: the client may ask again."""


async def ask(reader, writer, served_before, keep):
    """Send one request and check the whole answer; say whether the connection may be used again. Raises for whatever is wrong."""
    NOW["number"] += 1
    word = f"w{NOW['number']}"
    try:
        writer.write(f"GET {PATH}{word} HTTP/1.1\r\nHost: {HOST}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode())
        first = await reader.read(1)
    except OSError as error:
        if served_before:
            raise ClosedIdle from error
        raise
    if not first:
        raise ClosedIdle if served_before else EOFError("closed without an answer")
    head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
    headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    body = (await reader.readexactly(int(headers["content-length"]))).decode()
    if not head.startswith("HTTP/1.1 200 "):
        raise ValueError(head.split("\r\n")[0])
    if body != f"{word}\n" * 100:
        raise ValueError(f"wrong body: {body[:30]!r}")
    return headers.get("connection") != "close"


async def timed(phase, work):
    """Do one request, and count what came of it in the phase in which it began."""
    began, count = time.monotonic(), PHASES[phase]
    try:
        return await asyncio.wait_for(work, PATIENCE_SECONDS)
    except (OSError, EOFError, ValueError, KeyError, asyncio.TimeoutError, ClosedIdle) as error:
        count["failed"] += 1
        FAILURES.append([phase, round(time.monotonic() - began, 3), f"{type(error).__name__}: {error}"])
    finally:
        spent = time.monotonic() - began
        count["asked"] += 1
        count["stalled"] += spent > OWN_SECONDS + STALL_SECONDS
        count["slowest_ms"] = max(count["slowest_ms"], round(spent * 1000))


async def ask_anew():
    """Ask once on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", 80)
    try:
        await ask(reader, writer, False, False)
        if await reader.read(1):
            raise ValueError("bytes after the answer")
    finally:
        writer.transport.abort() if reader.exception() else writer.close()


class KeptClient:
    """A client that keeps its connection, and deals with a closed one as RFC 9112 9.3.1 lets clients do."""

    def __init__(self):
        self.reader = self.writer = None
        self.served = 0

    def leave(self):
        """Drop the connection."""
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None
        self.served = 0

    async def ask(self):
        """Ask once; a second time, on a new connection, when the kept one turns out to be closed."""
        count = PHASES[NOW["phase"]]
        if self.reader and (self.reader.at_eof() or self.reader.exception()):  # seen before asking, as every client's pool does
            count["reopened"] += 1
            self.leave()
        try:
            await self.ask_once()
        except ClosedIdle:
            count["retried"] += 1
            self.leave()
            await self.ask_once()

    async def ask_once(self):
        """Ask on the connection there is, or on a new one."""
        if not self.reader:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", 80)
        try:
            again = await ask(self.reader, self.writer, self.served > 0, True)
        except ClosedIdle:
            raise
        except BaseException:
            self.leave()
            raise
        self.served += 1
        if not again:
            self.leave()

    async def live(self):
        """Ask again and again."""
        pause = KEPT_CLIENTS / KEPT_RATE
        await asyncio.sleep(random.uniform(0, pause))
        while NOW["going"]:
            began = time.monotonic()
            await timed(NOW["phase"], self.ask())
            await asyncio.sleep(max(0, random.uniform(0.5, 1.5) * pause - (time.monotonic() - began)))
        self.leave()


async def keep_rate(tasks):
    """Begin a request on a new connection at every beat; beats that a starved machine misses are left out."""
    due = time.monotonic()
    while NOW["going"]:
        task = asyncio.create_task(timed(NOW["phase"], ask_anew()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due = max(due + 1 / NEW_RATE, time.monotonic() - 0.1)
        await asyncio.sleep(max(0, due - time.monotonic()))


async def watch_self():
    """Note how late this process itself comes: such a pause is no fault of the server."""
    while NOW["going"]:
        began = time.monotonic()
        await asyncio.sleep(0.05)
        count = PHASES[NOW["phase"]]
        count["own_lag_ms"] = max(count["own_lag_ms"], round((time.monotonic() - began - 0.05) * 1000))


async def follow_phases():
    """Take the names of phases from standard input until it ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        NOW["phase"] = line.decode().strip()
    NOW["going"] = False


async def main():
    """Run until standard input ends, then wait for what is in flight."""
    tasks = set()
    await asyncio.gather(follow_phases(), watch_self(), keep_rate(tasks), *(KeptClient().live() for _ in range(KEPT_CLIENTS)))
    while tasks:
        await asyncio.wait(tasks)
    print(json.dumps({"phases": PHASES, "failures": FAILURES}))


asyncio.run(main())
