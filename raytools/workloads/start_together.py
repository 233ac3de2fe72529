"""Nodes of a cluster begin together: the first work of every process waits until each node has a process.

Ray starts a node's processes when work comes for it, which takes seconds. Until then faster nodes may have
done all of it, and the smoke of a cluster was one of some of its nodes. Standard library at import.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from raytools.workloads.base import ClusterNode

PATIENCE_S = (
    60.0  # from the first process on; a node that takes longer is left behind, and the verdict says so
)
_ANSWER_S = 30.0
_MOST_WAITING = 100_000  # processes; Ray's own limit for an actor is 1,000


class Gate:
    """Opens when all nodes have come, or `PATIENCE_S` after the first one. Lives in an actor of Ray.

    Args:
        node_ids: Ray's, of the nodes that are to come.
        patience_s: how long the first one waits for the last one.
    """

    def __init__(self, node_ids: Iterable[str], patience_s: float = PATIENCE_S) -> None:
        self._missing = set(node_ids)
        self._patience_s = patience_s
        self._open = asyncio.Event()

    async def join(self, node_id: str) -> None:
        """Returns when the gate is open."""
        self._missing.discard(node_id)
        if not self._missing:
            self._open.set()
        with contextlib.suppress(asyncio.TimeoutError):  # before Python 3.11 it is no TimeoutError
            await asyncio.wait_for(self._open.wait(), self._patience_s)
        self._open.set()

    async def missing(self) -> set[str]:
        """The nodes that have not come, not even late."""
        return self._missing


@dataclass
class Nodes:
    """How the nodes of a cluster were used; known when the work is over.

    Args:
        unused: names of those that lived, and of which no process came to the gate.
        lost: names of those that Ray holds for dead.
    """

    unused: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def gate_name() -> str:
    """A name for a gate. Until there is one of that name, and afterwards, nobody waits at it."""
    return f"raytools-gate-{secrets.token_hex(4)}"


@contextlib.contextmanager
def together(name: str, nodes: Sequence[ClusterNode], cpus: int, works: int) -> Iterator[Nodes]:
    """A gate while the block lasts, if there is something to do for each living node.

    Args:
        name: of the gate, for `join`.
        nodes: of the cluster.
        cpus: of each work.
        works: how many there are to do, all of which Ray is asked for at once; 0 for no gate.
    """
    used = Nodes()
    living = _living(nodes)
    if wanted := to_come(living, cpus, works):
        with _gate(name, wanted) as missing:
            yield used
            absent = missing()
        used.unused = sorted(node.name for node in _living(living) if node.node_id in absent)
    else:
        yield used
    used.lost = sorted({node.name for node in nodes} - {node.name for node in _living(nodes)})


def to_come(nodes: Sequence[ClusterNode], cpus: int, works: int) -> list[str]:
    """Ray's ids of the nodes that have something to do; none if some have not, or there is one node.

    Args:
        nodes: that live.
        cpus, works: as of `together`.
    """
    room = {node.node_id: node.slots * node.cpus // cpus for node in nodes}
    found = [node_id for node_id, at_a_time in room.items() if at_a_time]
    return found if len(found) > 1 and works >= sum(room.values()) else []


def _living(nodes: Sequence[ClusterNode]) -> list[ClusterNode]:
    import ray

    alive = {one["NodeID"] for one in ray.nodes() if one["Alive"]}
    return [node for node in nodes if node.node_id in alive]


@contextlib.contextmanager
def _gate(name: str, node_ids: Sequence[str]) -> Iterator[Callable[[], set[str]]]:
    """The gate; yields what asks it which nodes have not come, none if it does not answer."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # where the driver is: with a soft one Ray places an actor without CPUs anywhere (2.58, "zero cpu actor")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": name, "num_cpus": 0, "max_concurrency": _MOST_WAITING, "scheduling_strategy": here}
    actor = ray.remote(Gate).options(**options).remote(node_ids)

    def missing() -> set[str]:
        try:
            return set(ray.get(actor.missing.remote(), timeout=_ANSWER_S))
        except RayError:
            return set()

    try:
        yield missing
    finally:
        ray.kill(actor)


_joined: set[str] = set()  # by this process


def join(name: str) -> None:
    """Waits at a gate, once in each process. One that is gone, with its driver or its node, is open.

    Args:
        name: as of `gate_name`; empty for none.
    """
    if not name or name in _joined:
        return
    _joined.add(name)
    # In a task's own thread Ray would give its CPU to another task meanwhile
    waiting = threading.Thread(target=_wait, args=(name,), name="raytools-gate", daemon=True)
    waiting.start()
    waiting.join()


def _wait(name: str) -> None:
    import ray
    from ray.exceptions import RayError

    with contextlib.suppress(ValueError, RayError):  # ValueError: no actor has this name
        gate = ray.get_actor(name)
        ray.get(gate.join.remote(ray.get_runtime_context().get_node_id()), timeout=2 * PATIENCE_S)
