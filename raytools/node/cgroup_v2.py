"""cgroup v2: one directory with all controllers.

Runs need a place where this process may make groups and where no process sits directly (the kernel's
no-internal-process rule): beside the leaf `main` that a delegated unit moves itself into, or, for root,
`raytools.slice` at the top. Files: the kernel's admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from raytools.errors import RefusedError
from raytools.node import cgroup
from raytools.node.cgroup import GroupLimits, GroupUsage

MAIN_LEAF = "main"  # where a delegated unit's own processes live
_TOP_FOLDER = "raytools.slice"
_NEEDED = ("cpuset", "cpu", "memory", "pids")


def open_driver() -> DriverV2:
    """A driver at the place where this process may make groups.

    Raises:
        RefusedError: there is none, or controllers are not delegated to it.
    """
    mount = cgroup.unified_mount()
    if mount is None:
        raise RefusedError("no cgroup v2 hierarchy is mounted", expected="one at /sys/fs/cgroup")
    own = cgroup.own_path(mount, "")
    if own.name == MAIN_LEAF:
        parent = own.parent
    elif os.getuid() == 0:
        parent = mount.mount_point / _TOP_FOLDER
        _delegate(mount.mount_point)
        parent.mkdir(exist_ok=True)
    else:
        raise RefusedError(
            f"cgroup v2: {own} is not delegated to this user",
            expected="a delegated unit whose processes sit in its leaf 'main'",
            fix=f"Allow it once with: {cgroup.grant_command()}",
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RefusedError(
            f"cgroup v2: no permission to make a group below {parent}",
            expected="a unit with Delegate=cpuset cpu memory pids",
            fix=f"Allow it once with: {cgroup.grant_command()}",
        )
    _delegate(parent)
    return DriverV2(parent)


def _delegate(parent: Path) -> None:
    """Passes the controllers on to the groups below.

    Raises:
        RefusedError: a controller does not reach this group, or processes sit directly in it.
    """
    available = (parent / "cgroup.controllers").read_text().split()
    if lacking := [name for name in _NEEDED if name not in available]:
        raise RefusedError(
            f"cgroup v2: the controllers {' '.join(lacking)} do not reach {parent}",
            expected=f"{' '.join(_NEEDED)} in {parent / 'cgroup.controllers'}",
            fix=f"Allow it once with: {cgroup.grant_command()}",
        )
    cgroup.write_limit(parent / "cgroup.subtree_control", " ".join(f"+{name}" for name in _NEEDED))


class DriverV2:
    """Makes groups below one directory."""

    kind = "cgroup-v2"

    def __init__(self, parent: Path) -> None:
        self._parent = parent

    def paths(self, name: str) -> list[Path]:
        return [self._parent / name]

    def create(self, name: str, limits: GroupLimits) -> GroupV2:
        directory = self._parent / name
        directory.mkdir()
        try:
            group = GroupV2(directory)
            group.limit(limits)
        except BaseException:
            cgroup.remove_directory(directory)
            raise
        return group

    def adopt(self, name: str) -> GroupV2:
        return GroupV2(self._parent / name)


class GroupV2:
    """One run's directory."""

    kind = "cgroup-v2"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.missing: list[str] = []
        # cgroup.kill came with Linux 5.14
        self.kill_method = "cgroup.kill" if (directory / "cgroup.kill").exists() else "freezer"

    def limit(self, limits: GroupLimits) -> None:
        """Sets all limits; a file that the kernel refuses is named in the error."""
        cgroup.write_limit(self._directory / "cpuset.cpus", ",".join(map(str, limits.cpus)))
        cgroup.write_limit(self._directory / "memory.max", str(limits.memory_bytes))
        if (self._directory / "memory.swap.max").exists():  # absent where the kernel has no swap accounting
            cgroup.write_limit(self._directory / "memory.swap.max", "0")
        cgroup.write_limit(self._directory / "memory.oom.group", "1")
        cgroup.write_limit(self._directory / "pids.max", str(limits.pids))

    def add(self, pid: int) -> None:
        cgroup.write_limit(self._directory / "cgroup.procs", str(pid))

    def processes(self) -> list[int]:
        return cgroup.group_processes(self._directory)

    def kill(self) -> None:
        cgroup.kill_directory(self._directory)

    def oom_descriptor(self) -> int | None:
        return None  # memory.oom.group kills the whole group: the main process' end tells

    def usage(self) -> GroupUsage:
        cpu = cgroup.read_pairs(self._directory / "cpu.stat")
        memory = cgroup.read_pairs(self._directory / "memory.stat")
        return GroupUsage(
            cpu_s=_seconds(cpu.get("usage_usec")),
            memory_peak_bytes=cgroup.read_number(self._directory / "memory.peak"),  # since Linux 5.19
            anon_bytes=memory.get("anon"),
            oom_kills=cgroup.read_pairs(self._directory / "memory.events").get("oom_kill"),
            throttled_s=_seconds(cpu.get("throttled_usec", 0)),
            swap_in_bytes=None,
            cpu_pressure_s=_pressure_s(self._directory / "cpu.pressure"),
        )

    def remove(self) -> None:
        cgroup.remove_directory(self._directory)


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds * 1e-6


def _pressure_s(path: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(path.read_text().splitlines()[0].rsplit("total=", 1)[1]) * 1e-6
    return None
