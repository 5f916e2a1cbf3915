"""Whatever words a command is given: no traceback, a code that says what happened, and nothing changed by a refusal."""

import contextlib
import io
import os
import sys
from pathlib import Path

import dokku_py as d
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("DOKKU_EXAMPLES", "6"))
NAMES = sorted(name for name, row in d.commands().items() if name == row.name and row.access not in ("hook", "local") and not name.startswith("git-"))
CODES = {0, 1, 2, 20, 75, 77}


def words_for(row):
    """Words that a person might give this command, and some that nobody should."""
    flags = [flag for arg in row.args for flag in arg.flags]
    plain = st.sampled_from(["blog", "none", "web", "web=2", "A=1", "x.example.com", "3", "v1", "--", "-", "", "text", "json", "/etc/passwd", "*",
                             "http:80:5000", "deploy", "--memory=1g", "a b", "$(id)", "`id`", ";id", "a\nb", "\x00", "é", "\udc80", "--all", "--global", "--app", "-h1"])
    return st.lists(st.one_of(plain, st.sampled_from(flags or ["--none"]), st.text(max_size=8)), max_size=5)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A state tree with one app that was never deployed, no engine and no other program."""
    monkeypatch.setattr(d, "ROOT", tmp_path)
    for name in ("apps/blog", "keys", "locks", "addresses", "nginx/candidate", "nginx/server", "properties"):
        (tmp_path / name).mkdir(parents=True)

    def no_engine():
        raise d.DokkuError("Docker does not answer")
    no_engine.cache_clear = lambda: None
    no_engine.__wrapped__ = no_engine
    monkeypatch.setattr(d, "engine", no_engine)

    def no_program(*args, **kwargs):
        raise FileNotFoundError(args)
    monkeypatch.setattr("subprocess.Popen", no_program)
    def no_turning(*args):
        raise d.ToolFailed(args[1], 1, "there are no programs here")
    monkeypatch.setattr("os.execvp", no_turning)
    return tmp_path


def snapshot(root):
    """What is on record; locks and the trail of events aside."""
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and "lock" not in path.parts[-1] and path.parts[-2] != "locks" and path.name != "events.log"}


def run(words):
    """Run one command in this process, with nothing on standard input; give its code and what it said."""
    out, err, before = io.TextIOWrapper(io.BytesIO(), errors="surrogateescape"), io.StringIO(), dict(os.environ)
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO())
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return d.main(words), err.getvalue()
    finally:
        sys.stdin = stdin
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize("name", NAMES)
def test_any_words(name, root):
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=EXAMPLES < 100)
    @given(words_for(d.commands()[name]))
    def check(words):
        before = snapshot(root)
        code, said = run([name, *words])
        assert code in CODES and "This is a bug" not in said, (code, words, said, sorted(map(str, Path("/tmp").glob("dokku-crash-*")))[-1:])
        if code in (2, 77):
            assert snapshot(root) == before, words
            assert said.startswith(" !     ") or code == 77, words

    check()


@pytest.mark.parametrize("line", ["", " ", "'", "\\", "apps:list \x00", "é", "--app", "--app blog", "--quiet", "help help", "-", "--", "--help", "apps:list --app", ";", "$(id)"])
def test_any_line_from_ssh(line, root, monkeypatch):
    (root / "keys" / "me").write_text('{"name": "me", "public": "x", "fingerprint": "y", "apps": []}')
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", line.replace("\x00", ""))
    code, said = run(["--as", "me"])
    assert code in CODES and "This is a bug" not in said, said


@pytest.mark.parametrize("words", [["no-such-thing", "1"], ["../../x", "1"], ["client-max-body-size", "much"], ["../../apps"]])
def test_a_property_that_is_refused_touches_nothing(words, root):
    before = snapshot(root)
    assert run(["nginx:set", "blog", *words])[0] == 2 and snapshot(root) == before
