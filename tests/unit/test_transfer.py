"""The workload `transfer` without Ray: who sends to whom, what is measured of a pair, what is judged."""

from __future__ import annotations

import collections
from typing import Any

import pytest

from raytools.node.workload_cluster import entry_record
from raytools.workloads import base
from raytools.workloads.base import WorkloadRun
from raytools.workloads.transfer import Transfer, TransferParameters, pairs_of
from raytools.workloads.transfer_driver import _Measured, _why_failed


def test_every_node_sends_to_every_other() -> None:
    found = pairs_of(["a", "b", "c"], peers=7)
    assert sorted(found) == [("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b")]


def test_a_node_that_is_alone_sends_to_itself() -> None:
    assert pairs_of(["a"], peers=7) == [("a", "a")]


@pytest.mark.parametrize("count", [2, 5, 8, 9, 15, 36])
def test_of_many_nodes_each_sends_to_as_many_others_as_it_receives_from(count: int) -> None:
    names = [f"n{number}" for number in range(count)]
    found = pairs_of(names, peers=7)
    assert len(set(found)) == len(found) == count * min(7, count - 1)
    assert all(sender != receiver for sender, receiver in found)
    for side in (0, 1):
        assert set(collections.Counter(pair[side] for pair in found).values()) == {min(7, count - 1)}


# ---------------------------------------------------------------------------------------------- measured

MB = 10**6


def measured(*pairs: tuple[str, str]) -> _Measured:
    return _Measured(pairs, 10 * MB, {})


def test_the_median_of_the_rounds_counts() -> None:
    found = measured(("a", "b"))
    for seconds in (9.0, 1.0, 2.0):
        found.add(("a", "b"), seconds, put_s=0.1)
    metrics = found.metrics(at_once=False)
    assert metrics["transfers"] == 3
    assert metrics["pairs"] == [
        {"from": "a", "to": "b", "seconds": 2.0, "bytes_per_s": 5 * MB, "problem": ""}
    ]


@pytest.mark.parametrize(("at_once", "sent"), [(False, 5 * MB), (True, 6_666_667)])
def test_a_node_has_sent_when_its_last_object_has_arrived(at_once: bool, sent: int) -> None:
    found = measured(("a", "b"), ("a", "c"), ("b", "a"))
    for pair, seconds in ((("a", "b"), 1.0), (("a", "c"), 3.0), (("b", "a"), 0.5)):
        found.add(pair, seconds, put_s=0.1)
    node = found.metrics(at_once=at_once)["nodes"][0]
    assert node == {
        "node": "a", "sent_bytes_per_s": sent,
        "received_bytes_per_s": 20 * MB, "stored_bytes_per_s": 100 * MB,
    }  # fmt: skip


def test_to_itself_a_node_has_to_store_the_object_too() -> None:
    found = measured(("a", "a"))
    found.add(("a", "a"), 0.0, put_s=0.5)
    assert found.metrics(at_once=False)["pairs"][0]["bytes_per_s"] == 20 * MB


def test_a_node_that_failed_twice_is_not_waited_for_again() -> None:
    pairs = pairs_of(["a", "b", "c", "d"], 7)
    found = _Measured(pairs, MB, {})
    found.problem(("a", "b"), "nothing arrived")
    assert set(found.worth_trying(pairs)) == set(pairs) - {("a", "b")}
    found.problem(("c", "b"), "nothing arrived")
    assert [pair for pair in found.worth_trying(pairs) if "b" in pair] == []
    problems = {(row["from"], row["to"]): row["problem"] for row in found.metrics(at_once=False)["pairs"]}
    assert problems["a", "b"] == "nothing arrived"
    assert problems["b", "d"] == "was not tried: b failed 2 times"
    assert problems["c", "d"] == ""


def test_a_dead_node_is_not_blamed_on_those_that_wait_for_it() -> None:
    pairs = pairs_of(["a", "b", "c", "dead"], 7)
    found = _Measured(pairs, MB, {})
    for pair in pairs:  # all at once: senders first
        if pair[0] == "dead":
            found.problem(pair, "dead: did not answer", "dead")
    for pair in pairs:
        if pair[1] == "dead":
            found.problem(pair, "dead: did not answer", "dead")
        elif pair[0] != "dead":
            found.add(pair, 0.1, put_s=0.1)
    assert set(found.worth_trying(pairs)) == {pair for pair in pairs if "dead" not in pair}


def test_pairs_of_a_node_without_a_station_failed_already() -> None:
    pairs = pairs_of(["a", "b", "c"], 7)
    found = _Measured(pairs, MB, {"b": "did not answer"})
    assert found.worth_trying(pairs) == [("c", "a"), ("a", "c")]


# ------------------------------------------------------------------------------------------------ judged


def run(rates: dict[tuple[str, str], float | None], **more: Any) -> WorkloadRun:
    pairs = list(rates)
    found = _Measured(pairs, 10 * MB, {})
    for pair, rate in rates.items():
        if rate is None:
            found.problem(pair, "something else arrived than was sent")
        else:
            found.add(pair, 10 / rate, put_s=0.01)
    metrics = found.metrics(at_once=False)
    why = _why_failed(metrics["pairs"])
    record = entry_record("transfer", "pairs", 1.0, "failed" if why else "ok", why).to_json()
    return WorkloadRun(record, {**metrics, "notes": [], **more})


def reasons(*runs: WorkloadRun) -> list[tuple[str, bool]]:
    return [(one.text, one.fails) for one in Transfer().judge(TransferParameters(), runs)]


def test_equal_nodes_give_no_reason() -> None:
    assert reasons(run(dict.fromkeys(pairs_of(["a", "b", "c"], 7), 100.0))) == []


def test_a_node_with_less_than_half_of_the_others_is_told_and_does_not_fail() -> None:
    rates = {pair: 40.0 if pair[0] == "c" else 100.0 for pair in pairs_of(["a", "b", "c"], 7)}
    [(text, fails)] = reasons(run(rates))
    assert not fails
    assert text.startswith("pairs: c: sent 38.1 MiB/s, less than half of the other nodes (median 95.4 MiB/s)")


def test_one_bad_link_is_told_where_the_figures_of_its_nodes_hide_it() -> None:
    rates: dict[tuple[str, str], float | None] = dict.fromkeys(pairs_of(["a", "b", "c", "d", "e"], 7), 100.0)
    rates["a", "b"] = 40.0
    [(text, fails)] = reasons(run(rates))
    assert (text[:12], fails) == ("pairs: a to ", False)
    assert "a to b: 38.1 MiB/s, less than half of the other pairs" in text


def test_content_that_differs_fails_and_names_the_pair() -> None:
    rates: dict[tuple[str, str], float | None] = dict.fromkeys(pairs_of(["a", "b"], 7), 100.0)
    rates["a", "b"] = None
    document = base.smoke_document(Transfer(), TransferParameters(), [run(rates)], enforce="strict")
    assert document["verdict"] == "fail"
    assert document["reasons"][0] == (
        "pairs: outcome failed (1 of 2 pairs; a to b: something else arrived than was sent)"
    )


def test_of_many_failed_pairs_some_are_named_and_all_counted() -> None:
    found = reasons(run(dict.fromkeys(pairs_of(["a", "b", "c", "d"], 7), None)))
    assert len(found) == 5
    assert found[0] == ("pairs: b to c: something else arrived than was sent", True)
    assert found[-1] == ("pairs: so did 7 more pairs", True)


def test_a_note_of_both_entries_is_told_once_and_does_not_fail() -> None:
    alone = run({("a", "a"): 100.0}, notes=["there is one node"])
    assert reasons(alone, alone) == [("there is one node", False)]


def test_an_entry_that_got_nowhere_is_judged_by_its_record() -> None:
    failed = WorkloadRun(entry_record("transfer", "pairs", 1.0, "failed", "no Ray").to_json(), {})
    assert reasons(failed) == []
    document = base.smoke_document(Transfer(), TransferParameters(), [failed], enforce="strict")
    assert document["verdict"] == "fail"
