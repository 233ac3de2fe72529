"""`raytools grant`: lets a plain user make cgroups for runs. Needs root, and is undone by `--revoke`.

cgroup v1 has no delegation of its own: a subtree of each controller is made and given to the user; it is
gone after a reboot. cgroup v2 with systemd delegates: a drop-in gives the user's service manager the
controllers, and runs get scopes from it. Lingering keeps that manager, and with it runs, beyond the logout.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import subprocess
import sys
from pathlib import Path

from raytools.errors import RaytoolsError
from raytools.node import cgroup
from raytools.node.apply import run
from raytools.node.cgroup_tree import UNIFIED, group_processes, locate_self
from raytools.node.cgroup_v1 import granted_folder, inherit_cpuset
from raytools.node.systemd_scope import SLICE

_DROP_IN = "/etc/systemd/system/user@{uid}.service.d/50-raytools.conf"
_DROP_IN_TEXT = "# written by: raytools grant{lingering}\n[Service]\nDelegate=cpuset cpu memory pids\n"
_LINGERS = ", which enabled lingering"
_OWNED_FILES = ("cgroup.procs", "tasks")


def grant(user: str) -> list[str]:
    """Gives the user the right to make groups; returns what was done, a line each.

    Raises:
        RaytoolsError: not root, no such user, or no cgroup hierarchy that can be given away.
    """
    account = _account(user, "")
    if tops := _v1_mount_points():
        return [_give(top, name, account) for name, top in tops.items()]
    if Path("/run/systemd/system").is_dir():
        return _delegate(account)
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
    account = _account(user, " --revoke")
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
    return [*done, *_take_back(account)]


def _delegate(account: pwd.struct_passwd) -> list[str]:
    drop_in = Path(_DROP_IN.format(uid=account.pw_uid))
    lingered = Path(f"/var/lib/systemd/linger/{account.pw_name}").exists()
    already = drop_in.exists() and _LINGERS in drop_in.read_text()
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(_DROP_IN_TEXT.format(lingering="" if lingered and not already else _LINGERS))
    run(["systemctl", "daemon-reload"])
    done = [f"wrote {drop_in}"]
    if not lingered:
        run(["loginctl", "enable-linger", account.pw_name])
        done.append(f"{account.pw_name}'s service manager now runs without a login (loginctl enable-linger)")
    if not _reexecute_manager(account):
        # lingering starts it some time later, or not before the next boot: who was told "granted" runs now
        run(["systemctl", "start", f"user@{account.pw_uid}.service"])
    return done


def _take_back(account: pwd.struct_passwd) -> list[str]:
    drop_in = Path(_DROP_IN.format(uid=account.pw_uid))
    if not drop_in.exists():
        return []
    _require_no_scopes(account)
    lingers = _LINGERS in drop_in.read_text()
    drop_in.unlink()
    with contextlib.suppress(OSError):  # somebody else has a drop-in there
        drop_in.parent.rmdir()
    run(["systemctl", "daemon-reload"])
    done = [f"removed {drop_in}"]
    if lingers:
        run(["loginctl", "disable-linger", account.pw_name])
        done.append("disabled lingering")
    _reexecute_manager(account)
    return done


def _require_no_scopes(account: pwd.struct_passwd) -> None:
    """Without lingering the user's manager ends, and its scopes with it."""
    top = locate_self().tops[UNIFIED]
    user = f"{top}/user.slice/user-{account.pw_uid}.slice/user@{account.pw_uid}.service/{SLICE}"
    scopes = sorted(os.listdir(user)) if os.path.isdir(user) else []
    for name in scopes:
        if name.startswith("raytools-") and group_processes(f"{user}/{name}"):
            raise RaytoolsError(
                f"{name} of {account.pw_name} is a run that goes on",
                expected=f"no runs of {account.pw_name}",
                fix="See them with: raytools slots",
            )


def _reexecute_manager(account: pwd.struct_passwd) -> bool:
    """A running manager learns of new controllers only so; sessions and scopes survive it.

    Returns:
        Whether it runs.
    """
    unit = f"user@{account.pw_uid}.service"
    running = subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0
    if running:
        run(["systemctl", "kill", "--kill-whom=main", "--signal=RTMIN+25", unit])
    return running


def _account(user: str, option: str) -> pwd.struct_passwd:
    if os.geteuid() != 0:
        raise RaytoolsError(
            "not root", expected="root", fix=f"Run: sudo raytools grant --user {user}{option}"
        )
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


def main(argv: list[str]) -> int:
    """`python -m raytools.node grant --user NAME [--revoke]`, as root: on a node, which has no `raytools`.

    On cgroup v1 the Ray unit does it too; on v2 its own `Delegate=` is what makes groups possible.
    """
    parser = argparse.ArgumentParser(prog="python -m raytools.node grant", description=main.__doc__)
    parser.add_argument("--user", required=True)
    parser.add_argument("--revoke", action="store_true")
    options = parser.parse_args(argv)
    try:
        for line in revoke(options.user) if options.revoke else grant(options.user):
            print(line)
    except RaytoolsError as error:
        print(f"grant: {error}", file=sys.stderr)
        return error.exit_code
    return 0
