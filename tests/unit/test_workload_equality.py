"""Nodes beside each other: who is slower than its peers, or than a baseline, whose runs are no measure."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytools.workloads import base
from raytools.workloads.base import Reason, Speed, WorkloadRun
from raytools.workloads.equality import baseline_of, compare_nodes, compare_with_baseline

GIB = 2**30
FIT = Speed("fit_s")


def run(
    node: str, wall_s: Any = 10.0, slot: int = 0, cpus: int = 2, memory_bytes: int = 8 * GIB, **more: Any
) -> WorkloadRun:
    """A run that ended well; `more` are metrics, and `model`, `tainted`, `outcome`."""
    model, tainted = more.pop("model", "AMD EPYC"), more.pop("tainted", False)
    record = {
        "outcome": more.pop("outcome", "ok"),
        "limits": {"cpus": cpus, "memory_bytes": memory_bytes, "gpus": []},
        "enforced": {"missing": []},
        "used": {"wall_s": wall_s},
        "host": {"name": node, "slot": slot, "cpu_model": model, "kernel": "6.1", "environment": "e-1"},
        "fairness": {"verdict": "tainted" if tainted else "comparable", "reasons": ["steal"] * tainted},
    }
    return WorkloadRun(record, more)


def judged(
    *runs: WorkloadRun, speed: Speed | None = None, max_slower: float = 0.2
) -> tuple[Any, list[Reason]]:
    """Of all cases: the figures are JSON."""
    figures, reasons = compare_nodes(runs, speed, max_slower)
    json.dumps(figures, allow_nan=False)
    return figures, reasons


def said(reasons: list[Reason]) -> list[tuple[str, bool]]:
    return [(reason.text, reason.fails) for reason in reasons]


# ---------------------------------------------------------------------------------- against the other nodes


def test_of_three_nodes_the_slow_one_fails_with_its_figures_and_the_cpu_model_that_differs() -> None:
    figures, reasons = judged(run("n1"), run("n2"), run("n3", 13.1, model="Intel Xeon"))
    assert said(reasons) == [
        (
            "n3 is 31 % slower than the median of its peers (wall_s 13.1, theirs 10); allowed: 20 %; "
            "CPU model differs (Intel Xeon, theirs AMD EPYC)",
            True,
        )
    ]
    assert figures["outliers"] == ["n3"]
    assert figures["nodes"]["n3"]["metrics"]["wall_s"] == {
        "median": 13.1, "peers": 2, "peers_median": 10.0, "slower": 0.31,
    }  # fmt: skip


def test_what_is_within_the_threshold_is_no_reason_and_still_a_figure() -> None:
    figures, reasons = judged(run("n1"), run("n2"), run("n3", 11.8))
    assert reasons == []
    assert figures["nodes"]["n3"]["metrics"]["wall_s"]["slower"] == 0.18


def test_the_threshold_is_the_persons() -> None:
    _, reasons = judged(run("n1"), run("n2"), run("n3", 11.8), max_slower=0.15)
    assert said(reasons) == [
        ("n3 is 18 % slower than the median of its peers (wall_s 11.8, theirs 10); allowed: 15 %", True)
    ]


def test_of_two_nodes_the_slow_one_is_said_and_does_not_fail() -> None:
    figures, reasons = judged(run("n1"), run("n2", 20.0))
    assert said(reasons) == [
        (
            "n2 is 100 % slower than n1 (wall_s 20, there 10). "
            "This does not fail: of two nodes neither is the odd one",
            False,
        )
    ]
    assert figures["outliers"] == []


def test_one_node_has_nothing_to_be_compared_with() -> None:
    figures, reasons = judged(run("n1", slot=0), run("n1", 30.0, slot=1))
    assert reasons == []
    assert figures["nodes"]["n1"]["metrics"]["wall_s"] == {
        "median": 20.0, "peers": 0, "peers_median": None, "slower": None,
    }  # fmt: skip


def test_a_node_is_its_median_slot() -> None:
    slots = [run("n3", wall_s, slot) for slot, wall_s in enumerate((9.0, 10.0, 90.0))]
    _, reasons = judged(run("n1"), run("n2"), *slots)
    assert reasons == []


def test_tainted_runs_and_those_that_did_not_end_well_are_left_out() -> None:
    figures, reasons = judged(
        run("n1"), run("n2"), run("n3", 99.0, tainted=True), run("n4", 99.0, slot=1, outcome="timeout")
    )
    assert reasons == []
    assert list(figures["nodes"]) == ["n1", "n2"]
    assert figures["left_out"] == [
        {"node": "n3", "run": "n3", "why": "tainted"},
        {"node": "n4", "run": "n4 slot 1", "why": "outcome timeout"},
    ]


def test_where_tainted_runs_leave_two_nodes_none_of_them_fails() -> None:
    _, reasons = judged(run("n1"), run("n2", 20.0), run("n3", tainted=True))
    assert [reason.fails for reason in reasons] == [False]


def test_nodes_with_slots_of_other_sizes_are_not_compared_and_that_is_said() -> None:
    few, many = {"cpus": 2, "memory_bytes": 8 * GIB}, {"cpus": 4, "memory_bytes": 16 * GIB}
    _, reasons = judged(*(run(f"n{n}", 20.0, **few) for n in (1, 2, 3)), run("n4", **many), run("n5", **many))
    assert said(reasons) == [
        (
            "only nodes with equal slots are compared with each other "
            "(2 CPUs, 8 GiB: n1, n2, n3; 4 CPUs, 16 GiB: n4, n5)",
            False,
        )
    ]


def test_machines_of_one_kind_are_compared_although_their_kernels_keep_a_little_memory() -> None:
    runs = [run("n1"), run("n2", memory_bytes=8 * GIB - 50_000_000), run("n3", 20.0)]
    assert [reason.fails for reason in judged(*runs)[1]] == [True]


def test_tenths_of_a_second_in_short_runs_are_noise() -> None:
    assert judged(run("n1", 0.5), run("n2", 0.5), run("n3", 1.4))[1] == []


def test_one_fast_node_is_named_where_it_makes_the_others_look_slow() -> None:
    _, reasons = judged(run("n1", 10.0), run("n2", 30.0), run("n3", 30.0))
    assert said(reasons)[0] == ("n1 is faster than every peer by more than 20 % (wall_s)", False)


def test_the_workloads_own_metric_is_compared_too_the_worst_figure_first() -> None:
    runs = [run("n1", fit_s=5.0), run("n2", fit_s=5.0), run("n3", 13.0, fit_s=8.0)]
    figures, reasons = judged(*runs, speed=FIT)
    assert said(reasons) == [
        (
            "n3 is 60 % slower than the median of its peers (fit_s 8, theirs 5; wall_s 13, theirs 10); "
            "allowed: 20 %",
            True,
        )
    ]
    assert list(figures["metrics"]) == ["wall_s", "fit_s"]


def test_of_a_rate_less_is_slower() -> None:
    runs = [run("n1", rate=100), run("n2", rate=100), run("n3", rate=70)]
    _, reasons = judged(*runs, speed=Speed("rate", more_is_faster=True))
    assert said(reasons) == [
        ("n3 is 30 % slower than the median of its peers (rate 70, theirs 100); allowed: 20 %", True)
    ]


def test_a_cpu_model_that_only_some_peers_lack_names_them() -> None:
    runs = [run("n1", model="A"), run("n2", model="B"), run("n3", 20.0, model="B")]
    assert judged(*runs)[1][0].text.endswith("; CPU model differs (B, that of n1 A)")


@pytest.mark.parametrize("value", [None, "fast", True, [1], float("nan"), float("inf"), -1.0])
def test_a_metric_that_is_no_number_is_not_compared(value: Any) -> None:
    figures, reasons = judged(run("n1", fit_s=5.0), run("n2", fit_s=5.0), run("n3", fit_s=value), speed=FIT)
    assert reasons == []
    assert figures["nodes"]["n3"]["metrics"]["fit_s"]["median"] is None


@given(st.lists(st.one_of(st.none(), st.booleans(), st.text(), st.integers(), st.floats()), min_size=3))
def test_whatever_a_workload_measures_becomes_figures_that_json_can_hold(values: list[Any]) -> None:
    judged(*(run(f"n{number}", value, fit_s=value) for number, value in enumerate(values)), speed=FIT)


walls_s = st.floats(min_value=0.01, max_value=1e5)
clusters = st.dictionaries(
    st.sampled_from([f"n{number}" for number in range(8)]),
    st.lists(walls_s, min_size=1, max_size=4),
    min_size=1,
)


def runs_of(cluster: dict[str, list[float]]) -> list[WorkloadRun]:
    return [run(node, wall_s, slot) for node, walls in cluster.items() for slot, wall_s in enumerate(walls)]


@given(clusters, st.floats(min_value=0.01, max_value=3))
def test_a_node_fails_if_and_only_if_two_peers_say_that_it_is_too_slow(
    cluster: dict[str, list[float]], max_slower: float
) -> None:
    figures, reasons = judged(*runs_of(cluster), max_slower=max_slower)
    medians = {node: statistics.median(walls) for node, walls in cluster.items()}
    expected = []
    for node, median in medians.items():
        peers = [other for name, other in medians.items() if name != node]
        reference = statistics.median(peers) if len(peers) > 1 else float("inf")
        too_slow = round((median - reference) / reference, 4) > max_slower if len(peers) > 1 else False
        expected += [node] if too_slow and median - reference > 1 else []
    assert figures["outliers"] == expected
    assert sum(reason.fails for reason in reasons) == len(expected)


@given(clusters, st.randoms(use_true_random=False))
def test_the_order_of_runs_and_those_that_are_no_measure_change_no_figure(
    cluster: dict[str, list[float]], chance: random.Random
) -> None:
    runs = runs_of(cluster)
    noise = [run(node, 1e6, 9, tainted=True) for node in cluster] + [run("lost", None, outcome="lost")]
    mixed = [*runs, *noise]
    chance.shuffle(mixed)
    nodes = judged(*mixed)[0]["nodes"]
    assert {name: node["metrics"] for name, node in nodes.items()} == {
        name: node["metrics"] for name, node in judged(*runs)[0]["nodes"].items()
    }


@given(st.integers(2, 9), walls_s)
def test_nodes_that_are_equally_fast_pass(count: int, wall_s: float) -> None:
    figures, reasons = judged(*(run(f"n{number}", wall_s) for number in range(count)))
    assert reasons == []
    assert figures["metrics"]["wall_s"]["cv"] == 0


# --------------------------------------------------------------------------------------- against a baseline


@dataclasses.dataclass(frozen=True)
class Settings:
    trees: int = 100
    models: tuple[str, ...] = ("GBM", "RF")


class Silent:
    """As a class of another package, written before there was `speed`."""

    name, summary, scope = "fitting", "fits", "slot"
    shown_metrics: tuple[str, ...] = ()
    shown_tables: tuple[str, ...] = ()
    Parameters = Settings

    def judge(self, parameters: Settings, runs: list[WorkloadRun]) -> list[Reason]:
        return []


class Fitting(Silent):
    speed = FIT


def document(
    *runs: WorkloadRun, parameters: Any = None, inputs: Any = None, **equality: Any
) -> dict[str, Any]:
    made = base.smoke_document(
        Fitting(), parameters or Settings(), runs, enforce="strict", inputs=inputs, equality=equality or None
    ) | {"id": "20260101T000000Z-aaaa"}  # type: ignore[arg-type]
    return json.loads(json.dumps(made, allow_nan=False))


def baseline(*runs: WorkloadRun, **more: Any) -> dict[str, Any]:
    return json.loads(json.dumps(baseline_of(document(*runs, **more))))


@given(clusters)
def test_a_smoke_is_as_fast_as_its_own_baseline(cluster: dict[str, list[float]]) -> None:
    made = document(*runs_of(cluster))
    figures, reasons = compare_with_baseline(made, baseline_of(made))
    assert (reasons, figures["not_compared"], figures["why_not"]) == ([], {}, None)
    assert set(figures["nodes"]) == set(cluster)


def test_a_node_slower_than_in_the_baseline_fails_even_if_it_is_the_only_one() -> None:
    made = document(run("n1", 13.1, fit_s=9.0), max_slower=0.2, baseline=baseline(run("n1", fit_s=8.0)))
    assert made["verdict"] == "fail"
    assert made["reasons"] == ["n1 is 31 % slower than in the baseline (wall_s 13.1, then 10); allowed: 20 %"]
    assert made["equality"]["baseline"]["from"] == "20260101T000000Z-aaaa"
    assert made["equality"]["baseline"]["nodes"]["n1"]["fit_s"] == {
        "median": 9.0, "baseline": 8.0, "slower": 0.125,
    }  # fmt: skip


def test_all_nodes_that_became_slower_fail_though_they_are_equal() -> None:
    then = baseline(run("n1"), run("n2"), run("n3"))
    made = document(run("n1", 20.0), run("n2", 20.0), run("n3", 20.0), max_slower=0.2, baseline=then)
    assert made["verdict"] == "fail"
    assert [reason.split(" is ")[0] for reason in made["reasons"]] == ["n1", "n2", "n3"]


def test_other_parameters_are_said_and_nothing_is_compared() -> None:
    then = baseline(run("n1"), parameters=Settings(trees=300, models=("GBM",)))
    made = document(run("n1", 99.0), max_slower=0.2, baseline=then)
    assert made["verdict"] == "pass"
    assert made["reasons"] == [
        "not compared with the baseline: parameter models: GBM, now GBM,RF; parameter trees: 300, now 100"
    ]
    assert made["equality"]["baseline"]["nodes"] == {}


def test_another_table_of_the_same_name_is_said_and_nothing_is_compared() -> None:
    then = baseline(run("n1"), inputs={"table": "aa"})
    made = document(run("n1", 99.0), inputs={"table": "bb"}, max_slower=0.2, baseline=then)
    assert made["reasons"] == ["not compared with the baseline: other data in table"]


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (run("n1", 99.0, model="Intel"), "CPU model AMD EPYC, now Intel"),
        (run("n1", 99.0, cpus=4), "slots of 2 CPUs, 8 GiB, now 4 CPUs, 8 GiB"),
        (run("n1", 99.0, tainted=True), "its runs are no measure (tainted)"),
    ],
)
def test_another_host_or_slot_and_tainted_runs_are_said_and_not_compared(now: WorkloadRun, why: str) -> None:
    made = document(now, max_slower=0.2, baseline=baseline(run("n1")))
    assert made["verdict"] == "pass"
    assert f"n1 is not compared with the baseline: {why}" in made["reasons"]


def test_nodes_that_only_one_of_the_two_has_are_named() -> None:
    made = document(run("n1"), run("n3"), max_slower=0.2, baseline=baseline(run("n1"), run("n2")))
    assert made["verdict"] == "pass"
    assert made["equality"]["baseline"]["not_compared"] == {
        "n2": "it took no part",
        "n3": "it is not in there",
    }


def test_what_else_has_changed_stands_beside_a_slow_node() -> None:
    now = run("n1", 20.0)
    record = {**now.record, "host": {**now.record["host"], "environment": "e-2"}}
    made = document(WorkloadRun(record, {}), max_slower=0.2, baseline=baseline(run("n1")))
    assert made["reasons"][0].endswith("; environment differs (e-1, now e-2)")


# -------------------------------------------------------------------------------------------- the document


def test_a_workload_that_names_no_metric_is_compared_by_wall_time() -> None:
    made = base.smoke_document(Silent(), Settings(), [run("n1")], enforce="strict")  # type: ignore[arg-type]
    assert list(made["equality"]["metrics"]) == ["wall_s"]


def test_a_slow_node_fails_the_verdict_and_stands_before_what_is_only_said() -> None:
    made = document(run("n1", tainted=True), run("n2"), run("n3"), run("n4", 30.0))
    assert made["verdict"] == "fail"
    assert [reason.split(" ")[0] for reason in made["reasons"]] == ["n4", "n1:"]


def test_the_document_keeps_what_was_asked() -> None:
    made = document(run("n1"), inputs={"table": "aa"})
    assert made["parameters"] == {"trees": 100, "models": ["GBM", "RF"]}
    assert (made["inputs"], made["enforce"], made["complete"]) == ({"table": "aa"}, "strict", True)
