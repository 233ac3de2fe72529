"""cgroup v2: one directory with all controllers.

Runs need a place where this process may make groups and where no process sits directly (the kernel's
no-internal-process rule): beside the leaf `main` that a delegated unit moves itself into, else in a scope of
their own that systemd makes for them. Files: the kernel's admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os

from raytools.errors import RefusedError
from raytools.node import cgroup, systemd_scope
from raytools.node.cgroup import INSIDE, GroupLimits, GroupUsage
from raytools.node.cgroup_tree import UNIFIED, OwnCgroups, group_processes, locate_self, read_text
from raytools.node.cpu_list import parse_cpu_list
from raytools.node.fairness import pressure_s

MAIN_LEAF = "main"  # where a delegated unit's own processes live
_RAYS_ISOLATION = "/ray-node_"  # of --enable-resource-isolation: its groups lie beside `main`
_TOP_FOLDER = "raytools"
_NEEDED = ("cpuset", "cpu", "memory", "pids")


def open_driver(groups: OwnCgroups, scope_name: str | None) -> DriverV2:
    """A driver at the place where this process may make groups.

    Args:
        groups: where this process is.
        scope_name: lets it move into a scope of that name, where it has no place yet.

    Raises:
        RefusedError: there is none, or controllers are not delegated to it.
    """
    own, top = groups.own[UNIFIED], groups.tops[UNIFIED]
    if os.statvfs(own).f_flag & os.ST_RDONLY:
        raise RefusedError(
            f"cgroup v2: {own} is mounted read-only here",
            expected="a place outside of another limited run or unprivileged container",
            fix="Start the run from outside of it",
        )
    parent, isolation, _ = own.partition(_RAYS_ISOLATION)
    if isolation and _may_make(parent):
        # a worker under Ray's own isolation: what supervises a run is no part of the workers' share
        cgroup.write_limit(f"{parent}/{MAIN_LEAF}/cgroup.procs", "0")
        _delegate(parent)
        return DriverV2(parent, top)
    parent = os.path.dirname(own)
    if os.path.basename(own) == MAIN_LEAF and _may_make(parent):
        _delegate(parent, fix=f"Put into the unit: Delegate={' '.join(_NEEDED)}")
        return DriverV2(parent, top)
    parent = _new_parent(own, top, scope_name)
    _delegate(parent)
    return DriverV2(parent, top)


def _new_parent(own: str, top: str, scope_name: str | None) -> str:
    """A group of our own: systemd's scope, or, for root without systemd, a folder at the top.

    Where systemd is, even root asks it: it takes the controllers away from what it does not know of.
    """
    if scope_name is not None and systemd_scope.is_available():
        parent = systemd_scope.enter(scope_name)
        leaf = f"{parent}/{MAIN_LEAF}"
        cgroup.make_directory(leaf)
        cgroup.write_limit(f"{leaf}/cgroup.procs", "0")
        return parent
    if os.getuid() == 0 and not os.path.isdir("/run/systemd/system"):
        _delegate(top)
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{top}/{_TOP_FOLDER}")
        return f"{top}/{_TOP_FOLDER}"
    if _may_make(own):
        raise RefusedError(
            f"cgroup v2: {own} is delegated, but its processes sit directly in it",
            expected=f"them to sit in its leaf '{MAIN_LEAF}' (the kernel's no-internal-process rule)",
            fix="Start the unit's program through: python -m raytools.node enter-main PROGRAM",
        )
    raise RefusedError(
        f"cgroup v2: {own} is not delegated to {cgroup.user_name()}, and there is no service manager to ask "
        f"for a scope ({systemd_scope.manager_socket()})",
        expected="a delegated unit, or the user's own service manager",
        fix=f"Allow it once with: {cgroup.grant_command()}",
    )


def enter_main() -> None:
    """Moves this process into the leaf `main` of its group, if that is cgroup v2 and delegated.

    For the first process of a unit with Delegate=: before systemd 254 (DelegateSubgroup=) only it can.
    """
    groups = locate_self()
    own = groups.own.get(UNIFIED)
    if own is None or groups.version("memory") != 2 or os.path.basename(own) == MAIN_LEAF:
        return
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{own}/{MAIN_LEAF}")
    cgroup.write_file(f"{own}/{MAIN_LEAF}/cgroup.procs", "0")


def _may_make(parent: str) -> bool:
    return os.access(parent, os.W_OK | os.X_OK)


def _delegate(parent: str, fix: str | None = None) -> None:
    """Passes the controllers on to the groups below.

    Raises:
        RefusedError: a controller does not reach this group, or processes sit directly in it.
    """
    available = (read_text(f"{parent}/cgroup.controllers") or "").split()
    if lacking := [name for name in _NEEDED if name not in available]:
        raise RefusedError(
            f"cgroup v2: the controllers {' '.join(lacking)} do not reach {parent}",
            expected=f"{' '.join(_NEEDED)} in {parent}/cgroup.controllers",
            fix=fix or f"Allow it once with: {cgroup.grant_command()}",
        )
    enabled = (read_text(f"{parent}/cgroup.subtree_control") or "").split()
    if lacking := [name for name in _NEEDED if name not in enabled]:
        wanted = " ".join(f"+{name}" for name in lacking)
        cgroup.write_limit(f"{parent}/cgroup.subtree_control", wanted)


class DriverV2:
    """Makes groups below one directory."""

    kind = "cgroup-v2"

    def __init__(self, parent: str, mount_point: str) -> None:
        self._parent = parent
        self._mount_point = mount_point

    def paths(self, name: str) -> list[str]:
        return [f"{self._parent}/{name}"]

    def create(self, name: str, limits: GroupLimits) -> GroupV2:
        directory = f"{self._parent}/{name}"
        cgroup.make_directory(directory)
        try:
            group = GroupV2(directory, self._mount_point)
            group.limit(limits)
        except BaseException:
            cgroup.remove_directory(directory)
            raise
        return group


class GroupV2:
    """One run's directory."""

    kind = "cgroup-v2"

    def __init__(self, directory: str, mount_point: str) -> None:
        self._directory = directory
        self._mount_point = mount_point
        self.missing: list[str] = []
        # cgroup.kill came with Linux 5.14
        self.kill_method = "cgroup.kill" if os.path.exists(f"{directory}/cgroup.kill") else "freezer"

    def limit(self, limits: GroupLimits) -> None:
        """Sets all limits and makes the level for the processes; a refused file is named in the error."""
        self._limit_cpus(limits.cpus)
        cgroup.write_limit(f"{self._directory}/memory.max", str(limits.memory_bytes))
        if os.path.exists(f"{self._directory}/memory.swap.max"):  # absent without swap accounting
            cgroup.write_limit(f"{self._directory}/memory.swap.max", "0")
        cgroup.write_limit(f"{self._directory}/memory.oom.group", "1")
        cgroup.write_limit(f"{self._directory}/pids.max", str(limits.pids))
        cgroup.make_inside(self._directory)
        for file, promised, name in (
            ("memory.max", limits.memory_bytes, "memory"),
            ("pids.max", limits.pids, "pids"),
        ):
            self.missing += cgroup.tighter_above(self._directory, self._mount_point, file, promised, name)

    def _limit_cpus(self, cpus: tuple[int, ...]) -> None:
        cgroup.write_limit(f"{self._directory}/cpuset.cpus", ",".join(map(str, cpus)))
        # the kernel takes any number here, and gives what the groups above allow
        effective = parse_cpu_list(read_text(f"{self._directory}/cpuset.cpus.effective") or "")
        if effective != sorted(cpus):
            raise RefusedError(
                f"cgroup v2: of the CPUs {list(cpus)}, the groups above {self._directory} allow {effective}",
                expected="all of the slot's CPUs",
                fix="Plan again with what this node may use: ansible-playbook playbooks/node.yml",
            )

    def changed_limits(self, limits: GroupLimits) -> list[str]:
        held = (read_text(f"{self._directory}/memory.max") or "").strip()
        changed = []
        if not held.isdigit() or abs(int(held) - limits.memory_bytes) >= 1 << 16:  # it rounds to pages
            changed.append(f"memory: memory.max became {held or None}")
        expected = {"memory.swap.max": "0", "memory.oom.group": "1", "pids.max": str(limits.pids)}
        for file, value in expected.items():
            found = (read_text(f"{self._directory}/{file}") or value).strip()  # absent: this kernel has none
            if found != value:
                changed.append(f"{file.partition('.')[0]}: {file} became {found}")
        effective = parse_cpu_list(read_text(f"{self._directory}/cpuset.cpus.effective") or "")
        if effective != sorted(limits.cpus):
            changed.append(f"cpu: cpuset.cpus.effective became {effective}")
        return changed

    def entrances(self) -> list[str]:
        return []

    def birthplace(self) -> str | None:
        return f"{self._directory}/{INSIDE}"

    def visible(self) -> dict[str, str]:
        return {self._mount_point: f"{self._directory}/{INSIDE}"}

    def processes(self, besides: int | None = None) -> list[int]:
        del besides  # members are told by the kernel
        return group_processes(self._directory)

    def freeze(self, frozen: bool) -> None:
        cgroup.freeze_directory(self._directory, frozen)

    def kill(self) -> None:
        cgroup.kill_directory(self._directory)

    def oom_descriptor(self) -> int | None:
        return None  # memory.oom.group kills the whole group: the main process' end tells

    def cpu_s(self) -> float | None:
        return _seconds(cgroup.read_pairs(f"{self._directory}/cpu.stat").get("usage_usec"))

    def anon_bytes(self) -> int | None:
        return cgroup.read_pairs(f"{self._directory}/memory.stat").get("anon")

    def oom_kills(self) -> int | None:
        events = cgroup.read_pairs(f"{self._directory}/memory.events")
        # a kill of the whole group is counted for its members and once more for the first of them
        return events.get("oom_group_kill") or events.get("oom_kill")

    def hit_own_limit(self) -> bool:
        return bool(cgroup.read_pairs(f"{self._directory}/memory.events.local").get("oom"))

    def usage(self) -> GroupUsage:
        cpu = cgroup.read_pairs(f"{self._directory}/cpu.stat")
        return GroupUsage(
            cpu_s=_seconds(cpu.get("usage_usec")),
            memory_peak_bytes=cgroup.read_number(f"{self._directory}/memory.peak"),  # since Linux 5.19
            anon_bytes=self.anon_bytes(),
            oom_kills=self.oom_kills(),
            throttled_s=_seconds(cpu.get("throttled_usec", 0)),
            swap_in_bytes=None,
            cpu_pressure_s=pressure_s(f"{self._directory}/cpu.pressure"),
        )

    def remove(self) -> None:
        cgroup.remove_directory(self._directory, cgroup.WAIT_FOR_REMOVAL_S)


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds * 1e-6
