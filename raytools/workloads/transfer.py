"""The workload `transfer`: what can be asked of it, which nodes send to which, and how figures are judged.

Standard library only; what is done on the nodes is in `transfer_driver`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raytools.errors import RaytoolsError
from raytools.units import format_size, parse_size_bytes
from raytools.workloads.base import ClusterContext, Prepared, Reason, WorkloadRun, option, run_name
from raytools.workloads.cluster_checks import require_modules

IN_TURNS, AT_ONCE = "pairs", "all-at-once"
SMALLEST_BYTES = 1_000_000  # below that Ray sends the value itself, and not from store to store
_SLOW = 0.5  # of the median of the others
_NAMED = 5  # pairs that one reason each is given to; how many more there are is said
_FIGURES = {"sent_bytes_per_s": "sent", "received_bytes_per_s": "received", "stored_bytes_per_s": "stored"}


@dataclasses.dataclass(frozen=True)
class TransferParameters:
    """What can be asked of the workload."""

    size: str = option("64MiB", "of each object; less where the object store is small")
    rounds: int = option(3, "of each pair; the median counts")
    peers: int = option(7, "how many others each node sends to, at most")
    patience: float = option(30.0, "after which a pair got nowhere", duration=True)


class Transfer:
    """Every node sends objects to every other, and all of them at once; tells which node is slower."""

    name = "transfer"
    summary = "objects from every node to every other, one pair after the other and all at once"
    scope: Literal["slot", "cluster"] = "cluster"
    shown_metrics = ("transfers", "object_bytes", "slowest_bytes_per_s", "median_bytes_per_s")
    shown_tables = ("nodes", "pairs")
    Parameters = TransferParameters

    def check(self, parameters: TransferParameters) -> None:
        """Ranges; see `Workload.check`."""
        try:
            size_bytes = parse_size_bytes(parameters.size)
        except ValueError as error:
            raise RaytoolsError(f"size: {error}") from error
        if size_bytes < SMALLEST_BYTES:
            raise RaytoolsError(
                f"size is {parameters.size}",
                expected=f"at least {SMALLEST_BYTES // 10**6}MB: less does not go from store to store",
            )
        for name in ("rounds", "peers"):
            if getattr(parameters, name) < 1:
                raise RaytoolsError(f"{name} is {getattr(parameters, name)}", expected="at least 1")
        if not 0 < parameters.patience < math.inf:
            raise RaytoolsError(f"patience is {parameters.patience}", expected="a duration above 0")

    def prepare(self, parameters: TransferParameters, cache_dir: Path) -> Prepared:  # noqa: ARG002
        """Nothing travels but the parameters; see `Workload.prepare`."""
        return Prepared(parameters)

    def entries(self, parameters: TransferParameters) -> tuple[str, ...]:  # noqa: ARG002
        """One pair after the other, and all at once; see `ClusterWorkload.entries`."""
        return (IN_TURNS, AT_ONCE)

    def check_on_head(self, parameters: TransferParameters) -> None:  # noqa: ARG002
        """NumPy's arrays are read where they lie in the store; see `ClusterWorkload.check_on_head`."""
        require_modules({"numpy": "the workload transfer"})

    def run_cluster(self, parameters: TransferParameters, context: ClusterContext) -> None:
        """Both entries; see `ClusterWorkload.run_cluster`."""
        from raytools.workloads.transfer_driver import run_transfers

        run_transfers(parameters, context)

    def judge(self, parameters: TransferParameters, runs: Sequence[WorkloadRun]) -> list[Reason]:  # noqa: ARG002
        """Pairs that got nowhere or changed content, nodes that are slower; see `Workload.judge`."""
        notes = dict.fromkeys(note for run in runs for note in run.metrics.get("notes") or ())
        return [reason for run in runs for reason in _judge_one(run)] + [
            Reason(note, fails=False) for note in notes
        ]


def pairs_of(names: Sequence[str], peers: int) -> list[tuple[str, str]]:
    """Who sends to whom, in the order of the turns. Each node sends to as many as it receives from.

    With at most `peers` others that is every ordered pair; with more, each node sends to `peers` others that
    lie equally far apart in the list. A node that is alone sends to itself.

    Args:
        names: of the nodes.
        peers: how many others each sends to, at most.
    """
    count = len(names)
    if count == 1:
        return [(names[0], names[0])]
    others = count - 1
    asked = min(peers, others)
    steps = [1 + number * others // asked for number in range(asked)]
    return [(names[at], names[(at + step) % count]) for step in steps for at in range(count)]


def _judge_one(run: WorkloadRun) -> Iterator[Reason]:
    where = run_name(run.record)
    pairs = run.metrics.get("pairs") or []
    failed = [pair for pair in pairs if pair["problem"]]
    for pair in failed[1:_NAMED]:  # the first stands in the record
        yield Reason(f"{where}: {pair['from']} to {pair['to']}: {pair['problem']}")
    if len(failed) > _NAMED:
        yield Reason(f"{where}: so did {len(failed) - _NAMED} more pairs")
    slow = list(_slow_nodes(run.metrics.get("nodes") or []))
    for node, figure, value, median in slow:
        yield _slower(f"{where}: {node}: {_FIGURES[figure]} {_rate(value)}", "nodes", median)
    told = {node for node, *_ in slow}
    slow_pairs = [found for found in _slow_pairs(pairs) if not told & {found[0]["from"], found[0]["to"]}]
    for pair, median in slow_pairs[:_NAMED]:
        said = f"{where}: {pair['from']} to {pair['to']}: {_rate(pair['bytes_per_s'])}"
        yield _slower(said, "pairs", median)


def _slower(said: str, kind: str, median: float) -> Reason:
    return Reason(f"{said}, less than half of the other {kind} (median {_rate(median)})", fails=False)


def _slow_nodes(nodes: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, float, float]]:
    """Node, figure, its value and the median of the others, where it is below half of that."""
    for node in nodes:
        for figure in _FIGURES:
            others = [one[figure] for one in nodes if one is not node and one[figure] is not None]
            if node[figure] is None or not others:
                continue
            median = statistics.median(others)
            if node[figure] < _SLOW * median:
                yield node["node"], figure, node[figure], median


def _slow_pairs(pairs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """A pair below half of the median of the others: a link that the figures of its nodes hide."""
    measured = [pair for pair in pairs if pair["bytes_per_s"] is not None]
    for pair in measured:
        others = [other["bytes_per_s"] for other in measured if other is not pair]
        if others and pair["bytes_per_s"] < _SLOW * statistics.median(others):
            yield pair, statistics.median(others)


def _rate(bytes_per_s: float) -> str:
    return f"{format_size(bytes_per_s)}/s"
