"""Operating an app that is live: stop and start, one-offs, logs, config in every form, and a release that turns bad."""

import io
import json
import os
import tarfile

import pytest
from conftest import DOMAIN, HELLO_TEXT, PROCFILE, STATE, ask, base_image, docker, quoted, sh, wait_until


def test_a_stopped_app_answers_502_and_a_start_brings_the_same_release_back(live):
    image, release = live.image(), live.releases()[0][0]
    live.ok("ps:stop")
    assert live.get()[0] == 502 and live.containers() == []
    assert sh("dokku", "ps:restore", live.name).returncode == 0
    assert live.get()[0] == 502, "restore must not start what was stopped"
    live.ok("ps:start")
    assert live.get() == (200, HELLO_TEXT)
    assert live.image() == image and live.releases()[0][0] == release
    live.settle("web.1", "worker.1")


def test_rebuild_deploys_the_same_commit_as_a_new_release(live):
    before = live.releases()[0]
    live.ok("ps:rebuild")
    after = live.releases()[0]
    assert after[0] != before[0] and "rebuild" in after and after[3] == before[3]
    assert live.get() == (200, HELLO_TEXT)
    live.settle("web.1", "worker.1")


def test_a_release_that_crash_loops_after_its_checks_is_rolled_back(switch):
    switch.deploy()
    good = switch.image()
    switch.deploy(Dockerfile=(switch.work / "Dockerfile").read_text() + "ENV GREETING=bad\n")
    assert switch.get() == (200, "bad")

    def die_or_rolled_back():
        try:
            if switch.get()[1] == HELLO_TEXT:
                return True
            switch.get("/die")
        except OSError:
            pass
        return False

    wait_until(die_or_rolled_back, 90)
    wait_until(lambda: "rolled back: web.1 kept crashing" in switch.ok("releases"))
    assert "v2 was rolled back: web.1 kept crashing" in switch.deploy(Dockerfile=(switch.work / "Dockerfile").read_text().replace("bad", "better"))
    assert "was rolled back" not in switch.deploy()
    switch.ok("rollback", "v1")
    assert switch.image() == good
    switch.settle()
    assert switch.get() == (200, HELLO_TEXT)
    events = [json.loads(line) for line in (STATE / "events.log").read_text().splitlines() if f'"{switch.name}"' in line]
    assert any("kept crashing" in event.get("note", "") for event in events)


def test_a_one_off_has_the_config_gives_its_exit_code_and_is_gone(live):
    done = live.person.ssh("run", "-e", quoted("EXTRA=a b")[0], live.name, *quoted("sh", "-c", "echo $EXTRA $DOKKU_APP_NAME; cat; exit 7"), stdin="typed")
    assert (done.returncode, done.stdout) == (7, f"a b {live.name}\ntyped")
    assert not [name for name in live.containers("-a") if ".run." in name]


def test_a_one_off_ends_when_its_client_goes_away(live):
    client = live.person.start("run", live.name, *quoted("sh", "-c", "echo begun; sleep 1000"))
    client.when("begun")
    client.signal(9)
    wait_until(lambda: not [name for name in live.containers("-a") if ".run." in name])


def test_a_detached_one_off_runs_on_and_tick_ends_it_when_its_time_is_up(live):
    stays = live.person.ok("run:detached", live.name, "sleep", "1000").strip()
    name = live.person.ok("run:detached", "--ttl-seconds", "2", live.name, "sleep", "1000").strip()
    assert name in live.containers()

    def ticked_away():
        assert sh("dokku", "tick").returncode == 0
        return name not in live.containers("-a")

    wait_until(ticked_away)
    assert stays in live.containers()
    docker("rm", "-f", stays)


def test_enter_opens_the_named_process(live):
    assert live.ok("enter", "worker", *quoted("sh", "-c", "echo $DYNO")) == "worker.1\n"
    assert live.person.ssh("enter", live.name, "web", stdin="echo $DYNO; exit 3\n").returncode == 3
    assert "has no running process 'nope'" in live.refused("enter", "nope", code=1)


def test_a_terminal_reaches_the_one_off(live):
    done = live.person.ssh("run", live.name, "tty", options=("-tt",))
    assert done.returncode == 0 and "/dev/pts/" in done.stdout, done.stdout


def test_a_last_line_without_an_end_is_in_the_logs(switch):
    switch.deploy(Procfile="web: exec perl /server.pl\nworker: printf first-and-last; exec sleep 1000\n")
    switch.ok("ps:scale", "worker=1")
    switch.ok("ps:stop")
    assert "app[worker.1]: first-and-last" in switch.ok("logs", "-p", "worker")


def test_logs_interleave_choose_and_follow(live):
    assert "app[worker.1]: worker-says-hello" in live.ok("logs")
    assert live.ok("logs", "-q", "-p", "worker") == "worker-says-hello\n"
    assert len(live.ok("logs", "-n", "1").splitlines()) == 1
    client = live.person.start("logs", live.name, "-t", "-n", "1", "-p", "web")
    client.when("listening on")
    live.get("/print/first-mark")
    client.when("first-mark")
    live.ok("ps:restart")
    live.get("/print/second-mark")
    client.when("second-mark")
    assert "worker-says" not in client.output
    client.signal(9)
    live.settle("web.1", "worker.1")


def test_config_in_every_form(switch):
    switch.person.ok("apps:create", switch.name)
    value = 'two\nlines "and" $quotes \'single\' =x'
    switch.person.ok("config:import", "--format", "json", switch.name, "-", stdin=json.dumps({"ODD": value, "PLAIN": "1"}))
    assert switch.ok("config:get", "ODD") == value + "\n"
    assert json.loads(switch.ok("config:export", "--format", "json")) == {"ODD": value, "PLAIN": "1"}
    assert sh("sh", "-c", switch.ok("config:export") + '\nprintf %s "$ODD"').stdout == value
    envfile = switch.ok("config:export", "--format", "envfile")
    assert switch.ok("config:keys") == "ODD\nPLAIN\n"
    with tarfile.open(fileobj=io.BytesIO(switch.ok("config:bundle").encode())) as bundle:
        assert {name: bundle.extractfile(name).read().decode() for name in bundle.getnames()} == {"ODD": value, "PLAIN": "1"}
    switch.ok("config:clear")
    assert switch.ok("config:keys") == ""
    switch.person.ok("config:import", switch.name, "-", stdin=envfile)
    assert switch.ok("config:get", "ODD") == value + "\n"
    switch.person.ok("config:import", "--replace", switch.name, "-", stdin="# only this\nexport NEW='a b'\n")
    assert json.loads(switch.ok("config:export", "--format", "json")) == {"NEW": "a b"}
    switch.person.refused("config:import", switch.name, "-", code=2, stdin="GOOD=1\nno pair\n")
    assert switch.ok("config:keys") == "NEW\n"
    switch.person.ok("config:set", "--encoded", switch.name, "NEW=aGkK")
    assert switch.ok("config:get", "--quoted", "NEW") == "'hi\n'\n"


def test_domains_disable_serves_by_port_and_enable_by_name_again(switch):
    switch.deploy()
    switch.ok("domains:disable")
    port = int(switch.ok("url").strip().rpartition(":")[2])
    assert switch.get()[0] == 404
    assert ask("anything", port=port) == (200, HELLO_TEXT)
    switch.ok("domains:add", f"other-{switch.name}.example.com")
    switch.ok("domains:enable")
    assert switch.get() == ask(f"other-{switch.name}.example.com") == (200, HELLO_TEXT), "what was named while disabled comes beside what was there"
    switch.ok("domains:clear")
    assert ask(f"other-{switch.name}.example.com")[0] == 404
    assert switch.get() == (200, HELLO_TEXT)


def test_boot_quarantines_a_vhost_that_nginx_refuses_and_the_others_serve(live):
    bad = STATE / "nginx" / "zz-broken.conf"
    bad.write_text("server { listen nonsense; }\n")
    try:
        done = sh("dokku", "boot")
        assert done.returncode == 0 and "nginx refuses the configuration of zz-broken.conf" in done.stderr, done.stderr
        assert not bad.exists() and (STATE / "nginx" / "quarantined" / "zz-broken.conf").exists()
        assert live.get() == (200, HELLO_TEXT)
    finally:
        bad.unlink(missing_ok=True)
        (STATE / "nginx" / "quarantined" / "zz-broken.conf").unlink(missing_ok=True)


@pytest.mark.parametrize("command", ["ps:start", "ps:restart"])
@pytest.mark.parametrize("same", [True, False])
def test_a_start_that_fails_leaves_the_app_stopped_and_nothing_running(switch, same, command):
    switch.deploy(Procfile="web: exec perl /server.pl\n")
    switch.ok("ps:stop")
    switch.ok("config:set", "--no-restart", "EXIT_AT_START=9")
    if same:  # else the config is another than the release's
        docker("rm", "-f", f"{switch.name}.web.1")
        record = switch.folder / "releases" / "v1" / "ENV"
        record.write_text(record.read_text() + 'EXIT_AT_START="9"\n')
    assert "exit code 9" in switch.refused(command, code=1)
    assert sh("dokku", "tick").returncode == 0
    assert switch.containers() == [] and switch.get()[0] == 502


def test_what_was_set_while_stopped_or_without_a_restart_comes_with_the_next_start(switch):
    switch.deploy(Procfile="web: exec perl /server.pl\n")
    switch.ok("ps:stop")
    switch.ok("config:set", "GREETING=stopped")
    switch.ok("ps:start")
    assert switch.get() == (200, "stopped") and [row[-1] for row in switch.releases()] == ["live", "replaced"]
    switch.ok("config:set", "--no-restart", "GREETING=later")
    assert switch.get() == (200, "stopped")
    switch.ok("ps:restart", "web")
    assert switch.get() == (200, "stopped"), "a type alone is of the release that the others are of"
    switch.ok("ps:restart")
    assert switch.get() == (200, "later")
    switch.ok("ps:restart")
    assert len(switch.releases()) == 3, "nothing is new: the same release"


def test_a_scale_that_fails_leaves_no_process_of_it(switch):
    switch.deploy(Procfile="web: exec perl /server.pl\nworker: case $DYNO in worker.3) exit 4 ;; esac; exec sleep 1000\n")
    assert "exit code 4" in switch.refused("ps:scale", "worker=3")
    assert not [name for name in switch.containers("-a") if ".worker." in name]


def test_what_failed_is_on_record_with_its_code(live):
    live.refused("rollback", "v999", code=1)
    events = [json.loads(line) for line in (STATE / "events.log").read_text().splitlines() if f'"{live.name}"' in line]
    assert (events[-1]["command"], events[-1]["result"], events[-1]["who"]) == ("rollback", 1, live.person.name)


def test_checks_in_a_file_and_by_a_command_decide(switch):
    switch.deploy(CHECKS="WAIT=0\nATTEMPTS=3\n/health all well\n")
    said = switch.rejected(CHECKS="WAIT=0\nATTEMPTS=3\n/health something else\n")
    assert "GET /health on port 8080: the answer lacks 'something else'" in said and "after 3 attempts" in said
    checks = {"type": "startup", "command": ["sh", "-c", "echo asked; exit 9"], "attempts": 2, "wait": 0}
    said = switch.rejected(CHECKS=None, app_json=json.dumps({"healthchecks": {"web": [checks]}}))
    assert "ended with exit code 9: asked" in said
    switch.deploy(app_json=json.dumps({"healthchecks": {"web": [{**checks, "command": ["test", "-f", "/server.pl"]}]}}))
    switch.settle()


def test_options_of_docker_reach_build_and_processes(switch):
    switch.person.ok("apps:create", switch.name)
    switch.ok("docker-options:add", "build", "--build-arg", "LEVEL=three")
    switch.ok("docker-options:add", "deploy,run", quoted("--env EXTRA='a b'")[0])
    switch.person.ok("docker-options:add", "--process", "worker", switch.name, "deploy", "--memory=64m")
    switch.deploy(Procfile=PROCFILE, Dockerfile="FROM debian:bookworm\nARG LEVEL\nENV LEVEL=$LEVEL\nCOPY server.pl /server.pl\nEXPOSE 8080\nCMD perl /server.pl\n")
    switch.ok("ps:scale", "worker=1")
    assert switch.get("/env/LEVEL") == (200, "three") and switch.get("/env/EXTRA") == (200, "a b")
    assert switch.inspect("worker.1")["HostConfig"]["Memory"] == 64 * 2**20 and switch.inspect()["HostConfig"]["Memory"] == 0
    assert switch.ok("run", *quoted("sh", "-c", "echo $EXTRA")) == "a b\n"
    assert switch.ok("docker-options:list", "--phase", "build") == "--build-arg LEVEL=three\n"
    assert switch.ok("docker-options:report", "--docker-options-deploy-worker") == "--memory=64m\n"
    assert "Docker refuses --memory=lots" in switch.refused("docker-options:add", "deploy", "--memory=lots", code=2)
    assert "use instead: dokku network:set" in switch.refused("docker-options:add", "run", "--network=host", code=2)
    switch.ok("docker-options:remove", "deploy,run", quoted("--env EXTRA='a b'")[0])
    switch.ok("docker-options:clear", "build")
    assert switch.ok("docker-options:list", "--phase", "build") == ""
    switch.ok("ps:restart")
    assert switch.get("/env/EXTRA")[0] == 404


def test_the_last_five_images_are_kept_and_no_others(switch):
    for number in range(6):
        switch.deploy(Dockerfile=f"FROM debian:bookworm\nCOPY server.pl /server.pl\nLABEL number={number}\nEXPOSE 8080\nCMD perl /server.pl\n")
    switch.ok("config:set", "A=1")
    switch.settle()
    kept = docker("images", "--format", "{{.Tag}}", f"dokku/{switch.name}").split()
    assert sorted(kept) == ["latest", "v2", "v3", "v4", "v5", "v6", "v7"], "v6 and v7 share an image"
    assert "has no image of v1 any more" in switch.refused("rollback", "v1")
    switch.ok("rollback", "v2")
    assert switch.get() == (200, HELLO_TEXT)


def test_builds_of_different_apps_wait_for_a_slot(new_app):
    apps = [new_app() for _ in range(max(1, os.cpu_count() // 2) + 1)]
    pushes = [app.start_push(Dockerfile=f"FROM debian:bookworm\nCOPY server.pl /server.pl\nRUN echo {app.name}; sleep 5\nCMD perl /server.pl\n") for app in apps]
    for push in pushes:
        code, output = push.end()
        assert code == 0, output
    assert [push for push in pushes if "are running, which is what this server allows; waiting" in push.output]
    for app in apps:
        assert app.get() == (200, HELLO_TEXT)


def test_domains_of_the_server_name_every_app(live):
    person, own = live.person, f"x-{live.name}.example.net"
    live.ok("domains:add", own, f"y-{live.name}.example.net")
    live.ok("domains:remove", f"y-{live.name}.example.net")
    assert ask(own) == live.get() == (200, HELLO_TEXT) and ask(f"y-{live.name}.example.net")[0] == 404
    live.ok("domains:clear")
    try:
        person.ok("domains:add-global", "second.test")
        assert ask(f"{live.name}.second.test") == live.get() == (200, HELLO_TEXT)
        person.ok("domains:remove-global", "second.test")
        assert ask(f"{live.name}.second.test")[0] == 404 and live.get() == (200, HELLO_TEXT)
        person.ok("domains:clear-global")
        port = int(live.ok("url").strip().rpartition(":")[2])
        assert live.get()[0] == 404 and ask("any", port=port) == (200, HELLO_TEXT)
    finally:
        person.ok("domains:set-global", DOMAIN)
    assert live.get() == (200, HELLO_TEXT)


def test_inspect_shows_docker_s_view_without_values(live):
    secret = "hidden-in-inspect"
    live.ok("config:set", f"SECRET={secret}")
    said = live.ok("ps:inspect")
    assert {row["Name"] for row in json.loads(said)} >= {f"/{live.name}.web.1"} and "SECRET=***" in said and secret not in said
    live.ok("config:unset", "SECRET")
    live.settle("web.1", "worker.1")


def test_a_base_image_that_is_there_is_taken_as_it_is(admin):
    before = docker("images", "--quiet", "--no-trunc", base_image())
    assert "is there; --force makes it anew" in admin.ok("images:build", "debian")
    assert docker("images", "--quiet", "--no-trunc", base_image()) == before
    assert "'cobol' is not possible here" in admin.refused("images:build", "cobol", code=2)
