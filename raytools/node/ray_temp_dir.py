"""Ray's temp dir on a node: made before Ray starts, ours alone, cleaned after it has stopped.

`ray start`, and every worker it starts, open the temp dir to everybody (Ray's _private/node.py). So it lies
in a directory of ours that stays closed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import stat
from pathlib import Path

from raytools.errors import RaytoolsError

KEPT_SESSIONS = 3  # sessions whose logs stay
_STARTED_MARK = "ray_current_cluster"


def temp_dir_of(root: str | Path) -> str:
    """The temp dir that belongs to a root: short, because Ray's sockets below it allow 107 bytes in all."""
    return f"/tmp/rt-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}/ray"


def make(root: Path, temp_dir: Path) -> None:
    """The temp dir exists in a directory that is ours alone, and `<root>/ray` leads to it.

    Raises:
        RaytoolsError: something else has taken that directory's name.
    """
    private = temp_dir.parent
    with contextlib.suppress(FileExistsError):
        private.mkdir(mode=0o700)
    found = private.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        kind = "directory" if stat.S_ISDIR(found.st_mode) else "file or link"
        raise RaytoolsError(
            f"{private} is a {kind} of user {name_of(found.st_uid)}",
            expected=f"a directory of user {name_of(os.geteuid())} (Ray's sockets and logs go there)",
            fix=f"If nobody needs it: sudo rm -rf {private}",
        )
    if found.st_mode & stat.S_ISVTX:  # /tmp itself, in a plan of another version: everybody needs it open
        raise RaytoolsError(
            f"{private}, where node.json puts Ray's temp dir, is shared by all users",
            expected=str(temp_dir_of(root)),
            fix="Write the plan again: ansible-playbook playbooks/node.yml",
        )
    private.chmod(0o700)
    temp_dir.mkdir(exist_ok=True)
    (temp_dir / _STARTED_MARK).unlink(missing_ok=True)
    link = root / "ray"  # where Ray's user may not write, the playbook has made it
    if not link.is_symlink() or link.readlink() != temp_dir:
        link.unlink(missing_ok=True)
        link.symlink_to(temp_dir)


def start_is_complete(temp_dir: Path) -> bool:
    """Whether `ray start` has completed since `make`: the last thing it does is to write its address."""
    return (temp_dir / _STARTED_MARK).exists()


def clean(temp_dir: Path) -> None:
    """Leaves only the logs of the last sessions: sockets, spilled objects and uploads are of no more use."""
    if not temp_dir.is_dir() or temp_dir.lstat().st_uid != os.geteuid():
        return
    (temp_dir / _STARTED_MARK).unlink(missing_ok=True)
    sessions = sorted(path for path in temp_dir.glob("session_*") if not path.is_symlink())
    for session in sessions[:-KEPT_SESSIONS]:
        shutil.rmtree(session)
    for session in sessions[-KEPT_SESSIONS:]:
        for entry in session.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                if entry.name != "logs":
                    shutil.rmtree(entry)
            else:
                entry.unlink()


def name_of(uid: int) -> str:
    """A user's name, or `uid N` where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
