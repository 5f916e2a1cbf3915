"""install.sh on a machine where nothing is installed: a bare Debian container with a Docker Engine of its own."""

import json
import re
import subprocess
import uuid

import pytest
from conftest import DOCKER, ROOT, base_image, docker, sh, wait_until

CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE")
ANSWERS = "curl -sS --fail --max-time 20 --resolve hello.fresh.local:80:127.0.0.1 http://hello.fresh.local"


def release_image(release):
    """Make a bare root file system of another Debian release, from the sources this host uses."""
    recipe = (ROOT / "templates/images/debian/rootfs").read_text().replace(". /etc/os-release", f". /etc/os-release; VERSION_CODENAME={release}")
    if not docker("images", "--quiet", f"debian:{release}"):
        done = subprocess.run(["sh", "-c", recipe], capture_output=True, check=True)
        subprocess.run([*DOCKER, "import", "-", f"debian:{release}"], input=done.stdout, check=True, stdout=subprocess.DEVNULL)
    return f"debian:{release}"


def systemd_image():
    """Make a Debian with systemd as its init, as most servers are."""
    dockerfile = (f"FROM {base_image()}\nRUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "
                  "systemd systemd-sysv dbus >/dev/null 2>&1\n")
    assert sh(*DOCKER, "build", "--quiet", "--tag", "dokku-test/systemd", "-", stdin=dockerfile).returncode == 0
    return "dokku-test/systemd"


@pytest.fixture
def machine(server, request):
    """Give a function that runs shell words in a bare container and expects them to succeed; `init` starts the machine with systemd."""
    kind = getattr(request, "param", "")
    image, command = (systemd_image(), ["/sbin/init"]) if kind == "systemd" else (release_image(kind) if kind else base_image(), ["sleep", "1800"])
    name = f"t-machine-{uuid.uuid4().hex[:8]}"
    docker("run", "--detach", "--name", name, *(word for cap in CAPABILITIES for word in ("--cap-add", cap)),
           "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--volume", f"{ROOT}:/src:ro", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup",
           "--tmpfs", "/run", "--tmpfs", "/tmp", "--env", "DOCKER_ALLOW_IPV6_ON_IPV4_INTERFACE=1", "--env", "container=docker",
           "--stop-signal", "RTMIN+3" if kind == "systemd" else "TERM", "--volume", f"{name}:/var/lib/docker", image, *command)

    def shell(words):
        done = sh(*DOCKER, "exec", name, "sh", "-c", words)
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    shell.reboot = lambda: docker("restart", name)
    yield shell
    docker("rm", "--force", "--volumes", name)
    docker("volume", "rm", name)


def test_a_bare_machine_is_installed_upgraded_and_cleaned(machine):
    out = machine("umask 077; cat /src/install.sh | DOKKU_PY_SOURCE=/src sh -s -- --domain fresh.local --demo 2>&1")
    assert "Hello from dokku_py" in out and "=====> http://hello.fresh.local" in out
    assert machine(ANSWERS).strip() == "Hello from dokku_py"

    machine("mkdir -p /root/.ssh && for name in me ci; do ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/$name; done; dokku ssh-keys:add me - < /root/.ssh/me.pub")

    # a second run upgrades in place while the app keeps serving, and lets nobody in
    machine(f"(while {ANSWERS} >/dev/null; do sleep 0.05; done; touch /tmp/missed) & loop=$!; sed 's/^VERSION = .*/VERSION = \"9.9.9\"/' "
            "/src/dokku_py.py > /tmp/new.py; cp -r /src /tmp/src; cp /tmp/new.py /tmp/src/dokku_py.py; sh /tmp/src/install.sh; kill $loop; test ! -e /tmp/missed")
    assert '"dokku_py": "9.9.9"' in machine("dokku version --json")
    assert "\"me\"" in machine("dokku ssh-keys:list") and "\"ci\"" not in machine("dokku ssh-keys:list")

    # removed and installed again, the data is taken up where it was
    machine("sh /tmp/src/install.sh --uninstall")
    assert machine("ls /var/lib/dokku/apps").split() == ["hello"] and machine("ls /usr/lib/dokku-py /usr/bin/dokku 2>/dev/null || true") == ""
    machine("sh /src/install.sh")
    assert machine(ANSWERS).strip() == "Hello from dokku_py"

    machine("dokku network:create common && sh /src/install.sh --uninstall --purge")
    left = machine("ls -d /var/lib/dokku /usr/lib/dokku-py /usr/bin/dokku /etc/sudoers.d/dokku-py /etc/cron.d/dokku-py /etc/nginx/conf.d/dokku.conf "
                   "/etc/nginx/dokku-test.conf /etc/logrotate.d/dokku-py 2>/dev/null || true; id dokku 2>/dev/null || true; docker ps -aq; docker images -q 'dokku/*'; "
                   "docker network ls -q --filter label=com.dokku.managed-by=dokku_py")
    assert left == ""
    machine("nginx -t")


def test_another_dokku_is_left_alone(machine):
    machine("useradd -m -d /home/dokku dokku && echo theirs > /usr/bin/dokku && mkdir -p /var/lib/dokku && touch /var/lib/dokku/x")
    for words in ("", "--uninstall --purge"):
        assert "another dokku is installed here" in machine(f"sh /src/install.sh {words} 2>&1 && exit 1 || true")
    assert machine("cat /usr/bin/dokku; ls /var/lib/dokku").split() == ["theirs", "x"]


@pytest.mark.parametrize("machine", ["systemd"], indirect=True)
def test_with_systemd_the_apps_answer_after_a_reboot(machine):
    wait_until(lambda: machine("systemctl is-system-running || true").strip() in ("running", "degraded"))
    machine("sh /src/install.sh --domain fresh.local --demo 2>&1")
    image = machine("docker inspect -f '{{.Image}}' hello.web.1")
    machine.reboot()
    wait_until(lambda: machine(f"{ANSWERS} || true").strip() == "Hello from dokku_py")
    assert machine("docker inspect -f '{{.Image}}' hello.web.1") == image
    assert machine("systemctl is-failed dokku-boot || true").strip() in ("inactive", "active")


@pytest.mark.parametrize("words", ["--colour", "--purge", "--domain", "--key /nonexistent"])
def test_bad_arguments_change_nothing(words):
    done = sh("sh", ROOT / "install.sh", *words.split())
    assert done.returncode == 2 and "-----> " not in done.stdout


@pytest.mark.parametrize("machine", ["trixie"], indirect=True)
def test_the_next_debian_release(machine):
    out = machine("sh /src/install.sh --domain fresh.local --demo 2>&1")
    assert "Hello from dokku_py" in out and "Building hello v1" in out
    # a base image that is gone is made by the push that needs it
    machine("docker rmi -f debian:trixie debian:trixie-slim && docker rm -f $(docker ps -aq) && docker image prune -af >/dev/null")
    out = machine("sh /src/tests/demo 2>&1")
    assert "Building debian:trixie from this host's package sources" in out and "Hello from dokku_py" in out


def test_a_full_disk_leaves_the_old_release_serving(machine):
    """The state root is a small file system that runs full during a build, and is full before the next."""
    machine("mkdir -p /var/lib/dokku && mount -t tmpfs -o size=700m tmpfs /var/lib/dokku && chmod 755 /var/lib/dokku && "
            "sh /src/install.sh --domain fresh.local --demo 2>&1")
    machine("ssh-keygen -q -t ed25519 -N '' -f /root/key && dokku ssh-keys:add me - < /root/key.pub && cp -r /src/tests/apps/hello /root/hello && cd /root/hello && "
            "git init -q -b main && git config user.email t@t && git config user.name t && git add -A && git commit -qm x")
    push = ("cd /root/hello && git commit -q --allow-empty -m again && GIT_SSH_COMMAND='ssh -i /root/key -o StrictHostKeyChecking=no' "
            "git push -f dokku@127.0.0.1:hello HEAD:main > /root/out 2>&1; echo $?")
    machine("printf 'FROM debian:bookworm\\nRUN sleep 4\\nCOPY server.pl /server.pl\\nEXPOSE 8080\\nCMD [\"perl\", \"/server.pl\"]\\n' > /root/hello/Dockerfile; "
            "cd /root/hello && git add -A && git commit -qm slow")
    fill = "(until grep -q 'RUN sleep' /root/out; do sleep .1; done; dd if=/dev/zero of=/var/lib/dokku/fill bs=1M) >/dev/null 2>&1 & "
    assert machine(f"rm -f /root/out; {fill} {push}").strip() != "0"
    said = machine("cat /root/out")
    assert "no space left on device" in said.lower() and "Traceback" not in said and "bug" not in said, said
    assert machine(ANSWERS).strip() == "Hello from dokku_py"
    assert machine(push).strip() != "0"
    assert machine(ANSWERS).strip() == "Hello from dokku_py"
    machine("rm /var/lib/dokku/fill; dd if=/dev/zero of=/var/lib/dokku/fill bs=1M count=300 2>/dev/null")
    assert machine(push).strip() != "0" and "MB are free in /var/lib/dokku; a build needs 512" in machine("cat /root/out")
    machine("rm /var/lib/dokku/fill")
    assert machine(push).strip() == "0", machine("cat /root/out")
    assert machine("dokku releases hello | head -1").split()[-1] == "live"
    assert machine("flock -n /var/lib/dokku/apps/hello/lock true && ls -d /var/lib/dokku/apps/hello/tree.* 2>/dev/null || true") == ""


# The first versions without what was published against those before (CVE-2025-27516; CVE-2024-47081; CVE-2025-50181; CVE-2024-3651; CVE-2024-39689).
SOUND = {"jinja2": (3, 1, 6), "requests": (2, 32, 4), "urllib3": (2, 5, 0), "idna": (3, 7), "certifi": (2024, 7, 4)}


def test_what_is_installed_of_pypi_is_what_is_pinned_and_has_no_known_hole(server):
    listed = json.loads(sh("/usr/lib/dokku-py/venv/bin/pip", "list", "--format", "json").stdout)
    have = {row["name"].lower(): row["version"] for row in listed}
    assert (have["docker"], have["jinja2"]) == ("7.2.0", "3.1.6")
    assert set(have) <= {"docker", "jinja2", *SOUND, "markupsafe", "charset-normalizer", "pip", "setuptools", "wheel"}, "nothing else holds the socket of Docker"
    for name, least in SOUND.items():
        assert tuple(map(int, re.findall("[0-9]+", have[name])[:len(least)])) >= least, name
