"""The house rules, held by the syntax tree."""

import ast
import builtins
import inspect
import re
import statistics
import subprocess
import sys
from pathlib import Path

import dokku_py as d
import pytest

TEXT = Path(d.__file__).read_text()
TREE = ast.parse(TEXT)
FUNCTIONS = [node for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef)]
BANNERS = [(TEXT[:found.start()].count("\n") + 1, found[2]) for found in re.finditer(r"^# (\d+) (\w[\w ]*?)(?::.*)?$", TEXT, re.M)]


def section_of(line):
    return [name for start, name in BANNERS if start <= line][-1]


def bound_in(function):
    """The names that a function binds itself: they hide those of the module."""
    return {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)} | {
        node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def test_the_wall():
    assert len(TEXT.splitlines()) < 6500


def test_functions_are_short():
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in FUNCTIONS}
    assert statistics.median(lengths.values()) <= 10
    assert {name: length for name, length in lengths.items() if length > 40} == {}


def test_calls_only_go_up():
    """A function uses only its own section and those above."""
    home = {node.name: section_of(node.lineno) for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    order = [name for _, name in BANNERS]
    used = [(node.name, set(home) & {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} - bound_in(node))
            for node in TREE.body if isinstance(node, ast.FunctionDef)]
    wrong = {(name, other) for name, others in used for other in others if order.index(home[other]) > order.index(home[name])}
    assert wrong == set()


def test_no_function_hides_another_that_it_calls():
    functions = {node.name for node in TREE.body if isinstance(node, ast.FunctionDef)}
    called = {node.name: {call.func.id for call in ast.walk(node) if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)} & functions & bound_in(node)
              for node in TREE.body if isinstance(node, ast.FunctionDef)}
    assert {name: hidden for name, hidden in called.items() if hidden} == {}


def test_every_name_is_known():
    known = {*vars(d), *dir(builtins), "subprocess"}  # the last is imported where it is used
    nodes = [node for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    bound = {node.name: bound_in(node) | {inner.name for inner in ast.walk(node) if isinstance(inner, (ast.FunctionDef, ast.ClassDef))}
             | {(alias.asname or alias.name).partition(".")[0] for inner in ast.walk(node) if isinstance(inner, (ast.Import, ast.ImportFrom)) for alias in inner.names}
             | {inner.name for inner in ast.walk(node) if isinstance(inner, ast.ExceptHandler)} for node in nodes}
    assert {(node.name, name.id) for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name) and name.id not in known | bound[node.name]} == set()


def test_each_effect_has_one_section():
    owners = {"subprocess": {"Processes"}, "fcntl": {"State"}}
    found = {(node.value.id, section_of(node.lineno)) for node in ast.walk(TREE)
             if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners}
    assert {(module, section) for module, section in found if section not in owners[module]} == set()


def test_no_shell_and_no_eval():
    names = {ast.unparse(node.func) for node in ast.walk(TREE) if isinstance(node, ast.Call)}
    assert not names & {"eval", "exec", "os.system", "os.popen"} and "shell=" not in TEXT


def test_the_security_rules_of_ruff_find_nothing():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "dokku_py.py"], capture_output=True, text=True, cwd=Path(d.__file__).parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_function_says_what_it_promises():
    assert [node.name for node in FUNCTIONS if not ast.get_docstring(node) and node.name not in ("__init__", "declare", "error")] == []


def test_every_command_has_a_summary_and_an_access_level():
    known = {*d.ROLES["admin"], "anyone", "hook", "local", "view+", "operate+"}
    for row in d.commands().values():
        assert row.doc[0].endswith(".") and row.access in known, row.name


def test_every_row_of_the_table_fits_the_function_that_it_names():
    """What a row gives is what its function asks for, in each spelling and each reading; two rows claim no spelling."""
    for spelling, row in d.commands().items():
        code = row.body.__code__
        asked = code.co_varnames[:code.co_argcount]
        known = {d.argument(word).name for word in d.commands()[row.name].readings[0].split()}
        for number, reading in enumerate(row.readings):
            passed = {*known, *(d.argument(word).name for word in reading.split()), *row.fixed}
            strangers = passed - set(asked) - ({"style"} if row.call.startswith("print ") else set())
            strangers -= {"app"} if number else set()  # the other dialect names the app beside its service, which the door checks
            assert not strangers or code.co_flags & inspect.CO_VARKEYWORDS, (spelling, strangers)
            assert set(asked[:code.co_argcount - len(row.body.__defaults__ or ())]) <= passed | {"caller", "purpose", "noun"}, spelling
    with pytest.raises(KeyError):
        d.parser_named("no-such-kind")  # a slip in a table must not take any word
    words = [row[0] for row in d.read_table("commands.tsv") if row[1] != "|"]
    assert sorted(set(words)) == sorted(words)
