"""What Ray's files on this node take, and who owns the place that a Ray without options would use.

Standard library only; reads, removes nothing. Walks are bounded: a count that ends early says so.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from raytools.node.inspect_processes import user_name

DEFAULT_TEMP_DIR = "/tmp/ray"
_MOST_FILES = 20_000  # a count of so many takes about 0.1 s

Found = dict[str, Any]


def ray_files(temp_dir: str, root: str, living_session: str | None) -> Found:
    """Bytes of Ray's sessions and of its logs.

    Args:
        temp_dir: of this cluster's Ray.
        root: of this cluster.
        living_session: the directory of the session that runs now.

    Returns:
        `sessions`: `path` and `bytes` of each session that is over; `session_bytes` of the living one;
        `log_bytes` of `<root>/logs`; `complete`: whether all files were counted.
    """
    budget = _Budget(_MOST_FILES)
    living = os.path.realpath(living_session) if living_session else None
    try:
        sessions = sorted(path for path in Path(temp_dir).glob("session_*") if not path.is_symlink())
    except OSError:
        sessions = []
    return {
        "sessions": [
            {"path": str(path), "bytes": budget.bytes_below(str(path))}
            for path in sessions
            if os.path.realpath(path) != living
        ],
        "session_bytes": budget.bytes_below(living) if living else None,
        "log_bytes": budget.bytes_below(f"{root}/logs"),
        "complete": budget.left > 0,
    }


class _Budget:
    """Counts files, and stops when there are too many of them."""

    def __init__(self, files: int) -> None:
        self.left = files

    def bytes_below(self, directory: str) -> int:
        """What the files below a directory take on disk; what may not be read counts nothing."""
        total = 0
        for parent, _directories, names in os.walk(directory):
            for name in names:
                if self.left <= 0:
                    return total
                self.left -= 1
                try:
                    total += os.lstat(f"{parent}/{name}").st_blocks * 512
                except OSError:  # Ray has just rotated it
                    continue
        return total


def default_temp_dir(user: str | None, path: str = DEFAULT_TEMP_DIR) -> Found | None:
    """Owner and mode of the place where a Ray without options writes; None if nothing is there.

    Args:
        user: who would start one, the cluster's own user; None: whoever asks.
        path: that place.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    owner, mode = user_name(found.st_uid), stat.S_IMODE(found.st_mode)
    own = found.st_uid == os.getuid() if user is None else owner == user
    return {
        "path": path,
        "user": owner,
        "mode": mode,
        "directory": stat.S_ISDIR(found.st_mode),
        "usable": stat.S_ISDIR(found.st_mode) and (bool(mode & 0o002) or (own and bool(mode & 0o200))),
    }
