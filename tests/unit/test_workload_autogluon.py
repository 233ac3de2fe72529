"""The workload autogluon without AutoGluon: what is refused early, what is asked of it, how it is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raytools.errors import RaytoolsError
from raytools.workloads.autogluon import AutoGluon, AutoGluonParameters
from raytools.workloads.autogluon_fit import fit_arguments
from raytools.workloads.base import SlotContext, WorkloadRun

WORKLOAD = AutoGluon()


def metrics(**changes: Any) -> dict[str, Any]:
    return {
        "dataset": "diamonds",
        "rows": 53940,
        "families": ["GBM", "RF", "XT"],
        "skipped": [],
        "score": 0.98,
        "score_metric": "r2",
        "fit_s": 20.0,
        "nodes_seen": 1,
        "cpus_seen": 2,
        "cpus_seen_by": {"ray": 2, "affinity": 2, "autogluon": 2},
        "leaderboard": [],
    } | changes


def record(cpu_s: float | None = 30.0) -> dict[str, Any]:
    return {"host": {"name": "n1"}, "limits": {"cpus": 2}, "used": {"cpu_s": cpu_s, "wall_s": 20.0}}


def judged(
    parameters: AutoGluonParameters | None = None, cpu_s: float | None = 30.0, **changes: Any
) -> list[tuple[str, bool]]:
    runs = [WorkloadRun(record(cpu_s), metrics(**changes))]
    reasons = WORKLOAD.judge(parameters or AutoGluonParameters(), runs)
    return [(reason.text, reason.fails) for reason in reasons]


def arguments(**asked: Any) -> dict[str, Any]:
    context = SlotContext(
        cpus=4, memory_bytes=10 * 2**30, scratch_dir=Path("/x"), inputs={}, report=print, detail=print
    )
    return fit_arguments(AutoGluonParameters(**asked), context)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"models": ("GBM", "GMB")}, "no model family 'GMB', expected some of GBM, RF, XT, CAT"),
        ({"models": ()}, "no model family was given"),
        ({"preset": "fast"}, "no preset 'fast', expected one of medium, good"),
        ({"folds": 1}, "folds is 1, expected 0 (no bagging) or at least 2"),
        ({"time_limit": 0.0}, "time limit is 0.0 s"),
        ({"trees": 0}, "trees is 0"),
        ({"dataset": "rubies"}, "no dataset 'rubies'"),
        ({"csv": "own.csv"}, "without --label"),
        ({"csv": "own.csv", "label": "y", "dataset": "diamonds"}, "--csv and --dataset were both given"),
        ({"csv": "/nowhere/own.csv", "label": "y"}, "/nowhere/own.csv does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RaytoolsError) as error:
        WORKLOAD.check(AutoGluonParameters(**asked))
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_an_own_table_travels_under_its_name_and_leaves_its_path_behind(tmp_path: Path) -> None:
    table = tmp_path / "sales.csv"
    table.write_text("x,y\n" + "1,2\n" * 30)
    asked = AutoGluonParameters(csv=str(table), label="y")
    WORKLOAD.check(asked)
    prepared = WORKLOAD.prepare(asked, tmp_path)
    assert (prepared.parameters.dataset, prepared.parameters.csv) == ("sales.csv", None)
    assert prepared.inputs == {"table": table.read_bytes()}


def test_a_named_dataset_gets_its_label(tmp_path: Path) -> None:
    prepared = WORKLOAD.prepare(AutoGluonParameters(dataset="breast_cancer"), tmp_path)
    assert prepared.parameters.label == "target"


def test_a_label_that_a_dataset_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RaytoolsError, match="dataset breast_cancer has no label 'carat', expected one of target"
    ):
        WORKLOAD.prepare(AutoGluonParameters(dataset="breast_cancer", label="carat"), tmp_path)


def test_by_default_three_families_are_bagged_in_two_folds_on_the_slots_cpus() -> None:
    asked = arguments()
    assert list(asked["hyperparameters"]) == ["GBM", "RF", "XT"]
    assert (asked["num_bag_folds"], asked["num_bag_sets"], asked["num_stack_levels"]) == (2, 1, 0)
    assert (asked["num_cpus"], asked["num_gpus"], asked["memory_limit"]) == (4, 0, 9.0)
    assert asked["time_limit"] == 120.0


def test_a_preset_decides_about_models_and_folds_unless_they_are_given() -> None:
    asked = arguments(preset="high")
    assert asked["presets"] == "high"
    assert not {"hyperparameters", "num_bag_folds", "num_stack_levels"} & asked.keys()
    both = arguments(preset="high", models=("GBM",), folds=3)
    assert both["hyperparameters"] == {"GBM": {}}
    assert both["num_bag_folds"] == 3


def test_no_folds_means_no_bagging() -> None:
    asked = arguments(folds=0)
    assert asked["num_bag_folds"] == 0
    assert "num_bag_sets" not in asked


def test_a_run_may_take_longer_than_autogluons_own_limit_but_not_for_ever() -> None:
    assert WORKLOAD.time_s(AutoGluonParameters(time_limit=100.0)) == 800.0
    assert WORKLOAD.time_s(AutoGluonParameters(time_limit=None)) is None


def test_a_run_that_did_what_was_asked_gives_no_reason() -> None:
    assert judged() == []


def test_a_skipped_family_that_was_asked_for_fails_with_autogluons_reason() -> None:
    skipped = [{"family": "GBM", "reason": "OSError: libgomp.so.1: cannot open shared object file"}]
    text = "n1: AutoGluon skipped GBM: OSError: libgomp.so.1: cannot open shared object file"
    assert judged(skipped=skipped) == [(text, True)]


def test_a_model_that_only_a_preset_wanted_is_told_but_does_not_fail() -> None:
    skipped = [{"family": "CatBoost", "reason": "ImportError: catboost"}]
    asked = AutoGluonParameters(preset="good")
    assert judged(asked, skipped=skipped) == [
        ("n1: AutoGluon skipped CatBoost: ImportError: catboost", False)
    ]


def test_no_model_at_all_fails() -> None:
    assert judged(score=None) == [("n1: AutoGluon trained no model", True)]


def test_a_ray_with_a_second_node_is_not_private() -> None:
    assert judged(nodes_seen=2) == [("n1: AutoGluon's Ray saw 2 nodes, expected its own slot alone", True)]


def test_seeing_more_cpus_than_the_slot_has_fails_and_says_who_saw_them() -> None:
    seen = {"ray": 2, "affinity": 2, "autogluon": 8}
    text = "n1: 8 CPUs were seen (ray 2, affinity 2, autogluon 8), the slot has 2"
    assert judged(cpus_seen=8, cpus_seen_by=seen) == [(text, True)]


def test_using_more_cpus_than_the_slot_has_fails() -> None:
    assert judged(cpu_s=50.0) == [("n1: 2.50 CPUs were used on average, the slot has 2", True)]


def test_what_was_not_measured_is_not_held_against_a_run() -> None:
    assert judged(cpu_s=None) == []


def test_a_run_without_metrics_is_left_to_its_outcome() -> None:
    assert WORKLOAD.judge(AutoGluonParameters(), [WorkloadRun(record(), {})]) == []
