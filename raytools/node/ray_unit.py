"""The Ray unit: `python -m raytools.node ray-unit --root DIR`, its text on standard input, as root.

One call writes, enables and starts it: each step of its own would cost a connection's round trip.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node import systemd_unit
from raytools.node.apply import run, write_file
from raytools.node.ray_failure import RayServiceError
from raytools.node.ray_start import HEAD_LIMIT_S
from raytools.node.ray_state import read_node

_DIRECTORY = Path("/etc/systemd/system")
_MODE = 0o640  # a proxy's password may be in it
_QUOTED_LINES = 12
_SLOW_S = 30.0  # what is wrong with a head shows sooner


def restart(root: Path, node: Mapping[str, Any], text: str) -> None:
    """The unit says this, is enabled, and is started or restarted; returns when Ray has joined.

    Args:
        root: of this node.
        node: its plan.
        text: of the unit.

    Raises:
        RaytoolsError: systemd refused it, or Ray did not start: with the end of its log.
    """
    unit, is_head = systemd_unit.of_ray(node["cluster"]), node["role"] == "head"
    write_file(_DIRECTORY / unit, text, _MODE)
    run(["systemctl", "enable", "--quiet", unit])  # reads all units anew, too
    try:
        _restart(unit, is_head=is_head)
    except RaytoolsError as error:
        said = _last_words(root / "logs" / "ray.log", error)
        raise RayServiceError("Ray did not start. " + said) from error


def await_start(node: Mapping[str, Any]) -> bool:
    """Whether the start that is under way came to its good end."""
    unit = systemd_unit.of_ray(node["cluster"])
    try:
        run(["systemctl", "start", unit])  # joins it
        _require_active(unit)
    except RaytoolsError:
        return False
    return True


def _restart(unit: str, *, is_head: bool) -> None:
    """Once more for what took long to fail: Ray gives its parts a fixed time, and what was read once is read
    faster. And for a worker: where all are restarted, it may have met the head that was just ending. But not
    for one whose head never answered: the head's failure tells more.
    """
    began = time.monotonic()
    try:
        _restart_once(unit)
    except RaytoolsError:
        took_s = time.monotonic() - began
        if took_s < _SLOW_S if is_head else took_s > HEAD_LIMIT_S:
            raise
        _restart_once(unit)


def _restart_once(unit: str) -> None:
    """For systemd a Ray that gave up while it started has started, and ended well: see SuccessExitStatus."""
    run(["systemctl", "restart", unit])
    _require_active(unit)


def _require_active(unit: str) -> None:
    state = run(["systemctl", "show", "--property=ActiveState", "--value", unit])
    if state != "active":
        raise RaytoolsError(f"{unit} is {state} right after its start", expected="active")


def _last_words(log: Path, error: RaytoolsError) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()[-_QUOTED_LINES:]
    except OSError:
        return str(error)
    return "\n".join([f"The end of {log}:", *lines])


def main(argv: list[str]) -> int:
    """0 once Ray is up; 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node ray-unit", description=__doc__)
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument(
        "--starting", action="store_true", help="it has this text and is being started: wait for that first"
    )
    options = parser.parse_args(argv)
    root = options.root.absolute()
    try:
        node = read_node(root / "node.json")
        if options.starting and await_start(node):
            print(json.dumps({"changed": False}))
            return 0
        restart(root, node, sys.stdin.read())
    except (RaytoolsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"changed": True}))
    return 0
