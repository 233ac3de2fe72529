"""Tries to leave its cgroups and to raise its limits, then uses all CPUs and takes 400 MiB.

Prints what it gained, and on stderr what it could write. argv[1] is the way to the cgroup files, argv[2] the
run id of a sibling:
  direct       the mounted ones
  proc         through the root, working directory and open files of every process that /proc shows
  mount        mounted afresh in user, mount and cgroup namespaces of its own
  fsmount      the same with clone(2) and the newer mount calls
  clone-into   not at all: clone3(2) puts a child into the group argv[2]
"""

import contextlib
import glob
import os
import signal
import struct
import sys

from fresh_cgroups import OWN_NAMESPACES, become_root, by_fsmount, by_mount, libc, mount_afresh, own_groups

CLONE, CLONE3, CLONE_INTO_CGROUP = 56, 435, 0x200000000
WAY, SIBLING = sys.argv[1:]
USER = os.getuid(), os.getgid()
RAISED = {
    "memory.memsw.limit_in_bytes": "-1",
    "memory.limit_in_bytes": "-1",
    "memory.oom_control": "1",
    "memory.max": "max",
    "memory.swap.max": "max",
    "pids.max": "max",
    "cpuset.cpus": f"0-{os.cpu_count() - 1}",
}


def mounts():
    """Mount points of hierarchies by their controllers."""
    with open("/proc/self/mountinfo") as file:
        lines = [line.partition(" - ") for line in file]
    for fields, _, tail in lines:
        kind, _source, options = tail.split()
        for names in own_groups():
            if (kind == "cgroup" and set(names) <= set(options.split(","))) or (
                kind == "cgroup2" and names == ("",)
            ):
                yield names, fields.split()[4]


def write(path, value):
    with contextlib.suppress(OSError):
        with open(path, "w") as file:
            file.write(value)
        print("wrote", value, "to", path, file=sys.stderr)


def groups_of(run_id, mount_point):
    for folder, names, _files in os.walk(mount_point):
        for name in names:
            if f"/rt-run-{run_id}" in f"{folder}/{name}":
                yield f"{folder}/{name}"


def attack(names, mount_point):
    """Everything that can be done at one mounted hierarchy, short of harm to others."""
    here = mount_point + own_groups()[names].rstrip("/")
    own = {here, *groups_of(os.environ["RAYTOOLS_RUN_ID"], mount_point)}
    for group in own:
        for file, value in RAISED.items():
            write(f"{group}/{file}", value)
    above = {here[:end] for end in range(len(mount_point), len(here)) if here[end] == "/"}
    for group in (*above, mount_point, *groups_of(SIBLING, mount_point)):
        if group not in own:
            write(f"{group}/cgroup.procs", "0")
            write(f"{group}/tasks", "0")


def attack_through_others():
    known = list(mounts())
    for process in glob.glob("/proc/[0-9]*"):
        if process != f"/proc/{os.getpid()}":
            for names, mount_point in known:
                attack(names, f"{process}/root{mount_point}")
            for link in (f"{process}/cwd", *glob.glob(f"{process}/fd/*")):
                write(f"{link}/cgroup.procs", "0")


def attack_afresh(mount):
    become_root(*USER)
    before = own_groups()
    for names, mount_point in mount_afresh(mount).items():
        attack(names, mount_point)
    use_what_was_gained(before)


def clone_into(group):
    descriptor = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    arguments = struct.pack("11Q", CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, descriptor)
    child = libc.syscall(CLONE3, arguments, len(arguments))
    if child == 0:
        print("was born in", own_groups()[("",)], flush=True)
        os._exit(0)
    if child > 0:
        os.waitpid(child, 0)


def use_what_was_gained(before):
    if own_groups() != before:
        print("moved from", before, "to", own_groups(), flush=True)
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(os.cpu_count()))
    if len(os.sched_getaffinity(0)) > allowed:
        print("has CPUs", os.sched_getaffinity(0), flush=True)
    bytearray(400 << 20)
    print("survived 400 MiB", flush=True)
    os._exit(0)


before = own_groups()
if WAY == "direct":
    for names, mount_point in list(mounts()):
        attack(names, mount_point)
elif WAY == "proc":
    attack_through_others()
elif WAY == "mount" and libc.unshare(OWN_NAMESPACES) == 0:
    attack_afresh(by_mount)
elif WAY == "fsmount":
    child = libc.syscall(CLONE, OWN_NAMESPACES | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        attack_afresh(by_fsmount)
    elif child > 0:
        os.waitpid(child, 0)
elif WAY == "clone-into" and os.path.isdir(SIBLING):
    clone_into(SIBLING)
use_what_was_gained(before)
