"""Running programs of this machine as root, and several things at once, with errors a person can act on."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from tests.lab.hosts import LabError

T = TypeVar("T")
Report = Callable[[str], None]


def say(text: str) -> None:
    """A line for people, at once."""
    print(text, flush=True)


def as_root(argv: Sequence[str]) -> list[str]:
    """The command as root runs it."""
    return list(argv) if os.geteuid() == 0 else ["sudo", "-n", *argv]


def run(
    argv: Sequence[str], *, data: bytes | None = None, wait_s: float = 120, check: bool = True,
    root: bool = True, cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Runs a command, as root unless told otherwise, and returns its output as text.

    Args:
        argv: the command.
        data: its standard input.
        wait_s: for its end.
        check: whether a failure is an error.
        root: False: as this user.
        cwd: where; None: in the current directory.

    Raises:
        LabError: it failed, or did not end in time.
    """
    command = as_root(argv) if root else list(argv)
    try:
        done = subprocess.run(
            command, input=data or b"", capture_output=True, timeout=wait_s, check=False, cwd=cwd
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{_shown(argv)}` did not end within {wait_s:.0f} s") from error
    except FileNotFoundError as error:
        raise LabError(
            f"{error.filename} is not installed", fix="make lab-deps, for virtual machines make vm-deps"
        ) from error
    text = subprocess.CompletedProcess(
        argv, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )
    if check and text.returncode != 0:
        said = last_lines(text.stderr or text.stdout)
        raise LabError(f"`{_shown(argv)}` ended with exit code {text.returncode}: {said}")
    return text


def until(attempt: Callable[[], T | None], wait_s: float, every_s: float = 0.1) -> T | None:
    """What an attempt returns once it is not None; None after `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        found = attempt()
        if found is not None or time.monotonic() > deadline:
            return found
        time.sleep(every_s)


def in_parallel(
    action: Callable[[T], None], of: Iterable[T], at_once: int, interrupted: Callable[[], None] | None = None
) -> list[str]:
    """Does something with all at once and returns every failure's message.

    Args:
        action: what to do with one.
        of: the things.
        at_once: how many at a time.
        interrupted: makes running actions end soon; without it, Ctrl-C waits for them.
    """
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(action, one) for one in of]
        try:
            wait(futures)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if interrupted is not None:
                interrupted()
            raise
    return [str(error) for error in (future.exception() for future in futures) if error is not None]


def last_lines(text: str, count: int = 15) -> str:
    """The end of what a program printed."""
    return "\n".join(text.strip().splitlines()[-count:]) or "it printed nothing"


def _shown(argv: Sequence[str]) -> str:
    text = " ".join(argv)
    return text if len(text) <= 160 else text[:157] + "..."
