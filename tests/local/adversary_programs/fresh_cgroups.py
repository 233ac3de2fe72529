"""What two adversaries share: cgroup hierarchies mounted afresh in namespaces of one's own."""

import ctypes
import os
import sys
import tempfile

NEWNS, NEWCGROUP, NEWUSER = 0x20000, 0x2000000, 0x10000000
OWN_NAMESPACES = NEWUSER | NEWNS | NEWCGROUP
FSOPEN, FSCONFIG, FSMOUNT, MOVE_MOUNT = 430, 431, 432, 429
FLAG, STRING, CREATE, EMPTY_PATH, AT_FDCWD = 0, 1, 6, 4, -100

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def own_groups():
    """Controllers -> path, as this process sees itself."""
    with open("/proc/self/cgroup") as file:
        return {tuple(line.split(":")[1].split(",")): line.strip().split(":", 2)[2] for line in file}


def become_root(uid, gid):
    """Of the user namespace that this process has just got."""
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{file}", "w") as target:
            target.write(text)


def mount_afresh(mount):
    """Mounts every hierarchy; returns where, by controllers. Says on stderr what the kernel refused."""
    mounted = {}
    for names in own_groups():
        directory = tempfile.mkdtemp()
        if mount(directory, names) == 0:
            mounted[names] = directory
        else:
            print("mount", names, os.strerror(ctypes.get_errno()), file=sys.stderr)
    return mounted


def by_mount(directory, names):
    kind, options = (b"cgroup2", None) if names == ("",) else (b"cgroup", ",".join(names).encode())
    return libc.mount(b"none", directory.encode(), kind, ctypes.c_ulong(0), options)


def by_fsmount(directory, names):
    context = libc.syscall(FSOPEN, b"cgroup2" if names == ("",) else b"cgroup", 0)
    for name in filter(None, names):
        key, _, value = (part.encode() for part in name.partition("="))
        libc.syscall(FSCONFIG, context, STRING if value else FLAG, key, value or None, 0)
    libc.syscall(FSCONFIG, context, CREATE, None, None, 0)
    mount = libc.syscall(FSMOUNT, context, 0, 0)
    return libc.syscall(MOVE_MOUNT, mount, b"", AT_FDCWD, directory.encode(), EMPTY_PATH)
