"""Who holds which CPUs and how much memory of this node: kernel locks, so that a killed holder frees them.

A node-wide directory holds one file per CPU and one file per holder. A CPU belongs to whoever has the
flock(2) on its file; a holder's file says who that is, and is locked for as long as the holder lives.
A holder file that nobody locks is what a killed supervisor left: `stale()` lists those for the sweep.
Slots of different configurations, checkouts and users meet here, so they can never overlap.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence

from raytools.errors import RaytoolsError, RefusedError
from raytools.node.cgroup import user_name
from raytools.node.plain import Plain, as_dict, field
from raytools.units import format_size

RUN, PINNED = "run", "pinned"
_OPENED_TO_ALL_S = 0.05


class Holder(Plain):
    """Who holds a share of this node. `traces` is what a sweep has to remove if it dies."""

    run_id: str
    pid: int
    user: str
    cpus: list[int]
    memory_bytes: int
    command: list[str]
    started_at: str
    slot: int | None = None
    record_path: str | None = None
    traces: dict[str, list[str]] = field(factory=dict)  # {"cgroups": […], "directories": […]}
    kind: str = RUN  # run | pinned: a block of `raytools.pinned`, which leaves nothing behind

    def describe(self) -> str:
        """One line for people: who holds what since when."""
        command = " ".join(self.command)
        shown = command if len(command) <= 60 else command[:57] + "..."
        kind = "run" if self.kind == RUN else "pinned block"
        return (
            f"{kind} {self.run_id} of {self.user} (pid {self.pid}, CPUs {self.cpus}, "
            f"{format_size(self.memory_bytes)}, since {self.started_at}): {shown}"
        )


class BusyError(RefusedError):
    """The CPUs or the memory asked for are held by other runs."""

    def __init__(self, found: str, holders: Sequence[Holder]) -> None:
        self.holders = list(holders)
        super().__init__(found, fix="Wait for it with --wait 10m, or see who holds what: raytools slots")

    def __reduce__(self) -> tuple[type[BusyError], tuple[str, list[Holder]]]:
        return BusyError, (self.found, self.holders)  # Ray carries it from the worker to the driver


class Claim:
    """CPUs and memory held by this process until `release()` or its death."""

    def __init__(self, holder: Holder, path: str, descriptors: list[int]) -> None:
        self.holder = holder
        self._path = path
        self._descriptors = descriptors
        self._is_left = False

    def leave_to_sweep(self) -> None:
        """Has `release()` keep the holder's file: a later run cleans up what could not be removed."""
        self._is_left = True

    def release(self) -> None:
        """Gives everything back. The holder's file goes first, so that no reader takes it for a dead one."""
        if not self._is_left:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        for descriptor in self._descriptors:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # for the copies in forked children, too
            os.close(descriptor)
        self._descriptors = []


def lock_directory() -> str:
    """The node-wide directory of locks, made on first use and open to every user like /tmp is.

    Raises:
        RaytoolsError: it exists but this user may not use it.
    """
    path = os.environ.get("RAYTOOLS_LOCK_DIR") or _default_directory()
    for directory in (path, f"{path}/held"):
        if not os.path.isdir(directory):
            try:
                os.makedirs(directory, exist_ok=True)
            except OSError as error:
                raise _unusable(directory, error) from error
            with contextlib.suppress(OSError):  # its maker, at the same moment, was another user
                os.chmod(directory, 0o1777)  # noqa: S103 - as /tmp: anybody's locks, nobody else's to remove
        if not _may_use(directory):
            time.sleep(_OPENED_TO_ALL_S)  # its maker, at the same moment, does it in a second step
        if not _may_use(directory):
            raise RaytoolsError(
                f"{directory} is not a directory that {user_name()} may write to",
                expected="the node-wide lock directory to have mode 1777",
                fix=f"sudo chmod 1777 {directory}",
            )
    return path


def _may_use(directory: str) -> bool:
    return not os.path.islink(directory) and os.access(directory, os.W_OK | os.X_OK)


def _unusable(path: str, error: OSError) -> RaytoolsError:
    return RaytoolsError(
        f"{path} cannot be written: {error.strerror}",
        expected="a directory for locks with room in it",
        fix="Make room there, or name another directory for all users: RAYTOOLS_LOCK_DIR",
    )


def _default_directory() -> str:
    """The same for every user of the machine, or two users could hold one CPU.

    /run/lock is the FHS's place for locks and empty after a boot. Where only root may write to it (RHEL), a
    directory that root has made there counts; otherwise all users, root too, meet in /tmp.
    """
    for parent in ("/run/lock", "/var/lock"):
        if os.path.isdir(f"{parent}/raytools"):
            return f"{parent}/raytools"
        with contextlib.suppress(OSError):
            if os.stat(parent).st_mode & 0o002:
                return f"{parent}/raytools"
    return "/tmp/raytools-locks"


def open_lock(path: str) -> int:
    """A descriptor to lock. Read-only is enough for flock, so one user's file serves all others.

    Raises:
        RaytoolsError: somebody has put something else there.
    """
    has_waited = False
    while True:
        try:
            # not waiting for the writer of a FIFO, should it be one
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                os.fchmod(descriptor, 0o644)  # whatever the umask
            except FileExistsError:
                continue
            except OSError as error:
                raise _unusable(path, error) from error
            return descriptor
        except PermissionError:
            if not has_waited:  # its maker opens it to all in a second step
                has_waited = True
                time.sleep(_OPENED_TO_ALL_S)
                continue
        except OSError:  # a link
            pass
        raise RaytoolsError(
            f"{path} is not a file that {user_name()} may lock",
            expected="a lock file of raytools",
            fix=f"Look whose it is, and remove it: sudo rm {path}",
        )


def try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def node_mutex() -> Iterator[str]:
    """Serialises changes of the node's books; held for milliseconds only. Yields the lock directory."""
    directory = lock_directory()
    descriptor = open_lock(f"{directory}/mutex")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(descriptor)


def claim(holder: Holder, memory_capacity_bytes: int | None) -> Claim:
    """Takes the holder's CPUs and memory, all or nothing.

    Args:
        holder: who asks, for which CPUs and how much memory.
        memory_capacity_bytes: what all runs of the node together may hold; None does not check.

    Raises:
        BusyError: others hold them, named in the message.
    """
    with node_mutex() as directory, contextlib.ExitStack() as undo:
        descriptors = []
        for cpu in sorted(holder.cpus):
            descriptor = _take_cpu(directory, cpu)
            if descriptor is None:
                owners = [other for other in holders() if cpu in other.cpus]
                named = owners[0].describe() if owners else f"an unknown process ({directory}/cpu-{cpu})"
                raise BusyError(f"CPU {cpu} is held by {named}", owners)
            undo.callback(os.close, descriptor)
            descriptors.append(descriptor)
        _check_memory(holder, memory_capacity_bytes)
        made = _sign(directory, holder, descriptors)
        undo.pop_all()
        return made


def claim_any(holder: Holder, candidates: Sequence[int], count: int) -> Claim:
    """Takes the first `count` of the candidate CPUs that are free, all or nothing.

    Raises:
        BusyError: fewer are free; names who holds the others.
    """
    with node_mutex() as directory, contextlib.ExitStack() as undo:
        descriptors: dict[int, int] = {}
        for cpu in candidates:
            if len(descriptors) == count:
                break
            descriptor = _take_cpu(directory, cpu)
            if descriptor is not None:
                undo.callback(os.close, descriptor)
                descriptors[cpu] = descriptor
        if len(descriptors) < count:
            owners = [other for other in holders() if set(other.cpus) & set(candidates)]
            named = "; ".join(owner.describe() for owner in owners) or "unknown processes"
            raise BusyError(
                f"{len(descriptors)} of the CPUs {list(candidates)} are free, {count} asked; held by {named}",
                owners,
            )
        holder.cpus = sorted(descriptors)
        made = _sign(directory, holder, list(descriptors.values()))
        undo.pop_all()
        return made


def _take_cpu(directory: str, cpu: int) -> int | None:
    """The locked descriptor of a CPU, None if somebody has it."""
    descriptor = open_lock(f"{directory}/cpu-{cpu}")
    if try_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _sign(directory: str, holder: Holder, descriptors: list[int]) -> Claim:
    """Says who holds these descriptors, in a file that is locked for as long as the holder lives."""
    path = f"{directory}/held/{holder.run_id}.json"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise  # two of one name: a defect of ours
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.fchmod(descriptor, 0o644)
        # as much of the command as tells what it is: it may have two megabytes
        told = {**as_dict(holder), "command": [part[:200] for part in holder.command[:20]]}
        os.write(descriptor, json.dumps(told).encode())
    except BaseException as error:
        os.unlink(path)
        os.close(descriptor)
        if isinstance(error, OSError):
            raise _unusable(path, error) from error
        raise
    return Claim(holder, path, [*descriptors, descriptor])


def _check_memory(holder: Holder, capacity_bytes: int | None) -> None:
    if capacity_bytes is None:
        return
    others = holders()
    held_bytes = sum(other.memory_bytes for other in others)
    if held_bytes + holder.memory_bytes > capacity_bytes:
        raise BusyError(
            f"{format_size(held_bytes)} of memory are held by {len(others)} other runs, "
            f"{format_size(holder.memory_bytes)} more would exceed the {format_size(capacity_bytes)} "
            "that this node gives to runs",
            others,
        )


def holders() -> list[Holder]:
    """Every live holder on this node, of all users."""
    return [holder for holder, _path, alive in _held_files() if alive]


def stale() -> list[tuple[Holder, str]]:
    """What killed holders left: their description and their file, to be removed after the sweep."""
    return [(holder, path) for holder, path, alive in _held_files() if not alive]


def _held_files() -> Iterator[tuple[Holder, str, bool]]:
    folder = f"{lock_directory()}/held"
    for name in sorted(os.listdir(folder)):
        path = f"{folder}/{name}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # released between the listing and now, or nothing of ours: anybody may write here
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                continue
            alive = not _try_shared(descriptor)
            if os.fstat(descriptor).st_nlink == 0:
                continue  # its holder has released it since: that is why nobody holds it
            text = os.read(descriptor, 1 << 20)
        finally:
            os.close(descriptor)
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            # A holder's file is written in one go under the mutex, so what cannot be read is somebody else's.
            # The CPU locks hold without it.
            yield _checked(Holder(**json.loads(text))), path, alive


def _checked(holder: Holder) -> Holder:
    """The holder, if its fields are what they should be.

    Raises:
        ValueError: they are not.
    """
    texts = (holder.run_id, holder.user, holder.started_at, holder.kind, holder.record_path or "")
    numbers = (holder.pid, holder.memory_bytes, *holder.cpus)
    lists = [holder.command, *holder.traces.values()]
    good = all(isinstance(text, str) for text in texts)
    good = good and all(isinstance(number, int) for number in numbers)
    good = good and all(isinstance(one, list) and all(isinstance(t, str) for t in one) for one in lists)
    if not good:
        raise ValueError("not a holder's file")
    return holder


def _try_shared(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
