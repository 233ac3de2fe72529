"""What the doctor mends by itself, with --fix: `python -m raytools.node mend KIND --root DIR`.

Each looks anew at what there is to do, and touches nothing but this cluster's own. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

from raytools.errors import RaytoolsError
from raytools.node import inspect_processes, systemd_unit
from raytools.node.apply import run
from raytools.node.ray_state import read_node
from raytools.node.ray_temp_dir import KEPT_SESSIONS

_PATIENCE_S = 3.0  # between SIGTERM and SIGKILL


def end_leftovers(root: Path) -> str:
    """Ends the processes that dead Rays of this root have left; SIGKILL for those that stay.

    Returns:
        What was done.

    Raises:
        RaytoolsError: some are still there.
    """
    every = inspect_processes.processes()
    left = inspect_processes.leftovers(every, inspect_processes.living_rays(every), str(root))
    handles = {pid: handle for one in left if one["ours"] and (handle := _opened(pid := one["pid"], root))}
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for handle in handles.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
            if living := _await_end(handles, _PATIENCE_S):
                continue
            return f"ended {len(handles)} processes"
        raise RaytoolsError(
            f"still there after SIGKILL: {', '.join(map(str, living))}", expected="no process"
        )
    finally:
        for handle in handles.values():
            os.close(handle)


def _opened(pid: int, root: Path) -> int | None:
    """A handle of the process, which no other with the same number can take over; None if it is not ours."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if (inspect_processes.environ(pid) or {}).get("RAYTOOLS_ROOT") == str(root):
        return handle
    os.close(handle)
    return None


def _await_end(handles: dict[int, int], patience_s: float) -> list[int]:
    deadline = time.monotonic() + patience_s
    living = dict(handles)
    while living and (left_s := deadline - time.monotonic()) > 0:
        ended, _, _ = select.select(living.values(), [], [], left_s)
        living = {pid: handle for pid, handle in living.items() if handle not in ended}
    return sorted(living)


def sweep_runs(_root: Path) -> str:
    """Removes what killed runs have left: groups with their processes, directories, locks.

    Raises:
        RaytoolsError: something could not be removed.
    """
    from raytools.node.sweep import sweep

    swept = sweep()
    if problems := [one.describe() for one in swept if one.problem]:
        raise RaytoolsError("; ".join(problems))
    return f"swept {len(swept)} runs"


def remove_sessions(root: Path) -> str:
    """Removes the files of sessions of this root's Ray that are over; those of the last ones stay.

    Raises:
        RaytoolsError: a session could not be removed.
    """
    temp_dir = Path(read_node(root / "node.json")["temp_dir"])
    rays = inspect_processes.living_rays(inspect_processes.processes())
    living = {os.path.realpath(ray.session_dir) for ray in rays if ray.session_dir}
    over = [
        path
        for path in sorted(temp_dir.glob("session_*"))
        if not path.is_symlink() and os.path.realpath(path) not in living
    ][:-KEPT_SESSIONS]
    for path in over:
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise RaytoolsError(f"{path} cannot be removed: {error.strerror}") from error
    return f"removed {len(over)} sessions"


def restart_unit(root: Path) -> str:
    """Starts the Ray unit of a worker again.

    Raises:
        RaytoolsError: it is the head's, whose restart ends what runs on all nodes; or it did not start.
    """
    node = read_node(root / "node.json")
    if node["role"] != "worker":
        raise RaytoolsError(
            "this node is the head",
            expected="a worker",
            fix="Restart all: ansible-playbook playbooks/ray.yml",
        )
    unit = systemd_unit.of_ray(node["cluster"])
    run(["systemctl", "restart", unit])
    return f"restarted {unit}"


KINDS = {
    "leftovers": end_leftovers,
    "runs": sweep_runs,
    "sessions": remove_sessions,
    "unit": restart_unit,
}


def main(argv: list[str]) -> int:
    """0 with `{"done": …}` on standard output; 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node mend", description=__doc__)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--root", required=True, type=Path)
    options = parser.parse_args(argv)
    try:
        print(json.dumps({"done": KINDS[options.kind](options.root)}))
    except (RaytoolsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
