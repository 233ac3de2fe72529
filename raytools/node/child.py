"""The two processes between the supervisor and the command.

`init` is the first process of the run's PID namespace: it collects orphans, tells the supervisor how the
command ended, and its own death, which the supervisor's death brings about, is the death of all. It is not
in the run's group, so it is neither limited nor measured. Its child puts itself into the group, confines
itself and becomes the command.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Callable, Sequence

from raytools.errors import RaytoolsError, RefusedError
from raytools.node import confine
from raytools.node.confine import FULL, LEVELS, NOTHING, Surroundings
from raytools.node.link import readable
from raytools.node.plain import Plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as shells do
_NAMESPACE_END_S = 0.3
_READY, _GO = b'{"ready": true}\n', b"g"


class Command(Plain):
    """What is to be started, and in what."""

    arguments: Sequence[str]  # the program is looked up in the environment's PATH
    cwd: str
    environment: dict[str, str]
    stdio: Sequence[int]  # descriptors that become its 0, 1 and 2
    foreign: Sequence[int]  # descriptors that the supervisor inherited and `init` has to let go
    cpus: Sequence[int]  # become its affinity
    entrances: Sequence[str]  # it writes 0 into each of them to enter its group
    birthplace: str | None  # or is born there
    surroundings: Surroundings
    shares_terminal: bool
    ignores_hangup: bool


class Process:
    """The command's process, waiting for `release()`, and `init` above it.

    `events` polls readable when `init` has something to say: `status` (of waitpid), or `stopped`.
    """

    def __init__(self, init: int, level: str, gate: int, hold: int, report: int, events: int) -> None:
        self.init = init
        self.level = level  # of confinement
        self.events = events
        self._gate = gate
        self._hold = hold
        self._report = os.fdopen(report, "rb")
        self._unread = b""

    def answer(self) -> dict[str, Any]:
        """What the process says of its start: `ready`, or what went wrong. {} when it is gone or executes."""
        line = self._report.readline()
        return dict(json.loads(line)) if line else {}

    def release(self) -> str | None:
        """Lets it become the command; returns why that failed, if it did."""
        with contextlib.suppress(BrokenPipeError):  # killed meanwhile
            os.write(self._gate, _GO)
        os.close(self._gate)
        failure = self.answer().get("exec_error")
        self._report.close()
        return failure

    def read_events(self) -> list[dict[str, Any]] | None:
        """What `init` has said; None when it is gone."""
        data = os.read(self.events, 4096)
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None

    def discard(self) -> None:
        """Ends a start that came to nothing."""
        os.close(self._gate)
        self._report.close()
        self.end()

    def end_namespace(self) -> None:
        """Kills `init`: the kernel kills all in its PID namespace then, and it is gone when they are.

        Waits a moment for that, in vain where something has frozen itself, or cannot be killed.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        with contextlib.suppress(OSError):  # before Linux 5.3
            pidfd = os.pidfd_open(self.init)
            readable([pidfd], _NAMESPACE_END_S)
            os.close(pidfd)

    def end(self, collect: bool = True) -> None:
        """Ends and collects `init`.

        Args:
            collect: whether to wait for it; in vain while something of its namespace cannot be killed.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.init, 0 if collect else os.WNOHANG)
        os.close(self._hold)
        os.close(self.events)


def start(command: Command, missing: list[str]) -> Process:
    """Starts both processes, confined as far as this machine allows.

    Args:
        command: what to start.
        missing: gets what could not be had, each with its reason.

    Returns:
        The process, ready to be released.

    Raises:
        RefusedError: it could not enter its group.
    """
    for level in LEVELS:
        try:
            process = _spawn(command, level)
        except OSError as error:
            missing.append(f"confinement ({level}): {error.strerror or error}")
            continue
        answer = process.answer()
        if answer.get("ready"):
            return process
        process.discard()
        if "refused" in answer:
            raise RefusedError(answer["refused"], fix="See which limits work here: raytools run --check")
        missing.append(f"confinement ({level}): {answer.get('confinement_error', 'the process vanished')}")
    raise RaytoolsError("the command's process could not be started", fix="; ".join(missing))


def _spawn(command: Command, level: str) -> Process:
    gate_read, gate_write = os.pipe()
    hold_read, hold_write = os.pipe()
    report_read, report_write = os.pipe()
    events_read, events_write = os.pipe()
    ours, theirs = (gate_write, hold_write, report_read, events_read), (gate_read, hold_read, report_write)

    def init() -> None:
        for descriptor in ours:
            os.close(descriptor)
        confine.die_with_parent()
        _be_init(command, level, theirs, events_write)

    try:
        pid = confine.fork_into_namespaces(level, init)
    except BaseException:
        for descriptor in ours:
            os.close(descriptor)
        raise
    finally:
        for descriptor in (*theirs, events_write):
            os.close(descriptor)
    return Process(pid, level, *ours)


def _be_init(command: Command, level: str, pipes: tuple[int, int, int], events: int) -> None:
    gate, hold, report = pipes
    if level != FULL:
        confine.become_subreaper()

    def become_command(entrances: Sequence[str]) -> None:
        os.close(hold)
        os.close(events)
        _prepare_and_become(command, level, entrances, gate, report)
        os._exit(_NOT_FOUND)

    child = _fork_into_group(command, become_command)
    confine.set_name("raytools-init")
    if command.shares_terminal:
        os.setpgid(0, 0)  # out of the group that the command and the requester's shell may signal
    _let_go((*command.foreign, *command.stdio, gate, report))
    _collect(child, lambda **event: os.write(events, (json.dumps(event) + "\n").encode()))
    os.read(hold, 1)  # nothing is left; the supervisor is still reading what the group used
    os._exit(0)


def _fork_into_group(command: Command, body: Callable[[Sequence[str]], None]) -> int:
    """Forks the process that enters the group by the entrances that `body` is told."""
    if command.birthplace is not None:
        with contextlib.suppress(OSError):  # before Linux 5.7, or the reason shows when it writes
            return confine.fork_into_cgroup(command.birthplace, lambda: body(command.entrances))
    entrances = [*command.entrances, *([f"{command.birthplace}/cgroup.procs"] if command.birthplace else [])]
    return confine.fork(lambda: body(entrances))


def _let_go(descriptors: Sequence[int]) -> None:
    for descriptor in set(descriptors):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _collect(child: int, tell: Callable[..., Any]) -> None:
    """Collects every process that ends, until there is none; tells of the command's own."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WUNTRACED)
            if pid == child:
                tell(**({"stopped": True} if os.WIFSTOPPED(status) else {"status": status}))


def _prepare_and_become(
    command: Command, level: str, entrances: Sequence[str], gate: int, report: int
) -> None:
    def tell(**values: str) -> None:
        os.write(report, (json.dumps(values) + "\n").encode())

    if not command.shares_terminal:
        # signals to the requester's group, as those of timeout(1), are forwarded once and do not arrive twice
        os.setsid()
    confine.die_with_parent()
    try:
        _enter_group(entrances)
        if command.cpus:
            os.sched_setaffinity(0, command.cpus)
    except OSError as error:
        what = (
            f"enter the cgroup {error.filename}" if error.filename else f"use the CPUs {list(command.cpus)}"
        )
        tell(refused=f"the command's process cannot {what}: {error.strerror}")
        return
    _default_priority()
    if level != NOTHING:
        try:
            confine.confine(level, command.surroundings)
        except OSError as error:
            tell(confinement_error=error.strerror or str(error))
            return
    os.write(report, _READY)
    if os.read(gate, 1) == _GO:  # b"" means that the supervisor died or gave up
        _become(command, tell)


def _enter_group(files: Sequence[str]) -> None:
    for file in files:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")
        except OSError as error:
            raise OSError(error.errno, error.strerror, file) from error
        finally:
            os.close(descriptor)


def _become(command: Command, tell: Callable[..., Any]) -> None:
    # first out of the way of the numbers they shall become
    moved = [
        os.dup(each) if each < 3 and each != number else each for number, each in enumerate(command.stdio)
    ]
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, number)
    _default_signals(besides=(signal.SIGHUP,) if command.ignores_hangup else ())
    at = command.cwd
    try:
        os.chdir(command.cwd)
        at = command.arguments[0]
        os.execvpe(command.arguments[0], list(command.arguments), command.environment)
    except ValueError as error:  # an empty name, or a null character
        tell(exec_error=f"{at!r}: {error}")
        os._exit(_NOT_FOUND)
    except OSError as error:
        no_interpreter = error.errno == errno.ENOENT and at != command.cwd and os.path.exists(at)
        tell(exec_error=f"{at}: {'its interpreter was not found' if no_interpreter else error.strerror}")
        os._exit(_NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE)


def _default_priority() -> None:
    """Ray's workers run at nice 15; a run is no background job. Only root may raise it again."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def _default_signals(besides: Sequence[int]) -> None:
    """Python ignores SIGPIPE, and a requester may ignore others; a command expects the defaults.

    What has a handler gets the default by the exec itself.
    """
    for number in signal.valid_signals() - set(besides):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
