"""Print how many requests failed or stalled while an app of each kind was redeployed, reconfigured, scaled and rolled back.

    sudo tests/load/run [redeploys [part of a kind's name]]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:1] = [str(Path(__file__).parent.parent / "e2e"), str(Path(__file__).parent)]
from conftest import SWITCH, App, Person, sh  # noqa: E402
from load import HEADING, KINDS, exercise, table_rows  # noqa: E402


def main(redeploys, wanted):
    """Run every kind, and print the table and each failure."""
    with tempfile.TemporaryDirectory() as folder:
        person = Person(Path(folder) / "person")
        subprocess.run(["dokku", "ssh-keys:add", "load", "-"], input=person.public, text=True, check=True)
        try:
            print(HEADING, flush=True)
            for kind in (kind for kind in KINDS if wanted in kind.name):
                run_kind(App(person, Path(folder), SWITCH), kind, redeploys)
        finally:
            sh("dokku", "ssh-keys:remove", "load")


def run_kind(app, kind, redeploys):
    """Run one kind, and print its rows."""
    try:
        result = exercise(app, kind, redeploys, control_seconds=max(10, min(120, 5 * redeploys)))
        print(*table_rows(kind, result["phases"]), sep="\n", flush=True)
        for failure in result["failures"]:
            print("FAILED", *failure, flush=True)
    finally:
        sh("dokku", "--force", "apps:destroy", app.name)


main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2] if len(sys.argv) > 2 else "")
