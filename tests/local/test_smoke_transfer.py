"""`raytools smoke --workload transfer` on a real Ray of one node, which sends to itself."""

from __future__ import annotations

import json

import pytest

from .limited_runs import why_no_limits
from .smoke_cluster import Cluster

_why_not = why_no_limits()
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(_why_not), reason=_why_not)]


def test_one_node_sends_to_itself_and_says_so(one_node: Cluster) -> None:
    done = one_node.raytools("smoke", "--workload", "transfer", "--set", "size=8MiB", "--json")
    shown = one_node.raytools("results", "show", "latest")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "pass"
    assert any("there is one node: objects went into its own object store" in r for r in document["reasons"])
    assert [run["metrics"]["entry"] for run in document["runs"]] == ["pairs", "all-at-once"]
    for run in document["runs"]:
        metrics = run["metrics"]
        assert (metrics["transfers"], metrics["object_bytes"]) == (3, 8 * 2**20)
        [pair], [node] = metrics["pairs"], metrics["nodes"]
        assert (pair["from"], pair["to"], pair["problem"]) == ("localhost", "localhost", "")
        assert pair["bytes_per_s"] > 1e6
        assert node["sent_bytes_per_s"] == node["received_bytes_per_s"] > 0
    assert "all-at-once: pairs" in shown.stdout
    assert "8 MiB" in shown.stdout
