"""The gate that lets the nodes of a cluster begin together, without Ray."""

from __future__ import annotations

import asyncio
import time

import pytest

from raytools.workloads.base import ClusterNode, WorkloadRun
from raytools.workloads.cluster_checks import judge_unused
from raytools.workloads.start_together import Gate, gate, join, unused


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
    async def play() -> float:
        waiting = Gate(["a", "b"], patience_s=0.05)
        await waiting.join("a")
        began = time.monotonic()
        await waiting.join("a")
        return time.monotonic() - began

    assert asyncio.run(play()) < 0.03


@pytest.mark.parametrize(
    ("cpus", "works"), [((8,), 100), ((2, 1), 100), ((2, 2), 1)], ids=["one node", "one with room", "little"]
)
def test_nobody_waits_where_some_nodes_would_have_nothing_to_do(cpus: tuple[int, ...], works: int) -> None:
    with gate(nodes(*cpus), 2, works) as name:
        assert name == ""
        join(name)  # and needs no Ray


def test_a_node_without_work_is_named_if_there_was_work_for_all() -> None:
    assert unused(nodes(2, 2, 1), ["n1"], cpus=2, works=2) == ["n2"]
    assert unused(nodes(2, 2, 1), ["n1", "n2"], cpus=2, works=2) == []
    assert unused(nodes(2, 2, 1), ["n1"], cpus=2, works=1) == []


def test_an_unused_node_fails_the_verdict() -> None:
    run = WorkloadRun({"name": "tune random-fifo"}, {"nodes_unused": ["n2", "n3"]})
    (reason,) = judge_unused(run)
    assert "n2, n3 had nothing to do" in reason.text
    assert reason.fails
    assert list(judge_unused(WorkloadRun({"name": "tune random-fifo"}, {}))) == []
