"""Section 16: services, without a server; what is put back when something fails, and what is not."""

import contextlib
import types

import docker
import pytest

import dokku_py as d

ROOT_CALLER, AGREE = d.Caller("root", local=True), d.agree_service


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A service on record, whose container runs and does what it is told."""
    monkeypatch.setattr(d, "ROOT", tmp_path)
    for name in ("render_crontab", "agree_service", "wait_for_server", "stop_container", "remove_container"):
        monkeypatch.setattr(d, name, lambda *words, **facts: None)
    row = d.Container("id", "dokku.postgres.db", "", "", "", True, networks=("dokku.postgres.db",))
    monkeypatch.setattr(d, "containers_of", lambda app="", kind="deploy": [row] if kind == "service" else [])
    made = d.Service("postgres", "db", "postgres:16", "data.1", exposed=("127.0.0.1:5432",))
    d.write_service(made)
    return made


def failing(error):
    """Give what fails so."""
    def fail(*words, **facts):
        """Fail."""
        raise error
    return fail


@pytest.mark.parametrize("error, told", [(d.Cancelled("gone"), False), (BrokenPipeError(), True), (d.DokkuError("no docker"), False)])
def test_what_is_left_over_takes_no_one_back_to_the_old_data(service, monkeypatch, error, told):
    """The server works on the new data by then, and apps write to it."""
    monkeypatch.setattr(d, "agree_service", AGREE)
    monkeypatch.setattr(d, "service_disagreements", lambda *words, **facts: ())
    monkeypatch.setattr(d, "drop_strays", failing(error))
    with pytest.raises(type(error)) if told else contextlib.nullcontext():
        d.change_service(service, data="data.2")
    assert d.read_service("postgres", "db").data == "data.2"


@pytest.mark.parametrize("others, code, kept", [("shop\\nblog 2", 0, None), ("", 0, ""), ("", 2, "data.1 postgres:16"), ("shop", 1, "data.1 postgres:16")])
def test_data_is_not_replaced_where_others_would_be_lost(service, monkeypatch, others, code, kept):
    """A server that can't be asked is what a restore is for: then the old data is kept."""
    done = []

    def filled(fresh, dump):
        """Stop here."""
        done.append(fresh.kept)
        raise d.Cancelled("far enough")
    monkeypatch.setattr(d, "script_words", lambda service, identity, script: ["sh", "-c", f"printf '{others}'; exit {code}"] if (identity, script) == ("id", "others") else [])
    monkeypatch.setattr(d, "filled", filled)
    with pytest.raises(d.DokkuError, match="db also holds shop, blog, 2" if kept is None else "far enough"):
        d.replace_data(service, d.ROOT / "dump", None)
    assert done == ([] if kept is None else [kept])


@pytest.mark.parametrize("engine", ["postgres", "mysql", "mariadb"])
def test_engines_with_several_databases_can_be_asked_for_the_others(engine):
    assert d.engine_named(engine).has("others") and "$DATABASE" in (d.TEMPLATES / "services" / engine / "others").read_text()


@pytest.mark.parametrize("options", ["--appendonly yes", "--APPENDONLY yes", "--save 1 1 --AppendOnly=yes"])
def test_no_upgrade_brings_an_option_by_which_data_is_not_read(service, options):
    old = d.Service("redis", "cache", "redis:7", "data.1")
    for known in (old, None):
        with pytest.raises(d.UsageError, match="With appendonly, the server would not read"):
            d.chosen_image(d.engine_named("redis"), {"options": options, "image": "redis", "version": "7"} if not known else {"options": options}, known)
    assert d.chosen_image(d.engine_named("redis"), {"options": "--hz 5"}, old) == {"options": "--hz 5"}


def test_a_clone_of_a_service_onto_itself_waits_for_nobody(service, monkeypatch):
    monkeypatch.setattr(d, "holding", failing(AssertionError("it would wait for its own lock")))
    with pytest.raises(d.DokkuError, match="postgres service db already exists"):
        d.service_clone(service, "db", ROOT_CALLER, image=None, version=None)


@pytest.mark.parametrize("live", [False, True])
def test_links_are_those_of_the_config_that_is_live(service, monkeypatch, live):
    def apply(app, config, by, reason):
        """Lose the client before or after the switch."""
        d.write_config(app, config) if live else None
        raise d.Cancelled("gone")
    d.write_lines(d.app_folder("blog") / "LINKS", ["redis cache"])
    monkeypatch.setattr(d, "apply_config", apply)
    with pytest.raises(d.Cancelled):
        d.change_links("blog", [("redis", "cache"), ("postgres", "db")], {"A": "1"}, False, ROOT_CALLER, "link")
    assert d.links_of("blog") == [("redis", "cache"), *([("postgres", "db")] if live else [])]


def test_where_backups_go_is_changed_and_put_back_under_the_lock(service, monkeypatch):
    d.write_text(d.backup_home(service) / "passphrase", "x\n")
    seen, real = [], d.set_backups

    def set_backups(held, **changes):
        """Note where, and whether somebody else could do so."""
        seen.append((changes["where"], d.is_locked(service.folder / "lock")))
        real(held, **changes)
    real(service, where="/srv/old")
    monkeypatch.setattr(d, "set_backups", set_backups)
    monkeypatch.setattr(d, "back_up", failing(d.DokkuError("no bucket")))
    with pytest.raises(d.DokkuError, match="no bucket"):
        d.service_backup(service, "s3:nowhere")
    assert seen == [("s3:nowhere", True), ("/srv/old", True)] and d.backup_settings(service)["where"] == "/srv/old"


def test_a_network_or_port_that_can_not_be_had_changes_no_service(service, monkeypatch):
    changes = []
    monkeypatch.setattr(d, "change_service", lambda held, **words: changes.append(words))
    monkeypatch.setattr(d, "require_network", lambda name: name == "inner" or failing(d.DokkuError("Network does not exist"))())
    monkeypatch.setattr(d, "listening_ports", lambda: {5432: 0, 7070: 0})
    with pytest.raises(d.DokkuError, match="Network does not exist"):
        d.service_set(service, "initial-network", "inner outer")
    for taken in ("7070", "0.0.0.0:7070"):
        with pytest.raises(d.DokkuError, match="Something listens on .*:7070 already"):
            d.service_expose(service, [taken])
    assert changes == []
    d.service_set(service, "initial-network", "inner")
    d.service_set(service, "initial-network", None)
    d.service_expose(service, ["0.0.0.0:5432", "7071"])
    assert changes == [{"initial_network": "inner"}, {"initial_network": ""}, {"exposed": ("0.0.0.0:5432", "127.0.0.1:7071")}], "its own port may move to another address"


@pytest.mark.parametrize("sick", ["dokku.postgres.db", "inner", ""])
def test_a_service_that_is_cut_off_in_part_is_put_back(service, monkeypatch, sick):
    left, agreed = [], []

    def disconnect(name, network, force):
        """Have Docker refuse one."""
        if network == sick:
            raise docker.errors.APIError("no")
        left.append(network)
    monkeypatch.setattr(d, "engine", lambda: types.SimpleNamespace(disconnect_container_from_network=disconnect))
    monkeypatch.setattr(d, "agree_service", agreed.append)
    d.write_service(both := service._replace(initial_network="inner", post_start_network="inner"))
    try:
        with d.cut_off(both):
            assert left == ["dokku.postgres.db", "inner"], "each once"
    except d.DokkuError:
        assert sick
    assert agreed == ([both] if sick else [])


@pytest.mark.parametrize("stopped", [False, True])
def test_a_container_that_is_gone_meanwhile_is_no_trouble(service, monkeypatch, capsys, stopped):
    monkeypatch.setattr(d, "inspect_container", lambda identity: {})
    found = list(d.service_disagreements(service._replace(stopped=stopped)))
    assert [row.what for row in found] == (["it runs although it was stopped"] if stopped else [])
    d.service_info(["--internal-ip"], "text", service)
    d.service_info(["--status"], "text", service)
    assert capsys.readouterr().out == "\n\n"


def test_an_upgrade_starts_no_app_again_that_does_not_run(service, monkeypatch):
    """One is stopped, one was never deployed."""
    done = []
    for app in ("runs", "stopped", "new"):
        d.write_lines(d.app_folder(app) / "LINKS", ["postgres db"])
        d.write_release(d.Release(app, 1), {})
        d.write_current(d.Release(app, 1)) if app != "new" else None
    d.write_text(d.app_folder("stopped") / "STOPPED", "")
    monkeypatch.setattr(d, "upgrade_service", lambda held, **changes: held._replace(**changes))
    monkeypatch.setattr(d, "chosen_image", lambda kind, given, held: {"image": "postgres:17"})
    monkeypatch.setattr(d, "under_lock", lambda purpose, work, app: done.append((work, app)))
    for anew in (False, True):
        d.service_upgrade(service, False, anew)
    assert done == [(d.restart, "runs")]


@pytest.mark.parametrize("row", [None, "exited"])
def test_the_old_data_is_kept_where_no_server_can_be_asked_what_else_it_holds(service, monkeypatch, capsys, row):
    seen = []

    def filled(fresh, dump):
        """Stop here."""
        seen.append(fresh.kept)
        raise d.Cancelled("far enough")
    monkeypatch.setattr(d, "service_container", lambda held: row and d.Container("id", held.container, "", "", "", False))
    monkeypatch.setattr(d, "filled", filled)
    for changes in ({}, {"kept": "data.1 postgres:15"}):
        with pytest.raises(d.Cancelled):
            d.replace_data(service, d.ROOT / "dump", None, **changes)
    assert seen == ["data.1 postgres:16", "data.1 postgres:15"] and "the data of before is kept" in capsys.readouterr().err


ROOT_CALLER = d.Caller("root", local=True)


@pytest.fixture
def linkable(service, monkeypatch):
    """The service has a password, and the app blog runs release 1; what would be switched to is on record at once."""
    d.write_text(service.folder / "PASSWORD", "secretpw\n")
    for name in ("agree_networks", "remove_strays", "drop_images"):
        monkeypatch.setattr(d, name, lambda *words, **facts: None)
    monkeypatch.setattr(d, "inspect_image", lambda image: {"Id": image})
    seen = []

    def run_again(old, config, own, by, reason):
        """Switch at once."""
        with d.next_release(old, by, reason) as made:
            d.write_release(made, config, own)
            d.write_current(made)
            d.keep_config(made)
            seen.append(d.networks_of("blog"))
    monkeypatch.setattr(d, "run_again", run_again)
    first = d.Release("blog", 1, image="sha256:1", reason="push")
    d.write_release(first, {})
    d.write_text(d.app_folder("blog") / "LAST", "1")
    d.write_current(first)
    return seen


def test_a_rollback_over_an_unlink_brings_the_network_back(service, linkable):
    d.service_link(False, service, "blog", ROOT_CALLER, None, None)
    d.service_unlink(False, service, "blog", ROOT_CALLER)
    assert d.links_of("blog") == [] and "DATABASE_URL" not in d.read_config("blog")
    d.rollback("blog", 2, "root")
    assert linkable[-1] == ["dokku.postgres.db"], "the new processes are in it"
    assert d.links_of("blog") == [("postgres", "db")] and "DATABASE_URL" in d.read_config("blog")


def test_a_rollback_that_fails_brings_no_link(service, linkable, monkeypatch):
    d.service_link(False, service, "blog", ROOT_CALLER, None, None)
    d.service_unlink(False, service, "blog", ROOT_CALLER)
    monkeypatch.setattr(d, "run_again", failing(d.DokkuError("it crashed")))
    with pytest.raises(d.DokkuError, match="crashed"):
        d.rollback("blog", 2, "root")
    assert d.links_of("blog") == []


def test_who_has_the_address_already_can_be_linked(service, linkable):
    d.write_config("blog", {"DATABASE_URL": d.url_of(service)})
    d.service_link(True, service, "blog", ROOT_CALLER, None, None)
    assert d.links_of("blog") == [("postgres", "db")] and set(d.read_config("blog")) == {"DATABASE_URL"}
    with pytest.raises(d.DokkuError, match="Already linked as DATABASE_URL"):
        d.service_link(True, service, "blog", ROOT_CALLER, None, None)


def test_tick_keeps_the_way_back_until_the_server_answers(service, monkeypatch):
    """A command was killed between the new record and the answer of the new server."""
    done, answers, found = [], [False], [d.Disagreement("postgres db", "not the one on record", lambda: done.append("renew"))]
    monkeypatch.setattr(d, "service_disagreements", lambda *words, **facts: [found.pop()] if found else [])
    monkeypatch.setattr(d, "server_answers", lambda *words: answers[0])
    monkeypatch.setattr(d, "drop_strays", lambda known: done.append("drop"))
    d.write_service(service._replace(data="data.2"))
    for name in ("data.1", "data.2"):
        d.make_folder(service.folder / name)
    for now, wanted in ((False, ["renew"]), (False, ["renew"]), (True, ["renew", "drop"])):
        answers[0] = now
        d.mend_service("postgres", "db")
        assert done == wanted


def test_the_network_of_a_service_that_others_are_in_stays(service):
    d.write_service(d.Service("redis", "q", "redis:7", "data.1", post_create_network="dokku.postgres.db"))
    d.make_folder(d.app_folder("shop"))
    d.write_property("shop", "network", "attach-post-create", "dokku.postgres.db")
    with pytest.raises(d.DokkuError, match="is that of shop, q, too"):
        d.service_destroy(True, service)
    assert d.read_service("postgres", "db")


def test_how_many_backups_are_kept_stays_with_another_schedule(service, monkeypatch):
    d.write_text(d.backup_home(service) / "passphrase", "x\n")
    monkeypatch.setattr(d, "become_owner", lambda path: None)
    for words in (["0 3 * * *", "--keep", "30", "/srv/x"], ["0 4 * * *", "local"]):
        d.run_command(["postgres:backup-schedule", "db", *words], ROOT_CALLER)
    assert d.backup_settings(service) == {"schedule": "0 4 * * *", "where": "", "keep": "30"}


def test_who_knows_a_password_is_not_linked_by_a_rollback(service, linkable):
    for config in ({"X": ":secretpw@dokku-postgres-db:"}, {}):  # v2, v3
        d.apply_config("blog", config, "dev", "config:set")
    d.rollback("blog", 2, "dev")
    assert d.links_of("blog") == []


def test_a_backup_that_fails_leaves_where_somebody_sent_the_next(service, monkeypatch):
    d.write_text(d.backup_home(service) / "passphrase", "x\n")
    d.set_backups(service, where="s3:broken/x")

    def back_up(held):
        """Fail, after somebody named another place."""
        d.set_backups(service, where="/mnt/good")
        raise d.DokkuError("broken")
    monkeypatch.setattr(d, "back_up", back_up)
    for where, left in ((None, "/mnt/good"), ("/mnt/bad", "/mnt/good")):
        with pytest.raises(d.DokkuError):
            d.service_backup(service, where)
        assert d.backup_settings(service)["where"] == left


def test_a_place_elsewhere_is_refused_while_no_passphrase_is_set(service):
    with pytest.raises(d.DokkuError, match="No passphrase is set"):
        d.set_backups(service, schedule="0 3 * * *", where="bucket/x")
    assert d.backup_settings(service)["schedule"] == ""
    d.set_backups(service, schedule="0 3 * * *", where="local")


@pytest.mark.parametrize("engine, password, back", [("memcached", "secretpw", True), ("redis", "secretpw", True), ("redis", "another", False)])
def test_a_link_comes_back_with_the_address_that_a_release_had(service, linkable, engine, password, back):
    made = d.Service(engine, "cache", "x:1", "data.1")
    d.write_service(made)
    d.write_text(made.folder / "PASSWORD", "secretpw\n")
    config, old = {"CACHE_URL": d.url_of(made)}, d.Release("blog", 7, image="x")
    d.write_lines(d.app_folder("blog") / "LINKS", [f"{engine} cache"])
    d.write_release(old, config)
    d.write_lines(d.app_folder("blog") / "LINKS", [])
    d.write_text(made.folder / "PASSWORD", f"{password}\n")
    with d.linked_again(old, config):
        assert d.links_of("blog") == ([(engine, "cache")] if back else [])
