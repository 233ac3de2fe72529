"""Which CPUs exist and how they hang together: cores, sockets, NUMA nodes. Reads /sys and /proc only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from raytools.node.cgroup_tree import ReadText, read_text
from raytools.node.cpu_list import parse_cpu_list

_CPU = "/sys/devices/system/cpu"
_NUMA = "/sys/devices/system/node"

Thread = dict[str, "int | None"]


def parse_cpuinfo(text: str) -> tuple[str | None, dict[int, tuple[int | None, int | None]]]:
    """Model name, and CPU -> (core id, socket), of a `/proc/cpuinfo`; ids are missing on some machines."""
    model: str | None = None
    cpus: dict[int, tuple[int | None, int | None]] = {}
    for block in text.split("\n\n"):
        fields = {
            key.strip(): value.strip() for key, _, value in (one.partition(":") for one in block.splitlines())
        }
        model = model or fields.get("model name") or fields.get("Model") or fields.get("cpu model")
        if fields.get("processor", "").isdigit():
            core, socket = fields.get("core id"), fields.get("physical id")
            cpus[int(fields["processor"])] = (int(core) if core else None, int(socket) if socket else None)
    return model, cpus


def frequency(online: list[int], read: ReadText = read_text) -> dict[str, object]:
    """Who decides on the CPUs' clock: `governors` in use ([] where the machine does not say), and `boost`,
    whether they may go beyond their nominal clock (None where it does not say)."""
    texts = (read(f"{_CPU}/cpu{cpu}/cpufreq/scaling_governor") for cpu in online)
    no_turbo, boost = read(f"{_CPU}/intel_pstate/no_turbo"), read(f"{_CPU}/cpufreq/boost")
    may_boost = no_turbo.strip() == "0" if no_turbo else boost.strip() == "1" if boost else None
    return {"governors": sorted({text.strip() for text in texts if text}), "boost": may_boost}


def numa_of_cpus(lists: dict[int, str]) -> dict[int, int]:
    """CPU -> NUMA node, from node -> `cpulist` text."""
    return {cpu: node for node, text in lists.items() for cpu in parse_cpu_list(text) or []}


def _numa_lists(read: ReadText) -> dict[int, str]:
    try:
        names = [path.name for path in Path(_NUMA).iterdir()]
    except OSError:
        return {}
    numbers = [int(name[4:]) for name in names if re.fullmatch(r"node\d+", name)]
    return {number: read(f"{_NUMA}/node{number}/cpulist") or "" for number in sorted(numbers)}


def threads(
    online: list[int],
    cpuinfo: dict[int, tuple[int | None, int | None]],
    read: ReadText = read_text,
    numa_lists: Callable[[ReadText], dict[int, str]] = _numa_lists,
) -> list[Thread]:
    """Core, socket and NUMA node of each CPU thread; null where neither /sys nor /proc/cpuinfo tells.

    `core` is the lowest CPU number among the threads of the core, so it is unique on the whole machine
    (the kernel's core_id repeats from socket to socket).
    """
    numa = numa_of_cpus(numa_lists(read))
    first_of: dict[tuple[int | None, int | None], int] = {}
    found: list[Thread] = []
    for cpu in online:
        topology = f"{_CPU}/cpu{cpu}/topology"
        siblings = parse_cpu_list(
            read(f"{topology}/core_cpus_list") or read(f"{topology}/thread_siblings_list") or ""
        )
        core_id, socket = cpuinfo.get(cpu, (None, None))
        package = read(f"{topology}/physical_package_id")
        if package and package.strip().isdigit():  # -1 where the firmware does not say
            socket = int(package)
        core = siblings[0] if siblings else None
        if core is None and core_id is not None:
            core = first_of.setdefault((socket, core_id), cpu)
        found.append({"cpu": cpu, "core": core, "socket": socket, "numa": numa.get(cpu)})
    return found
