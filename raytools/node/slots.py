"""Which CPU threads belong to which slot. Pure: a described machine in, CPU numbers out.

Rules, in this order: two slots never share a core (a sibling thread is half a CPU of its neighbour), a
slot stays on one NUMA node where it fits, and slots are spread evenly over the NUMA nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

# a core is the tuple of its usable threads, as kernel CPU numbers
Core = tuple[int, ...]


def assign_cpus(
    threads: Sequence[Mapping[str, int]],
    allowed: Sequence[int],
    slot_count: int,
    cpus_per_slot: int | None,
    smt: bool = True,
) -> list[list[int]]:
    """CPU numbers of each slot, ascending.

    Args:
        threads: one mapping per CPU thread of the machine: cpu, core, socket, numa.
        allowed: the CPU numbers that may be used; threads outside are ignored.
        slot_count: how many slots the node is cut into.
        cpus_per_slot: CPU threads of each slot; None takes the most that fit.
        smt: False uses one thread of each core and leaves its siblings idle.

    Raises:
        ValueError: the slots do not fit; the message holds the arithmetic.
    """
    if slot_count < 1:
        raise ValueError(f"found {slot_count} slots per node, expected at least 1")
    pools = _cores_by_numa(threads, set(allowed), smt)
    total = sum(len(core) for cores in pools.values() for core in cores)
    if cpus_per_slot is not None:
        slots = _place(pools, slot_count, cpus_per_slot)
        if slots is None:
            raise ValueError(_does_not_fit(pools, total, slot_count, cpus_per_slot))
        return slots
    for size in range(total // slot_count, 0, -1):
        slots = _place(pools, slot_count, size)
        if slots is not None:
            return slots
    raise ValueError(_does_not_fit(pools, total, slot_count, 1))


def _cores_by_numa(
    threads: Sequence[Mapping[str, int]], allowed: set[int], smt: bool
) -> dict[int, list[Core]]:
    members: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for thread in threads:
        if thread["cpu"] in allowed:
            members[thread["numa"], thread["socket"], thread["core"]].append(thread["cpu"])
    pools: dict[int, list[Core]] = defaultdict(list)
    for (numa, _socket, _core), cpus in sorted(members.items()):
        pools[numa].append(tuple(sorted(cpus) if smt else [min(cpus)]))
    return dict(pools)


def _place(pools: Mapping[int, list[Core]], slot_count: int, size: int) -> list[list[int]] | None:
    """Slots on one NUMA node each; where that leaves too little, slots across nodes; else None."""
    if size < 1:
        return None
    for keep_on_one_node in (True, False):
        free = {numa: list(cores) for numa, cores in pools.items()}
        slots = [_take(free, size, keep_on_one_node) for _ in range(slot_count)]
        if all(slot is not None for slot in slots):
            return [slot for slot in slots if slot is not None]
    return None


def _take(free: dict[int, list[Core]], size: int, prefer_one_node: bool) -> list[int] | None:
    """Removes the cores of one slot from `free` and returns its CPUs."""
    emptiest_last = sorted(free, key=lambda numa: (-sum(map(len, free[numa])), numa))
    if prefer_one_node:
        for numa in emptiest_last:
            chosen = _choose_cores(free[numa], size)
            if chosen is not None:
                return _remove(free, chosen, size)
    chosen = _choose_cores([core for numa in emptiest_last for core in free[numa]], size)
    return None if chosen is None else _remove(free, chosen, size)


def _choose_cores(cores: Sequence[Core], size: int) -> list[Core] | None:
    """Whole cores for `size` threads that waste as few threads as possible: the widest that still fit."""
    chosen: list[Core] = []
    left = sorted(cores, key=len, reverse=True)  # stable: keeps the order of nodes and numbers
    need = size
    while need > 0:
        if not left:
            return None
        core = next((core for core in left if len(core) <= need), left[-1])
        left.remove(core)
        chosen.append(core)
        need -= len(core)
    return chosen


def _remove(free: dict[int, list[Core]], chosen: Sequence[Core], size: int) -> list[int]:
    taken = set(chosen)
    for numa, cores in free.items():
        free[numa] = [core for core in cores if core not in taken]
    return sorted([cpu for core in chosen for cpu in core][:size])


def _does_not_fit(pools: Mapping[int, list[Core]], total: int, slot_count: int, size: int) -> str:
    cores = sum(len(node_cores) for node_cores in pools.values())
    return (
        f"found {slot_count} slots x {size} CPUs = {slot_count * size} CPU threads, "
        f"expected at most {total} usable threads on {cores} cores (two slots never share a core)"
    )
