"""Deploy one app many times in a row and print what that leaves behind: everything must stay flat.

    sudo tests/load/soak [deploys]
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).parent.parent / "e2e"), str(Path(__file__).parent)]
from conftest import DOCKER, STATE, SWITCH, App, Person, docker, docker_answers, sh, wait_until  # noqa: E402

CHECKPOINTS = (1, 10, 50, 100, 200, 300)
COPIED_BYTES = 100_000  # of noise in each commit, so that no two images are alike


def lines(*argv):
    """Run a program and count the lines it prints."""
    return len(sh(*argv).stdout.splitlines())


def processes_of_dokku():
    """Count the processes that the user dokku has, those that see switches to their end among them; not what waits for its parent, nor what runs in containers."""
    own = os.stat("/proc/self/ns/pid").st_ino
    rows = [row.split() for row in sh("ps", "-u", "dokku", "-o", "stat=,pidns=").stdout.splitlines()]
    return len([state for state, space in rows if not state.startswith("Z") and space == str(own)])


def memory_mb(pid_file):
    """Give the resident memory of a daemon."""
    status = Path(f"/proc/{Path(pid_file).read_text().strip()}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def megabytes(folder):
    """Give what a folder takes on the disk."""
    return int(sh("du", "-sm", "--one-file-system", folder).stdout.split()[0])


def held_locks():
    """List the lock files that somebody holds."""
    files = [*(STATE / "locks").glob("*"), *(STATE / "apps").glob("*/lock")]
    return [str(file) for file in files if sh("flock", "-n", file, "true").returncode]


def measure(app):
    """Count what an app, and the whole product, holds on this machine right now."""
    state_files = [path for path in STATE.rglob("*") if "repo.git" not in path.parts]
    return {
        "containers": lines(*DOCKER, "ps", "-aq"),
        "networks": lines(*DOCKER, "network", "ls", "-q"),
        "images": lines(*DOCKER, "images", "-aq"),
        "image names": lines(*DOCKER, "images", "-q", f"dokku/{app.name}"),
        "addresses": len(addresses_of(app)),
        "files in the state root": len(state_files),
        "files in the repository": len(list((app.folder / "repo.git").rglob("*"))),
        "locks held": len(held_locks()),
        "processes of dokku": processes_of_dokku(),
        "nginx workers": lines("pgrep", "-f", "^nginx: worker"),
        "virtual interfaces": len([name for name in os.listdir("/sys/class/net") if name.startswith("veth")]),
        "firewall rules": lines("iptables-save"),
        "files in /tmp": len(os.listdir("/tmp")),
        "dockerd, MB": memory_mb("/var/run/docker.pid"),
        "containerd, MB": memory_mb("/var/run/docker/containerd/containerd.pid"),
        "dockerd's open files": len(os.listdir(f"/proc/{Path('/var/run/docker.pid').read_text().strip()}/fd")),
        "nginx master, MB": memory_mb("/run/nginx.pid"),
        "state root, MB": megabytes(STATE),
        "Docker's data, MB": megabytes("/var/lib/docker"),
    }


def deploy_once(app):
    """Push a commit that changes the image."""
    (app.work / "noise").write_bytes(os.urandom(COPIED_BYTES))
    app.deploy()


def addresses_of(app):
    """List the addresses that an app has."""
    return [name for name in os.listdir(STATE / "addresses") if f"={app.name}=" in name]


def settled(app):
    """Say whether nothing is retiring any more and every process of ours is gone but the one that watches the new release."""
    quiet = not (app.folder / "RETIRING").exists() and processes_of_dokku() <= 1
    return quiet and app.containers("-a") == [f"{app.name}.web.1"] and len(addresses_of(app)) == 1


def soak(app, deploys, checkpoints):
    """Deploy so many times; give what was there after each checkpoint, each time after the machine came to rest."""
    found = {}
    app.write(Dockerfile=(app.work / "Dockerfile").read_text() + "COPY noise /noise\n")
    for number in range(1, deploys + 1):
        deploy_once(app)
        if number in checkpoints:
            wait_until(lambda: settled(app), 180)
            found[number] = measure(app)
    return found


def table(found):
    """Give the lines of the table: a row for each thing counted, a column for each checkpoint."""
    yield "| after so many deploys | " + " | ".join(map(str, found)) + " |"
    yield "|---|" + "--:|" * len(found)
    for what in next(iter(found.values())):
        yield f"| {what} | " + " | ".join(str(counts[what]) for counts in found.values()) + " |"


def main(deploys):
    """Soak one app, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        person = Person(Path(folder) / "person")
        subprocess.run(["dokku", "ssh-keys:add", "soak", "-"], input=person.public, text=True, check=True)
        app, began = App(person, Path(folder), SWITCH), time.monotonic()
        try:
            print(*table(soak(app, deploys, {*CHECKPOINTS, deploys})), sep="\n")
            print(f"\n{deploys} deploys, {(time.monotonic() - began) / deploys:.1f} s each")
        finally:
            sh("dokku", "--force", "apps:destroy", app.name)
            sh("dokku", "ssh-keys:remove", "soak")
        assert docker_answers() and not docker("ps", "-aq", "--filter", f"label=com.dokku.app-name={app.name}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
