"""The run's own process between fork and exec: wait for the group, confine, become the command."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from raytools.node import confine
from raytools.node.record import Limits

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as shells do


@dataclass(frozen=True)
class Started:
    """How the start went: what could not be confined, and why the command could not be executed."""

    confinement_error: str | None
    exec_error: str | None


@dataclass
class Child:
    """A forked process that waits for `release()` before it becomes the command."""

    pid: int
    _gate: int
    _status: int

    def release(self) -> Started:
        """Lets it go, once it is in its group, and waits until it is the command or failed to be."""
        os.write(self._gate, b"g")
        os.close(self._gate)
        with os.fdopen(self._status, "rb") as status:
            lines = [json.loads(line) for line in status]
        told: dict[str, str] = {}
        for line in lines:
            told.update(line)
        return Started(told.get("confinement_error"), told.get("exec_error"))


def fork_child(
    command: Sequence[str],
    cwd: str,
    environment: dict[str, str],
    limits: Limits,
    stdio: Sequence[int],
    confined: bool,
) -> Child:
    """Forks the process that will be the command.

    Args:
        command: program and arguments; the program is looked up in the environment's PATH.
        cwd: where it starts.
        environment: all its variables.
        limits: memory sizes its /dev/shm; `cpu_set` becomes its affinity.
        stdio: descriptors that become its 0, 1 and 2.
        confined: whether to try the mount namespace.
    """
    gate_read, gate_write = os.pipe()
    status_read, status_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(gate_write)
            os.close(status_read)
            if os.read(gate_read, 1) == b"g":  # b"" means that the supervisor died
                _become(command, cwd, environment, limits, stdio, confined, status_write)
        finally:
            os._exit(_NOT_FOUND)
    os.close(gate_read)
    os.close(status_write)
    return Child(pid, gate_write, status_read)


def _become(
    command: Sequence[str],
    cwd: str,
    environment: dict[str, str],
    limits: Limits,
    stdio: Sequence[int],
    confined: bool,
    status: int,
) -> None:
    def tell(**values: str) -> None:
        os.write(status, (json.dumps(values) + "\n").encode())

    os.setsid()  # its own session and process group: signals of the terminal are forwarded to the group
    confine.die_with_parent(signal.SIGKILL)
    _default_priority()
    if limits.cpu_set:
        os.sched_setaffinity(0, limits.cpu_set)
    if confined and limits.memory_bytes is not None:
        try:
            confine.confine(limits.memory_bytes)
        except OSError as error:
            tell(confinement_error=str(error))
    for number, descriptor in enumerate(stdio):
        os.dup2(descriptor, number)
    _default_signals()
    try:
        os.chdir(cwd)
        os.execvpe(command[0], list(command), environment)
    except OSError as error:
        tell(exec_error=f"{os.fsdecode(error.filename or command[0])}: {error.strerror}")
        os._exit(_NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE)


def _default_priority() -> None:
    """Ray's workers run at nice 15; a run is no background job. Only root may raise it again."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def _default_signals() -> None:
    """Python ignores SIGPIPE, and a requester may ignore others; a command expects the defaults."""
    for number in range(1, signal.NSIG):
        # SIGKILL, SIGSTOP and the two that libc keeps cannot be set
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
