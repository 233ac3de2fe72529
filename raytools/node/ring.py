"""How fast the network is: each node sends to the next and counts what the one before it sends.

`python -m raytools.node ring`, on all nodes at the same time: each listens, and connects for some seconds
until its neighbour does. Only nodes of the same ring are listened to. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from typing import Any

_SEND_S = 0.5
_TALK_S = 10.0  # the longest silence of a neighbour that has connected
_CHUNK = b"\0" * (1 << 20)
_ROUND_TRIPS = 20


class _Receiver(threading.Thread):
    """Accepts one neighbour who knows the ring's word, echoes its small messages, swallows its large one."""

    def __init__(self, address: tuple[str, int], word: bytes, wait_s: float) -> None:
        super().__init__(daemon=True)
        self._server = socket.create_server(
            address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        self._word, self._deadline = word, time.monotonic() + wait_s
        self.problem: str | None = "no neighbour connected"

    def run(self) -> None:
        with self._server:
            while (left_s := self._deadline - time.monotonic()) > 0:
                self._server.settimeout(left_s)
                try:
                    connection, _ = self._server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(_TALK_S)
                    if self._serve(connection):
                        self.problem = None
                        return

    def _serve(self, connection: socket.socket) -> bool:
        with contextlib.suppress(OSError):
            if _exactly(connection, len(self._word)) != self._word:
                return False
            connection.sendall(self._word)
            for _ in range(_ROUND_TRIPS):
                connection.sendall(_exactly(connection, 1))
            total = 0
            while data := connection.recv(1 << 20):
                total += len(data)
            connection.sendall(total.to_bytes(8, "big"))
            return True
        return False


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the other side closed the connection")
        data += part
    return data


def measure(own: tuple[str, int], neighbour: tuple[str, int], word: bytes, wait_s: float) -> dict[str, Any]:
    """One node's part.

    Args:
        own: address and port to listen at.
        neighbour: where the next node listens.
        word: what the nodes of this ring know.
        wait_s: how long to wait for neighbours.

    Returns:
        `latency_ms`, the median of round trips; `mbit_per_s`, as the neighbour counted; or `problem`.
    """
    try:
        receiver = _Receiver(own, word, wait_s)
    except OSError as error:
        return {"problem": f"cannot listen at {own[0]}, port {own[1]}: {error.strerror}"}
    receiver.start()
    found = _send(neighbour, word, time.monotonic() + wait_s)
    receiver.join(wait_s)
    return found


def _send(neighbour: tuple[str, int], word: bytes, deadline: float) -> dict[str, Any]:
    problem = "nobody was asked"
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(neighbour, timeout=min(left_s, 3.0)) as connection:
                connection.settimeout(_TALK_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _measured(connection, word)
        except OSError as error:
            problem = error.strerror or str(error) or type(error).__name__
            time.sleep(0.1)  # it may not listen yet
    return {"problem": f"{neighbour[0]}, port {neighbour[1]}: {problem}"}


def _measured(connection: socket.socket, word: bytes) -> dict[str, Any]:
    connection.sendall(word)
    if _exactly(connection, len(word)) != word:
        return {"problem": "something else listens there"}
    trips = []
    for _ in range(_ROUND_TRIPS):
        began = time.perf_counter()
        connection.sendall(b"\1")
        _exactly(connection, 1)
        trips.append(time.perf_counter() - began)
    began = time.perf_counter()
    while time.perf_counter() - began < _SEND_S:
        connection.sendall(_CHUNK)
    connection.shutdown(socket.SHUT_WR)
    counted = int.from_bytes(_exactly(connection, 8), "big")
    took_s = time.perf_counter() - began
    return {
        "latency_ms": round(sorted(trips)[_ROUND_TRIPS // 2] * 1000, 3),
        "mbit_per_s": round(counted * 8 / took_s / 1e6, 1),
    }


def _place(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


def main(argv: list[str]) -> int:
    """JSON on standard output; the ring's word on standard input."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node ring", description=__doc__)
    parser.add_argument("--own", required=True, type=_place, help="ADDRESS:PORT to listen at")
    parser.add_argument("--next", required=True, type=_place, help="ADDRESS:PORT of the neighbour")
    parser.add_argument("--wait", type=float, default=10.0, help="seconds to wait for neighbours")
    options = parser.parse_args(argv)
    word = sys.stdin.read().strip().encode()
    json.dump(measure(options.own, options.next, word, options.wait), sys.stdout)
    return 0
