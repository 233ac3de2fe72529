"""What Ray 2.58.1 is told when it is started: arguments of `ray start` and environment flags. Pure.

Everything is explicit. Left alone, Ray counts CPUs of the machine instead of the node's share, advertises
the memory that happens to be free, and takes random ports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from raytools.node import systemd_unit

OLD_SUBREAPER = "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper"
PROCESS_GROUPS = "RAY_process_group_cleanup_enabled"
THRESHOLD = "RAY_memory_usage_threshold"
# What Ray's own isolation may keep for Ray at the least (MINIMUM_SYSTEM_RESERVED_... of ray_constants.py).
ISOLATION_CPUS = 1
ISOLATION_BYTES = 500 * 2**20
# A connection to a node without power is asked for a sign of life after the first, and given up after the
# second more. With Ray's defaults, 300 and 120 s, a driver waited six minutes for tasks of a node that its
# head had lost. An answer may take as long as the head grants a node (65 s).
KEEPALIVE_MS = {
    "RAY_grpc_client_keepalive_time_ms": 30_000,
    "RAY_grpc_client_keepalive_timeout_ms": 60_000,
}
_FROM_AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN")


def start_arguments(
    *,
    is_head: bool,
    address: str,
    gcs_address: str,
    ports: Mapping[str, int],
    worker_ports: tuple[int, int],
    cpus: int,
    gpus: int,
    memory_bytes: int,
    object_store_bytes: int,
    slot_count: int,
    temp_dir: str,
    dashboard_host: str | None,
    environment: Mapping[str, str],
    log_to_driver: bool = True,
) -> list[str]:
    """The arguments of `ray start` on one node; `dashboard_host` is None where there is no dashboard.

    `environment`: that Ray is started with. Some of its flags are for drivers, which have an environment of
    their own: they take them from the head.
    `log_to_driver`: a log monitor, a Python process, hands what tasks print to their drivers.
    """
    if is_head:
        role = [
            "--head",
            f"--port={ports['gcs']}",
            *([f"--ray-client-server-port={ports['client']}"] if "client" in ports else []),
            f"--include-dashboard={'true' if dashboard_host else 'false'}",
            f"--system-config={json.dumps(_told_to_drivers(environment))}",
        ]
        if dashboard_host:
            role += [f"--dashboard-host={dashboard_host}", f"--dashboard-port={ports['dashboard']}"]
    else:
        role = [f"--address={gcs_address}"]
    return [
        *role,
        f"--node-ip-address={address}",
        f"--node-manager-port={ports['node_manager']}",
        f"--object-manager-port={ports['object_manager']}",
        f"--runtime-env-agent-port={ports['runtime_env_agent']}",
        f"--dashboard-agent-grpc-port={ports['dashboard_agent_grpc']}",
        f"--dashboard-agent-listen-port={ports['dashboard_agent_http']}",
        f"--metrics-export-port={ports['metrics_export']}",
        f"--min-worker-port={worker_ports[0]}",
        f"--max-worker-port={worker_ports[1]}",
        f"--num-cpus={cpus}",
        f"--num-gpus={gpus}",
        f"--memory={memory_bytes}",
        f"--object-store-memory={object_store_bytes}",
        f"--resources={json.dumps({'run_slot': slot_count})}",
        f"--temp-dir={temp_dir}",
        *([] if log_to_driver else ["--include-log-monitor=false"]),
        "--disable-usage-stats",
        "--block",
    ]


def _told_to_drivers(environment: Mapping[str, str]) -> dict[str, int]:
    """Flags by the names that `ray start --system-config` knows; it outdoes every process's environment."""
    values = {name: environment.get(name, "") for name in KEEPALIVE_MS}
    return {name.removeprefix("RAY_"): int(value) for name, value in values.items() if value.isdecimal()}


def isolation_arguments(cluster: str, *, reserved_cpus: int, reserved_bytes: int) -> list[str]:
    """The arguments of `ray start` that keep Ray's own processes from being starved by its workers.

    Ray makes two groups in the unit's: its own processes have CPU and memory set aside, workers and drivers
    share what is left. Limited runs stay beside both, in groups of their own.

    Args:
        cluster: names the unit, in whose group of cgroup v2 all this happens.
        reserved_cpus: `nodes.system_reserved.cpus`; Ray wants at least one.
        reserved_bytes: `nodes.system_reserved.memory`; Ray wants at least 500 MiB.
    """
    return [
        "--enable-resource-isolation",
        f"--cgroup-path=/sys/fs/cgroup/raytools.slice/{systemd_unit.of_ray(cluster)}",
        f"--system-reserved-cpu={max(reserved_cpus, ISOLATION_CPUS)}",
        f"--system-reserved-memory={max(reserved_bytes, ISOLATION_BYTES)}",
    ]


def environment_of_ray(
    declared: Mapping[str, str],
    ports: Mapping[str, int],
    *,
    auth: str,
    token_path: str | None,
    usable_bytes: int,
    reserved_bytes: int,
) -> tuple[dict[str, str], list[str]]:
    """The environment Ray is started with, and what people should know about it.

    Args:
        declared: `ray.env` of cluster.yaml. It wins over what is set here, but for authentication.
        ports: the pinned ports; two of them Ray takes only from its environment.
        auth: token or disabled.
        token_path: where the token is on this node.
        usable_bytes: the node's physical memory.
        reserved_bytes: `nodes.system_reserved.memory`.
    """
    user, warnings = _without_old_flags(declared)
    for name in _FROM_AUTH:
        if user.pop(name, None) is not None:
            warnings.append(f"ray.env: {name} is set by ray.auth; what stands in ray.env is left out")
    threshold = memory_threshold(usable_bytes, reserved_bytes)
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        THRESHOLD: threshold,
        # an out-of-memory kill is a result, not a reason to start again (Ray's default: for ever)
        "RAY_task_oom_retries": "0",
        # how soon a worker notices that its head was restarted (it ends, and is started again); default: 60 s
        "RAY_raylet_liveness_self_check_interval_ms": "5000",
        # the dashboard's parts start all at once, and on two slow processors none of them within Ray's 30 s
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "120",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "150",
        # nor the agents; a raylet whose agents are late aborts
        "RAY_agent_register_timeout_ms": "120000",
        # nor the server that a Ray client gets: how long one waits for it, and it for its client
        "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120",
        "TIMEOUT_FOR_SPECIFIC_SERVER_S": "60",
        # gRPC is at work in the process that forks that server, and would start threads in the child: now and
        # then they end it before it is a program of its own (ray-project/ray#63202)
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        **{name: str(value) for name, value in KEEPALIVE_MS.items()},
        # Ray's default keeps 5 x 512 MiB of each of its many log files
        "RAY_ROTATION_MAX_BYTES": str(64 * 2**20),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        # Ray's default of 15 would be inherited by runs, and a plain user cannot raise it again
        "RAY_worker_niceness": "0",
        "DASHBOARD_METRIC_PORT": str(ports["dashboard_metrics"]),
        "AUTOSCALER_METRIC_PORT": str(ports["autoscaler_metrics"]),
        **user,
        "RAY_AUTH_MODE": auth,
    }
    if token_path is not None:
        environment["RAY_AUTH_TOKEN_PATH"] = token_path
    if _is_lower(environment[THRESHOLD], threshold):
        warnings.append(
            f"ray.env: {THRESHOLD} {environment[THRESHOLD]} is below {threshold}: "
            "Ray may kill runs that are inside their limits"
        )
    return environment, warnings


def memory_threshold(usable_bytes: int, reserved_bytes: int) -> str:
    """The share of the node's memory above which Ray's monitor starts to kill its workers.

    A node's memory is what its slots may use, plus the object store, plus the reserve. Slots are held by
    their cgroups and the store by its size, so only the system and Ray itself can fill the rest. They may
    take three quarters of the reserve before Ray acts; the last quarter is where it still can:

        threshold = 1 - reserve / 4 / physical        (rounded up: never below slots + store + 3/4 reserve)

    A run inside its limits is therefore never killed by Ray, and one outside meets its cgroup first. There
    is no upper bound below 1: on a large node it would reach into what the slots were promised.
    """
    share = 1 - reserved_bytes / 4 / usable_bytes
    return f"{max(0.5, math.ceil(share * 10_000) / 10_000):.4f}"


def _without_old_flags(declared: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Flags of older Ray that the pinned one deprecates, as what it has instead."""
    user = dict(declared)
    value = user.pop(OLD_SUBREAPER, None)
    if value is None:
        return user, []
    used = user.setdefault(PROCESS_GROUPS, value)
    return user, [
        f"ray.env: {OLD_SUBREAPER} is deprecated in Ray 2.58.1 and became {PROCESS_GROUPS}={used}; "
        "neither ends processes that start a session of their own, limited runs do"
    ]


def _is_lower(value: str, threshold: str) -> bool:
    try:
        return float(value) < float(threshold)
    except ValueError:
        return False  # Ray says so itself when it starts
