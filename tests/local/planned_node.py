"""A hand-made plan for tests that start a real Ray here, and the built environment they start it from."""

from __future__ import annotations

import json
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from raytools.node.ray_temp_dir import temp_dir_of

CHECKOUT = Path(__file__).resolve().parents[2]


def built_prefix() -> Path:
    """The environment to start Ray from: RAYTOOLS_TEST_PREFIX, else what the playbook has built here."""
    named = os.environ.get("RAYTOOLS_TEST_PREFIX")
    prefix = Path(named) if named else CHECKOUT / ".raytools" / "envs" / "current"
    if (prefix / "bin" / "ray").exists():
        return prefix.resolve() if not named else prefix
    missing = f"no built environment: {prefix}/bin/ray is missing (make quickstart, or RAYTOOLS_TEST_PREFIX)"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


def own_address() -> str:
    """The address Ray would take: loopback is replaced by it anyway."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                return address.address
    return "127.0.0.1"


def is_of_this_machine(pid: int) -> bool:
    """Whether a process is no container's: those of tests/lab have its uids and command lines, too."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError:
        return False  # it has just ended


def free_base_port(count: int = 20) -> int:
    """The first of `count` neighbouring ports on which nothing listens, below the kernel's own range."""
    taken = {c.laddr.port for c in psutil.net_connections("tcp") if c.laddr}
    while True:
        base = 12000 + secrets.randbelow(20000 - count)
        if not taken & set(range(base, base + count)):
            return base


def write_node(
    root: Path, prefix: Path, base_port: int, *, slots: int = 1, toolkit: Path = CHECKOUT, **flags: str
) -> dict[str, Any]:  # fmt: skip
    """Writes `<root>/node.json` and a token; `flags` become ray.env. Each slot has one CPU and a gigabyte.

    No dashboard: it doubles the time Ray takes to start, and nothing here looks at it.
    """
    root.mkdir(parents=True, exist_ok=True)
    token = root / "token"
    if not token.exists():
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
    address, temp_dir = own_address(), temp_dir_of(root)
    last_port, memory_bytes = base_port + 7 + 12 * slots, slots * 1_000_000_000
    ports = {
        "gcs": base_port,
        "node_manager": base_port + 1,
        "object_manager": base_port + 2,
        "runtime_env_agent": base_port + 3,
        "dashboard_agent_grpc": base_port + 4,
        "dashboard_agent_listen": base_port + 5,
        "metrics_export": base_port + 6,
        "client": base_port + 7,
    }
    start_args = [
        "--head", "--block", f"--node-ip-address={address}", f"--port={ports['gcs']}",
        "--include-dashboard=false", f"--node-manager-port={ports['node_manager']}",
        f"--object-manager-port={ports['object_manager']}",
        f"--runtime-env-agent-port={ports['runtime_env_agent']}",
        f"--dashboard-agent-grpc-port={ports['dashboard_agent_grpc']}",
        f"--dashboard-agent-listen-port={ports['dashboard_agent_listen']}",
        f"--metrics-export-port={ports['metrics_export']}", f"--ray-client-server-port={ports['client']}",
        f"--min-worker-port={base_port + 8}", f"--max-worker-port={last_port}",
        f"--num-cpus={slots}", "--num-gpus=0", f"--memory={memory_bytes}", "--object-store-memory=100000000",
        f'--resources={{"run_slot": {slots}}}', f"--temp-dir={temp_dir}", "--disable-usage-stats",
    ]  # fmt: skip
    node = {
        "schema": "raytools.node/1", "cluster": "test", "name": "localhost", "role": "head",
        "address": address, "root": str(root), "temp_dir": temp_dir,
        "python": str(prefix / "bin" / "python"), "toolkit": str(toolkit),
        "environment": {"id": prefix.name, "prefix": str(prefix), "lock_digest": "0" * 64},
        "declared": {"cpus": None, "memory_bytes": None, "gpus": None},
        "physical": {"cpus": slots, "memory_bytes": memory_bytes, "gpus": 0},
        "slots": [
            {"index": index, "cpus": [index], "memory_bytes": 1_000_000_000, "gpus": []}
            for index in range(slots)
        ],
        "logical": {
            "CPU": slots, "GPU": 0, "memory": memory_bytes, "object_store_memory": 100_000_000,
            "run_slot": slots,
        },
        "ray": {
            "gcs_address": f"{address}:{ports['gcs']}", "start_args": start_args, "env": flags,
            "ports": {**ports, "workers": [base_port + 8, last_port]},
            "dashboard": {"enabled": False, "host": "127.0.0.1"}, "auth": "token", "token_path": str(token),
        },
        "runs": {"time_s": 3600.0, "grace_s": 0.0, "retries": 1, "env": {}},
        "storage": {"type": "local", "path": str(root)},
        "doctor": {"waive": []},
    }  # fmt: skip
    (root / "node.json").write_text(json.dumps(node))
    return node
