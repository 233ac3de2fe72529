"""`raytools smoke --workload transfer` on a real Ray: one node to itself, several raylets to each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from raytools.node.driver import variables

from .limited_runs import why_no_limits
from .planned_node import built_prefix, free_base_port, write_node
from .smoke_cluster import Cluster

_why_not = why_no_limits()
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(_why_not), reason=_why_not)]

SEVERAL = Path(__file__).with_name("several_raylets.py")
GATES = Path(__file__).with_name("gates.py")


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


def several_raylets(tmp_path: Path, program: Path, *arguments: str) -> Any:
    """What that program found on raylets of its own, with CPUs that nobody else can hold."""
    node = write_node(tmp_path / "root", built_prefix(), free_base_port(60), slots=2)
    short = tempfile.mkdtemp(prefix="rt-")  # Ray's sockets allow 107 bytes
    done = subprocess.run(
        [node["python"], str(program), *arguments],
        env={
            **os.environ, "PYTHONPATH": node["toolkit"], "RAYTOOLS_ROOT": node["root"],
            "RAYTOOLS_LOCK_DIR": str(tmp_path / "locks"), "RAY_TMPDIR": short,
        },
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    shutil.rmtree(short, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_gates_are_on_the_drivers_node(tmp_path: Path) -> None:
    assert several_raylets(tmp_path, GATES) == 10


@pytest.mark.long  # the lab has three hosts
def test_raylets_send_to_each_other_and_one_that_stands_still_fails_its_pairs_only(tmp_path: Path) -> None:
    usual, stopped = several_raylets(tmp_path, SEVERAL, "3", "8MiB")
    for entry in usual.values():
        assert entry["outcome"] == "ok", entry["metrics"]["pairs"]
        assert entry["metrics"]["transfers"] == 12
        assert len({(pair["from"], pair["to"]) for pair in entry["metrics"]["pairs"]}) == 6
        assert all(pair["bytes_per_s"] > 1e5 for pair in entry["metrics"]["pairs"])
        assert [node["node"] for node in entry["metrics"]["nodes"]] == ["n1", "n2", "n3"]
    assert list(stopped) == ["pairs"]
    assert stopped["pairs"]["outcome"] == "failed"
    for pair in stopped["pairs"]["metrics"]["pairs"]:
        assert bool(pair["problem"]) == ("n3" in (pair["from"], pair["to"])), pair
    assert stopped["pairs"]["wall_s"] < 60
