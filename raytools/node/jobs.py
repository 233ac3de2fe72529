"""The drivers that are connected to the cluster: what a restart of its Ray would end.

`python -m raytools.node jobs --node-json FILE`, on the head with the environment's Python.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from raytools.node import ray_view

_INTERNAL = "_ray_internal"  # namespaces of Ray's own drivers, such as the dashboard's


def living_jobs(node: Mapping[str, Any]) -> list[str]:
    """One sentence per driver that is connected.

    Args:
        node: the head's plan.

    Raises:
        RaytoolsError: Ray does not answer.
    """
    client = ray_view.connect(node)
    with ray_view.answering(node["ray"]["gcs_address"]):
        jobs = client.get_all_job_info(timeout=ray_view.ANSWER_WAIT_S)
    found = []
    for job in jobs.values():
        if job.is_dead or job.config.ray_namespace.startswith(_INTERNAL):
            continue
        command = job.entrypoint or "a driver"
        found.append(f"{command[:80]} (pid {job.driver_pid} on {job.driver_address.ip_address})")
    return found


def main(argv: list[str]) -> int:
    """A JSON list on standard output; 1 with the reason on standard error if Ray does not answer."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node jobs", description=__doc__)
    parser.add_argument("--node-json", required=True)
    options = parser.parse_args(argv)
    return ray_view.with_plan(options.node_json, lambda node: json.dump(living_jobs(node), sys.stdout))
