"""qemu's control socket: stop and go on, pull a cable, ask for the state.

One short connection per request: qemu serves one at a time.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from tests.lab.hosts import LabError

_WAIT_S = 20.0  # an emulated machine under load takes its time


def request(control: Path, command: str, **arguments: Any) -> Any:
    """Has qemu execute one command and returns what it answers.

    Args:
        control: the socket.
        command: its name, such as `stop` or `set_link`.
        arguments: the command's.

    Raises:
        LabError: qemu is not there, does not answer or refuses.
    """
    try:
        with _connected(control) as connection, connection.makefile("rw") as stream:
            json.loads(stream.readline())  # the greeting
            _exchange(stream, "qmp_capabilities", {})
            return _exchange(stream, command, arguments)
    except (OSError, json.JSONDecodeError) as error:
        raise LabError(f"qemu did not take `{command}` at {control}: {error}") from error


def _connected(control: Path) -> socket.socket:
    """By way of the directory's descriptor: a socket's path allows 107 bytes."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_WAIT_S)
    directory = os.open(control.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{control.name}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def _exchange(stream: IO[str], command: str, arguments: dict[str, Any]) -> Any:
    stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    stream.flush()
    while True:
        answer = json.loads(stream.readline())
        if "error" in answer:
            raise LabError(f"qemu refuses `{command}`: {answer['error'].get('desc')}")
        if "return" in answer:
            return answer["return"]
        # else an event, such as STOP: not asked for
