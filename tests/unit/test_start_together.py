"""The gate that lets the nodes of a cluster begin together, without Ray."""

from __future__ import annotations

import asyncio

import pytest

from raytools.workloads.base import ClusterNode, WorkloadRun
from raytools.workloads.cluster_checks import judge_nodes
from raytools.workloads.start_together import Gate, join, to_come


def nodes(*cpus: int) -> list[ClusterNode]:
    return [
        ClusterNode(f"n{number}", "", f"id{number}", slots=1, cpus=each, memory_bytes=1)
        for number, each in enumerate(cpus, start=1)
    ]


def test_nobody_goes_on_before_the_last_node_has_come() -> None:
    async def play() -> list[str]:
        seen: list[str] = []
        waiting = Gate(["a", "b"], patience_s=30)

        async def come(node_id: str) -> None:
            await waiting.join(node_id)
            seen.append(node_id)

        first = [asyncio.create_task(come("a")) for _ in range(2)]  # two processes of one node
        await asyncio.sleep(0.05)
        assert seen == []
        await come("b")
        await asyncio.gather(*first)
        return seen

    assert sorted(asyncio.run(play())) == ["a", "a", "b"]


def test_a_node_that_does_not_come_is_waited_for_once() -> None:
    async def play() -> None:
        waiting = Gate(["a", "b"], patience_s=0.05)
        await waiting.join("a")
        waiting._patience_s = 3600
        await asyncio.wait_for(waiting.join("a"), 30)

    asyncio.run(play())


def test_a_node_that_comes_late_is_not_missing_any_more() -> None:
    async def play() -> list[set[str]]:
        waiting, seen = Gate(["a", "b"], patience_s=0.01), []
        await waiting.join("a")
        seen.append(set(await waiting.missing()))
        await waiting.join("b")
        return [*seen, await waiting.missing()]

    assert asyncio.run(play()) == [{"b"}, set()]


@pytest.mark.parametrize(
    ("cpus", "works", "ids"),
    [
        pytest.param((2, 2, 1), 2, ["id1", "id2"], id="two with room"),
        pytest.param((8,), 100, [], id="one node"),
        pytest.param((2, 1), 100, [], id="one with room"),
        pytest.param((2, 2), 1, [], id="not enough for all"),
        pytest.param((8, 2), 4, [], id="maybe all of it on the large one"),
    ],
)
def test_nodes_are_waited_for_where_each_will_have_something_to_do(
    cpus: tuple[int, ...], works: int, ids: list[str]
) -> None:
    assert to_come(nodes(*cpus), 2, works) == ids


def test_where_there_is_no_gate_nobody_needs_ray() -> None:
    join("")


def test_an_unused_node_fails_the_verdict_and_a_lost_one_is_told() -> None:
    record = {"name": "tune random-fifo"}
    (reason,) = judge_nodes(WorkloadRun(record, {"nodes_unused": ["n2", "n3"], "nodes_lost": []}))
    assert "n2, n3 had nothing to do" in reason.text
    assert reason.fails
    (reason,) = judge_nodes(WorkloadRun(record, {"nodes_unused": [], "nodes_lost": ["n3"]}))
    assert "Ray has lost n3" in reason.text
    assert not reason.fails
    assert list(judge_nodes(WorkloadRun(record, {}))) == []
