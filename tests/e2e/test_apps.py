"""Apps: clone, rename, lock; processes one by one; tags; what app.json asks for around a deploy."""

import json

from conftest import HELLO_TEXT, PROCFILE, ask, docker, quoted, sh, wait_until

import pytest


@pytest.fixture
def second(admin, new_app):
    """A name for a second app, removed afterwards."""
    return new_app()


def test_a_clone_runs_the_same_image_under_its_own_name(switch, second):
    switch.deploy()
    switch.ok("config:set", "GREETING=both")
    switch.ok("domains:add", f"own-{switch.name}.example.com")
    switch.ok("apps:clone", second.name)
    assert ask(second.host) == (200, "both") and second.image() == switch.image()
    assert second.ok("domains:report", "--domains-app-vhosts").split() == [second.host], "a domain belongs to one app"
    assert "Name is already taken" in switch.refused("apps:clone", second.name)
    assert switch.person.ok("apps:clone", "--ignore-existing", switch.name, second.name)
    switch.ok("config:set", "GREETING=first")
    assert (switch.get(), second.get()) == ((200, "first"), (200, "both"))
    switch.person.ok("--force", "apps:destroy", switch.name)
    assert second.get() == (200, "both"), "the clone stands on its own"
    second.ok("rollback", "v1")
    assert second.get() == (200, HELLO_TEXT)


def test_a_clone_shares_data_and_no_secret_key(switch, second, tmp_path):
    switch.deploy()
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key")
    switch.ok("ssh:install", stdin=(tmp_path / "key").read_text())
    switch.person.ok("storage:create", switch.name)
    switch.person.ok("storage:mount", switch.name, switch.name, "--container-dir", "/data")
    said = switch.ok("apps:clone", second.name)
    try:
        assert f"Both see the data in /var/lib/dokku/data/storage/{switch.name}" in said and f"dokku ssh:install {second.name}" in said
        assert "There is no ssh key" in second.refused("ssh:public") and switch.ok("ssh:public").startswith("ssh-ed25519")
        switch.ok("ps:restart")  # it was deployed before the mount
        docker("exec", "--user=root", f"{switch.name}.web.1", "touch", "/data/seen")
        assert docker("exec", f"{second.name}.web.1", "ls", "/data") == "seen"
    finally:
        for app in (switch, second):
            app.person.ssh("storage:unmount", app.name, switch.name)
        switch.person.ok("storage:destroy", switch.name, "--destroy-host-dir", "--force")


def test_the_report_says_where_a_deploy_came_from(switch):
    source = lambda: switch.ok("apps:report", "--app-deploy-source").strip()  # noqa: E731
    switch.ok("apps:create")
    assert source() == ""
    switch.deploy()
    switch.ok("config:set", "A=1")
    assert source() == "git-push"
    switch.ok("git:from-image", f"dokku/{switch.name}:v1")
    assert source() == "git-from-image"
    switch.ok("rollback", "v1")
    assert source() == "git-from-image", "the last that brought something"


def test_a_clone_that_is_not_deployed_waits_for_its_push(switch, second):
    switch.deploy()
    switch.person.ok("apps:clone", "--skip-deploy", switch.name, second.name)
    assert second.get()[0] == 502 and second.containers("-a") == []
    done = second.person.push(switch.work, second.name, f"{switch.git('rev-parse', 'HEAD')}:refs/heads/main")
    assert done.returncode == 0, done.stderr
    second.ok("ps:rebuild")
    assert second.get() == (200, HELLO_TEXT)
    assert second.person.ok("--force", "apps:destroy", second.name)


def test_a_clone_that_does_not_come_up_leaves_nothing(switch, second):
    switch.deploy()
    record = switch.folder / "releases" / "v1" / "ENV"
    record.write_text(record.read_text() + 'EXIT_AT_START="9"\n')
    assert "exit code 9" in switch.refused("apps:clone", second.name)
    assert switch.person.ssh("apps:exists", second.name).returncode == 20 and second.containers("-a") == []
    assert docker("images", "-q", f"dokku/{second.name}") == ""
    assert switch.get() == (200, HELLO_TEXT)


def test_a_renamed_app_keeps_domains_keys_and_releases(switch, second, new_person):
    deployer = new_person()
    switch.deploy()
    switch.ok("deploy:allow", stdin=deployer.public)
    switch.ok("domains:set", own := f"own-{switch.name}.example.com")
    switch.ok("apps:rename", second.name)
    assert ask(own) == (200, HELLO_TEXT) and second.releases()[0][-1] == "live"
    assert switch.person.ssh("apps:exists", switch.name).returncode == 20 and switch.containers("-a") == []
    done = deployer.push(switch.work, second.name)
    assert done.returncode == 0, done.stderr


def test_a_locked_app_takes_no_push(switch):
    switch.deploy()
    assert "Deploy lock does not exist" in switch.refused("apps:locked")
    assert "Deploy lock created" in switch.ok("apps:lock")
    switch.ok("apps:locked")
    assert switch.ok("apps:report", "--app-locked") == "true\n"
    assert "is locked by test-" in switch.rejected(new="file")
    switch.ok("apps:unlock")
    switch.deploy(newer="file")


def test_destroying_asks_for_the_name(bare):
    done = bare.person.ssh("apps:destroy", bare.name, stdin="something else\n")
    assert done.returncode == 1 and "nothing was removed" in done.stderr
    bare.ok("apps:exists")
    assert "logs stay" in bare.ok("apps:destroy", stdin=f"{bare.name}\n")
    assert bare.person.ssh("apps:exists", bare.name).returncode == 20


def test_autocreation_can_be_switched_off(switch):
    switch.person.ok("apps:set", "--global", "disable-autocreation", "true")
    try:
        switch.write()
        done = switch.person.push(switch.work, switch.name)
        assert done.returncode != 0 and f"App {switch.name} does not exist" in done.stderr
    finally:
        switch.person.ok("apps:set", "--global", "disable-autocreation")
    switch.deploy()


def test_one_process_type_stops_starts_and_restarts_alone(switch):
    switch.deploy(Procfile=PROCFILE, DOKKU_SCALE="worker=1\nclock=1\n")
    switch.settle("web.1", "worker.1", "clock.1")
    web = switch.inspect()["Id"]
    switch.ok("ps:stop", "worker")
    switch.settle("web.1", "clock.1")
    switch.deploy(more="1")
    switch.settle("web.1", "clock.1")
    switch.ok("ps:start", "worker")
    switch.settle("web.1", "worker.1", "clock.1")
    web, started = switch.inspect()["Id"], switch.inspect("worker.1")["State"]["StartedAt"]
    switch.ok("ps:restart", "worker")
    assert switch.inspect("worker.1")["State"]["StartedAt"] != started and switch.inspect()["Id"] == web
    assert "has no process type nope" in switch.refused("ps:stop", "nope")
    switch.ok("ps:scale", "--skip-deploy", "worker=2")
    assert json.loads(switch.ok("ps:scale", "--format", "json"))["worker"] == 2 and f"{switch.name}.worker.2" not in switch.containers()
    assert "running" in switch.ok("status")
    assert "perl /server.pl" in switch.ok("top") and "PID" in switch.ok("top", "-o", "pid,comm")
    assert switch.ok("exec", *quoted("sh", "-c", "echo $DYNO")) == "web.1\n"
    switch.person.ok("ps:retire")
    switch.ok("disable")
    assert "not running" in switch.ok("status") and switch.get()[0] == 502
    switch.ok("enable")
    assert switch.get() == (200, HELLO_TEXT)


def test_web_restarts_alone_and_the_others_stay_over_reboots_until_the_next_release(switch):
    switch.deploy(Procfile=PROCFILE, DOKKU_SCALE="worker=1\n")
    switch.settle("web.1", "worker.1")
    web, worker = switch.inspect()["Id"], switch.inspect("worker.1")["Id"]
    switch.ok("ps:restart", "web")
    switch.settle("web.1", "worker.1")
    assert switch.inspect()["Id"] != web and switch.inspect("worker.1")["Id"] == worker
    wait_until(lambda: switch.person.ssh("doctor", switch.name).returncode == 0)
    docker("kill", f"{switch.name}.web.1")
    docker("stop", "-t", "1", f"{switch.name}.worker.1")
    switch.person.ok("ps:restore", switch.name)
    switch.settle("web.1", "worker.1")
    assert switch.inspect("worker.1")["Id"] == worker and switch.inspect("worker.1")["State"]["Running"]
    switch.ok("ps:scale", "worker=2")
    switch.settle("web.1", "worker.1", "worker.2")
    assert switch.inspect("worker.1")["Id"] == worker
    switch.ok("ps:scale", "worker=1")
    switch.ok("config:set", "LEVEL=2")
    switch.settle("web.1", "worker.1")
    assert switch.inspect("worker.1")["Id"] != worker and switch.get() == (200, HELLO_TEXT)


def test_rebuilds_by_every_spelling(switch):
    switch.deploy(note="first")
    first = switch.git("rev-parse", "HEAD")
    switch.deploy(Procfile="web: GREETING=second exec perl /server.pl\n")
    switch.ok("rebuild", first[:10])
    assert switch.get() == (200, HELLO_TEXT) and switch.ok("git:report", "--git-sha").strip() == first
    switch.deploy(Dockerfile=(switch.work / "Dockerfile").read_text() + "RUN cat /proc/sys/kernel/random/uuid > /built\n")
    built = switch.get("/file/built")[1]
    switch.ok("ps:rebuild")
    assert switch.get("/file/built")[1] == built, "layers are cached"
    switch.ok("rebuild:force")
    assert len(switch.get("/file/built")[1]) == len(built) and switch.get("/file/built")[1] != built
    assert "has no commit nonsense" in switch.refused("rebuild", "nonsense")


def test_tags_keep_an_image_to_go_back_to(switch):
    switch.deploy()
    switch.ok("tag:add", "good")
    switch.deploy(Procfile="web: GREETING=bad exec perl /server.pl\n")
    assert switch.ok("tag:list").split() == ["good", "latest", "v1", "v2"]
    switch.ok("rollback", "good")
    assert switch.get() == (200, HELLO_TEXT)
    assert "can't be a tag" in switch.refused("tag:add", "v9", code=2)
    switch.ok("tag:rm", "good")
    assert "has no tag good" in switch.refused("tag:rm", "good")


def test_scripts_of_app_json_run_before_and_after(switch):
    scripts = {"postdeploy": "echo only-the-first-time", "dokku": {"predeploy": "echo $SECRET-word > /made; echo making", "postdeploy": "echo after-each"}}
    switch.person.ok("apps:create", switch.name)
    switch.ok("config:set", "SECRET=hidden")
    out = switch.deploy(app_json=json.dumps({"scripts": scripts}))
    assert out.index("making") < out.index("Switching") < out.index("only-the-first-time") < out.index("after-each")
    assert switch.get("/file/made") == (200, "hidden-word") and switch.get("/env/SECRET") == (200, "hidden")
    assert "hidden" not in docker("inspect", switch.image()) + docker("history", "--no-trunc", switch.image())
    assert "only-the-first-time" not in switch.deploy(more="1")
    scripts["dokku"]["predeploy"] = "echo broken; exit 4"
    assert "The predeploy command ended with exit code 4" in switch.rejected(app_json=json.dumps({"scripts": scripts}))
    scripts["dokku"] = {"postdeploy": "exit 5"}
    out = switch.deploy(app_json=json.dumps({"scripts": scripts}))
    assert "postdeploy command ended with exit code 5; the release is live all the same" in out


def test_checks_skipped_and_disabled(switch):
    switch.deploy()
    switch.ok("checks:set", "default-wait", "1")
    switch.ok("checks:skip", "web")
    assert switch.ok("checks:report", "--checks-skipped-list") == "web\n"
    switch.deploy(Dockerfile="FROM debian:bookworm\nCMD sleep 1000\n")
    wait_until(lambda: switch.get()[0] == 502)
    switch.ok("rollback", "v1")
    switch.ok("checks:enable")
    assert switch.ok("checks:report", "--checks-skipped-list") == "none\n"
    assert "web.1 is healthy" in switch.ok("checks:run")
    # what may never run twice: the old one has ended before the new one starts, and comes back when that fails
    switch.ok("checks:disable", "web")
    assert switch.ok("preboot:status") == "disabled\n"
    old = switch.inspect()["Id"]
    assert "exit code 9" in switch.refused("config:set", "EXIT_AT_START=9")
    wait_until(lambda: switch.get() == (200, HELLO_TEXT))
    assert switch.inspect()["Id"] == old
    switch.ok("config:set", "GREETING=alone")
    ended, started = docker("events", "--since", "1h", "--until", "0s", "--filter", f"container={old}", "--filter", "event=die", "--format", "{{.TimeNano}}").split()[-1], None
    started = docker("events", "--since", "1h", "--until", "0s", "--filter", f"container={switch.inspect()['Id']}", "--filter", "event=start", "--format", "{{.TimeNano}}")
    assert int(ended) < int(started) and switch.get() == (200, "alone")
    switch.ok("preboot:enable")
    assert switch.ok("preboot:status") == "enabled\n"
    switch.ok("preboot:cooldown:time", "7")
    switch.ok("preboot:wait:time", "3")
    assert switch.ok("checks:report", "--checks-wait-to-retire") == "7\n" and switch.ok("checks:report", "--checks-default-wait") == "3\n"


def test_checks_of_every_kind_in_app_json(switch):
    check = {"type": "readiness", "path": "/headers", "content": "X-Asked: yes", "httpHeaders": [{"name": "X-Asked", "value": "yes"}], "attempts": 2, "wait": 0}
    switch.deploy(app_json=json.dumps({"healthchecks": {"web": [check]}}))
    said = switch.rejected(app_json=json.dumps({"healthchecks": {"web": [{**check, "httpHeaders": []}]}}))
    assert "lacks 'X-Asked: yes'" in said
    assert "can't be of the type 'odd'" in switch.rejected(app_json=json.dumps({"healthchecks": {"web": [{"type": "odd"}]}}))
    switch.ok("checks:set", "attempts", "1")
    said = switch.rejected(app_json=None, CHECKS=f"WAIT=0\n//{switch.host}/headers Host: {switch.host}\n/headers nonsense\n")
    assert "after 1 attempts" in said and "lacks 'nonsense'" in said


def test_a_process_that_fails_its_liveness_check_is_restarted(switch):
    check = {"type": "liveness", "command": ["test", "!", "-e", "/sick"], "attempts": 1}
    switch.deploy(app_json=json.dumps({"healthchecks": {"web": [check]}}))
    started = switch.inspect()["State"]["StartedAt"]
    assert sh("dokku", "tick").returncode == 0 and switch.inspect()["State"]["StartedAt"] == started
    docker("exec", f"{switch.name}.web.1", "touch", "/sick")
    wait_until(lambda: sh("dokku", "tick").returncode == 0 and switch.inspect()["State"]["StartedAt"] != started)
    wait_until(lambda: switch.get() == (200, HELLO_TEXT))


def test_resources_bound_a_process_type(switch):
    switch.deploy(Procfile=PROCFILE, DOKKU_SCALE="worker=1\n")
    switch.person.ok("resource:limit", "--memory", "128m", "--cpu", "0.5", switch.name)
    switch.person.ok("resource:limit", "--process-type", "worker", "--memory", "64", switch.name)
    switch.person.ok("resource:reserve", "--memory", "32m", switch.name)
    switch.ok("ps:restart")
    web, worker = switch.inspect()["HostConfig"], switch.inspect("worker.1")["HostConfig"]
    assert (web["Memory"], web["NanoCpus"], web["MemoryReservation"]) == (128 * 2**20, 500_000_000, 32 * 2**20) and worker["Memory"] == 64 * 2**20
    assert switch.ok("resource:report", "--resource-worker.limit.memory") == "64\n"
    assert "has no effect" in switch.person.ssh("resource:limit", "--network", "1g", switch.name).stderr
    assert "is not an amount" in switch.person.refused("resource:limit", "--memory", "lots", switch.name, code=2)
    switch.person.ok("resource:limit-clear", "--process-type", "worker", switch.name)
    switch.person.ok("resource:reserve-clear", switch.name)
    switch.ok("ps:restart")
    web, worker = switch.inspect()["HostConfig"], switch.inspect("worker.1")["HostConfig"]
    assert worker["Memory"] == 128 * 2**20 and web["MemoryReservation"] == 0


def test_settings_of_processes_reach_docker(switch):
    switch.deploy()
    for noun, key, value in (("ps", "restart-policy", "on-failure:4"), ("ps", "stop-timeout-seconds", "3"), ("logs", "max-size", "5m"),
                             ("logs", "app-label-alias", "my.app"), ("scheduler-docker-local", "init-process", "false"),
                             ("ps", "start-cmd", "GREETING=from-start-cmd exec perl /server.pl")):
        switch.ok(f"{noun}:set", key, quoted(value)[0])
    switch.ok("ps:restart")
    facts = switch.inspect()
    host = facts["HostConfig"]
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 4} and host["Init"] is False
    assert host["LogConfig"]["Config"]["max-size"] == "5m" and facts["Config"]["Labels"]["my.app"] == switch.name
    assert switch.get() == (200, "from-start-cmd")


def test_the_tree_may_be_laid_out_differently(switch):
    folder = switch.work / "part"
    (folder / "conf").mkdir(parents=True)
    for name in ("server.pl", "Dockerfile"):
        (switch.work / name).rename(folder / ("conf/Docker.part" if name == "Dockerfile" else name))
    (folder / "conf" / "procs").write_text("web: GREETING=laid-out exec perl /server.pl\n")
    (folder / "conf" / "app.json").write_text('{"formation": {"web": {"quantity": 2}}}')
    switch.person.ok("apps:create", switch.name)
    assert "no Dockerfile in the tree" in switch.rejected()
    for noun, key, value in (("builder", "build-dir", "part"), ("builder-dockerfile", "dockerfile-path", "conf/Docker.part"),
                             ("ps", "procfile-path", "conf/procs"), ("app-json", "appjson-path", "conf/app.json")):
        switch.ok(f"{noun}:set", key, value)
    switch.deploy()
    assert switch.get() == (200, "laid-out")
    switch.settle("web.1", "web.2")
    assert "is not a path" in switch.refused("builder:set", "build-dir", "../../etc", code=2)


def test_an_app_that_is_not_restored_stays_down_after_a_boot(switch):
    switch.deploy()
    switch.ok("ps:set", "restore", "false")
    docker("stop", "-t", "0", f"{switch.name}.web.1")
    assert sh("dokku", "boot").returncode == 0
    assert switch.containers() == []
    switch.ok("ps:restore")
    wait_until(lambda: switch.get() == (200, HELLO_TEXT))


def test_every_app_is_rebuilt_by_one_command_of_an_administrator(switch, deployer):
    assert "may not do this" in deployer.refused("rebuild:all", code=77)
    assert "may not do this" in deployer.refused("rebuild:all:force", code=77)
