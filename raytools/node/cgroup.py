"""cgroups: what a driver has to offer, which one this machine allows, and why if it allows none.

The kernel's two interfaces differ in files, not in what we need: create a group with limits, put processes
in, freeze, kill, read what it used, remove. `cgroup_v1` and `cgroup_v2` hold just that.
Documents: the kernel's admin-guide/cgroup-v1/ and admin-guide/cgroup-v2.rst.

A group has two levels. The outer one carries the limits and no process; processes are in `inside` below it.
A process that makes a cgroup namespace of its own and mounts the hierarchy afresh (any user may, in a user
namespace) becomes master of the group it is in, and of nothing above: the limits stay out of its reach.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import sys
import time
from collections.abc import Callable, Iterable
from signal import SIGKILL

from raytools.errors import RefusedError
from raytools.node.cgroup_tree import (
    UNIFIED,
    OwnCgroups,
    group_folders,
    group_processes,
    locate_self,
    read_text,
)
from raytools.node.plain import Plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

# v1 keeps one tree per controller; these are the ones a run is put into, in this order
CONTROLLERS = ("memory", "cpuset", "pids", "freezer", "cpuacct", "cpu")
INSIDE = "inside"  # the lower level of a group, where its processes are
_NOBODY = 65534
_WAIT_FOR_DEATH_S = 10.0
_LONGEST_DEATH_S = 120.0
WAIT_FOR_REMOVAL_S = 30.0  # of a run that has ended


class GroupLimits(Plain):
    """What a group may take. `cpus` are kernel CPU numbers."""

    cpus: tuple[int, ...]
    memory_bytes: int
    pids: int
    denied_devices: tuple[str, ...] = ()  # as `c 195:1`, for kernels with rules for them


class GroupUsage(Plain):
    """What a group took so far; None where this kernel does not tell."""

    cpu_s: float | None
    memory_peak_bytes: int | None
    anon_bytes: int | None
    oom_kills: int | None
    throttled_s: float | None
    swap_in_bytes: int | None
    cpu_pressure_s: float | None


class Group(Protocol):
    """One cgroup with limits, or on v1 one per controller under the same name."""

    kind: str  # cgroup-v1 | cgroup-v2
    kill_method: str  # cgroup.kill | freezer | signals
    missing: list[str]  # limits that this kernel could not set, each with its reason

    def entrances(self) -> list[str]:
        """The files into which a process with one thread writes 0 to move itself in."""

    def birthplace(self) -> str | None:
        """A directory of cgroup v2 to be born in, which is quicker than to move there; it has no entrance."""

    def visible(self) -> dict[str, str]:
        """Mount point -> directory: what of each hierarchy its members may see."""

    def processes(self, besides: int | None = None) -> list[int]:
        """Every process inside, also in groups below.

        Args:
            besides: a process that is not a member, where members cannot be told from the start.
        """

    def freeze(self, frozen: bool) -> None:
        """Stops everything inside, or lets it go on; frozen processes cannot fork past a signal."""

    def kill(self) -> None:
        """Sends SIGKILL to everything inside once; `empty_group` repeats until nothing is left."""

    def oom_descriptor(self) -> int | None:
        """A descriptor that polls readable when the memory limit killed something; None if there is none."""

    def cpu_s(self) -> float | None:
        """CPU seconds so far."""

    def anon_bytes(self) -> int | None:
        """Memory without page cache that it holds now; cheap, for sampling."""

    def oom_kills(self) -> int | None:
        """How many processes the memory limit killed."""

    def hit_own_limit(self) -> bool:
        """Whether its own memory limit was reached, and not that of a group above or the machine's end."""

    def changed_limits(self, limits: GroupLimits) -> list[str]:
        """What somebody outside has changed of the limits since, in words."""

    def usage(self) -> GroupUsage:
        """What it used so far."""

    def remove(self) -> None:
        """Removes the empty group."""


class Driver(Protocol):
    """Creates groups at the one place where this process may."""

    kind: str

    def paths(self, name: str) -> list[str]:
        """The directories that `create(name)` will make: noted down before they exist, for the sweep."""

    def create(self, name: str, limits: GroupLimits) -> Group:
        """Makes a group and sets its limits; undoes every step when a later one fails.

        Raises:
            RefusedError: with the cause and the command that allows it.
        """


def select_driver(groups: OwnCgroups | None = None, scope_name: str | None = None) -> Driver:
    """The driver for the place this process runs at.

    Args:
        groups: where that is, if the caller knows already.
        scope_name: on cgroup v2 under systemd, lets this process move into a scope of that name.

    Raises:
        RefusedError: no cgroup can be made here; the message says why and what to do.
    """
    groups = groups or locate_self()
    versions = {name: groups.version(name) for name in ("memory", "cpuset")}
    if set(versions.values()) == {1}:
        from raytools.node import cgroup_v1

        return cgroup_v1.open_driver(groups)
    if UNIFIED in groups.own and 1 not in versions.values():
        from raytools.node import cgroup_v2

        return cgroup_v2.open_driver(groups, scope_name)
    raise RefusedError(
        no_hierarchy(groups),
        expected="the controllers memory and cpuset together, in cgroup v2 or in cgroup v1",
        fix="Run on the host, or in a container that has its cgroups mounted, or boot with "
        "systemd.unified_cgroup_hierarchy=1",
    )


def no_hierarchy(groups: OwnCgroups) -> str:
    """Why neither version will do, in words."""
    if not groups.own:
        return "no cgroup hierarchy is mounted here"
    where = {name: groups.version(name) for name in ("memory", "cpuset")}
    lacking = [name for name, version in where.items() if version is None]
    if lacking:
        return f"no mounted cgroup hierarchy has the controller {' or '.join(lacking)}"
    return f"the controllers are in different cgroup versions ({where})"


def grant_command() -> str:
    """The exact command that lets this user make groups; a node has the toolkit, and no `raytools`."""
    import shlex  # only who is refused waits for it

    program, code = sys.argv[0], os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    if os.path.basename(program) == "raytools" and os.path.exists(program):
        command = os.path.realpath(program)
    elif "/toolkit/" in f"{code}/":
        command = f"env PYTHONPATH={shlex.quote(code)} {shlex.quote(sys.executable)} -m raytools.node"
    else:
        command = "raytools"
    return f"sudo {command} grant --user {user_name()}"


def user_name() -> str:
    """The name of the user of this process, or its number where it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def signal_all(pids: Iterable[int], number: int) -> None:
    """Sends a signal to processes that may be gone already."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def freeze_directory(directory: str, frozen: bool) -> bool:
    """Freezes or thaws a group; False where this hierarchy cannot.

    Thaws every group below as well: a process that became master of its own group may have frozen itself
    there, and on v1 a frozen process does not die.
    """
    for file, on, off in (("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0")):
        if os.path.exists(f"{directory}/{file}"):
            for folder in [directory] if frozen else group_folders(directory):
                with contextlib.suppress(FileNotFoundError):
                    write_file(f"{folder}/{file}", on if frozen else off)
            return True
    return False


def kill_directory(directory: str) -> None:
    """Kills everything in one directory of whatever hierarchy, with what the kernel offers there.

    Frozen tasks cannot fork past the signals; on v1 SIGKILL takes effect at the thaw.
    """
    if os.path.exists(f"{directory}/cgroup.kill"):  # v2 since Linux 5.14
        write_file(f"{directory}/cgroup.kill", "1")
        return
    frozen = freeze_directory(directory, True)
    try:
        signal_all(group_processes(directory), SIGKILL)
    finally:
        if frozen:
            freeze_directory(directory, False)


def empty_group(
    processes: Callable[[], list[int]], kill: Callable[[], None], timeout_s: float = _WAIT_FOR_DEATH_S
) -> tuple[int, int]:
    """Kills until the group is empty. Returns how many processes it found first, and how many are left.

    Args:
        processes: the members now.
        kill: kills all of them.
        timeout_s: gives up when they have not become fewer for so long. Thousands take a slow kernel a while.
    """
    left = processes()
    found = fewest = len(left)
    began = time.monotonic()
    deadline = began + timeout_s
    pause_s = 0.0005
    while left and time.monotonic() < min(deadline, began + _LONGEST_DEATH_S):
        kill()
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
        left = processes()
        if len(left) < fewest:
            fewest, deadline = len(left), time.monotonic() + timeout_s
    return found, len(left)


def make_directory(directory: str, fix: str | None = None) -> None:
    """Makes a group.

    Raises:
        RefusedError: the kernel refuses, with its reason and what to do.
        FileNotFoundError: the group above went just now, with its last run.
        FileExistsError: it is there already.
    """
    try:
        os.mkdir(directory)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        reasons = {
            "EAGAIN": "a limit on the number of groups (cgroup.max.descendants) is reached",
            "ENOSPC": "the kernel has no room for another group of this controller",
            "EROFS": "it is mounted read-only here, as inside another limited run",
        }
        reason = reasons.get(errno.errorcode.get(error.errno or 0, ""), os.strerror(error.errno or 0))
        raise RefusedError(
            f"cannot make the cgroup {directory}: {reason}",
            expected="the right to make groups there",
            fix=fix or f"Allow it once with: {grant_command()}",
        ) from error


def make_inside(directory: str) -> None:
    """Makes the level for the processes.

    Root's belongs to nobody: root in a user namespace of its own making could else make groups below it and
    hide there. Plain users cannot give it away; they are kept from making user namespaces (confine.py).
    """
    inside = f"{directory}/{INSIDE}"
    make_directory(inside)
    if os.getuid() == 0:
        try:
            os.chown(inside, _NOBODY, _NOBODY)
        except OSError as error:
            raise RefusedError(
                f"cannot give the cgroup {inside} to nobody: {error.strerror}",
                expected="root to have the right to",
                fix="Run it where root has CAP_CHOWN, or as a granted plain user",
            ) from error


def remove_directory(directory: str, timeout_s: float = 2.0) -> None:
    """Removes a group and the groups below it, waiting for the kernel to let the last task go.

    Killed processes are no members any more, long before the kernel has taken a thousand of them apart.

    Raises:
        OSError: it still holds something after the time limit.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            for folder in reversed(group_folders(directory)):
                os.rmdir(folder)
        except FileNotFoundError:
            if not os.path.isdir(directory):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)
        else:
            return


def write_file(path: str, value: str) -> None:
    """Writes one cgroup file; never creates one.

    Raises:
        OSError: as the kernel says.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def write_limit(path: str, value: str) -> None:
    """Writes one limit.

    Raises:
        RefusedError: the kernel does not take it; names the file, the value and the kernel's reason.
        FileNotFoundError: the group is gone.
    """
    try:
        write_file(path, value)
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(path)):  # the group went just now
            raise
        raise RefusedError(f"this kernel has no {path}", expected="it to know this limit") from None
    except OSError as error:
        raise RefusedError(
            f"cannot write {value!r} to {path}: {error.strerror}",
            expected=_expected_of(os.path.basename(path)),
            fix="See which limits work here: raytools run --check",
        ) from error


def _expected_of(file: str) -> str:
    """What would have made the kernel take the value, by the file's meaning."""
    return {
        "cpuset.cpus": "CPUs that are online and allowed to the group above",
        "cgroup.procs": "a process of this user, and write access to the common ancestor of both groups",
        "tasks": "a process of this user",
    }.get(file, "the kernel to accept it")


def tighter_above(directory: str, top: str, file: str, promised: int, name: str) -> list[str]:
    """What a group above allows less of than was promised, in words, for the record's `missing`.

    Args:
        directory: the group; those above it are looked at.
        top: the mount point, where looking ends.
        file: of the limit.
        promised: bytes or processes.
        name: of the limit, for people.
    """
    while len(directory) > len(top):
        directory = os.path.dirname(directory)
        allowed = read_number(f"{directory}/{file}")
        if allowed is not None and allowed < promised:
            return [f"{name}: {directory}/{file} allows only {allowed}"]
    return []


def read_number(path: str) -> int | None:
    """The number in a cgroup file, None if this kernel has no such file."""
    text = (read_text(path) or "").strip()
    return int(text) if text.isdigit() else None


def read_pairs(path: str) -> dict[str, int]:
    """The `name value` lines of a cgroup file, empty if this kernel has no such file."""
    lines = (line.split() for line in (read_text(path) or "").splitlines())
    return {parts[0]: int(parts[1]) for parts in lines if len(parts) == 2 and parts[1].isdigit()}
