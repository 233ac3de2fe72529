"""A command that runs, here or behind ssh, and the talk with it: input, both outputs, end or deadline."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol, cast

CLOSE_GRACE_S = 10.0  # how long a command that is called off may tidy up

OnLine = Callable[[str], None]


@dataclass(frozen=True)
class Said:
    """What a command said until it ended or was no longer waited for.

    Args:
        exit_code: None if there was none in time.
        noise: what it said before the marker, where one was expected.
        reached_marker: whether the marker came.
    """

    stdout: str
    stderr: str
    exit_code: int | None
    noise: str
    reached_marker: bool


class Session(Protocol):
    """A running command, here or behind ssh."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]

    def wait(self, timeout_s: float) -> int | None:
        """The exit code; None if there is none in time."""

    def close(self) -> None:
        """Ends the command if it still runs, and frees everything."""


class LocalSession:
    """A child of this process, in a session of its own so that Ctrl-C is ours to pass on."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self.stdin, self.stdout, self.stderr = cast("tuple[IO[bytes], IO[bytes], IO[bytes]]", pipes)

    def wait(self, timeout_s: float) -> int | None:
        try:
            return self._process.wait(max(timeout_s, 0))
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # another thread was first
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def talk(
    session: Session,
    data: bytes,
    deadline: float,
    on_line: OnLine | None = None,
    on_stderr_line: OnLine | None = None,
    *,
    marker: str | None = None,
    keep_open: bool = False,
) -> Said:
    """Sends, reads both outputs at once, and waits for the end or the deadline; then closes the session.

    Args:
        session: the command.
        data: for its standard input.
        deadline: on the monotonic clock.
        on_line: told each line of standard output, which then is not kept.
        on_stderr_line: the same for standard error.
        marker: the end of a line of standard output before which nothing counts.
        keep_open: leave standard input open: a command that watches it ends with us.

    Raises:
        Exception: what `on_line` or `on_stderr_line` raised.
    """
    output = _Reader(session.stdout, on_line, marker)
    errors = _Reader(session.stderr, on_stderr_line, None)
    sender = threading.Thread(target=_send, args=(session.stdin, data, keep_open), daemon=True)
    threads = (sender, output, errors)
    try:
        for thread in threads:
            thread.start()
        exit_code = session.wait(deadline - time.monotonic())
        if exit_code is not None:
            for thread in (output, errors):  # what is still in the pipe; a stray grandchild may hold it open
                thread.join(min(2.0, max(0.1, deadline - time.monotonic())))
    except BaseException:
        _call_off(session)
        raise
    finally:
        session.close()
    if exit_code is not None and exit_code < 0 and time.monotonic() >= deadline - 1:
        exit_code = None  # killed because its time was over
    if exit_code is not None:
        for reader in (output, errors):
            if reader.failure:
                raise reader.failure
    return Said(output.text, errors.text, exit_code, "".join(output.noise), output.reached_marker)


def _call_off(session: Session) -> None:
    """Lets a watched command end itself (it sees the end of its input) before it is killed."""
    try:
        session.stdin.close()
    except OSError:
        return
    session.wait(CLOSE_GRACE_S + 2)


def _send(stdin: IO[bytes], data: bytes, keep_open: bool) -> None:
    try:
        stdin.write(data)
        stdin.flush()
        if not keep_open:
            stdin.close()
    except OSError:
        return  # the command ended early; its exit code and output tell why


class _Reader(threading.Thread):
    """Collects an output, or hands it over line by line; with a marker, only what comes after it counts."""

    def __init__(self, source: IO[bytes], on_line: OnLine | None, marker: str | None) -> None:
        super().__init__(daemon=True)
        self._source, self._on_line, self._marker = source, on_line, marker
        self._kept: list[str] = []
        self.noise: list[str] = []
        self.reached_marker = False
        self.failure: Exception | None = None

    @property
    def text(self) -> str:
        return "".join(self._kept)

    def run(self) -> None:
        try:
            for raw in self._source:
                self._take(raw.decode("utf-8", errors="replace"))
        except (OSError, ValueError):
            return  # closed while reading: the call is over
        except Exception as error:  # noqa: BLE001 - the callback's own failure, raised again by the caller
            self.failure = error

    def _take(self, line: str) -> None:
        if self._marker and not self.reached_marker:
            self.reached_marker = line.rstrip("\r\n").endswith(self._marker)
            if not self.reached_marker:
                self.noise.append(line)
        elif self._on_line:
            self._on_line(line.rstrip("\n"))
        else:
            self._kept.append(line)
