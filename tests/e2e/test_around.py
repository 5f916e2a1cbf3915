"""What surrounds an app: records and logs of builds, cron jobs, one-offs, the trail of events, cleaning up."""

import json
import time
import uuid

import pytest
from conftest import HELLO_TEXT, STATE, docker, quoted, sh, wait_until


def test_every_build_has_a_record_and_a_log(switch):
    switch.deploy(Dockerfile="FROM debian:bookworm\nRUN echo made-by-v1\nCOPY server.pl /server.pl\nEXPOSE 8080\nCMD perl /server.pl\n")
    switch.rejected(Dockerfile="FROM debian:bookworm\nRUN echo broken-in-v2; false\n")
    switch.ok("ps:set", "auto-rollback", "false")  # else the release before is kept as long as it may be gone back to
    switch.ok("config:set", "A=1")
    rows = json.loads(switch.ok("builds:list", "--format", "json"))
    assert [(row["release"], row["status"]) for row in rows] == [("v3", "live"), ("v2", "failed"), ("v1", "replaced")]
    assert [row["release"] for row in json.loads(switch.ok("builds:list", "--format", "json", "--status", "failed"))] == ["v2"]
    assert [row["release"] for row in json.loads(switch.ok("builds:list", "--format", "json", "--kind", "config"))] == ["v3"]
    assert "made-by-v1" in switch.ok("builds:output", "v1") and "broken-in-v2" in switch.ok("builds:output", "v2")
    assert "Switching" in switch.ok("builds:output") and "has no log of v9" in switch.refused("builds:output", "v9")
    assert json.loads(switch.ok("builds:info", "v2", "--format", "json"))["status"] == "failed"
    switch.ok("builds:set", "retention", "2")
    switch.ok("builds:prune")
    assert [row["release"] for row in json.loads(switch.ok("builds:list", "--format", "json"))] == ["v3", "v2"]


def test_a_build_is_followed_and_cancelled_by_somebody_else(switch, admin):
    switch.deploy()
    push = switch.start_push(Dockerfile=f"FROM debian:bookworm\nRUN for i in $(seq 100); do echo {switch.name}-$i; sleep 1; done\n")
    push.when(f"{switch.name}-2")
    reader = admin.start("builds:output", switch.name, "current")
    reader.when(f"{switch.name}-3")
    assert "push by test-" in switch.ok("builds:cancel")
    code, output = push.end()
    assert code != 0 and "Cancelled; nothing was changed" in output
    reader.end()
    switch.assert_untouched()
    assert json.loads(switch.ok("builds:list", "--format", "json"))[0]["status"] == "cancelled"
    assert "Nothing is being changed" in switch.refused("builds:cancel")


def test_cron_runs_the_jobs_of_an_app_and_only_our_own_command(switch):
    job = {"schedule": "* * * * *", "command": "echo tick-$GREETING `date +%s`; touch /never-on-the-host-$$"}
    switch.person.ok("apps:create", switch.name)
    switch.ok("config:set", "GREETING=hi")
    switch.deploy(app_json=json.dumps({"cron": [job]}))
    row = json.loads(switch.ok("cron:list", "--format", "json"))[0]
    assert (row["schedule"], row["command"], row["suspended"]) == ("* * * * *", job["command"], "false")
    table = sh("crontab", "-l", "-u", "dokku").stdout
    assert f"* * * * * /usr/bin/dokku cron:run {switch.name} {row['id']}" in table and "echo" not in table
    wait_until(lambda: "tick-hi" in switch.person.ssh("run:logs", switch.name).stdout, 150)
    assert json.loads(switch.ok("cron:list", "--format", "json"))[0]["last-run"]
    switch.ok("cron:suspend", row["id"])
    assert row["id"] not in sh("crontab", "-l", "-u", "dokku").stdout
    assert "tick-hi" in switch.ok("cron:run", row["id"]), "by hand it still runs"
    switch.ok("cron:resume", row["id"])
    assert row["id"] in sh("crontab", "-l", "-u", "dokku").stdout
    switch.ok("cron:set", "maintenance", "true")
    assert row["id"] not in sh("crontab", "-l", "-u", "dokku").stdout
    switch.ok("cron:set", "maintenance")
    switch.ok("cron:set", "mailto", "me@example.com")
    assert 'MAILTO="me@example.com"' in sh("crontab", "-l", "-u", "dokku").stdout
    assert switch.ok("cron:report", "--cron-task-count") == "1\n"
    assert "has no cron job" in switch.refused("cron:run", "nonsense")
    switch.person.ok("--force", "apps:destroy", switch.name)
    assert switch.name not in sh("crontab", "-l", "-u", "dokku").stdout


@pytest.mark.parametrize("row", [{"schedule": "* * * *", "command": "x"}, {"schedule": "* * * * *\n* * * * * touch /tmp/owned", "command": "x"},
                                 {"schedule": "@reboot", "command": "x"}, {"schedule": "* * * * * touch /tmp/owned", "command": "x"},
                                 {"schedule": "61 * * * *", "command": "x"}, {"schedule": "*/0 * * * *", "command": "x"}, {"schedule": "* * * * *"}, "text", {"schedule": "* * * * *", "command": "x", "concurrency_policy": "odd"}])
def test_a_bad_cron_job_rejects_the_push(switch, row):
    said = switch.rejected(app_json=json.dumps({"cron": [row]}))
    assert "is not a cron job" in said or "is not possible here" in said or "has the wrong kind" in said


def test_overlapping_runs_are_allowed_forbidden_or_replaced(switch):
    jobs = [{"schedule": "0 0 1 1 *", "command": f"echo {policy}; exec sleep 1000", "concurrency_policy": policy} for policy in ("allow", "forbid", "replace")]
    switch.deploy(app_json=json.dumps({"cron": jobs}))
    ids = {row["concurrency"]: row["id"] for row in json.loads(switch.ok("cron:list", "--format", "json"))}
    first = {policy: switch.ok("cron:run", "--detach", identity).strip() for policy, identity in ids.items()}
    assert "still runs" in switch.refused("cron:run", "--detach", ids["forbid"], code=75)
    second = switch.ok("cron:run", "--detach", ids["replace"]).strip()
    assert second in switch.containers() and first["replace"] not in switch.containers()
    switch.ok("cron:run", "--detach", ids["allow"])
    assert len(json.loads(switch.ok("run:list", "--format", "json"))) == 5
    switch.person.ok("run:stop", "--container", second)
    switch.ok("run:stop")
    assert [row["state"] for row in json.loads(switch.ok("run:list", "--format", "json"))] == ["exited"] * 5
    switch.ok("cleanup")
    assert switch.ok("run:list") == ""


def test_one_offs_are_listed_read_and_end_when_their_time_is_up(live):
    name = live.ok("run:detached", *quoted("sh", "-c", "echo said-$DYNO; exec sleep 1000")).strip()
    wait_until(lambda: "said-run." in live.ok("run:logs"))
    assert f"{name}: said-run." in live.person.ok("run:logs", "--container", name)
    follower = live.person.start("run:logs", "-t", "--container", name)
    follower.when("said-run.")
    live.person.ok("run:stop", "--container", name)
    assert follower.end()[0] == 0
    short = live.person.ok("run:detached", "--ttl-seconds", "1", live.name, "sleep", "1000").strip()
    time.sleep(2.1)
    live.person.ok("run:retire")
    assert short not in live.containers("-a") and name in live.containers("-a")
    assert "There is no one-off 'nope'" in live.person.refused("run:logs", "--container", "nope")
    live.ok("cleanup")


def test_events_say_who_did_what_and_never_a_value(live, deployer):
    secret = uuid.uuid4().hex
    live.ok("config:set", "--no-restart", f"SECRET={secret}")
    deployer.refused("config:show", live.name, code=77)
    rows = [json.loads(line) for line in live.person.ok("events", "-n", "500").splitlines()]
    mine = [row for row in rows if row.get("app") == live.name]
    assert any((row["command"], row["who"], row["from"]) == ("config:set", live.person.name, "127.0.0.1") and row["ms"] >= 0 for row in mine)
    assert any((row["command"], row["result"]) == ("config:show", 77) for row in mine)
    assert secret not in (STATE / "events.log").read_text()
    assert {"config:set", "ps:scale"} <= set(live.person.ok("events:list").split())
    follower = live.person.start("events", "-t", "-n", "1")
    live.ok("config:unset", "--no-restart", "SECRET")
    follower.when("config:unset")
    follower.signal(9)
    live.person.ok("events:off")
    count = len((STATE / "events.log").read_text().splitlines())
    live.ok("config:set", "--no-restart", "B=1")
    live.person.ok("events:on")
    assert len((STATE / "events.log").read_text().splitlines()) <= count + 1
    live.ok("config:unset", "--no-restart", "B")


def test_trace_shows_programs_and_no_secrets(bare):
    bare.person.ok("trace:on")
    try:
        done = bare.person.ssh("config:set", "--no-restart", bare.name, "SECRET=hidden-thing")
        done2 = bare.person.ssh("repo:gc", bare.name)
        assert "+ git" in done2.stderr and "hidden-thing" not in done.stderr + done2.stderr
    finally:
        bare.person.ok("trace:off")
    assert "+ git" not in bare.person.ssh("repo:gc", bare.name).stderr


def test_a_purged_cache_is_not_used_by_the_next_build(switch):
    switch.deploy(Dockerfile=(switch.work / "Dockerfile").read_text() + "RUN cat /proc/sys/kernel/random/uuid > /built\n")
    first = switch.get("/file/built")[1]
    switch.ok("repo:purge-cache")
    switch.ok("ps:rebuild")
    second = switch.get("/file/built")[1]
    switch.ok("ps:rebuild")
    assert len(first) == len(second) and first != second and switch.get("/file/built")[1] == second


def test_cleaning_up_touches_nothing_of_others(live, bare):
    other = docker("run", "-d", "debian:bookworm", "true")
    try:
        live.person.ok("cleanup")
        assert docker("inspect", "--format", "{{.Id}}", other) == other
        assert live.get() == (200, HELLO_TEXT)
    finally:
        docker("rm", "-f", other)


def test_deploys_may_be_slow_to_cancel_but_config_changes_can_be_broken_off(switch):
    switch.deploy()
    client = switch.person.start("config:set", switch.name, "BOOT_SECONDS=30")
    client.when("Starting web.1")
    switch.ok("builds:cancel")
    assert client.end()[0] == 130
    switch.assert_untouched()
    assert switch.ok("config:keys") == ""
