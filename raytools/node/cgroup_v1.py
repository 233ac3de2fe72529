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

from raytools.errors import RefusedError
from raytools.node import cgroup
from raytools.node.cgroup import INSIDE, GroupLimits, GroupUsage
from raytools.node.cgroup_tree import UNIFIED, OwnCgroups, group_processes, read_text
from raytools.node.cpu_list import parse_cpu_list

_EFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK  # EFD_CLOEXEC and EFD_NONBLOCK have these values
_HUGE_PAGE_BYTES = 2 * 2**20
_FOLDER = "raytools"  # our directory below the own group: groups of runs are its children


def granted_folder(uid: int) -> str:
    """The name of the subtree that `raytools grant` makes for a user, at the root of each hierarchy."""
    return f"raytools-user-{uid}"


def open_driver(groups: OwnCgroups) -> DriverV1:
    """A driver at the first place where this process may make groups: below its own, else where granted.

    Raises:
        RefusedError: neither is allowed.
    """
    used = [name for name in cgroup.CONTROLLERS if groups.version(name) == 1]
    others = [name for name in groups.own if name not in used and groups.version(name) != 2]
    if os.getuid() == 0:
        # In the root of a hierarchy a run could mount all of it afresh, in a user namespace in which root's
        # files are its own. Plain users are kept from making one (confine.py).
        used += others
    own = {name: f"{groups.own[name]}/{_FOLDER}" for name in used}
    granted = {name: f"{groups.tops[name]}/{granted_folder(os.getuid())}" for name in used}
    for parents in (own, granted):
        if all(_may_make(path) for path in parents.values()):
            return DriverV1(parents, groups.tops)
    if any(os.path.isdir(path) for path in granted.values()):
        lacking = next(name for name, path in granted.items() if not _may_make_in(path))
        raise RefusedError(
            f"cgroup v1 controller {lacking}: {granted[lacking]} is not writable for {cgroup.user_name()}",
            expected="all of the controllers to be granted",
            fix=f"Grant it again: {cgroup.grant_command()}",
        )
    denied = next(name for name, path in own.items() if not _may_make(path))
    if os.statvfs(groups.own[denied]).f_flag & os.ST_RDONLY:
        raise RefusedError(
            f"cgroup v1 controller {denied}: {groups.own[denied]} is mounted read-only here",
            expected="a place outside of another limited run or unprivileged container",
            fix="Start the run from outside of it",
        )
    raise RefusedError(
        f"cgroup v1 controller {denied}: no permission to make a group below {groups.own[denied]}",
        expected="a group of the own user's (v1 delegates nothing by itself)",
        fix=f"Allow it once with: {cgroup.grant_command()}",
    )


def _may_make_in(directory: str) -> bool:
    return os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)


def _may_make(parent: str) -> bool:
    existing = parent if os.path.isdir(parent) else os.path.dirname(parent)
    return os.access(existing, os.W_OK | os.X_OK)


class DriverV1:
    """Makes groups below one directory of each controller."""

    kind = "cgroup-v1"

    def __init__(self, parents: Mapping[str, str], mount_points: Mapping[str, str]) -> None:
        self._parents = dict(parents)
        self._mount_points = mount_points

    def paths(self, name: str) -> list[str]:
        # the freezer first: a sweep that freezes before it kills cannot be outrun
        ordered = sorted(self._parents, key=lambda controller: controller != "freezer")
        return [f"{self._parents[controller]}/{name}" for controller in ordered]

    def create(self, name: str, limits: GroupLimits) -> GroupV1:
        with contextlib.ExitStack() as undo:
            directories: dict[str, str] = {}
            for controller, parent in self._parents.items():
                directory = f"{parent}/{name}"
                if directory not in directories.values():  # controllers may share a mount, as cpu and cpuacct
                    _make_below(controller, parent, directory)
                    undo.callback(_remove, directory)
                directories[controller] = directory
            group = GroupV1(directories, self._mount_points)
            group.limit(limits)
            undo.pop_all()
            return group


def _make_below(controller: str, parent: str, directory: str) -> None:
    """Makes our folder if need be, and a group in it; another run may remove the folder between the two."""
    for _ in range(100):
        with contextlib.suppress(FileExistsError):
            cgroup.make_directory(parent)
        try:
            if controller == "cpuset":
                inherit_cpuset(parent)
            cgroup.make_directory(directory)
        except FileNotFoundError:
            continue
        except RefusedError:
            _remove_folder(parent)
            raise
        return
    raise RefusedError(f"{parent} is removed again and again", expected="nobody else to remove it")


def _remove(directory: str) -> None:
    """Removes a group, and our folder above it with the last one."""
    cgroup.remove_directory(directory, cgroup.WAIT_FOR_REMOVAL_S)
    _remove_folder(os.path.dirname(directory))


def _remove_folder(parent: str) -> None:
    if os.path.basename(parent) == _FOLDER:
        with contextlib.suppress(OSError):  # other runs are still below it
            os.rmdir(parent)


def inherit_cpuset(directory: str) -> None:
    """Gives a new cpuset what its parent has: it starts empty, and an empty one takes no processes."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (read_text(f"{directory}/{file}") or "").strip() == "":
            cgroup.write_limit(f"{directory}/{file}", _effective(os.path.dirname(directory), file))


def _effective(directory: str, file: str) -> str:
    for name in (file.replace("cpuset.", "cpuset.effective_"), file):
        if text := (read_text(f"{directory}/{name}") or "").strip():
            return text
    return "0"


class GroupV1:
    """One run's directories, by controller."""

    kind = "cgroup-v1"

    def __init__(self, directories: Mapping[str, str], mount_points: Mapping[str, str]) -> None:
        self._directories = dict(directories)
        self._mount_points = mount_points
        self.kill_method = "freezer" if "freezer" in directories else "signals"
        self.missing = [] if "pids" in directories else ["pids: this machine has no pids controller"]
        self._oom_event: int | None = None

    def limit(self, limits: GroupLimits) -> None:
        """Sets all limits and makes the level for the processes; a refused file is named in the error."""
        cpuset, memory = self._directories["cpuset"], self._directories["memory"]
        _share_below(memory)
        _let_the_kernel_kill(memory)
        cgroup.write_limit(f"{memory}/memory.limit_in_bytes", str(limits.memory_bytes))
        if os.path.exists(f"{memory}/memory.memsw.limit_in_bytes"):
            # memory + swap = memory: no swap at all
            cgroup.write_limit(f"{memory}/memory.memsw.limit_in_bytes", str(limits.memory_bytes))
        else:
            cgroup.write_limit(f"{memory}/memory.swappiness", "0")
        if "pids" in self._directories:
            cgroup.write_limit(f"{self._directories['pids']}/pids.max", str(limits.pids))
        for device in limits.denied_devices if "devices" in self._directories else ():
            cgroup.write_limit(f"{self._directories['devices']}/devices.deny", f"{device} rwm")
        if "cpu" in self._directories:
            # as much weight as one task on each of its CPUs: a fork bomb does not starve its supervisor
            cgroup.write_limit(f"{self._directories['cpu']}/cpu.shares", str(1024 * len(limits.cpus)))
        for directory in self._distinct():
            cgroup.make_inside(directory)
        for controller, file, promised in (
            ("memory", "memory.limit_in_bytes", limits.memory_bytes),
            ("pids", "pids.max", limits.pids),
        ):
            if controller in self._directories:
                directory, top = self._directories[controller], self._mount_points[controller]
                self.missing += cgroup.tighter_above(directory, top, file, promised, controller)
        memory_nodes = _effective(os.path.dirname(cpuset), "cpuset.mems")
        for level in (cpuset, f"{cpuset}/{INSIDE}"):
            cgroup.write_limit(f"{level}/cpuset.mems", memory_nodes)
            cgroup.write_limit(f"{level}/cpuset.cpus", ",".join(map(str, limits.cpus)))

    def _distinct(self) -> list[str]:
        return list(dict.fromkeys(self._directories.values()))

    def entrances(self) -> list[str]:
        # A thread that moves itself alone (0 into tasks, since Linux 5.5) does not wait for an RCU grace
        # period; what is moved by cgroup.procs does, for 6 to 20 ms.
        return [f"{d}/{INSIDE}/tasks" for d in self._distinct() if d != self._directories.get(UNIFIED)]

    def birthplace(self) -> str | None:
        unified = self._directories.get(UNIFIED)
        return None if unified is None else f"{unified}/{INSIDE}"

    def visible(self) -> dict[str, str]:
        return {self._mount_points[name]: f"{d}/{INSIDE}" for name, d in self._directories.items()}

    def processes(self, besides: int | None = None) -> list[int]:
        del besides  # members are told by the kernel
        # each process is in all of them; what a dying supervisor had moved half-way is the sweep's
        return group_processes(self._directories.get("freezer") or self._directories["memory"])

    def freeze(self, frozen: bool) -> None:
        if "freezer" in self._directories:
            cgroup.freeze_directory(self._directories["freezer"], frozen)

    def kill(self) -> None:
        cgroup.kill_directory(self._directories.get("freezer") or self._directories["memory"])

    def oom_descriptor(self) -> int | None:
        if self._oom_event is None:
            memory = self._directories["memory"]
            event = ctypes.CDLL(None, use_errno=True).eventfd(0, _EFD_FLAGS)
            if event < 0:
                raise OSError(ctypes.get_errno(), "eventfd")
            control = os.open(f"{memory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                cgroup.write_limit(f"{memory}/cgroup.event_control", f"{event} {control}")
            finally:
                os.close(control)
            self._oom_event = event
        return self._oom_event

    def cpu_s(self) -> float | None:
        return _scaled(self._directories.get("cpuacct"), "cpuacct.usage", 1e-9)

    def anon_bytes(self) -> int | None:
        return cgroup.read_pairs(f"{self._directories['memory']}/memory.stat").get("total_rss")

    def oom_kills(self) -> int | None:
        # v1 counts a kill where its victim was, not in the groups above
        memory = self._directories["memory"]
        counts = [
            cgroup.read_pairs(f"{level}/memory.oom_control").get("oom_kill")
            for level in (memory, f"{memory}/{INSIDE}")
        ]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def hit_own_limit(self) -> bool:
        # failcnt would tell, but not on every kernel; the peak does, up to a huge page that found no room
        memory = self._directories["memory"]
        limit_bytes = cgroup.read_number(f"{memory}/memory.limit_in_bytes") or 0
        files = ("memory.max_usage_in_bytes", "memory.memsw.max_usage_in_bytes")
        peak_bytes = max(cgroup.read_number(f"{memory}/{file}") or 0 for file in files)
        return peak_bytes > limit_bytes - _HUGE_PAGE_BYTES

    def changed_limits(self, limits: GroupLimits) -> list[str]:
        changed = []
        held = cgroup.read_number(f"{self._directories['memory']}/memory.limit_in_bytes")
        if held is None or abs(held - limits.memory_bytes) >= 1 << 16:  # the kernel rounds to pages
            changed.append(f"memory: memory.limit_in_bytes became {held}")
        cpus = parse_cpu_list(read_text(f"{self._directories['cpuset']}/cpuset.cpus") or "")
        if cpus != sorted(limits.cpus):
            changed.append(f"cpu: cpuset.cpus became {cpus}")
        return changed

    def usage(self) -> GroupUsage:
        return GroupUsage(
            cpu_s=self.cpu_s(),
            memory_peak_bytes=cgroup.read_number(f"{self._directories['memory']}/memory.max_usage_in_bytes"),
            anon_bytes=self.anon_bytes(),
            oom_kills=self.oom_kills(),
            throttled_s=0.0,  # of its own: no quota is set here. Groups above: fairness.py
            swap_in_bytes=None,  # v1 counts it per machine only; the supervisor reads /proc/vmstat
            cpu_pressure_s=None,
        )

    def remove(self) -> None:
        if self._oom_event is not None:
            os.close(self._oom_event)
            self._oom_event = None
        for directory in self._distinct():
            _remove(directory)


def _share_below(memory: str) -> None:
    """Limits count for the level below only with hierarchy, which kernels before 5.11 could leave off."""
    switch = f"{memory}/memory.use_hierarchy"
    if cgroup.read_number(switch) == 0:
        cgroup.write_limit(switch, "1")


def _let_the_kernel_kill(memory: str) -> None:
    """A group inherits that its OOM killer is off: everything in it would hang at the limit instead."""
    control = f"{memory}/memory.oom_control"
    if cgroup.read_pairs(control).get("oom_kill_disable") == 1:
        cgroup.write_limit(control, "0")


def _scaled(directory: str | None, file: str, factor: float) -> float | None:
    value = cgroup.read_number(f"{directory}/{file}") if directory is not None else None
    return None if value is None else value * factor
