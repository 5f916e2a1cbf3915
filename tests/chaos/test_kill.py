"""Killed with SIGKILL at whatever point, every operation ends well. A sample of points; `tests/chaos/run` tries all."""

import os
import time

import pytest

from chaos import ON_SERVICES, OPERATIONS, Bench, Subject, try_points
from conftest import DOCKER, STATE, server, sh  # noqa: F401

POINTS = int(os.environ.get("CHAOS_COUNT", "20"))
SEED = os.environ.get("CHAOS_SEED", "1")
FEWER = {"scale-up": 10, "scale-down": 10, **dict.fromkeys(ON_SERVICES, 5)}  # two halves of one; what is slow
BOTH_WAYS = {"deploy", "config:set", "rollback", "apps:destroy", "first-push"}  # a sample holds kills before and after the commit point


@pytest.fixture(scope="module")
def bench(server):  # noqa: F811
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def subject(bench):
    subject = Subject(bench)
    subject.deploy()
    yield subject
    subject.destroy()


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_point_it_ends_well(bench, name):
    outcomes = try_points(bench, name, min(POINTS, FEWER.get(name, POINTS)), SEED)
    failed = [f"{point}: {outcome}" for point, outcome in outcomes.items() if outcome.startswith("FAILED")]
    assert not failed, "\n\n".join(failed)
    kinds = list(outcomes.values())
    assert kinds.count("unreached") <= len(kinds) // 4, "most points must be reached, or nothing was killed"
    assert name not in BOTH_WAYS or POINTS < 20 or {"old", "new"} <= set(kinds)


def test_what_killed_pushes_left_in_a_repository_keeps_no_push_from_working(subject):
    repository = subject.folder / "repo.git"
    left = [repository / "objects" / "tmp_objdir-incoming-dead00", repository / "refs" / "heads" / "main.lock", repository / "HEAD.lock"]
    left[0].mkdir()
    (left[0] / "tmp_pack").write_text("half")
    [path.touch() for path in left[1:]]
    sh("chown", "-R", "dokku:dokku", repository)
    subject.deploy()
    assert not [path for path in left if path.exists()]


def test_a_candidate_that_a_killed_test_left_keeps_nobody_from_deploying(subject):
    candidate = STATE / "nginx" / "candidate" / "aa-dead.conf"
    candidate.write_text("what nginx refuses\n")
    subject.deploy()
    assert not candidate.exists()


def test_a_release_that_died_on_its_way_is_no_release_to_go_back_to(subject):
    subject.deploy()
    subject.commit()
    subject.push("hook start_container>_post:start 1")
    assert subject.bench.killed()
    assert "unfinished" in subject.ok("releases").splitlines()[0]
    subject.deploy()
    assert [line.split()[-1] for line in subject.ok("releases").splitlines()][:3] == ["live", "killed", "replaced"]
    subject.ok("rollback")
    assert subject.answer() == f"m{subject.mark - 2}"
    assert sh(*DOCKER, "image", "inspect", f"dokku/{subject.name}:v3").returncode != 0


def test_half_written_files_of_the_dead_go_and_those_of_the_living_stay(subject):
    dead, living = subject.folder / ".ENV.999999999", subject.folder / f".ENV.{os.getpid()}"
    [path.touch() for path in (dead, living)]
    doomed = STATE / "apps" / f".{subject.name}.{time.time_ns()}"
    doomed.mkdir()
    try:
        subject.ok("ps:restore")
        assert not dead.exists() and living.exists()
        assert sh("dokku", "tick").returncode == 0 and not doomed.exists() and living.exists()
    finally:
        living.unlink()
