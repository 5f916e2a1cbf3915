"""Sections 4 and 5: facts in files, locks, other programs."""

import multiprocessing
import os
import stat
import time

import pytest

import dokku_py as d


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(d, "ROOT", tmp_path)
    return tmp_path


def release(**facts):
    return d.Release(**{"app": "blog", "number": 3, "image": "sha256:1", "procfile": {"web": "x", "worker": "y"}, **facts})


def test_config_is_secret_and_merged(root):
    d.write_config("--global", {"A": "1", "B": "1"})
    d.write_config("blog", {"B": "two\nlines"})
    assert d.merged_config("blog") == {"A": "1", "B": "two\nlines"}
    assert stat.S_IMODE((root / "apps/blog/ENV").stat().st_mode) == 0o600


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(root, monkeypatch):
    d.write_text(root / "fact", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        d.write_text(root / "fact", "new")
    assert os.listdir(root) == ["fact"] and (root / "fact").read_text() == "old"


def test_release_record_comes_back_as_it_was():
    written = release(checks=(d.Check(path="/h", command=("a", "b")),), formation={"web": 2})
    d.write_release(written, {"A": "b"})
    assert d.read_current("blog") is None
    d.write_current(written._replace(restart=2))
    assert d.read_current("blog") == written._replace(restart=2)
    assert d.read_current("blog").incarnation == "v3.2"
    assert d.release_config(written) == {"A": "b"}
    assert d.next_number("blog") == 4


def test_scale_prefers_ps_scale_then_app_json_then_one_web(root):
    assert d.scale_of("blog", release()) == {"web": 1, "worker": 0}
    assert d.scale_of("blog", release(formation={"web": 2, "worker": 3})) == {"web": 2, "worker": 3}
    d.write_lines(root / "apps/blog/SCALE", ["web=0"])
    assert d.scale_of("blog", release(formation={"web": 2})) == {"web": 0, "worker": 0}


def test_addresses_are_given_once_and_again_to_the_same_process():
    first = d.allot_address("10.9.0.0/16", release(), "web.1")
    assert d.allot_address("10.9.0.0/16", release(), "web.1") == first
    assert d.allot_address("10.9.0.0/16", release(), "web.2") != first
    d.free_addresses("blog", lambda incarnation, dyno: dyno == "web.2")
    assert [row[3] for row in d.allotted()] == ["web.2"]


def test_a_full_network_is_refused():
    for number in range(1, 6):
        with_number = f"web.{number}"
        d.allot_address("10.9.0.0/27", release(), with_number)
    with pytest.raises(d.DokkuError, match="No address is left"):
        for number in range(6, 20):
            d.allot_address("10.9.0.0/27", release(), f"web.{number}")


def test_a_missing_app_is_code_20():
    with pytest.raises(d.NoSuchApp) as caught, d.locked("ghost", "test"):
        pass
    assert caught.value.code == 20 and caught.value.message == "App ghost does not exist"


def hold(root, ready):
    d.ROOT = root
    with d.locked("blog", "deploy"):
        ready.set()
        time.sleep(0.5)


def test_a_lock_says_whom_it_waits_for_and_is_free_after(root, capsys):
    d.make_folder(root / "apps/blog")
    ready = multiprocessing.get_context("fork").Event()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(root, ready))
    holder.start()
    ready.wait(10)
    with d.locked("blog", "second"):
        assert "blog is busy: deploy by root since" in capsys.readouterr().out
    holder.join()


def test_an_app_destroyed_while_we_waited_is_gone(root):
    d.make_folder(root / "apps/blog")
    descriptor = d.open_lock(root / "apps/blog/lock")
    d.remove_folder(root / "apps/blog")
    assert not d.same_file(descriptor, root / "apps/blog/lock")
    os.close(descriptor)


def test_a_failed_program_tells_its_words_and_code():
    with pytest.raises(d.ToolFailed) as caught:
        d.run(["sh", "-c", "echo why >&2; exit 3"])
    assert caught.value.code == 3 and "why" in caught.value.message


def test_stream_says_lines_and_raises(capsys):
    assert d.stream(["printf", "a\\nb\\n"]) == "a\nb"
    assert capsys.readouterr().out == "       a\n       b\n"
    with pytest.raises(d.ToolFailed):
        d.stream(["sh", "-c", "echo last; exit 1"])


def test_a_pipe_tells_which_end_failed():
    assert d.pipe(["echo", "x"], ["cat"]) == "x\n"
    for first, second in ((["sh", "-c", "exit 2"], ["cat"]), (["echo"], ["sh", "-c", "cat; exit 2"])):
        with pytest.raises(d.ToolFailed) as caught:
            d.pipe(first, second)
        assert caught.value.code == 2


def test_too_little_disk_is_refused(monkeypatch):
    monkeypatch.setattr(d, "MIN_FREE_MB", 10**12)
    with pytest.raises(d.DokkuError, match="MB are free"):
        d.require_disk()


def test_the_live_release_stays_on_record_however_many_failed_since(root):
    for number in (1, 2, 3, 4):
        d.write_release(release(number=number, image=""), {})
        d.mark_release("blog", number, "failed") if number > 2 else None
    d.write_current(release(number=2, image=""))
    d.write_property("blog", "builds", "retention", "1")
    d.keep_images("blog")
    assert d.release_numbers("blog") == [2, 4] and d.read_current("blog").number == 2
