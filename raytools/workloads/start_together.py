"""Nodes of a cluster begin together: the first work of every process waits until each node has a process.

Ray starts a node's processes when work comes for it, which takes seconds. Until then faster nodes may have
done all of it, and the smoke of a cluster was one of some of its nodes. Standard library at import.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Iterator, Sequence

from raytools.workloads.base import ClusterNode

PATIENCE_S = (
    60.0  # from the first process on; a node that takes longer is left behind, and the verdict says so
)


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
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._open.wait(), self._patience_s)
        self._open.set()


@contextlib.contextmanager
def gate(nodes: Sequence[ClusterNode], cpus: int, works: int) -> Iterator[str]:
    """A gate while it lasts.

    Args:
        nodes: of the cluster.
        cpus: of each work.
        works: how many there are to do; with fewer than fit on the nodes at a time, some nodes have none.

    Yields:
        Its name, for `join`; empty if nobody has to wait.
    """
    room = {node.node_id: node.slots * node.cpus // cpus for node in nodes}
    wanted = [node_id for node_id, at_a_time in room.items() if at_a_time]
    if len(wanted) < 2 or works < sum(room.values()):
        yield ""
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    name = f"raytools-gate-{secrets.token_hex(4)}"
    actor = ray.remote(Gate).options(name=name, num_cpus=0, scheduling_strategy=here).remote(wanted)
    try:
        yield name
    finally:
        ray.kill(actor)


_joined: set[str] = set()  # by this process


def join(name: str) -> None:
    """Waits at a gate, once in each process. One that is gone, with its driver or its node, is open.

    Args:
        name: what `gate` yielded.
    """
    if not name or name in _joined:
        return
    import ray
    from ray.exceptions import RayActorError

    _joined.add(name)
    with contextlib.suppress(ValueError, RayActorError):  # ValueError: no actor has this name any more
        ray.get(ray.get_actor(name).join.remote(ray.get_runtime_context().get_node_id()))


def unused(nodes: Sequence[ClusterNode], used: Iterable[str], cpus: int, works: int) -> list[str]:
    """Names of nodes that had nothing to do although there was enough for all; arguments as of `gate`."""
    with_room = [node for node in nodes if node.slots * node.cpus >= cpus]
    if works < sum(node.slots * node.cpus // cpus for node in with_room):
        return []
    return sorted({node.name for node in with_room} - set(used))
