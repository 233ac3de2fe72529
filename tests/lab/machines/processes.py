"""The qemu processes of a lab: found by what they were started with, ended by their own id.

The process table is the truth: a pid file may be missing when its writer was killed, or outlive its process.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.lab.hosts import LabError
from tests.lab.machines.qemu import PID_FILE_OPTION, PROGRAM


class Running(NamedTuple):
    """A qemu process."""

    pid: int
    directory: Path  # of the machine's files


def find(below: Path) -> list[Running]:
    """The qemu processes whose machines have their files in or below a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            directory = machine_of(_arguments(int(entry.name)))
            if directory is not None and directory.is_relative_to(below):
                found.append(Running(int(entry.name), directory))
    return found


def machine_of(arguments: list[str]) -> Path | None:
    """The directory of the machine that a process runs; None if it runs none."""
    if not arguments or Path(arguments[0]).name != PROGRAM or PID_FILE_OPTION not in arguments[:-1]:
        return None
    return Path(arguments[arguments.index(PID_FILE_OPTION) + 1]).parent


def kill(processes: Iterable[Running], wait_s: float = 10.0) -> None:
    """Ends them at once, as a power failure does, and waits until they are gone, locks of files included.

    Raises:
        LabError: one is still there.
    """
    handles = {process.pid: handle for process in processes if (handle := _killed(process)) is not None}
    deadline = time.monotonic() + wait_s
    try:
        for pid, handle in handles.items():
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([handle], [], [], left_s)[0]:
                raise LabError(f"qemu does not end {wait_s:.0f} s after SIGKILL: pid {pid}")
    finally:
        for handle in handles.values():
            os.close(handle)


def is_alive(process: Running) -> bool:
    """Whether it still runs that machine; a zombie does not."""
    return machine_of(_arguments(process.pid)) == process.directory


def _killed(process: Running) -> int | None:
    """Kills it unless the pid is another process's by now; a handle that is readable when it has ended.

    Its command line is gone long before its files are closed: only the handle tells the end.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    try:
        if is_alive(process):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            return handle
    except ProcessLookupError:
        pass
    os.close(handle)
    return None


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="surrogateescape").split("\0")[:-1]
    except OSError:  # it has ended
        return []
