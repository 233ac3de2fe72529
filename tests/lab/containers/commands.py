"""Running podman and other programs of this machine as root, with errors a person can act on."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.lab.containers.hosts import LabError

T = TypeVar("T")
Report = Callable[[str], None]
PODMAN = ("podman", "--log-level", "error", "--cgroup-manager", "cgroupfs", "--runtime", "runc")


def as_root(argv: Sequence[str]) -> list[str]:
    """The command as root runs it: containers that boot systemd need one."""
    return list(argv) if os.geteuid() == 0 else ["sudo", "-n", *argv]


def run(
    argv: Sequence[str], *, data: bytes | None = None, wait_s: float = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a command as root and returns its output as text.

    Args:
        argv: the command.
        data: its standard input.
        wait_s: for its end.
        check: whether a failure is an error.

    Raises:
        LabError: it failed, or did not end in time.
    """
    try:
        done = subprocess.run(
            as_root(argv), input=data or b"", capture_output=True, timeout=wait_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{_shown(argv)}` did not end within {wait_s:.0f} s") from error
    except FileNotFoundError as error:
        raise LabError(f"{error.filename} is not installed", fix="make lab-deps") from error
    text = subprocess.CompletedProcess(
        argv, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )
    if check and text.returncode != 0:
        said = _last_lines(text.stderr or text.stdout)
        raise LabError(f"`{_shown(argv)}` ended with exit code {text.returncode}: {said}")
    return text


def podman(
    *arguments: str, data: bytes | None = None, wait_s: float = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """`podman …` with the settings that every call here needs; see `run`."""
    return run([*PODMAN, *arguments], data=data, wait_s=wait_s, check=check)


def until(attempt: Callable[[], T | None], wait_s: float, every_s: float = 0.1) -> T | None:
    """What an attempt returns once it is not None; None after `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        found = attempt()
        if found is not None or time.monotonic() > deadline:
            return found
        time.sleep(every_s)


def _shown(argv: Sequence[str]) -> str:
    text = " ".join(argv)
    return text if len(text) <= 160 else text[:157] + "..."


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-15:]) or "it printed nothing"
