"""What the doctor gathers of one node in one call: its facts, and the state of what was installed on it.

Judges nothing, changes nothing. What may not be read, or is not there, is null or has a `problem` in words.
Standard library only, so that a node can be asked before it has an environment.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node import (
    cgroup_tree,
    facts,
    facts_cgroup,
    inspect_files,
    inspect_gpus,
    inspect_load,
    inspect_processes,
    mounts,
    systemd_unit,
)
from raytools.node.cgroup_tree import read_text
from raytools.node.cpu_list import parse_cpu_list
from raytools.node.inspect_processes import Process, Ray, user_name

SCHEMA = "raytools.inspection/1"
_SECOND_LOOK_S = 1.0  # Ray's agents end by themselves within a second of their raylet
_INTERPRETER_WAIT_S = 20.0
_DIGEST_DIGITS = 16
_ASK_VERSIONS = (
    "import json,platform,importlib.metadata as m\n"
    "try: ray=m.version('ray')\n"
    "except m.PackageNotFoundError: ray=None\n"
    "print(json.dumps({'python':platform.python_version(),'ray':ray}))"
)

Found = dict[str, Any]


def inspect(node_json: str, environment: bool = True) -> Found:
    """Everything about this node that a check may want to know.

    Args:
        node_json: path of the installed plan.
        environment: compare the environment with its manifest (the longest part).
    """
    first_look = inspect_load.look()
    root = str(Path(node_json).parent)
    node = facts.read_node_json(node_json)
    timings: dict[str, float] = {}

    def timed(name: str, collect: Callable[..., Any], *arguments: Any) -> Any:
        began = time.monotonic()
        try:
            return collect(*arguments)
        except RaytoolsError as error:
            return {"problem": str(error)}
        except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
            # one part that fails must not hide the others: the check that needs it says what happened
            return {"problem": f"{type(error).__name__}: {error}"}
        finally:
            timings[name] = round(time.monotonic() - began, 3)

    found: Found = {
        "schema": SCHEMA,
        "facts": timed("facts", facts.collect, node, root),
        "node": node,
        "node_problem": None if node else _why_no_plan(node_json),
        "rays": timed("rays", ray_facts, (node or {}).get("temp_dir"), root),
        "paths": timed("paths", path_facts, node, root),
        "above": timed("above", directories_above, root),
        "locks": timed("locks", lock_facts),
        "gpus": timed("gpus", inspect_gpus.gpu_facts, root),
    }
    if node:
        found |= {
            "listening": timed("listening", listening_facts, node["ray"]["ports"]),
            "versions": timed("versions", versions, node["python"]),
            "storage": timed("storage", storage_facts, node["storage"]["path"]),
            "unit": timed("unit", systemd_unit.look, systemd_unit.of_ray(node["cluster"])),
            "places": timed("places", place_facts, node),
            "exports": timed("exports", export_facts),
            "files": timed("files", file_facts, node, found["rays"]),
            "token": timed("token", token_facts, node["ray"]["token_path"]),
        }
        if environment:
            found["environment"] = timed("environment", environment_facts, node)
    found["default_temp_dir"] = timed(
        "default_temp_dir", inspect_files.default_temp_dir, (node or {}).get("user")
    )
    found["load"] = timed("load", inspect_load.compare_with_now, first_look)  # last: as far apart as can be
    return {**found, "timings_s": timings}


def storage_facts(path: str) -> Found:
    """Where results go: what is mounted there and, if it answers, its room."""
    seen = mounts.look(path)
    return seen if seen["stalled"] else {**facts.disk_facts(path), **seen}


def place_facts(node: Found) -> Found:
    """On what kind of file system the environment is; a link is followed, nothing below it is read."""
    prefix = os.path.realpath(node["environment"]["prefix"])
    return {"prefix_filesystem": mounts.filesystem_of(prefix)}


def export_facts(table: str = "/var/lib/nfs/etab") -> list[Found]:
    """What this node exports by NFS, and to whom, as the kernel was told; [] where it serves nothing."""
    try:
        text = Path(table).read_text()
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        path, _, clients = line.partition("\t")
        for match in re.finditer(r"(\S+?)\(([^)]*)\)", clients):
            found.append({"path": path, "client": match[1], "options": match[2].split(",")})
    return found


def file_facts(node: Found, rays: Found) -> Found:
    """What Ray's sessions and logs take."""
    if "problem" in rays:  # a session that lives must not be called over
        return {"problem": f"which session lives is not known: {rays['problem']}"}
    ours = rays.get("ours") or []
    return inspect_files.ray_files(node["temp_dir"], node["root"], ours[0]["session_dir"] if ours else None)


def token_facts(path: str | None) -> Found:
    """By what the tokens of nodes can be compared, and nobody can connect."""
    if path is None:
        return {"digest": None}
    return {"digest": hashlib.sha256(Path(path).read_bytes().strip()).hexdigest()[:_DIGEST_DIGITS]}


def _why_no_plan(path: str) -> str:
    if not Path(path).exists():
        return f"{path} does not exist"
    if not os.access(path, os.R_OK):
        return f"{path} may not be read by {user_name(os.getuid())}"
    return f"{path} is not a plan"


# --- Ray -----------------------------------------------------------------------------------------


def ray_facts(temp_dir: str | None, root: str) -> Found:
    """Our raylet, other Rays, and what dead Rays have left."""
    every = inspect_processes.processes()
    living = inspect_processes.living_rays(every)
    left = inspect_processes.leftovers(every, living, root)
    if left:
        time.sleep(_SECOND_LOOK_S)
        again = inspect_processes.processes()
        still = {
            one["pid"]
            for one in inspect_processes.leftovers(again, inspect_processes.living_rays(again), root)
        }
        left = [one for one in left if one["pid"] in still and again[one["pid"]] == every[one["pid"]]]
    ours = [ray for ray in living if _is_ours(ray, temp_dir, root)]
    return {
        "ours": [_our_raylet(ray) for ray in ours],
        "others": [_other_ray(ray, every) for ray in living if ray not in ours],
        "leftovers": left,
        "system_tmp": os.environ.get("TMPDIR") or "/tmp",
    }


def _is_ours(ray: Ray, temp_dir: str | None, root: str) -> bool:
    """By the plan's temp dir; where the plan is gone, by what it was started with."""
    if temp_dir is not None:
        return ray.temp_dir == temp_dir
    return (ray.environ or {}).get("RAYTOOLS_ROOT") == root and ray.run_id is None


def _our_raylet(ray: Ray) -> Found:
    pid = ray.raylet.pid
    status, limits = read_text(f"/proc/{pid}/status") or "", read_text(f"/proc/{pid}/limits") or ""
    command = ray.flags.get("python_worker_command", "").split()
    resources = ray.flags.get("static_resource_list", "").split(",")
    return {
        "pid": pid,
        "user": user_name(ray.raylet.uid),
        "environ": _visible(ray.environ) if ray.environ is not None else None,
        "signals_ignored": inspect_processes.parse_signals(status, "SigIgn"),
        "nofile": inspect_processes.parse_open_files(limits),
        "processes_max": _processes_max(pid, limits, ray.raylet.uid),
        "interpreter": command[0] if command else None,
        "program_replaced": _replaced(pid),
        "cpus_allowed": _cpus_allowed(status),
        "gcs_address": ray.gcs_address,
        "node_address": ray.flags.get("node_ip_address"),
        "resources": dict(zip(resources[::2], resources[1::2], strict=False)),
        "session_dir": ray.session_dir,
    }


def _processes_max(pid: int, limits: str, uid: int) -> int | None:
    """How many processes and threads it may have, by its limits and all groups above; None: no limit."""
    of_user = inspect_processes.parse_processes(limits) if uid != 0 else None  # root is exempt
    groups = cgroup_tree.locate(
        read_text("/proc/self/mountinfo") or "", read_text(f"/proc/{pid}/cgroup") or ""
    )
    of_groups = facts_cgroup.pids_limit(groups)
    return min((one for one in (of_user, of_groups) if one is not None), default=None)


def _visible(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment without what may be secret: only names are shown of anything that looks like one."""
    hidden = re.compile(r"TOKEN$|SECRET|PASSWORD|CREDENTIAL|_KEY$|KEY_ID$", re.IGNORECASE)
    return {name: "…" if hidden.search(name) else value for name, value in variables.items()}


def _replaced(pid: int) -> bool | None:
    """Whether the program file was deleted or replaced since the process was started."""
    try:
        return os.readlink(f"/proc/{pid}/exe").endswith(" (deleted)")
    except OSError:
        return None


def _cpus_allowed(status: str) -> list[int] | None:
    match = re.search(r"^Cpus_allowed_list:\s*(\S+)$", status, re.MULTILINE)
    return parse_cpu_list(match[1]) if match else None


def _other_ray(ray: Ray, every: Mapping[int, Process]) -> Found:
    return {
        "pid": ray.raylet.pid,
        "ended_by": inspect_processes.ended_by(ray, every),
        "user": user_name(ray.raylet.uid),
        "temp_dir": ray.temp_dir,
        "gcs_address": ray.gcs_address,
        "run_id": ray.run_id,
    }


def parse_listening(text: str) -> list[tuple[str, int]]:
    """Address and port of the listening sockets in a `/proc/net/tcp` or `/proc/net/tcp6`."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == "0A":
            address, _, port = fields[1].rpartition(":")
            found.append((_address_of(address), int(port, 16)))
    return found


def _address_of(digits: str) -> str:
    """An address of /proc/net: 32-bit words in the host's byte order; little-endian on what we support."""
    import socket

    words = [bytes.fromhex(digits[start : start + 8])[::-1] for start in range(0, len(digits), 8)]
    packed = b"".join(words)
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    text = socket.inet_ntop(socket.AF_INET6, packed)
    return text.removeprefix("::ffff:") if text.startswith("::ffff:") and "." in text else text


def listening_facts(ports: Mapping[str, Any]) -> dict[str, list[str]]:
    """Port name of the plan -> addresses on which something listens there."""
    names = {port: name for name, port in ports.items() if isinstance(port, int)}
    found: dict[str, list[str]] = {}
    for table in ("tcp", "tcp6"):
        for address, port in parse_listening(read_text(f"/proc/net/{table}") or ""):
            if port in names:
                found.setdefault(names[port], []).append(address)
    return {name: sorted(addresses) for name, addresses in found.items()}


# --- what was installed --------------------------------------------------------------------------


def path_facts(node: Found | None, root: str) -> dict[str, Found | None]:
    """Owner and mode of what others must not be able to change.

    Null if it is not there, left out if this user cannot see whether it is.
    """
    paths = {"root": root}
    if node:
        paths |= {
            "token": node["ray"]["token_path"],
            # Ray opens its temp dir to everybody; the directory around it is what keeps others out
            "temp_dir": os.path.dirname(node["temp_dir"]),
            "toolkit": node["toolkit"],
            "prefix": node["environment"]["prefix"],
            "python": node["python"],
            "node_json": f"{root}/node.json",
        }
    found: dict[str, Found | None] = {}
    for name, path in paths.items():
        with contextlib.suppress(PermissionError):
            found[name] = _path_fact(path)
    return found


def directories_above(root: str) -> list[Found]:
    """Owner and mode of each directory above the root: who may rename it may replace everything."""
    found = [_path_fact(str(path)) for path in Path(root).parents]
    return [one for one in found if one is not None]


def _path_fact(path: str) -> Found | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return {
        "path": path,
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "user": user_name(found.st_uid),
        "size_bytes": found.st_size,
    }


def versions(python: str) -> Found:
    """Python's and Ray's version of the environment on disk."""
    done = subprocess.run(
        [python, "-I", "-c", _ASK_VERSIONS],
        capture_output=True,
        text=True,
        timeout=_INTERPRETER_WAIT_S,
        check=False,
    )
    if done.returncode != 0:
        return {"problem": f"{python} ended with exit code {done.returncode}: {done.stderr.strip()[-200:]}"}
    found: Found = json.loads(done.stdout)
    return found


def environment_facts(node: Found) -> Found:
    """How the environment differs from its manifest: size and time first, content where those differ."""
    manifest = importlib.import_module("raytools.node.manifest")
    prefix, root = node["environment"]["prefix"], node["root"]
    notes = manifest.read_environment(prefix, root) or {}
    began = time.monotonic()
    differences = manifest.compare(prefix, quick=True, root=root)
    return {
        "content_digest": notes.get("content_digest"),
        "differences": [difference.to_json() for difference in differences],
        "compared_s": round(time.monotonic() - began, 3),
    }


def lock_facts() -> Found:
    """Runs that hold slots of this node, and what killed ones have left."""
    locks = importlib.import_module("raytools.node.locks")
    named = os.environ.get("RAYTOOLS_LOCK_DIR")
    if not Path(named or "/run/lock/raytools").is_dir():  # asking must not make it
        return {"holders": [], "stale": []}
    return {
        "holders": [holder.describe() for holder in locks.holders()],
        "stale": [{"text": holder.describe(), "path": str(path)} for holder, path in locks.stale()],
    }


def main(argv: list[str]) -> int:
    """`python -m raytools.node inspect --node-json FILE [--no-environment]`: JSON on standard output."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node inspect", description=main.__doc__)
    parser.add_argument("--node-json", required=True, help="the installed plan; its directory is the root")
    parser.add_argument(
        "--no-environment", action="store_true", help="do not compare the environment's files"
    )
    options = parser.parse_args(argv)
    json.dump(inspect(options.node_json, not options.no_environment), sys.stdout)
    return 0
