"""What a run may not see or do: other groups' files, shared /dev/shm, CAP_SYS_ADMIN.

Called in the run's own process between fork and exec. Code with the same uid could otherwise write itself
into a sibling's cgroup.procs, and files in /dev/shm would outlive the run. Root gets a mount namespace;
everybody else gets one through a user namespace.
See mount_namespaces(7), user_namespaces(7), capabilities(7).
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
# statvfs(3) flag -> mount(2) flag: what a remount in a user namespace must repeat, or it is refused
_KEPT_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_CAP_SYS_ADMIN = 21
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def become_subreaper() -> None:
    """Makes this process the parent of all its descendants' orphans (prctl(2))."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent(signal_number: int) -> None:
    """Has the kernel signal this process when its parent dies (prctl(2))."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def confine(memory_bytes: int) -> None:
    """Puts this process into its own mount namespace; irrevocable, so only for a process about to exec.

    Args:
        memory_bytes: size of the private /dev/shm; its pages are charged to the run anyway.

    Raises:
        OSError: the kernel forbids one of the steps; the message names it.
    """
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare(mount namespace)")
    else:
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare(user and mount namespace)")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    for mount_point in _cgroup_mount_points():
        _remount_read_only(mount_point)
    if Path("/dev/shm").is_dir():
        _mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={memory_bytes},mode=1777")
    _drop_cap_sys_admin()


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    data = None if options is None else options.encode()
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), data), f"mount({target})")


def _cgroup_mount_points() -> list[str]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        if tail.startswith(("cgroup ", "cgroup2 ")):
            # mountinfo writes a blank in a path as \040 (proc(5))
            found.append(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), fields.split(" ")[4]))
    return found


def _remount_read_only(mount_point: str) -> None:
    present = os.statvfs(mount_point).f_flag
    kept = sum(mount_flag for flag, mount_flag in _KEPT_FLAGS.items() if present & flag)
    _mount(None, mount_point, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | kept)


def _drop_cap_sys_admin() -> None:
    """From the bounding set, so that no exec brings it back, and from what this process holds now."""
    _check(_libc.prctl(_PR_CAPBSET_DROP, _CAP_SYS_ADMIN, 0, 0, 0), "prctl(PR_CAPBSET_DROP)")
    header = _CapabilityHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    _check(_libc.capget(ctypes.byref(header), data), "capget")
    for name in ("effective", "permitted", "inheritable"):
        setattr(data[0], name, getattr(data[0], name) & ~(1 << _CAP_SYS_ADMIN))
    _check(_libc.capset(ctypes.byref(header), data), "capset")
