"""The driver of the workload `transfer`, on the head, and the station that it puts on every node.

A station asks Ray for one CPU, so that it does not land beside a run in a slot, and holds one while it makes
or hashes content (raytools.pinned), so that it disturbs nobody. Not while it waits: raylets send from store
to store, on whatever CPU the kernel gives them. Each transfer is an object of its own, for Ray takes one from
any node that has it, and from none where it is there already.

Standard library at import; Ray and NumPy are imported where they are used.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raytools.node.record import FAILED, OK
from raytools.units import format_duration, format_size, parse_size_bytes
from raytools.workloads.base import ClusterContext, ClusterNode
from raytools.workloads.transfer import AT_ONCE, IN_TURNS, SMALLEST_BYTES, TransferParameters, pairs_of

_STORE_SHARE = 0.3  # of the smallest object store, for all objects that are there at the same time
_FAILURES_OF_A_NODE = 2  # after which its other pairs are not waited for
_POLL_S = 0.2
_EXCEPTION_NAME = re.compile(r"^[\w.]+: (?=.)")
_START_S = 60.0  # for a worker to start
_CPU_WAIT_S = 300.0  # a `raytools run` from a shell may hold all of them, which Ray does not know
_LOCAL_WORK_S = _CPU_WAIT_S + 60.0  # and for content to be made, stored and hashed, however large


class Station:
    """Sends and receives on its node; an actor of Ray's."""

    def __init__(self, size_bytes: int, at_once: int) -> None:
        import numpy
        import ray

        with _one_cpu():
            self._content = numpy.frombuffer(os.urandom(size_bytes), dtype=numpy.uint8)
            self._digest = digest(self._content)
            # a store's memory is slow where nobody has used it yet, which is not what is compared
            _ = [ray.put(self._content) for _ in range(at_once)]

    def ready(self) -> None:
        """Answers once the content is there."""

    def put(self, count: int) -> tuple[list[Any], str, list[float]]:
        """Puts new objects into the store of this node.

        Returns:
            Their references, the content's digest, and seconds that each put took.
        """
        import ray

        references, seconds = [], []
        with _one_cpu():
            for _ in range(count):
                began = time.perf_counter()
                references.append(ray.put(self._content))
                seconds.append(time.perf_counter() - began)
        return references, self._digest, seconds

    def take(self, references: Sequence[Any], patience_s: float) -> list[tuple[float | None, str | None]]:
        """Gets objects of other nodes, all at the same time; hashes them when the last one is there.

        Returns:
            Of each the seconds until it was here, None if it did not come in time, and the content's digest.
        """
        import ray

        began = time.perf_counter()
        seconds: dict[Any, float] = {}
        left = list(references)
        while left and (rest_s := patience_s - (time.perf_counter() - began)) > 0:
            arrived, left = ray.wait(left, num_returns=1, timeout=rest_s)
            for reference in arrived:
                seconds[reference] = time.perf_counter() - began
        with _one_cpu():
            return [
                (seconds[one], digest(ray.get(one, timeout=_LOCAL_WORK_S)))
                if one in seconds
                else (None, None)
                for one in references
            ]


def _one_cpu() -> contextlib.AbstractContextManager[Any]:
    from raytools.node.pinned import pinned

    return pinned(1, wait=_CPU_WAIT_S)


def digest(content: Any) -> str:
    """BLAKE2b of bytes, or of an array."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def run_transfers(parameters: TransferParameters, context: ClusterContext) -> None:
    """The entries that are not done yet, with one station on each node."""
    pairs = pairs_of([node.name for node in context.nodes], parameters.peers)
    at_once = 2 * max(1, len(pairs) // len(context.nodes))  # a store has what is sent and what is received
    size_bytes, notes = _size_and_notes(parameters, context.nodes, at_once)
    first = next(entry for entry in (IN_TURNS, AT_ONCE) if entry not in context.done)
    context.report(first, f"starting a worker on each of {len(context.nodes)} nodes")
    with _stations(context.nodes, size_bytes, at_once) as (stations, problems):
        for entry in (IN_TURNS, AT_ONCE):
            if entry in context.done:
                continue
            began = time.monotonic()
            context.report(
                entry, f"{parameters.rounds} times {len(pairs)} objects of {format_size(size_bytes)}"
            )
            measured = _Measured(pairs, size_bytes, problems)
            for number in range(parameters.rounds):
                for step in [[pair] for pair in pairs] if entry == IN_TURNS else [pairs]:
                    said = " to ".join(step[0]) if entry == IN_TURNS else f"{len(step)} pairs"
                    context.detail(entry, f"round {number + 1} of {parameters.rounds}: {said}")
                    _transfer(measured.worth_trying(step), stations, measured, parameters.patience)
            metrics = {**measured.metrics(at_once=entry == AT_ONCE), "notes": notes}
            why = _why_failed(metrics["pairs"])
            context.finished(entry, metrics, time.monotonic() - began, FAILED if why else OK, why)


def _why_failed(pairs: Sequence[Mapping[str, Any]]) -> str | None:
    """How many pairs failed, and why the first did; the others are named by the judgement."""
    failed = [pair for pair in pairs if pair["problem"]]
    if not failed:
        return None
    first = f"{failed[0]['from']} to {failed[0]['to']}: {failed[0]['problem']}"
    return f"{len(failed)} of {len(pairs)} pairs; {first}"


def _size_and_notes(
    parameters: TransferParameters, nodes: Sequence[ClusterNode], at_once: int
) -> tuple[int, list[str]]:
    """A size of which all objects of one time fit into a store, and what is to be known of the figures."""
    import ray

    ids = {node.node_id for node in nodes}
    stores = [one["Resources"].get("object_store_memory", 0) for one in ray.nodes() if one["NodeID"] in ids]
    asked_bytes = parse_size_bytes(parameters.size)
    size_bytes = min(asked_bytes, max(SMALLEST_BYTES, int(_STORE_SHARE * min(stores) / at_once)))
    notes = []
    if len(nodes) == 1:
        notes.append(
            "there is one node: objects went into its own object store and out of it, over no network"
        )
    if size_bytes < asked_bytes:
        notes.append(
            f"objects had {format_size(size_bytes)} instead of {parameters.size}: {at_once} of them take "
            f"{100 * _STORE_SHARE:.0f} % of the smallest object store ({format_size(min(stores))})"
        )
    if len(nodes) > parameters.peers + 1:
        notes.append(f"each node sent to {parameters.peers} of the {len(nodes) - 1} others (peers)")
    return size_bytes, notes


@contextlib.contextmanager
def _stations(
    nodes: Sequence[ClusterNode], size_bytes: int, at_once: int
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """A station on each node by its name; of nodes that got none, why. They end with the block."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    made = {
        node.name: ray.remote(Station)
        .options(
            num_cpus=1,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        )
        .remote(size_bytes, at_once)
        for node in nodes
    }
    deadline = time.monotonic() + _START_S + _LOCAL_WORK_S
    answers = {name: station.ready.remote() for name, station in made.items()}
    problems = {
        name: why
        for name, answer in answers.items()
        if (why := _answer(answer, deadline - time.monotonic())[1]) is not None
    }
    try:
        yield made, problems
    finally:
        for station in made.values():
            ray.kill(station)


def _answer(reference: Any, timeout_s: float) -> tuple[Any, str | None]:
    """What a station answers, or why it does not. Short waits, so that a signal is answered at once."""
    import ray
    from ray.exceptions import RayError

    deadline = time.monotonic() + timeout_s
    while not ray.wait([reference], timeout=_POLL_S)[0]:
        if time.monotonic() > deadline:
            return None, "did not answer in time; are its CPUs taken? See: raytools slots"
    try:
        return ray.get(reference, timeout=_LOCAL_WORK_S), None
    except RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return None, _EXCEPTION_NAME.sub("", last)


def _transfer(
    pairs: Sequence[tuple[str, str]], stations: Mapping[str, Any], measured: _Measured, patience_s: float
) -> None:
    """Those pairs at the same time: all put first, then all receive."""
    sent: dict[str, list[str]] = {}
    for sender, receiver in pairs:
        sent.setdefault(sender, []).append(receiver)
    putting = {sender: stations[sender].put.remote(len(to)) for sender, to in sent.items()}
    coming: dict[str, list[_Parcel]] = {}
    for sender, receivers in sent.items():
        answer, why = _answer(putting.pop(sender), _LOCAL_WORK_S)
        if answer is None:
            for receiver in receivers:
                measured.problem((sender, receiver), f"{sender}: {why}", sender)
            continue
        for receiver, reference, seconds in zip(receivers, answer[0], answer[2], strict=True):
            coming.setdefault(receiver, []).append(_Parcel(sender, reference, answer[1], seconds))
    taking = {
        receiver: stations[receiver].take.remote([parcel.reference for parcel in parcels], patience_s)
        for receiver, parcels in coming.items()
    }
    for receiver, parcels in coming.items():
        found, why = _answer(taking[receiver], patience_s + _LOCAL_WORK_S)
        for parcel, (seconds, content) in zip(parcels, found or [(None, None)] * len(parcels), strict=True):
            pair = (parcel.sender, receiver)
            if why is not None:
                measured.problem(pair, f"{receiver}: {why}", receiver)
            elif seconds is None:
                measured.problem(pair, f"nothing arrived in {format_duration(patience_s)}")
            elif content != parcel.digest:
                measured.problem(pair, "something else arrived than was sent")
            else:
                measured.add(pair, seconds, parcel.put_s)


class _Parcel:
    """An object that waits in its sender's store."""

    def __init__(self, sender: str, reference: Any, digest: str, put_s: float) -> None:
        self.sender, self.reference, self.digest, self.put_s = sender, reference, digest, put_s


class _Measured:
    """What is known of each pair so far: seconds of every round, or why it failed."""

    def __init__(self, pairs: Sequence[tuple[str, str]], size_bytes: int, unready: Mapping[str, str]) -> None:
        self._size_bytes = size_bytes
        self._seconds: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
        self._put_s: dict[str, list[float]] = {}
        self._problems: dict[tuple[str, str], str] = {}
        self._failures: collections.Counter[str] = collections.Counter()
        self._succeeded: collections.Counter[str] = collections.Counter()  # transfers, by node
        for pair in pairs:
            if bad := next((name for name in pair if name in unready), None):
                self._problems[pair] = f"{bad}: {unready[bad]}"

    def worth_trying(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those that have not failed, without nodes that would only be waited for in vain."""
        for pair in pairs:
            if gone := next((name for name in pair if self._failures[name] >= _FAILURES_OF_A_NODE), None):
                self._problems.setdefault(pair, f"was not tried: {gone} failed {self._failures[gone]} times")
        return [pair for pair in pairs if pair not in self._problems]

    def problem(self, pair: tuple[str, str], why: str, culprit: str | None = None) -> None:
        """Notes why a pair failed.

        Args:
            pair: sender and receiver.
            why: for people.
            culprit: the one that did not answer; None where it may be either, or what is between them.
        """
        self._problems[pair] = why
        self._failures.update({culprit} if culprit else {one for one in pair if not self._succeeded[one]})

    def add(self, pair: tuple[str, str], seconds: float, put_s: float) -> None:
        """Notes a transfer. Into the own store putting is all there is to it."""
        self._seconds[pair].append(seconds + (put_s if pair[0] == pair[1] else 0.0))
        self._put_s.setdefault(pair[0], []).append(put_s)
        self._succeeded.update(set(pair))

    def metrics(self, *, at_once: bool) -> dict[str, Any]:
        """Of each pair the median over its rounds; of each node all its pairs, next to the other nodes.

        Args:
            at_once: whether pairs were at work together; then the slowest one's time is that of all.
        """
        rows = [self._row(pair) for pair in self._seconds]
        rates = [row["bytes_per_s"] for row in rows if row["bytes_per_s"] is not None]
        return {
            "transfers": sum(map(len, self._seconds.values())),
            "object_bytes": self._size_bytes,
            "slowest_bytes_per_s": min(rates, default=None),
            "median_bytes_per_s": round(statistics.median(rates)) if rates else None,
            "nodes": [self._node(name, at_once) for name in dict.fromkeys(pair[0] for pair in self._seconds)],
            "pairs": rows,
        }

    def _row(self, pair: tuple[str, str]) -> dict[str, Any]:
        seconds = statistics.median(self._seconds[pair]) if self._seconds[pair] else None
        return {
            "from": pair[0],
            "to": pair[1],
            "seconds": None if seconds is None else round(seconds, 6),
            "bytes_per_s": self._rate(1, seconds),
            "problem": self._problems.get(pair, ""),
        }

    def _node(self, name: str, at_once: bool) -> dict[str, Any]:
        put_s = self._put_s.get(name)
        return {
            "node": name,
            "sent_bytes_per_s": self._together([pair for pair in self._seconds if pair[0] == name], at_once),
            "received_bytes_per_s": self._together(
                [pair for pair in self._seconds if pair[1] == name], at_once
            ),
            "stored_bytes_per_s": self._rate(1, statistics.median(put_s) if put_s else None),
        }

    def _together(self, pairs: Sequence[tuple[str, str]], at_once: bool) -> int | None:
        medians = [statistics.median(self._seconds[pair]) for pair in pairs if self._seconds[pair]]
        return self._rate(len(medians), (max if at_once else sum)(medians)) if medians else None

    def _rate(self, objects: int, seconds: float | None) -> int | None:
        return round(objects * self._size_bytes / seconds) if seconds else None
