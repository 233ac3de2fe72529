"""What speaks against comparing this run with others: steal, swap, other load on its CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raytools.node.record import Fairness, Record

# Below these shares of the run's CPU time, differences drown in the noise of any machine. An idle Ray head
# with its dashboard takes about a tenth of a CPU, the same on every node of a size, and a small node has only
# two; /proc/stat counts in steps of 10 ms.
_OUTSIDE_SHARE, _STEAL_SHARE, _FLOOR_S = 0.10, 0.01, 0.25

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Snapshot:
    """The machine's counters at one moment, for some CPUs."""

    busy_s: float
    steal_s: float
    swap_in_bytes: int | None


def snapshot(cpus: Iterable[int]) -> Snapshot:
    """Reads /proc/stat and /proc/vmstat (proc(5)) for these CPU numbers."""
    wanted = {f"cpu{cpu}" for cpu in cpus}
    busy_s = steal_s = 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, numbers[:8])
            busy_s += (user + nice + system + irq + softirq) * _TICK_S
            steal_s += steal * _TICK_S
    swapped = None
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("pswpin "):
            swapped = int(line.split()[1]) * _PAGE_BYTES
    return Snapshot(busy_s, steal_s, swapped)


def judge(before: Snapshot, after: Snapshot, record: Record) -> Fairness:
    """The verdict over a finished run; expects `limits`, `enforced` and `used` to be filled in."""
    cpu_time_s = (record.used.wall_s or 0.0) * (record.limits.cpus or 1)
    steal_s = after.steal_s - before.steal_s
    swapped = None
    if before.swap_in_bytes is not None and after.swap_in_bytes is not None:
        swapped = after.swap_in_bytes - before.swap_in_bytes
    outside_s = None
    if record.used.cpu_s is not None:
        outside_s = max(0.0, after.busy_s - before.busy_s - record.used.cpu_s)

    reasons = [f"not enforced: {entry}" for entry in record.enforced.missing]
    if outside_s is not None and outside_s > max(_FLOOR_S, _OUTSIDE_SHARE * cpu_time_s):
        reasons.append(f"others used {outside_s:.2f} s of this run's CPUs")
    if steal_s > max(_FLOOR_S, _STEAL_SHARE * cpu_time_s):
        reasons.append(f"the hypervisor took {steal_s:.2f} s of this run's CPUs")
    if swapped:
        reasons.append(f"the machine swapped in {swapped} bytes meanwhile")
    if record.used.processes_left:
        reasons.append(f"{record.used.processes_left} processes could not be killed")
    return Fairness(
        verdict="tainted" if reasons else "comparable",
        reasons=reasons,
        steal_s=round(steal_s, 3),
        swap_in_bytes=swapped,
        cpu_pressure_s=None,
        outside_cpu_s=None if outside_s is None else round(outside_s, 3),
    )
