"""`raytools grant`: lets a plain user make cgroups for runs. Needs root, and is undone by `--revoke`.

cgroup v1 has no delegation of its own: a subtree of each controller is made and given to the user; it is
gone after a reboot. cgroup v2 with systemd delegates: a drop-in adds the controllers to user sessions.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from pathlib import Path

from raytools.errors import RaytoolsError
from raytools.node import cgroup
from raytools.node.cgroup_tree import locate_self
from raytools.node.cgroup_v1 import granted_folder, inherit_cpuset

_DROP_IN = Path("/etc/systemd/system/user@.service.d/50-raytools.conf")
_DROP_IN_TEXT = "# written by: raytools grant\n[Service]\nDelegate=cpuset cpu memory pids\n"
_OWNED_FILES = ("cgroup.procs", "tasks")


def grant(user: str) -> list[str]:
    """Gives the user the right to make groups; returns what was done, a line each.

    Raises:
        RaytoolsError: not root, no such user, or no cgroup hierarchy that can be given away.
    """
    account = _account(user)
    if tops := _v1_mount_points():
        return [_give(top, name, account) for name, top in tops.items()]
    if Path("/run/systemd/system").is_dir():
        _DROP_IN.parent.mkdir(parents=True, exist_ok=True)
        _DROP_IN.write_text(_DROP_IN_TEXT)
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        return [f"wrote {_DROP_IN}", f"{user} has to log in again for it to take effect"]
    raise RaytoolsError(
        "this machine has neither cgroup v1 controllers nor cgroup v2 under systemd",
        expected="one of them",
        fix="Accept less: --enforce best-effort",
    )


def revoke(user: str) -> list[str]:
    """Takes the right away again; returns what was done, a line each.

    Raises:
        RaytoolsError: not root, no such user, or runs of that user are still there.
    """
    account = _account(user)
    done = []
    for name, top in _v1_mount_points().items():
        folder = f"{top}/{granted_folder(account.pw_uid)}"
        if os.path.isdir(folder):
            try:
                cgroup.remove_directory(folder)
            except OSError as error:
                raise RaytoolsError(
                    f"{folder} is in use: {error.strerror}",
                    expected=f"no runs of {user}",
                    fix="See them with: raytools slots",
                ) from error
            done.append(f"{name}: removed {folder}")
    if _DROP_IN.exists():
        _DROP_IN.unlink()
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        done.append(f"removed {_DROP_IN}")
    return done


def _account(user: str) -> pwd.struct_passwd:
    if os.geteuid() != 0:
        raise RaytoolsError("not root", expected="root", fix=f"Run: sudo raytools grant --user {user}")
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise RaytoolsError(f"found no user {user!r} on this machine", expected="an existing user") from None


def _v1_mount_points() -> dict[str, str]:
    """Controller -> mount point of cgroup v1; {} where runs use v2."""
    groups = locate_self()
    if not groups.version("memory") == groups.version("cpuset") == 1:
        return {}
    return {name: groups.tops[name] for name in cgroup.CONTROLLERS if groups.version(name) == 1}


def _give(top: str, controller: str, account: pwd.struct_passwd) -> str:
    folder = f"{top}/{granted_folder(account.pw_uid)}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
    if controller == "cpuset":
        inherit_cpuset(folder)
    # limits of the folder itself stay root's: the user divides what is there, but cannot widen it
    for path in (folder, *(f"{folder}/{name}" for name in _OWNED_FILES)):
        os.chown(path, account.pw_uid, account.pw_gid)
    return f"{controller}: {folder} belongs to {account.pw_name}"
