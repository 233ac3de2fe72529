"""How fast the network is between neighbours: real sockets on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raytools.node import ring
from raytools.node.ring import measure

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = "127.0.0.1"
WAIT_S = 60.0  # for neighbours who do come
WORD = b"word-of-this-ring"

Place = tuple[str, int]


def free_places(count: int, address: str = HERE) -> list[Place]:
    """Places where nobody listens."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockets = [socket.socket(family) for _ in range(count)]
    try:
        for one in sockets:
            one.bind((address, 0))
        return [(address, one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def ring_of(places: list[Place]) -> list[dict[str, Any]]:
    """What each finds, when all are asked at the same time."""
    following = [*places[1:], places[0]]
    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(lambda own, other: measure(own, other, WORD, WAIT_S), places, following))


def test_a_ring_of_three_processes_measures_each_way(tmp_path: Path) -> None:
    places = [f"{address}:{port}" for address, port in free_places(3)]
    nodes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "raytools.node", "ring", f"--own={own}", f"--next={following}",
                f"--wait={WAIT_S}",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        for own, following in zip(places, [*places[1:], places[0]], strict=True)
    ]  # fmt: skip
    try:
        for node in nodes:  # all have to have the word before the first may be waited for
            assert node.stdin is not None
            node.stdin.write("the ring's word\n")
            node.stdin.close()
        for node in nodes:
            assert node.stdout is not None
            found = json.loads(node.stdout.read())
            assert set(found) == {"latency_ms", "mbit_per_s"}, found
            assert 0 < found["latency_ms"] < 10_000
            assert found["mbit_per_s"] > 0
            assert node.wait(WAIT_S) == 0
    finally:
        for node in nodes:
            node.kill()
            node.wait()
            assert node.stdout is not None
            node.stdout.close()


def test_a_ring_works_over_ipv6_too() -> None:
    try:
        places = free_places(2, "::1")
    except OSError as error:
        pytest.skip(f"needs IPv6 on loopback: {error}")
    assert [set(found) for found in ring_of(places)] == [{"latency_ms", "mbit_per_s"}] * 2


def test_a_port_that_is_taken_is_said_and_nothing_is_sent() -> None:
    with socket.create_server((HERE, 0)) as taken:
        own: Place = taken.getsockname()
        found = measure(own, own, WORD, 0.1)
    assert list(found) == ["problem"]
    assert found["problem"].startswith(f"cannot listen at {HERE}, port {own[1]}: Address already in use")


def test_a_neighbour_who_does_not_come_is_named_with_the_reason() -> None:
    own, absent = free_places(2)
    found = measure(own, absent, WORD, 1.0)
    assert found == {"problem": f"{HERE}, port {absent[1]}: Connection refused"}


def test_something_else_that_listens_there_is_not_measured() -> None:
    (own,) = free_places(1)
    with socket.create_server((HERE, 0)) as other:

        def answer_otherwise() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            ring._send(own, WORD, time.monotonic() + WAIT_S)  # as its neighbour, or it would wait for one

        thread = threading.Thread(target=answer_otherwise, daemon=True)
        thread.start()
        found = measure(own, other.getsockname(), WORD, WAIT_S)
        thread.join(WAIT_S)
    assert found == {"problem": "something else listens there"}


def test_two_rings_do_not_take_each_other_for_neighbours() -> None:
    one, other = free_places(2)
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(measure, own, neighbour, word, 1.0)
            for own, neighbour, word in ((one, other, b"first ring"), (other, one, b"other ring"))
        ]
        assert [list(found.result()) for found in asked] == [["problem"]] * 2


def test_a_stranger_who_connects_first_does_not_disturb_the_ring() -> None:
    one, other = free_places(2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(measure, one, other, WORD, WAIT_S)
        with connected(one) as stranger:  # before the neighbour is even asked
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert _until_closed(stranger) == b""
        second = pool.submit(measure, other, one, WORD, WAIT_S)
        assert set(first.result()) == set(second.result()) == {"latency_ms", "mbit_per_s"}


def connected(place: Place) -> socket.socket:
    """A connection, as soon as something listens."""
    for _ in range(600):
        try:
            return socket.create_connection(place, timeout=WAIT_S)
        except ConnectionRefusedError:
            threading.Event().wait(0.05)
    raise AssertionError(f"nobody listens at {place}")


def _until_closed(connection: socket.socket) -> bytes:
    """What comes until the other side closes, politely or not."""
    said = b""
    try:
        while data := connection.recv(100):
            said += data
    except ConnectionResetError:  # it has not read all of ours
        pass
    return said
