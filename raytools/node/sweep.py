"""Removes what a killed supervisor left: processes, groups, directories; the run's record becomes `lost`.

A holder's file names what to remove, and anybody may write one. So a sweep by root touches only what
belongs to the user that wrote the file, and only what carries the names that runs use.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat

from raytools.node import cgroup, locks
from raytools.node.cgroup_tree import group_processes
from raytools.node.plain import Plain
from raytools.node.record import LOST, Record, utc_now, write_json

RUN_NAME_PREFIX = "rt-run-"  # of a run's group and of its temporary directory
CALL_NAME_PREFIX = f"{RUN_NAME_PREFIX}call-"  # of the directory of a function's call; its maker's pid follows


class Swept(Plain):
    """One dead run that was cleaned up, or could not be (`problem`)."""

    run_id: str
    processes: int
    problem: str | None

    def describe(self) -> str:
        """One line for people."""
        if self.problem:
            return f"run {self.run_id}, whose supervisor was killed, could not be swept: {self.problem}"
        return f"swept run {self.run_id}, whose supervisor was killed ({self.processes} processes)"


def sweep() -> list[Swept]:
    """Cleans up after every dead run of this user (root: of all users)."""
    found = (_sweep_holder(holder, path) for holder, path in locks.stale())
    return [swept for swept in found if swept is not None]


def _sweep_holder(holder: locks.Holder, path: str) -> Swept | None:
    """Cleans up after one dead run; None where that is not ours to do, or another has done it by now."""
    try:
        owner = os.lstat(path).st_uid
    except FileNotFoundError:
        return None
    if os.getuid() not in (0, owner):
        return None  # its owner's next run does it, with the right to
    if holder.kind == locks.PINNED:  # it held CPUs, and its process took them along
        _unlink(path)
        return None
    try:
        processes = sum(_kill_group(d, owner) for d in holder.traces.get("cgroups", []))
        directories = [d for d in holder.traces.get("directories", []) if _belongs_to(d, owner)]
        left = [directory for directory in directories if not remove_tree(directory)]
        problem = f"{left[0]} cannot be removed" if left else _write_lost(holder, owner)
        _unlink(path)
    except OSError as error:
        if not os.path.lexists(path):
            return None
        return Swept(holder.run_id, 0, str(error))
    return Swept(holder.run_id, processes, problem)


def remove_tree(directory: str) -> bool:
    """Removes a run's directory and all in it, or whatever a program has put in its place.

    Most hold nothing but their token. For the others rm(1): it follows no links and goes to any depth, where
    shutil.rmtree stops at Python's limit of recursion.

    Returns:
        Whether it is gone.
    """
    try:
        _unlink(f"{directory}/token")
        os.rmdir(directory)
    except OSError:
        _run_quietly("rm", "-rf", "--", directory)
        if os.path.lexists(directory) and os.getuid() != 0:  # folders without permissions, as Go's cache has
            _run_quietly("chmod", "-R", "u+rwx", "--", directory)
            _run_quietly("rm", "-rf", "--", directory)
    return not os.path.lexists(directory)


def _run_quietly(*command: str) -> None:
    """subprocess.run would do, at 3 ms for its import."""
    quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    os.waitpid(os.posix_spawnp(command[0], command, os.environ, file_actions=quiet), 0)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _belongs_to(directory: str, owner: int) -> bool:
    """Whether this is a run's directory, made by that user."""
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(directory)
        named = os.path.basename(directory).startswith(RUN_NAME_PREFIX)
        return named and stat.S_ISDIR(status.st_mode) and status.st_uid == owner
    return False


def _kill_group(directory: str, owner: int) -> int:
    """Kills everything in one directory of a group and removes it; a v1 run has one per controller."""
    if not _belongs_to(directory, owner):
        return 0
    found, _left = cgroup.empty_group(
        lambda: group_processes(directory), lambda: cgroup.kill_directory(directory)
    )
    cgroup.remove_directory(directory)
    parent = os.path.dirname(directory)
    if os.path.basename(parent) == "raytools":
        with contextlib.suppress(OSError):  # other runs are still in it
            os.rmdir(parent)
    return found


def _write_lost(holder: locks.Holder, owner: int) -> str | None:
    """Turns the start record into `lost`, unless the supervisor had already written the end.

    Returns:
        Why that cannot be done, as where somebody has put something else there.
    """
    path = holder.record_path
    if path is None or not os.path.isfile(path) or os.path.islink(path) or os.lstat(path).st_uid != owner:
        return None
    try:
        with open(path) as file:
            record = Record.from_json(json.load(file))
        if record.outcome is None and record.run_id == holder.run_id:
            record.outcome = LOST
            record.message = "the supervisor vanished; swept by a later run"
            record.finished_at = utc_now()
            write_json(path, record.to_json())
    except (OSError, ValueError) as error:
        return f"its record {path} cannot be completed: {error}"
    return None


def sweep_calls() -> None:
    """Removes the directories of calls whose Ray worker was killed before its supervisor knew of them."""
    for name in os.listdir("/tmp"):
        pid = name[len(CALL_NAME_PREFIX) :].partition("-")[0] if name.startswith(CALL_NAME_PREFIX) else ""
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}") and _belongs_to(f"/tmp/{name}", os.getuid()):
            remove_tree(f"/tmp/{name}")
