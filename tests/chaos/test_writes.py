"""A power cut at any moment of an operation: whatever the disk kept of the writes so far, the product ends well from there."""

import json
import os
import signal

import pytest

import dokku_py as d
from chaos import OPERATIONS, Bench, Subject
from conftest import docker, server, sh, wait_until  # noqa: F401
from writes import chance, lay_out, may_be_lost, put_back, read_log, replay, snapshot, states_after

CUTS = 6  # of the power, each with a whole recovery


@pytest.fixture(scope="module")
def bench(server):  # noqa: F811
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def subject(bench):
    subject = Subject(bench)
    [subject.deploy() for _ in range(2)]
    yield subject
    subject.destroy()


def recorded(bench, subject, name, point=""):
    """Carry an operation out, perhaps only to a point; give what stood there before and the log of writes since."""
    operation = OPERATIONS[name]()
    subject.turn += 1
    operation.prepare(subject)
    before = snapshot(subject.name)
    writes = bench.log / "writes"
    writes.touch()
    writes.chmod(0o666)
    try:
        code, output, points = operation.act(subject, point)
        assert point or code == 0, output
        return before, read_log(writes), points
    finally:
        writes.unlink()


def facts_of(tree, root, app, number):
    """Read the record of a release from a tree laid out elsewhere, to compare with."""
    lay_out(tree, root)
    d.ROOT = root
    release = d.read_release(app, number)
    return release, d.release_config(release)


@pytest.fixture
def elsewhere():
    root = d.ROOT
    yield
    d.ROOT = root


@pytest.mark.parametrize("name", ["deploy", "config:set", "rollback", "scale-up", "scale-down", "ps:restart", "domains:set"])
def test_every_state_that_a_power_cut_may_leave_can_be_read(bench, subject, name, tmp_path, elsewhere):
    before, log, _ = recorded(bench, subject, name)
    after = snapshot(subject.name)
    assert replay(before, log, contents=after).keys() == after.keys(), "the log tells all that happened"
    numbers = {int(tree[str(subject.folder / "CURRENT")].strip()[1:].partition(".")[0]) for tree in (before, after)}
    whole = {number: facts_of(after, tmp_path / f"whole{number}", subject.name, number) for number in numbers}
    seen, count = set(), 0
    for end in range(len(log) + 1):
        for tree in states_after(before, log[:end], chance(f"{name} {end}"), after):
            d.ROOT = tmp_path / f"cut{count}"
            lay_out(tree, d.ROOT)
            count += 1
            seen.add(read_all(subject.name, whole))
    assert count > len(log)
    assert seen == numbers, "some cuts leave the old release, some the new one"


def read_all(app, whole):
    """Read all that `ps:restore` reads: it must be as it was before or as it is after, and never half of it. Give the release that is live."""
    current = d.read_current(app)
    assert current and current.number in whole, f"{current} is live"
    release, config = whole[current.number]
    assert current._replace(restart=0) == release and d.release_config(current) == config
    assert all(d.vhost_of(current, app).upstreams.values()), "nginx has somewhere to forward to"
    assert d.next_number(app) > max(d.release_numbers(app)) and set(d.wanted_dynos(current)) >= {"web.1"}
    assert all(json.loads(line)["containers"] for line in d.read_lines(d.app_folder(app) / "RETIRING"))
    assert isinstance(d.read_json(d.app_folder(app) / "PROBATION"), dict) and d.read_config(app) in [config for _, config in whole.values()]
    assert d.domains_of(app) and d.port_of(current)
    return current.number


def test_the_model_finds_what_was_not_flushed():
    folder = "/var/lib/dokku/apps/a"
    before = {folder: None, f"{folder}/ENV": "old"}
    write = [("create", f"{folder}/.ENV.1", "", ""), ("sync", f"{folder}/.ENV.1", "", "new"), ("rename", f"{folder}/.ENV.1", f"{folder}/ENV", "")]
    assert may_be_lost([*write, ("folder", folder, "", "")]) == [] and may_be_lost(write) == [0, 2]
    assert {tree[f"{folder}/ENV"] for tree in states_after(before, write, chance(1))} == {"old", "new"}
    careless = [write[0], write[2], ("folder", folder, "", "")]
    assert "" in {tree[f"{folder}/ENV"] for tree in states_after(before, careless, chance(1))}, "renamed before it was flushed"
    lost_folder = [("mkdir", f"{folder}/releases", "", ""), ("create", f"{folder}/releases/x", "", ""), ("folder", f"{folder}/releases", "", "")]
    assert before in states_after(before, lost_folder, chance(1)), "a file is lost with its folder"


def test_after_a_power_cut_the_app_serves_and_the_next_push_works(bench, subject):
    _, _, points = recorded(bench, subject, "deploy")
    moments = [point for point, effect, _ in points if effect and point.startswith("hook ")]
    luck = chance("cuts")
    for point in luck.sample(moments, CUTS):
        old = subject.answer()
        before, log, _ = recorded(bench, subject, "deploy", point)
        present = snapshot(subject.name)
        put_back(luck.choice(states_after(before, log, luck, present)), present)
        cut_the_power(subject)
        assert subject.answer() in (old, subject.wanted(f"m{subject.mark}")), f"{subject.answer()!r} is served after a cut at {point}"
        subject.restore()
        subject.deploy()
        subject.restore()


def cut_the_power(subject):
    """End what runs as a power cut does, and start the machine's services again as its boot does."""
    running = docker("ps", "-q", "--filter", f"label=com.dokku.app-name={subject.name}").split()
    docker("kill", *running)
    for pid in [int(d.NGINX_PID.read_text()), *(pid for pid, _ in d.worker_processes())]:  # the master first: it would replace its workers
        os.kill(pid, signal.SIGKILL)
    done = sh("dokku", "boot")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not subject.answer().startswith(("error", "status 502")))


def test_git_flushes_the_objects_and_the_ref_of_a_push(bench, subject):
    trace = bench.log / "trace"
    trace.touch()
    trace.chmod(0o666)
    try:
        subject.deploy()
        rows = [json.loads(line) for line in trace.read_text().splitlines()]
    finally:
        trace.unlink()
    programs = {row["sid"]: row["argv"] for row in rows if row["event"] == "start"}
    flushed = {word for row in rows if row.get("key") == "fsync/hardware-flush" and int(row["value"]) for word in programs[row["sid"]]}
    assert {"receive-pack", "unpack-objects"} <= flushed
