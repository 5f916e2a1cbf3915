"""Run the installed product with a counter at its doors, and kill it at a chosen count: `launcher.py ROLE WORD...`.

The doors are the functions of the module's sections Processes, State, Docker and Nginx, the requests that go to the
engine, and what the interpreter itself reports as an effect (a file opened for writing, a rename, a removal, a fork).
A point is `ROLE CHAIN COUNT`: the chain of doors that are open, and how often that chain was reached. It is the same
from run to run, however often something is polled. The environment says what to do:

    CHAOS_LOG     a folder: every point reached is added to the file `points` there
                  at the point that its file `point` names, the whole process group gets SIGKILL; `killed` says so before;
                  when it has a file `writes`, every change of the state tree is added to that: see writes.py

Roles: `door` (receives a push), `hook` (deploys it), `command`, `setup` (a command of install.sh, which dies with it), and
`minder` (the detached process, which counts anew).
"""

import _thread
import collections
import glob
import inspect
import json
import os
import re
import sys
import time
import types
from pathlib import Path

sys.path[:0] = ["/usr/lib/dokku-py/current", *glob.glob("/usr/lib/dokku-py/venv/lib/python3*/site-packages")]

import docker  # noqa: E402
import dokku_py  # noqa: E402

SECTIONS = {"Processes", "State", "Docker", "Nginx"}
EFFECTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "subprocess.Popen", "os.fork", "fcntl.flock", "os.exec"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MAIN_THREAD = _thread.get_ident()


class Counter:
    """What has been reached in this process, and where it is to end."""

    role = ""
    last = ""
    chain: list = []
    counts: collections.Counter = collections.Counter()
    busy = False  # our own writes are no effects of the product


def begin(role):
    """Count from nothing, as that role."""
    Counter.role, Counter.chain, Counter.counts = role, [], collections.Counter()


def add(name, text):
    """Add to a file of the log; opened each time, since a detached process closes every descriptor."""
    descriptor = os.open(os.path.join(os.environ["CHAOS_LOG"], name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(descriptor, text.encode(errors="surrogateescape"))
    os.close(descriptor)


def reach(name, effect, detail=""):
    """Count a point, note it, and end there when it is the chosen one."""
    if Counter.busy or _thread.get_ident() != MAIN_THREAD:
        return
    Counter.busy = True
    try:
        chain = ">".join([*Counter.chain, name])
        Counter.counts[chain] += 1
        point = f"{Counter.role} {chain} {Counter.counts[chain]}"
        add("points", json.dumps([point, effect, detail]) + "\n")
        if point == Counter.last:
            add("killed", f"{point} {detail}\n")
            os.killpg(0, 9)
    finally:
        Counter.busy = False


def path_of(name, folder=-1):
    """Give the whole path of a name, which may be relative to an open folder."""
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(name)) if folder not in (-1, None) else os.path.abspath(os.fsdecode(name))


def record(kind, path, target="", content=""):
    """Add a change of the state tree to the log of writes; git's own and scratch folders are not ours."""
    inside = path.startswith(f"{dokku_py.ROOT}/") and "/repo.git/" not in path and "/tree." not in path and not path.endswith("/repo.git")
    if inside and not Counter.busy and os.path.exists(os.path.join(os.environ["CHAOS_LOG"], "writes")):
        Counter.busy = True
        add("writes", json.dumps([kind, path, target, content]) + "\n")
        Counter.busy = False


def record_event(event, args):
    """Note a change that is about to be made; one that will fail changes nothing."""
    if event == "os.rename":
        record("rename", path_of(args[0], args[2]), path_of(args[1], args[3]))
    elif event in ("os.remove", "os.rmdir") and os.path.lexists(path := path_of(args[0], args[1])):
        record("remove", path)
    elif event == "os.mkdir" and not os.path.lexists(path := path_of(args[0], args[2])):
        record("mkdir", path)
    elif event == "open" and args[2] & os.O_CREAT and not os.path.lexists(args[0]):
        record("create", path_of(args[0]))


def record_sync(descriptor):
    """Note that a file's content, or a folder's names, are safe from now on."""
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    folder = os.path.isdir(path)
    record("folder" if folder else "sync", path, content="" if folder else Path(path).read_text(errors="surrogateescape"))


def on_event(event, args):
    """Count what the interpreter reports as an effect on the world outside."""
    if event == "open":
        path, _, flags = args
        if not isinstance(path, int) and isinstance(flags, int) and flags & WRITING and not os.fsdecode(path).startswith(("/proc", "/dev")):
            reach("open", True, os.fsdecode(path))
            record_event(event, args)
    elif event in EFFECTS:
        reach(event, True, str(args[0])[-100:] if args else "")
        record_event(event, args)


def counted(name, function):
    """Wrap a door so that every call is a point, and what it calls is named after it."""
    def door(*args, **options):
        reach(name, False)
        Counter.chain.append(name)
        try:
            return function(*args, **options)
        finally:
            Counter.chain.pop()
    return door


def verb(name, function):
    """Wrap a request to the engine: reading changes nothing, the others are effects."""
    def request(client, url, *args, **options):
        path = re.sub(r"^.*?/v[0-9.]+", "", url)
        reach(f"{name}:{path.split('/')[-1] if name == '_post' else path.split('/')[1]}", name != "_get", path)
        return function(client, url, *args, **options)
    return request


def section_lines():
    """Give the first line and the name of each section, by the module's banners."""
    text = Path(dokku_py.__file__).read_text()
    return [(text[:found.start()].count("\n") + 1, found[1]) for found in re.finditer(r"^# \d+ (\w[\w ]*?)(?::.*)?$", text, re.M)]


def wrap_doors():
    """Put a counter at every door."""
    banners = section_lines()
    for name, value in list(vars(dokku_py).items()):
        if inspect.isfunction(value) and value.__module__ == "dokku_py":
            line = inspect.unwrap(value).__code__.co_firstlineno
            if [section for start, section in banners if start <= line][-1] in SECTIONS:
                setattr(dokku_py, name, counted(name, value))
    for name in ("_get", "_post", "_put", "_delete"):
        setattr(docker.APIClient, name, verb(name, getattr(docker.APIClient, name)))
    fsync, detach = os.fsync, dokku_py.detach
    os.fsync = lambda descriptor: (reach("os.fsync", True), fsync(descriptor), record_sync(descriptor))[1]
    dokku_py.detach = lambda work: detach(lambda: (begin("minder"), hurry(), work(), reach("end", False)))
    sys.addaudithook(on_event)


def hurry():
    """Have the detached process look more often than once a second: a thousand of them are waited for here."""
    dokku_py.time = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(min(seconds, 0.1))})


def launch(role, words):
    """Run the product's front door in that role, in a process group of its own unless the caller's is to die too."""
    if role in ("door", "command") and os.getpid() != os.getpgid(0):
        os.setsid()
    begin(role)
    Counter.last = Path(os.environ["CHAOS_LOG"], "point").read_text()
    dokku_py.PROBATION_SECONDS = 0.5  # many deploys in a row: none should be watched for a minute
    if "CHAOS_HOOKS" in os.environ:
        dokku_py.HOOKS = Path(os.environ["CHAOS_HOOKS"])
    wrap_doors()
    code = dokku_py.main(words)
    reach("end", False)
    sys.stdout.flush()
    os._exit(code)


launch(sys.argv[1], sys.argv[2:])
