"""`raytools smoke --workload tune` on a real Ray: every pair, pinned trials, an interrupted one that goes on.

Tables are tiny and trials few: what Tune's searches are worth is not asked here, but that they run.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .limited_runs import why_no_limits
from .smoke_cluster import Cluster

_why_not = why_no_limits()
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(_why_not), reason=_why_not)]

TINY = ("--dataset", "breast_cancer", "--set", "saving=0")


@pytest.fixture
def cluster(one_node: Cluster) -> Cluster:
    return one_node


def tune(cluster: Cluster, *settings: str) -> dict[str, Any]:
    given = [part for setting in settings for part in ("--set", setting)]
    done = cluster.raytools("smoke", "--workload", "tune", *TINY, *given, "--json")
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (0, "pass"), (document["reasons"], done.stderr[-3000:])
    return document


@pytest.mark.parametrize(
    ("api", "searches", "schedulers", "pairs"),
    [
        ("class", "random,optuna", "fifo,median", 4),
        pytest.param("function", "hyperopt,pbt", "hyperband,pbt", 2, marks=pytest.mark.long),
    ],
)
def test_both_kinds_of_trials_run_and_are_pinned(
    cluster: Cluster, api: str, searches: str, schedulers: str, pairs: int
) -> None:
    document = tune(
        cluster, f"searches={searches}", f"schedulers={schedulers}", "trials=3", "epochs=4", f"api={api}"
    )
    assert len(document["runs"]) == pairs
    for run in document["runs"]:
        metrics = run["metrics"]
        assert (metrics["trials"], metrics["trials_failed"], metrics["cpus_seen"]) == (3, 0, 1), metrics
        assert metrics["nodes"] == ["localhost"]


@pytest.mark.long
@pytest.mark.parametrize("api", ["class", "function"])
def test_every_pair_of_search_and_scheduler_runs_and_trials_are_pinned(cluster: Cluster, api: str) -> None:
    document = tune(cluster, "searches=all", "schedulers=all", "trials=4", "epochs=4", f"api={api}")
    found = {run["metrics"]["entry"]: run["metrics"] for run in document["runs"]}
    assert len(found) == 13
    for name, metrics in found.items():
        assert name == f"{metrics['search']}-{metrics['scheduler']}"
        assert (metrics["trials"], metrics["trials_failed"], metrics["cpus_seen"]) == (4, 0, 1), name
        assert 0.8 < metrics["best_score"] <= 1, name
        assert 4 <= metrics["budget_epochs"] <= 4 * 4 + 4, name
        assert metrics["nodes"] == ["localhost"]
    assert found["random-fifo"]["budget_epochs"] == 16
    assert found["random-fifo"]["score_metric"] == "accuracy"
    assert document["runs"][0]["record"]["host"]["name"] == "localhost"


def test_checkpoints_and_tensorboard_are_in_the_results(cluster: Cluster) -> None:
    document = tune(cluster, "searches=random", "schedulers=fifo", "trials=2", "epochs=6")
    experiment = Path(document["directory"], "tune", "random-fifo")
    trials = [path.parent for path in experiment.glob("*/result.json")]
    assert len(trials) == 2
    for trial in trials:
        assert list(trial.glob("checkpoint_*/model.pickle"))
        assert list(trial.glob("events.out.tfevents.*"))


@pytest.mark.long
def test_asha_saves_epochs_and_hardly_loses_score(cluster: Cluster) -> None:
    document = tune(cluster, "searches=random", "saving=2.5")
    fifo, asha = (run["metrics"] for run in document["runs"])
    assert fifo["budget_epochs"] == 24 * 27
    assert fifo["budget_epochs"] >= 2.5 * asha["budget_epochs"]
    assert asha["best_score"] >= 0.98 * fifo["best_score"]


def interrupted(cluster: Cluster, killed: str) -> Path:
    """The results of a smoke that was ended by Ctrl-C or a kill, with its second entry begun."""
    command = cluster.command(
        "smoke", "--workload", "tune", *TINY, "--set", "searches=random", "--set", "schedulers=asha,fifo",
        "--set", "trials=10", "--set", "epochs=60",
    )  # fmt: skip
    process = subprocess.Popen(
        command, cwd=cluster.directory, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "random-fifo: running:" in line:
            break
    directory = max((cluster.root / "results" / "tune").iterdir())
    time.sleep(4)  # until trials are at work
    assert cluster.remote_work()
    if killed == "driver":
        cluster.driver().kill()
    else:
        process.send_signal(signal.SIGINT if killed == "nobody" else signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == {"nobody": 130, "controller": -signal.SIGKILL, "driver": 2}[killed]
    deadline = time.monotonic() + 15
    while (cluster.processes() or cluster.remote_work()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cluster.processes() + cluster.remote_work() == []
    assert not (directory / "run-1.json").exists()
    return directory


@pytest.mark.long
@pytest.mark.parametrize("killed", ["nobody", "controller", "driver"])
def test_an_interrupted_smoke_goes_on_where_it_was(cluster: Cluster, killed: str) -> None:
    directory = interrupted(cluster, killed)
    first = json.loads((directory / "run-0.json").read_text())
    done = cluster.raytools("smoke", "--resume", directory.name, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from the start" not in done.stderr
    document = json.loads(done.stdout)
    assert document["id"] == directory.name
    assert document["runs"][0] == first
    fifo = document["runs"][1]["metrics"]
    assert (fifo["trials"], fifo["trials_failed"]) == (10, 0)
    assert 600 <= fifo["budget_epochs"] < 900  # some were lost with their trials, and not all were done again
    assert len(list((directory / "tune" / "random-fifo").glob("*/result.json"))) == 10


@pytest.mark.long
def test_an_experiment_that_cannot_be_read_is_set_aside_and_done_from_the_start(cluster: Cluster) -> None:
    directory = interrupted(cluster, "nobody")
    experiment = directory / "tune" / "random-fifo"
    for state in (experiment / "tuner.pkl", *experiment.glob("experiment_state-*.json")):
        state.write_bytes(b"torn")
    done = cluster.raytools("smoke", "--resume", directory.name, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot be restored" in done.stderr
    (aside,) = experiment.parent.glob("random-fifo.unreadable-*")
    assert (aside / "tuner.pkl").read_bytes() == b"torn"
    assert str(aside) in done.stderr
    fifo = json.loads(done.stdout)["runs"][1]["metrics"]
    assert (fifo["trials"], fifo["budget_epochs"]) == (10, 600)


def test_a_search_that_the_environment_lacks_is_refused_before_anything_starts(cluster: Cluster) -> None:
    before = set((cluster.root / "results").glob("tune/*"))
    done = cluster.raytools("smoke", "--workload", "tune", *TINY, "--set", "mlflow=true")
    if done.returncode == 2:  # the usual environment does not have it
        assert "mlflow=true needs the package mlflow" in done.stderr
        assert set((cluster.root / "results").glob("tune/*")) == before
