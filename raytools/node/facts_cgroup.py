"""Where this process is in the cgroup trees, and what all groups above it allow. Reads; never creates.

Own group = mount point + path relative to mountinfo's root field: in a container `/proc/self/cgroup` shows
a path of the outside that does not exist under the mounted hierarchy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path, PurePosixPath

# v1 writes "no limit" as the largest multiple of the page size; nothing real comes near 2^60 bytes
_V1_UNLIMITED_BYTES = 2**60
_V1_CONTROLLERS = {
    "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc", "net_cls",
    "net_prio", "perf_event", "pids", "rdma",
}  # fmt: skip
UNIFIED = "unified"

ReadText = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Mount:
    """One mounted cgroup hierarchy: `controllers` is empty for cgroup v2."""

    root: str
    mount_point: str
    version: int
    controllers: tuple[str, ...]


def read_text(path: str) -> str | None:
    """The text of a file of /proc or /sys; None if it is not there or may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _unescaped(field: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal (proc(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def parse_mountinfo(text: str) -> list[Mount]:
    """The cgroup mounts of a `/proc/self/mountinfo`."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if not separator or len(fields) < 6 or not tail or tail[0] not in ("cgroup", "cgroup2"):
            continue
        options = tail[-1].split(",")
        version = 2 if tail[0] == "cgroup2" else 1
        names = tuple(option for option in options if option in _V1_CONTROLLERS) if version == 1 else ()
        mounts.append(Mount(_unescaped(fields[3]), _unescaped(fields[4]), version, names))
    return mounts


def parse_own_paths(text: str) -> dict[str, str]:
    """Controller -> path of a `/proc/self/cgroup`; the v2 line goes by the name `unified`."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        names, path = parts[1], parts[2].removesuffix(" (deleted)")
        if not names:
            paths[UNIFIED] = path
        for name in filter(None, names.split(",")):
            if name in _V1_CONTROLLERS:
                paths[name] = path
    return paths


def _below(path: str, root: str) -> str | None:
    """`path` relative to `root`, or None if it is not below it."""
    try:
        relative = PurePosixPath(path).relative_to(PurePosixPath(root))
    except ValueError:
        return None
    return "" if str(relative) == "." else str(relative)


def own_directory(mounts: list[Mount], path: str) -> str | None:
    """The directory of a group as this mount namespace sees it.

    Of several mounts of one hierarchy the one that shows most ancestors is taken. A path outside all roots
    (a private cgroup namespace that was entered later) means the mount point: the top that can be seen.
    """
    best: tuple[int, str] | None = None
    for mount in mounts:
        relative = _below(path, mount.root)
        if relative is not None and (best is None or len(mount.root) < best[0]):
            best = (len(mount.root), str(PurePosixPath(mount.mount_point) / relative))
    if best:
        return best[1]
    return mounts[0].mount_point if mounts else None


@dataclass(frozen=True)
class OwnCgroups:
    """The groups of one process. `own`: controller -> directory; `tops`: controller -> its mount point."""

    mode: str | None
    own: dict[str, str]
    tops: dict[str, str]
    unified_controllers: tuple[str, ...]

    def version(self, controller: str) -> int | None:
        """1 or 2: by which hierarchy this controller works here; None if by neither."""
        if controller in self.unified_controllers:
            return 2
        return 1 if controller in self.own else None


def locate(mountinfo: str, own_cgroup: str, read: ReadText = read_text) -> OwnCgroups:
    """Finds a process's groups.

    Args:
        mountinfo: text of `/proc/<pid>/mountinfo`.
        own_cgroup: text of `/proc/<pid>/cgroup`.
        read: reads one file (tests pass recorded trees).
    """
    mounts = parse_mountinfo(mountinfo)
    paths = parse_own_paths(own_cgroup)
    own: dict[str, str] = {}
    tops: dict[str, str] = {}
    v1 = [mount for mount in mounts if mount.version == 1]
    for name in sorted({name for mount in v1 for name in mount.controllers}):
        carrying = [mount for mount in v1 if name in mount.controllers]
        directory = own_directory(carrying, paths.get(name, "/"))
        if directory:
            own[name], tops[name] = directory, _top(carrying, directory)
    v2 = [mount for mount in mounts if mount.version == 2]
    unified: tuple[str, ...] = ()
    unified_directory = own_directory(v2, paths.get(UNIFIED, "/"))
    if unified_directory:
        own[UNIFIED], tops[UNIFIED] = unified_directory, _top(v2, unified_directory)
        listed = (read(f"{unified_directory}/cgroup.controllers") or "").split()
        unified = tuple(name for name in listed if name not in own)
        for name in unified:
            own[name], tops[name] = own[UNIFIED], tops[UNIFIED]
    has_v1 = any(mount.controllers for mount in v1)
    mode = "hybrid" if has_v1 and v2 else "v1" if has_v1 else "v2" if v2 else None
    return OwnCgroups(mode, own, tops, unified)


def _top(mounts: list[Mount], directory: str) -> str:
    return max((m.mount_point for m in mounts if _below(directory, m.mount_point) is not None), key=len)


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


def cpuset_text(groups: OwnCgroups, read: ReadText = read_text) -> str | None:
    """The CPU list this group may use, ancestors included (the kernel intersects them); None if unknown."""
    version = groups.version("cpuset")
    if version is None:
        return None
    directory = groups.own["cpuset"]
    names = ("cpuset.cpus.effective",) if version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
    texts = (read(f"{directory}/{name}") for name in names)
    return next((text.strip() for text in texts if text and text.strip()), None)
