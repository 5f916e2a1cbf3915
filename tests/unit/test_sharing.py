"""Storage, networks and registries: which words name what, and who may use what others have."""

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
