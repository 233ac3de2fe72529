"""The state of one node in one call, as provisioning needs it: `raytools.state/1`.

Facts, what roles have put here, which environments are installed, whether Ray runs as planned, who holds the
ports. Reads only. Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytools.errors import EnvironmentBuildError, RaytoolsError
from raytools.node import (
    environment,
    facts,
    inspect_processes,
    locks,
    mounts,
    ray_ports,
    stamp,
    systemd_unit,
    toolkit,
)
from raytools.node.manifest import read_environment
from raytools.node.ray_temp_dir import temp_dir_of

SCHEMA = "raytools.state/1"
DIGEST_VARIABLE = "RAYTOOLS_RAY_DIGEST"
"""In the Ray unit's environment: names what it was started with."""


def probe(request: Mapping[str, Any]) -> dict[str, Any]:
    """What this node is now.

    Args:
        request: `root`, `cluster`, `user` (who shall run Ray, or null), `ports` (name -> port, without the
            workers' range) and `storage_path` (or null).
    """
    root = Path(request["root"])
    node = facts.read_node_json(str(root / "node.json"))
    found = facts.collect(node, str(root))
    privileged = os.geteuid() == 0
    unit_name = systemd_unit.of_ray(request["cluster"])
    every = inspect_processes.processes()
    own = _own_pids(root, unit_name, every)
    # a raylet that was drained ends, and `ray start --block` stays without it
    raylet = next((pid for pid in own if every[pid].name == "raylet"), None)
    return {
        "schema": SCHEMA,
        "facts": found,
        "clock_s": time.time(),
        "interpreter": sys.executable,
        "privileged": privileged,
        "systemd": found["host"]["init"] == "systemd" and privileged,
        "node": node,
        "root_owner": _owner(root),
        "root_writable": _writable(root),
        "toolkit": {"installed": toolkit.installed_digest(root), "zips": _zips(root)},
        "stamps": stamp.read_all(root),
        "account": stamp.observe(f"user:{request['user']}") if request.get("user") else None,
        "environments": _environments(root),
        "current": _link(root / "envs" / "current"),
        "unit": _unit(unit_name) if privileged else None,
        "raylet_pid": raylet,
        "token_sha256": _token_digest(root / "token"),
        "busy_ports": [str(port) for port in _busy(request["ports"], own)],
        "other_rays": [str(ray) for ray in ray_ports.foreign_rays(temp_dir_of(root), every)],
        "runs": _runs(),
        "ephemeral_ports": _numbers("/proc/sys/net/ipv4/ip_local_port_range"),
        "storage": _storage(request.get("storage_path")),
        "nfs": _nfs_tools(),
    }


def _owner(path: Path) -> str | None:
    try:
        uid = path.stat().st_uid
    except OSError:
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _writable(path: Path) -> bool:
    """Whether this user may write there, or make it where it is not there yet."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return os.access(existing, os.W_OK | os.X_OK)


def _zips(root: Path) -> list[str]:
    """Digests of the toolkit archives that were copied here."""
    return [path.stem.removeprefix("raytools-") for path in (root / "toolkit").glob("raytools-*.zip")]


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _environments(root: Path) -> dict[str, dict[str, str | None]]:
    """Ids of the environments that are whole, and what is in them."""
    try:
        found = environment.list_environments(root)
    except EnvironmentBuildError:
        return {}  # node.json is damaged: the roles write it again, and find what is installed
    return {one["id"]: _versions(Path(one["prefix"])) for one in found if one["complete"]}


def _versions(prefix: Path) -> dict[str, str | None]:
    """Ray and Python of an environment, by the names of what is installed: nothing is started for it."""
    notes = read_environment(prefix) or {}
    ray = next(prefix.glob("lib/python3*/site-packages/ray-*.dist-info"), None)
    return {
        "python": notes.get("python"),
        "ray": ray.name.removeprefix("ray-").removesuffix(".dist-info") if ray else None,
    }


def _unit(name: str) -> dict[str, Any] | None:
    """The Ray unit as systemd sees it, and what its Ray is or will be started with; None without systemd."""
    seen = systemd_unit.look(name)
    if not seen or "problem" in seen:
        return seen
    if seen["active"] == "activating" and not seen["main_pid"]:
        return {**seen, "digest": systemd_unit.variable(name, DIGEST_VARIABLE)}
    variables = inspect_processes.environ(seen["main_pid"]) if seen["main_pid"] else None
    return {**seen, "digest": (variables or {}).get(DIGEST_VARIABLE)}


def _own_pids(root: Path, unit_name: str, every: Mapping[int, inspect_processes.Process]) -> set[int]:
    """Processes of this root's Ray: in its unit's group, or in the session that `ray ensure` has made."""
    try:
        main_pid = json.loads((root / "ray.state.json").read_text())["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        main_pid = None
    own = set()
    for pid in every:
        try:
            in_unit = f"/{unit_name}" in Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
            in_session = main_pid is not None and os.getsid(pid) == main_pid
        except OSError:
            continue
        if in_unit or in_session:
            own.add(pid)
    return own


def _busy(ports: Mapping[str, int], own: set[int]) -> list[ray_ports.BusyPort]:
    return [port for port in ray_ports.listeners(ports) if port.pid not in own]


def _token_digest(path: Path) -> str | None:
    """Names the token without telling it: 64 random hex digits cannot be guessed from their hash."""
    try:
        return hashlib.sha256(path.read_bytes().strip()).hexdigest()
    except OSError:
        return None


def _runs() -> list[str]:
    """The runs that hold slots of this node."""
    named = os.environ.get("RAYTOOLS_LOCK_DIR")
    if not Path(named or "/run/lock/raytools").is_dir():  # asking must not make it
        return []
    return [holder.describe() for holder in locks.holders()]


def _numbers(path: str) -> list[int]:
    return [int(part) for part in Path(path).read_text().split()]


def _storage(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    results = mounts.kind_and_owner(f"{path}/results")
    owner = results[1] if isinstance(results, tuple) else None
    return {**mounts.look(path), "results_owner": owner}


def _nfs_tools() -> dict[str, bool]:
    """Whether this host can mount NFS, and serve it."""
    places = os.pathsep.join(["/usr/sbin", "/sbin", "/usr/bin", "/bin"])
    return {
        "client": shutil.which("mount.nfs4", path=places) is not None,
        "server": shutil.which("exportfs", path=places) is not None,
    }


def main(argv: list[str]) -> int:
    """`python -m raytools.node probe`: request on standard input, state on standard output, as JSON."""
    if argv:
        print("probe: takes its request on standard input and no arguments", file=sys.stderr)
        return 2
    try:
        json.dump(probe(json.load(sys.stdin)), sys.stdout)
    except RaytoolsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
