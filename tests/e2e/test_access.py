"""Keys with roles, for some apps, until a day and from some addresses; who may not, reads one line and changes nothing."""

import json
import time

import pytest
from conftest import HELLO_TEXT, STATE, sh


@pytest.fixture
def somebody(new_person, admin):
    """Make a person with a key of some role."""
    def make(name, *options):
        person = new_person()
        assert sh("dokku", "ssh-keys:add", *options, name, "-", stdin=person.public).returncode == 0
        return person
    return make


def test_what_each_role_may(live, somebody):
    developer, operator, viewer = (somebody(f"{role}@{live.name}", "--role", role, "--apps", live.name) for role in ("developer", "operator", "viewer"))
    assert [person.ssh("ps:report", live.name).returncode for person in (developer, operator, viewer)] == [0, 0, 0]
    assert [person.ssh("ps:restart", live.name, "worker").returncode for person in (developer, operator, viewer)] == [0, 0, 77]
    assert [person.ssh("logs", live.name).returncode for person in (developer, operator, viewer)] == [0, 0, 77]
    assert [person.ssh("config:show", live.name).returncode for person in (developer, operator, viewer)] == [0, 77, 77]
    assert [person.ssh("config:set", "--no-restart", live.name, "WHO=me").returncode for person in (developer, operator, viewer)] == [0, 77, 77]
    assert [person.push(live.work, live.name).returncode for person in (operator, viewer)] == [128, 128]
    assert developer.ssh("run", live.name, "true").returncode == 0 and operator.ssh("run", live.name, "true").returncode == 77
    for words in (("docker-options:add", live.name, "deploy", "--privileged"), ("ssh-keys:list",), ("access:set", f"developer@{live.name}", "--role", "admin"),
                  ("config:set", "--global", "A=1"), ("nginx:set", live.name, "allow-template", "true"), ("ports:add", live.name, "http:81:8080"), ("events",),
                  ("storage:mount", live.name, "/etc:/data"), ("acl:add", "other", "me"), ("apps:create", "another"), ("ssh-keys:add", "new")):
        done = developer.ssh(*words, stdin=developer.public)
        assert done.returncode == 77 and done.stderr.startswith(" !     Your key may not do this"), (words, done)
    assert live.get() == (200, HELLO_TEXT)


def test_a_key_for_a_group_of_apps_sees_and_makes_those_only(live, somebody, admin):
    group = f"g{time.time_ns() % 10**9}"
    person = somebody(f"group@{group}", "--role", "developer", "--apps", f"{group}-*")
    try:
        person.ok("apps:create", f"{group}-one")
        assert json.loads(person.ok("apps:list", "--format", "json")) == [f"{group}-one"]
        assert live.name not in person.ok("report") and f"{group}-one" in person.ok("apps:report")
        refusals = [person.ssh(command, name) for command in ("apps:report", "ps:restart", "config:show", "logs") for name in (live.name, "no-such-app")]
        assert {(done.returncode, done.stdout, done.stderr) for done in refusals} == {(77, "", " !     Your key may not do this\n !     ask an administrator of this server\n")}
        assert person.ssh("ps:restart", "--all").returncode == 77 and person.ssh("apps:create", group).returncode == 77
        assert f"group@{group} may, by the role developer" in admin.ok("access:check", f"group@{group}", "ps:restart", f"{group}-two")
        assert f"the key is for {group}-*" in admin.refused("access:check", f"group@{group}", "ps:restart", live.name)
        assert "needs admin, which the role developer lacks" in admin.refused("access:check", f"group@{group}", "ssh-keys:list")
        events = [json.loads(line) for line in (STATE / "events.log").read_text().splitlines()[-60:]]
        assert {"who": f"group@{group}", "command": "ps:restart", "app": live.name, "result": 77}.items() <= next(
            row for row in events if row["who"] == f"group@{group}" and row.get("app") == live.name and row["command"] == "ps:restart").items()
    finally:
        sh("dokku", "--force", "apps:destroy", f"{group}-one")


def test_a_key_ends_and_is_for_some_addresses(live, somebody, admin):
    name = f"until@{live.name}"
    person = somebody(name, "--until", "2099-01-31", "--from", "127.0.0.0/8,::1")
    assert person.ssh("apps:exists", live.name).returncode == 0
    assert admin.ok("access:info", name).split()[-4:] == ["until:", "2099-01-31", "from:", "127.0.0.0/8,::1"]
    admin.ok("access:set", name, "--until", "2020-01-31")
    assert person.ssh("apps:exists", live.name).returncode == 255
    admin.ok("access:set", name, "--until", "never", "--from", "192.0.2.0/24")
    assert person.ssh("apps:exists", live.name).returncode == 255
    admin.ok("access:set", name, "--from", "anywhere", "--role", "viewer", "--apps", live.name)
    assert person.ssh("apps:exists", live.name).returncode == 0 and person.ssh("apps:destroy", live.name).returncode == 77
    admin.ok("access:set", name, "--apps", "all")
    lines = (STATE / ".ssh" / "authorized_keys").read_text()
    for words in (("--until", "2026-13-01"), ("--until", "tomorrow"), ("--from", "'a\" command=\"sh'"), ("--from", "'1.2.3.4 x'"), ("--apps", "'A B'"), ("--role", "root")):
        admin.refused("access:set", name, *words, code=2)
    assert (STATE / ".ssh" / "authorized_keys").read_text() == lines


def test_developers_and_access_lists_in_the_other_spellings(live, switch, new_person, admin):
    person = new_person()
    live.ok("developer:allow", f"dev@{live.name}", stdin=person.public)
    assert f"dev@{live.name}" in live.ok("developer:list") and f"dev@{live.name}" not in live.ok("deploy:list")
    assert person.ssh("config:show", live.name).returncode == 0
    switch.deploy()
    assert person.ssh("config:show", switch.name).returncode == 77
    switch.ok("acl:add", "dev")
    assert person.ssh("config:show", switch.name).returncode == 0 and f"dev@{live.name} developer" in switch.ok("acl:list")
    assert sorted(admin.ok("acl:allowed", "dev").split()) == sorted([live.name, switch.name])
    switch.ok("acl:remove", "dev")
    assert person.ssh("config:show", switch.name).returncode == 77
    assert "may come to every app" in live.refused("acl:add", admin.name) and "No key is named" in live.refused("acl:add", "nobody")
    assert "with the role developer" in switch.refused("deploy:allow", stdin=person.public)
    second = new_person()
    switch.ok("developer:allow", "dev@second", stdin=second.public)
    live.ok("acl:remove", "dev")
    assert person.ssh("apps:exists", live.name).returncode == 255, "a person's key without the app keeps no other of them in"
    assert second.ssh("config:show", switch.name).returncode == 0
    admin.ok("access:set", "dev@second", "--apps", f"{switch.name},{switch.name[:4]}*")
    assert "by a pattern" in switch.refused("acl:remove", "dev")
    admin.ok("access:set", "dev@second", "--apps", "all")
    assert "for all apps" in live.refused("developer:allow", stdin=second.public), "no key is narrowed by being let in"
    admin.ok("access:set", "dev@second", "--apps", switch.name)
    switch.ok("acl:add", "dev")
    switch.ok("developer:revoke", "dev@second")
    assert second.ssh("apps:exists", live.name).returncode == 255


def test_a_deploy_key_becomes_a_developers(live, new_person):
    person = new_person()
    live.ok("deploy:allow", f"up@{live.name}", stdin=person.public)
    assert person.ssh("config:show", live.name).returncode == 77
    live.ok("developer:allow", stdin=person.public)
    assert person.ssh("config:show", live.name).returncode == 0
