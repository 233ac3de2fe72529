"""Who holds the ports that Ray is about to use, and which other Rays live on this machine. Reads only."""

from __future__ import annotations

import contextlib
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_DASHBOARD = ("dashboard", "dashboard_metrics")
_HEAD_ONLY = ("gcs", "client", "autoscaler_metrics", *_DASHBOARD)
_LISTEN = "0A"


@dataclass(frozen=True)
class BusyPort:
    """A port of the plan on which something listens already. Unknown is None (another user's process)."""

    role: str
    port: int
    pid: int | None
    name: str | None
    user: str | None

    def __str__(self) -> str:
        if self.pid is None:
            holder = "a process that this user may not see"
        else:
            holder = f"{self.name or 'a process'} (pid {self.pid})"
        owner = f" of user {self.user}" if self.user else ""
        return f"port {self.port} ({self.role}) is held by {holder}{owner}"


@dataclass(frozen=True)
class ForeignRay:
    """A Ray on this machine that is not ours."""

    pid: int
    user: str | None
    temp_dir: str | None

    def __str__(self) -> str:
        owner = f" of user {self.user}" if self.user else ""
        return f"another Ray{owner} (pid {self.pid}, temp dir {self.temp_dir or 'unknown'})"


def pinned_ports(node: Mapping[str, Any]) -> dict[str, int]:
    """The single ports this node's Ray will listen on, by role. The workers' range is not among them:
    Ray passes over a worker port that is taken."""
    ray = node["ray"]
    dashboard = ray.get("dashboard", {}).get("enabled", True)
    return {
        role: port
        for role, port in ray["ports"].items()
        if isinstance(port, int)
        and (node["role"] == "head" or role not in _HEAD_ONLY)
        and (dashboard or role not in _DASHBOARD)
    }


def busy_ports(node: Mapping[str, Any]) -> list[BusyPort]:
    """Ports of the plan on which something listens, with the holder as far as this user may see it."""
    wanted = {port: role for role, port in pinned_ports(node).items()}
    owners = {port: uid for port, uid in _listening_uids().items() if port in wanted}
    if not owners:
        return []
    pids = _listening_pids()
    return [_busy_port(wanted[port], port, pids.get(port), uid) for port, uid in sorted(owners.items())]


def _busy_port(role: str, port: int, pid: int | None, uid: int) -> BusyPort:
    name = None
    if pid is not None:
        with contextlib.suppress(psutil.Error):
            name = psutil.Process(pid).name()
    return BusyPort(role, port, pid, name, _user(uid))


def _listening_uids() -> dict[int, int]:
    """Listening TCP port -> uid of the owner, which the kernel shows to everybody (psutil does not)."""
    uids: dict[int, int] = {}
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == _LISTEN:
                uids[int(fields[1].rpartition(":")[2], 16)] = int(fields[7])
    return uids


def _listening_pids() -> dict[int, int]:
    return {
        socket.laddr.port: socket.pid
        for socket in psutil.net_connections("tcp")
        if socket.status == psutil.CONN_LISTEN and socket.laddr and socket.pid is not None
    }


def foreign_rays(own_temp_dir: str) -> list[ForeignRay]:
    """Every raylet on this machine that does not use our temp dir."""
    found = []
    for process in psutil.process_iter(["pid", "name", "cmdline", "username"]):
        command = process.info["cmdline"]
        if process.info["name"] != "raylet" or not command:  # a zombie has no command line
            continue
        temp_dir = _temp_dir(command)
        if temp_dir != own_temp_dir:
            found.append(ForeignRay(process.info["pid"], process.info["username"], temp_dir))
    return found


def _temp_dir(command: list[str]) -> str | None:
    """The temp dir of a raylet: the parent of its session directory."""
    for argument in command:
        flag, _, value = argument.partition("=")
        if flag in ("--temp_dir", "--temp-dir"):
            return value
        if flag in ("--session_dir", "--session-dir"):
            return str(Path(value).parent)
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
