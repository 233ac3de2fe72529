"""`raytools smoke` and the example on a real Ray with real limits. Needs a built environment.

A cluster of its own in a temporary directory, on an existing environment: the quick start's is not touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from raytools.node import toolkit as node_toolkit
from raytools.toolkit import pack_toolkit

from .limited_runs import why_no_limits
from .planned_node import CHECKOUT, built_prefix, free_base_port, is_of_this_machine

_why_not = why_no_limits()
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(_why_not), reason=_why_not)]

NODE_BYTES = 6 * 2**30


@dataclass(frozen=True)
class Cluster:
    """A project with one node: this machine."""

    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def node(self) -> dict[str, Any]:
        node: dict[str, Any] = json.loads((self.root / "node.json").read_text())
        return node

    def raytools(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "raytools", *arguments]

    def smoke(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.raytools("smoke", "--workload", "autogluon", *arguments)

    def service(self, verb: str) -> None:
        command = [sys.executable, "-m", "raytools.node", "ray", verb, "--root", str(self.root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr

    def processes(self) -> list[str]:
        """Command lines of what belongs to a workload or a run of this cluster."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if not is_of_this_machine(process.pid):
                continue
            text = " ".join(process.info["cmdline"] or [])
            if ("raytools.node" in text and " ray " not in text) or "rt-run" in text:
                found.append(text)
        return found


def configuration(prefix: Path, base_port: int) -> dict[str, Any]:
    names = (
        "gcs", "dashboard", "client", "node_manager", "object_manager", "runtime_env_agent",
        "dashboard_agent_grpc", "dashboard_agent_http", "metrics_export", "dashboard_metrics",
        "autoscaler_metrics",
    )  # fmt: skip
    ports: dict[str, Any] = {name: base_port + index for index, name in enumerate(names)}
    ports["workers"] = [base_port + 11, base_port + 70]
    return {
        "cluster": "smoketest",
        "environment": {"prefix": str(prefix)},
        "ray": {"ports": ports, "dashboard": {"enabled": False}},
        "nodes": {"memory": NODE_BYTES, "system_reserved": {"memory": "1GiB"}},
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    prefix = built_prefix()
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="raytools-smoke-")))
    (cluster.directory / "cluster.yaml").write_text(yaml.safe_dump(configuration(prefix, free_base_port(72))))
    host = {"ansible_connection": "local", "raytools_root": str(cluster.root)}
    inventory = {"head": {"hosts": {"localhost": host}}, "workers": {"hosts": {}}}
    (cluster.directory / "inventory").mkdir()
    (cluster.directory / "inventory" / "hosts.yml").write_text(yaml.safe_dump(inventory))
    planned = cluster.raytools("plan", "--json")
    assert planned.returncode == 0, planned.stderr
    node = json.loads(planned.stdout)["nodes"]["localhost"]
    cluster.root.mkdir()
    (cluster.root / "node.json").write_text(json.dumps(node))
    (cluster.root / "token").touch(0o600)
    (cluster.root / "token").write_text(os.urandom(32).hex())
    packed = pack_toolkit(cluster.directory / ".raytools" / "toolkit")
    node_toolkit.install(Path(packed.path), cluster.root, packed.digest, None)
    cluster.service("ensure")
    try:
        yield cluster
    finally:
        cluster.service("stop")
        shutil.rmtree(Path(node["temp_dir"]).parent, ignore_errors=True)
        shutil.rmtree(cluster.directory)


def test_autogluon_trains_what_was_asked_in_its_slot_and_leaves_a_record(cluster: Cluster) -> None:
    done = cluster.smoke("--dataset", "breast_cancer", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)  # and nothing else is there
    assert (document["schema"], document["workload"]) == ("raytools.smoke/1", "autogluon")
    assert document["verdict"] == "pass", document["reasons"]
    [run] = document["runs"]
    record, metrics = run["record"], run["metrics"]

    assert (metrics["dataset"], metrics["rows"]) == ("breast_cancer", 569)
    assert set(metrics["families"]) == {"GBM", "RF", "XT"}
    assert metrics["score_metric"] == "accuracy"
    assert 0.8 < metrics["score"] <= 1
    assert metrics["nodes_seen"] == 1
    assert metrics["cpus_seen"] == record["limits"]["cpus"]
    assert {"LightGBM_BAG_L1", "RandomForest_BAG_L1"} <= {row["model"] for row in metrics["leaderboard"]}

    assert (record["outcome"], record["enforced"]["missing"]) == ("ok", [])
    assert record["limits"]["memory_bytes"] == cluster.node["slots"][0]["memory_bytes"] < NODE_BYTES
    assert 100e6 < record["used"]["memory_peak_bytes"] <= record["limits"]["memory_bytes"]
    assert record["used"]["wall_s"] > metrics["fit_s"] > 0
    assert record["used"]["processes_left"] == 0
    assert record["host"]["name"] == "localhost"

    [directory] = (cluster.root / "results" / "autogluon").iterdir()
    assert json.loads((directory / "smoke.json").read_text()) == document
    assert json.loads((directory / "run-0.json").read_text()) == run


def test_progress_is_shown_while_it_runs_and_a_table_at_the_end(cluster: Cluster) -> None:
    table = cluster.directory / "own.csv"
    rows = "".join(f"{number},{number % 7},{number * 3.5 + number % 7}\n" for number in range(400))
    table.write_text("x,kind,price\n" + rows)
    done = cluster.smoke("--csv", str(table), "--label", "price", "--models", "RF", "--folds", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "localhost: running: own.csv: 320 rows to train on, 80 held out" in done.stderr
    assert "localhost: ok" in done.stderr
    assert "leaderboard on localhost" in done.stdout
    assert "r2" in done.stdout  # a quantity: the label decides about the metric
    assert "PASS" in done.stdout.splitlines()
    assert str(cluster.root / "results" / "autogluon") in done.stdout


def test_a_family_that_was_skipped_fails_the_verdict_and_the_time_limit_holds(cluster: Cluster) -> None:
    done = cluster.smoke(
        "--dataset", "breast_cancer", "--models", "RF,EBM", "--folds", "0", "--time-limit", "3s",
        "--set", "trees=200000", "--json",
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (1, "fail")
    [run] = document["runs"]
    assert run["record"]["outcome"] == "ok"
    assert run["metrics"]["families"] == ["RF"]
    assert run["metrics"]["fit_s"] < 15  # 200,000 trees would take minutes
    assert any("localhost: AutoGluon skipped EBM: " in reason for reason in document["reasons"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_user_who_gives_up_leaves_nothing_running(cluster: Cluster, number: signal.Signals) -> None:
    arguments = ("smoke", "--workload", "autogluon", "--dataset", "breast_cancer", "--set", "trees=100000")
    process = subprocess.Popen(
        cluster.command(*arguments), cwd=cluster.directory, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "rows to train on" in line:
            break
    assert cluster.processes()
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    deadline = time.monotonic() + 12
    while cluster.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cluster.processes() == []


def test_the_example_lists_runs_that_did_not_end_well(cluster: Cluster) -> None:
    node = cluster.node
    variables = {
        "RAYTOOLS_ROOT": str(cluster.root), "PYTHONPATH": node["toolkit"],
        "RAY_ADDRESS": node["ray"]["gcs_address"], "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": node["ray"]["token_path"],
    }  # fmt: skip
    done = subprocess.run(
        [node["python"], str(CHECKOUT / "examples" / "one_run_per_vm.py")],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[:-1]}
    assert outcomes.pop("linnerud") == "failed"
    assert set(outcomes.values()) == {"ok"}
    assert len(outcomes) == 5
    assert "not ok: linnerud (failed: y should be a 1d array" in done.stdout


def test_a_cluster_that_is_not_there_ends_with_the_command_that_builds_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    inventory = (cluster.directory / "inventory" / "hosts.yml").read_text()
    other = tmp_path / "hosts.yml"
    other.write_text(inventory.replace(str(cluster.root), str(tmp_path / "nothing")))
    done = cluster.smoke("--dataset", "breast_cancer", "-i", str(other))
    assert done.returncode == 2
    assert "the node is not provisioned" in done.stderr
    assert "ansible-playbook playbooks/cluster.yml" in done.stderr
    assert done.stdout == ""


def test_a_ray_that_does_not_run_ends_with_the_command_that_starts_it(cluster: Cluster) -> None:
    cluster.service("stop")  # the last test: nothing needs it afterwards
    done = cluster.smoke("--dataset", "breast_cancer")
    assert done.returncode == 2
    assert "nothing answers at the GCS's address" in done.stderr
    assert "ansible-playbook" in done.stderr
