"""The environment variables of a run: it sees its slot as if that were the machine.

Each entry cures something that was measured: see docs/architecture.md, "Inside a run".
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from raytools.node.record import Limits

# Preset counts would make every num_cpus=1 task of the private Ray use all CPUs of the slot; without them
# libraries count the affinity mask, which is right, and Ray sets OMP_NUM_THREADS per task.
_THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_SERVICES = ("DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST")  # would start programs outside of the run
_OBJECT_STORE_SHARE = 0.3
_AUTOGLUON_SHARE = 0.9


def inside_environment(
    outer: Mapping[str, str],
    limits: Limits,
    run_id: str,
    temporary: str,
    shared: Mapping[str, str],
    extra: Mapping[str, str],
) -> dict[str, str]:
    """Variables of the run's main process.

    Args:
        outer: the requester's variables; those of an outer Ray are dropped.
        limits: what the run was promised.
        run_id: names the run.
        temporary: the run's own directory, short: Ray's sockets below it may not exceed 107 bytes.
        shared: the cluster's variables, weaker than the requester's own.
        extra: what this run asked for; wins over everything.
    """
    kept = {
        name: value
        for name, value in outer.items()
        if not name.startswith("RAY_") and name not in _THREAD_COUNTS and name not in _SERVICES
    }
    own = {
        "RAYTOOLS_RUN_ID": run_id,
        "RAYTOOLS_LOCK_DIR": f"{temporary}/locks",  # `pinned` inside divides this run's CPUs, not the node's
        "TMPDIR": temporary,
        "RAY_TMPDIR": temporary,
        "RAY_ADDRESS": "local",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{temporary}/token",
        "RAY_memory_monitor_refresh_ms": "0",  # the cgroup is the memory limit
        "RAY_DISABLE_RETRIES": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, limits.gpus)),
    }
    if limits.cpus is not None:
        own["AG_CPU_COUNT"] = str(limits.cpus)
    if limits.memory_bytes is not None:
        store_bytes = int(limits.memory_bytes * _OBJECT_STORE_SHARE)
        own["AG_MEMORY_LIMIT_IN_GB"] = f"{_AUTOGLUON_SHARE * limits.memory_bytes / 2**30:.3f}"
        own["RAY_OVERRIDE_RESOURCES"] = json.dumps(
            {"memory": limits.memory_bytes - store_bytes, "object_store_memory": store_bytes}
        )
    return {**shared, **kept, **own, **extra}
