"""What is mounted at a directory, and whether it answers. Reads only.

A dead NFS server keeps whoever asks for a file waiting for ever, so another process asks, for a limited time.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

ANSWER_WAIT_S = 5.0
# Who asks first after a start waits until it is mounted: the kernel's modules are read, the server is spoken
# to. 12 s were seen on an emulated machine.
MOUNT_WAIT_S = 20.0
MOUNT_TABLE = Path("/proc/self/mountinfo")


def look(path: str) -> dict[str, Any]:
    """A directory as storage: `directory`, `owner`, whether it is `stalled`, what is mounted exactly there.

    Args:
        path: absolute; an automounter there is made to mount.
    """
    wait_s = MOUNT_WAIT_S if _is_to_be_mounted(path) else None
    seen = kind_and_owner(f"{path}/.", wait_s)  # by itself, `stat` asks no automounter (AT_NO_AUTOMOUNT)
    source, filesystem = mount_at(path)
    return {
        "path": path,
        "directory": isinstance(seen, tuple) and seen[0] == "directory",
        "stalled": seen == "stalled",
        "mounted": source is not None,
        "source": source,
        "filesystem": filesystem,
    }


def kind_and_owner(path: str, wait_s: float | None = None) -> tuple[str, str] | Literal["stalled"] | None:
    """What `stat` says of a path; None if it is not there, `stalled` if nobody answers in time.

    Args:
        path: of anything.
        wait_s: how long to wait for the answer, in seconds; by default what a mounted one gets.
    """
    command = ["stat", "--format=%F:%U", path]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=ANSWER_WAIT_S if wait_s is None else wait_s,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return "stalled"
    if done.returncode != 0:
        return None
    kind, _, owner = done.stdout.strip().rpartition(":")
    return kind, owner


def _is_to_be_mounted(path: str) -> bool:
    """Whether an automounter is there that has not mounted yet."""
    return {filesystem for point, _, filesystem in _mounts() if point == path} == {"autofs"}


def mount_at(path: str) -> tuple[str | None, str | None]:
    """Source and type of the last filesystem mounted exactly there, but for an automounter's own."""
    found: tuple[str | None, str | None] = (None, None)
    for point, source, filesystem in _mounts():
        if point == path and filesystem != "autofs":
            found = (source, filesystem)
    return found


def filesystem_of(path: str) -> str | None:
    """The type of the file system that a path lies on, such as `ext4` or `nfs4`; the path is not touched."""
    found: tuple[int, str | None] = (-1, None)
    for point, _, filesystem in _mounts():
        covers = path == point or path.startswith(point.rstrip("/") + "/")
        if covers and len(point) >= found[0] and filesystem != "autofs":  # of equal ones, the last
            found = (len(point), filesystem)
    return found[1]


def _mounts() -> Iterator[tuple[str, str, str]]:
    """Of each mount: where, its source, its type; proc_pid_mountinfo(5)."""
    for line in MOUNT_TABLE.read_text().splitlines():
        fields, _, end = line.partition(" - ")
        filesystem, source = end.split(" ")[:2]
        yield _unescaped(fields.split(" ")[4]), _unescaped(source), filesystem


def _unescaped(text: str) -> str:
    for letter in " \t\n\\":
        text = text.replace(f"\\{ord(letter):03o}", letter)
    return text
