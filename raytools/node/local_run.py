"""`raytools.run`: one command in a slot of this machine, from Python.

run = raytools.run(["python", "fit.py"], memory="8GiB", time="30m")
run.outcome, run.record["used"]["wall_s"]
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from raytools.errors import RaytoolsError
from raytools.node import launch
from raytools.node.plain import Plain
from raytools.node.plan_file import find_node_file
from raytools.node.record import OK
from raytools.node.request import STRICT, RunRequest, record_target, start_directory
from raytools.units import parse_duration_s, parse_size_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

    File = int | IO[Any] | None


class RunFailed(RaytoolsError):  # noqa: N818 - the name is part of the public interface
    """A run did not end `ok`. `record` tells everything; `cause` is what the function raised, if it did."""

    exit_code = 1

    def __init__(self, record: Mapping[str, Any], cause: BaseException | None, trace: str | None) -> None:
        self.record = dict(record)
        self.cause = cause
        self.trace = trace
        message = record.get("message") or (f"{type(cause).__name__}: {cause}" if cause else None)
        text = f"run {record['run_id']} ended {record['outcome']}"
        super().__init__(text + (f": {message}" if message else "") + (f"\n{trace}" if trace else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return RunFailed, (self.record, self.cause, self.trace)


class Run(Plain):
    """What became of one run: the function's value (None for a command) and the record."""

    value: Any
    outcome: str
    record: dict[str, Any]
    cause: BaseException | None = None
    trace: str | None = None

    def result(self) -> Any:
        """The function's value.

        Raises:
            RunFailed: the run ended otherwise; caused by what the function raised, if it did.
        """
        if self.outcome != OK:
            raise RunFailed(self.record, self.cause, self.trace) from self.cause
        return self.value


def run(
    command: Sequence[str],
    *,
    slot: int | str | None = None,
    cpus: int | None = None,
    memory: str | int | None = None,
    time: str | float | None = None,
    grace: str | float | None = None,
    gpus: int | None = None,
    wait: str | float = 0.0,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    record: str | os.PathLike[str] | None = None,
    enforce: str = STRICT,
    stdin: File = None,
    stdout: File = None,
    stderr: File = None,
) -> Run:
    """Runs a command under hard limits and waits for its end. An exception, as of Ctrl-C, ends the run.

    The supervisor is forked from this process, which takes milliseconds; from a process with threads a
    program of its own is started instead, which takes some tens of them.

    Args:
        command: program and arguments.
        slot: which slot; None takes a free one, "all" all of them as one.
        cpus: CPU threads, at most the slot's.
        memory: hard limit of everything the command starts, as "8GiB" or bytes.
        time: wall time, as "30m" or seconds; the run is killed then.
        grace: between SIGTERM at `time` and the kill.
        gpus: GPUs, at most the slot's.
        wait: how long to wait for a free slot.
        env: variables for the command, on top of this process's own.
        cwd: where it starts; here, by default.
        record: file for the record, which is returned as well.
        enforce: "strict" refuses what cannot be enforced, "best-effort" records it as missing.
        stdin: a file or descriptor for the command; this process's own by default.
        stdout: the same.
        stderr: the same.

    Returns:
        The run. However it ended, this is a result: `run.result()` raises if it was not `ok`.

    Raises:
        RefusedError: it could not get what it was promised; nothing was started.
        RaytoolsError: `cwd` or `record` cannot be used.
        ValueError: a size or duration cannot be read.
        TypeError: `command` is no list.
        OSError: a descriptor is not open.
    """
    if isinstance(command, (str, bytes)) or not command:
        raise TypeError(f"found command {command!r}, expected a list of a program and its arguments")
    stdio = (_descriptor(stdin, 0), _descriptor(stdout, 1), _descriptor(stderr, 2))
    request = RunRequest(
        command=[os.fspath(part) for part in command],
        cwd=start_directory(None if cwd is None else os.fspath(cwd)),
        environment=dict(os.environ),
        variables=dict(env or {}),
        slot=slot,
        cpus=cpus,
        memory_bytes=None if memory is None else parse_size_bytes(memory),
        gpus=gpus,
        time_s=None if time is None else parse_duration_s(time),
        grace_s=None if grace is None else parse_duration_s(grace),
        wait_s=parse_duration_s(wait),
        enforce=enforce,
        record_path=None if record is None else record_target(os.fspath(record)),
        node_file=find_node_file(),
    )
    start = launch.start if _has_one_thread() else launch.start_by_exec
    finished = start(request, stdio).wait()
    return Run(None, finished.outcome or "", finished.to_json())


def _descriptor(file: File, default: int) -> int:
    if file is None:
        return default
    descriptor = file if isinstance(file, int) else file.fileno()
    os.fstat(descriptor)  # an OSError here, rather than in the command's process
    return descriptor


def _has_one_thread() -> bool:
    return len(os.listdir("/proc/self/task")) == 1
