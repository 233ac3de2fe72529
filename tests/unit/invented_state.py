"""What an invented host answers to `python -m raytools.node probe`, for tests of those who read it."""

from __future__ import annotations

from typing import Any

GIB = 2**30
NOON_S = 1_800_000_000.0
"""What its clock says."""


def state(number: int = 1, **changes: Any) -> dict[str, Any]:
    """What a host without any fault answers; `disk__tmp__available_bytes=…` changes that of its facts."""
    found: dict[str, Any] = {
        "facts": {
            "cpu": {
                "allowed": [0, 1], "usable": 2,
                "threads": [{"cpu": cpu, "core": cpu, "socket": 0, "numa": 0} for cpu in (0, 1)],
            },
            "memory": {"usable_bytes": 16 * GIB, "shm_total_bytes": 8 * GIB},
            "gpus": [],
            "cgroup": {"mode": "v2", "controllers": ["cpu", "cpuset", "memory", "pids"]},
            "disk": {
                "root": {"available_bytes": 50 * GIB, "inodes_available": 3_000_000},
                "tmp": {"available_bytes": 50 * GIB, "inodes_available": 3_000_000},
            },
            "limits": {"nofile_hard": 1_048_576},
            "user": {"name": "root", "uid": 0},
            "host": {
                "arch": "x86_64", "hostname": f"host{number}", "machine_id": f"m{number}",
                "boot_id": f"b{number}",
            },
            "network": {
                "primary_address": f"192.0.2.{number}", "addresses": [f"192.0.2.{number}", "127.0.0.1"],
                "hostname_resolves_to": [f"192.0.2.{number}"],
            },
        },
        "clock_s": NOON_S, "privileged": True, "systemd": True, "root_owner": None,
        "root_writable": True, "account": None, "environments": {}, "unit": None, "busy_ports": [],
        "other_rays": [], "storage": {"path": "/shared", "directory": True, "mounted": True},
    }  # fmt: skip
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = found["facts"] if len(parents) or path in found["facts"] else found
        for key in parents:
            at = at[key]
        at[last] = value
    return found
