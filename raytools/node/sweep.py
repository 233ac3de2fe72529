"""Removes what a killed supervisor left: processes, groups, directories; the run's record becomes `lost`.

A holder's file names what to remove, and anybody may write one. So a sweep by root touches only what
belongs to the user that wrote the file, and only what carries the names that runs use.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from raytools.node import cgroup, locks
from raytools.node.record import LOST, Record, utc_now, write_json

RUN_NAME_PREFIX = "rt-run-"  # of a run's group and of its temporary directory


@dataclass(frozen=True)
class Swept:
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
    swept = []
    for holder, path in locks.stale():
        owner = path.lstat().st_uid
        if os.getuid() not in (0, owner):
            continue  # its owner's next run does it, with the right to
        try:
            processes = sum(_kill_group(Path(d), owner) for d in holder.traces.get("cgroups", []))
            for directory in holder.traces.get("directories", []):
                if _belongs_to(Path(directory), owner):
                    shutil.rmtree(directory)
            _write_lost(holder, owner)
            path.unlink(missing_ok=True)
            swept.append(Swept(holder.run_id, processes, None))
        except OSError as error:
            swept.append(Swept(holder.run_id, 0, str(error)))
    return swept


def _belongs_to(directory: Path, owner: int) -> bool:
    """Whether this is a run's directory, made by that user."""
    with contextlib.suppress(FileNotFoundError):
        status = directory.lstat()
        named = directory.name.startswith(RUN_NAME_PREFIX)
        return named and stat.S_ISDIR(status.st_mode) and status.st_uid == owner
    return False


def _kill_group(directory: Path, owner: int) -> int:
    """Kills everything in one directory of a group and removes it; a v1 run has one per controller."""
    if not _belongs_to(directory, owner):
        return 0
    found, _left = cgroup.empty_group(_Directory(directory))
    cgroup.remove_directory(directory)
    with contextlib.suppress(OSError):  # other runs are still in it
        directory.parent.rmdir()
    return found


class _Directory:
    """A group as far as sweeping needs it: processes in one directory of whatever hierarchy."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def processes(self) -> list[int]:
        return cgroup.group_processes(self._directory)

    def kill(self) -> None:
        cgroup.kill_directory(self._directory)


def _write_lost(holder: locks.Holder, owner: int) -> None:
    """Turns the start record into `lost`, unless the supervisor had already written the end."""
    path = Path(holder.record_path) if holder.record_path else None
    if path is None or not path.is_file() or path.is_symlink() or path.lstat().st_uid != owner:
        return
    record = Record.from_json(json.loads(path.read_text()))
    if record.outcome is None and record.run_id == holder.run_id:
        record.outcome = LOST
        record.message = "the supervisor vanished; swept by a later run"
        record.finished_at = utc_now()
        write_json(path, record.to_json())
