"""What a role has put on this node, and what it looked like then: the next run can pass it over.

A stamp, `<root>/stamps/<role>.json`, holds a digest of the role's inputs and one observation per thing the
role has made: a path, an account, a kernel setting. It is written last. A role whose inputs are the same and
whose things look as they did has nothing to do; anything else runs its tasks again, all of them idempotent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pwd
import stat
import sys
from pathlib import Path
from typing import Any

_READ_BYTES = 1 << 20  # what a role writes is small; of more, size and time must do


def observe(thing: str) -> list[Any] | None:
    """What a thing looks like now; None if it is not there.

    Args:
        thing: an absolute path, `user:NAME` or `sysctl:KEY`.
    """
    kind, _, name = thing.partition(":")
    if kind == "user":
        return _account(name)
    if kind == "sysctl":
        return _setting(name)
    return _path(thing)


def _account(name: str) -> list[Any] | None:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return [found.pw_uid, found.pw_gid, found.pw_dir, found.pw_shell]


def _setting(key: str) -> list[Any] | None:
    try:
        return [" ".join(Path("/proc/sys", *key.split(".")).read_text().split())]
    except OSError:
        return None


def _path(path: str) -> list[Any] | None:
    try:
        found = os.lstat(path)
        owner = [stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid]
        if stat.S_ISLNK(found.st_mode):
            return ["link", os.readlink(path)]
        if stat.S_ISDIR(found.st_mode):
            return ["directory", *owner]
        if not stat.S_ISREG(found.st_mode):  # reading a FIFO would wait for its writer
            return ["other", stat.S_IFMT(found.st_mode), *owner]
        if found.st_size > _READ_BYTES:
            return ["file", *owner, found.st_size, found.st_mtime_ns]
        return ["file", *owner, hashlib.sha256(Path(path).read_bytes()).hexdigest()]
    except OSError:
        return None


def write(root: Path, name: str, inputs: str, things: list[str]) -> None:
    """Remembers that the role `name` was applied with these inputs and made these things."""
    directory = root / "stamps"
    directory.mkdir(mode=0o755, exist_ok=True)
    path = directory / f"{name}.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"inputs": inputs, "things": {thing: observe(thing) for thing in things}}))
    new.replace(path)


def read_all(root: Path) -> dict[str, dict[str, Any]]:
    """Role -> its inputs, and which of its things are not as they were."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((root / "stamps").glob("*.json")):
        try:
            stamp = json.loads(path.read_text())
            drifted = [thing for thing, seen in stamp["things"].items() if observe(thing) != seen]
            found[path.stem] = {"inputs": stamp["inputs"], "drifted": drifted}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # as if it were not there: the role runs again
    return found


def main(argv: list[str]) -> int:
    """`python -m raytools.node stamp --root DIR --name ROLE --inputs DIGEST [THING ...]`."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node stamp", description=__doc__)
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--inputs", required=True)
    parser.add_argument("things", nargs="*")
    options = parser.parse_args(argv)
    try:
        write(options.root, options.name, options.inputs, options.things)
    except OSError as error:
        print(f"stamp: {options.root}/stamps cannot be written ({error.strerror})", file=sys.stderr)
        return 1
    return 0
