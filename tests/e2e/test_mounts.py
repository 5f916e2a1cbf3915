"""Storage: folders that outlive releases and apps, shared by several, in both spellings, and nobody's way to the rest of the host."""

import json
import shutil
import uuid

import pytest
from conftest import STATE, docker, quoted, sh, wait_until

FOLDERS = STATE / "data" / "storage"
WRITER = "web: echo $DOKKU_RELEASE >> /data/log; exec perl /server.pl\n"


@pytest.fixture
def storage(admin):
    """Give names for storage; what is made under them is gone afterwards."""
    names = []

    def name():
        names.append(f"t{uuid.uuid4().hex[:8]}")
        return names[-1]

    yield name
    for made in names:
        done = sh("dokku", "storage:destroy", made, "--force", "--destroy-host-dir")
        assert done.returncode == 0 or "There is no storage" in done.stderr, done.stderr
        for folder in FOLDERS.glob(f"{made}*"):
            shutil.rmtree(folder)


def owner(folder):
    return folder.stat().st_uid


def test_data_outlives_deploys_and_the_app_and_another_app_reads_it(storage, new_app):
    writer, reader, name = new_app(), new_app(), storage()
    made = writer.person.ok("storage:ensure-directory", name)
    assert f"-----> Ensuring {FOLDERS / name} exists" in made and "Directory ready for mounting" in made and owner(FOLDERS / name) == 10001
    for app, options in ((writer, ()), (reader, ("--readonly",))):
        app.ok("apps:create")
        assert f"dokku ps:restart {app.name}" in app.ok("storage:mount", name, "--container-dir", "/data", *options)
    for _ in range(3):
        writer.deploy(Procfile=WRITER)
    reader.deploy()
    assert reader.get("/file/data/log") == (200, "v1\nv2\nv3")
    assert reader.inspect()["Mounts"][0]["RW"] is False and writer.inspect()["Mounts"][0]["Source"] == str(FOLDERS / name)
    assert "Read-only file system" in reader.person.ssh("run", reader.name, *quoted("echo x > /data/log")).stderr
    assert "is mounted by " in writer.person.refused("storage:destroy", name, "--force", "--destroy-host-dir")
    out = writer.person.ok("--force", "apps:destroy", writer.name)
    assert f"The data in {FOLDERS / name} is kept" in out
    assert reader.get("/file/data/log") == (200, "v1\nv2\nv3")


def test_one_offs_and_release_commands_see_it_too(storage, switch):
    name = storage()
    switch.ok("apps:create")
    switch.person.ok("storage:create", name)
    switch.ok("storage:mount", name, "--container-dir", "/data")
    switch.deploy(Procfile="release: echo migrated >> /data/log\nweb: exec perl /server.pl\n")
    switch.ok("run", *quoted("echo one-off >> /data/log"))
    assert switch.get("/file/data/log") == (200, "migrated\none-off")


def test_a_phase_limits_who_sees_it(storage, switch):
    both = storage(), storage()
    switch.ok("apps:create")
    for name, phase in zip(both, ("deploy", "run")):
        switch.person.ok("storage:create", name, "--chown", "false")
        switch.ok("storage:mount", name, "--container-dir", f"/{phase}", "--phase", phase)
    switch.deploy()
    assert [row["Destination"] for row in switch.inspect()["Mounts"]] == ["/deploy"]
    assert switch.ok("run", *quoted("ls -d /deploy /run/* 2>&1; grep -c ' /run ' /proc/mounts")).splitlines()[0].startswith("ls: cannot access '/deploy'")
    report = json.loads(switch.ok("storage:report", "--format", "json"))
    assert report == {"build-mounts": "", "deploy-mounts": f"-v {FOLDERS / both[0]}:/deploy", "run-mounts": f"-v {FOLDERS / both[1]}:/run"}


def test_mounts_are_listed_told_apart_and_taken_away(storage, bare):
    name = storage()
    bare.person.ok("storage:create", name)
    legacy = f"{FOLDERS / name}:/one:ro"
    bare.ok("storage:mount", legacy)
    bare.ok("storage:mount", name, "--container-dir", "/two")
    assert "Mount path already exists." in bare.refused("storage:mount", name, "--container-dir", "/two")
    assert bare.ok("storage:list").startswith(f"=====> {bare.name} volume bind-mounts:\n")
    assert [line.strip() for line in bare.person.ok("--quiet", "storage:list", bare.name).splitlines()] == [legacy, f"{FOLDERS / name}:/two"]
    assert json.loads(bare.ok("storage:list", "--format", "json"))[1] == {"host_path": str(FOLDERS / name), "container_path": "/two", "volume_options": "rw"}
    bare.ok("storage:unmount", legacy)
    assert "Mount path does not exist." in bare.refused("storage:unmount", name, "--container-dir", "/one")
    bare.ok("storage:unmount", name)
    assert bare.person.ok("--quiet", "storage:list", bare.name) == "" and (FOLDERS / name).is_dir()


def test_the_owner_of_a_folder(admin, storage):
    name = storage()
    for option, wanted in (("app", 10001), ("heroku", 1000), ("herokuish", 32767), ("packeto", 2000), ("root", 0), ("4711", 4711), ("false", 4711)):
        admin.ok("storage:ensure-directory", "--chown", option, name)
        assert owner(FOLDERS / name) == wanted
    admin.ok("storage:set", name, "chown", "heroku")
    assert owner(FOLDERS / name) == 1000
    assert "is not an owner" in admin.refused("storage:create", name, "--chown", "'1;id'", code=2)


def test_a_command_in_a_short_container_sees_the_folder(admin, storage):
    name = storage()
    admin.ok("storage:create", name)
    admin.ok("storage:exec", name, "--", "sh", "-c", quoted("echo seen > file")[0])
    assert (FOLDERS / name / "file").read_text() == "seen\n"
    assert admin.ok("storage:exec", name, stdin="pwd; ls\n") == "/data\nfile\n"
    assert admin.ssh("storage:exec", name, "--", "false").returncode == 1
    wait_until(lambda: docker("ps", "-aq", "--filter", f"volume={FOLDERS / name}") == "")


def test_destroying_keeps_the_data_unless_asked(admin, storage):
    name = storage()
    admin.ok("storage:create", name)
    admin.ok("storage:exec", name, "--", "touch", "mine")
    assert f"The data in {FOLDERS / name} is kept" in admin.ok("storage:destroy", name)
    assert "There is no storage" in admin.refused("storage:info", name)
    admin.ok("storage:create", name)
    assert (FOLDERS / name / "mine").exists()
    assert "add --force" in admin.refused("storage:destroy", name, "--destroy-host-dir")
    assert (FOLDERS / name / "mine").exists()
    assert f"The data in {FOLDERS / name} is gone" in admin.ok("storage:destroy", name, "--destroy-host-dir", "--force")
    assert not (FOLDERS / name).exists()


def test_volumes_of_dokku_alt_have_a_folder_for_each_path(storage, switch):
    name, admin = storage(), switch.person
    admin.ok("volume:create", name, "/var/one", "/var/two")
    switch.ok("apps:create")
    switch.ok("volume:link", name)
    switch.deploy(Procfile="web: echo first > /var/one/file; echo second > /var/two/file; exec perl /server.pl\n")
    assert switch.get("/file/var/one/file") == (200, "first") and switch.get("/file/var/two/file") == (200, "second")
    assert (FOLDERS / name / "file").read_text() == "first\n" and (FOLDERS / f"{name}.1" / "file").read_text() == "second\n"
    assert name in admin.ok("volume:list").split() and admin.ok("volume:list:apps", name) == f"{switch.name}\n"
    info = admin.ok("volume:info", name)
    assert "container-dir: /var/one /var/two" in " ".join(info.split()) and switch.name in info
    switch.refused("storage:mount", name, "--container-dir", "/elsewhere", code=2)
    switch.ok("volume:unlink", name)
    assert admin.ok("volume:list:apps", name) == ""
    assert "is kept" in admin.ok("volume:delete", name)


def test_storage_is_listed_and_knows_where_it_is_seen(storage, bare):
    name, admin = storage(), bare.person
    admin.ok("storage:create", name)
    bare.refused("storage:mount", name, code=2)
    admin.ok("storage:set", name, "container-dir", "/app/uploads")
    bare.ok("storage:mount", name)
    wanted = {"name": name, "path": str(FOLDERS / name), "container-dir": "/app/uploads", "apps": bare.name}
    assert json.loads(admin.ok("storage:info", name, "--format", "json")) == wanted
    assert wanted in json.loads(admin.ok("storage:list-entries", "--scheduler", "docker-local", "--format", "json"))
    assert "dokku" in admin.ok("volume:help") and "storage:mount" in admin.ok("storage")


def test_volumes_among_docker_options_become_mounts(storage, bare, tmp_path):
    name, other = storage(), tmp_path / "other"
    other.mkdir()
    for phase, bind in (("deploy,run", f"{FOLDERS / name}:/data"), ("deploy", f"{other}:/other:ro")):
        bare.ok("docker-options:add", phase, "-v", bind)
    said = bare.person.ok("storage:migrate", "--dry-run", bare.name)
    assert f"deploy: -v {FOLDERS / name}:/data" in said and bare.ok("storage:report", "--storage-deploy-mounts") == "\n"
    bare.person.ok("storage:migrate", bare.name)
    assert bare.ok("storage:report", "--storage-deploy-mounts") == f"-v {FOLDERS / name}:/data -v {other}:/other:ro\n"
    assert bare.ok("storage:report", "--storage-run-mounts") == f"-v {FOLDERS / name}:/data\n"
    assert bare.ok("docker-options:list") == "" and bare.person.ok("storage:info", name)


def test_a_path_elsewhere_on_the_host_is_for_administrators_and_must_be_there(switch, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("of the host\n")
    switch.ok("apps:create")
    switch.ok("storage:mount", f"{shared}:/shared:ro")
    assert "bind source path does not exist" in switch.refused("storage:mount", f"{tmp_path}/none:/none", code=2)
    switch.deploy()
    assert switch.get("/file/shared/file") == (200, "of the host")
    shutil.rmtree(shared)
    assert "bind source path does not exist" in switch.refused("ps:restart")
    switch.ok("storage:unmount", f"{shared}:/shared")
    switch.ok("ps:restart")
    assert switch.get() == (200, "Hello from dokku_py")


@pytest.mark.parametrize("words", [("../other", "--container-dir", "/x"), (".", "--container-dir", "/x"), ("a/b", "--container-dir", "/x"), ("-v", "--container-dir", "/x"),
                                   ("/var/lib/../../etc:/x",), ("/etc:/x/../y",), ("/etc:/",), ("/etc:relative",), ("/etc:/x:z",), ("none", "--container-dir", "'/x,src=/etc'"),
                                   ("none", "--container-dir", "/x", "--phase", "build")])
def test_names_and_paths_that_lead_elsewhere_are_refused(bare, words):
    assert "Traceback" not in bare.refused("storage:mount", *words, code=2)
    assert not (bare.folder / "MOUNTS").exists()


@pytest.mark.parametrize("name", ["..", "../x", "a.b", "a/b", "''", "x" * 65, "'a b'", "é"])
def test_names_of_storage_refused(admin, name):
    admin.refused("storage:ensure-directory", name, code=2)
    admin.refused("storage:destroy", name, "--force", "--destroy-host-dir", code=2)


def test_a_deploy_key_may_do_nothing_with_storage(deployer, live, storage):
    name = storage()
    live.person.ok("storage:create", name)
    for words in (("storage:mount", live.name, name, "--container-dir", "/x"), ("storage:create", name), ("storage:exec", name, "id"), ("storage:info", name),
                  ("storage:destroy", name, "--force"), ("storage:list", live.name), ("volume:link", live.name, name), ("storage:mount", live.name, "/etc:/x")):
        deployer.refused(*words, code=77)
