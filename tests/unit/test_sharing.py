"""Storage, networks and registries: which words name what, and who may use what others have."""

import contextlib
import os
import subprocess

import dokku_py as d
import pytest


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two apps; `uploads` is mounted by the first, `spare` by none, `etc` is a path of the host that the first mounts."""
    monkeypatch.setattr(d, "ROOT", tmp_path)
    for app in ("one", "two"):
        (tmp_path / "apps" / app).mkdir(parents=True)
    (tmp_path / "data" / "storage").mkdir(parents=True)
    for name, source in (("uploads", "uploads"), ("spare", "spare"), ("etc", "/etc")):
        (tmp_path / "data" / "storage" / f"{name}.entry").write_text(f"{name} {source} - deploy,run rw\n")
    (tmp_path / "apps" / "one" / "MOUNTS").write_text("uploads uploads /up deploy,run rw\netc /etc /etc run ro\n")
    return tmp_path


def test_mounts_are_read_from_their_file(root):
    assert d.mounts_of("one") == [d.Mount("uploads", "uploads", "/up"), d.Mount("etc", "/etc", "/etc", "run", "ro")]
    assert d.mounts_of("two") == d.mounts_of("--global") == []
    assert d.storage_facts("one") == {"storage-build-mounts": "", "storage-deploy-mounts": f"-v {root}/data/storage/uploads:/up",
                                      "storage-run-mounts": f"-v {root}/data/storage/uploads:/up -v /etc:/etc:ro"}


@pytest.mark.parametrize("text, mount", [("uploads", ("uploads", "uploads", "-", "rw")), ("/srv/x:/y", ("/srv/x", "/srv/x", "/y", "rw")), ("/srv/x:/y:ro", ("/srv/x", "/srv/x", "/y", "ro")),
                                         ("{root}/data/storage/uploads:/y", ("uploads", "uploads", "/y", "rw")), ("/only/inside", ("", "", "/only/inside", "rw"))])
def test_what_a_mount_is_made_of(root, text, mount):
    row = d.parse_mount(text.format(root=root))
    assert (row.entry, row.source, row.target, row.mode) == mount


@pytest.mark.parametrize("text", ["", "..", "../x", "a/b", "a.entry", ":", "/", "/:/x", "//x", "/a/../b", "/a/..", "/a/.", "/a/", "/x:", "/x:y", "/x:/", "/x:/y:z", "/x:/y:ro:ro", "a:/y,src=/etc",
                                  "/a,b:/y", "/a b:/y", "/a\n:/y", "{root}/data/storage/../../etc", "{root}/data/storage/", "-v", "é", "x" * 65])
def test_words_that_lead_elsewhere_are_refused(root, text):
    with pytest.raises(d.UsageError):
        d.parse_mount(text.format(root=root))


ADMIN, OF_ONE, OF_TWO = d.Caller("a"), d.Caller("b", "developer", ("one",)), d.Caller("c", "developer", ("two",))
EVERYWHERE, DEPLOYER = d.Caller("d", "developer"), d.Caller("e", "deploy", ("one",))


@pytest.fixture
def roles(monkeypatch):
    """A role below the administrators': it may configure apps, and not reach the host."""
    monkeypatch.setattr(d, "ROLES", {**d.ROLES, "developer": frozenset({"view", "operate", "configure", "run", "create", "deploy"})})


@pytest.mark.parametrize("name, allowed", [("uploads", (ADMIN, OF_ONE, EVERYWHERE)), ("spare", (ADMIN, EVERYWHERE)), ("etc", (ADMIN,)), ("/etc", (ADMIN,)), ("none", (ADMIN, EVERYWHERE))])
def test_storage_is_for_those_whose_apps_have_it(root, roles, name, allowed):
    for caller in (ADMIN, OF_ONE, OF_TWO, EVERYWHERE, DEPLOYER):
        with pytest.raises(d.DokkuError if name == "none" and caller in allowed else d.AccessDenied) if caller not in allowed or name == "none" else pytest.MonkeyPatch.context():
            assert d.read_entry(name, caller)


def test_a_network_is_for_those_whose_apps_are_in_it(root, roles, monkeypatch):
    (root / "networks").mkdir()
    for name in ("inner", "spare"):
        (root / "networks" / name).write_text("")
    d.write_property("one", "network", "attach-post-create", "inner")
    monkeypatch.setattr(d, "require_network", lambda name: {})
    monkeypatch.setattr(d, "change_property", lambda *words: None)
    allowed = {"inner": (ADMIN, OF_ONE, EVERYWHERE), "spare": (ADMIN, EVERYWHERE), "foreign": (ADMIN,)}
    for name, callers in allowed.items():
        for caller in (ADMIN, OF_ONE, OF_TWO, EVERYWHERE, DEPLOYER):
            app = "two" if caller is OF_TWO else "one"  # one that it may configure, but for the deployer
            if caller in callers:
                d.set_property("network", app, "initial-network", [name], caller)
            else:
                with pytest.raises(d.AccessDenied):
                    d.set_property("network", app, "initial-network", [name], caller)
    d.set_property("network", "two", "tld", ["foreign"], OF_TWO)


def test_the_server_s_logins_are_for_administrators(root, roles):
    for caller in (OF_ONE, EVERYWHERE):
        for app in (None, "--global"):
            with pytest.raises(d.AccessDenied):
                d.change_login(app, "host", caller, off="1")


def test_networks_of_an_app_are_named_once_and_never_its_own(root):
    d.write_property("one", "network", "initial-network", "b")
    d.write_property("one", "network", "attach-post-create", f"a b {d.NETWORK}")
    d.write_property("one", "network", "attach-post-deploy", "c a")
    assert d.networks_of("one") == ["b", "a", "c"] and d.networks_of("one", d.NETWORK_KEYS[:2]) == ["b", "a"]


@pytest.mark.parametrize("words, found", [(["host", "u", "p"], (None, "host", "u", "p")), (["app", "host", "u", "p"], ("app", "host", "u", "p")),
                                          (["--password-stdin", "host", "u"], (None, "host", "u", None)), (["--password-stdin", "app", "host", "u"], ("app", "host", "u", None)),
                                          (["app", "host", "u", "--password-stdin"], ("app", "host", "u", None)), (["--global", "host", "u", "p"], ("--global", "host", "u", "p")),
                                          (["--global", "--password-stdin", "host:5000", "u"], ("--global", "host:5000", "u", None))])
def test_a_login_is_told_apart_by_the_number_of_its_words(words, found):
    row = d.commands().get("registry:login")
    chosen = {"password": None} | d.read_words(row, words, d.Caller("root", local=True))
    assert tuple(chosen[name] for name in ("app", "server", "username", "password")) == found


@pytest.mark.parametrize("words", [["host"], ["host", "u"], ["a", "host", "u", "p", "more"], ["--password-stdin", "a", "host", "u", "p"], ["--global", "host", "u"]])
def test_a_login_with_too_few_or_many_words_is_refused(words):
    with pytest.raises(d.UsageError):
        d.read_words(d.commands().get("registry:login"), words, d.Caller("root", local=True))


@pytest.mark.parametrize("word", ["host", "host:5000", "registry.example.com", "registry.example.com:5000/team", "127.0.0.1:5000", "docker.io"])
def test_registries(word):
    assert d.parser_named("registry")(word) == word


@pytest.mark.parametrize("word", ["", "-x", "host:", "host:x", "https://host", "host/", "a b", "host;id", "host/UP", "host/../x", "host\n", "é"])
def test_registries_refused(word):
    with pytest.raises(d.UsageError):
        d.parser_named("registry")(word)


@pytest.mark.parametrize("word, good", [("apps/{{ .AppName }}", True), ("{{.AppName}}", True), ("team", True), ("{{ .Other }}", False), ("{{", False), ("a b", False), ("Up/{{ .AppName }}", False)])
def test_templates_of_image_names(word, good):
    if good:
        assert d.parser_named("repo-template")(word) == word
    else:
        with pytest.raises(d.UsageError):
            d.parser_named("repo-template")(word)


def test_a_copy_leaves_out_what_is_named_and_no_branch_of_such_a_name(root):
    for name in ("ENV", "ssh_key", "docker/config.json", "lock", "tree.1/x", "repo.git/refs/heads/docker", "repo.git/refs/heads/lock", "repo.git/refs/heads/DOMAINS"):
        d.write_text(root / "apps" / "one" / name, "x")
    d.copy_app("one", "three", ["DOMAINS", "ssh_key", "docker"])
    copied = root / "apps" / "three"
    assert sorted(str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()) == [
        "ENV", "MOUNTS", "repo.git/refs/heads/DOMAINS", "repo.git/refs/heads/docker", "repo.git/refs/heads/lock"]


@pytest.mark.parametrize("text, entry, target", [("{root}/data/storage/uploads/deep/er:/y", "{root}/data/storage/uploads/deep/er", "/y"),
                                                 ("{root}/data/storage/uploads:/y", "uploads", "/y"),
                                                 ("{root}/data/storage/uploads/deep", "", "{root}/data/storage/uploads/deep")])
def test_a_folder_within_storage_is_a_path_as_any_other(root, roles, text, entry, target):
    found = d.parse_mount(text.format(root=root))
    assert (found.entry, found.source, found.target) == (entry.format(root=root), entry.format(root=root), target.format(root=root))
    if "/" in found.entry:
        with pytest.raises(d.AccessDenied):
            d.read_entry(found.entry, OF_ONE)
        assert d.read_entry(found.entry, ADMIN) == [d.Mount(found.entry, found.entry)]


def test_what_is_mounted_must_be_named(root):
    with pytest.raises(d.UsageError, match="Name what is mounted"):
        d.storage_mount(None, False, "deploy,run", "two", d.parse_mount("/only/inside"), ADMIN)
    assert d.mounts_of("two") == []


def test_a_label_of_selinux_is_left_out_when_options_become_mounts(root, monkeypatch):
    done = []
    d.write_lines(d.app_folder("two") / "DOCKER_OPTIONS", ["deploy -v /srv/a:/a:z", "run --volume=/srv/b:/b:ro", "deploy -v /srv/c:/c:Z"])
    monkeypatch.setattr(d, "storage_mount", lambda target, readonly, phase, app, what, caller: done.append((app, phase, what.entry, what.target, what.mode)))
    monkeypatch.setattr(d, "change_docker_options", lambda *words: None)
    d.storage_migrate(False, None, ADMIN)
    assert done == [("two", "deploy", "/srv/a", "/a", "rw"), ("two", "run", "/srv/b", "/b", "ro"), ("two", "deploy", "/srv/c", "/c", "rw")]


def test_a_network_that_a_service_is_in_stays(root, monkeypatch):
    (root / "networks").mkdir()
    (root / "networks" / "inner").write_text("")
    removed = []
    monkeypatch.setattr(d, "require_network", lambda name: {})
    monkeypatch.setattr(d, "engine", lambda: type("Client", (), {"remove_network": staticmethod(removed.append)}))
    for key in ("initial_network", "post_create_network", "post_start_network"):
        d.write_service(d.Service("postgres", "db", "image", "data", **{key: "inner"}))
        with pytest.raises(d.DokkuError, match="inner is the network of db"):
            d.network_destroy("inner")
    d.write_service(d.Service("postgres", "db", "image", "data", initial_network="innermost"))
    d.network_destroy("inner")
    assert removed == ["inner"]


# --- copies, names and domains of apps ---

@pytest.fixture
def named(root, monkeypatch):
    """The server's domain is example.com; nothing is served, and what would be destroyed is noted."""
    destroyed = []
    d.write_lines(root / "VHOST", ["example.com"])
    for name in ("render_vhost", "render_crontab", "render_authorized_keys", "remove_strays", "containers_of"):
        monkeypatch.setattr(d, name, lambda *words, **facts: [])
    monkeypatch.setattr(d, "tags_of", lambda app: [])
    monkeypatch.setattr(d, "ensure_repository", d.repository_of)
    monkeypatch.setattr(d, "each_app", lambda *words, **facts: None)
    monkeypatch.setattr(d, "destroy_app", destroyed.append)
    monkeypatch.setattr(d, "remove_app", destroyed.append)
    return destroyed


def test_a_copy_that_fails_takes_no_app_along_that_it_did_not_make(root, named, monkeypatch):
    with pytest.raises(d.DokkuError, match="Name is already taken"):
        d.duplicate_app("one", "two", True)

    real = d.server_lock

    def server_lock(name):
        """Somebody makes one of that name at the last moment."""
        (root / "apps" / "three").mkdir()
        return real(name)
    monkeypatch.setattr(d, "server_lock", server_lock)
    with pytest.raises(d.DokkuError, match="Name is already taken"):
        d.duplicate_app("one", "three", True)
    assert named == [] and not list((root / "apps").glob(".three.*")) and not list((root / "apps" / "three").iterdir())


def test_a_copy_that_can_not_be_served_leaves_no_trace(root, named, monkeypatch):
    def fail(app):
        """Find no ports."""
        raise d.DokkuError("no")
    monkeypatch.setattr(d, "render_vhost", fail)
    with pytest.raises(d.DokkuError):
        d.duplicate_app("one", "three", True)
    assert named == ["three"]


def test_the_images_of_a_copy_get_their_names_under_its_lock(root, named, monkeypatch):
    """Else a clean-up of the new app could take them for left over."""
    tagged = []
    monkeypatch.setattr(d, "tags_of", lambda app: ["v1", "latest"])
    monkeypatch.setattr(d, "tag_as", lambda old, new: tagged.append((old, new, d.is_locked(root / "apps" / "three" / "lock"))))
    d.duplicate_app("one", "three", True)
    assert tagged == [("dokku/one:v1", "dokku/three:v1", True), ("dokku/one:latest", "dokku/three:latest", True)]


def test_a_deploy_key_goes_with_its_app_and_opens_no_later_one_of_that_name(root, monkeypatch):
    for name in ("remove_app", "render_crontab", "render_authorized_keys"):
        monkeypatch.setattr(d, name, lambda *words, **facts: None)
    d.make_folder(d.app_folder("one"))
    keys = [d.Key(name, "ssh-ed25519 x", f"SHA256:{name}", role, apps) for name, role, apps in
            (("a", "deploy", ("one",)), ("b", "deploy", ("one", "two")), ("c", "deploy", ("two",)), ("d", "developer", ("one",)), ("e", "admin", ()))]
    for key in keys:
        d.write_key(key)
    d.destroy_app("one")
    assert [(key.name, key.apps) for key in d.read_keys()] == [("b", ("two",)), ("c", ("two",)), ("d", ("one",)), ("e", ())]


def test_a_rename_takes_the_keys_along(root, named, monkeypatch):
    key = d.Key("eve", "ssh-ed25519 x", "SHA256:x", "developer", ("one", "two"))
    d.write_key(key)
    d.apps_rename(True, "one", "three")
    assert d.read_keys() == [key._replace(apps=("three", "two"))] and named == ["one"]


@pytest.mark.parametrize("kept", ["", "me since 2026-01-01\n"])
def test_a_rename_keeps_the_lock_of_deploys_and_lets_none_in_meanwhile(root, named, monkeypatch, kept):
    note, real = root / "apps" / "one" / "LOCKED", d.duplicate_app
    if kept:
        d.write_text(note, kept)

    def duplicate_app(old, new, skip_deploy):
        """A push that waits gets the lock when the app is gone."""
        assert d.is_locked(root / "apps" / "one" / "lock")
        real(old, new, skip_deploy)
    monkeypatch.setattr(d, "duplicate_app", duplicate_app)
    d.apps_rename(True, "one", "three")
    assert named == ["one"] and d.read_text(root / "apps" / "three" / "LOCKED") == kept


@pytest.mark.parametrize("kept", ["", "me since 2026-01-01\n"])
def test_a_rename_that_fails_leaves_the_lock_of_deploys_as_it_was(root, named, kept):
    note = root / "apps" / "one" / "LOCKED"
    if kept:
        d.write_text(note, kept)
    with pytest.raises(d.DokkuError, match="already taken"):
        d.apps_rename(True, "one", "two")
    assert d.read_text(note) == kept and note.exists() is bool(kept) and named == []


def test_no_app_takes_a_domain_that_another_one_has(root, named):
    """Its name under the server's domain may be another app's own domain, served or sent elsewhere."""
    d.write_lines(root / "apps" / "one" / "DOMAINS", ["three.example.com"])
    d.write_lines(root / "apps" / "one" / "REDIRECTS", ["four.example.com three.example.com 301"])
    for name in ("three", "four"):
        for make in (lambda: d.create_app(name), lambda: d.apps_create(name), lambda: d.apps_clone(True, False, "two", name),
                     lambda: d.apps_rename(True, "two", name)):
            with pytest.raises(d.DokkuError, match=f"{name}.example.com belongs to one"):
                make()
            assert not d.app_exists(name) and not (root / "apps" / "two" / "LOCKED").exists()
    assert named == []
    d.write_lines(root / "apps" / "two" / "DOMAINS", ["two.example.org"])
    d.apps_rename(True, "two", "three")  # its own domains come along: three.example.com is none of them
    assert d.named_domains("three") == ["two.example.org"]


def test_no_domain_of_the_server_gives_an_app_what_another_one_has(root, named):
    d.write_lines(root / "apps" / "one" / "DOMAINS", ["two.example.org"])
    for verb, domains in (("add", ["example.org"]), ("set", ["example.com", "example.org"])):
        with pytest.raises(d.DokkuError, match="two.example.org belongs to one"):
            d.change_domains("--global", verb, domains)
    d.write_lines(root / "apps" / "one" / "DOMAINS", ["one.example.org"])
    d.write_lines(root / "apps" / "one" / "REDIRECTS", ["two.example.org one.example.org 301"])
    with pytest.raises(d.DokkuError, match="two.example.org belongs to one"):
        d.change_domains("--global", "add", ["example.org"])
    assert d.read_lines(root / "VHOST") == ["example.com"]
    d.write_lines(root / "apps" / "two" / "DOMAINS", ["elsewhere.example.net"])
    d.change_domains("--global", "add", ["example.org"])
    assert d.read_lines(root / "VHOST") == ["example.com", "example.org"]
    d.change_domains("--global", "remove", ["example.org"])
    assert d.read_lines(root / "VHOST") == ["example.com"]


def test_two_apps_never_answer_for_one_redirect(root, named):
    """A clone would claim what the first one sends elsewhere; a rename takes it along."""
    d.write_lines(root / "apps" / "one" / "REDIRECTS", ["old.example.com one.example.com 301"])
    d.apps_clone(True, False, "one", "three")
    assert d.redirects_of("three") == {}
    d.apps_rename(True, "one", "four")
    assert d.redirects_of("four") == {"old.example.com": "one.example.com 301"}


@pytest.mark.parametrize("source, target", [("a.example.com", "a.example.com"), ("a.example.com", "https://a.example.com"),
                                            ("b.example.com", "old.example.com"), ("b.example.com", "http://old.example.com"),
                                            ("one.example.org", "old.example.com")])
def test_no_request_is_sent_round_and_round(root, named, source, target):
    rows = ["old.example.com one.example.org 301"]
    d.write_lines(root / "apps" / "one" / "REDIRECTS", rows)
    with pytest.raises(d.DokkuError, match="is itself redirected"):
        d.change_redirects("one", "set", source, target, "301")
    assert d.read_lines(root / "apps" / "one" / "REDIRECTS") == rows
    d.change_redirects("one", "set", "new.example.com", "https://one.example.com", "308")
    d.change_redirects("one", "set", "old.example.com", "one.example.com", "302")
    assert d.redirects_of("one") == {"old.example.com": "one.example.com 302", "new.example.com": "https://one.example.com 308"}


# --- what a copy takes along ---

def test_a_copy_keeps_links_and_takes_nothing_of_a_push_that_arrives(root):
    d.make_folder(root / "nginx/pages/one")
    (root / "nginx/pages/one/link").symlink_to("/etc/passwd")
    objects = root / "apps/one/repo.git/objects"
    names = [objects / "tmp_objdir-incoming-x/pack", objects / "ab/cd", objects.parent / "refs/heads/tmp_x", objects.parent / "refs/heads/objects/tmp_y"]
    for path in names:
        d.write_text(path, "x")
    d.copy_app("one", "three")
    assert os.readlink(root / "nginx/pages/three/link") == "/etc/passwd"
    assert [(root / "apps/three" / path.relative_to(root / "apps/one")).exists() for path in names] == [False, True, True, True]


def test_a_copy_that_is_not_deployed_is_stopped_and_its_releases_are_none_that_were_begun(root, named):
    for number in (1, 2):
        d.write_release(d.Release(app="one", number=number, image="sha256:1", procfile={"web": "x"}), {})
    d.write_current(d.Release(app="one", number=2, image="sha256:1", procfile={"web": "x"}))
    d.duplicate_app("one", "three", True)
    assert [d.release_status("three", number, d.read_current("three")) for number in (1, 2)] == ["replaced", "live"] and d.is_stopped("three") and not d.is_stopped("one")
    d.duplicate_app("two", "four", True)
    assert not d.is_stopped("four"), "what was never deployed has nothing to start"


@pytest.mark.parametrize("off", ["", "NO_VHOST"])
def test_a_clone_listens_on_no_port_that_is_the_first_ones_own(root, named, monkeypatch, off):
    """It has no name by which the two could share one: the server has no domain, or the first one is not served by name."""
    monkeypatch.setattr(d, "listening_ports", lambda: {7070: 0, 7071: 0})
    d.write_lines(root / "apps/one" / (off or "DOMAINS"), ["one.example.org"])
    d.remove(root / "VHOST") if not off else None
    for fact, own in (("PORTS", "http:7070:5000"), ("properties/proxy.proxy-port", "7071")):
        d.write_lines(root / "apps/one" / fact, [own])
        d.apps_clone(True, False, "one", "three")
        assert d.host_ports("one") == {int(own.split(":")[1 if ":" in own else 0])} and not d.host_ports("three") & {80, 7070, 7071}
        d.remove(root / "apps/three", root / "apps/one" / fact)


def test_a_clone_that_would_listen_where_another_does_is_none(root, named, monkeypatch):
    """Its port comes from the server's settings or from app.json, which come along."""
    monkeypatch.setattr(d, "host_ports", lambda app: {7070})
    d.write_text(root / "apps/one/NO_VHOST", "")
    with pytest.raises(d.DokkuError, match="7070 is used by one"):
        d.apps_clone(True, False, "one", "three")
    assert named == ["three"]


def test_a_folder_among_the_keys_is_no_key(root):
    d.write_key(d.Key("eve", "ssh-ed25519 x", "SHA256:x", "developer", ()))
    d.make_folder(root / "keys/folder")
    assert [row.name for row in d.read_keys()] == ["eve"]


def test_a_key_for_every_app_is_not_for_the_server(root, roles):
    every, limited = d.Caller("f", "admin", ("*",)), d.Caller("g", "admin", ("one",))
    assert d.may(every, "admin", "one") and not d.may(every, "admin") and not d.may(limited, "admin") and d.may(ADMIN, "admin")
    with pytest.raises(d.AccessDenied):
        d.set_property("nginx", "--global", "proxy-protocol", ["true"], every)


def test_where_nginx_forwards_to_on_this_host_is_for_administrators(root, roles, monkeypatch):
    done = []
    monkeypatch.setattr(d, "change_property", lambda *words: done.append(words))
    with pytest.raises(d.AccessDenied):
        d.set_property("network", "one", "static-web-listener", ["127.0.0.1:22"], OF_ONE)
    d.set_property("network", "one", "static-web-listener", ["127.0.0.1:22"], ADMIN)
    assert done == [("network", "one", "static-web-listener", "127.0.0.1:22")]


def test_storage_is_unmounted_by_its_place_in_the_container(root):
    d.storage_unmount(None, "one", d.parse_mount("/up"))
    assert [row.target for row in d.mounts_of("one")] == ["/etc"]


# --- what happens to an app, or to its domains, while a command waits ---

def meanwhile(monkeypatch, work):
    """Have a command that wants an app's lock get it when something was done."""
    real = d.locked

    @contextlib.contextmanager
    def locked(app, purpose):
        """Wait, once."""
        monkeypatch.setattr(d, "locked", real)
        work()
        with real(app, purpose):
            yield
    monkeypatch.setattr(d, "locked", locked)


def test_a_copy_that_can_not_be_read_leaves_no_trace(root):
    os.mkfifo(root / "apps/one/fifo")  # not even root can copy one
    with pytest.raises(d.DokkuError, match="apps/one can't be copied: .*named pipe"):
        d.copy_app("one", "three")
    assert sorted(os.listdir(root / "apps")) == ["one", "two"]


def test_a_rename_ends_what_runs_before_it_is_removed(root, named, monkeypatch):
    done = []
    monkeypatch.setattr(d, "render_vhost", lambda app, off=False: done.append(f"vhost of {app}") or ([7] if off else []))
    monkeypatch.setattr(d, "wait_for_workers", lambda app, workers: done.append(f"workers {workers} of {app}"))
    for name in ("stop_processes", "remove_app"):
        monkeypatch.setattr(d, name, lambda app, name=name: done.append(f"{name} {app}"))
    d.apps_rename(True, "one", "three")
    assert done == ["vhost of three", "vhost of one", "workers [7] of one", "stop_processes one", "remove_app one"]


def test_a_copy_whose_name_another_app_took_as_a_domain_meanwhile_leaves_no_trace(root, named, monkeypatch):
    real = d.copy_app
    monkeypatch.setattr(d, "copy_app", lambda *words: (real(*words), d.write_lines(root / "apps/two/DOMAINS", ["three.example.com"])))
    with pytest.raises(d.DokkuError, match="three.example.com belongs to two"):
        d.apps_clone(True, False, "one", "three")
    assert named == ["three"]


def test_what_an_authority_must_know_is_copied_to_no_clone(root, named):
    for app, copy in (("three", lambda: d.apps_clone(True, False, "one", "three")), ("four", lambda: d.apps_rename(True, "one", "four"))):
        d.write_text(d.property_file("one", "letsencrypt", "dns"), "TOKEN=x\n", secret=True)
        copy()
        assert d.dns_secrets(app) == ({} if app == "three" else {"TOKEN": "x"}) and d.dns_secrets("one") == {"TOKEN": "x"}


def test_a_new_app_has_no_certificate_of_an_older_one(root, named):
    """A renewal that went on while the old one was destroyed leaves it."""
    d.write_text(d.acme_folder("three") / "certificates/three.example.com.key", "old")
    d.create_app("three")
    assert d.app_exists("three") and not d.acme_folder("three").exists()


def test_the_name_of_an_app_is_not_taken_from_it(root, named):
    with pytest.raises(d.DokkuError, match="one has no domains other than its name"):
        d.change_domains("one", "remove", ["one.example.com"])
    assert not (root / "apps/one/DOMAINS").exists()
    d.change_domains("one", "set", ["www.example.org"])
    d.change_domains("one", "remove", ["www.example.org"])  # its name is what remains
    assert d.domains_of("one") == ["one.example.com"]
    d.write_lines(root / "VHOST", ["example.com", "example.net"])
    d.change_domains("one", "remove", ["one.example.com"])
    assert d.domains_of("one") == ["one.example.net"]


@pytest.mark.parametrize("file, other, why", [("NO_PROXY", "HTTP_AUTH", "asks for a password"), ("HTTP_AUTH", "NO_PROXY", "is served without nginx"),
                                              ("MAINTENANCE", "NO_PROXY", "is served without nginx")])
def test_how_an_app_is_served_is_looked_at_under_its_lock(root, named, monkeypatch, file, other, why):
    meanwhile(monkeypatch, lambda: d.write_text(root / "apps/one" / other, ""))
    monkeypatch.setattr(d, "serve", lambda app: None)
    with pytest.raises(d.DokkuError, match=f"one {why}"):
        d.serve_by("one", file, off="1")
    assert not (root / "apps/one" / file).exists()


@pytest.mark.parametrize("work", [lambda: d.ssh_install("one"), lambda: d.set_property("letsencrypt", "one", "dns-provider-TOKEN", ["-"], ADMIN),
                                  lambda: d.change_login("one", "registry.example.com", ADMIN, "me", piped=True)], ids=["key", "secret", "login"])
def test_a_secret_that_comes_when_its_app_is_destroyed_leaves_no_ghost_of_it(root, monkeypatch, work):
    class Slow:
        """Standard input, on which the secret comes late."""

        def read(self, *size):
            """Have the app destroyed first."""
            d.remove(root / "apps/one")
            return "secret\n"
        readline = read
    monkeypatch.setattr(d.sys, "stdin", Slow())
    monkeypatch.setattr(d, "output_of", lambda argv, stdin, env: d.write_text(d.Path(env["DOCKER_CONFIG"]) / "config.json", stdin))
    with pytest.raises(d.NoSuchApp):
        work()
    assert d.apps() == ["two"] and not (root / "apps/one").exists()


def test_secrets_are_read_before_and_merged_under_the_lock(root, monkeypatch):
    def secret_word(text):
        """Look whether anybody must wait for it."""
        assert not d.is_locked(root / "apps/one/lock")
        return text
    monkeypatch.setattr(d, "secret_word", secret_word)
    meanwhile(monkeypatch, lambda: d.write_text(d.property_file("one", "letsencrypt", "dns"), "OTHER=x\n"))
    d.set_property("letsencrypt", "one", "dns-provider-TOKEN", ["y"], ADMIN)
    assert d.dns_secrets("one") == {"OTHER": "x", "TOKEN": "y"}
    d.set_property("letsencrypt", "one", "dns-provider-TOKEN", [""], ADMIN)
    assert d.dns_secrets("one") == {"OTHER": "x"}, "an empty word is none"


@pytest.mark.parametrize("words, asked", [(["a", "b"], ["a", "b"]), (["a b"], ["a", "b"]), ([""], []), ([], [])])
def test_networks_are_several_words_or_one_and_an_empty_one_is_none(root, monkeypatch, capsys, words, asked):
    seen = []
    monkeypatch.setattr(d, "shared_networks", lambda: ["a", "b"])
    monkeypatch.setattr(d, "require_network", seen.append)
    d.write_property("one", "network", "attach-post-create", "c")
    d.set_property("network", "one", "attach-post-create", words, ADMIN)
    assert seen == asked and d.networks_of("one") == asked
    assert f"{'Setting' if asked else 'Unsetting'} attach-post-create" in capsys.readouterr().out


@pytest.mark.parametrize("verb, domains", [("clear", []), ("remove", ["one.example.org"])])
def test_who_goes_back_to_his_name_takes_it_from_nobody(root, named, verb, domains):
    d.change_domains("one", "set", ["one.example.org"])
    d.change_domains("two", "add", ["one.example.com"])
    with pytest.raises(d.DokkuError, match="one.example.com belongs to two"):
        d.change_domains("one", verb, domains)
    assert d.named_domains("one") == ["one.example.org"]


@pytest.mark.parametrize("how", ["maps", "proxy-port"])
def test_without_global_domains_no_two_apps_listen_on_one_port(root, named, how):
    for app in ("one", "two"):
        d.write_lines(root / "apps" / app / "PORTS", ["http:8080:5000"]) if how == "maps" else d.write_property(app, "proxy", how, "8080")
    with pytest.raises(d.DokkuError, match="8080 is used by"):
        d.change_domains("--global", "clear")
    assert d.read_lines(root / "VHOST") == ["example.com"]


def test_a_copy_is_on_the_disk_before_it_has_its_name(root, monkeypatch):
    done = []
    monkeypatch.setattr(d, "run", lambda argv, **words: done.append((argv[0], d.app_exists("new"))))
    d.copy_app("one", "new")
    assert done == [("sync", False)] and d.app_exists("new")


def test_an_app_that_holds_its_ports_itself_is_not_renamed_while_it_runs(root, named):
    d.write_text(root / "apps/one/NO_PROXY", "")
    d.write_lines(root / "apps/one/PORTS", ["http:8080:5000"])
    d.write_release(d.Release("one", 1, image="x"), {})
    d.write_current(d.Release("one", 1, image="x"))
    with pytest.raises(d.DokkuError, match="one holds its ports while it runs"):
        d.apps_rename(False, "one", "three")
    assert not d.app_exists("three")


def test_a_deploy_key_may_do_what_the_docs_list():
    may = {row.name for row in d.commands().values() if row.access == "deploy"}
    assert may == {"apps:lock", "apps:unlock", "git:sync", "git:from-archive", "git:from-image", "git:unlock", "ps:rebuild", "rebuild:force", "rollback",
                   "builds:cancel", "builds:prune", "repo:purge-cache", "tag:add", "tag:rm", "git-receive-pack", "git-upload-pack"}


def test_a_push_takes_no_name_of_another_image(root, monkeypatch, capsys):
    tagged = []
    for key, value in (("push-on-release", "true"), ("image-repo", "library/debian"), ("push-extra-tags", "bookworm")):
        d.write_property("one", "registry", key, value)
    monkeypatch.setattr(d, "inspect_image", lambda name: {"Id": "sha256:other"} if name.endswith(":bookworm") else {})
    monkeypatch.setattr(d, "run", lambda argv, **words: subprocess.CompletedProcess(argv, 0, b"", b""))
    monkeypatch.setattr(d, "tag_as", lambda image, name: tagged.append(name))
    monkeypatch.setattr(d, "untag_image", tagged.remove)
    d.push_release(d.Release("one", 1, image="sha256:mine"))
    assert tagged == [] and "docker.io/library/debian:bookworm is the name of another image" in capsys.readouterr().err


def test_a_domain_of_an_app_is_redirected_once_it_is_none_any_more(root, named):
    d.change_domains("one", "set", ["one.example.org", "www.example.org"])
    with pytest.raises(d.DokkuError, match="www.example.org is a domain of one"):
        d.change_redirects("one", "set", "www.example.org", "one.example.org", "301")
    d.change_domains("one", "remove", ["www.example.org"])
    d.change_redirects("one", "set", "www.example.org", "one.example.org", "301")
    assert list(d.redirects_of("one")) == ["www.example.org"]
    with pytest.raises(d.DokkuError, match="www.example.org is redirected"):
        d.change_domains("one", "add", ["www.example.org"])


def test_what_is_not_removed_is_said(root, named, capsys):
    d.change_domains("one", "set", ["one.example.org"])
    d.change_domains("one", "remove", ["nope.example.org"])
    said = capsys.readouterr()
    assert "one has no domain nope.example.org" in said.err and said.out.count("one answers as one.example.org") == 2
