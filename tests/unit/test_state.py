"""Sections 4 and 5: facts in files, locks, other programs."""

import contextlib
import errno
import io
import multiprocessing
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import unittest.mock
from types import SimpleNamespace

import pytest

import dokku_py as d


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(d, "ROOT", tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    yield tmp_path
    for number, handler in before.items():  # what turns back ignores them
        signal.signal(number, handler)


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
    d.remove(root / "apps/blog")
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


def test_the_live_release_stays_on_record_however_many_failed_since(root, monkeypatch):
    monkeypatch.setattr(d, "untag_image", lambda name: None)
    for number in (1, 2, 3, 4):
        d.write_release(release(number=number, image=""), {})
        d.mark_release("blog", number, "failed") if number > 2 else None
    d.write_current(release(number=2, image=""))
    d.write_property("blog", "builds", "retention", "1")
    d.keep_images("blog")
    assert d.release_numbers("blog") == [2, 4] and d.read_current("blog").number == 2


ROOT_CALLER = d.Caller("root", local=True)


def container(dyno="web.1", **facts):
    return d.Container(**{"id": f"id-{dyno}", "name": f"blog.{dyno}", "app": "blog", "dyno": dyno, "incarnation": "v3", "running": True, "state": "running",
                          **facts})


def test_images_that_served_are_kept_and_those_of_failures_are_not(root, monkeypatch):
    untagged = []
    monkeypatch.setattr(d, "untag_image", untagged.append)
    statuses = {2: "failed", 4: "cancelled", 5: "killed", 6: "rolled back: web.1 kept crashing", 9: "failed", 10: "failed", 11: "failed", 12: "failed",
                13: "failed"}
    for number in range(1, 14):
        d.write_release(release(number=number, image=f"sha256:{number}"), {})
        d.mark_release("blog", number, statuses[number]) if number in statuses else None
    d.write_release(release(number=14, image="sha256:14"), {})  # was begun, and killed
    d.write_current(release(number=8, image="sha256:8"))
    d.keep_images("blog")
    assert d.IMAGES_KEPT == 5
    assert untagged == [f"dokku/blog:v{number}" for number in (14, 13, 12, 11, 10, 9, 5, 4, 2)], "the five that served are 8, 7, 6, 3 and 1"


def test_an_image_of_several_releases_counts_once_and_one_that_served_too_long_ago_goes(root, monkeypatch):
    untagged = []
    monkeypatch.setattr(d, "untag_image", untagged.append)
    for number, image in enumerate("abccdefg", 1):
        d.write_release(release(number=number, image=image), {})
    d.write_current(release(number=8, image="g"))
    d.keep_images("blog")
    assert untagged == ["dokku/blog:v2", "dokku/blog:v1"]


def test_the_release_that_a_probation_would_go_back_to_stays_on_record(root, monkeypatch):
    monkeypatch.setattr(d, "untag_image", lambda name: None)
    for number in (1, 2, 3, 4, 5):
        d.write_release(release(number=number, image=""), {})
    d.write_current(release(number=5, image=""))
    d.write_property("blog", "builds", "retention", "1")
    d.write_lines(root / "apps/blog/TAGS", ["good 3"])
    d.write_json(d.app_folder("blog") / "PROBATION", {"release": 5, "until": 1, "previous": 2})
    d.keep_images("blog")
    assert d.release_numbers("blog") == [2, 3, 5]


@pytest.mark.parametrize("error, status", [(d.DokkuError("no"), "failed"), (d.Cancelled("gone"), "cancelled"), (BrokenPipeError(), "cancelled"),
                                           (KeyboardInterrupt(), "failed")])
def test_what_fails_past_the_switch_is_live_all_the_same(root, monkeypatch, error, status):
    dropped = []
    monkeypatch.setattr(d, "drop_images", lambda app, number: dropped.append(number))
    d.write_text(d.app_folder("blog") / "LAST", "2")
    with pytest.raises(type(error)), d.next_release(release(), "root", "push") as made:
        d.write_release(made, {})
        d.write_current(made)
        raise error
    assert (d.release_status("blog", 3, d.read_current("blog")), dropped, d.read_text(d.release_folder("blog", 3) / "STATUS")) == ("live", [], "")
    with pytest.raises(type(error)), d.next_release(release(), "root", "push"):
        raise error
    assert (d.release_status("blog", 4, d.read_current("blog")), dropped) == (status, [4])


def test_checks_that_are_off_for_all_can_be_on_for_one(root):
    d.make_folder(root / "apps/blog")

    def modes():
        """Say what holds for three process types, and what is kept."""
        return [d.check_mode("blog", kind)[:4] for kind in ("web", "worker", "clock")], d.read_lines(root / "apps/blog/CHECKS_OFF")
    for types, mode, wanted, kept in (([], "disabled", ["disa", "disa", "disa"], ["_all_ disabled"]),
                                      (["web"], "enabled", ["enab", "disa", "disa"], ["_all_ disabled", "web enabled"]),
                                      (["worker"], "skipped", ["enab", "skip", "disa"], ["_all_ disabled", "web enabled", "worker skipped"]),
                                      (["web"], "disabled", ["disa", "skip", "disa"], ["_all_ disabled", "worker skipped"]),
                                      ([], "skipped", ["skip", "skip", "skip"], ["_all_ skipped"]),
                                      ([], "enabled", ["enab", "enab", "enab"], []),
                                      (["web", "clock"], "disabled", ["disa", "enab", "disa"], ["web disabled", "clock disabled"]),
                                      (["web"], "enabled", ["enab", "enab", "disa"], ["clock disabled"]), (["clock"], "enabled", ["enab", "enab", "enab"], [])):
        d.change_check_modes("blog", types, mode)
        assert modes() == (wanted, kept), (types, mode)


def test_the_trouble_of_one_keeps_none_of_the_others(capsys):
    done = []

    def trouble(error):
        """Give work that fails."""
        def fail():
            """Fail."""
            raise error
        return fail
    d.each_apart([trouble(d.DokkuError("sick")), lambda: done.append(1), trouble(ValueError("label")), trouble(OSError("disk")), lambda: done.append(2)])
    said = capsys.readouterr()
    assert done == [1, 2] and [word in said.out + said.err for word in ("mended: sick", "mended: label", "mended: disk")] == [True] * 3
    for error in (d.Cancelled("gone"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            d.each_apart([trouble(error), lambda: done.append(3)])
    assert done == [1, 2]


@pytest.mark.parametrize("sick", ["dead_writes", "remove_expired", "render_crontab", "orphans", "remove_container", "mind_all", "revive", "restart_unfit", "mend_services"])
def test_one_sick_thing_stops_no_tick(root, monkeypatch, sick):
    done = []

    def work(name, given):
        """Give what notes that it was done, and fails when it is the sick one."""
        def do(*words):
            """Do it."""
            done.append(name)
            if name == sick:
                raise ValueError(name)
            return given
        return do
    for name, given in (("dead_writes", []), ("remove_expired", None), ("render_crontab", None), ("orphans", [container("web.1"), container("web.2")]), ("remove_container", None),
                        ("mind_all", None),
                        ("revive", None), ("restart_unfit", None), ("mend_services", None)):
        monkeypatch.setattr(d, name, work(name, given))
    monkeypatch.setattr(d, "each_app", lambda app, everything, work, parallel: work("blog"))
    d.tick()
    wanted = ["dead_writes", "remove_expired", "render_crontab", "orphans", "remove_container", "remove_container", "mind_all", "revive", "restart_unfit", "mend_services"]
    assert done == [name for name in wanted if sick != "orphans" or name != "remove_container"]


def test_doctor_mends_what_can_be_mended(root, monkeypatch):
    done, rows = [], [d.Disagreement("server", "sick", lambda: 1 / 0), d.Disagreement("server", "well", lambda: done.append("mended"))]
    monkeypatch.setattr(d, "server_disagreements", lambda: rows if not done else [])
    monkeypatch.setattr(d, "each_app", lambda *words: done.append("apps"))
    assert d.doctor(True, "text", None, ROOT_CALLER) == 0 and done == ["mended", "apps"]


def lock_words(root, words, holder):
    """Say in the lock of an app who holds it."""
    (root / "apps/blog/lock").write_text(f"{words} by me since 2026 (process {holder})\n")


def test_who_changes_an_app_is_a_process_that_holds_its_lock(root, monkeypatch):
    d.make_folder(root / "apps/blog")
    with d.locked("blog", "push"):
        assert d.lock_holder("blog") == os.getpid()
        for other in (os.getppid(), 2**22 + 1):  # its number belongs to another, or to nobody
            lock_words(root, "push", other)
            assert d.lock_holder("blog") == 0, other
            with pytest.raises(d.DokkuError, match="Nothing is being changed in blog"):
                d.builds_cancel("blog")
        lock_words(root, "push", os.getpid())
    assert d.lock_holder("blog") == 0, "the words stay when the lock is free"


def test_a_process_that_gave_up_root_is_known_by_its_name(root, monkeypatch):
    """The kernel shows its descriptors to root alone, and we are not root any more."""
    d.make_folder(root / "apps/blog")

    def refuse(path):
        """Refuse as the kernel does."""
        raise PermissionError(path)
    with d.locked("blog", "ps:rebuild"):
        monkeypatch.setattr(d.Path, "iterdir", refuse)
        real = d.read_text
        for name, holder in (("/usr/bin/python3\0/usr/bin/dokku\0ps:rebuild\0blog", os.getpid()), ("vim\0x", 0), ("", 0)):
            monkeypatch.setattr(d, "read_text", lambda path, *words: name if path.name == "cmdline" else real(path, *words))
            assert d.lock_holder("blog") == holder
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        monkeypatch.setattr(d, "read_text", lambda path, *words: "dokku" if path.name == "cmdline" else real(path, *words))
        assert d.lock_holder("blog") == 0, "of another user, whom we may not end"


@pytest.mark.parametrize("words, ended", [("push", True), ("clone", True), ("git:sync", True), ("ps:rebuild", True), ("config:set A", True), ("ps:scale", True),
                                          ("rollback", True), ("apps:destroy", False), ("apps:rename", False), ("apps:clone", False), ("converge", False),
                                          ("automatic rollback", False)])
def test_what_removes_or_mends_an_app_is_not_broken_off(root, monkeypatch, words, ended):
    killed = []
    d.make_folder(root / "apps/blog")
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    with d.locked("blog", words):
        if ended:
            d.builds_cancel("blog")
        else:
            with pytest.raises(d.DokkuError, match="Nothing is being changed in blog"):
                d.builds_cancel("blog")
    assert killed == ([(os.getpid(), d.signal.SIGTERM)] if ended else [])


class Client:
    """An engine that has these containers."""

    def __init__(self, *rows):
        self.rows = rows

    def containers(self, **facts):
        return list(self.rows)


@pytest.mark.parametrize("label", ["", "never", "-1", "1e3", "²", "12.5", " "])
def test_a_label_that_is_no_number_keeps_no_one_off_alive(root, monkeypatch, label):
    removed = []
    later, fresh = str(int(d.uptime()) + 1000), time.time() + 1
    rows = [{"Id": name, "State": state, "Created": created, "Labels": {"com.dokku.expires": end}} for name, end, state, created in (
        ("sick", label, "exited", fresh), ("due", "1", "running", fresh), ("later", later, "exited", fresh), ("before this boot", later, "exited", 1), ("goes on", later, "running", 1))]
    monkeypatch.setattr(d, "engine", lambda: Client(*rows))
    monkeypatch.setattr(d, "remove_container", removed.append)
    d.remove_expired()
    assert removed == ["due", "before this boot"]


def test_one_offs_stand_in_the_order_in_which_they_were_made(root, monkeypatch):
    rows = [{"Id": str(number), "Names": [f"/blog.run.{number}"], "State": "running", "Labels": {}, "Ports": [], "NetworkSettings": {"Networks": {}},
             "Created": created}
            for number, created in ((999, 100), (1, 200), (2, 200), (998, 300))]
    monkeypatch.setattr(d, "engine", lambda: Client(*reversed(rows)))
    assert [row.name for row in d.one_offs("blog")][::2] == ["blog.run.999", "blog.run.1", "blog.run.2", "blog.run.998"], "each of both kinds"
    assert [row.created for row in d.containers_of("blog")] == [300, 200, 200, 100]


def test_a_clean_up_leaves_what_is_just_made(root, monkeypatch):
    removed = []
    monkeypatch.setattr(d, "keep_images", lambda app: None)
    monkeypatch.setattr(d, "drop_images", lambda app, number: None)
    monkeypatch.setattr(d, "remove_container", removed.append)
    monkeypatch.setattr(d, "one_offs", lambda app: [container(f"run.{state}", state=state, running=state == "running") for state in ("created", "running",
        "exited", "dead", "restarting", "paused")])
    d.clean_up("blog")
    assert removed == ["id-run.exited", "id-run.dead"]


@pytest.fixture
def live(root, monkeypatch):
    """A release that runs two processes, one of them a worker."""
    d.write_release(release(), {})
    d.write_current(release())
    rows = [container("web.1"), container("worker.1"), container("worker.2")]
    monkeypatch.setattr(d, "containers_of", lambda app="", kind="deploy": rows)
    return rows


def test_a_process_type_of_a_stopped_app_is_not_started_alone(root, live, monkeypatch):
    done = []
    monkeypatch.setattr(d, "restart_container", lambda identity, grace: done.append(identity))
    monkeypatch.setattr(d, "change_processes", lambda *words: done.append("changed"))
    monkeypatch.setattr(d, "retiring", lambda app: {"id-worker.1"})
    d.ps_restart(False, 1, "blog", "worker")
    d.stop_or_start(False, 1, "blog", "worker", "ps:start")
    assert done == ["id-worker.2", "changed"], "one that retires is left to end"
    with pytest.raises(d.DokkuError, match="A process type can be restarted for one app only"):
        d.ps_restart(True, 1, None, "worker")
    d.write_text(root / "apps/blog/STOPPED", "")
    for start in (lambda: d.ps_restart(False, 1, "blog", "worker"), lambda: d.stop_or_start(False, 1, "blog", "worker", "ps:start")):
        with pytest.raises(d.DokkuError, match="blog is stopped; a single process type can't be started"):
            start()
    d.stop_or_start(False, 1, "blog", "worker", "ps:stop", "1")
    assert done[2:] == ["changed"]


def test_a_process_type_that_there_is_not_yet_is_told(live, monkeypatch, capsys):
    monkeypatch.setattr(d, "change_processes", lambda *words: None)
    d.ps_scale(True, "text", "blog", [("web", 2), ("none", 0)])
    assert "no process type" not in "".join(capsys.readouterr())
    d.ps_scale(True, "text", "blog", [("web", 2), ("wroker", 1)])
    assert "blog has no process type wroker yet" in "".join(capsys.readouterr())


def test_checks_of_a_process_type_that_does_not_run(live, monkeypatch):
    asked = []
    monkeypatch.setattr(d, "wait_until_healthy", lambda current, row, restarts: asked.append((row.dyno, restarts)))
    monkeypatch.setattr(d, "inspect_container", lambda identity: {"RestartCount": 1} if identity == "id-web.1" else {})
    with pytest.raises(d.DokkuError, match="blog has no process clock"):
        d.checks_run("blog", ["clock"])
    d.checks_run("blog", ["worker"])
    d.checks_run("blog", [])
    workers = [("worker.1", 0), ("worker.2", 0)]
    assert asked == [*workers, ("web.1", 1), *workers], "that it crashed once is no trouble"


@pytest.mark.parametrize("error", ["NotFound", "APIError"])
def test_what_is_gone_meanwhile_is_left_out(live, monkeypatch, capsys, error):
    """The second is a 409: it is being removed."""
    import docker

    def log_stream(identity, lines):
        """One of them was removed by a deploy."""
        if identity == "id-worker.1":
            raise getattr(docker.errors, error)("gone", unittest.mock.Mock(status_code={"NotFound": 404}.get(error, 409)))
        return iter([(f"2026-01-01T00:00:0{len(identity) % 10}", f"line of {identity}")])
    monkeypatch.setattr(d, "log_stream", log_stream)
    d.logs(False, True, 100, None, "blog")
    assert capsys.readouterr().out == "line of id-worker.2\nline of id-web.1\n"
    monkeypatch.setattr(d, "inspect_container", lambda identity: {"Id": identity, "Config": {"Env": ["A=secret"]}} if identity == "id-web.1" else {})
    d.ps_inspect("blog")
    found = d.json.loads(capsys.readouterr().out)
    assert found == [{"Id": "id-web.1", "Config": {"Env": ["A=***"]}}]


def test_the_lines_of_a_process_that_is_started_again_are_followed_again(live, monkeypatch, capsys):
    said, reads = [("1", "first"), ("2", "second"), ("3", "third")], []

    def log_stream(identity, lines, follow):
        """Give all that was said so far; it ends when the process does."""
        reads.append(identity)
        return iter(said[:reads.count(identity)])
    looks = iter([False] * 4 + [True])
    monkeypatch.setattr(d, "log_stream", log_stream)
    monkeypatch.setattr(d, "reader_left", lambda seconds: time.sleep(0.02) or next(looks))
    d.follow_logs("blog", "web", 10, True)
    assert capsys.readouterr().out == "first\nsecond\nthird\n" and len(reads) > 3


def test_no_line_is_lost_whose_time_is_before_that_of_another(live, monkeypatch, capsys):
    """Docker stamps standard output and standard error apart from each other, and then writes them down."""
    lines, looks = [("2", "out"), ("1", "error"), ("2", "out at the same time"), ("3", "last")], iter([False, False, True])
    monkeypatch.setattr(d, "log_stream", lambda identity, count, follow: iter(lines))
    monkeypatch.setattr(d, "reader_left", lambda seconds: time.sleep(0.02) or next(looks))
    d.follow_logs("blog", "web", 10, True)
    assert capsys.readouterr().out == "out\nerror\nout at the same time\nlast\n"


def test_a_process_that_came_up_again_before_is_in_no_trouble(monkeypatch):
    facts = {"State": {"Running": True, "Restarting": False, "ExitCode": 3, "OOMKilled": False}, "RestartCount": 2}
    monkeypatch.setattr(d, "inspect_container", lambda identity: facts)
    monkeypatch.setattr(d, "engine", lambda: type("Engine", (), {"events": staticmethod(lambda **words: [])}))
    assert d.process_trouble(container(), 2) == d.process_trouble(container(), 3) == ""
    assert d.process_trouble(container()) == d.process_trouble(container(), 1) == "it ended with exit code 3"
    facts["State"]["Restarting"] = True
    assert d.process_trouble(container(), 2) == "it ended with exit code 3"


def test_liveness_is_asked_when_it_is_due_and_has_no_memory(root, live, monkeypatch):
    asked, restarted = [], []
    checks = (d.Check(path="/slow", kind="liveness", delay=60, uptime=5), d.Check(path="/fast", kind="liveness"), d.Check(path="/start"),
              d.Check(process="worker", path="/w", kind="liveness"))
    d.write_release(release(checks=checks), {})
    live[:] = [container("web.1"), container("web.2"), container("worker.1", running=False), container("web.3", incarnation="v2"), container("web.4")]
    ages = {"id-web.1": 30, "id-web.2": 66}  # since its last start, which Docker says to the nanosecond; the last one is gone meanwhile
    monkeypatch.setattr(d, "inspect_container", lambda identity: {"RestartCount": 7, "State": {"StartedAt": time.strftime(
        "%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime(time.time() - ages[identity]))}} if identity in ages else {})
    monkeypatch.setattr(d, "wait_until_healthy", lambda own, row, restarts: asked.append((row.dyno,
                                                                                          [(check.path, check.kind, check.delay,
                                                                                            check.uptime) for check in own.checks], restarts)))
    d.ask_liveness(d.read_current("blog"))
    fast, slow = ("/fast", "startup", 0, 0), ("/slow", "startup", 0, 0)
    assert asked == [("web.1", [fast], 7), ("web.2", [slow, fast], 7)]

    def unfit(own, row, restarts):
        """Answer nothing."""
        raise d.DokkuError("no answer")
    monkeypatch.setattr(d, "wait_until_healthy", unfit)
    monkeypatch.setattr(d, "restart_container", lambda identity, grace: restarted.append(identity))
    d.ask_liveness(d.read_current("blog"))
    assert restarted == ["id-web.1", "id-web.2"]


def test_as_many_restarts_as_there_were_are_no_trouble(root, live, monkeypatch):
    seen = []
    monkeypatch.setattr(d, "process_trouble", lambda row, restarts: seen.append(restarts) or "")
    monkeypatch.setattr(d, "ask_once", lambda row, port, check: ("", True))
    d.wait_until_healthy(release(checks=(d.Check(path="/"),)), container(), 4)
    d.wait_until_healthy(release(checks=(d.Check(path="/"),)), container())
    assert seen == [4, 0]


def test_there_is_always_a_slot_to_build_in(monkeypatch):
    import importlib.util
    for given, slots in (("0", 1), ("-3", 1), ("2", 2)):
        monkeypatch.setenv("DOKKU_BUILD_SLOTS", given)
        spec = importlib.util.spec_from_file_location("dokku_py_anew", d.__file__)
        again = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "dokku_py_anew", again)
        spec.loader.exec_module(again)
        assert again.BUILD_SLOTS == slots


def test_a_number_of_processes_that_is_none():
    for text in ("web=" + "9" * 5000, "web=101", "web=²", "web=-1"):
        with pytest.raises(d.UsageError, match="is not TYPE=COUNT"):
            d.parse_scale(text)


# --- restarts, and what is put back when they fail ---

@pytest.fixture
def switched(root, monkeypatch):
    """The app blog, stopped; its config was changed since its release was made. Gives what was switched to."""
    done = []
    d.write_release(release(), {"A": "1"})
    d.write_current(release())
    d.write_config("blog", {"A": "2"})
    d.write_text(root / "apps/blog/STOPPED", "")
    for name in ("tag_image", "containers_of", "start_missing", "agree_networks", "render_vhost", "render_crontab", "drop_images", "remove_strays"):
        monkeypatch.setattr(d, name, lambda *words, **facts: [])
    monkeypatch.setattr(d, "switch_to", lambda new: done.append((new.name, new.restart, d.release_config(new)["A"])))
    return done


@pytest.mark.parametrize("start, wanted", [(lambda: d.start_app("blog"), ("v4", 0, "2")), (lambda: d.restart("blog"), ("v4", 0, "2")),
                                           (lambda: d.restart("blog", as_is=True), ("v3", 1, "1")), (lambda: d.restart("blog", "web"), ("v4", 0, "2"))])
def test_a_config_that_changed_meanwhile_takes_a_release_of_its_own(switched, start, wanted):
    start()
    assert switched == [wanted]
    d.write_config("blog", {"A": "1"})
    start()
    assert switched[1:] == ([] if start.__code__.co_names[1] == "start_app" else [("v3", 1, "1")]), "nothing changed: no other release"


@pytest.mark.parametrize("start", [d.start_app, d.restart])
@pytest.mark.parametrize("config", ["1", "2"])
def test_a_stopped_app_that_does_not_come_up_stays_stopped(root, switched, monkeypatch, start, config):
    def fail(*words):
        """Fail as a process does that crashes."""
        raise d.DokkuError("web.1 crashed")
    d.write_config("blog", {"A": config})
    for name in ("switch_to", "start_missing"):
        monkeypatch.setattr(d, name, fail)
    monkeypatch.setattr(d, "stop_processes", lambda app: None)
    with pytest.raises(d.DokkuError, match="crashed"):
        start("blog")
    assert d.is_stopped("blog") and d.read_config("blog") == {"A": config} and d.read_current("blog").number == 3


@pytest.mark.parametrize("beside", ["nothing", "ps:stop", "a command", "a new one"])
def test_an_unfit_process_is_left_to_who_changes_the_app(root, live, monkeypatch, beside):
    restarted, facts = [], {"RestartCount": 0, "State": {"StartedAt": "2026-01-01T00:00:00.1Z"}}
    d.write_release(release(checks=(d.Check(path="/", kind="liveness"),)), {})
    monkeypatch.setattr(d, "inspect_container", lambda identity: facts)
    monkeypatch.setattr(d, "restart_container", lambda identity, grace: restarted.append(identity))
    monkeypatch.setattr(d, "retiring", lambda app: {"id-web.1"} if beside == "a new one" else set())
    with contextlib.ExitStack() as held:
        def unfit(*words):
            """Answer nothing, while something else happens."""
            if beside == "ps:stop":
                d.write_text(root / "apps/blog/STOPPED", "")
            elif beside == "a command":
                held.enter_context(d.locked("blog", "ps:scale"))
            raise d.DokkuError("no answer")
        monkeypatch.setattr(d, "wait_until_healthy", unfit)
        d.ask_liveness(d.read_current("blog"))
    assert restarted == (["id-web.1"] if beside == "nothing" else [])


def test_what_ran_alone_runs_again_when_stopping_it_is_cut_off(root, live, monkeypatch):
    stopped, started = [], []
    d.change_check_modes("blog", [], "disabled")

    def stop(identity, grace):
        """Lose the client at the second one."""
        stopped.append(identity)
        if len(stopped) == 2:
            raise d.Cancelled("gone")
    monkeypatch.setattr(d, "stop_container", stop)
    monkeypatch.setattr(d, "start_container", started.append)
    monkeypatch.setattr(d, "throw_away", lambda new: started.append("thrown away"))
    monkeypatch.setattr(d, "render_vhost", lambda app: [])
    with pytest.raises(d.Cancelled):
        d.switch_to(release(number=4))
    assert stopped[:2] == ["id-web.1", "id-worker.1"] and started == ["thrown away", *stopped[:2]]
    assert stopped[2:] == stopped[:2], "an end that was broken off goes on in the engine: it is waited for"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EIO, "the terminal is gone")])
def test_all_is_thrown_away_although_nobody_reads_it(root, live, monkeypatch, error):
    removed = []
    live[:] = [container("web.1", incarnation="v4"), container("web.2", incarnation="v4"), container("worker.1")]

    def detail(text):
        """Find standard output closed."""
        raise error
    for name, given in (("detail", detail), ("logs_of", lambda identity, lines: ["last words"]), ("remove_container", removed.append)):
        monkeypatch.setattr(d, name, given)
    for number, dyno in ((4, "web.1"), (4, "web.2"), (3, "worker.1")):
        d.allot_address("10.9.0.0/16", release(number=number), dyno)
    d.throw_away(release(number=4))
    assert removed == ["id-web.1", "id-web.2"] and [row[2:] for row in map(list, d.allotted())] == [["v3", "worker.1"]]
    assert d.read_text(root / "apps/blog/FAILED/web.1") == "last words\n"


def test_processes_that_can_not_be_started_leave_nothing_of_them(root, live, monkeypatch):
    tidied, path = [], root / "apps/blog/SCALE"
    d.write_lines(path, ["web=1"])

    def switch_to(current):
        """Start one of them and no other."""
        raise d.DokkuError(" ".join(d.read_lines(path)))
    monkeypatch.setattr(d, "remove_strays", lambda app: tidied.append(d.read_lines(path)))
    monkeypatch.setattr(d, "switch_to", switch_to)
    with pytest.raises(d.DokkuError, match="web=3"):
        d.change_processes("blog", "ps:scale", path, lambda old: ["web=3"])
    assert tidied == [["web=1"], ["web=1"]], "before, and again when the record is the old one"


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_client_that_leaves_breaks_off_what_nohup_does_not_protect(monkeypatch, before):
    old, seen = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}, []

    def handlers(*words):
        """Note what the two do; a program that is waited for changes nothing of it."""
        d.attend(["true"]) if before == signal.SIG_IGN else None
        seen.append([signal.getsignal(number) for number in old])
    monkeypatch.setattr(d, "main", handlers)
    monkeypatch.setattr(d.gc, "set_threshold", lambda count: None)
    monkeypatch.setattr(os, "_exit", handlers)
    try:
        signal.signal(signal.SIGHUP, before)
        d.front_door([])
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    assert seen[0] == [d.leave if before == signal.SIG_DFL else signal.SIG_IGN, d.leave]


@pytest.mark.parametrize("word", [None, "current", "v3"])
def test_an_app_without_a_release_has_no_log(root, word):
    d.make_folder(root / "apps/blog")
    with pytest.raises(d.DokkuError, match="blog was never deployed"):
        d.builds_output("blog", word)


def test_the_crontab_has_no_line_that_cron_refuses_and_no_sender_of_another_app(root, monkeypatch):
    given, spool, jobs = [], [], {"blog": [d.Job("61 * * * *", "bad"), d.Job("5 * * * *", "good")], "shop": [d.Job("@daily", "good")]}
    for app, rows in jobs.items():
        d.write_release(release(app=app, jobs=tuple(rows)), {})
        d.write_current(release(app=app))
    d.write_property("blog", "cron", "mailfrom", "blog@example.com")
    for name, schedule in (("sick", "*/0 * * * *"), ("well", "@weekly")):
        d.write_service(service := d.Service("postgres", name, "image", "data.1"))
        d.write_json(d.backup_home(service) / "settings.json", {"schedule": schedule})
    monkeypatch.setattr(d, "output_of", lambda argv, check: "".join(spool))
    monkeypatch.setattr(d, "run", lambda argv, stdin: (given.append(stdin), spool.append(stdin)))
    d.render_crontab()
    d.render_crontab()
    assert len(given) == 1, "what cron has already is not given again"
    spool.clear()
    d.render_crontab()
    assert given[1:] == spool == given[:1], "what cron has lost is"
    lines = [line for line in given[0].splitlines() if re.match("[0-9*@]|MAILFROM", line)]
    assert lines == ['MAILFROM="blog@example.com"', f"5 * * * * /usr/bin/dokku cron:run blog {jobs['blog'][1].id}", 'MAILFROM=""',
                     f"@daily /usr/bin/dokku cron:run shop {jobs['shop'][0].id}", "@weekly /usr/bin/dokku postgres:backup well 2>&1 | logger -t dokku"]


def test_what_docker_publishes_is_put_right_with_the_config_that_runs(root, live, monkeypatch):
    done = []
    for name in ("render_vhost", "remove_strays"):
        monkeypatch.setattr(d, name, lambda app: [])
    d.write_config("blog", {"A": "changed by --no-restart"})
    monkeypatch.setattr(d, "misplaced_process", lambda app: live[0])
    monkeypatch.setattr(d, "switch_to", lambda new: done.append((new.name, new.restart)))
    d.serve("blog")
    assert done == [("v3", 1)]


@pytest.mark.parametrize("error, told", [("NotFound", False), ("APIError", True)])
def test_a_process_that_is_gone_has_left_its_networks(root, live, monkeypatch, error, told):
    import docker
    asked = []

    def disconnect(identity, name, force):
        """Have Docker know nothing of it."""
        asked.append(identity)
        raise getattr(docker.errors, error)("no such container")
    monkeypatch.setattr(d, "network_changes", lambda app: [(row, "inner", False) for row in live])
    monkeypatch.setattr(d, "engine", lambda: SimpleNamespace(disconnect_container_from_network=disconnect))
    with pytest.raises(d.DokkuError, match="can't leave the network inner") if told else contextlib.nullcontext():
        d.agree_networks("blog")
    assert len(asked) == (1 if told else 3)


def test_past_the_switch_no_signal_turns_back(root, live, monkeypatch):
    old, seen = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}, []

    def install(name, text):
        """Note what the two signals do, and end the test."""
        seen.extend(signal.getsignal(number) for number in old)
        raise d.Cancelled("far enough")
    for name, given in (("start_missing", lambda new: []), ("vhost_text", lambda app, new: ""), ("install_vhost", install), ("turn_back", lambda new, alone: None)):
        monkeypatch.setattr(d, name, given)
    try:
        d.on_leaving(d.leave)
        with pytest.raises(d.Cancelled):
            d.switch_to(release(number=4))
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    assert seen == [signal.SIG_IGN] * 3


def test_a_variable_without_a_value_that_is_on_record_keeps_no_process_from_its_start(root, monkeypatch):
    """It was kept before such an option was refused."""
    client = unittest.mock.MagicMock()
    d.write_lines(d.app_folder("blog") / "DOCKER_OPTIONS", ["deploy -e B"])
    for name, given in (("engine", lambda: client), ("translate_options", lambda words: ({"Env": ["A=1=2", "B"]}, {})), ("join_networks", lambda *words: None)):
        monkeypatch.setattr(d, name, given)
    d.create_container(release(), "web.1", config=None)
    assert client.create_container_config.call_args.kwargs["environment"] == {"A": "1=2", "B": ""}


# --- the way back, and what happens meanwhile ---

@pytest.mark.parametrize("error", [d.Cancelled("gone"), d.DokkuError("no more memory")])
@pytest.mark.parametrize("retires, again", [(set(), ["stop id-web.1", "start id-web.1"]), ({"id-web.1"}, [])])
def test_the_way_back_is_nginx_first_and_then_what_was_ended(root, live, monkeypatch, error, retires, again):
    """Not what would have been ended next, and nothing that was to end anyway."""
    done = []

    def stop(identity, grace):
        """Be broken off at the first one."""
        done.append(f"stop {identity}")
        if len(done) == 1:
            raise error

    def start(identity):
        """Be refused: it must not hide what went wrong."""
        done.append(f"start {identity}")
        raise d.DokkuError("No such container")
    d.change_check_modes("blog", [], "disabled")
    for name, given in (("stop_container", stop), ("start_container", start), ("retiring", lambda app: retires),
                        ("throw_away", lambda new: done.append("thrown away"))):
        monkeypatch.setattr(d, name, given)
    with pytest.raises(type(error), match=error.message):
        d.switch_to(release(number=4))
    assert done == ["stop id-web.1", "thrown away", *again]


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_past_the_switch_nobody_has_to_read(monkeypatch, number, handler):
    class Gone:
        """A terminal that is gone."""

        def write(self, text):
            """Refuse it."""
            raise OSError(number, "gone")
    log = io.StringIO()
    monkeypatch.setattr(signal, "getsignal", lambda number: handler)
    token = d.TRANSCRIPT.set(log)
    try:
        with pytest.raises(OSError) if handler == signal.SIG_DFL else contextlib.nullcontext():
            d.say("live", Gone())
    finally:
        d.TRANSCRIPT.reset(token)
    assert log.getvalue() == ("live\n" if handler == signal.SIG_IGN else "")


@pytest.mark.parametrize("when", ["before", "meanwhile", "never"])
def test_a_release_of_a_stopped_app_is_rolled_back_by_nobody(root, live, monkeypatch, when):
    done, file = [], root / "apps/blog/PROBATION"
    d.write_json(file, {"release": 3, "previous": 2, "until": d.uptime() + 50})
    d.write_text(root / "apps/blog/STOPPED", "") if when == "before" else None
    for name, given in (("rollback", lambda *words: done.append(words)), ("keep_last_words", lambda row: []), ("mark_release", lambda *words: None),
                        ("inspect_container", lambda identity: {"RestartCount": d.PROBATION_RESTARTS}),
                        ("locked", stopping(root) if when == "meanwhile" else d.locked)):
        monkeypatch.setattr(d, name, given)
    d.judge_probation("blog")
    assert done == ([("blog", 2, "dokku_py")] if when == "never" else []) and (when == "meanwhile" or not file.exists())


def stopping(root, real=d.locked):
    """Give a lock for which we wait until another one has stopped the app."""
    @contextlib.contextmanager
    def locked(app, purpose):
        """Wait for it."""
        d.write_text(root / "apps" / app / "STOPPED", "")
        with real(app, purpose):
            yield
    return locked


def test_an_app_that_is_stopped_meanwhile_has_no_type_restarted(root, live, monkeypatch):
    done = []
    monkeypatch.setattr(d, "restart_container", lambda identity, grace: done.append(identity))
    monkeypatch.setattr(d, "locked", stopping(root))
    with pytest.raises(d.DokkuError, match="blog is stopped"):
        d.ps_restart(False, 1, "blog", "worker")
    assert done == []


def test_what_is_started_again_has_its_names(switched, monkeypatch):
    named = []
    d.write_config("blog", {"A": "1"})
    monkeypatch.setattr(d, "containers_of", lambda app: [container("web.1", name="blog.web.1.v3"), container("web.1", incarnation="v2")])
    monkeypatch.setattr(d, "rename_container", lambda row, name: named.append((row.name, name)))
    d.start_app("blog")
    assert named == [("blog.web.1.v3", "blog.web.1")] and not d.is_stopped("blog")


def test_a_job_of_an_app_that_is_destroyed_meanwhile_leaves_no_ghost_of_it(root, monkeypatch):
    job = d.Job("@daily", "./clean", "replace")
    d.write_release(release(jobs=(job,)), {})
    d.write_current(release(jobs=(job,)))
    monkeypatch.setattr(d, "containers_of", lambda app, kind: [container(f"cron.{job.id}")])
    monkeypatch.setattr(d, "stop_container", lambda identity, grace: d.remove(root / "apps/blog"))
    with pytest.raises(d.NoSuchApp):
        d.cron_run(False, 60, "blog", job.id)
    assert d.apps() == [] and not (root / "apps/blog").exists()


def test_what_does_not_run_has_no_processes_to_show(live, monkeypatch, capsys):
    live[:] = [container("web.1"), container("worker.1", running=False)]
    monkeypatch.setattr(d, "output_of", lambda argv: argv[-1])
    d.top("blog", [], ROOT_CALLER)
    assert capsys.readouterr().out.split() == ["=====>", "web.1", "id-web.1"]


def test_a_tag_is_of_the_release_that_runs_when_it_is_given(root, live, monkeypatch):
    tagged, real = [], d.locked

    @contextlib.contextmanager
    def locked(app, purpose):
        """Wait for a deploy."""
        d.write_release(release(number=4, image="sha256:4"), {})
        d.write_current(release(number=4, image="sha256:4"))
        with real(app, purpose):
            yield
    monkeypatch.setattr(d, "locked", locked)
    monkeypatch.setattr(d, "tag_as", lambda *words: tagged.append(words))
    d.tag_add("blog", "good")
    assert tagged == [("sha256:4", "dokku/blog:good")] and d.read_tags("blog") == {"good": 4}


def test_a_tag_that_docker_alone_has_can_be_taken_away(root, monkeypatch):
    untagged = []
    d.make_folder(root / "apps/blog")
    monkeypatch.setattr(d, "tags_of", lambda app: ["latest", "left"])
    monkeypatch.setattr(d, "untag_image", untagged.append)
    d.tag_rm("blog", "left")
    with pytest.raises(d.DokkuError, match="blog has no tag other"):
        d.tag_rm("blog", "other")
    assert untagged == ["dokku/blog:left"]


@pytest.mark.parametrize("words, said", [(["blog"], "blog.run.7: a\nblog.run.7: b\n"), (["-q", "blog"], "a\nb\n"), (["blog", "--quiet"], "a\nb\n")])
def test_lines_of_a_one_off_can_stand_for_themselves(root, monkeypatch, capsys, words, said):
    d.make_folder(root / "apps/blog")
    monkeypatch.setattr(d, "one_offs", lambda app: [container("run.7")])
    monkeypatch.setattr(d, "logs_of", lambda identity, lines: ["a", "b"])
    d.run_logs(**{"container": None, **d.read_words(d.commands()["run:logs"], words, ROOT_CALLER)}, caller=ROOT_CALLER)
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("words", [["--container-id", "id-worker", "blog", "worker", "ls", "-l"], ["blog", "--container-id", "id-worker", "ls", "-l"]])
def test_a_container_is_named_before_or_behind_the_app(live, monkeypatch, words):
    asked = []
    monkeypatch.setattr(d, "attend", lambda argv: asked.append(argv) or 0)
    d.enter(**d.read_words(d.commands()["enter"], words, ROOT_CALLER), purpose="enter")
    assert [argv[-3:] for argv in asked] == [["id-worker.1", "ls", "-l"]]


@pytest.mark.parametrize("word, command", [("--help", "help"), ("-h", "help"), ("--version", "version")])
def test_a_program_says_what_it_is_as_any_other(root, monkeypatch, capsys, word, command):
    monkeypatch.setenv("DOKKU_CALLER", "root")  # which it would set
    said = [(d.main([one]), capsys.readouterr().out) for one in (word, command)]
    assert said[0] == said[1] and said[0][0] == 0 and said[0][1]


def test_the_programs_are_utf_8_whatever_locale_the_client_sends():
    """Bytes that are none pass as they are: through files, pipes and words alike."""
    started = re.search(r"printf '#!/usr/bin/python3 (\S+)\\nimport", (d.TEMPLATES.parent / "install.sh").read_text())[1]
    done = subprocess.run([sys.executable, started, "-c", "import sys; print(sys.stdin.read().strip(), sys.argv[1], open(sys.argv[2]).encoding)", b"\xfe", "/dev/null"],
                          input=b"\xff\n", capture_output=True, env={**os.environ, "LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"})
    assert done.stdout == b"\xff \xfe utf-8\n", done.stderr
    assert d.output_of(["cat"], stdin="a\udcff") == "a\udcff"


def test_a_patient_liveness_check_keeps_nobody_waiting(root, live, monkeypatch):
    detached = []
    monkeypatch.setattr(d, "detach", detached.append)
    monkeypatch.setattr(d, "wait_until_healthy", lambda *words: pytest.fail("tick waits for it"))
    for checks, count in (((d.Check(path="/x"),), 0), ((d.Check(path="/x", kind="liveness", wait=10**6, attempts=3),), 1)):
        d.write_release(release(checks=checks), {})
        d.restart_unfit("blog")
        assert len(detached) == count


def test_liveness_checks_that_are_still_being_asked_are_not_asked_again(root, live, monkeypatch):
    asked = []
    d.write_release(release(checks=(d.Check(path="/x", kind="liveness"),)), {})
    monkeypatch.setattr(d, "inspect_container", lambda identity: {"RestartCount": 0, "State": {"StartedAt": "2126-01-01T00:00:00.1Z"}})  # the clock was set back
    monkeypatch.setattr(d, "wait_until_healthy", lambda own, row, restarts: (asked.append(row.dyno), d.ask_liveness(own)))
    d.ask_liveness(d.read_current("blog"))
    assert asked == ["web.1"]


@pytest.mark.parametrize("check, wrong", [(d.Check(path="/events", timeout=1), ""), (d.Check(path="/events", timeout=1, content="ping"), ""),
                                          (d.Check(path="/events", timeout=1, content="pong"), "the answer lacks")])
def test_an_answer_that_never_ends_is_an_answer(check, wrong):
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        """Answer, and go on and on."""
        client, _ = server.accept()
        client.recv(1000)
        with contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            for _ in range(200):
                client.sendall(b": ping\n")
                time.sleep(0.1)
        ended.append(True)
    ended, thread = [], threading.Thread(target=serve, daemon=True)
    thread.start()
    found = d.ask_path("127.0.0.1", server.getsockname()[1], check)
    assert (wrong in found if wrong else found == "") and not ended, "it came back while the stream went on"


@pytest.fixture
def watched(root, monkeypatch):
    """Release 4, which is good, and 5, which was switched to a moment ago; whatever is switched to has one process, that keeps crashing."""
    rows = []
    for name in ("start_missing", "install_vhost", "keep_last_words"):
        monkeypatch.setattr(d, name, lambda *words, **facts: [])
    for name in ("render_crontab", "keep_images", "agree_networks", "push_release", "name_current", "detach", "tag_image", "import_ahead", "drop_images", "remove_container"):
        monkeypatch.setattr(d, name, lambda *words, **facts: None)
    monkeypatch.setattr(d, "vhost_text", lambda *words: "")
    monkeypatch.setattr(d, "containers_of", lambda app="", kind="deploy": rows)
    monkeypatch.setattr(d, "inspect_container", lambda identity: {"RestartCount": 3})
    monkeypatch.setattr(d, "inspect_image", lambda image: {"Id": image})
    for number in (4, 5):
        d.write_release(release(number=number, image=f"i{number}"), {})
    d.write_current(release(number=4))
    d.switch_to(release(number=5, image="i5"))

    def crash():
        """Have what runs now crash, and be judged."""
        rows[:] = [container(incarnation=d.read_current("blog").incarnation)]
        d.judge_probation("blog")
        return d.read_current("blog").image, d.read_json(root / "apps/blog/PROBATION").get("previous")
    return crash


def test_an_automatic_rollback_ends_at_a_release_that_was_proven(watched):
    d.apply_config("blog", {"A": "1"}, "me", "config:set A")  # v6, while v5 is still watched
    assert watched() == ("i5", 4), "v5 was not proven either: it is watched again"
    assert watched() == ("i4", None)


def test_a_rollback_keeps_what_was_set_for_later(watched):
    d.write_config("blog", {"LATER": "secret"})  # config:set --no-restart
    assert watched() == ("i4", None)
    assert d.read_config("blog") == {"LATER": "secret"} and d.release_config(d.read_current("blog")) == {}


def test_a_record_that_goes_takes_the_name_of_its_image_along(root, monkeypatch):
    untagged = []
    monkeypatch.setattr(d, "untag_image", untagged.append)
    for number in (1, 2, 3):
        d.write_release(release(number=number, image="same"), {})
    d.write_current(release(number=3, image="same"))
    d.write_property("blog", "builds", "retention", "1")
    d.keep_images("blog")
    assert d.release_numbers("blog") == [3] and untagged == ["dokku/blog:v1", "dokku/blog:v2"]


def test_a_key_that_is_over_opens_nothing_on_a_connection_that_is_still_open(root, monkeypatch):
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "apps:list")
    for until, fine in (("", True), (time.strftime("%Y-%m-%d"), True), ("2020-01-01", False)):
        d.write_json(root / "keys" / "ann", d.Key("ann", "ssh-ed25519 AAAA", "SHA256:x", role="developer", until=until)._asdict())
        with contextlib.nullcontext() if fine else pytest.raises(d.AccessDenied):
            assert d.asked_by_ssh("ann")[0] == ["apps:list"]


def test_what_is_made_can_be_read_by_others_whatever_the_umask(tmp_path):
    script = (f"import os, sys, pathlib; os.umask(0o077); sys.path.insert(0, {os.path.dirname(d.__file__)!r}); import dokku_py as d\n"
              f"d.main = lambda words: d.make_folder(pathlib.Path({str(tmp_path)!r}) / 'pages') and 0\nd.front_door([])")
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert stat.S_IMODE((tmp_path / "pages").stat().st_mode) == 0o755


def test_a_clean_up_removes_containers_before_images(root, monkeypatch):
    done = []
    monkeypatch.setattr(d, "one_offs", lambda app: [container(state="exited")])
    for name in ("keep_images", "drop_images", "remove_container"):
        monkeypatch.setattr(d, name, lambda *words, name=name: done.append(name))
    d.clean_up("blog")
    assert done == ["remove_container", "keep_images", "drop_images"], "an image that a container uses keeps its name"


def test_the_last_runs_of_a_cron_job_are_kept(root, live, monkeypatch):
    removed = []
    job = d.Job("@daily", "x")
    d.write_current(release(jobs=(job,)))
    d.write_release(release(jobs=(job,)), {})
    rows = [container(f"cron.{job.id}", id=f"id-{number}", created=number, state="exited", running=False) for number in range(15)]
    monkeypatch.setattr(d, "containers_of", lambda app="", kind="deploy": rows[::-1])
    monkeypatch.setattr(d, "remove_container", removed.append)
    monkeypatch.setattr(d, "create_one_off", lambda *words, **facts: "name")
    monkeypatch.setattr(d, "attend", lambda argv: 0)
    assert d.cron_run(False, 60, "blog", job.id) == 0
    assert removed == [f"id-{number}" for number in range(5)]


def test_a_state_tree_that_is_away_makes_no_orphans(root, monkeypatch):
    d.make_folder(d.app_folder("other"))
    monkeypatch.setattr(d, "containers_of", lambda app="", kind="deploy": [container()] if kind == "deploy" else [])
    assert [row.app for row in d.orphans()] == ["blog"]
    os.rename(root / "apps", root / "away")
    assert d.orphans() == []


def test_the_image_that_options_are_compared_in_is_no_app_s():
    assert not d.EMPTY_IMAGE.startswith("dokku/")


def test_an_entry_of_the_procfile_is_run_by_the_shell_of_the_app(root, live, monkeypatch):
    seen = []
    d.write_release(release(procfile={"migrate": "[[ a == a ]]"}), {})
    d.write_property("blog", "scheduler", "shell", "/bin/bash")
    monkeypatch.setattr(d, "ensure_network", lambda: None)
    monkeypatch.setattr(d, "create_container", lambda *words, command, **facts: seen.append(command))
    d.create_one_off("blog", {}, ["migrate"], 10)
    assert seen[0][0] == "/bin/bash" and "[[ a == a ]]" in seen[0][-1]


def test_a_way_back_that_fails_is_not_the_last(watched, monkeypatch):
    d.apply_config("blog", {"A": "1"}, "me", "config:set A")
    real = d.rollback

    def rollback(app, number, by):
        """Go back, but not to 5."""
        if number == 5:
            raise d.DokkuError("v5 is not healthy")
        real(app, number, by)
    monkeypatch.setattr(d, "rollback", rollback)
    with pytest.raises(d.DokkuError):
        watched()
    assert watched()[0] == "i4"


def test_a_minder_that_looks_during_the_switch_takes_no_way_back(watched, monkeypatch):
    real = d.keep_config
    monkeypatch.setattr(d, "keep_config", lambda release: (real(release), d.judge_probation("blog")))
    d.apply_config("blog", {"A": "1"}, "me", "config:set A")
    monkeypatch.setattr(d, "keep_config", real)
    assert watched() == ("i5", 4)


def test_a_rollback_keeps_what_was_unset_for_later(watched):
    for config in ({"SECRET": "1", "A": "1"}, {"SECRET": "1", "A": "2"}):
        d.apply_config("blog", config, "me", "config:set")
    d.write_config("blog", {"A": "2"})  # config:unset --no-restart SECRET
    d.rollback("blog", 6, "me")
    assert d.read_config("blog") == {"A": "1"}


def test_boot_renders_the_vhost_of_an_app_that_it_does_not_start(root, monkeypatch):
    for name in ("prepare_as_root", "setup", "mend_services", "quarantine_vhosts", "remove_strays"):
        monkeypatch.setattr(d, name, lambda *words: None)
    for app, restore in (("one", "true"), ("two", "false")):
        d.write_property(app, "ps", "restore", restore)
    for name in ("converge", "render_vhost"):  # in processes of their own
        monkeypatch.setattr(d, name, lambda app, name=name: (root / f"{name}.{app}").touch())
    d.boot()
    assert {path.name for path in root.glob("*.*")} == {"converge.one", "render_vhost.two"}


def test_a_process_type_that_stays_stopped_is_told(root, live, monkeypatch, capsys):
    for name in ("start_missing", "agree_networks", "render_vhost", "render_crontab", "name_current"):
        monkeypatch.setattr(d, name, lambda *words: [])
    d.write_lines(root / "apps/blog/STOPPED_TYPES", ["worker"])
    d.write_lines(root / "apps/blog/SCALE", ["worker=2"])
    d.start_app("blog")
    assert "worker stays stopped; dokku ps:start blog worker" in capsys.readouterr().err
    d.ps_scale(False, "text", "blog", [])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["web:", "1"], ["worker:", "2", "(stopped)"]]


def test_a_type_that_comes_back_while_it_retires_replaces_no_other(root, live, monkeypatch):
    switched = []
    live[:] = [container("web.1"), container("worker.1")]
    d.write_lines(root / "apps/blog/SCALE", ["worker=1"])
    monkeypatch.setattr(d, "retiring", lambda app: {"id-worker.1"})
    monkeypatch.setattr(d, "import_ahead", lambda name: None)
    monkeypatch.setattr(d, "turn_back", lambda *words: None)

    def start_missing(new):
        """Note what is to run, and stop here."""
        switched.append((new.restart, new.kept))
        raise d.DokkuError("far enough")
    monkeypatch.setattr(d, "start_missing", start_missing)
    with pytest.raises(d.DokkuError, match="far enough"):
        d.switch_to(d.read_current("blog"))
    assert switched == [(1, {"web": "v3"})]


def test_a_cron_job_may_be_paused_in_app_json(root, live, monkeypatch, capsys):
    rows = [{"schedule": "@daily", "command": "one"}, {"schedule": "@daily", "command": "two", "maintenance": True}]
    *_, jobs = d.parse_app_json({"cron": rows})
    d.write_release(release(jobs=jobs), {})
    d.cron_list("json", "blog")
    assert [row["suspended"] for row in d.json.loads(capsys.readouterr().out)] == ["false", "true"]
    rendered = []
    monkeypatch.setattr(d, "output_of", lambda argv, **words: "")
    monkeypatch.setattr(d, "run", lambda argv, **words: rendered.append(words.get("stdin")))
    d.render_crontab()
    assert jobs[0].id in str(rendered) and jobs[1].id not in str(rendered)


def test_arguments_behind_an_entry_of_the_procfile_reach_it(root, live, monkeypatch):
    seen = []
    d.write_release(release(procfile={"task": "echo T"}), {})
    monkeypatch.setattr(d, "ensure_network", lambda: None)
    monkeypatch.setattr(d, "create_container", lambda *words, command, **facts: seen.append(command))
    for words in (["task", "a b"], ["ls", "-la"], ["echo x"]):
        d.create_one_off("blog", {}, words, 10)
    assert "echo T 'a b'" in seen[0][-1] and seen[1] == ["ls", "-la"] and "echo x" in seen[2][-1]


@pytest.mark.parametrize("number, words", [(99, "blog has no release v99"), (2, "blog has no image of v2 any more")])
def test_what_can_t_be_rolled_back_to_is_said(root, live, number, words):
    d.write_release(release(number=2, image=""), {})
    with pytest.raises(d.DokkuError, match=words):
        d.rollback("blog", number, "me")


@pytest.mark.parametrize("word, hint", [("apps:crate", "did you mean apps:create?"), ("config:delete", "did you mean config:"), ("app:destroy", "did you mean apps:destroy?"),
                                        ("logs:vector-start", "docs/server.md"), ("tags:deploy", "tag:add")])
def test_no_other_command_that_removes_is_proposed(word, hint):
    with pytest.raises(d.DokkuError) as error:
        d.find_command(word)
    assert hint in error.value.hint, error.value.hint


def test_a_record_of_jobs_is_read_by_versions_before(root):
    jobs = (d.Job("@daily", "x"), d.Job("@daily", "y", maintenance=True))
    d.write_release(release(jobs=jobs), {})
    assert d.read_json(d.release_folder("blog", 3) / "release.json")["jobs"] == [["@daily", "x", "allow"], ["@daily", "y", "allow", True]]
    assert d.read_release("blog", 3).jobs == jobs


def test_a_job_that_app_json_pauses_is_not_resumed(root, live):
    job = d.Job("@daily", "y", maintenance=True)
    d.write_release(release(jobs=(job,)), {})
    with pytest.raises(d.DokkuError, match="app.json pauses"):
        d.change_suspended("blog", job.id, "remove")


def test_a_judgement_that_fails_does_not_end_the_minder(root, live, monkeypatch):
    def judge(app):
        """Fail, as a rollback that does not come up."""
        raise d.DokkuError("v5 is not healthy")
    monkeypatch.setattr(d, "judge_probation", judge)
    monkeypatch.setattr(d, "free_addresses", lambda *words: None)
    assert d.mind_once("blog", {}, False)


def test_a_type_that_is_no_more_is_not_named(root, live, monkeypatch, capsys):
    for name in ("start_missing", "agree_networks", "render_vhost", "render_crontab", "name_current"):
        monkeypatch.setattr(d, name, lambda *words: [])
    d.write_lines(root / "apps/blog/STOPPED_TYPES", ["clock"])
    d.start_app("blog")
    assert capsys.readouterr().err == ""
