"""Every command and property of the two dialects is here, or is refused with what to use instead."""

import re
from pathlib import Path

import dokku_py as d
import pytest

ROWS = [line.split("\t") for line in (Path(__file__).parent.parent / "commands.tsv").read_text().splitlines()[2:]]
NAMES = sorted({row[0] for row in ROWS})
SERVICES = (Path(__file__).parent.parent / "e2e" / "test_services.py").read_text()
TESTS = "\n".join(path.read_text() for path in Path(__file__).parent.parent.rglob("test_*.py"))


def answer_to(name):
    """Say which of the two answers a command gets."""
    try:
        row = d.find_command(name)
    except d.DokkuError as error:
        return "refused" if error.hint and not isinstance(error, d.UsageError) else "unknown"
    return "here" if row or d.commands_of(name.removesuffix(":help")) else "nowhere"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_one_of_two_answers(name):
    assert answer_to(name) in ("here", "refused")


def test_no_command_that_is_here_is_refused():
    assert [name for name, _ in d.read_table("refused.tsv") if d.commands_of(name)] == []


def test_a_mistyped_command_is_neither():
    with pytest.raises(d.UsageError) as caught:
        d.find_command("apps:lst")
    assert answer_to("apps:lst") == "unknown" and "apps:list" in caught.value.hint


def test_every_command_of_the_dialects_is_named_by_a_test():
    """By any of its spellings, in a test that runs it or in a table of such tests."""
    spellings = {row.name: {word for word, other in d.commands().items() if other.name == row.name} for row in d.commands().values()}
    declared = {name for name in spellings if name.partition(":")[2] in ("set", "report") and name.partition(":")[0] in {noun for noun, _ in d.PROPERTIES}}
    declared |= {name for name, row in d.commands().items() if row.access in ("local", "hook") or name.startswith("git-")}  # install.sh and git run those
    tried = {*re.findall(r'(?:ok|refused|load)\("([a-z:-]+)"', SERVICES), *re.findall(r'[a-z}]:([a-z:-]+)[ "]', SERVICES)}  # of an engine, whichever it is
    declared |= {name for name, words in spellings.items() if d.engine_named(name.partition(":")[0]) and {word.partition(":")[2] for word in words} & tried}
    untested = [name for name, words in sorted(spellings.items()) if name not in declared and not any(f'"{word}"' in TESTS for word in words)]
    assert untested == []


@pytest.mark.parametrize("noun, key", sorted(d.PROPERTIES))
def test_every_property_accepts_its_default_and_refuses_injection(noun, key):
    row = d.PROPERTIES[noun, key]
    if row.default:
        assert str(row.parse(row.default)) == row.default
    assert row.summary and row.access in ("configure", "admin")
    for hostile in ("a\nb", "x; include /etc/passwd", "}", "a\0b"):
        if row.parse is d.parse_line and hostile in ("x; include /etc/passwd", "}"):
            continue  # such a line reaches no configuration that another program reads
        with pytest.raises(d.DokkuError):
            row.parse(hostile)


def test_of_two_readings_that_counts_in_which_an_apps_name_stands_for_an_app(tmp_path, monkeypatch):
    """One dialect links SERVICE APP, the other APP SERVICE."""
    monkeypatch.setattr(d, "ROOT", tmp_path)
    (tmp_path / "apps" / "blog").mkdir(parents=True)
    row = d.Command("db:link", "configure", ("--alias:str service app", "app service"), "require_app")
    assert d.read_words(row, ["data", "blog"], d.Caller("root", local=True)) == {"alias": None, "service": "data", "app": "blog"}
    assert d.read_words(row, ["blog", "data"], d.Caller("root", local=True)) == {"service": "data", "app": "blog"}
    assert d.read_words(row, ["nothing", "neither"], d.Caller("root", local=True))["app"] == "neither", "where nothing tells them apart the first reading counts"
    assert d.read_words(row, ["--alias", "X", "data", "blog"], d.Caller("root", local=True))["alias"] == "X"
    (tmp_path / "apps" / "data").mkdir()
    with pytest.raises(d.UsageError, match="both names of apps") as refused:
        d.read_words(row, ["data", "blog"], d.Caller("root", local=True))
    assert "dokku --app blog db:link data" in refused.value.hint
    for words in (["--app", "blog", "data"], ["data", "--app", "blog"]):
        assert {key: value for key, value in d.read_words(row, words, d.Caller("root", local=True)).items() if value} == {"service": "data", "app": "blog"}
    with pytest.raises(d.UsageError):
        d.read_words(row, ["a", "b", "c"], d.Caller("root", local=True))


def test_a_spelling_may_have_arguments_of_its_own():
    """dokku-alt's access:add takes no name, ssh-keys:add must have one: both are one command."""
    assert d.commands()["access:add"].body is d.commands()["ssh-keys:add"].body
    assert d.read_words(d.commands()["access:add"], [], d.Caller("root", local=True))["name"] is None
    with pytest.raises(d.UsageError):
        d.read_words(d.commands()["ssh-keys:add"], [], d.Caller("root", local=True))


ROOT = d.Caller("root", local=True)


def test_global_behind_two_dashes_is_a_word_as_any_other():
    row = d.Command("x:y", "configure", ("app:app-or-global words:str*",), "require_app")
    for words, app, rest in ((["blog", "--", "--global"], "blog", ["--global"]), (["--global", "--", "a"], "--global", ["a"]),
                             (["a", "--global"], "--global", ["a"]),
                             (["--global", "a", "--", "--global"], "--global", ["a", "--global"]), (["blog", "a"], "blog", ["a"])):
        assert d.read_words(row, words, ROOT) == {"app": app, "words": rest}, words


@pytest.mark.parametrize("words, app, pairs, own", [
    ("-e A=1 --app blog env", "blog", [("A", "1")], ["env"]), ("--app blog -e A=1 env", "blog", [("A", "1")], ["env"]),
                                                    ("--env A=1 -e B=2 --app blog env", "blog", [("A", "1"), ("B", "2")], ["env"]),
    ("-e A=1 blog env --app x", "blog", [("A", "1")], ["env", "--app", "x"]), ("blog env -e A=1 --app x", "blog", [], ["env", "-e", "A=1", "--app", "x"]),
    ("--app blog -- env --app x --quiet", "blog", [], ["env", "--app", "x", "--quiet"])])
def test_what_stands_behind_the_users_own_command_is_his(words, app, pairs, own, monkeypatch):
    monkeypatch.delenv("DOKKU_QUIET_OUTPUT", raising=False)
    found = d.read_words(d.commands()["run"], words.split(), ROOT)
    taken = found["words"][1:] if found["words"][:1] == ["--"] else found["words"]
    assert (found["app"], list(found["pairs"] or []), taken) == (app, pairs, own)
    assert "DOKKU_QUIET_OUTPUT" not in d.os.environ


def test_as_without_a_name_is_no_bug(capsys):
    assert d.main(["--as"]) == 2 and "bug" not in capsys.readouterr().err


def test_what_ssh_info_asks_of_ssh_keygen_is_no_option():
    with pytest.raises(d.UsageError):
        d.read_words(d.commands()["ssh:info"], ["--about=-D/a/file.so", "blog"], ROOT)
    assert d.commands()["ssh:info"].fixed == {"about": "-l"}
