"""The qemu processes of a lab: found by what they were started with, ended by their own id.

The process table is the truth: a pid file may be missing when its writer was killed, or outlive its process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.lab.commands import until
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
    """Ends them at once, as a power failure does, and waits until they are gone.

    Raises:
        LabError: one is still there.
    """
    victims = [process for process in processes if _signal(process, signal.SIGKILL)]

    def gone() -> bool | None:
        return None if any(is_alive(process) for process in victims) else True

    if until(gone, wait_s, every_s=0.02) is None:
        left = ", ".join(str(process.pid) for process in victims if is_alive(process))
        raise LabError(f"qemu does not end {wait_s:.0f} s after SIGKILL: pid {left}")


def is_alive(process: Running) -> bool:
    """Whether it still runs that machine; a zombie does not."""
    return machine_of(_arguments(process.pid)) == process.directory


def _signal(process: Running, which: signal.Signals) -> bool:
    """Sends a signal unless the pid is another process's by now."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(handle, which)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="surrogateescape").split("\0")[:-1]
    except OSError:  # it has ended
        return []
