"""The workload autogluon without AutoGluon: what is refused early, what is asked of it, how it is judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from raytools.errors import RaytoolsError
from raytools.workloads.autogluon import AutoGluon, AutoGluonParameters
from raytools.workloads.autogluon_fit import fit_arguments
from raytools.workloads.autogluon_reload import is_same, largest_difference
from raytools.workloads.base import SlotContext, WorkloadRun
from tests.unit.parquet_file import PARQUET

WORKLOAD = AutoGluon()
OURS = AutoGluonParameters(dataset="diamonds", label="price")


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
        ({"parquet": "own.parquet"}, "--parquet was given without --label"),
        ({"parquet": "own.parquet", "csv": "own.csv"}, "--csv and --parquet were both given"),
        ({"parquet": "/nowhere/own.parquet", "label": "y"}, "/nowhere/own.parquet does not exist"),
        ({"stack_levels": -1}, "stack_levels is -1"),
        ({"stack_levels": 1, "folds": 0}, "stack_levels is 1 and folds is 0, expected at least 2 folds"),
        ({"stack_levels": 1, "preset": "medium"}, "stack_levels is 1 and folds is left to the preset"),
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


def test_an_own_parquet_file_travels_as_it_is(tmp_path: Path) -> None:
    table = tmp_path / "sales.parquet"
    table.write_bytes(PARQUET)
    prepared = WORKLOAD.prepare(AutoGluonParameters(parquet=str(table), label="label"), tmp_path)
    assert (prepared.parameters.dataset, prepared.parameters.parquet) == ("sales.parquet", None)
    assert prepared.inputs == {"table": PARQUET}


def test_an_own_table_with_the_name_of_one_of_ours_is_not_taken_for_it(tmp_path: Path) -> None:
    table = tmp_path / "diamonds"
    table.write_text("x,price\n" + "1,2\n" * 30)
    prepared = WORKLOAD.prepare(AutoGluonParameters(csv=str(table), label="price"), tmp_path)
    assert prepared.parameters.dataset == "diamonds (own)"


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


def test_stacking_that_was_asked_for_is_not_tried_first() -> None:
    asked = arguments(stack_levels=1)
    assert (asked["num_bag_folds"], asked["num_stack_levels"], asked["dynamic_stacking"]) == (2, 1, False)
    assert "dynamic_stacking" not in arguments(preset="best")
    assert arguments(preset="best", dynamic_stacking=False)["dynamic_stacking"] is False
    WORKLOAD.check(AutoGluonParameters(stack_levels=1, preset="best", folds=4))


def test_the_seed_is_that_of_bagged_models_too() -> None:
    assert arguments(seed=7)["ag_args_ensemble"] == {"model_random_seed": 7}
    assert "ag_args_ensemble" not in arguments(seed=7, folds=0)


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


def test_what_several_nodes_skipped_for_the_same_reason_is_told_once() -> None:
    because = {"n1": "no catboost", "n2": "no catboost", "n3": "a file is missing"}
    runs = [
        WorkloadRun({"host": {"name": name}}, metrics(skipped=[{"family": "CAT", "reason": reason}]))
        for name, reason in because.items()
    ]
    found = WORKLOAD.judge(AutoGluonParameters(preset="good"), runs)
    assert [reason.text for reason in found] == [
        "n1, n2: AutoGluon skipped CAT: no catboost",
        "n3: AutoGluon skipped CAT: a file is missing",
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


def test_a_score_below_what_the_table_usually_gives_fails() -> None:
    text = "n1: the r2 of diamonds is 0.81, expected 0.975 to 0.99: it learned less than it should"
    assert judged(OURS, score=0.81) == [(text, True)]


def test_a_score_above_what_the_table_usually_gives_is_told() -> None:
    [(text, fails)] = judged(OURS, score=0.9999)
    assert "better than was ever measured" in text
    assert not fails


@pytest.mark.parametrize(
    "asked",
    [
        {"models": ("RF",)}, {"trees": 10}, {"time_limit": 20.0}, {"preset": "interpretable"},
        {"label": "carat"}, {"dataset": "diamonds.csv"},
    ],
)  # fmt: skip
def test_less_than_the_default_or_another_table_is_held_against_no_band(asked: dict[str, Any]) -> None:
    assert judged(dataclasses.replace(OURS, **asked), score=0.5) == []


@pytest.mark.parametrize(
    "asked",
    [{"preset": "best_quality"}, {"models": ("CAT", "GBM", "RF", "XT")}, {"time_limit": None}, {"seed": 3}],
)
def test_more_than_the_default_is_held_against_the_band(asked: dict[str, Any]) -> None:
    assert [fails for _, fails in judged(dataclasses.replace(OURS, **asked), score=0.5)] == [True]


def test_a_fit_far_beyond_its_time_limit_is_told_but_does_not_fail() -> None:
    asked = AutoGluonParameters(time_limit=60.0)
    text = "n1: AutoGluon took 85.0 s for its fit, its time limit was 60.0 s"
    assert judged(asked, fit_s=85.0, overrun_s=25.0) == [(text, False)]


@pytest.mark.parametrize(("limit_s", "overrun_s"), [(60.0, 11.0), (10.0, 9.0), (60.0, 0.0), (None, None)])
def test_an_overrun_that_is_small_by_share_or_by_seconds_is_not_told(
    limit_s: float | None, overrun_s: float | None
) -> None:
    assert judged(AutoGluonParameters(time_limit=limit_s), overrun_s=overrun_s) == []


def test_a_reloaded_predictor_that_predicts_something_else_fails() -> None:
    text = "n1: the reloaded predictor predicts something else, by up to 0.25"
    assert judged(reload_same=False, reload_difference=0.25) == [(text, True)]


def test_a_clone_that_another_node_could_not_load_fails_with_the_reason() -> None:
    trouble = {"clone_elsewhere_trouble": "ModuleNotFoundError: lightgbm", "clone_loaded_on": "n2"}
    found = judged(clone_same=True, clone_elsewhere_same=False, **trouble)
    text = (
        "n1: its clone for deployment, by another run on n2, could not be tried: "
        "ModuleNotFoundError: lightgbm"
    )
    assert found == [(text, True)]


def test_clones_that_stayed_on_their_nodes_are_told_where_there_are_others() -> None:
    saved = {"reload_same": True, "clone_same": True}

    def reasons(*loaded_on: str) -> list[str]:
        runs = [
            WorkloadRun({"host": {"name": f"n{number}"}}, metrics(**saved, clone_loaded_on=on))
            for number, on in enumerate(loaded_on, 1)
        ]
        found = WORKLOAD.judge(AutoGluonParameters(), runs)
        assert not any(reason.fails for reason in found)
        return [reason.text for reason in found]

    assert reasons("n1") == []
    assert reasons("n2", "n1") == []
    [text] = reasons("n1", "n2")
    assert text.startswith("clones of n1, n2 were loaded on their own nodes only")


def test_predictions_are_the_same_up_to_the_last_digits() -> None:
    assert largest_difference([[0.25, 0.75]], [[0.25, 0.75]]) == 0
    assert is_same({"difference": largest_difference([[18_000.0]], [[18_000.002]])})
    assert not is_same({"difference": largest_difference([[0.25, 0.75]], [[0.26, 0.74]])})
    assert largest_difference([[1.0], [2.0]], [[1.0]]) == float("inf")
    assert not is_same({"trouble": "it was not there"})
