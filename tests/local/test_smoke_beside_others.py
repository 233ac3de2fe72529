"""A smoke of scope `cluster` on a Ray at which another driver is at work."""

from __future__ import annotations

import os
import subprocess

import pytest

from raytools.node.driver import variables

from .limited_runs import why_no_limits
from .smoke_cluster import Cluster

_why_not = why_no_limits()
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(_why_not), reason=_why_not)]

HOLDER = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False)
holder = ray.remote(num_cpus=1)(type("Holder", (), {"begun": lambda self: True})).remote()
print(ray.get(holder.begun.remote()), flush=True)
sys.stdin.read()
"""


def test_cpus_that_other_work_holds_are_told(one_node: Cluster) -> None:
    node = one_node.node
    other = subprocess.Popen(
        [node["python"], "-c", HOLDER, node["ray"]["gcs_address"]],
        env={**os.environ, **variables(node, node["environment"]["prefix"])},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        done = one_node.raytools("smoke", "--workload", "transfer", "--set", "size=1MiB")
        other.communicate()
    said = "other work held 1 of Ray's "
    assert f"pairs: running: {said}" in done.stderr
    assert f"pairs, all-at-once: tainted: {said}" in " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr
