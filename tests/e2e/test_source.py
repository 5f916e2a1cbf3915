"""What a push may bring: submodules, links, ignored files, tags, forced pushes, several refs; and how it can be broken off."""

import base64
import os
import signal

import pytest
from conftest import make_repository, sh, wait_until

COPY_ALL = "FROM debian:bookworm\nCOPY . /all\nRUN cp /all/server.pl /server.pl\nEXPOSE 8080\nCMD perl /server.pl\n"


def test_a_submodule_comes_at_its_recorded_commit(switch, git_server):
    address, folder = git_server
    commit = make_repository(switch, folder / "part", note="from the submodule")
    switch.write(Dockerfile=COPY_ALL, dot_gitmodules=f'[submodule "part"]\n\tpath = lib/part\n\turl = {address}/part\n')
    switch.git("update-index", "--add", "--cacheinfo", f"160000,{commit},lib/part")
    switch.git("commit", "-qm", "submodule")
    make_repository(switch, folder / "other", note="x")
    (folder / "part" / "note").write_text("moved on")
    assert sh("git", "-C", folder / "part", "commit", "-qam", "y", env=switch.person.environment()).returncode == 0
    done = switch.person.push(switch.work, switch.name)
    assert done.returncode == 0 and "Fetching submodule lib/part" in done.stderr, done.stderr
    assert switch.get("/file/all/lib/part/note") == (200, "from the submodule")
    assert switch.get("/file/all/lib/part/.git/HEAD")[0] == 404


def test_packing_the_repository_anew_ends_with_the_push_and_holds_no_lock(switch):
    def chance(letter):
        return {f"{letter}{number}": base64.b64encode(os.urandom(20_000)).decode() for number in range(150)}  # what no delta makes shorter takes long to pack

    switch.deploy(**chance("a"))
    for key, value in (("gc.autoPackLimit", "1"), ("pack.window", "300"), ("pack.threads", "1")):
        sh("git", "config", "-f", switch.folder / "repo.git" / "config", key, value)
    switch.deploy(**chance("b"))
    assert sh("pgrep", "-u", "dokku", "-fa", "git (gc|repack|pack-objects|maintenance)").stdout == "" and sh("flock", "-n", switch.folder / "pushes", "true").returncode == 0
    assert len(list((switch.folder / "repo.git" / "objects" / "pack").glob("*.pack"))) == 1


@pytest.mark.parametrize("url", ["file:///etc", "/etc", "../other", "ext::sh -c touch% /tmp/owned", "--upload-pack=touch /tmp/owned", "git://127.0.0.1:1/x"])
def test_a_submodule_from_elsewhere_is_refused(switch, url):
    switch.write(Dockerfile=COPY_ALL, dot_gitmodules=f'[submodule "part"]\n\tpath = part\n\turl = {url}\n')
    switch.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},part")
    switch.git("commit", "-qm", "submodule")
    done = switch.person.push(switch.work, switch.name)
    assert done.returncode != 0 and "remote rejected" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not os.path.exists("/tmp/owned") and not switch.containers("-a")


def test_links_stay_links_and_ignored_files_stay_out(switch):
    os.symlink("/etc/passwd", switch.work / "link")
    os.symlink("server.pl", switch.work / "inner")
    switch.deploy(Dockerfile=COPY_ALL, dot_dockerignore="secret\n", secret="not for the image\n")
    assert switch.get("/file/all/secret")[0] == 404
    assert switch.get("/file/all/inner")[1].startswith("# A web server")
    host, inside = open("/etc/passwd").read(), switch.get("/file/all/link")[1]
    assert inside.startswith("root:") and inside != host.strip(), "the link was followed on the host"


def test_a_dockerfile_or_procfile_that_links_out_of_the_tree_is_not_read(switch):
    (switch.work / "Procfile").symlink_to("/etc/passwd")
    switch.deploy()
    (switch.work / "Procfile").unlink()
    (switch.work / "Dockerfile").unlink()
    (switch.work / "Dockerfile").symlink_to("/etc/passwd")
    output = switch.rejected()
    assert "root:" not in output


def test_tags_and_forced_pushes(switch):
    switch.deploy()
    switch.git("tag", "v1.0")
    done = switch.person.push(switch.work, switch.name, "v1.0")
    assert done.returncode == 0 and "Building" not in done.stderr
    old = switch.git("rev-parse", "HEAD")
    switch.git("commit", "-q", "--amend", "-m", "rewritten")
    assert switch.person.push(switch.work, switch.name).returncode != 0, "git itself refuses without --force"
    done = switch.person.push(switch.work, switch.name, "main", "--force")
    assert done.returncode == 0, done.stderr
    assert switch.ok("git:report", "--git-sha").strip() == switch.git("rev-parse", "HEAD") != old
    done = switch.person.push(switch.work, switch.name, f"{old}:refs/heads/main", "--force")
    assert done.returncode == 0, done.stderr
    assert switch.ok("git:report", "--git-sha").strip() == old


def test_what_git_refuses_after_the_hook_never_goes_live(switch, tmp_path):
    switch.deploy()
    switch.git("tag", "-a", "v1", "-m", "x")
    done = switch.person.push(switch.work, switch.name, "v1:main")
    assert done.returncode and "main can't stand on a tag" in done.stderr, done.stderr
    switch.write(more="1").write(more="2")
    assert sh("git", "clone", "-q", "--depth", "1", f"file://{switch.work}", tmp_path / "shallow").returncode == 0
    done = switch.person.push(tmp_path / "shallow", switch.name, "main", "--force")
    assert done.returncode and "That comes from a shallow clone" in done.stderr, done.stderr
    assert len(switch.ok("releases").splitlines()) == 1
    assert switch.person.push(switch.work, switch.name, "main").returncode == 0
    switch.write(more="3")  # what it stands on is on the server, as with most CI
    assert sh("git", "clone", "-q", "--depth", "1", f"file://{switch.work}", tmp_path / "ci").returncode == 0
    before, done = switch.ok("releases"), switch.person.push(tmp_path / "ci", switch.name, "main", "--force")
    assert done.returncode and "That comes from a shallow clone" in done.stderr and switch.ok("releases") == before, done.stderr
    assert switch.person.push(switch.work, switch.name, "main").returncode == 0


def test_two_branches_in_one_push(switch):
    switch.write()
    switch.git("branch", "topic")
    done = switch.person.push(switch.work, switch.name, "main topic")
    assert done.returncode == 0 and "topic is not the deploy branch" in done.stderr
    assert switch.get()[0] == 200


def test_the_branch_named_by_deploy_branch_deploys(bare):
    bare.ok("git:set", "deploy-branch", "live")
    bare.write()
    done = bare.person.push(bare.work, bare.name)
    assert done.returncode == 0 and "stored, not deployed" in done.stderr and not bare.containers()
    assert bare.person.push(bare.work, bare.name, "main:live").returncode == 0
    assert bare.get()[0] == 200


def test_ctrl_c_cancels_a_build(switch):
    switch.deploy()
    push = switch.start_push(Dockerfile=f"FROM debian:bookworm\nRUN echo {switch.name}; sleep 30\n")
    push.when(f"RUN echo {switch.name}")
    push.signal(signal.SIGINT)
    code, _ = push.end()
    assert code != 0
    wait_until(switch.lock_is_free)
    switch.assert_untouched(answer="Hello from dokku_py")
    assert switch.releases()[0][-1] == "cancelled"


def test_ssh_urls_with_and_without_git(switch):
    switch.write()
    done = sh("git", "push", f"ssh://dokku@127.0.0.1:22/{switch.name}", "main", cwd=switch.work, env=switch.person.environment())
    assert done.returncode == 0, done.stderr
    done = sh("git", "ls-remote", f"ssh://dokku@127.0.0.1/{switch.name}.git", cwd=switch.work, env=switch.person.environment())
    assert switch.git("rev-parse", "HEAD") in done.stdout
