"""Where a process is in the cgroup trees, v1 and v2, on a host and inside a container. Reads; never creates.

Own group = mount point + path relative to mountinfo's root field: in a container `/proc/self/cgroup` shows
a path of the outside that does not exist under the mounted hierarchy.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from raytools.node.plain import Plain

ReadText = Callable[[str], "str | None"]

_V1_CONTROLLERS = {
    "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc", "net_cls",
    "net_prio", "perf_event", "pids", "rdma",
}  # fmt: skip
UNIFIED = "unified"


class Mount(Plain):
    """One mounted cgroup hierarchy; `controllers` (or `name=…`) is empty for cgroup v2."""

    root: str
    mount_point: str
    version: int
    controllers: tuple[str, ...]


def read_text(path: str) -> str | None:
    """The text of a file of /proc or /sys; None if it is not there or may not be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _unescaped(field: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal (proc(5))."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


def _is_v1_name(name: str) -> bool:
    """A controller, or a hierarchy without one that only has a name, as systemd's."""
    return name in _V1_CONTROLLERS or name.startswith("name=")


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
        names = tuple(option for option in options if _is_v1_name(option)) if version == 1 else ()
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
            if _is_v1_name(name):
                paths[name] = path
    return paths


def _below(path: str, root: str) -> str | None:
    """`path` relative to `root`, or None if it is not below it."""
    if root == "/" or path == root:
        return path[len(root) :].lstrip("/")
    return path[len(root) + 1 :] if path.startswith(root + "/") else None


def _joined(directory: str, relative: str) -> str:
    return f"{directory.rstrip('/')}/{relative}" if relative else directory


def own_directory(mounts: list[Mount], path: str) -> str | None:
    """The directory of a group as this mount namespace sees it.

    Of several mounts of one hierarchy the one that shows most ancestors is taken. A path outside all roots
    (a private cgroup namespace that was entered later) means the mount point: the top that can be seen.
    """
    best: tuple[int, str] | None = None
    for mount in mounts:
        relative = _below(path, mount.root)
        if relative is not None and (best is None or len(mount.root) < best[0]):
            best = (len(mount.root), _joined(mount.mount_point, relative))
    if best:
        return best[1]
    return mounts[0].mount_point if mounts else None


class OwnCgroups(Plain):
    """The groups of one process. `own`: controller -> directory; `tops`: controller -> its mount point."""

    mode: str | None
    own: dict[str, str]
    tops: dict[str, str]
    unified_controllers: tuple[str, ...]
    mount_points: tuple[str, ...] = ()  # of every hierarchy, those without controllers too
    unified_mount_points: tuple[str, ...] = ()  # those of them that are cgroup v2

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
    has_v1 = any(name in _V1_CONTROLLERS for mount in v1 for name in mount.controllers)
    mode = "hybrid" if has_v1 and v2 else "v1" if has_v1 else "v2" if v2 else None
    mount_points = tuple(mount.mount_point for mount in mounts)
    unified_mount_points = tuple(mount.mount_point for mount in v2)
    return OwnCgroups(mode, own, tops, unified, mount_points, unified_mount_points)


def _top(mounts: list[Mount], directory: str) -> str:
    return max((m.mount_point for m in mounts if _below(directory, m.mount_point) is not None), key=len)


def locate_self() -> OwnCgroups:
    """The groups of this process."""
    return locate(read_text("/proc/self/mountinfo") or "", read_text("/proc/self/cgroup") or "")


def group_processes(directory: str) -> list[int]:
    """The processes of a group and of all groups below it."""
    found: list[int] = []
    for folder in group_folders(directory):
        found += map(int, (read_text(f"{folder}/cgroup.procs") or "").split())
    return found


def group_folders(directory: str) -> list[str]:
    """A group and all groups below it, the deepest last; one that vanishes meanwhile was empty."""
    found = [directory]
    for folder in found:
        try:
            with os.scandir(folder) as entries:
                found += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
    return found
