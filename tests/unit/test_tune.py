"""The workload `tune` without Ray: pairs and their refusals, what is judged, what is missing on a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raytools.errors import RaytoolsError
from raytools.node.workload_cluster import entry_record
from raytools.workloads import base, cluster_checks
from raytools.workloads.base import ClusterContext, ClusterNode, WorkloadRun
from raytools.workloads.tune import Tune, TuneParameters, pairs
from raytools.workloads.tune_driver import run_pairs


def names(searches: str, schedulers: str) -> list[str]:
    asked = base.make_parameters(Tune(), {"searches": searches, "schedulers": schedulers})
    return [pair.name for pair in pairs(asked)]


def test_the_default_is_small_and_has_fifo_and_asha_for_each_search() -> None:
    assert Tune().entries(TuneParameters()) == ("random-fifo", "random-asha", "optuna-fifo", "optuna-asha")


def test_all_is_every_pair_there_is() -> None:
    found = names("all", "all")
    assert len(found) == 13
    assert found[0] == "random-fifo"
    assert {name for name in found if "pbt" in name} == {"pbt-pbt"}
    assert "hyperopt-median" in found


@pytest.mark.parametrize(
    ("searches", "schedulers", "expected"),
    [
        ("pbt", "pbt", ["pbt-pbt"]),
        ("random,pbt", "asha,pbt", ["random-asha", "pbt-pbt"]),
        ("optuna", "all", ["optuna-fifo", "optuna-asha", "optuna-hyperband", "optuna-median"]),
        ("all", "median", ["random-median", "optuna-median", "hyperopt-median"]),
        ("random,random", "fifo", ["random-fifo"]),
    ],
)
def test_what_is_named_is_paired(searches: str, schedulers: str, expected: list[str]) -> None:
    assert names(searches, schedulers) == expected


@pytest.mark.parametrize(
    ("searches", "schedulers", "message"),
    [
        ("optuna", "pbt", "optuna does not go with pbt, expected search pbt with scheduler pbt"),
        ("pbt", "asha", "pbt does not go with asha"),
        ("random,pbt", "pbt", "random does not go with pbt"),
        ("pbt", "pbt,fifo", "fifo does not go with pbt"),
        ("bohb", "fifo", "there is no search 'bohb', expected some of random, optuna, hyperopt, pbt, or all"),
        ("random", "bohb", "there is no scheduler 'bohb', expected some of fifo, asha"),
        ("", "fifo", "no search was given"),
    ],
)
def test_a_pair_that_cannot_be_is_refused_by_name(searches: str, schedulers: str, message: str) -> None:
    with pytest.raises(RaytoolsError, match=message):
        names(searches, schedulers)


@pytest.mark.parametrize(
    ("values", "lacks", "message"),
    [
        (
            {"searches": ("hyperopt",)},
            "hyperopt",
            r"search hyperopt needs the package hyperopt.*\.\.\., hyperopt\]",
        ),
        ({}, "optuna", "search optuna needs the package optuna"),
        ({}, "tensorboardX", "TensorBoard needs the package tensorboardX"),
        ({"mlflow": True}, "mlflow", r"mlflow=true needs the package mlflow.*pip: \[\.\.\., mlflow-skinny\]"),
        ({}, "sklearn", r"the workload tune needs.*pip: \[\.\.\., scikit-learn\]"),
    ],
)
def test_a_package_that_the_environment_lacks_is_named_with_the_line_to_add(
    values: dict[str, Any], lacks: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_checks, "is_installed", lambda module: module != lacks)
    with pytest.raises(RaytoolsError, match=message):
        Tune().check_on_head(TuneParameters(**values))


def test_only_what_was_asked_for_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cluster_checks, "is_installed", lambda module: module not in ("optuna", "hyperopt", "mlflow")
    )
    Tune().check_on_head(TuneParameters(searches=("random",)))


def test_this_python_is_looked_at_without_importing_anything() -> None:
    assert cluster_checks.is_installed("json")
    assert not cluster_checks.is_installed("nosuchmodule")


def test_nodes_without_shared_storage_are_refused(tmp_path: Path) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    two = [ClusterNode(name, name, name, slots=1, cpus=2, memory_bytes=1) for name in ("n1", "n2")]
    context = ClusterContext(two, {}, tmp_path, False, never, never, never)
    with pytest.raises(
        RaytoolsError, match=r"2 nodes have no shared storage.*expected storage of type existing"
    ):
        run_pairs(TuneParameters(), context)


# ------------------------------------------------------------------------------------------------- judging


def run(search: str, scheduler: str, epochs: int, score: float | None, **more: Any) -> WorkloadRun:
    metrics = {
        "entry": f"{search}-{scheduler}", "search": search, "scheduler": scheduler, "trials": 24,
        "trials_failed": 0, "trials_before": 0, "budget_epochs": epochs, "best_score": score, "cpus_seen": 1,
    }  # fmt: skip
    return WorkloadRun(
        entry_record("tune", f"{search}-{scheduler}", 1.0, "ok", None).to_json(), metrics | more
    )


def judged(*runs: WorkloadRun, **parameters: Any) -> list[tuple[str, bool]]:
    return [(reason.text, reason.fails) for reason in Tune().judge(TuneParameters(**parameters), runs)]


def test_asha_that_saves_enough_and_loses_little_passes() -> None:
    assert judged(run("random", "fifo", 648, 0.97), run("random", "asha", 259, 0.96)) == []


def test_asha_that_saves_too_little_fails_with_the_figures() -> None:
    assert judged(run("random", "fifo", 648, 0.97), run("random", "asha", 324, 0.97)) == [
        (
            "random: asha needed 324 epochs, fifo 648 (2.00 times fewer), best score 0.97 and 0.97; "
            "expected 2.5 times fewer",
            True,
        )
    ]


def test_asha_that_loses_the_best_score_fails() -> None:
    [(text, fails)] = judged(run("random", "fifo", 648, 0.97), run("random", "asha", 100, 0.95))
    assert fails
    assert text.endswith("best score 0.95 and 0.97; at most 2 % worse was expected")


def test_a_search_that_tries_other_things_or_a_resumed_entry_is_only_told() -> None:
    [(_, fails)] = judged(run("optuna", "fifo", 648, 0.97), run("optuna", "asha", 600, 0.97))
    assert not fails
    found = judged(run("random", "fifo", 648, 0.97), run("random", "asha", 600, 0.97, trials_before=3))
    assert [fails for _, fails in found] == [False, False]
    assert found[0][0].startswith("random-asha: was resumed, 3 trials had ended before")


def test_searches_are_not_compared_with_each_other_and_saving_can_be_left_out() -> None:
    assert judged(run("random", "fifo", 648, 0.97), run("optuna", "asha", 600, 0.97)) == []
    assert judged(run("random", "fifo", 648, 0.97), run("random", "asha", 600, 0.97), saving=0.0) == []
    assert judged(run("random", "fifo", 648, None), run("random", "asha", 0, 0.97)) == [
        ("random-fifo: no trial had a score", True)
    ]


def test_trials_that_are_missing_and_cpus_that_were_not_held_fail() -> None:
    assert judged(run("random", "fifo", 648, 0.97, trials=23, cpus_seen=2)) == [
        ("random-fifo: 23 trials, 24 were asked for", True),
        ("random-fifo: a trial could use 2 CPUs, it was to hold 1", True),
    ]


def test_an_entry_that_got_nowhere_is_left_to_its_record() -> None:
    record = entry_record("tune", "random-fifo", 1.0, "failed", "no room").to_json()
    assert judged(WorkloadRun(record, {"entry": "random-fifo"})) == []


def test_more_cpus_than_any_node_has_are_refused(tmp_path: Path) -> None:
    nodes = [ClusterNode("n1", "", "id1", slots=1, cpus=4, memory_bytes=1)]
    context = ClusterContext(nodes, {}, tmp_path, True, print, print, print)  # type: ignore[arg-type]
    with pytest.raises(RaytoolsError, match=r"a trial is to have 8 CPUs, expected at most 4"):
        run_pairs(TuneParameters(cpus=8), context)
