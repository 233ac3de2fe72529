"""A delegated systemd scope around this process: where runs from a shell get their groups on cgroup v2.

Asks the service manager itself, over its private socket, in D-Bus' wire format (D-Bus Specification, "Message
Protocol"): systemd-run(1) cannot take a process that exists and costs three times as much, busctl(1) needs a
message bus, which a small server has not.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable

from raytools.errors import RefusedError
from raytools.node.cgroup_tree import UNIFIED, locate_self

SLICE = "raytools.slice"
_TIMEOUT_S, _RETRY_S = 10.0, 0.02
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_METHOD_CALL, _METHOD_RETURN, _ERROR = 1, 2, 3
_PATH, _INTERFACE, _MEMBER, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 5, 6, 8


def manager_socket() -> str:
    """The private socket of the manager that this user may ask: the system's for root, else the own."""
    uid = os.getuid()
    return "/run/systemd/private" if uid == 0 else f"/run/user/{uid}/systemd/private"


def is_available() -> bool:
    """Whether there is a manager to ask."""
    return os.path.exists(manager_socket())


def enter(name: str) -> str:
    """Moves this process into a new scope of that name below raytools.slice.

    Returns:
        The scope's directory; this process sits directly in it.

    Raises:
        RefusedError: the manager does not answer, or refuses.
    """
    before = locate_self().own[UNIFIED]
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return _ask(name, before, deadline)
        except (OSError, ValueError) as error:
            own = locate_self().own[UNIFIED]
            if own != before:  # the answer was lost, the deed was done
                return own
            # a manager that re-executes itself, as at every update of systemd, is away for a moment
            is_away = isinstance(error, (ConnectionError, FileNotFoundError))
            if not is_away or time.monotonic() > deadline:
                raise RefusedError(
                    f"systemd ({manager_socket()}) gives this process no scope: {error}",
                    expected="a delegated scope below raytools.slice",
                    fix="See what it says: systemctl status (as a plain user: systemctl --user status)",
                ) from error
        time.sleep(_RETRY_S)


def _ask(name: str, before: str, deadline: float) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(manager_socket())
        _authenticate(connection)
        _call(connection, "StartTransientUnit", "ssa(sv)a(sa(sv))", _scope(f"{name}.scope", os.getpid()))
    while (own := locate_self().own[UNIFIED]) == before:  # the answer comes before the deed
        if time.monotonic() > deadline:
            raise TimeoutError("it accepted the scope, but did not move this process")
        time.sleep(0.001)
    return own


def _authenticate(connection: socket.socket) -> None:
    identity = str(os.getuid()).encode().hex()
    connection.sendall(f"\0AUTH EXTERNAL {identity}\r\nBEGIN\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n"):
        answer += _received(connection, 1)
    if not answer.startswith(b"OK"):
        raise ValueError(f"it answers {answer.decode(errors='replace').strip()!r}")


def _call(connection: socket.socket, member: str, signature: str, body: bytes) -> None:
    """Calls a method of the manager's and waits for its answer."""
    serial = 1
    destination, path, interface = _MANAGER
    fields = _Writer()
    for code, kind, value in (
        (_PATH, "o", path),
        (_INTERFACE, "s", interface),
        (_MEMBER, "s", member),
        (_DESTINATION, "s", destination),
        (_SIGNATURE, "g", signature),
    ):
        fields.align(8)
        fields.byte(code)
        fields.signature(kind)
        (fields.signature if kind == "g" else fields.string)(value)
    header = struct.pack("<cBBBIII", b"l", _METHOD_CALL, 0, 1, len(body), serial, len(fields.data))
    connection.sendall(header + fields.data + bytes(-len(header + fields.data) % 8) + body)
    while True:
        kind, body_bytes, fields_bytes = struct.unpack("<xBxxI4xI", _received(connection, 16))
        answered = _received(connection, fields_bytes + -fields_bytes % 8)
        answer = _received(connection, body_bytes)
        if kind in (_METHOD_RETURN, _ERROR) and _reply_serial(answered) == serial:
            break
    if kind == _ERROR:
        size = struct.unpack_from("<I", answer)[0]
        raise ValueError(answer[4 : 4 + size].decode(errors="replace"))


def _reply_serial(fields: bytes) -> int | None:
    at = fields.find(bytes([_REPLY_SERIAL]) + b"\1u\0")
    return None if at < 0 else int(struct.unpack_from("<I", fields, at + 4)[0])


def _scope(name: str, pid: int) -> bytes:
    """Arguments of StartTransientUnit: name, mode, properties, no auxiliary units."""
    writer = _Writer()
    writer.string(name)
    writer.string("fail")

    def properties() -> None:
        writer.property("PIDs", "au", lambda: writer.array(4, lambda: writer.number(pid)))
        writer.property("Delegate", "b", lambda: writer.number(1))
        writer.property("Slice", "s", lambda: writer.string(SLICE))
        writer.property("Description", "s", lambda: writer.string("raytools run"))
        writer.property("TasksMax", "t", lambda: writer.long_number(2**64 - 1))  # runs have their own limit
        writer.property("CollectMode", "s", lambda: writer.string("inactive-or-failed"))

    writer.array(8, properties)
    writer.array(8, lambda: None)
    return bytes(writer.data)


class _Writer:
    """Little-endian values, each aligned to its size."""

    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)

    def byte(self, value: int) -> None:
        self.data.append(value)

    def number(self, value: int) -> None:
        self.align(4)
        self.data += struct.pack("<I", value)

    def long_number(self, value: int) -> None:
        self.align(8)
        self.data += struct.pack("<Q", value)

    def string(self, text: str) -> None:
        self.number(len(text.encode()))
        self.data += text.encode() + b"\0"

    def signature(self, text: str) -> None:
        self.byte(len(text))
        self.data += text.encode() + b"\0"

    def array(self, alignment: int, elements: Callable[[], None]) -> None:
        self.number(0)
        at = len(self.data) - 4
        self.align(alignment)
        start = len(self.data)
        elements()
        struct.pack_into("<I", self.data, at, len(self.data) - start)

    def property(self, name: str, kind: str, value: Callable[[], None]) -> None:
        self.align(8)
        self.string(name)
        self.signature(kind)
        value()


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("it closed the connection")
        data += part
    return data
