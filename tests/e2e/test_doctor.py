"""What doctor finds, it can mend; what it mends, it no longer finds."""

import json

import pytest
from conftest import HELLO_TEXT, PROCFILE, STATE, docker, sh, wait_until


@pytest.fixture
def well(switch, no_revival):
    switch.deploy(Procfile=PROCFILE)
    switch.ok("ps:scale", "worker=1")
    switch.settle("web.1", "worker.1")
    assert switch.ok("doctor") == "All is as it should be.\n"
    return switch


def stray_container(app):
    return docker("run", "-d", "--name", f"{app.name}.web.1.v99", *(word for label in (
        f"com.dokku.app-name={app.name}", "com.dokku.managed-by=dokku_py", "com.dokku.container-type=deploy", "com.dokku.dyno=web.1", "com.dokku.incarnation=v99")
        for word in ("--label", label)), app.image(), "sleep", "1000")


HARM = {
    "a process is gone": (lambda app: docker("rm", "-f", f"{app.name}.worker.1"), "not running: worker.1"),
    "a process was stopped": (lambda app: docker("stop", "-t", "0", f"{app.name}.web.1"), "not running: web.1"),
    "a container nobody wants": (stray_container, ".web.1.v99"),
    "a name is lost": (lambda app: docker("rename", f"{app.name}.web.1", f"{app.name}.odd"), "lack their short names"),
    "the vhost is gone": (lambda app: (STATE / "nginx" / f"{app.name}.conf").unlink(), "nginx does not serve what is on record"),
    "an address without a holder": (lambda app: (STATE / "addresses" / f"10.213.1.1={app.name}=v77=web.1").write_text(""), "address 10.213.1.1"),
    "a tree of a killed build": (lambda app: (app.folder / "tree.abc").mkdir(), "tree.abc"),
}


def test_every_harm_is_named_and_mended(well):
    image = well.image()
    for name, (harm, words) in HARM.items():
        harm(well)
        done = well.person.ssh("doctor", well.name)
        assert done.returncode == 1 and words in done.stdout and "--fix" in done.stdout, f"{name}: {done.stdout}{done.stderr}"
        found = json.loads(well.person.ssh("doctor", well.name, "--format", "json").stdout)
        assert any(words in row["what"] for row in found), name
        assert well.ok("doctor", "--fix").endswith("All is as it should be.\n"), name
        assert well.get() == (200, HELLO_TEXT) and well.image() == image
        assert well.containers("-a") == [f"{well.name}.web.1", f"{well.name}.worker.1"], name


def test_a_stopped_app_is_no_disagreement_and_one_that_runs_though_stopped_is(well):
    well.ok("ps:stop")
    assert well.ok("doctor") == "All is as it should be.\n"
    docker("start", f"{well.name}.web.1")
    assert "processes run although it was stopped" in well.person.ssh("doctor", well.name).stdout
    well.ok("doctor", "--fix")
    assert well.containers() == []


def test_what_retires_while_a_release_is_watched_leaves_nothing_behind(well):
    well.deploy()  # its minder goes on watching
    well.settle("web.1", "worker.1")
    wait_until(lambda: well.person.ssh("doctor", well.name).returncode == 0)
    well.ok("ps:scale", "web=2")
    well.ok("ps:scale", "web=1")
    well.settle("web.1", "worker.1")
    wait_until(lambda: well.person.ssh("doctor", well.name).returncode == 0)


def test_the_server_is_examined_too(well, admin):
    sh("dokku", "tick")
    done = sh("dokku", "doctor", "--format", "json")
    assert "server" not in {row["app"] for row in json.loads(done.stdout)}, done.stdout
    (STATE / "TICKED").write_text("1\n")
    done = sh("dokku", "doctor")
    assert done.returncode == 1 and "server: tick has not run" in done.stdout
    sh("dokku", "tick")


def test_an_app_that_is_being_changed_is_left_alone(well):
    push = well.start_push(Dockerfile=f"FROM debian:bookworm\nCOPY server.pl /server.pl\nRUN echo {well.name}; sleep 5\nEXPOSE 8080\n")
    push.when(f"RUN echo {well.name}")
    done = well.person.ssh("doctor", well.name)
    assert done.returncode == 0 and "is being changed right now" in done.stderr and "push by" in done.stderr
    code, output = push.end()
    assert code == 0, output
