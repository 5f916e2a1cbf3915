"""What may stand on the disk after a power cut: every state that a log of writes allows.

The launcher logs each change of the state tree: a file made, a rename, a removal, a folder made; and each flush, of a
file's content or of a folder's names. After a cut

    - what a folder held when it was last flushed is there; a later change of its names may be there or not;
    - a file's content is there as it was last flushed; what was never flushed may be missing, and the file be empty.
"""

import json
import os
import random
import shutil
from pathlib import Path

from conftest import STATE


def read_log(path):
    """Read the log of writes: (kind, path, target, content)."""
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def snapshot(app):
    """Read all files of the state tree that belong to an app, but for its repository: path -> content; a folder has none."""
    folder, nginx, found = STATE / "apps" / app, STATE / "nginx", {}
    shared = [STATE / "VHOST", *(STATE / "addresses").iterdir(), *nginx.glob(f"{app}.conf"), *nginx.glob("UNSEEN"), *nginx.glob("candidate/*")]
    for path in [folder, *folder.rglob("*"), *shared]:
        if "repo.git" not in path.parts:
            found[str(path)] = None if path.is_dir() else path.read_text(errors="surrogateescape")
    return found


def may_be_lost(log):
    """List the places in the log whose changes of names no later flush of their folder made safe."""
    lost = []
    for place, (kind, path, target, _) in enumerate(log):
        if kind in ("create", "rename", "remove", "mkdir"):
            folder = os.path.dirname(target or path)
            if ("folder", folder) not in {row[:2] for row in log[place + 1:]}:
                lost.append(place)
    return lost


def replay(before, log, lost=frozenset(), flushed_only=False, contents=None):
    """Give the tree after a log of writes, without the changes at the places in `lost`: path -> content, None for a folder.

    A file that was never flushed holds what it finally held (`contents`), or nothing with `flushed_only`.
    """
    made = {}  # what a name stood for, whether or not the name survives
    tree, true = dict(before), dict(before)
    for place, (kind, path, target, content) in enumerate(log):
        if kind == "create":
            made[path] = true[path] = "" if flushed_only else (contents or {}).get(path, "")
        elif kind == "mkdir":
            true[path] = None
        elif kind == "sync":
            true[path] = content
            if path in tree:
                tree[path] = content
        elif kind == "rename":
            true[target] = true.pop(path, "")
        elif kind == "remove":
            true.pop(path, None)
        if place not in lost:
            apply(tree, true, kind, path, target)
    return {path: content for path, content in tree.items() if reachable(path, tree)}


def apply(tree, true, kind, path, target):
    """Make one change of names in a tree; `true` knows what the names stand for."""
    if kind in ("create", "mkdir"):
        tree[path] = true[path]
    elif kind == "rename":
        tree.pop(path, None)
        tree[target] = true[target]
    elif kind == "remove":
        tree.pop(path, None)


def reachable(path, tree):
    """Say whether all folders above a path are in the tree, as far up as the tree goes."""
    above = [str(folder) for folder in Path(path).parents if STATE / "apps" in folder.parents]
    return all(folder in tree and tree[folder] is None for folder in above)


def states_after(before, log, chance, contents=None, samples=2):
    """Give the trees that a cut at the end of this log may leave: all kept, nothing kept but what is safe, and some between."""
    lost = may_be_lost(log)
    choices = [(frozenset(), False), (frozenset(), True), (frozenset(lost), True)]
    choices += [(frozenset(place for place in lost if chance.random() < 0.5), chance.random() < 0.5) for _ in range(samples)]
    unique = {}
    for chosen, flushed_only in choices:
        tree = replay(before, log, chosen, flushed_only, contents)
        unique[json.dumps(sorted(tree.items()))] = tree
    return list(unique.values())


def lay_out(tree, root):
    """Write a tree below another root than the server's."""
    for path, content in sorted(tree.items()):
        place = root / Path(path).relative_to(STATE)
        if content is None:
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, errors="surrogateescape")


def put_back(tree, present):
    """Make the server's state tree what a cut left: remove what is lost, write what is there, as the user dokku."""
    for path in sorted(set(present) - set(tree), reverse=True):
        shutil.rmtree(path, ignore_errors=True) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)
    for path, content in sorted(tree.items()):
        if content is None:
            Path(path).mkdir(exist_ok=True)
        elif present.get(path) != content:
            Path(path).write_text(content, errors="surrogateescape")
        else:
            continue
        shutil.chown(path, "dokku", "dokku")


def chance(seed):
    """Give a source of chance that is the same for the same seed."""
    return random.Random(seed)
