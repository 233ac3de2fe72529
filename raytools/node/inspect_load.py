"""Who uses this node's CPUs and memory beside the cluster, what hangs, and what the hypervisor takes away.

Two looks at /proc, as far apart as the rest of the inspection takes; what looks like a fault is looked at
once more for a second, because a moment's load is none. Standard library only; reads, ends nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytools.node.cgroup_tree import read_text
from raytools.node.inspect_processes import RUN_VARIABLE, SESSION_VARIABLE, environ, user_name

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SECOND_LOOK_S = 1.0
_SHORTEST_LOOK_S = 0.2  # below, a single tick is a share of CPU worth mentioning
BUSY_CPUS = 0.5
_SUSPECT_CPUS = 0.2
STEAL_SHARE = 0.05
_LARGE_BYTES = 64 * 2**20  # smaller processes are not asked who they are
_SHOWN = 5
# groups of runs and of Ray's units; the environment does not tell of a command that has cleared its own
_OUR_GROUPS = re.compile(r"/(raytools\.slice|raytools-(user-\d+|ray-[^/]+\.service)|raytools/)")
# this doctor's other questions, and commands of ours that people run here
_OUR_COMMANDS = ("raytools.node", "\0-m\0raytools\0", "bin/raytools\0", "b=sys.stdin.buffer;exec(")

Found = dict[str, Any]


@dataclass(frozen=True)
class _Seen:
    """One process at one look."""

    name: str
    state: str
    ppid: int
    cpu_ticks: int
    start_ticks: int
    anon_bytes: int
    is_kernel: bool


@dataclass(frozen=True)
class Look:
    """All processes and the machine's CPU times at one moment."""

    at_s: float
    processes: Mapping[int, _Seen]
    cpu: Mapping[str, int]


def look() -> Look:
    """What can be seen now; about 20 microseconds for each process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (seen := parse_process(read_text(f"/proc/{name}/stat") or "")):
            found[int(name)] = seen
    return Look(time.monotonic(), found, parse_cpu_times(read_text("/proc/stat") or ""))


def parse_process(text: str) -> _Seen | None:
    """One `/proc/<pid>/stat`; the memory is what is resident, shared pages included."""
    before, separator, after = text.rpartition(")")
    fields = after.split()
    if not separator or len(fields) < 22:
        return None
    return _Seen(
        name=before.partition("(")[2],
        state=fields[0],
        ppid=int(fields[1]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        start_ticks=int(fields[19]),
        anon_bytes=int(fields[21]) * _PAGE_BYTES,
        is_kernel=bool(int(fields[6]) & 0x00200000),  # PF_KTHREAD
    )


def parse_cpu_times(text: str) -> dict[str, int]:
    """Ticks of all CPUs since boot: `total` and what a hypervisor gave to others (`steal`)."""
    match = re.search(r"^cpu\s+(.*)$", text, re.MULTILINE)
    numbers = [int(one) for one in match[1].split()] if match else []
    if len(numbers) < 8:
        return {}
    return {"total": sum(numbers[:8]), "steal": numbers[7]}  # guest time is in user time already


def compare_with_now(first: Look) -> Found:
    """What the checks want to know, from an earlier look and now.

    Args:
        first: the earlier one.

    Returns:
        `foreign_cpus` and `foreign_memory_bytes` with `users` of either; `zombie_count` and the
        parents of most `zombies`; `stuck` processes;
        `steal_share` of the CPU time between the looks and `steal_share_since_boot`.
    """
    time.sleep(max(0.0, first.at_s + _SHORTEST_LOOK_S - time.monotonic()))
    second = look()
    cpus, users = _foreign_cpu(first, second)
    steal, waiting = _steal_share(first.cpu, second.cpu), _uninterruptible(first, second)
    if cpus >= _SUSPECT_CPUS or (steal or 0) >= STEAL_SHARE or waiting:
        first = second
        time.sleep(_SECOND_LOOK_S)
        second = look()
        cpus, users = _foreign_cpu(first, second)  # this inspection took its part of the first look
        again = _steal_share(first.cpu, second.cpu)
        steal = None if steal is None or again is None else min(steal, again)
        waiting = [pid for pid in waiting if pid in _uninterruptible(first, second)]
    memory_bytes, holders = _foreign_memory(second)
    return {
        "foreign_cpus": round(cpus, 2),
        "foreign_memory_bytes": memory_bytes,
        "users": {"cpu": users, "memory": holders},
        "zombie_count": sum(process.state == "Z" for process in second.processes.values()),
        "zombies": _zombies(second),
        "stuck": [_described(pid, second) for pid in waiting],
        "steal_share": steal,
        "steal_share_since_boot": _steal_share({"total": 0, "steal": 0}, second.cpu),
    }


def _steal_share(before: Mapping[str, int], after: Mapping[str, int]) -> float | None:
    if not before or not after or after["total"] <= before["total"]:
        return None
    return round((after["steal"] - before["steal"]) / (after["total"] - before["total"]), 4)


def _foreign_cpu(first: Look, second: Look) -> tuple[float, list[Found]]:
    """CPUs that processes of nobody of ours used between the looks, and the greediest of them."""
    ticks_of = {}
    for pid, seen in second.processes.items():
        before = first.processes.get(pid)
        is_same = before is not None and before.start_ticks == seen.start_ticks
        ticks = seen.cpu_ticks - (before.cpu_ticks if before is not None and is_same else 0)
        if ticks > 0 and not seen.is_kernel and (is_same or seen.cpu_ticks < _TICKS_PER_S):
            ticks_of[pid] = ticks
    span_ticks = (second.at_s - first.at_s) * _TICKS_PER_S
    foreign = {pid: ticks / span_ticks for pid, ticks in ticks_of.items() if _is_foreign(pid, second)}
    greediest = sorted(foreign, key=lambda pid: -foreign[pid])[:_SHOWN]
    return sum(foreign.values()), [
        {**_described(pid, second), "cpus": round(foreign[pid], 2)} for pid in greediest
    ]


def _foreign_memory(seen: Look) -> tuple[int, list[Found]]:
    """Bytes that foreign processes hold for themselves, and the largest of them."""
    sizes = {}
    for pid, process in seen.processes.items():
        if process.anon_bytes >= _LARGE_BYTES and _is_foreign(pid, seen):
            fields = (read_text(f"/proc/{pid}/statm") or "").split()
            if len(fields) > 2:
                sizes[pid] = (int(fields[1]) - int(fields[2])) * _PAGE_BYTES
    largest = sorted(sizes, key=lambda pid: -sizes[pid])[:_SHOWN]
    return sum(sizes.values()), [{**_described(pid, seen), "memory_bytes": sizes[pid]} for pid in largest]


def _is_foreign(pid: int, seen: Look) -> bool:
    """Neither of a run, nor of a Ray that we started, nor of this inspection."""
    if pid in _own_family(seen):
        return False
    command = read_text(f"/proc/{pid}/cmdline") or ""
    if any(part in command for part in _OUR_COMMANDS):
        return False
    if _OUR_GROUPS.search(read_text(f"/proc/{pid}/cgroup") or ""):
        return False
    at: int | None = pid
    while at is not None and at in seen.processes and at > 1:
        variables = environ(at) or {}
        if SESSION_VARIABLE in variables or RUN_VARIABLE in variables:
            return False
        at = seen.processes[at].ppid
    return True


def _own_family(seen: Look) -> set[int]:
    """This process, what it started, and what started it."""
    family, at = set(), os.getpid()
    while at in seen.processes and at > 1 and at not in family:
        family.add(at)
        at = seen.processes[at].ppid
    for pid, process in seen.processes.items():
        if process.ppid == os.getpid():
            family.add(pid)
    return family


def _uninterruptible(first: Look, second: Look) -> list[int]:
    """Processes that waited for a device or a server at both looks, and did not run between them."""
    return [
        pid
        for pid, seen in second.processes.items()
        if seen.state == "D"
        and not seen.is_kernel
        and (before := first.processes.get(pid)) is not None
        and (before.state, before.start_ticks, before.cpu_ticks) == ("D", seen.start_ticks, seen.cpu_ticks)
    ]


def _zombies(seen: Look) -> list[Found]:
    """Parents that do not collect their dead children, and of how many; the worst first."""
    counts: dict[int, int] = {}
    for process in seen.processes.values():
        if process.state == "Z":
            counts[process.ppid] = counts.get(process.ppid, 0) + 1
    worst = sorted(counts, key=lambda pid: -counts[pid])[:_SHOWN]
    return [{**_described(pid, seen), "count": counts[pid]} for pid in worst]


def _described(pid: int, seen: Look) -> Found:
    process = seen.processes.get(pid)
    try:
        user = user_name(Path(f"/proc/{pid}").stat().st_uid)
    except OSError:  # it has just ended
        user = "?"
    return {"pid": pid, "name": process.name if process else "?", "user": user}
