"""Who holds the ports that Ray is about to use, and which other Rays live on this machine. Reads only.

Standard library only: preflight asks before there is an environment.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from raytools.node import inspect_processes

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
    return listeners(pinned_ports(node))


def listeners(ports: Mapping[str, int]) -> list[BusyPort]:
    """What listens on ports, given by their roles."""
    roles = {port: role for role, port in ports.items()}
    sockets = [one for one in _listening() if one.port in roles]
    if not sockets:
        return []
    pids = _holders({one.inode for one in sockets})
    # one process may listen at several addresses, and several processes each at one of their own
    found = {(one.port, pids.get(one.inode), one.uid) for one in sockets}
    ordered = sorted(found, key=lambda one: (one[0], one[1] or 0, one[2]))
    busy = (_busy_port(roles[port], port, pid, uid) for port, pid, uid in ordered)
    return [port for port in busy if port is not None]


def _busy_port(role: str, port: int, pid: int | None, uid: int) -> BusyPort | None:
    name = None
    if pid is not None:
        try:
            name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
        except OSError:
            return None  # it has just ended, and its socket with it
    return BusyPort(role, port, pid, name, _user(uid))


class _Socket(NamedTuple):
    """A listening TCP socket: the kernel shows port, owner and inode to everybody, the process not."""

    port: int
    uid: int
    inode: str


def _listening() -> list[_Socket]:
    found = []
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == _LISTEN:
                found.append(_Socket(int(fields[1].rpartition(":")[2], 16), int(fields[7]), fields[9]))
    return found


def _holders(inodes: Iterable[str]) -> dict[str, int]:
    """Inode -> a process that has the socket open; without those this user may not look into."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, int] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # another user's, or it has just ended
            continue
        for descriptor in descriptors:
            try:
                inode = wanted.get(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
            except OSError:
                continue
            if inode is not None:
                found.setdefault(inode, int(pid))
    return found


def foreign_rays(
    own_temp_dir: str, every: Mapping[int, inspect_processes.Process] | None = None
) -> list[ForeignRay]:
    """Every raylet on this machine that does not use our temp dir and is not a limited run's own."""
    living = inspect_processes.living_rays(every or inspect_processes.processes())
    return [
        ForeignRay(ray.raylet.pid, _user(ray.raylet.uid), ray.temp_dir)
        for ray in living
        if ray.temp_dir != own_temp_dir and ray.run_id is None  # a run's stays inside its slot
    ]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
