"""A push makes an app live; whatever fails, the old release goes on serving."""

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import DOCKER, HELLO_TEXT, STATE, sh, start_docker, stop_docker, wait_until


def test_a_push_is_live_and_a_second_replaces_it(app):
    output = app.deploy()
    assert "Application deployed" in output and f"http://{app.name}.test.local" in output
    assert app.get() == (200, "Hello from dokku_py")
    app.deploy(Procfile="web: GREETING=second exec perl /server.pl\n")
    assert app.get() == (200, "second")
    wait_until(lambda: app.containers("-a") == [f"{app.name}.web.1"])
    assert app.ok("url") == f"http://{app.name}.test.local\n"
    assert [line.split()[-1] for line in app.ok("releases").splitlines()] == ["live", "replaced"]
    wait_until(lambda: len([name for name in os.listdir(STATE / "addresses") if f"={app.name}=" in name]) == 1)


BROKEN = {
    "the build fails": ({"Dockerfile": "FROM debian:bookworm\nRUN echo the-reason && false\n"}, "the-reason"),
    "no Dockerfile": ({"Dockerfile": None}, "no Dockerfile"),
    "the release command fails": ({"Procfile": "web: exec perl /server.pl\nrelease: echo migrating; exit 3\n"}, "exit code 3"),
    "a process ends at once": ({"Procfile": "web: echo my-last-words; exit 4\n"}, "my-last-words"),
    "never healthy": ({"app_json": '{"healthchecks": {"web": [{"path": "/", "content": "nonsense", "attempts": 2, "wait": 0.1}]}}'}, "lacks 'nonsense'"),
    "bad Procfile": ({"Procfile": "what is this\n"}, "Procfile line 1"),
    "bad app.json": ({"app_json": "{"}, "app.json is not JSON"),
}


def test_each_failure_rejects_the_push_and_the_old_release_serves(app):
    app.deploy()
    for name, (files, words) in BROKEN.items():
        sh("git", "reset", "-q", "--hard", "HEAD", cwd=app.work)
        before = sh("git", "rev-parse", "HEAD", cwd=app.work).stdout.strip()
        for file in [file for file, text in files.items() if text is None]:
            (app.work / file).unlink()
        code, output = app.push(**{file: text for file, text in files.items() if text is not None})
        assert code != 0 and "remote rejected" in output, f"{name}: {output}"
        assert words in output, f"{name}: {output}"
        app.assert_untouched()
        if name == "a process ends at once":
            assert "app[web.1]: my-last-words" in app.ok("logs:failed")
        sh("git", "reset", "-q", "--hard", before, cwd=app.work)
    app.deploy()


def test_nginx_refuses_and_the_old_release_serves(app):
    app.deploy()
    broken = Path("/etc/nginx/conf.d/aa-broken.conf")
    broken.write_text("nonsense;\n")
    try:
        code, output = app.push(Procfile="web: GREETING=new exec perl /server.pl\n")
    finally:
        broken.unlink()
    assert code != 0 and "nginx refuses" in output
    app.assert_untouched()


def test_other_branches_are_stored_and_deleting_the_deploy_branch_is_refused(app):
    app.deploy()
    done = app.person.push(app.work, app.name, "main:topic")
    assert done.returncode == 0 and "topic is not the deploy branch" in done.stderr
    assert app.person.push(app.work, app.name, ":main").returncode != 0
    assert app.person.push(app.work, app.name, ":topic").returncode == 0
    assert len(app.ok("releases").splitlines()) == 1


def test_a_pusher_who_goes_away_cancels_the_build(app):
    app.deploy()
    app.write(Dockerfile="FROM debian:bookworm\nRUN perl -e '$|=1; for (1..600) { print \"chatter\" x 50, \"\\n\"; select undef,undef,undef,.1 }'\n")
    push = subprocess.Popen(["git", "push", f"dokku@127.0.0.1:{app.name}", "main"], cwd=app.work, env=app.person.environment(),
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    for line in push.stdout:
        if "chatter" in line:
            break
    os.killpg(push.pid, signal.SIGKILL)
    lock = STATE / "apps" / app.name / "lock"
    wait_until(lambda: sh("flock", "-n", lock, "true").returncode == 0)
    app.assert_untouched()
    assert "cancelled" in app.ok("releases")


def test_a_second_push_waits_and_says_for_whom(app, tmp_path):
    app.deploy()
    app.write(Dockerfile=f"FROM debian:bookworm\nCOPY server.pl /server.pl\nRUN echo {app.name}; sleep 3\nCMD perl /server.pl\n")
    first = subprocess.Popen(["git", "push", f"dokku@127.0.0.1:{app.name}", "main"], cwd=app.work, env=app.person.environment(),
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: "push by" in (STATE / "apps" / app.name / "lock").read_text() and len(list((STATE / "apps" / app.name).glob("tree.*"))) >= 2)
    done = app.person.push(app.work, app.name, "main:main")
    assert "is busy: push by test-" in done.stderr, done.stderr
    assert first.wait() == 0
    assert done.returncode != 0, "the same commit again: the ref moved while it waited"
    assert "moved while this push waited" in done.stderr
    assert app.get()[0] == 200


def test_pushes_that_wait_keep_the_objects_they_brought(app):
    app.deploy()
    pushes = [app.start_push(Dockerfile=f"FROM debian:bookworm\nCOPY server.pl /server.pl\nRUN echo {app.name}; sleep 4\nCMD perl /server.pl\n")]
    pushes[0].when(f"RUN echo {app.name}")
    commits = {}
    for topic in ("one", "two"):
        commits[topic] = app.write(**{topic: topic}).git("rev-parse", "HEAD")
        pushes.append(app.person.start_push(app.work, app.name, f"main:{topic}"))
        pushes[-1].when("is busy: push by")
    for push in pushes:
        code, output = push.end()
        assert code == 0, output
    for topic, commit in commits.items():
        assert app.git("ls-remote", f"dokku@127.0.0.1:{app.name}", topic).split()[0] == commit


def test_no_request_is_dropped_by_redeploy_config_restart_scale_and_rollback(app):
    app.deploy()
    failures, count, going = [], [0], threading.Event()

    def ask():
        while not going.wait(0.01):
            try:
                status, _ = app.get()
                count[0] += 1
                if status != 200:
                    failures.append(status)
            except OSError as error:
                failures.append(error)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    [asker.start() for asker in askers]
    try:
        app.deploy(new="file")
        app.ok("config:set", "GREETING=hi")
        app.ok("ps:scale", "web=3")
        app.ok("ps:restart")
        app.ok("ps:restart", "web")
        app.ok("ps:scale", "web=1")
        app.ok("rollback", "v1")
    finally:
        going.set()
        [asker.join() for asker in askers]
    assert count[0] > 50 and not failures, failures[:5]
    assert app.get() == (200, "Hello from dokku_py")
    wait_until(lambda: app.containers("-a") == [f"{app.name}.web.1"])


def test_config_reaches_the_app_without_a_build_and_a_bad_one_is_not_kept(app):
    app.deploy()
    image = sh(*DOCKER, "inspect", "-f", "{{.Image}}", f"{app.name}.web.1").stdout
    app.ok("config:set", "'GREETING=it is \"so\"'", "EMPTY=")
    assert app.get() == (200, 'it is "so"')
    assert sh(*DOCKER, "inspect", "-f", "{{.Image}}", f"{app.name}.web.1").stdout == image
    assert app.ok("config:get", "GREETING") == 'it is "so"\n'
    done = app.person.ssh("config:set", app.name, "PATH=/nowhere")
    assert done.returncode == 1 and "not healthy" in done.stderr
    done = app.person.ssh("config:set", app.name, "PORT=abc")
    assert done.returncode == 1 and "which is not a port" in done.stderr
    assert app.ok("config:keys").split() == ["EMPTY", "GREETING"]
    assert app.get() == (200, 'it is "so"')
    app.ok("config:unset", "GREETING")
    assert app.get() == (200, "Hello from dokku_py")


def test_docker_stopped_is_said_in_a_line_and_after_a_reboot_the_same_images_answer(app):
    app.deploy()
    image, release = app.image(), app.releases()[0]
    stop_docker()
    try:
        assert "sudo service docker" in app.refused("ps:restart", code=1)
        assert "sudo service docker" in app.rejected(new="file")
        assert app.lock_is_free()
        sh("service", "nginx", "stop")
    finally:
        start_docker()
    done = sh("dokku", "boot")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: app.get() == (200, HELLO_TEXT))
    assert app.image() == image and app.releases()[-1][:5] == release[:5]
    app.assert_untouched()


def test_a_retirement_whose_process_was_killed_is_finished_by_restore(app):
    app.deploy()
    record = {"deadline": 0, "workers": [], "containers": [sh(*DOCKER, "create", "--label", f"com.dokku.app-name={app.name}",
                                                              "debian:bookworm", "true").stdout.strip()]}
    retiring = STATE / "apps" / app.name / "RETIRING"
    retiring.write_text(json.dumps(record) + "\n")
    app.ok("ps:restore")
    wait_until(lambda: app.containers("-a") == [f"{app.name}.web.1"] and not retiring.exists())
    assert app.get() == (200, "Hello from dokku_py")


@pytest.mark.parametrize("words, code, text", [
    (["apps:exists", "t-none"], 20, "App t-none does not exist"), (["url", "t-none"], 20, "does not exist"),
    (["apps:lst"], 2, "did you mean apps:list?"), (["url", "A;id"], 2, "can't be the name of an app"),
    (["config:set", "t-none", "novalue"], 2, "is not KEY=VALUE"), (["git-hook"], 77, "may not do this"),
    (["boot"], 77, "may not do this"), (["config:set"], 2, "required"), (["'"], 2, "can't be read"),
])
def test_bad_words_get_one_clear_line_and_a_code(admin, words, code, text):
    done = admin.ssh(*words)
    assert (done.returncode, text in done.stderr, "Traceback" in done.stderr) == (code, True, False), done


def test_help_version_and_bare_ssh(admin):
    assert admin.ok("version") == "dokku version 0.38.22\n"
    assert "    apps " in admin.ok() and admin.ok("help", "config").count("config:") >= 4


def test_a_deploy_key_pushes_its_app_only_and_learns_nothing_of_others(app, stranger):
    app.deploy()
    app.person.ok("deploy:allow", app.name, stdin=stranger.public)
    assert stranger.push(app.work, app.name).returncode == 0
    answers = {(done.returncode, done.stderr) for done in
               (stranger.ssh(*words) for words in (["url", app.name], ["url", "t-none"], ["apps:list"], ["config:show", app.name]))}
    assert len(answers) == 1 and answers.pop()[0] == 77
    for name in ("hello", "t-none"):
        done = stranger.push(app.work, name)
        assert done.returncode != 0 and "may not do this" in done.stderr
    name = next(line.split('NAME="')[1].split('"')[0] for line in app.person.ok("ssh-keys:list").splitlines() if app.name in line)
    app.person.ok("ssh-keys:remove", name)
    assert stranger.ssh("version").returncode == 255


def test_domains_move_only_when_they_are_free(app, admin):
    app.deploy()
    app.ok("domains:add", f"{app.name}.example.org")
    assert f"{app.name}.example.org" in app.ok("domains:report")
    other = f"{app.name}-b"
    admin.ok("apps:create", other)
    try:
        done = admin.ssh("domains:add", other, f"{app.name}.example.org")
        assert done.returncode == 1 and f"belongs to {app.name}" in done.stderr
        assert admin.ssh("domains:add", other, "'a.org; include /etc/passwd'").returncode == 2
    finally:
        admin.ok("--force", "apps:destroy", other)
