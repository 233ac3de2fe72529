"""A program: the workload `transfer` on several raylets of this machine, each with its object store.

    python several_raylets.py RAYLETS SIZE

Objects go from store to store as between machines, over the loopback. It runs twice; the second time the last
raylet is held still before anything is sent: nothing arrives there and nothing comes from it. Prints the
entries of both as JSON.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from raytools.workloads import transfer_driver
from raytools.workloads.base import ClusterContext, ClusterNode
from raytools.workloads.transfer import AT_ONCE, TransferParameters


def main(count: int, size: str) -> None:
    cluster = Cluster()
    raylets = [
        cluster.add_node(num_cpus=1, object_store_memory=120_000_000, include_dashboard=False)
        for _ in range(count)
    ]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    nodes = [
        ClusterNode(f"n{number}", "127.0.0.1", one.node_id, slots=1, cpus=1, memory_bytes=0)
        for number, one in enumerate(raylets, 1)
    ]
    last = raylets[-1].all_processes["raylet"][0].process
    parameters = TransferParameters(size=size, rounds=2, patience=2.0)
    try:
        usual = transfer(nodes, parameters)
        transfer_driver._LOCAL_WORK_S = 5.0  # so long does the station of that raylet let us wait
        stopped = transfer(nodes, parameters, stop=last)
        print(json.dumps([usual, stopped]), flush=True)
    finally:
        last.send_signal(signal.SIGCONT)
        ray.shutdown()
        cluster.shutdown()


def transfer(nodes: list[ClusterNode], parameters: TransferParameters, stop: Any = None) -> dict[str, Any]:
    """One smoke; with a process to stop, of one pair after the other only."""
    entries: dict[str, Any] = {}

    def finished(entry: str, metrics: Any, wall_s: float, outcome: str = "ok", message: Any = None) -> None:
        entries[entry] = {"metrics": metrics, "wall_s": wall_s, "outcome": outcome, "message": message}

    def report(entry: str, line: str) -> None:
        print(entry, line, file=sys.stderr, flush=True)
        if stop is not None and "objects" in line:  # its workers have started
            stop.send_signal(signal.SIGSTOP)

    done: dict[str, Any] = {} if stop is None else {AT_ONCE: {}}
    context = ClusterContext(nodes, {}, Path("/nowhere"), False, report, report_detail, finished, done)
    transfer_driver.run_transfers(parameters, context)
    return entries


def report_detail(entry: str, line: str) -> None:
    print(entry, line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
