"""The pipes between a requester and the supervisor of its run: JSON lines both ways.

The end of file is a message too: a requester that vanished ends its run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Link:
    """One end: a descriptor to read from and one to write to. Programs started meanwhile inherit neither."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._buffer = b""
        self.closed = False

    def __del__(self) -> None:
        self.close()  # forgotten, as by a cancellation between two lines, is closed too

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._incoming

    def descriptors(self) -> tuple[int, int]:
        """What the program at this end needs to inherit."""
        return self._incoming, self._outgoing

    def send(self, **message: Any) -> None:
        """Sends one message; the other end may be gone, which its reader notices by itself."""
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._outgoing, data) :]

    def offer(self, **message: Any) -> None:
        """Sends a short message, or drops it if the other end has not read for long (it may be stopped)."""
        if _writable(self._outgoing):  # there is room for PIPE_BUF bytes at least
            self.send(**message)

    def receive(self, timeout_s: float | None) -> list[dict[str, Any]]:
        """The messages that have come, after waiting at most `timeout_s` for one; notices the end."""
        if self.closed or not readable([self._incoming], timeout_s):
            return []
        data = os.read(self._incoming, 1 << 16)
        if not data:
            self.closed = True
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def receive_one(self) -> dict[str, Any] | None:
        """Waits for one message; None when the other end is gone."""
        while not self.closed:
            if messages := self.receive(None):
                return messages[0]
        return None

    def close(self) -> None:
        """Closes this end, which tells the other one."""
        self.closed = True
        for descriptor in self.descriptors():
            with contextlib.suppress(OSError):  # closed already
                os.close(descriptor)
        self._incoming = self._outgoing = -1


def readable(descriptors: Sequence[int], timeout_s: float | None) -> set[int]:
    """Those of the descriptors that have something to read, after waiting at most `timeout_s` for one.

    By poll(2): select(2) takes no descriptor above 1023, and a Ray worker may have more.
    """
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    timeout_ms = None if timeout_s is None else math.ceil(max(0.0, timeout_s) * 1000)
    return {descriptor for descriptor, _event in poller.poll(timeout_ms)}


def _writable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    return bool(poller.poll(0))


def pair() -> tuple[Link, Link]:
    """Two connected ends."""
    first_in, second_out = os.pipe()
    second_in, first_out = os.pipe()
    return Link(first_in, first_out), Link(second_in, second_out)
