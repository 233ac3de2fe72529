"""Ray's processes on this node, ours and others', and what dead Rays have left. Reads /proc; ends nothing.

Standard library only: it also runs by a bare Python, before an environment exists.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SESSION_VARIABLE = "RAYTOOLS_RAY_SESSION"  # as ray_process sets it; that module needs psutil
RUN_VARIABLE = "RAYTOOLS_RUN_ID"
_SERVERS = ("raylet", "gcs_server")
# what a Ray process that is neither raylet nor GCS has in its command line
_RAY_PROGRAMS = ("/ray/_private/", "/ray/dashboard/", "/ray/autoscaler/_private/", "ray.util.client.server")


@dataclass(frozen=True)
class Process:
    """One process; `command` is empty for kernel threads and for what may not be read."""

    pid: int
    ppid: int
    name: str
    uid: int
    start_ticks: int
    command: tuple[str, ...]


@dataclass(frozen=True)
class Ray:
    """One living Ray on this node, known by its raylet."""

    raylet: Process
    flags: Mapping[str, str]
    temp_dir: str | None
    session_dir: str | None
    gcs_address: str | None
    environ: Mapping[str, str] | None  # None: may not be read

    @property
    def run_id(self) -> str | None:
        """The limited run this Ray is private to."""
        return (self.environ or {}).get(RUN_VARIABLE)


def parse_stat(text: str) -> tuple[str, str, int, int] | None:
    """Name, state, parent and start time (ticks) of a `/proc/<pid>/stat`; the name may hold anything."""
    before, separator, after = text.rpartition(")")
    fields = after.split()
    if not separator or len(fields) < 20:
        return None
    return before.partition("(")[2], fields[0], int(fields[1]), int(fields[19])


def processes() -> dict[int, Process]:
    """All processes this user may see, without zombies."""
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            parsed = parse_stat((directory / "stat").read_text(errors="replace"))
            command = (directory / "cmdline").read_bytes().decode(errors="replace")
            uid = directory.stat().st_uid
        except OSError:
            continue  # it has just ended
        if parsed is None or parsed[1] in "ZX":
            continue
        pid = int(directory.name)
        arguments = tuple(command.rstrip("\0").split("\0")) if command else ()
        found[pid] = Process(pid, parsed[2], parsed[0], uid, parsed[3], arguments)
    return found


def environ(pid: int) -> dict[str, str] | None:
    """The environment a process was started with; None if it may not be read."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def flags(command: Iterable[str]) -> dict[str, str]:
    """`--name=value` arguments, with `-` and `_` made one (Ray uses both)."""
    pairs = (argument[2:].partition("=") for argument in command if argument.startswith("--"))
    return {name.replace("-", "_"): value for name, separator, value in pairs if separator}


def living_rays(every: Mapping[int, Process]) -> list[Ray]:
    """Each Ray that has a raylet here."""
    found = []
    for process in every.values():
        if process.name != "raylet" or not process.command:
            continue
        given = flags(process.command)
        session_dir = given.get("session_dir") or None
        temp_dir = given.get("temp_dir") or (os.path.dirname(session_dir) if session_dir else None)
        found.append(
            Ray(process, given, temp_dir, session_dir, given.get("gcs_address"), environ(process.pid))
        )
    return sorted(found, key=lambda ray: ray.raylet.pid)


def leftovers(every: Mapping[int, Process], living: list[Ray], root: str) -> list[dict[str, Any]]:
    """Processes of Rays that are dead: workers, agents, servers, and whatever tasks have started.

    A process is left over if it belongs to Ray by its command line or by the session variable it inherited,
    descends from no living Ray, and its session is not that of a living one.
    """
    alive = _descendants(every, _anchors(every, living)) | _ancestors(every, os.getpid())
    sessions = {(ray.environ or {}).get(SESSION_VARIABLE) for ray in living} - {None}
    directories = {ray.session_dir for ray in living} - {None}
    addresses = {(ray.raylet.uid, ray.gcs_address) for ray in living if ray.gcs_address}
    found = []
    for process in every.values():
        if process.pid in alive or not process.command:
            continue
        variables = environ(process.pid) or {}
        session, given = variables.get(SESSION_VARIABLE), flags(process.command)
        if not (session or _is_ray(process)):
            continue
        if session in sessions or _session_dir(given) in directories:
            continue
        served = given.get("gcs_address") or given.get("address")
        if session is None and _session_dir(given) is None and (process.uid, served) in addresses:
            continue  # `ray start` without --block leaves ray.util.client.server to init
        temp_dir = given.get("temp_dir") or variables.get("RAY_TMPDIR")
        found.append(
            {
                "pid": process.pid,
                "name": process.name,
                "user": user_name(process.uid),
                "command": " ".join(process.command)[:120],
                "temp_dir": temp_dir,
                "ours": variables.get("RAYTOOLS_ROOT") == root,
            }
        )
    return sorted(found, key=lambda one: int(one["pid"]))


def _session_dir(given: Mapping[str, str]) -> str | None:
    """The autoscaler's monitor names only the directory of its logs."""
    logs = given.get("logs_dir") or given.get("log_dir")
    return given.get("session_dir") or (os.path.dirname(logs) if logs else None)


def ended_by(ray: Ray, every: Mapping[int, Process]) -> list[int]:
    """The processes whose SIGTERM ends a Ray: its `ray start --block`, else its raylet and GCS."""
    parent = every.get(ray.raylet.ppid)
    if parent is not None and "start" in parent.command and "--block" in parent.command:
        return [parent.pid]
    servers = [
        process.pid
        for process in every.values()
        if process.name == "gcs_server" and flags(process.command).get("session_dir") == ray.session_dir
    ]
    return [ray.raylet.pid, *servers]


def _is_ray(process: Process) -> bool:
    if process.name in _SERVERS or process.command[0].startswith("ray::"):
        return True
    return any(program in argument for argument in process.command for program in _RAY_PROGRAMS)


def _anchors(every: Mapping[int, Process], living: list[Ray]) -> set[int]:
    """What holds a living Ray together: its raylet, and the `ray start` or driver above a server.

    A GCS without a raylet counts as long as its parent lives, and so does what will become a Ray: it is
    starting, which takes a slow machine a minute.
    """
    found = {ray.raylet.pid for ray in living}
    found |= {process.pid for process in every.values() if _is_starting(process)}
    for process in every.values():
        parent = every.get(process.ppid)
        if process.name in _SERVERS and parent is not None and not _is_reaper(parent):
            found |= {process.pid, parent.pid}
    return found


def _is_starting(process: Process) -> bool:
    """`ray start --block`, or what the unit runs before, beside and as it; each ends by itself."""
    command = process.command
    if command[1:3] == ("-m", "raytools.node"):
        return command[3:4] in (("enter-main",), ("ray-start",), ("ray",))
    return "start" in command and "--block" in command


def _is_reaper(process: Process) -> bool:
    """A process that orphans are given to: init, or a user's systemd."""
    return process.pid == 1 or process.name in ("systemd", "init")


def _descendants(every: Mapping[int, Process], roots: set[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for process in every.values():
        children.setdefault(process.ppid, []).append(process.pid)
    found, pending = set(roots), list(roots)
    while pending:
        for child in children.get(pending.pop(), []):
            if child not in found:
                found.add(child)
                pending.append(child)
    return found


def _ancestors(every: Mapping[int, Process], pid: int) -> set[int]:
    found = set()
    while pid in every and pid not in found:
        found.add(pid)
        pid = every[pid].ppid
    return found


def parse_signals(status: str, field: str) -> list[int] | None:
    """Signal numbers of a mask (`SigIgn`, `SigBlk`) in a `/proc/<pid>/status`."""
    match = re.search(rf"^{field}:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if match is None:
        return None
    mask = int(match[1], 16)
    return [number for number in range(1, 65) if mask >> (number - 1) & 1]


def parse_open_files(limits: str) -> dict[str, int | None] | None:
    """Soft and hard limit of open files of a `/proc/<pid>/limits`; null within = unlimited."""
    match = re.search(r"^Max open files\s+(\S+)\s+(\S+)", limits, re.MULTILINE)
    if match is None:
        return None
    soft, hard = (int(one) if one.isdigit() else None for one in match.groups())
    return {"soft": soft, "hard": hard}


def parse_processes(limits: str) -> int | None:
    """Soft limit of processes and threads of a `/proc/<pid>/limits`; None = unlimited."""
    match = re.search(r"^Max processes\s+(\d+)", limits, re.MULTILINE)
    return int(match[1]) if match else None


def user_name(uid: int) -> str:
    """A user's name, or `uid N` where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
