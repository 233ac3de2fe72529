"""cgroup v1: one directory per controller under the same name.

v1 has neither cgroup.kill nor memory.oom.group: the group is frozen, everything in it gets SIGKILL, then it
is thawed; and memory.oom_control tells by an eventfd when the limit killed something.
Files: the kernel's admin-guide/cgroup-v1/{memory,cpusets,pids,freezer-subsystem,cpuacct}.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from signal import SIGKILL

from raytools.errors import RefusedError
from raytools.node import cgroup
from raytools.node.cgroup import GroupLimits, GroupUsage, Mount

_EFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK  # EFD_CLOEXEC and EFD_NONBLOCK have these values
_FOLDER = "raytools"  # our directory below the own group: groups of runs are its children


def granted_folder(uid: int) -> str:
    """The name of the subtree that `raytools grant` makes for a user, at the root of each hierarchy."""
    return f"raytools-user-{uid}"


def open_driver(mounts: Mapping[str, Mount]) -> DriverV1:
    """A driver at the first place where this process may make groups: below its own, else where granted.

    Raises:
        RefusedError: neither is allowed.
    """
    used = {name: mounts[name] for name in cgroup.CONTROLLERS if name in mounts}
    own = {name: cgroup.own_path(mount, name) / _FOLDER for name, mount in used.items()}
    granted = {name: mount.mount_point / granted_folder(os.getuid()) for name, mount in used.items()}
    for parents in (own, granted):
        if all(_may_make(path) for path in parents.values()):
            return DriverV1(parents)
    denied = next(name for name, path in own.items() if not _may_make(path))
    raise RefusedError(
        f"cgroup v1 controller {denied}: no permission to make a group below {own[denied].parent}",
        expected="a group of the own user's (v1 delegates nothing by itself)",
        fix=f"Allow it once with: {cgroup.grant_command()}",
    )


def _may_make(parent: Path) -> bool:
    existing = parent if parent.is_dir() else parent.parent
    return os.access(existing, os.W_OK | os.X_OK)


class DriverV1:
    """Makes groups below one directory of each controller."""

    kind = "cgroup-v1"

    def __init__(self, parents: Mapping[str, Path]) -> None:
        self._parents = dict(parents)

    def paths(self, name: str) -> list[Path]:
        # the freezer first: a sweep that freezes before it kills cannot be outrun
        ordered = sorted(self._parents, key=lambda controller: controller != "freezer")
        return [self._parents[controller] / name for controller in ordered]

    def create(self, name: str, limits: GroupLimits) -> GroupV1:
        with contextlib.ExitStack() as undo:
            directories = {}
            for controller, parent in self._parents.items():
                _make_parent(controller, parent)
                directory = parent / name
                directory.mkdir()
                undo.callback(cgroup.remove_directory, directory)
                directories[controller] = directory
            group = GroupV1(directories)
            group.limit(limits)
            undo.pop_all()
            return group

    def adopt(self, name: str) -> GroupV1:
        return GroupV1({c: parent / name for c, parent in self._parents.items() if (parent / name).is_dir()})


def _make_parent(controller: str, parent: Path) -> None:
    with contextlib.suppress(FileExistsError):
        parent.mkdir()
    if controller == "cpuset":
        inherit_cpuset(parent)


def inherit_cpuset(directory: Path) -> None:
    """Gives a new cpuset what its parent has: it starts empty, and an empty one takes no processes."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not (directory / file).read_text().strip():
            cgroup.write_limit(directory / file, _effective(directory.parent, file))


def _effective(directory: Path, file: str) -> str:
    for name in (file.replace("cpuset.", "cpuset.effective_"), file):
        with contextlib.suppress(FileNotFoundError):
            if text := (directory / name).read_text().strip():
                return text
    return "0"


class GroupV1:
    """One run's directories, by controller."""

    kind = "cgroup-v1"

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._directories = dict(directories)
        self.kill_method = "freezer" if "freezer" in directories else "signals"
        self.missing = [] if "pids" in directories else ["pids: this machine has no pids controller"]
        self._oom_event: int | None = None

    def limit(self, limits: GroupLimits) -> None:
        """Sets all limits; a file that the kernel refuses is named in the error."""
        cpuset, memory = self._directories["cpuset"], self._directories["memory"]
        cgroup.write_limit(cpuset / "cpuset.mems", _effective(cpuset.parent, "cpuset.mems"))
        cgroup.write_limit(cpuset / "cpuset.cpus", ",".join(map(str, limits.cpus)))
        cgroup.write_limit(memory / "memory.limit_in_bytes", str(limits.memory_bytes))
        if (memory / "memory.memsw.limit_in_bytes").exists():
            # memory + swap = memory: no swap at all
            cgroup.write_limit(memory / "memory.memsw.limit_in_bytes", str(limits.memory_bytes))
        else:
            cgroup.write_limit(memory / "memory.swappiness", "0")
        if "pids" in self._directories:
            cgroup.write_limit(self._directories["pids"] / "pids.max", str(limits.pids))

    def add(self, pid: int) -> None:
        for directory in self._directories.values():
            cgroup.write_limit(directory / "cgroup.procs", str(pid))

    def processes(self) -> list[int]:
        # a process can only be in all of them or, half moved by a dying supervisor, in some
        return sorted({pid for d in self._directories.values() for pid in cgroup.group_processes(d)})

    def kill(self) -> None:
        freezer = self._directories.get("freezer")
        if freezer is not None:
            cgroup.kill_directory(freezer)
        # all of them without a freezer; with one, those that a dying supervisor had moved only half-way
        cgroup.signal_all(self.processes(), SIGKILL)

    def oom_descriptor(self) -> int | None:
        if self._oom_event is None:
            memory = self._directories["memory"]
            event = ctypes.CDLL(None, use_errno=True).eventfd(0, _EFD_FLAGS)
            if event < 0:
                raise OSError(ctypes.get_errno(), "eventfd")
            control = os.open(memory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                cgroup.write_limit(memory / "cgroup.event_control", f"{event} {control}")
            finally:
                os.close(control)
            self._oom_event = event
        return self._oom_event

    def usage(self) -> GroupUsage:
        memory = self._directories["memory"]
        statistics = cgroup.read_pairs(memory / "memory.stat")
        return GroupUsage(
            cpu_s=_scaled(self._directories.get("cpuacct"), "cpuacct.usage", 1e-9),
            memory_peak_bytes=cgroup.read_number(memory / "memory.max_usage_in_bytes"),
            anon_bytes=statistics.get("total_rss"),
            oom_kills=cgroup.read_pairs(memory / "memory.oom_control").get("oom_kill"),
            throttled_s=0.0,  # no CPU quota is set: cpuset alone never throttles
            swap_in_bytes=None,  # v1 counts it per machine only; the supervisor reads /proc/vmstat
            cpu_pressure_s=None,
        )

    def remove(self) -> None:
        if self._oom_event is not None:
            os.close(self._oom_event)
            self._oom_event = None
        for directory in self._directories.values():
            cgroup.remove_directory(directory)
            with contextlib.suppress(OSError):  # other runs are still below it, or it is the granted one
                if directory.parent.name == _FOLDER:
                    directory.parent.rmdir()


def _scaled(directory: Path | None, file: str, factor: float) -> float | None:
    value = cgroup.read_number(directory / file) if directory is not None else None
    return None if value is None else value * factor
