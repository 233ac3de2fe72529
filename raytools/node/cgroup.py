"""cgroups: what a driver has to offer, which one this machine allows, and why if it allows none.

The kernel's two interfaces differ in files, not in what we need: create a group with limits, put a process
in, read what it used, kill everything in it, remove it. `cgroup_v1` and `cgroup_v2` hold just that.
Documents: the kernel's admin-guide/cgroup-v1/ and admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Protocol

from raytools.errors import RefusedError

# v1 keeps one tree per controller; these are the ones a run is put into, in this order
CONTROLLERS = ("memory", "cpuset", "pids", "freezer", "cpuacct")


@dataclass(frozen=True)
class GroupLimits:
    """What a group may take. `cpus` are kernel CPU numbers."""

    cpus: tuple[int, ...]
    memory_bytes: int
    pids: int


@dataclass(frozen=True)
class GroupUsage:
    """What a group took so far; None where this kernel does not tell."""

    cpu_s: float | None
    memory_peak_bytes: int | None
    anon_bytes: int | None
    oom_kills: int | None
    throttled_s: float | None
    swap_in_bytes: int | None
    cpu_pressure_s: float | None


class Group(Protocol):
    """One cgroup with limits, or on v1 one per controller under the same name."""

    kind: str  # cgroup-v1 | cgroup-v2
    kill_method: str  # cgroup.kill | freezer | signals
    missing: list[str]  # limits that this kernel could not set, each with its reason

    def add(self, pid: int) -> None:
        """Moves one process in."""

    def processes(self) -> list[int]:
        """Every process inside, also in groups below."""

    def kill(self) -> None:
        """Sends SIGKILL to everything inside once; `empty_group` repeats until nothing is left."""

    def oom_descriptor(self) -> int | None:
        """A descriptor that polls readable when the memory limit killed something; None if there is none."""

    def usage(self) -> GroupUsage:
        """What it used so far."""

    def remove(self) -> None:
        """Removes the empty group."""


class Driver(Protocol):
    """Creates groups at the one place where this process may."""

    kind: str

    def paths(self, name: str) -> list[Path]:
        """The directories that `create(name)` will make: noted down before they exist, for the sweep."""

    def create(self, name: str, limits: GroupLimits) -> Group:
        """Makes a group and sets its limits; undoes every step when a later one fails.

        Raises:
            RefusedError: with the cause and the command that allows it.
        """

    def adopt(self, name: str) -> Group:
        """The group of that name as an earlier process left it, for sweeping."""


def select_driver() -> Driver:
    """The driver for the place this process runs at.

    Raises:
        RefusedError: no cgroup can be made here; the message says why and what to do.
    """
    from raytools.node import cgroup_v1, cgroup_v2

    mounts = mounted_controllers()
    if "memory" in mounts and "cpuset" in mounts:
        return cgroup_v1.open_driver(mounts)
    if unified_mount() is not None:
        return cgroup_v2.open_driver()
    raise RefusedError(
        "no cgroup hierarchy with the controllers memory and cpuset is mounted",
        expected="cgroup v2 at /sys/fs/cgroup, or v1 with memory and cpuset",
        fix="Run on the host or in a container that has cgroups, or accept less: --enforce best-effort",
    )


@dataclass(frozen=True)
class Mount:
    """A mounted hierarchy: where it is, and which part of it (`root`) is visible there."""

    mount_point: Path
    root: str


def _cgroup_mounts() -> Iterable[tuple[Mount, str, set[str]]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _source, options = [*tail.split(" ", 2), "", ""][:3]
        if kind in ("cgroup", "cgroup2"):
            parts = fields.split(" ")
            yield Mount(Path(parts[4]), parts[3]), kind, set(options.split(","))


def mounted_controllers() -> dict[str, Mount]:
    """The v1 controllers mounted here, by name."""
    found: dict[str, Mount] = {}
    for mount, kind, options in _cgroup_mounts():
        if kind == "cgroup":
            for controller in (*CONTROLLERS, "cpu"):
                if controller in options:
                    found.setdefault(controller, mount)
    return found


def unified_mount() -> Mount | None:
    """The v2 hierarchy, if one is mounted."""
    return next((mount for mount, kind, _options in _cgroup_mounts() if kind == "cgroup2"), None)


def own_path(mount: Mount, controller: str) -> Path:
    """The directory of this process's own group in one hierarchy.

    In a container /proc/self/cgroup may name a path above what is mounted: the visible path is the mount
    point plus the path relative to the mount's root (the fourth field of mountinfo).
    """
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, names, path = line.split(":", 2)
        if controller in names.split(",") or (controller == "" and names == ""):
            relative = path
            if mount.root != "/" and (path == mount.root or path.startswith(mount.root + "/")):
                relative = path[len(mount.root) :]
            candidate = Path(str(mount.mount_point) + relative)
            return candidate if candidate.is_dir() else mount.mount_point
    return mount.mount_point


def grant_command() -> str:
    """The exact command that lets this user make groups."""
    program = Path(sys.argv[0])
    name = str(program.resolve()) if program.name == "raytools" and program.exists() else "raytools"
    return f"sudo {name} grant --user {getpass.getuser()}"


def group_processes(directory: Path) -> list[int]:
    """The processes of a group and of all groups below it."""
    found: list[int] = []
    for folder, _names, _files in os.walk(directory):
        # a group may vanish while we walk: it was empty then
        with contextlib.suppress(FileNotFoundError, OSError):
            found += [int(line) for line in (Path(folder) / "cgroup.procs").read_text().split()]
    return found


def signal_all(pids: Iterable[int], number: int) -> None:
    """Sends a signal to processes that may be gone already."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class Killable(Protocol):
    """What `empty_group` needs of a group."""

    def processes(self) -> list[int]:
        """Every process inside."""

    def kill(self) -> None:
        """Sends SIGKILL to everything inside once."""


def kill_directory(directory: Path) -> None:
    """Kills everything in one directory of whatever hierarchy, with what the kernel offers there.

    Frozen tasks cannot fork past the signals; on v1 SIGKILL takes effect at the thaw.
    """
    if (directory / "cgroup.kill").exists():  # v2 since Linux 5.14
        write_limit(directory / "cgroup.kill", "1")
        return
    switches = (("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0"))
    switch = next((s for s in switches if (directory / s[0]).exists()), None)
    if switch is None:
        signal_all(group_processes(directory), SIGKILL)
        return
    file, frozen, thawed = switch
    write_limit(directory / file, frozen)
    try:
        signal_all(group_processes(directory), SIGKILL)
    finally:
        write_limit(directory / file, thawed)


def empty_group(group: Killable, timeout_s: float = 10.0) -> tuple[int, int]:
    """Kills until the group is empty. Returns how many processes it found first, and how many are left."""
    found = len(group.processes())
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while left := group.processes():
        if time.monotonic() > deadline:
            return found, len(left)
        group.kill()
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
    return found, 0


def remove_directory(directory: Path, timeout_s: float = 2.0) -> None:
    """Removes a group and the groups below it, waiting for the kernel to let the last task go.

    Raises:
        OSError: it still holds something after the time limit.
    """
    deadline = time.monotonic() + timeout_s
    while directory.is_dir():
        try:
            for folder, names, _files in os.walk(directory, topdown=False):
                for name in names:
                    (Path(folder) / name).rmdir()
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def write_limit(path: Path, value: str) -> None:
    """Writes one cgroup file.

    Raises:
        RefusedError: the kernel does not take it; names the file, the value and the kernel's reason.
    """
    try:
        path.write_text(value)
    except OSError as error:
        raise RefusedError(
            f"cannot write {value!r} to {path}: {error.strerror}",
            expected="the kernel to accept it",
            fix="See which limits work here: raytools run --check",
        ) from error


def read_number(path: Path) -> int | None:
    """The number in a cgroup file, None if this kernel has no such file."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def read_pairs(path: Path) -> dict[str, int]:
    """The `name value` lines of a cgroup file, empty if this kernel has no such file."""
    with contextlib.suppress(OSError):
        lines = (line.split() for line in path.read_text().splitlines())
        return {parts[0]: int(parts[1]) for parts in lines if len(parts) == 2}
    return {}
