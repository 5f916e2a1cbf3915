"""install.sh on a machine where nothing is installed: a bare Debian container with a Docker Engine of its own."""

import uuid

import pytest
from conftest import DOCKER, ROOT, base_image, docker, sh

CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE")
ANSWERS = "curl -sS --fail --max-time 20 --resolve hello.fresh.local:80:127.0.0.1 http://hello.fresh.local"


@pytest.fixture
def machine(server):
    """Give a function that runs shell words in a bare container and expects them to succeed."""
    name = f"t-machine-{uuid.uuid4().hex[:8]}"
    docker("run", "--detach", "--name", name, *(word for cap in CAPABILITIES for word in ("--cap-add", cap)),
           "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--volume", f"{ROOT}:/src:ro",
           "--volume", "/sys/fs/cgroup:/sys/fs/cgroup", "--tmpfs", "/run", "--volume", f"{name}:/var/lib/docker", base_image(), "sleep", "1800")

    def shell(words):
        done = sh(*DOCKER, "exec", name, "sh", "-c", words)
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    yield shell
    docker("rm", "--force", "--volumes", name)
    docker("volume", "rm", name)


def test_a_bare_machine_is_installed_upgraded_and_cleaned(machine):
    out = machine("cat /src/install.sh | DOKKU_PY_SOURCE=/src sh -s -- --domain fresh.local --demo 2>&1")
    assert "Hello from dokku_py" in out and "=====> http://hello.fresh.local" in out
    assert machine(ANSWERS).strip() == "Hello from dokku_py"

    # a second run upgrades in place while the app keeps serving
    machine(f"(while {ANSWERS} >/dev/null; do sleep 0.05; done; touch /tmp/missed) & loop=$!; sed 's/^VERSION = .*/VERSION = \"9.9.9\"/' "
            "/src/dokku_py.py > /tmp/new.py; cp -r /src /tmp/src; cp /tmp/new.py /tmp/src/dokku_py.py; sh /tmp/src/install.sh; kill $loop; test ! -e /tmp/missed")
    assert '"dokku_py": "9.9.9"' in machine("dokku version --json")

    # removed and installed again, the data is taken up where it was
    machine("sh /tmp/src/install.sh --uninstall")
    assert machine("ls /var/lib/dokku/apps").split() == ["hello"] and machine("ls /usr/lib/dokku-py /usr/bin/dokku 2>/dev/null || true") == ""
    machine("sh /src/install.sh && dokku ps:restore")
    assert machine(ANSWERS).strip() == "Hello from dokku_py"

    machine("sh /src/install.sh --uninstall --purge")
    left = machine("ls -d /var/lib/dokku /usr/lib/dokku-py /usr/bin/dokku /etc/sudoers.d/dokku-py /etc/cron.d/dokku-py /etc/nginx/conf.d/dokku.conf "
                   "/etc/nginx/dokku-test.conf /etc/logrotate.d/dokku-py 2>/dev/null || true; id dokku 2>/dev/null || true; docker ps -aq; docker images -q 'dokku/*'")
    assert left == ""
    machine("nginx -t")


@pytest.mark.parametrize("words", ["--colour", "--purge", "--domain", "--key /nonexistent"])
def test_bad_arguments_change_nothing(words):
    done = sh("sh", ROOT / "install.sh", *words.split())
    assert done.returncode == 2 and "-----> " not in done.stdout
