"""What the groups of a process and all groups above them allow: quota, memory limit, cpuset. Reads only."""

from __future__ import annotations

import re
from math import inf
from pathlib import PurePosixPath

from raytools.node.cgroup_tree import OwnCgroups, ReadText, read_text

# v1 writes "no limit" as the largest multiple of the page size; nothing real comes near 2^60 bytes
_V1_UNLIMITED_BYTES = 2**60


def upwards(directory: str, top: str) -> list[str]:
    """A group and its ancestors, up to and including the mount point."""
    path, stop = PurePosixPath(directory), PurePosixPath(top)
    chain = [path]
    while path not in (stop, path.parent):
        path = path.parent
        chain.append(path)
    return [str(one) for one in chain]


def parse_v2_cpu_max(text: str) -> float | None:
    """CPUs of a `cpu.max`: `200000 100000` is 2.0; `max 100000` is no limit, None."""
    fields = text.split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[1]) == 0:
        return None
    return int(fields[0]) / int(fields[1])


def parse_v1_cfs(quota_us: str, period_us: str) -> float | None:
    """CPUs of `cpu.cfs_quota_us` and `cpu.cfs_period_us`; a quota of -1 is no limit, None."""
    try:
        quota, period = int(quota_us), int(period_us)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def parse_limit_bytes(text: str) -> int | None:
    """A memory limit of v1 or v2 in bytes; `max` and v1's huge number are no limit, None."""
    value = text.strip()
    if not value.isdigit() or int(value) >= _V1_UNLIMITED_BYTES:
        return None
    return int(value)


def quota_cpus(groups: OwnCgroups, read: ReadText = read_text) -> float | None:
    """The tightest CPU quota of all ancestors in CPUs; None if there is none."""
    tightest = inf
    version = groups.version("cpu")
    for directory in upwards(groups.own["cpu"], groups.tops["cpu"]) if version else []:
        if version == 2:
            found = parse_v2_cpu_max(read(f"{directory}/cpu.max") or "")
        else:
            quota, period = read(f"{directory}/cpu.cfs_quota_us"), read(f"{directory}/cpu.cfs_period_us")
            found = parse_v1_cfs(quota or "", period or "")
        tightest = min(tightest, found if found is not None else inf)
    return None if tightest == inf else tightest


def memory_limit_bytes(groups: OwnCgroups, read: ReadText = read_text) -> int | None:
    """The tightest memory limit of all ancestors in bytes; None if there is none.

    v1 also states the tightest limit of ancestors that a container cannot see (`hierarchical_memory_limit`).
    """
    version = groups.version("memory")
    if version is None:
        return None
    name = "memory.max" if version == 2 else "memory.limit_in_bytes"
    found = [
        parse_limit_bytes(read(f"{directory}/{name}") or "")
        for directory in upwards(groups.own["memory"], groups.tops["memory"])
    ]
    if version == 1:
        stat = read(f"{groups.own['memory']}/memory.stat") or ""
        hidden = re.search(r"^hierarchical_memory_limit (\d+)$", stat, re.MULTILINE)
        found.append(parse_limit_bytes(hidden[1]) if hidden else None)
    return min((limit for limit in found if limit is not None), default=None)


def pids_limit(groups: OwnCgroups, read: ReadText = read_text) -> int | None:
    """The tightest limit of processes and threads of all ancestors; None if there is none."""
    if groups.version("pids") is None:
        return None
    texts = (
        (read(f"{directory}/pids.max") or "").strip()
        for directory in upwards(groups.own["pids"], groups.tops["pids"])
    )
    return min((int(text) for text in texts if text.isdigit()), default=None)


def cpuset_text(groups: OwnCgroups, read: ReadText = read_text) -> str | None:
    """The CPU list this group may use, ancestors included (the kernel intersects them); None if unknown."""
    version = groups.version("cpuset")
    if version is None:
        return None
    directory = groups.own["cpuset"]
    names = ("cpuset.cpus.effective",) if version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
    texts = (read(f"{directory}/{name}") for name in names)
    return next((text.strip() for text in texts if text and text.strip()), None)
