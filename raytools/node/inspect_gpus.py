"""The driver of this node's GPUs, and who computes on them. Reads only."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from raytools.node import inspect_processes

_WAIT_S = 10.0  # nvidia-smi takes seconds where no persistence daemon runs


def gpu_facts(root: str) -> dict[str, Any]:
    """`driver`: its version, null without one; `holders`: processes that compute, and whether they are runs.

    Args:
        root: of this cluster: what its Ray or one of its runs has started is its own.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"driver": None, "holders": []}
    versions = _ask(program, "--query-gpu=driver_version").split()
    holders = parse_compute_apps(_ask(program, "--query-compute-apps=gpu_uuid,pid,used_memory"))
    every = inspect_processes.processes()
    return {
        "driver": versions[0] if versions else None,
        "holders": [{**one, **_who(one["pid"], every, root)} for one in holders],
    }


def parse_compute_apps(text: str) -> list[dict[str, Any]]:
    """Lines of `nvidia-smi --query-compute-apps=gpu_uuid,pid,used_memory`, as CSV without units (MiB).

    Where the driver does not tell the memory it says `[N/A]`; without processes, nothing.
    """
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[1].isdigit():
            used = int(fields[2]) * 2**20 if fields[2].isdigit() else None
            found.append({"uuid": fields[0], "pid": int(fields[1]), "used_bytes": used})
    return found


def _who(pid: int, every: dict[int, inspect_processes.Process], root: str) -> dict[str, Any]:
    process = every.get(pid)
    variables = inspect_processes.environ(pid) or {}
    return {
        "user": inspect_processes.user_name(process.uid) if process else None,
        # none: it has ended meanwhile, or is another namespace's
        "command": " ".join(process.command)[:120] if process else None,
        "in_run": inspect_processes.RUN_VARIABLE in variables,
        "ours": variables.get("RAYTOOLS_ROOT") == root,
    }


def _ask(program: str, query: str) -> str:
    done = subprocess.run(
        [program, query, "--format=csv,noheader,nounits"],
        capture_output=True, text=True, timeout=_WAIT_S, check=True,
    )  # fmt: skip
    return done.stdout
