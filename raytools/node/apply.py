"""Files of the system and the commands that make them count, in one call: `python -m raytools.node apply`.

As tasks of Ansible each file costs three round trips and each command one; a node that is slow, or far away,
takes a minute for what is done here in a second. Standard input is a JSON object:

    files      path -> content; root's, readable by all
    if_changed argument lists, run if a file was written; they may fail: what they end need not be there
    commands   argument lists, run in any case, after those
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError

_MODE = 0o644


def apply(request: Mapping[str, Any]) -> list[str]:
    """Does all of it; stops at the first of `commands` that fails.

    Args:
        request: as above.

    Returns:
        The paths of the files that were not as they should be.

    Raises:
        RaytoolsError: one of `commands` failed, or is not there.
        OSError: a file cannot be written.
    """
    written = [path for path, text in request["files"].items() if write_file(Path(path), text, _MODE)]
    for command in request.get("if_changed", []) if written else []:
        with contextlib.suppress(RaytoolsError):
            run(command)
    for command in request.get("commands", []):
        run(command)
    return written


def write_file(path: Path, text: str, mode: int) -> bool:
    """A file of root's says this, whole or not at all; False if it did already.

    Raises:
        OSError: it cannot be written.
    """
    data = text.encode()
    try:
        found = os.lstat(path)
        if (
            stat.S_ISREG(found.st_mode)
            and (stat.S_IMODE(found.st_mode), found.st_uid) == (mode, os.getuid())
            and path.read_bytes() == data
        ):
            return False
    except FileNotFoundError:
        pass
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as new:
        os.fchmod(new.fileno(), mode)  # whatever the umask took away
        new.write(data)
        os.fsync(new.fileno())
    beside.replace(path)
    return True


def run(command: Sequence[str]) -> str:
    """What it says on standard output.

    Raises:
        RaytoolsError: it failed, or is not there.
    """
    shown = " ".join(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RaytoolsError(f"{shown} could not be started: {error.strerror}") from error
    if done.returncode != 0:
        raise RaytoolsError(
            f"{shown} failed: {done.stderr.strip() or f'exit code {done.returncode}'}",
            expected="the system to do what root asks",
        )
    return done.stdout.strip()


def main(argv: list[str]) -> int:
    """0 with `{"changed": …, "written": […]}` on standard output; 1 with the reason on standard error."""
    if argv:
        print("apply: takes no arguments, only a request on standard input", file=sys.stderr)
        return 2
    try:
        written = apply(json.load(sys.stdin))
    except (RaytoolsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"changed": bool(written), "written": written}))
    return 0
