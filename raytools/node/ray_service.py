"""The Ray service of a node: `python -m raytools.node ray COMMAND --root DIR`.

`ensure`, `stop` and `status` are for nodes where systemd is not PID 1; `check`, `prepare`, `await` and
`clean` are the steps they are made of, which the systemd unit takes too. Reads `<root>/node.json`, keeps
`<root>/ray.state.json`. Ensuring twice is starting once: Ray is restarted only when what it was started
with has changed. Exactly one Ray is touched: ours.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node import ray_failure, ray_ports, ray_process, ray_temp_dir
from raytools.node.ray_failure import RayServiceError
from raytools.node.ray_process import ProcessId, progress
from raytools.node.ray_start import HEAD_LIMIT_S
from raytools.node.ray_state import (
    State,
    changes,
    digest,
    forget,
    read_node,
    read_state,
    reason_of,
    seen_by_ray,
    write_state,
)

START_LIMIT_S = (
    HEAD_LIMIT_S + 60.0
)  # an emulated worker needs half a minute; the unit's TimeoutStartSec is above
STOP_LIMIT_S = 20.0
_CLOSING_S = 3.0
_REPORT_S = 2.0
_COMMANDS = ("ensure", "check", "stop", "status", "prepare", "await", "clean")


def main(argv: list[str]) -> int:
    """One command: one JSON object on stdout, progress and errors on stderr.

    Returns:
        0; 1 when Ray cannot be had as planned.
    """
    parser = argparse.ArgumentParser(prog="python -m raytools.node ray")
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("--root", required=True, type=Path, help="where node.json is")
    parser.add_argument("--node-json", type=Path, help="check: a plan that is not in its place yet")
    parser.add_argument("--pid", type=int, help="await: the `ray start` that systemd has started")
    arguments = parser.parse_args(argv)
    try:
        answer = _run(arguments)
    except RaytoolsError as error:
        progress(f"ray {arguments.command}: {error}")
        return error.exit_code
    print(json.dumps(answer))
    return 0


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    root = arguments.root.absolute()
    match arguments.command:
        case "status":
            return status(root)
        case "check":
            return check(root, read_node(arguments.node_json or root / "node.json"))
        case "prepare":
            return prepare(root, read_node(root / "node.json"))
        case "await":
            return await_unit(root, arguments.pid)
        case "clean":
            ray_temp_dir.clean(Path(read_node(root / "node.json")["temp_dir"]))
            return {}
    with _one_at_a_time(root):
        return ensure(root) if arguments.command == "ensure" else stop(root)


@contextlib.contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """Two playbooks at once must not start two Rays."""
    if not root.is_dir():
        yield
        return
    with (root / "ray.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting: another `ray ensure` or `ray stop` is at work in {root}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- looking --------------------------------------------------------------------------------------


def status(root: Path) -> dict[str, Any]:
    """What runs, since when, and how it differs from what node.json asks for now."""
    state = read_state(root)
    if state is None or not state.main.alive:
        return {"running": False, "pid": None, "raylet_pid": None, "died": state is not None}
    raylet_alive = state.raylet is not None and state.raylet.alive
    return {
        "running": raylet_alive,
        "pid": state.pid,
        "raylet_pid": state.raylet_pid if raylet_alive else None,
        "died": False,
        "started_at": state.started_at,
        "digest": state.digest,
        "changed_since_start": changes(state.started_with, seen_by_ray(read_node(root / "node.json"))),
        "gcs_address": state.started_with["ray"]["gcs_address"],
        "temp_dir": state.temp_dir,
        "processes": len(ray_process.session_processes(state.main, state.session)),
    }


def check(root: Path, node: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses when a port of the plan is held by anything but our own Ray. Changes nothing.

    Raises:
        RayServiceError: naming every busy port with its holder, and the Rays that are not ours.
    """
    own_pids = _own_pids(root, node["temp_dir"])
    busy = _busy_ports(node, own_pids)
    foreign = ray_ports.foreign_rays(node["temp_dir"])
    if busy:
        lines = [*map(str, busy), *(f"there is {ray}" for ray in foreign)]
        raise RayServiceError(
            "the ports that the plan gives to Ray are busy:\n  " + "\n  ".join(lines) + "\n ",
            expected="free ports",
            fix=_port_fix(busy, node["temp_dir"]),
        )
    return {"changed": False, "foreign_rays": [str(ray) for ray in foreign]}


def _busy_ports(node: Mapping[str, Any], own_pids: set[int]) -> list[ray_ports.BusyPort]:
    """Looks again for a moment where nobody can be seen to hold one: of a process with many threads that was
    killed, the kernel closes the files some time after it has left the list of the living."""
    deadline = time.monotonic() + _CLOSING_S
    while True:
        busy = [port for port in ray_ports.busy_ports(node) if port.pid not in own_pids]
        if all(port.pid is not None for port in busy) or time.monotonic() >= deadline:
            return busy
        time.sleep(0.05)


def _own_pids(root: Path, temp_dir: str) -> set[int]:
    """The processes of the Ray that this root's state file or its systemd unit has started."""
    state = read_state(root)
    if state:
        own = ray_process.session_processes(state.main, state.session)
    else:
        found = ray_process.find_by_temp_dir(temp_dir)
        by_systemd = found is not None and found[1] == ray_process.SYSTEMD_SESSION
        own = ray_process.session_processes(*found) if found and by_systemd else set()
    return {process.pid for process in own}


def _port_fix(busy: list[ray_ports.BusyPort], temp_dir: str) -> str:
    if ray_process.find_by_temp_dir(temp_dir):
        return "It is a Ray of this very directory whose state file is gone. Stop it: make stop"
    roles = ", ".join(sorted({port.role for port in busy}))
    return f"End the holder, or set other ports in cluster.yaml under ray.ports ({roles})."


# --- starting -------------------------------------------------------------------------------------


def ensure(root: Path) -> dict[str, Any]:
    """Ray runs as node.json says; nothing is done when it does so already.

    Raises:
        RayServiceError: a port is busy, the temp dir is another user's, Ray died at start.
    """
    node = read_node(root / "node.json")
    seen = seen_by_ray(node)
    state = read_state(root)
    reason = _why_start(state, seen)
    if state and reason is None:
        return {"changed": False, "pid": state.pid, "raylet_pid": state.raylet_pid, "digest": state.digest}
    if state and reason == "starting" and (raylet := await_ready(state.main, node)):
        return _up(root, state, raylet, "a start that was interrupted has come to its end")
    if state:
        check(root, node)  # before anything is stopped: a plan that cannot be started ends nothing
        progress(f"restarting Ray: {reason}")
        stop(root)
    prepare(root, node)
    return _start(root, node, seen, reason or "not running")


def _why_start(state: State | None, seen: Mapping[str, Any]) -> str | None:
    """Why Ray must be (re)started; None when it runs as planned; `starting` when a start was interrupted."""
    if state is None:
        return "not running"
    if not state.main.alive:
        return "it had died"
    if state.digest != digest(seen):
        return reason_of(state.started_with, seen)
    if state.raylet is None:
        return "starting"
    return None if state.raylet.alive else "its raylet had died"


def prepare(root: Path, node: Mapping[str, Any]) -> dict[str, Any]:
    """All that has to be right before `ray start`: free ports, a temp dir of our own, a fresh log.

    Raises:
        RayServiceError: a port is busy, the temp dir is another user's.
    """
    answer = check(root, node)
    ray_temp_dir.make(root, Path(node["temp_dir"]))
    log_path = _log_path(root)
    log_path.parent.mkdir(exist_ok=True)
    if log_path.exists():
        log_path.replace(log_path.with_suffix(".log.1"))  # what the one before said stays readable
    return answer


def _log_path(root: Path) -> Path:
    return root / "logs" / "ray.log"


def _start(root: Path, node: Mapping[str, Any], seen: dict[str, Any], reason: str) -> dict[str, Any]:
    session = secrets.token_hex(8)
    argv = _start_command(node)
    environment = ray_process.ray_environment(node, session, os.environ)
    main_process = ray_process.start_detached(argv, environment, _log_path(root))
    state = State(
        main_process.pid,
        main_process.start_time_ticks,
        session,
        digest(seen),
        seen,
        datetime.now(timezone.utc).isoformat(),
    )
    write_state(root, state)  # first of all: whoever interrupts us, the next one finds it
    raylet = await_ready(main_process, node)
    if raylet is None:
        error = ray_failure.start_error(
            _log_path(root), Path(node["temp_dir"]), still_running=main_process.alive
        )
        ray_process.end_session(main_process, session, STOP_LIMIT_S)
        forget(root)
        raise error
    return _up(root, state, raylet, reason)


def _start_command(node: Mapping[str, Any]) -> list[str]:
    """`ray start` as the plan says; a worker's waits for its head."""
    after = [] if node["role"] == "head" else ["--after", node["ray"]["gcs_address"]]
    ray = f"{node['environment']['prefix']}/bin/ray"
    return [
        *(node["python"], "-m", "raytools.node", "ray-start", *after),
        *(ray, "start", *node["ray"]["start_args"]),
    ]


def _up(root: Path, state: State, raylet: ProcessId, reason: str) -> dict[str, Any]:
    write_state(root, state.with_raylet(raylet))
    return {
        "changed": True,
        "reason": reason,
        "pid": state.pid,
        "raylet_pid": raylet.pid,
        "digest": state.digest,
    }


def await_ready(main_process: ProcessId, node: Mapping[str, Any]) -> ProcessId | None:
    """Waits until `ray start` is complete and raylet, GCS and the agent that prepares workers are up.

    The raylet does not wait for its agents, and whoever came at once would slow them down.

    Returns:
        The raylet; None when `ray start` died or START_LIMIT_S have passed.
    """
    started = time.monotonic()
    reported_s = 0.0
    temp_dir = Path(node["temp_dir"])
    parts = (node["ray"]["gcs_address"], _own_agent(node))
    while (waited_s := time.monotonic() - started) < START_LIMIT_S and main_process.alive:
        complete = ray_temp_dir.start_is_complete(temp_dir)
        due = waited_s - reported_s >= max(_REPORT_S, waited_s / 4)
        # looking for a child looks at every process, which would slow down what it waits for
        raylet = ray_process.child_named(main_process, "raylet") if complete or due else None
        if raylet and complete and all(map(ray_process.answers, parts)):
            progress(f"Ray is up after {waited_s:.1f} s (raylet pid {raylet.pid})")
            return raylet
        if due:
            reported_s = waited_s
            progress(f"starting Ray: {waited_s:.0f} s, raylet {'runs' if raylet else 'not yet'}")
        time.sleep(ray_process.patient_pause_s(waited_s))
    return None


def _own_agent(node: Mapping[str, Any]) -> str:
    return f"{node['address']}:{node['ray']['ports']['runtime_env_agent']}"


def await_unit(root: Path, pid: int) -> dict[str, Any]:
    """The same for a `ray start` that systemd has started.

    Raises:
        RayServiceError: it died, or did not come up in time.
    """
    node = read_node(root / "node.json")
    main_process = ray_process.identify(pid)
    raylet = await_ready(main_process, node) if main_process else None
    if raylet is None:
        raise ray_failure.start_error(
            _log_path(root), Path(node["temp_dir"]), still_running=bool(main_process and main_process.alive)
        )
    return {"pid": pid, "raylet_pid": raylet.pid}


# --- stopping -------------------------------------------------------------------------------------


def stop(root: Path) -> dict[str, Any]:
    """Ends our Ray by one SIGTERM, waits for all of its processes, kills what is left at the time limit.

    Raises:
        RaytoolsError: it is another user's, or systemd's.
    """
    state = read_state(root)
    main_process, session, temp_dir = _ours(root, state)
    ending = None
    if ray_process.session_processes(main_process, session):
        ending = ray_process.end_session(main_process, session, STOP_LIMIT_S)
        for process in ending.killed:
            progress(f"still there after {ending.wall_s:.0f} s, killed: {process}")
    ray_temp_dir.clean(Path(temp_dir))
    forget(root)
    if ending is None:
        return {"changed": False, "killed": []}
    return {"changed": True, "killed": list(ending.killed), "wall_s": ending.wall_s}


def _ours(root: Path, state: State | None) -> tuple[ProcessId | None, str | None, str]:
    """Our `ray start`, its session and temp dir: by the state file, else by the temp dir of this root."""
    if state is not None:
        return state.main, state.session, state.temp_dir
    temp_dir = ray_temp_dir.temp_dir_of(root)
    found = ray_process.find_by_temp_dir(temp_dir)
    if found and found[1] == ray_process.SYSTEMD_SESSION:
        raise RayServiceError(
            f"systemd has started this Ray (pid {found[0].pid})", fix="Stop it: make stop, as root"
        )
    return (*found, temp_dir) if found else (None, None, temp_dir)
