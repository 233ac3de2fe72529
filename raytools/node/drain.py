"""Drains nodes of the cluster: they get no new work, finish what they have, and their raylets end.

`python -m raytools.node drain --node-json FILE NAME=ADDRESS …`, run on the head with the
environment's Python. Ray 2.58.1 has no public call for this: `GcsClient.drain_node` is what its hidden
command `ray drain-node` uses. Reason PREEMPTION is the one a busy node accepts. A drained raylet ends by
itself as soon as it is idle; `ray start --block` stays without it, so nothing starts it again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node import ray_view

_POLL_S = 0.5
_TOLD_EVERY_S = 15.0


def drain(node: Mapping[str, Any], targets: Mapping[str, str], timeout_s: float) -> list[str]:
    """Returns the names of those that were in the cluster, once all of them have left it.

    Args:
        node: the head's plan.
        targets: node name -> address at which Ray knows it. Who is not in the cluster has nothing to drain.
        timeout_s: how long to wait for running tasks.

    Raises:
        RaytoolsError: Ray refused, or a node was still busy at the end; it stays closed to new work.
    """
    named = {address: name for name, address in targets.items()}
    client = ray_view.connect(node)
    with ray_view.answering(node["ray"]["gcs_address"]):
        going = {
            one["node_id"]: named[one["address"]]
            for one in ray_view.nodes_of(client)
            if one["state"] == "ALIVE" and one["address"] in named
        }
        for node_id, name in going.items():
            _request(client, node_id, name)
        _wait(client, going, timeout_s)
    return list(going.values())


def _wait(client: Any, going: Mapping[str, str], timeout_s: float) -> None:
    deadline, told = time.monotonic() + timeout_s, time.monotonic()
    while busy := _alive(client, going):
        if time.monotonic() >= deadline:
            raise RaytoolsError(
                f"{', '.join(busy)} still at work after {timeout_s:.0f} s; new work goes elsewhere",
                expected="the tasks there to end",
                fix="Wait and run this again, or do not wait for them: -e ray_drain_timeout=0. To keep the "
                "node after all: when its work has ended, playbooks/ray.yml starts its Ray again",
            )
        if time.monotonic() - told >= _TOLD_EVERY_S:
            told = time.monotonic()
            print(f"waiting for {', '.join(busy)}", file=sys.stderr, flush=True)
        time.sleep(_POLL_S)


def _request(client: Any, node_id: str, name: str) -> None:
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = client.drain_node(node_id, reason, "raytools drains this node", 0)
    if not accepted:
        raise RaytoolsError(f"Ray does not drain {name}: {why}", fix="Do without: -e ray_drain_timeout=0")


def _alive(client: Any, going: Mapping[str, str]) -> list[str]:
    alive = {one["node_id"] for one in ray_view.nodes_of(client) if one["state"] == "ALIVE"}
    return [name for node_id, name in going.items() if node_id in alive]


def main(argv: list[str]) -> int:
    """0 once the nodes have left; 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node drain", description=__doc__)
    parser.add_argument("--node-json", required=True)
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS")
    parser.add_argument("targets", nargs="+", metavar="NAME=ADDRESS", type=ray_view.named_address)
    options = parser.parse_args(argv)
    return ray_view.with_plan(
        options.node_json, lambda node: print(*drain(node, dict(options.targets), options.timeout))
    )
