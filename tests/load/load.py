"""Traffic against one app while it is redeployed, reconfigured, scaled and rolled back; what came of it as rows of a table."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of app: how it is made to behave, how long it takes to answer, and how hard it is asked."""

    name: str
    config: tuple = ()
    own_seconds: float = 0.0
    new_rate: float = 200
    kept_clients: int = 50
    kept_rate: float = 100


KINDS = (
    Kind("boots at once", ("GRACEFUL=1",)),
    Kind("takes 2 s to boot", ("GRACEFUL=1", "BOOT_SECONDS=2")),
    Kind("ignores SIGTERM", ("IGNORE_TERM=1",)),
    Kind("ends at once on SIGTERM", own_seconds=0.3),  # some sixty requests are always in flight
    Kind("answers after 3 s", own_seconds=3, new_rate=20, kept_rate=10),
)
CHANGES = ("git push", "config:set", "ps:scale up", "ps:scale down", "rollback")


class Traffic:
    """The load generator, in a process of its own."""

    def __init__(self, host, kind):
        argv = [sys.executable, Path(__file__).parent / "traffic.py", host, f"/slow/{kind.own_seconds}/",
                *(str(word) for word in (kind.own_seconds, kind.new_rate, kind.kept_clients, kind.kept_rate))]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.result = None

    def begin(self, phase):
        """Name what begins now."""
        self.process.stdin.write(f"{phase}\n")
        self.process.stdin.flush()

    def end(self):
        """Let what is in flight end; give what was counted, as a dict per phase, and the failures."""
        output, _ = self.process.communicate(timeout=180)
        assert self.process.returncode == 0, output
        return json.loads(output)


@contextlib.contextmanager
def traffic(host, kind):
    """Ask an app while something is done to it; the result is in `.result` afterwards."""
    running = Traffic(host, kind)
    try:
        yield running
        running.result = running.end()
    finally:
        running.process.kill()


def prepare(app, kind):
    """Make an app of a kind and push it for the first time."""
    app.ok("apps:create")
    if kind.config:
        app.ok("config:set", "--no-restart", *kind.config)
    app.deploy()


def change(app, what, number):
    """Do one of the changes that must drop no request."""
    if what == "git push":
        app.deploy(number=str(number))
    elif what == "config:set":
        app.ok("config:set", f"NUMBER={number}")
    elif what == "rollback":
        app.ok("rollback")
    else:
        app.ok("ps:scale", "web=3" if what == "ps:scale up" else "web=1")


def exercise(app, kind, redeploys, control_seconds):
    """Run the traffic over a stretch without changes and one with them; give what was counted.

    Begins the count when the first requests were answered, so that the generator's own start is in neither.
    """
    prepare(app, kind)
    with traffic(app.host, kind) as running:
        time.sleep(1 + kind.own_seconds)
        running.begin("control")
        time.sleep(control_seconds)
        for number in range(redeploys):
            for what in CHANGES:
                running.begin(what)
                change(app, what, number)
        time.sleep(2 * kind.own_seconds)  # the last old processes retire under traffic, too
    return running.result


def summed(phases, names):
    """Add up the counts of some phases; of what is a maximum, the largest."""
    rows = [phases.get(name, {}) for name in names]
    counts = {key: sum(row.get(key, 0) for row in rows) for key in ("asked", "failed", "retried", "reopened", "stalled")}
    return {**counts, **{key: max([row.get(key, 0) for row in rows]) for key in ("slowest_ms", "own_lag_ms")}}


HEADING = ("| app | phase | requests | failed | asked again | stalled | stalled, % | slowest, ms | the generator's own lag, ms |\n"
           "|---|---|--:|--:|--:|--:|--:|--:|--:|")


def table_rows(kind, phases):
    """Give the lines of the table for one kind of app: the control, each change, and all changes together."""
    for name, names in [("no change", ["control"]), *((name, [name]) for name in CHANGES), ("all changes", CHANGES)]:
        row = summed(phases, names)
        share = 100 * row["stalled"] / max(1, row["asked"])
        yield (f"| {kind.name} | {name} | {row['asked']} | {row['failed']} | {row['retried']} | {row['stalled']} | {share:.3f} "
               f"| {row['slowest_ms']} | {row['own_lag_ms']} |")

