"""The physical view of one node as one JSON object (`raytools.facts/1`): what the kernel lets it use.

Standard library only, and no file of ours is needed: a bare Python 3.10 runs it before anything is installed.
What could not be measured is null, never 0; a limit that is null does not exist.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import pwd
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from raytools.node import cgroup_tree, facts_cgroup, facts_cpu, network_devices
from raytools.node.cgroup_tree import read_text
from raytools.node.cpu_list import parse_cpu_list

SCHEMA = "raytools.facts/1"
DEFAULT_ROOT = "/opt/raytools"
_RESOLVE_WAIT_S = 0.4  # a resolver that is down must not hold up the facts
_GPU_QUERY_WAIT_S = 10.0  # nvidia-smi takes seconds where no persistence daemon runs
# Documentation address (RFC 5737): connecting a UDP socket picks a route and sends nothing
_ROUTE_PROBE = "203.0.113.1"

Facts = dict[str, Any]


def collect(node: dict[str, Any] | None = None, root: str | None = None) -> Facts:
    """Measures this node.

    Args:
        node: the node's plan (node.json), if there is one: names the root and the environment.
        root: the root directory where there is no plan yet; its file system is measured.
    """
    plan = node or {}
    prefix = (plan.get("environment") or {}).get("prefix")
    names = _NameLookup(socket.gethostname())
    cpuinfo = read_text("/proc/cpuinfo") or ""
    groups = cgroup_tree.locate(read_text("/proc/self/mountinfo") or "", read_text("/proc/self/cgroup") or "")
    return {
        "schema": SCHEMA,
        "collected_at": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "cpu": cpu_facts(cpuinfo, groups),
        "memory": memory_facts(read_text("/proc/meminfo") or "", facts_cgroup.memory_limit_bytes(groups)),
        "gpus": gpu_facts(),
        "cgroup": {
            "mode": groups.mode,
            "own": groups.own,
            "controllers": sorted(
                name for name in groups.own if name != cgroup_tree.UNIFIED and "=" not in name
            ),
        },
        "disk": {"root": disk_facts(plan.get("root") or root or DEFAULT_ROOT), "tmp": disk_facts("/tmp")},
        "limits": limit_facts(),
        "libraries": {"libgomp.so.1": find_library("libgomp.so.1", prefix)},
        "python": {"executable": sys.executable or None, "version": platform.python_version()},
        "user": {"name": _user_name(os.getuid()), "uid": os.getuid()},
        # last: the name lookups have been running beside all of the above
        "host": host_facts(names),
        "network": network_facts(names),
    }


def cpu_facts(cpuinfo: str, groups: cgroup_tree.OwnCgroups) -> Facts:
    """CPUs that exist, and those this process may use: affinity, cpuset, online and quota."""
    model, ids = facts_cpu.parse_cpuinfo(cpuinfo)
    affinity = sorted(os.sched_getaffinity(0))
    online = parse_cpu_list(read_text("/sys/devices/system/cpu/online") or "") or sorted(ids) or None
    present = parse_cpu_list(read_text("/sys/devices/system/cpu/present") or "")
    cpuset = parse_cpu_list(facts_cgroup.cpuset_text(groups) or "")
    quota = facts_cgroup.quota_cpus(groups)
    allowed = allowed_cpus(affinity, cpuset, online)
    return {
        "model": model,
        "present": len(present) if present else os.cpu_count(),
        "online": online,
        "affinity": affinity,
        "cpuset": cpuset,
        "allowed": allowed,
        "quota_cpus": quota,
        "usable": usable_cpus(allowed, quota),
        "threads": facts_cpu.threads(online or affinity, ids),
        "frequency": facts_cpu.frequency(online or affinity),
    }


def allowed_cpus(affinity: list[int], cpuset: list[int] | None, online: list[int] | None) -> list[int]:
    """affinity ∩ cpuset ∩ online; what is unknown does not restrict."""
    allowed = set(affinity)
    for other in (cpuset, online):
        if other is not None:
            allowed &= set(other)
    return sorted(allowed)


def usable_cpus(allowed: list[int], quota: float | None) -> int:
    """Whole CPUs that can be promised: the allowed ones, or the quota rounded down if smaller; at least 1."""
    return max(1, min(len(allowed), int(quota)) if quota is not None else len(allowed))


def parse_meminfo(text: str) -> dict[str, int]:
    """Name -> bytes of a `/proc/meminfo` (its kB are KiB)."""
    return {
        match[1]: int(match[2]) * 1024 for match in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    }


def memory_facts(meminfo: str, limit_bytes: int | None) -> Facts:
    """Memory of the machine, the tightest limit over this process, swap and shared memory, in bytes."""
    found = parse_meminfo(meminfo)
    total = found.get("MemTotal")
    shm = _statvfs("/dev/shm") if os.path.ismount("/dev/shm") else None
    return {
        "total_bytes": total,
        "limit_bytes": limit_bytes,
        "usable_bytes": min((v for v in (total, limit_bytes) if v is not None), default=None),
        "available_bytes": found.get("MemAvailable"),
        "swap_total_bytes": found.get("SwapTotal"),
        "shm_total_bytes": shm.f_blocks * shm.f_frsize if shm else None,
        "shm_available_bytes": shm.f_bavail * shm.f_frsize if shm else None,
    }


def _statvfs(path: str) -> os.statvfs_result | None:
    try:
        return os.statvfs(path)
    except OSError:
        return None


def disk_facts(path: str) -> Facts:
    """Space and inodes of the file system that holds `path`, or will hold it once it is made."""
    existing = Path(path)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    stat = _statvfs(str(existing))
    return {
        "path": path,
        "total_bytes": stat.f_blocks * stat.f_frsize if stat else None,
        "available_bytes": stat.f_bavail * stat.f_frsize if stat else None,
        # file systems without fixed inodes (btrfs) report 0 of 0
        "inodes_available": stat.f_favail if stat and stat.f_files else None,
    }


def limit_facts() -> dict[str, int | None]:
    """Open files and processes this user may have; null = unlimited."""

    def limit(which: int) -> tuple[int | None, int | None]:
        soft, hard = resource.getrlimit(which)
        return tuple(None if one == resource.RLIM_INFINITY else one for one in (soft, hard))  # type: ignore[return-value]

    nofile, nproc = limit(resource.RLIMIT_NOFILE), limit(resource.RLIMIT_NPROC)
    return {"nofile_soft": nofile[0], "nofile_hard": nofile[1], "nproc_soft": nproc[0]}


def parse_nvidia_smi(text: str) -> list[Facts]:
    """GPUs of `nvidia-smi --query-gpu=index,uuid,name,memory.total --format=csv,noheader,nounits` (MiB)."""
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 4 or not fields[0].isdigit():
            continue
        mib = fields[-1]
        gpus.append(
            {
                "index": int(fields[0]),
                "uuid": fields[1],
                "name": ", ".join(fields[2:-1]),
                "memory_bytes": int(mib) * 2**20 if mib.isdigit() else None,
            }
        )
    return gpus


def gpu_facts() -> list[Facts] | None:
    """GPUs of this node: [] if there is no driver, null if there is one that does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None if any(Path("/proc/driver/nvidia/gpus").glob("*")) else []
    query = "--query-gpu=index,uuid,name,memory.total"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_GPU_QUERY_WAIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_nvidia_smi(done.stdout) if done.returncode == 0 else None


def parse_ldconfig(text: str, name: str, machine: str) -> str | None:
    """Path of a library in the output of `ldconfig -p`, for this machine's word size."""
    wanted = {"x86_64": "x86-64", "aarch64": "AArch64"}.get(machine, "")
    for line in text.splitlines():
        match = re.match(rf"\s*{re.escape(name)} \(([^)]*)\) => (\S+)", line)
        if match and wanted in match[1]:
            return match[2]
    return None


def find_library(name: str, prefix: str | None) -> str | None:
    """Where a shared library would be found: first in the environment, then by the system's loader cache."""
    if prefix and (Path(prefix) / "lib" / name).exists():
        return str(Path(prefix) / "lib" / name)
    program = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin")
    if program is None:
        return None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=5, check=False)
        return parse_ldconfig(done.stdout, name, platform.machine())
    return None


class _NameLookup:
    """Looks up this host's name in a thread of its own: a dead resolver blocks for many seconds."""

    def __init__(self, hostname: str) -> None:
        self.hostname = hostname
        self._found: list[Any] = []
        self._thread = threading.Thread(target=self._look_up, daemon=True)
        self._thread.start()

    def _look_up(self) -> None:
        try:
            flags = socket.AI_CANONNAME
            self._found = socket.getaddrinfo(self.hostname, None, type=socket.SOCK_STREAM, flags=flags)
        except OSError:
            self._found = []
        except UnicodeError:  # a name the encoding for domain names refuses
            self._found = []

    def wait(self) -> bool:
        """True once the resolver has answered; False if it has not in time."""
        self._thread.join(_RESOLVE_WAIT_S)
        return not self._thread.is_alive()

    def canonical_name(self) -> str | None:
        return (self._found[0][3] or self.hostname) if self.wait() and self._found else None

    def addresses(self) -> list[str] | None:
        return sorted({str(entry[4][0]) for entry in self._found}) if self.wait() else None


def parse_os_release(text: str) -> str | None:
    """The system's name for people, of `/etc/os-release`."""
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', text, re.MULTILINE)
    return match[1] if match else None


def host_facts(names: _NameLookup) -> Facts:
    """Who this machine is."""
    kernel = os.uname()
    return {
        "hostname": names.hostname,
        "fqdn": names.canonical_name(),
        "os": parse_os_release(read_text("/etc/os-release") or ""),
        "kernel": kernel.release,
        "arch": kernel.machine,
        "machine_id": (read_text("/etc/machine-id") or "").strip() or None,
        "init": "systemd" if Path("/run/systemd/system").is_dir() else "other",
        "boot_id": (read_text("/proc/sys/kernel/random/boot_id") or "").strip() or None,
    }


def parse_fib_trie(text: str) -> list[str]:
    """This host's IPv4 addresses of a `/proc/net/fib_trie`: leaves that are `host LOCAL`."""
    found, leaf = [], None
    for line in text.splitlines():
        match = re.match(r"\s*\|--\s+(\d+\.\d+\.\d+\.\d+)", line)
        if match:
            leaf = match[1]
        elif "/32 host LOCAL" in line and leaf and leaf not in found:
            found.append(leaf)
    return found


def parse_if_inet6(text: str) -> list[str]:
    """This host's IPv6 addresses of a `/proc/net/if_inet6`; link-local ones are no use as node addresses."""
    found = []
    for line in text.splitlines():
        digits = line.split()[0] if line.split() else ""
        if re.fullmatch(r"[0-9a-f]{32}", digits) and not digits.startswith("fe80"):
            found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return found


def primary_address(probe: str = _ROUTE_PROBE) -> str | None:
    """The address this host uses towards others, by the route of an unsent packet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.connect((probe, 9))
        except OSError:
            return None
        return str(unsent.getsockname()[0])


def network_facts(names: _NameLookup) -> Facts:
    """Addresses, and what this host's own name resolves to (127.0.1.1 on many Debian machines)."""
    addresses = parse_fib_trie(read_text("/proc/net/fib_trie") or "")
    addresses += parse_if_inet6(read_text("/proc/net/if_inet6") or "")
    others = [one for one in addresses if not one.startswith("127.") and one != "::1"]
    return {
        # without a default route there may still be one interface: its address is the one others use
        "primary_address": primary_address() or (others[0] if others else None),
        "addresses": addresses or None,
        "hostname_resolves_to": names.addresses(),
        "devices": network_devices.devices(),
    }


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a uid without an entry, as in some containers
        return None


def main(argv: list[str]) -> int:
    """`python -m raytools.node facts [--node-json FILE] [--root DIR]`: facts as JSON on standard output."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node facts", description=main.__doc__)
    parser.add_argument("--node-json", help="the node's plan; names the root and the environment")
    parser.add_argument("--root", help="the root directory, where there is no plan yet")
    options = parser.parse_args(argv)
    node = read_node_json(options.node_json or str(Path(options.root or DEFAULT_ROOT) / "node.json"))
    json.dump(collect(node, options.root), sys.stdout)
    return 0


def read_node_json(path: str) -> dict[str, Any] | None:
    """The plan of this node; None if there is none yet or it is not a plan."""
    with contextlib.suppress(ValueError):
        found = json.loads(read_text(path) or "null")
        return found if isinstance(found, dict) else None
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
