"""Waits until the cluster's GCS reports nodes alive: `… members --node-json FILE NAME=ADDRESS …`.

Run on the head with the environment's Python, after all Rays were told to start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node import ray_view

_PAUSE_S = 0.25


def wait(node: Mapping[str, Any], expected: Mapping[str, str], timeout_s: float) -> None:
    """Returns once every expected address is alive.

    Args:
        node: the head's plan.
        expected: node name -> address at which Ray knows it.
        timeout_s: how long to wait.

    Raises:
        RaytoolsError: naming the nodes that did not join.
    """
    deadline = time.monotonic() + timeout_s
    client = ray_view.connect(node)
    while True:
        with ray_view.answering(node["ray"]["gcs_address"]):
            alive = {one["address"] for one in ray_view.nodes_of(client) if one["state"] == "ALIVE"}
        missing = {name: address for name, address in expected.items() if address not in alive}
        if not missing:
            return
        if time.monotonic() >= deadline:
            names = ", ".join(f"{name} ({address})" for name, address in missing.items())
            raise RaytoolsError(
                f"{names} did not join the cluster within {timeout_s:.0f} s",
                expected=f"{len(expected)} nodes alive at {node['ray']['gcs_address']}",
                fix="Look at logs/ray.log below the root there, and whether it reaches the head's ports",
            )
        time.sleep(_PAUSE_S)


def main(argv: list[str]) -> int:
    """0 once all are alive; 1 with the missing ones on standard error."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node members", description=__doc__)
    parser.add_argument("--node-json", required=True)
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("expected", nargs="+", metavar="NAME=ADDRESS", type=ray_view.named_address)
    options = parser.parse_args(argv)
    return ray_view.with_plan(
        options.node_json, lambda node: wait(node, dict(options.expected), options.timeout)
    )
