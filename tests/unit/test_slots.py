"""Slots on invented machines."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytools.node.slots import assign_cpus

Threads = list[dict[str, int]]


def machine(sockets: int, cores: int, smt: int, numa_per_socket: int = 1) -> Threads:
    """Threads numbered as Linux does: all first siblings, then all second ones."""
    threads = []
    for sibling in range(smt):
        for socket in range(sockets):
            for core in range(cores):
                number = sibling * sockets * cores + socket * cores + core
                numa = socket * numa_per_socket + core * numa_per_socket // cores
                threads.append({"cpu": number, "core": core, "socket": socket, "numa": numa})
    return threads


@st.composite
def machines(draw: st.DrawFn) -> tuple[Threads, list[int]]:
    threads = machine(
        sockets=draw(st.integers(1, 8)),
        cores=draw(st.integers(1, 12)),
        smt=draw(st.integers(1, 2)),
        numa_per_socket=draw(st.integers(1, 3)),
    )
    # offline CPUs, cpusets with holes, cores with a lone sibling
    hidden = draw(st.sets(st.sampled_from([t["cpu"] for t in threads]), max_size=len(threads) // 2))
    return threads, [t["cpu"] for t in threads if t["cpu"] not in hidden]


def core_of(threads: Threads) -> dict[int, tuple[int, int]]:
    return {t["cpu"]: (t["socket"], t["core"]) for t in threads}


@given(machines(), st.integers(1, 6), st.one_of(st.none(), st.integers(1, 24)), st.booleans())
def test_slots_are_disjoint_allowed_of_the_asked_size_and_never_share_a_core(
    described: tuple[Threads, list[int]], slot_count: int, size: int | None, smt: bool
) -> None:
    threads, allowed = described
    try:
        slots = assign_cpus(threads, allowed, slot_count, size, smt)
    except ValueError:
        return  # when that is right is the next test's subject
    assert len(slots) == slot_count
    cpus = [cpu for slot in slots for cpu in slot]
    assert len(cpus) == len(set(cpus))
    assert set(cpus) <= set(allowed)
    assert len({len(slot) for slot in slots}) == 1
    if size is not None:
        assert len(slots[0]) == size
    core = core_of(threads)
    owners = defaultdict(set)
    for index, slot in enumerate(slots):
        for cpu in slot:
            owners[core[cpu]].add(index)
    assert all(len(indices) == 1 for indices in owners.values())
    if not smt:
        assert len({core[cpu] for cpu in cpus}) == len(cpus)


@given(machines(), st.integers(1, 6))
def test_one_cpu_per_slot_fits_exactly_when_there_are_cores_enough(
    described: tuple[Threads, list[int]], slot_count: int
) -> None:
    threads, allowed = described
    core = core_of(threads)
    cores = len({core[cpu] for cpu in allowed})
    if cores >= slot_count:
        assert len(assign_cpus(threads, allowed, slot_count, 1)) == slot_count
    else:
        with pytest.raises(ValueError, match=f"{cores} cores"):
            assign_cpus(threads, allowed, slot_count, 1)


def test_one_slot_takes_everything() -> None:
    assert assign_cpus(machine(2, 4, 2), range(16), 1, None) == [list(range(16))]


def test_a_slot_stays_on_one_numa_node_where_it_fits() -> None:
    assert assign_cpus(machine(2, 4, 1), range(8), 2, None) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert assign_cpus(machine(2, 4, 1), range(8), 4, 2) == [[0, 1], [4, 5], [2, 3], [6, 7]]


def test_siblings_go_together() -> None:
    assert assign_cpus(machine(1, 4, 2), range(8), 4, 2) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_without_smt_only_first_siblings_are_used() -> None:
    assert assign_cpus(machine(1, 4, 2), range(8), 2, None, smt=False) == [[0, 1], [2, 3]]


def test_an_impossible_plan_says_the_arithmetic() -> None:
    with pytest.raises(ValueError, match=r"3 slots x 2 CPUs = 6 CPU threads, expected at most 4 usable"):
        assign_cpus(machine(1, 4, 1), range(4), 3, 2)
