"""The pipe between a requester and the supervisor of its run: JSON lines over a socket pair.

The end of file is a message too: a requester that vanished ends its run.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from typing import Any


class Link:
    """One end of the pipe."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = b""
        self.closed = False

    def fileno(self) -> int:
        """The descriptor, for polling."""
        return self._socket.fileno()

    def send(self, **message: Any) -> None:
        """Sends one message; the other end may be gone, which its reader notices by itself."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float | None) -> list[dict[str, Any]]:
        """The messages that have come, after waiting at most `timeout_s` for one; notices the end."""
        if self.closed or not select.select([self._socket], [], [], timeout_s)[0]:
            return []
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
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
        """Closes this end."""
        self.closed = True
        self._socket.close()

    def close_on_exec(self) -> None:
        """Keeps the descriptor from the programs that this process starts."""
        os.set_inheritable(self._socket.fileno(), False)
