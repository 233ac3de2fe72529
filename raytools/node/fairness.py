"""What speaks against comparing this run with others: steal, swap, throttling, other load on its CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterable

from raytools.node.cgroup_tree import UNIFIED, OwnCgroups, read_text
from raytools.node.plain import Plain
from raytools.node.record import Fairness, Record

# Below these shares of the run's CPU time, differences drown in the noise of any machine. An idle Ray head
# with its dashboard takes about a tenth of a CPU, the same on every node of a size, and a small node has only
# two; /proc/stat counts in steps of 10 ms.
_OUTSIDE_SHARE, _STEAL_SHARE, _THROTTLED_SHARE, _FLOOR_S = 0.10, 0.01, 0.01, 0.25

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Snapshot(Plain):
    """The machine's counters at one moment: of some CPUs, and how busy the others were."""

    busy_s: float
    neighbour_s: float
    steal_s: float
    swap_in_bytes: int | None
    throttled_s: float | None
    pressure_s: float | None


def snapshot(cpus: Iterable[int], groups: OwnCgroups) -> Snapshot:
    """Reads /proc/stat, /proc/vmstat, /proc/pressure/cpu (proc(5)) and the quotas of the groups above."""
    wanted = {f"cpu{cpu}" for cpu in cpus}
    busy = {True: 0, False: 0}
    stolen = 0
    for line in (read_text("/proc/stat") or "").splitlines():
        if not line.startswith("cpu"):
            break  # the CPUs come first
        name, *numbers = line.split()
        if name == "cpu":
            continue
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, numbers[:8])
        busy[name in wanted] += user + nice + system + irq + softirq
        stolen += steal if name in wanted else 0
    return Snapshot(
        busy_s=busy[True] * _TICK_S,
        neighbour_s=busy[False] * _TICK_S,
        steal_s=stolen * _TICK_S,
        swap_in_bytes=_swapped_in_bytes(),
        throttled_s=_throttled_s(groups),
        pressure_s=pressure_s("/proc/pressure/cpu"),
    )


def _swapped_in_bytes() -> int | None:
    _, found, rest = (read_text("/proc/vmstat") or "").partition("\npswpin ")
    return int(rest.split("\n", 1)[0]) * _PAGE_BYTES if found else None


def _throttled_s(groups: OwnCgroups) -> float | None:
    """How long CPU quotas of this process's group and those above it have held their members back."""
    version = groups.version("cpu")
    if version is None:
        return None
    directory, top = groups.own["cpu" if version == 1 else UNIFIED], groups.tops["cpu"]
    told = [0.0] if directory == top else []  # the root has no quota
    while len(directory) >= len(top):
        for line in (read_text(f"{directory}/cpu.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            if name in ("throttled_time", "throttled_usec"):  # v1 in ns, v2 in µs
                told.append(int(value) * (1e-9 if name == "throttled_time" else 1e-6))
        directory = os.path.dirname(directory)
    return sum(told) if told else None


def pressure_s(path: str) -> float | None:
    """Seconds in which some task waited for a CPU (`some … total=` of the kernel's PSI); None without PSI."""
    total = (read_text(path) or "").split("\n", 1)[0].rpartition("total=")[2]
    return int(total) * 1e-6 if total.isdigit() else None


def judge(
    before: Snapshot,
    after: Snapshot,
    record: Record,
    group_pressure_s: float | None,
    memory_ran_out_above: bool = False,
) -> Fairness:
    """The verdict over a finished run; expects `limits`, `enforced` and `used` to be filled in.

    Args:
        before: when it started.
        after: when its group was empty.
        record: of the run; `used.throttled_s` of its own group is added to that of the groups above.
        group_pressure_s: the run's own CPU pressure (cgroup v2); None takes the node's.
        memory_ran_out_above: whether it was killed without having reached its own memory limit.
    """
    cpu_time_s = (record.used.wall_s or 0.0) * (record.limits.cpus or 1)
    steal_s = after.steal_s - before.steal_s
    swapped = _difference(before.swap_in_bytes, after.swap_in_bytes)
    throttled_s = _difference(before.throttled_s, after.throttled_s)
    if throttled_s is not None:
        record.used.throttled_s = round((record.used.throttled_s or 0.0) + throttled_s, 3)
    pressure = group_pressure_s
    if pressure is None:
        pressure = _difference(before.pressure_s, after.pressure_s)
    outside_s = None
    if record.used.cpu_s is not None:
        outside_s = max(0.0, after.busy_s - before.busy_s - record.used.cpu_s)
    reasons = _reasons(record, cpu_time_s, outside_s, steal_s, swapped)
    if memory_ran_out_above:
        reasons.append("a group above or the machine ran out of memory")
    return Fairness(
        verdict="tainted" if reasons else "comparable",
        reasons=reasons,
        steal_s=round(steal_s, 3),
        swap_in_bytes=None if swapped is None else int(swapped),
        cpu_pressure_s=None if pressure is None else round(pressure, 3),
        outside_cpu_s=None if outside_s is None else round(outside_s, 3),
        neighbour_cpu_s=round(after.neighbour_s - before.neighbour_s, 3),
    )


def _reasons(
    record: Record, cpu_time_s: float, outside_s: float | None, steal_s: float, swapped: float | None
) -> list[str]:
    reasons = [f"not enforced: {entry}" for entry in record.enforced.missing]
    if outside_s is not None and outside_s > max(_FLOOR_S, _OUTSIDE_SHARE * cpu_time_s):
        reasons.append(f"others used {outside_s:.2f} s of this run's CPUs")
    if steal_s > max(_FLOOR_S, _STEAL_SHARE * cpu_time_s):
        reasons.append(f"the hypervisor took {steal_s:.2f} s of this run's CPUs")
    throttled_s = record.used.throttled_s or 0.0
    if throttled_s > max(_FLOOR_S, _THROTTLED_SHARE * cpu_time_s):
        reasons.append(f"a CPU quota of a group above held it back for {throttled_s:.2f} s")
    if swapped:
        reasons.append(f"the machine swapped in {int(swapped)} bytes meanwhile")
    if record.used.processes_left:
        reasons.append(f"{record.used.processes_left} processes could not be killed")
    return reasons


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
