"""`raytools smoke` and the example on a real Ray with real limits. Needs a built environment.

A cluster of its own in a temporary directory, on an existing environment: the quick start's is not touched.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .limited_runs import PATIENCE, why_no_limits
from .planned_node import CHECKOUT
from .smoke_cluster import NODE_BYTES, Cluster

_why_not = why_no_limits()
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(_why_not), reason=_why_not)]


@pytest.fixture
def cluster(one_node: Cluster) -> Cluster:
    return one_node


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
    assert all(row["fit_time_marginal_s"] >= 0 for row in metrics["leaderboard"])
    assert metrics["overrun_s"] == 0
    assert metrics["reload_same"] is metrics["clone_same"] is True
    assert metrics["clone_loaded_on"] == "localhost"
    assert metrics["clone_bytes"] > 10_000

    assert (record["outcome"], record["enforced"]["missing"]) == ("ok", [])
    assert record["limits"]["memory_bytes"] == cluster.node["slots"][0]["memory_bytes"] < NODE_BYTES
    assert 100e6 < record["used"]["memory_peak_bytes"] <= record["limits"]["memory_bytes"]
    assert record["used"]["wall_s"] > metrics["fit_s"] > 0
    assert record["used"]["processes_left"] == 0
    assert record["host"]["name"] == "localhost"

    directory = Path(document["directory"])
    assert directory.parent == cluster.root / "results" / "autogluon"
    assert json.loads((directory / "smoke.json").read_text()) == document
    assert json.loads((directory / "run-0.json").read_text()) == run


@pytest.mark.long
def test_ten_classes_are_stacked(cluster: Cluster) -> None:
    done = cluster.smoke(
        "--dataset", "digits", "--models", "RF,XT", "--set", "stack_levels=1", "--set", "seed=3", "--json"
    )
    document = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (0, "pass"), document["reasons"]
    [run] = document["runs"]
    metrics = run["metrics"]
    assert {"RandomForest_BAG_L1", "ExtraTrees_BAG_L2"} <= {row["model"] for row in metrics["leaderboard"]}
    assert (metrics["rows"], metrics["score_metric"], metrics["reload_same"]) == (1797, "accuracy", True)
    assert 0.9 < metrics["score"] <= 1


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


def test_a_family_that_was_skipped_fails_the_verdict(cluster: Cluster) -> None:
    done = cluster.smoke("--dataset", "breast_cancer", "--models", "RF,EBM", "--folds", "0", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (1, "fail")
    [run] = document["runs"]
    assert (run["record"]["outcome"], run["metrics"]["families"]) == ("ok", ["RF"])
    assert any("localhost: AutoGluon skipped EBM: " in reason for reason in document["reasons"])


def test_the_time_limit_of_a_fit_holds(cluster: Cluster) -> None:
    done = cluster.smoke(
        "--dataset", "breast_cancer", "--models", "RF", "--folds", "0", "--time-limit", "3s",
        "--set", "trees=200000", "--json",
    )  # fmt: skip
    [run] = json.loads(done.stdout)["runs"]
    assert run["record"]["outcome"] == "ok"  # whether a slow machine had time for some trees, or for none
    assert run["metrics"]["fit_s"] < 15 * PATIENCE  # 200,000 trees would take minutes


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


@pytest.mark.long
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
    cluster.service("stop")
    try:
        done = cluster.smoke("--dataset", "breast_cancer")
    finally:
        cluster.service("ensure")
    assert done.returncode == 2
    assert "nothing answers at the GCS's address" in done.stderr
    assert "ansible-playbook" in done.stderr
