"""What a run may not see or do: other processes, other groups, shared memory of others, CAP_SYS_ADMIN.

Namespaces (namespaces(7)), made in one clone(2), for a plain user through a user namespace:

- mount: of every cgroup hierarchy only the run's own group is shown, read-only; private /dev/shm. Code with
  the same uid could otherwise write itself into another group's cgroup.procs, or be born there
  (clone3(2) with CLONE_INTO_CGROUP asks only for a descriptor of the directory).
- PID: nothing outside can be signalled, stopped or reached through /proc/PID/root; and the death of its first
  process, which dies with the supervisor, is the death of all.
- IPC: System V and POSIX shared memory and queues end with the run.
- cgroup: the run sees its own group as the root.

Sockets of services that start programs for others (systemd, D-Bus, container engines) are covered.

CAP_SYS_ADMIN would undo the mounts and CAP_SYS_PTRACE would let root look into processes outside: both are
dropped. This holds programs, not a root that means harm: that one can still load a kernel module.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from signal import SIGCHLD, SIGKILL

from raytools.node.plain import Plain

_CLONE_NEWNS, _CLONE_NEWCGROUP = 0x00020000, 0x02000000
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID = 0x08000000, 0x10000000, 0x20000000
_CLONE_INTO_CGROUP = 0x200000000
_SYS_CLONE3 = 435  # on every architecture

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
# statvfs(3) flag -> mount(2) flag: what a remount in a user namespace must repeat, or it is refused
_KEPT_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_PR_SET_SECCOMP, _PR_CAPBSET_DROP = 22, 24
_PR_SET_CHILD_SUBREAPER = 36
_CAP_SYS_PTRACE, _CAP_SYS_ADMIN = 19, 21
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_SERVICE_SOCKETS = (
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
# of ioctl(2): own, 32-bit programs', and on x86 those of the x32 ABI
_IOCTL_NUMBERS = {"x86_64": (16, 54, 0x40000000 + 514), "aarch64": (29, 54)}
_BPF_LOAD, _BPF_EQUAL, _BPF_RETURN = 0x20, 0x15, 0x06
_SECCOMP_ALLOW, _SECCOMP_ERRNO = 0x7FFF0000, 0x00050000

_libc = ctypes.CDLL(None, use_errno=True)

# what to try, in this order: in a container whose /proc is masked a plain user gets no new one
FULL, WITHOUT_PID, NOTHING = "full", "without PID namespace", "nothing"
LEVELS = (FULL, WITHOUT_PID, NOTHING)


class Surroundings(Plain):
    """What a run's mount namespace is made from."""

    memory_bytes: int  # size of its /dev/shm; the pages are charged to the run anyway
    shown: Mapping[str, str]  # cgroup mount point -> the run's own directory in it
    read_only: tuple[str, ...]  # cgroup mount points in which the run has no group of its own
    covered: tuple[str, ...]  # the same, but a process could be born in another group there (v2)
    shares_terminal: bool


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


class _BpfInstruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    )


class _BpfProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.c_void_p))


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def become_subreaper() -> None:
    """Makes this process the parent of all its descendants' orphans (prctl(2))."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent dies (prctl(2))."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(SIGKILL), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def set_name(name: str) -> None:
    """What `ps` and `top` call this process, 15 characters (prctl(2))."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0), "prctl(PR_SET_NAME)")


def fork_into_namespaces(level: str, body: Callable[[], None]) -> int:
    """Forks a child with namespaces of its own; it runs `body`, which has to end it. Returns its pid.

    unshare(2) would not do: its PID namespace is that of children only, and a process that tried in vain
    could not go back.

    Raises:
        OSError: the kernel allows none; the message names the call.
    """
    if level == NOTHING:
        return fork(body)
    flags = _CLONE_NEWNS | _CLONE_NEWIPC
    flags |= _CLONE_NEWPID if level == FULL else 0
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        return _clone(flags, body)

    def as_oneself() -> None:
        _keep_own_ids(uid, gid)
        body()

    return _clone(flags | _CLONE_NEWUSER, as_oneself)


def fork_into_cgroup(directory: str, body: Callable[[], None]) -> int:
    """Forks a child that is born in a group of cgroup v2: it need not move, and so not wait (clone(2)).

    Raises:
        OSError: the kernel cannot (before 5.7), or the group does not take it.
    """
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _clone(_CLONE_INTO_CGROUP, body, group)
    finally:
        os.close(group)


def fork(body: Callable[[], None]) -> int:
    """Forks a child that runs `body`, which has to end it. Returns its pid."""
    pid = os.fork()
    if pid == 0:
        _run_to_the_end(body)
    return pid


class _CloneArguments(ctypes.Structure):
    """struct clone_args of clone3(2)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"),
            *("set_tid", "set_tid_size", "cgroup"),
        )
    )


def _clone(flags: int, body: Callable[[], None], cgroup: int = 0) -> int:
    """clone3(2) as fork(2), with what CPython wants to be told about a fork."""
    arguments = _CloneArguments(flags=flags, exit_signal=int(SIGCHLD), cgroup=cgroup)
    # PyDLL keeps the interpreter's lock, so that the child has it
    syscall = ctypes.PyDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    size = ctypes.c_size_t(ctypes.sizeof(arguments))
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(syscall(ctypes.c_long(_SYS_CLONE3), ctypes.byref(arguments), size))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        _run_to_the_end(body)
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    _check(0 if pid > 0 else -1, "clone3")
    return pid


def _run_to_the_end(body: Callable[[], None]) -> None:
    try:
        body()
    finally:
        os._exit(70)  # EX_SOFTWARE: body ends by itself


def _keep_own_ids(uid: int, gid: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    # in one of its own making it would be root over its cgroups, mounted afresh (namespaces(7))
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")


def confine(level: str, surroundings: Surroundings) -> None:
    """Makes this process's mount namespace what the run may see; only for a process about to exec.

    It is in the run's group already, which becomes the root of its cgroup namespace.

    Raises:
        OSError: the kernel forbids one of the steps; the message names it.
    """
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _check(_libc.unshare(_CLONE_NEWCGROUP), "unshare(cgroup namespace)")
    for mount_point, directory in surroundings.shown.items():
        _mount(directory, mount_point, None, _MS_BIND)
        _remount_read_only(mount_point)
    for mount_point in surroundings.read_only:
        _remount_read_only(mount_point)
    for mount_point in surroundings.covered:
        _mount("tmpfs", mount_point, "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "size=4k,mode=555")
    if os.path.isdir("/dev/shm"):
        options = f"size={surroundings.memory_bytes},mode=1777"
        _mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    _hide_services()
    if os.path.isdir("/dev/mqueue"):
        _mount("mqueue", "/dev/mqueue", "mqueue", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    if level == FULL:
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    if surroundings.shares_terminal:
        _forbid_typing()
    _drop_capabilities(_CAP_SYS_PTRACE, _CAP_SYS_ADMIN)


def _hide_services() -> None:
    """Covers the sockets of services that would start a program outside for whoever asks."""
    own = f"/run/user/{os.getuid()}"
    is_there = os.path.isdir(own)
    if os.path.isdir("/run/user"):  # root could ask the service managers of all who are logged in
        _mount("tmpfs", "/run/user", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
        if is_there:
            os.mkdir(own, 0o700)  # XDG_RUNTIME_DIR, empty
    for path in _SERVICE_SOCKETS:
        if os.path.exists(path):
            _mount(os.devnull, path, None, _MS_BIND)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    data = None if options is None else options.encode()
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), data), f"mount({target})")


def _remount_read_only(mount_point: str) -> None:
    present = os.statvfs(mount_point).f_flag
    kept = sum(mount_flag for flag, mount_flag in _KEPT_FLAGS.items() if present & flag)
    _mount(None, mount_point, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | kept)


def _forbid_typing() -> None:
    """Takes away the ioctls that put characters into the terminal's input, where the shell would obey them.

    Linux 6.2 can switch TIOCSTI off, but leaves it on by default. seccomp(2) compares the lower half of the
    second argument. A shell needs neither.
    """
    checks = _IOCTL_NUMBERS.get(os.uname().machine, ())
    program = [(_BPF_LOAD, 0, 0, 0)]  # the system call's number
    for left, number in zip(range(len(checks), 0, -1), checks, strict=True):
        program.append((_BPF_EQUAL, left, 0, number))
    program += [
        (_BPF_RETURN, 0, 0, _SECCOMP_ALLOW),
        (_BPF_LOAD, 0, 0, 24),  # lower half of the second argument
        (_BPF_EQUAL, 2, 0, _TIOCSTI),
        (_BPF_EQUAL, 1, 0, _TIOCLINUX),
        (_BPF_RETURN, 0, 0, _SECCOMP_ALLOW),
        (_BPF_RETURN, 0, 0, _SECCOMP_ERRNO | 1),  # EPERM
    ]
    instructions = (_BpfInstruction * len(program))(*(_BpfInstruction(*each) for each in program))
    filters = _BpfProgram(len(program), ctypes.cast(instructions, ctypes.c_void_p))
    result = _libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(filters), 0, 0)
    _check(result, "prctl(PR_SET_SECCOMP)")


def _drop_capabilities(*capabilities: int) -> None:
    """From the bounding set, so that no exec brings them back, and from what this process holds now."""
    for capability in capabilities:
        _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl(PR_CAPBSET_DROP)")
    header = _CapabilityHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    _check(_libc.capget(ctypes.byref(header), data), "capget")
    kept = ~sum(1 << capability for capability in capabilities)
    for name in ("effective", "permitted", "inheritable"):
        setattr(data[0], name, getattr(data[0], name) & kept)
    _check(_libc.capset(ctypes.byref(header), data), "capset")
