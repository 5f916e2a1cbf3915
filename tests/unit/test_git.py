"""Sections 6 to 8, against real git."""

import os
import socket
import subprocess

import pytest

import dokku_py as d


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(d, "ROOT", tmp_path / "root")
    for name, value in {"NAME": "t", "EMAIL": "t@example.com"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    return tmp_path / "root"


@pytest.fixture
def pushed(tmp_path, root):
    """A repository of the app blog that holds one pushed commit; gives (work tree, commit)."""
    work = tmp_path / "work"
    subprocess.run(["git", "init", "-q", "-b", "main", work], check=True)
    (work / "sub").mkdir()
    (work / "sub/run.sh").write_text("#!/bin/sh\n")
    (work / "sub/run.sh").chmod(0o755)
    (work / "link").symlink_to("sub/run.sh")
    (work / "hidden").write_text("x")
    (work / ".gitattributes").write_text("hidden export-ignore\n")
    return work, commit_and_push(work)


def commit_and_push(work):
    subprocess.run(["git", "-C", work, "add", "-A"], check=True)
    subprocess.run(["git", "-C", work, "commit", "-qm", "x"], check=True)
    d.make_folder(d.app_folder("blog"))
    subprocess.run(["git", "-C", work, "push", "-q", d.ensure_repository("blog"), "main"], check=True)
    return d.ref_of("blog", "refs/heads/main")


def test_a_tree_comes_out_as_it_was_committed_and_leaves_nothing(pushed, root):
    with d.checkout("blog", pushed[1]) as tree:
        assert os.readlink(tree / "link") == "sub/run.sh"
        assert os.access(tree / "sub/run.sh", os.X_OK)
        assert (tree / "hidden").exists() and not (tree / ".git").exists()
    assert sorted(os.listdir(root / "apps/blog")) == ["repo.git"]


def test_a_hook_environment_does_not_mislead_git(pushed, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_WORK_TREE", "/nonexistent")
    assert d.ref_of("blog", "refs/heads/main") == pushed[1]
    assert d.ref_of("blog", "refs/heads/none") == d.ZERO


def test_a_commit_in_quarantine_can_be_read(pushed, tmp_path):
    """A real pre-receive hook checks out the commit that is not yet in the repository."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "pre-receive").write_text(f"""#!/bin/sh
read old new ref
PYTHONPATH={os.path.dirname(d.__file__)} DOKKU_ROOT={d.ROOT} /usr/bin/env python3 -c "
import sys, dokku_py as d
with d.checkout('blog', sys.argv[1]) as tree: print('SEEN', (tree / 'new').read_text())
" "$new"
""")
    (hooks / "pre-receive").chmod(0o755)
    subprocess.run(["git", "-C", d.repository_of("blog"), "config", "core.hooksPath", hooks], check=True)
    work = pushed[0]
    (work / "new").write_text("fresh")
    subprocess.run(["git", "-C", work, "add", "-A"], check=True)
    subprocess.run(["git", "-C", work, "commit", "-qm", "y"], check=True)
    done = subprocess.run(["git", "-C", work, "push", d.repository_of("blog"), "main"], capture_output=True, text=True)
    assert "SEEN fresh" in done.stderr, done.stderr


@pytest.mark.parametrize("url", ["/etc", "../other", "ext::sh -c id", "file:///etc", "--upload-pack=id", ""])
def test_a_submodule_with_a_hostile_address_is_refused(pushed, url):
    work, commit = pushed
    (work / ".gitmodules").write_text(f'[submodule "m"]\n\tpath = m\n\turl = {url}\n')
    subprocess.run(["git", "-C", work, "update-index", "--add", "--cacheinfo", f"160000,{commit},m"], check=True)
    head = commit_and_push_index(work)
    with pytest.raises(d.DokkuError), d.checkout("blog", head):
        pass


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/x", "http::http://127.0.0.1:{}/x", "http://127.0.0.1:{}?@8.8.8.8/x", "http://127.0.0.1:{}#@8.8.8.8/x"])
def test_a_submodule_asks_nothing_inside_this_network(pushed, url):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        listed = url.format(server.getsockname()[1])
        (pushed[0] / ".gitmodules").write_text(f'[submodule "m"]\n\tpath = m\n\turl = "{listed}"\n')
        with pytest.raises(d.DokkuError, match="belongs to this server|no address that can be fetched"):
            d.fetch_submodules("blog", pushed[0], f"160000 commit {pushed[1]}\tm\0")
        with pytest.raises(BlockingIOError):
            server.accept()


def commit_and_push_index(work):
    subprocess.run(["git", "-C", work, "add", ".gitmodules"], check=True)
    subprocess.run(["git", "-C", work, "commit", "-qm", "module"], check=True)
    subprocess.run(["git", "-C", work, "push", "-q", d.repository_of("blog"), "main"], check=True)
    return d.ref_of("blog", "refs/heads/main")


def test_properties_app_over_server_over_default():
    assert d.property_of("blog", "nginx", "client-max-body-size") == "1m"
    d.write_property("--global", "nginx", "client-max-body-size", "5M")
    d.write_property("blog", "nginx", "client-max-body-size", "20m")
    assert d.property_of("blog", "nginx", "client-max-body-size") == "20m"
    d.write_property("blog", "nginx", "client-max-body-size", "")
    assert d.property_of("blog", "nginx", "client-max-body-size") == "5m"
    with pytest.raises(d.UsageError):
        d.write_property("blog", "nginx", "client-max-body-size", "1m; include /etc/passwd")
    with pytest.raises(d.UsageError, match="no property"):
        d.write_property("blog", "nginx", "nonsense", "1")


def test_events_are_lines_of_json(root):
    d.make_folder(root)
    d.record_event(d.Caller("alice", address="192.0.2.1"), "ps:scale", app="blog", seconds=0.5)
    assert d.parse_json_object((root / "events.log").read_text(), "events")["ms"] == 500
