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


PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0WpUmG4wGNRsv5aSdLAQOWCeGkjpRnzz0zAYpYd0mF"
ADMIN = d.Caller("root", local=True)


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """A developer's key for two apps on record."""
    monkeypatch.setattr(d, "ROOT", tmp_path)
    for name in ("blog", "shop"):
        (tmp_path / "apps" / name).mkdir(parents=True)
    public, fingerprint = d.parse_public_key(PUBLIC)
    key = d.Key("eve", public, fingerprint, "developer", ("blog", "shop"), "2026-01-01")
    d.write_key(key)
    return key


def test_a_key_that_was_changed_meanwhile_is_not_written_over(keys):
    d.write_key(keys._replace(role="viewer"), keys)
    for other in (keys, keys._replace(apps=())):
        with pytest.raises(d.DokkuError, match="eve was changed meanwhile"):
            d.write_key(other._replace(role="admin"), other)
    assert d.read_keys() == [keys._replace(role="viewer")]
    d.drop_key("eve")
    with pytest.raises(d.DokkuError, match="eve was changed meanwhile"):
        d.write_key(keys, keys)
    assert d.read_keys() == [], "nobody whose key was removed comes in again by a change of it"


@pytest.mark.parametrize("change", [lambda: d.access_set("eve", "admin", None, None, None), lambda: d.key_allow("blog", None, "developer"),
                                    lambda: d.key_revoke("blog", "eve"),
                                    lambda: d.acl_add("blog", "eve"), lambda: d.acl_remove("blog", "eve"),
                                    lambda: d.ssh_keys_add("eve", None, ADMIN, "developer", "blog,shop", None, None)],
                         ids=["access:set", "developer:allow", "deploy:revoke", "acl:add", "acl:remove", "ssh-keys:add"])
def test_no_change_of_a_key_undoes_another(keys, monkeypatch, change):
    """What each of them read is changed before it writes."""
    real, changed = d.read_keys, keys._replace(until="2026-12-31")

    def read_keys():
        """Give what stood there, and change it at once."""
        monkeypatch.setattr(d, "read_keys", real)
        d.write_key(changed)
        return [keys]
    monkeypatch.setattr("sys.stdin", io.StringIO(PUBLIC))
    if change.__code__.co_names[-1] == "acl_remove":  # it reads once more by itself
        monkeypatch.setattr(d, "find_key", lambda name: keys)
    monkeypatch.setattr(d, "read_keys", read_keys)
    with pytest.raises(d.DokkuError, match="eve was changed meanwhile"):
        change()
    assert d.read_keys() == [changed]


def test_a_key_that_is_known_keeps_its_limits_when_it_is_added_again(keys, monkeypatch, capsys):
    def add(name, **facts):
        """Give the same key once more."""
        monkeypatch.setattr("sys.stdin", io.StringIO(PUBLIC))
        d.ssh_keys_add(name, None, ADMIN, **{"role": None, "apps": None, "until": None, "sources": None, **facts})
    for facts in ({}, {"role": "developer"}, {"role": "developer", "apps": "blog,shop", "until": "2027-01-01"},
                  {"role": "developer", "apps": "blog,shop", "sources": "10.0.0.1"}):
        with pytest.raises(d.DokkuError, match="eve is let in already, as developer for blog shop") as refused:
            add("eve", **facts)
        assert "access:set eve" in refused.value.hint and d.read_keys() == [keys]
    with pytest.raises(d.DokkuError, match="already known as eve"):
        add("mallory")
    d.write_key(keys._replace(until="", added="before"))
    add("eve", role="developer", apps="blog,shop")
    assert keys.fingerprint in capsys.readouterr().out and d.read_keys()[0]._replace(added="") == keys._replace(until="", added="")


def test_a_key_whose_time_is_up_may_nothing(keys, monkeypatch, capsys):
    words = ["ps:restart", "blog"]
    monkeypatch.setattr(d.time, "strftime", lambda form, *when: "2026-03-04")
    for until, allowed in (("2026-03-03", False), ("2026-03-04", True), ("2027-01-01", True), ("", True)):
        d.write_key(keys._replace(until=until))
        if allowed:
            d.access_check("eve", words)
            assert "eve may" in capsys.readouterr().out
        else:
            with pytest.raises(d.DokkuError, match="eve may not: the key was for the time until 2026-03-03"):
                d.access_check("eve", words)
    with pytest.raises(d.DokkuError, match="the key is for blog shop"):
        d.access_check("eve", ["ps:restart", "other"])


def test_the_words_of_ps_are_for_those_who_may_see_secrets(keys, monkeypatch, capsys):
    """`ps e` prints the environment of a process."""
    monkeypatch.setattr(d, "require_processes", lambda app, process: [d.Container("1", "x", app, "web.1", "v1", True)])
    monkeypatch.setattr(d, "docker_command", lambda: "docker")
    monkeypatch.setattr(d, "output_of", lambda argv: " ".join(argv))
    for role in ROLES:
        caller = d.Caller("x", role, ("blog",))
        d.top("blog", [], caller)
        if "secrets" in ROLES[role]:
            d.top("blog", ["-e"], caller)
        else:
            with pytest.raises(d.AccessDenied):
                d.top("blog", ["-e"], caller)
    with pytest.raises(d.AccessDenied):
        d.top("shop", ["-e"], d.Caller("x", "developer", ("blog",)))
    assert "docker top 1 -e" in capsys.readouterr().out


def test_a_secret_is_never_nothing_and_on_no_command_line_of_this_server(monkeypatch):
    monkeypatch.delenv("SSH_ORIGINAL_COMMAND", raising=False)
    for given in ("", "\n"):
        for word in ("", "-"):
            monkeypatch.setattr("sys.stdin", io.StringIO(given))
            with pytest.raises(d.UsageError, match="Nothing came on standard input"):
                d.secret_word(word)
    monkeypatch.setattr("sys.stdin", io.StringIO("s3cret\n"))
    assert d.secret_word("-") == "s3cret"
    with pytest.raises(d.UsageError, match="seen by every user"):
        d.secret_word("s3cret")
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "x")
    assert d.secret_word("s3cret") == "s3cret"


def test_the_password_of_a_registry_is_such_a_secret(keys, monkeypatch):
    done = []
    monkeypatch.delenv("SSH_ORIGINAL_COMMAND", raising=False)
    monkeypatch.setattr(d, "docker_command", lambda: "docker")
    monkeypatch.setattr(d, "build_environment", dict)
    monkeypatch.setattr(d, "output_of", lambda argv, stdin, env: done.append((argv[1], stdin)) or "")
    with pytest.raises(d.UsageError, match="seen by every user"):
        d.change_login("blog", "host", ADMIN, "me", "s3cret")
    monkeypatch.setattr("sys.stdin", io.StringIO("from standard input\n"))
    d.change_login("blog", "host", ADMIN, "me", "-")
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "x")
    d.change_login("blog", "host", ADMIN, "me", "s3cret")
    d.change_login("blog", "host", ADMIN, off="1")
    assert done == [("login", "from standard input"), ("login", "s3cret"), ("logout", None)]
