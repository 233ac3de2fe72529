"""A unit of systemd as it is now. Reads only."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

_PROPERTIES = (
    "ActiveState", "SubState", "UnitFileState", "MainPID", "NRestarts", "Result", "DelegateControllers"
)  # fmt: skip
_WAIT_S = 10.0


def of_ray(cluster: str) -> str:
    """The name of the unit that keeps a cluster's Ray running. The role `ray` names it, too."""
    return f"raytools-ray-{cluster}.service"


def variable(name: str, of: str) -> str | None:
    """A variable of its `Environment=`: what it is being started with, before it has a process."""
    command = ["systemctl", "show", name, "--property", "Environment", "--value"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WAIT_S, check=True)
        found = dict(entry.partition("=")[::2] for entry in shlex.split(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return found.get(of)


def look(name: str) -> dict[str, Any] | None:
    """Its state; `problem` in words where systemd does not answer; None where systemd is not PID 1."""
    if not Path("/run/systemd/system").is_dir():
        return None
    command = ["systemctl", "show", name, "--property", ",".join(_PROPERTIES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WAIT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"problem": f"systemctl does not answer ({error})"}
    shown = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return {
        "name": name,
        "active": shown.get("ActiveState"),
        "sub": shown.get("SubState"),
        "enabled": shown.get("UnitFileState") == "enabled",
        "main_pid": int(shown.get("MainPID") or 0) or None,
        "restarts": int(shown.get("NRestarts") or 0),
        "result": shown.get("Result"),
        "delegated": sorted((shown.get("DelegateControllers") or "").split()),
    }
