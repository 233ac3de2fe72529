"""The Ray unit: `python -m raytools.node ray-unit --root DIR`, its text on standard input, as root.

One call writes, enables and starts it: each step of its own would cost a connection's round trip.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node.ray_failure import RayServiceError
from raytools.node.ray_state import read_node

_DIRECTORY = Path("/etc/systemd/system")
_MODE = 0o640  # a proxy's password may be in it
_QUOTED_LINES = 12
_SLOW_S = 30.0  # what is wrong with a head shows sooner
_ENDING_S = 60.0  # longer no head takes to end, emulated or not


def restart(root: Path, node: Mapping[str, Any], text: str) -> None:
    """The unit says this, is enabled, and is started or restarted; returns when Ray has joined.

    Args:
        root: of this node.
        node: its plan.
        text: of the unit.

    Raises:
        RaytoolsError: systemd refused it, or Ray did not start: with the end of its log.
    """
    unit, is_head = f"raytools-ray-{node['cluster']}.service", node["role"] == "head"
    _write(_DIRECTORY / unit, text)
    _systemctl("enable", "--quiet", unit)  # reads all units anew, too
    try:
        _restart(unit, is_head=is_head)
    except RaytoolsError as error:
        said = _last_words(root / "logs" / "ray.log", error)
        raise RayServiceError("Ray did not start. " + said) from error


def _restart(unit: str, *, is_head: bool) -> None:
    """Once more for a worker: where all are restarted, it may have met the head that was just ending. And for
    a head that took long to fail: Ray gives its parts a fixed time, and what was read once is read faster.
    """
    began = time.monotonic()
    try:
        _restart_once(unit)
    except RaytoolsError:
        took_s = time.monotonic() - began
        if took_s < _SLOW_S if is_head else took_s > _ENDING_S:
            raise
        _restart_once(unit)


def _restart_once(unit: str) -> None:
    """For systemd a Ray that gave up while it started has started, and ended well: see SuccessExitStatus."""
    _systemctl("restart", unit)
    state = _systemctl("show", "--property=ActiveState", "--value", unit)
    if state != "active":
        raise RaytoolsError(f"{unit} is {state} right after its start", expected="active")


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "w") as new:
        new.write(text)
        os.fsync(new.fileno())
    beside.replace(path)


def _systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RaytoolsError(
            f"systemctl {' '.join(arguments)} failed: {done.stderr.strip() or done.returncode}",
            expected="systemd to do what root asks",
        )
    return done.stdout.strip()


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
    options = parser.parse_args(argv)
    root = options.root.absolute()
    try:
        restart(root, read_node(root / "node.json"), sys.stdin.read())
    except (RaytoolsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"changed": True}))
    return 0
