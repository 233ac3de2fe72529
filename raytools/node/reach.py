"""Whom this node reaches: `python -m raytools.node reach`, told by JSON on standard input.

`connect` is a list of `[address, port]`; the answer has for each null, or why not. Nothing is sent.
`resolve` is a list of names; the answer has the addresses of each, [] for one that is not known here.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

_WAIT_S = 3.0  # a packet that a firewall drops is sent again after one second, and after two more
_AT_ONCE = 64


def reach(address: str, port: int) -> str | None:
    """None if something accepts connections there, else the reason."""
    try:
        socket.create_connection((address, port), timeout=_WAIT_S).close()
    except TimeoutError:
        return f"no answer within {_WAIT_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return None


def reach_all(targets: Sequence[tuple[str, int]]) -> list[str | None]:
    """The same for many, at the same time."""
    if not targets:
        return []
    with ThreadPoolExecutor(min(_AT_ONCE, len(targets))) as pool:
        return list(pool.map(lambda target: reach(*target), targets))


def addresses_of(name: str) -> list[str]:
    """What a name means here."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(entry[4][0]) for entry in found})


def resolve_all(names: Sequence[str]) -> dict[str, list[str] | None]:
    """Name -> addresses; null where nobody has answered in time."""
    found: dict[str, list[str] | None] = dict.fromkeys(names)

    def look_up(name: str) -> None:
        found[name] = addresses_of(name)

    threads = [threading.Thread(target=look_up, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _WAIT_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)


def main(argv: list[str]) -> int:
    """JSON on standard output."""
    if argv:
        print("reach: takes no arguments, only JSON on standard input", file=sys.stderr)
        return 2
    asked = json.load(sys.stdin)
    targets = [(str(address), int(port)) for address, port in asked["connect"]]
    json.dump({"connect": reach_all(targets), "resolve": resolve_all(asked["resolve"])}, sys.stdout)
    return 0
