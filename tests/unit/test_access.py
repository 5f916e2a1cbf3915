"""Every command, by every role, for an own app, another's and one that does not exist: exactly what is allowed is done, and no refusal says more than another."""

import contextlib
import io
import os

import dokku_py as d
import pytest

ROLES = {  # what each role is for, said once more and independently: a change of the table of roles must be meant
    "admin": {"view", "operate", "configure", "secrets", "run", "deploy", "create", "admin"},
    "developer": {"view", "operate", "configure", "secrets", "run", "deploy", "create"},
    "operator": {"view", "operate"},
    "viewer": {"view"},
    "deploy": {"deploy"},
}
CANDIDATES = ["web", "A=1", "A", "x.example.com", "3", "v1", "http:80:5000", "run", "--memory=1g", "/data", "main", "debian", "crt", "https://h.example.com/x", "bash", "chown", "web=2",
              "192.0.2.1", "host.example.com", "me@example.com", "0 3 * * *", "A=1;", "5432", "latest", "initial-network"]
NAMES = sorted(name for name, row in d.commands().items() if name == row.name and row.access not in ("hook", "local", "anyone"))
TWINS = ("mariadb", "mongo", "mongodb", "mysql", "postgresql", "rabbitmq", "redis", "valkey")  # engines whose rows are those of postgres
NAMES = [name for name in NAMES if name.partition(":")[0] not in TWINS]
ENGINES = {found.name for name in NAMES if (found := d.engine_named(name.partition(":")[0]))}
FOR_NO_APP = {"apps:list", "report", "status", "certs:doctor", "run:list", "run:logs", "run:stop", "doctor"}  # what lists, and lists the own ones only


def sample(arg):
    """A word that an argument takes."""
    for word in CANDIDATES:
        with contextlib.suppress(d.DokkuError):
            arg.parse(word)
            return word
    raise AssertionError(f"no word for {arg}")


def words_for(name, app):
    """Words that a command takes, with such an app in the app's place; and whether there is such a place."""
    args = [arg for arg in d.commands()[name].args if not arg.flags and not arg.unknown and (arg.many not in ("?", "*") or arg.name in ("app", "service"))]
    service = {"blog": "db", "shop-one": "db", "other": "foreign"}.get(app, app)
    chosen = {"app": app, "new": service if d.engine_named(name.partition(":")[0]) else app, "service": service}
    return [chosen.get(arg.name) or sample(arg) for arg in args], any(arg.name in chosen for arg in args)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Three apps, two services of each engine, and a key of each role for all apps, and one for `blog`, those of `shop-*` and services called db."""
    monkeypatch.setattr(d, "ROOT", tmp_path)
    for name in ("blog", "shop-one", "other"):
        (tmp_path / "apps" / name).mkdir(parents=True)
    for engine in ENGINES:
        for name in ("db", "foreign"):
            path = tmp_path / "services" / engine / name / "service.json"
            path.parent.mkdir(parents=True)
            path.write_text(d.json.dumps(d.Service(engine, name, "image", "data")._asdict()))  # many times over: without fsync
    for role in ROLES:
        for kind, apps in (("all", ()), ("some", ("blog", "shop-*", "*:db"))):
            d.write_json(tmp_path / "keys" / f"{role}.{kind}", d.Key(f"{role}.{kind}", "x", f"SHA256:{role}{kind}", role, apps)._asdict())
    done = []
    monkeypatch.setattr(d, "do_command", lambda row, chosen, caller: done.append(row.name) or 0)

    def ask(key, *words):
        """Ask as a key; give whether it was done, the code and what was said."""
        done.clear()
        out = io.StringIO()
        monkeypatch.setenv("SSH_ORIGINAL_COMMAND", d.shlex.join(words))
        before = dict(os.environ)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = d.main(["--as", key])
        os.environ.clear()
        os.environ.update(before)
        return bool(done), code, out.getvalue()
    return ask


def test_an_engine_is_like_another():
    rows = {name: row for name, row in d.commands().items() if name.partition(":")[0] in TWINS}
    assert len(rows) > 200
    for name, row in rows.items():
        twin = d.commands()["postgres:" + name.partition(":")[2]]
        assert (row.access, row.call, row.readings) == (twin.access, twin.call, twin.readings), name


@pytest.mark.parametrize("name", NAMES)
def test_exactly_what_a_role_is_for_is_done(server, name):
    row = d.commands()[name]
    needed = row.access.removesuffix("+")
    for role, may in ROLES.items():
        for kind, app, reached in (("all", "blog", True), ("all", "other", True), ("some", "blog", True), ("some", "shop-one", True), ("some", "other", False)):
            words, has_app = words_for(name, app)
            allowed = needed in may and (reached if has_app else kind == "all" or row.name in FOR_NO_APP)
            was_done, code, said = server(f"{role}.{kind}", name, *words)
            assert was_done is allowed, (role, kind, words, code, said)
            assert code == (0 if allowed else 77), (role, kind, words, code, said)
            if not allowed:
                missing, _ = words_for(name, "missing")
                assert server(f"{role}.{kind}", name, *missing) == (False, 77, said), "a refusal says the same of what does not exist"


@pytest.mark.parametrize("name", sorted(name for name in NAMES if any(arg.parse is d.parse_app_or_global for arg in d.commands()[name].args)))
def test_what_is_set_for_all_apps_is_for_administrators(server, name):
    words, _ = words_for(name, "--global")
    for role in ROLES:
        allowed = "admin" in ROLES[role] or (d.commands()[name].access.startswith("view") and "view" in ROLES[role])
        assert server(f"{role}.all", name, *words)[0] is allowed, role
        assert server(f"{role}.some", name, *words)[0] is False, role


@pytest.mark.parametrize("name", sorted(name for name in NAMES if any(arg.name == "everything" for arg in d.commands()[name].args)))
def test_all_apps_at_once_are_for_whom_all_apps_are(server, name):
    for role in ROLES:
        assert server(f"{role}.some", name, "--all")[0] is False, role


@pytest.mark.parametrize("command", ["apps:clone", "apps:rename"])
def test_nobody_makes_an_app_that_is_not_among_the_own_ones(server, command):
    assert server("developer.some", command, "blog", "shop-two")[0] is True
    assert server("developer.some", command, "blog", "another")[:2] == (False, 77)
    assert server("developer.some", command, "other", "shop-two")[:2] == (False, 77)


def test_a_key_that_is_gone_opens_nothing(server, tmp_path):
    assert server("admin.all", "apps:list")[1] == 0
    (tmp_path / "keys" / "admin.all").unlink()
    assert server("admin.all", "apps:list")[:2] == (False, 77)


def test_all_takes_the_limit_away_and_a_name_that_begins_so_does_not():
    given = d.functools.partial(d.key_facts_given, None, until=None, sources=None)
    assert given("all") == {"apps": ()} and given("all*") == {"apps": ("all*",)} and given("allotment,blog") == {"apps": ("allotment", "blog")}
