"""`raytools smoke --workload many-models` on a real Ray: all methods, and interrupted ones that go on.

Few models: how fast a method is is not asked here, but that each model is there exactly once.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from .limited_runs import why_no_limits
from .smoke_cluster import Cluster

_why_not = why_no_limits()
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(_why_not), reason=_why_not)]


@pytest.fixture
def cluster(one_node: Cluster) -> Cluster:
    return one_node


def command(*settings: str) -> list[str]:
    return ["smoke", "--workload", "many-models", *(part for one in settings for part in ("--set", one))]


def many_models(cluster: Cluster, *settings: str) -> dict[str, Any]:
    done = cluster.raytools(*command(*settings), "--json")
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (0, "pass"), (document["reasons"], done.stderr[-3000:])
    return document


def test_all_methods_have_the_same_models_each_exactly_once(cluster: Cluster) -> None:
    document = many_models(cluster, "methods=all", "models=20", "batch=5", "fit=ols")
    found = {run["metrics"]["method"]: run["metrics"] for run in document["runs"]}
    assert list(found) == ["tasks", "pool", "data", "tune"]
    for method, metrics in found.items():
        assert metrics["models"] == 20, method
        assert not any(metrics[f"models_{what}"] for what in ("missing", "repeated", "failed", "before"))
        assert metrics["cpus_seen"] == 1, method
        assert metrics["nodes"] == ["localhost"]
        assert metrics["models_per_s"] > 0
        assert 0.5 < metrics["score"] < 1, method
    assert len({metrics["digest"] for metrics in found.values()}) == 1
    assert len({metrics["serial_fit_s"] for metrics in found.values()}) == 1
    models = Path(document["directory"], "many-models")
    assert len(list((models / "tasks").iterdir())) == 4
    assert len(list((models / "tune").iterdir())) == 20
    assert not (models / "tables").exists()


@pytest.mark.long
def test_a_model_of_two_cpus_holds_two(cluster: Cluster) -> None:
    if sum(len(slot["cpus"]) for slot in cluster.node["slots"]) < 2:
        pytest.skip("the node has one CPU")
    [run] = many_models(cluster, "methods=tasks", "models=20", "cpus=2")["runs"]
    assert run["metrics"]["cpus_seen"] == 2


@pytest.mark.parametrize(
    ("method", "killed"),
    [
        pytest.param("tasks", "nobody", marks=pytest.mark.long),
        pytest.param("pool", "driver", marks=pytest.mark.long),
        pytest.param("data", "nobody", marks=pytest.mark.long),
        ("tune", "controller"),
    ],
)
def test_an_interrupted_method_goes_on_and_fits_nothing_again(
    cluster: Cluster, method: str, killed: str
) -> None:
    models = {"tune": 40, "data": 6_000}.get(method, 12_000)
    before = set((cluster.root / "results" / "many-models").glob("*"))
    process = subprocess.Popen(
        cluster.command(*command(f"methods={method}", f"models={models}", "batch=25", "fit=ridge")),
        cwd=cluster.directory, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    files = wait_for_files(cluster, before, method)
    if killed == "driver":
        cluster.driver().kill()
    else:
        process.send_signal(signal.SIGINT if killed == "nobody" else signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == {"nobody": 130, "controller": -signal.SIGKILL, "driver": 2}[killed]
    deadline = time.monotonic() + 20
    while left_behind(cluster) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_behind(cluster) == []

    stamps = {path: path.stat().st_mtime_ns for path in files.glob("models-*.parquet")}
    assert 0 < len(stamps) < models / (1 if method == "tune" else 25)
    done = cluster.raytools("smoke", "--resume", files.parent.parent.name, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads(done.stdout)["runs"][0]["metrics"]
    assert metrics["models"] == models
    assert metrics["models_before"] == len(stamps) * (1 if method == "tune" else 25)
    assert metrics["models_refitted"] == metrics["models_missing"] == metrics["models_repeated"] == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.parametrize(
    ("method", "what"),
    [("tasks", "ray::fit_batch"), pytest.param("pool", "ray::PoolActor", marks=pytest.mark.long)],
)
def test_the_batch_of_a_killed_worker_is_done_by_another(cluster: Cluster, method: str, what: str) -> None:
    before = set((cluster.root / "results" / "many-models").glob("*"))
    process = subprocess.Popen(
        cluster.command(*command(f"methods={method}", "models=4000", "batch=100", "fit=ridge"), "--json"),
        cwd=cluster.directory, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_files(cluster, before, method)
    a_worker(cluster, what).kill()
    document = json.loads(process.communicate(timeout=120)[0])
    assert (process.returncode, document["verdict"]) == (0, "pass"), document["reasons"]
    metrics = document["runs"][0]["metrics"]
    assert (metrics["models"], metrics["models_repeated"], metrics["models_missing"]) == (4000, 0, 0)


def a_worker(cluster: Cluster, what: str) -> psutil.Process:
    """One that is at work; between two batches none may be for a moment."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for one in cluster.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(one.cmdline()).startswith(what):
                    return one
    raise AssertionError(f"there is no {what}")


def left_behind(cluster: Cluster) -> list[str]:
    """Drivers and work of this cluster; others on this machine have theirs."""
    return [text for text in cluster.processes() if str(cluster.root) in text] + cluster.remote_work()


def wait_for_files(cluster: Cluster, before: set[Path], method: str) -> Path:
    """The directory of the new smoke's models, when there are some."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for smoke in set((cluster.root / "results" / "many-models").glob("*")) - before:
            models = smoke / "many-models" / method
            if len(list(models.glob("models-*.parquet"))) > 2:
                return models
        time.sleep(0.05)
    raise AssertionError(f"{method} has written nothing")


def test_what_cannot_work_is_refused_before_anything_starts(cluster: Cluster) -> None:
    before = set((cluster.root / "results").glob("many-models/*"))
    done = cluster.raytools(*command("methods=all", "models=2000"))
    assert done.returncode == 2
    assert "method tune was asked for 2000 models" in done.stderr
    assert set((cluster.root / "results").glob("many-models/*")) == before
