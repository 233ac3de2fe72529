"""Slots on invented machines: what holds on all of them, checked against exhaustive search on small ones."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations_with_replacement, product
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raytools.node.slots import assign_cpus

# no deadline: a busy machine is no failure
any_machine = settings(max_examples=60, deadline=None)
small_machine = settings(max_examples=100, deadline=None)

Threads = list[dict[str, "int | None"]]
Slots = list[list[int]]


class Machine(NamedTuple):
    """What the facts say of an invented machine."""

    threads: Threads
    allowed: list[int]


class Core(NamedTuple):
    """What the tests know of a core with usable threads: sorts, and says how many threads it has in all."""

    cpus: tuple[int, ...]
    siblings: int
    node: int | None


# --- invented machines ---------------------------------------------------------------------------


def machine(sockets: int, cores: int, smt: int, numa_per_socket: int = 1) -> Threads:
    """A regular one. Numbered as Linux does: all first siblings, then all second ones."""
    threads: Threads = []
    for sibling in range(smt):
        for first in range(sockets * cores):
            socket, core = divmod(first, cores)
            numa = socket * numa_per_socket + core * numa_per_socket // cores
            cpu = sibling * sockets * cores + first
            threads.append({"cpu": cpu, "core": first, "socket": socket, "numa": numa})
    return threads


def described(cores: Sequence[tuple[int, int]]) -> Threads:
    """Of one (NUMA node, number of threads) for each core; siblings have neighbouring numbers."""
    threads: Threads = []
    for node, width in cores:
        first = len(threads)
        threads += [{"cpu": first + n, "core": first, "socket": 0, "numa": node} for n in range(width)]
    return threads


@st.composite
def machines(draw: st.DrawFn, most_sockets: int = 8, most_cores: int = 24, most_nodes: int = 8) -> Machine:
    """Sockets, SMT, big and little cores, uneven NUMA nodes, holes, offline CPUs, unknown ids: all may be."""
    widths = draw(st.sampled_from([(1,), (2,), (1, 2)]))  # SMT off, on, and little beside big cores
    nodes, sockets = draw(st.integers(1, most_nodes)), draw(st.integers(1, most_sockets))
    # each core draws its node: nodes get different sizes, and some get no CPU at all
    core = st.sampled_from(list(product(widths, range(nodes), range(sockets))))
    layout = draw(st.lists(core, min_size=1, max_size=most_cores))
    positions = [(index, sibling) for index, (width, _, _) in enumerate(layout) for sibling in range(width)]
    if draw(st.booleans()):  # first siblings first; else siblings are neighbours
        positions.sort(key=lambda position: position[1])
    stretch = draw(st.integers(1, 3))  # holes in the numbering
    numbers = {position: index * stretch for index, position in enumerate(positions)}

    def some(or_all: bool) -> set[int]:
        """None, any or all of the CPU numbers. Bits of one number, as drawing sets is slow."""
        everything = 2 ** len(numbers) - 1
        bits = draw(st.one_of(st.just(0), st.integers(0, everything), st.just(everything if or_all else 1)))
        return {number for index, number in enumerate(numbers.values()) if bits >> index & 1}

    offline = some(or_all=False)  # the kernel does not list them as siblings either
    threads: Threads = []
    for index, (width, node, socket) in enumerate(layout):
        online = [numbers[index, n] for n in range(width) if numbers[index, n] not in offline]
        threads += [{"cpu": n, "core": min(online), "socket": socket, "numa": node} for n in online]
    for field in ("core", "socket", "numa"):
        unknown = some(or_all=True)
        for thread in threads:
            if thread["cpu"] in unknown:
                thread[field] = None
    forbidden = some(or_all=False)  # by affinity or a cpuset
    return Machine(threads, [t["cpu"] for t in threads if t["cpu"] not in forbidden])


def small_machines() -> st.SearchStrategy[Machine]:
    """Small enough to try everything on them."""
    return machines(most_sockets=2, most_cores=8, most_nodes=3)


def cores_of(described: Machine, smt: bool) -> list[Core]:
    """The cores with usable threads. A thread without a known core belongs to the one that has its number."""
    members = defaultdict(list)
    for thread in described.threads:
        members[thread["cpu"] if thread["core"] is None else thread["core"]].append(thread)
    cores = []
    for siblings in members.values():
        cpus = sorted(t["cpu"] for t in siblings if t["cpu"] in described.allowed)
        nodes = {t["numa"] for t in siblings} - {None}
        if cpus:
            node = min(nodes) if nodes else None
            cores.append(Core(tuple(cpus if smt else cpus[:1]), len(siblings), node))
    return sorted(cores)


class Cut(NamedTuple):
    """A machine that is cut into slots."""

    machine: Machine
    smt: bool
    size: int | None  # None: the most that fit
    cores: list[Core]
    slots: Slots


@st.composite
def cuts(draw: st.DrawFn, machines: st.SearchStrategy[Machine], most_slots: int = 6) -> Cut:
    """Slots that fit; that what is refused does not fit is a test of its own."""
    machine, smt = draw(machines), draw(st.booleans())
    cores = cores_of(machine, smt)
    assume(cores)
    slot_count = draw(st.integers(1, min(len(cores), most_slots)))
    share = sum(len(core.cpus) for core in cores) // slot_count
    size = draw(st.one_of(st.none(), st.integers(1, share)))
    try:
        slots = assign_cpus(machine.threads, machine.allowed, slot_count, size, smt)
    except ValueError:
        size, slots = None, assign_cpus(machine.threads, machine.allowed, slot_count, None, smt)
    assert len(slots) == slot_count
    return Cut(machine, smt, size, cores, slots)


def cores_by_slot(slots: Slots, cores: Sequence[Core]) -> list[list[Core]]:
    return [[core for core in cores if set(core.cpus) & set(slot)] for slot in slots]


def homes_of(slots: Slots, cores: Sequence[Core]) -> list[int | str | None]:
    """Each slot's NUMA node, or "across"."""
    found = [{core.node for core in taken} for taken in cores_by_slot(slots, cores)]
    return [next(iter(nodes)) if len(nodes) == 1 else "across" for nodes in found]


# --- exhaustive search ---------------------------------------------------------------------------


def can_be_met(cores: Sequence[Core], homes: Sequence[int | str | None], size: int) -> bool:
    """Whether the cores can be handed out so that each slot has enough threads, at its home if it has one."""

    @cache
    def search(index: int, needs: tuple[tuple[str, int], ...]) -> bool:
        if not needs:
            return True
        if index == len(cores) or sum(len(core.cpus) for core in cores[index:]) < sum(n for _, n in needs):
            return False
        core = cores[index]
        for home, need in {*needs}:
            if home in ("across", repr(core.node)):
                rest = list(needs)
                rest.remove((home, need))
                left = need - len(core.cpus)
                if search(index + 1, tuple(sorted([*rest, (home, left)] if left > 0 else rest))):
                    return True
        return search(index + 1, needs)

    start = sorted(("across" if home == "across" else repr(home), size) for home in homes)
    return search(0, tuple(start))


def fits(cores: Sequence[Core], slot_count: int, size: int) -> bool:
    return can_be_met(cores, ["across"] * slot_count, size)


def most_slots_at_home(cores: Sequence[Core], slot_count: int, size: int) -> int:
    """How many slots can have a NUMA node of their own, so that all slots still fit."""
    nodes = sorted({core.node for core in cores}, key=repr)
    for at_home in range(slot_count, 0, -1):
        for homes in combinations_with_replacement(nodes, at_home):
            if can_be_met(cores, [*homes, *["across"] * (slot_count - at_home)], size):
                return at_home
    return 0


def adds_up(widths: Sequence[int], size: int) -> bool:
    """Whether some of the widths sum up to the size."""
    sums = {0}
    for width in widths:
        sums |= {one + width for one in sums}
    return size in sums


def common_mixes(cores: Sequence[Core], homes: Sequence[int | str | None], size: int) -> Iterator[Counter]:
    """Every choice of whole cores that all slots can have alike at their homes."""

    def kind(core: Core) -> tuple[int, int]:
        return len(core.cpus), core.siblings

    everywhere = Counter(map(kind, cores))
    kinds = sorted(everywhere)
    for counts in product(*(range(everywhere[one] // len(homes) + 1) for one in kinds)):
        if sum(one[0] * count for one, count in zip(kinds, counts, strict=True)) != size:
            continue
        mix = dict(zip(kinds, counts, strict=True))
        at_home = {home: homes.count(home) for home in homes if home != "across"}
        if all(
            mix[one] * slots <= sum(core.node == home and kind(core) == one for core in cores)
            for home, slots in at_home.items()
            for one in kinds
        ):
            yield Counter(mix)


# --- what holds on any machine -------------------------------------------------------------------


@any_machine
@given(cuts(machines()))
def test_no_cpu_is_in_two_slots(cut: Cut) -> None:
    cpus = [cpu for slot in cut.slots for cpu in slot]
    assert len(cpus) == len(set(cpus))


@any_machine
@given(cuts(machines()))
def test_slots_have_allowed_cpus_only(cut: Cut) -> None:
    assert {cpu for slot in cut.slots for cpu in slot} <= set(cut.machine.allowed)


@any_machine
@given(cuts(machines()))
def test_all_slots_have_the_size_that_was_asked_and_without_one_they_are_equal(cut: Cut) -> None:
    assert {len(slot) for slot in cut.slots} == {cut.size or len(cut.slots[0])}
    assert cut.slots == [sorted(slot) for slot in cut.slots]


@any_machine
@given(cuts(machines()))
def test_two_slots_never_share_a_core(cut: Cut) -> None:
    for core in cores_of(cut.machine, smt=True):
        assert sum(bool(set(core.cpus) & set(slot)) for slot in cut.slots) <= 1


@any_machine
@given(cuts(machines()))
def test_without_smt_a_slot_has_one_thread_of_each_of_its_cores(cut: Cut) -> None:
    used = {cpu for slot in cut.slots for cpu in slot}
    most = max(len(used & set(core.cpus)) for core in cores_of(cut.machine, smt=True))
    assert cut.smt or most == 1


@any_machine
@given(cuts(machines()))
def test_part_of_a_core_is_used_only_where_whole_ones_do_not_add_up(cut: Cut) -> None:
    taken_by_slot = cores_by_slot(cut.slots, cut.cores)
    idle = [core for core in cut.cores if not any(core in taken for taken in taken_by_slot)]
    for slot, taken in zip(cut.slots, taken_by_slot, strict=True):
        partial = [core for core in taken if not set(core.cpus) <= set(slot)]
        assert len(partial) <= 1
        nodes = {core.node for core in taken}
        within_reach = [len(c.cpus) for c in [*taken, *idle] if c.node in nodes or len(nodes) > 1]
        assert not partial or not adds_up(within_reach, len(slot))


@any_machine
@given(cuts(machines()), st.randoms(use_true_random=False))
def test_the_order_in_which_a_machine_is_described_changes_nothing(cut: Cut, random: Random) -> None:
    threads, allowed = list(cut.machine.threads), list(cut.machine.allowed)
    random.shuffle(threads)
    random.shuffle(allowed)
    assert assign_cpus(threads, allowed, len(cut.slots), cut.size, cut.smt) == cut.slots


@any_machine
@given(cuts(machines()))
def test_all_slots_have_the_same_mix_of_cores_where_their_nodes_have_it(cut: Cut) -> None:
    if any(common_mixes(cut.cores, homes_of(cut.slots, cut.cores), len(cut.slots[0]))):
        taken_by_slot = cores_by_slot(cut.slots, cut.cores)
        mixes = [Counter((len(c.cpus), c.siblings) for c in taken) for taken in taken_by_slot]
        assert all(mix == mixes[0] for mix in mixes)


# --- what exhaustive search on small machines confirms -------------------------------------------


@small_machine
@given(small_machines(), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_what_is_refused_does_not_fit_and_the_refusal_states_true_numbers(
    machine: Machine, slot_count: int, size: int, smt: bool
) -> None:
    cores = cores_of(machine, smt)
    try:
        assign_cpus(machine.threads, machine.allowed, slot_count, size, smt)
    except ValueError as error:
        numbers = [int(number) for number in re.findall(r"\d+", str(error))]
        usable = sum(len(core.cpus) for core in cores)
        fitting = max(count for count in range(slot_count) if fits(cores, count, size))
        assert numbers == [slot_count, size, slot_count * size, usable, len(cores), fitting]
        assert not fits(cores, slot_count, size)


@small_machine
@given(cuts(small_machines(), most_slots=4))
def test_without_a_size_slots_are_as_large_as_fits(cut: Cut) -> None:
    slots = assign_cpus(cut.machine.threads, cut.machine.allowed, len(cut.slots), None, cut.smt)
    larger = range(len(slots[0]) + 1, len(cut.machine.allowed) + 1)
    assert not any(fits(cut.cores, len(slots), size) for size in larger)


@small_machine
@given(cuts(small_machines(), most_slots=4))
def test_as_many_slots_as_possible_stay_on_one_numa_node(cut: Cut) -> None:
    at_home = sum(home != "across" for home in homes_of(cut.slots, cut.cores))
    assert at_home == most_slots_at_home(cut.cores, len(cut.slots), len(cut.slots[0]))


@small_machine
@given(cuts(small_machines(), most_slots=4))
def test_a_node_has_two_slots_less_than_another_only_if_it_is_full(cut: Cut) -> None:
    homes = homes_of(cut.slots, cut.cores)
    counts = {node: homes.count(node) for node in {core.node for core in cut.cores}}
    for node, count in counts.items():
        if "across" not in homes and count <= max(counts.values()) - 2:
            own = [core for core in cut.cores if core.node == node]
            assert not fits(own, count + 1, len(cut.slots[0]))


# --- machines to look at -------------------------------------------------------------------------


def test_one_slot_takes_everything() -> None:
    assert assign_cpus(machine(2, 4, 2), range(16), 1, None) == [list(range(16))]


def test_siblings_go_together() -> None:
    assert assign_cpus(machine(1, 4, 2), range(8), 4, 2) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_without_smt_only_first_siblings_are_used() -> None:
    assert assign_cpus(machine(1, 4, 2), range(8), 2, None, smt=False) == [[0, 1], [2, 3]]


def test_without_smt_a_core_whose_first_sibling_is_not_allowed_gives_its_second() -> None:
    assert assign_cpus(machine(1, 2, 2), [1, 2, 3], 2, 1, smt=False) == [[1], [2]]


def test_slots_take_turns_on_the_numa_nodes() -> None:
    assert assign_cpus(machine(2, 4, 1), range(8), 2, None) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert assign_cpus(machine(2, 4, 1), range(8), 4, 2) == [[0, 1], [4, 5], [2, 3], [6, 7]]


def test_a_large_node_gets_no_more_slots_than_a_small_one_that_has_room() -> None:
    threads = described([(0, 1)] * 8 + [(3, 1)] * 4)
    assert assign_cpus(threads, range(12), 4, 2) == [[0, 1], [8, 9], [2, 3], [10, 11]]


def test_one_slot_that_fits_no_node_does_not_drive_the_others_across() -> None:
    threads = described([(0, 1)] * 3 + [(1, 1)] * 3)
    assert assign_cpus(threads, range(6), 3, 2) == [[0, 1], [3, 4], [2, 5]]


def test_a_slot_leaves_its_node_if_half_a_core_there_is_what_another_slot_lacks() -> None:
    # 15 threads for 3 slots of 5. Node 0 alone would halve a core of its 4; node 2 is a slot without waste
    threads = described([(0, 2)] * 4 + [(1, 1)] * 2 + [(2, 1)] * 5)
    assert assign_cpus(threads, range(15), 3, 5) == [[10, 11, 12, 13, 14], [0, 1, 2, 3, 8], [4, 5, 6, 7, 9]]


def test_a_slot_larger_than_a_node_takes_nodes_of_one_socket() -> None:
    # node 0 is on the other socket than 1 and 2, and as large
    threads = machine(1, 4, 1) + [
        {"cpu": 4 + n, "core": 4 + n, "socket": 1, "numa": 1 + n // 4} for n in range(8)
    ]
    threads += [{"cpu": 12 + n, "core": 12 + n, "socket": 0, "numa": 3} for n in range(4)]
    slots = assign_cpus(threads, range(16), 2, 8)
    assert slots == [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]]


def test_big_and_little_cores_are_dealt_out_alike() -> None:
    big_and_little = described([(0, 2)] * 4 + [(0, 1)] * 4)
    assert assign_cpus(big_and_little, range(12), 4, None) == [[0, 1, 8], [2, 3, 9], [4, 5, 10], [6, 7, 11]]
    assert assign_cpus(big_and_little, range(12), 4, 2, smt=False) == [[0, 8], [2, 9], [4, 10], [6, 11]]


def test_a_big_core_stays_idle_rather_than_make_slots_unlike() -> None:
    slots = assign_cpus(described([(0, 2)] * 3 + [(0, 1)] * 4), range(10), 2, 4)
    assert slots == [[0, 1, 6, 7], [2, 3, 8, 9]]


def test_where_no_mix_is_common_to_all_they_differ_by_one_core() -> None:
    # 6 big and 4 little for 4 slots of 4: not two slots of big ones, one of both and one of little ones
    slots = assign_cpus(described([(0, 2)] * 6 + [(0, 1)] * 4), range(16), 4, 4)
    assert sorted(sum(cpu < 12 for cpu in slot) // 2 for slot in slots) == [1, 1, 2, 2]


def test_a_little_core_is_taken_before_a_big_one_is_halved() -> None:
    assert assign_cpus(described([(0, 2)] * 4 + [(0, 1)] * 2), range(10), 2, 3) == [[0, 1, 8], [2, 3, 9]]


def test_no_more_big_cores_are_halved_than_little_ones_are_lacking() -> None:
    slots = assign_cpus(described([(0, 2)] * 5 + [(0, 1)] * 2), range(12), 3, 3)
    assert slots == [[0, 1, 10], [2, 3, 11], [4, 5, 6]]


def test_single_threads_go_to_one_slot_if_a_wide_core_can_be_the_other() -> None:
    assert assign_cpus(described([(0, 4)] + [(0, 1)] * 3), range(7), 2, 3) == [[4, 5, 6], [0, 1, 2]]


def test_a_thread_that_does_not_know_its_core_stays_with_a_sibling_that_does() -> None:
    threads = [
        {"cpu": 0, "core": None, "socket": None, "numa": None},
        {"cpu": 1, "core": None, "socket": None, "numa": None},
        {"cpu": 2, "core": 0, "socket": 0, "numa": 0},
    ]
    assert assign_cpus(threads, range(3), 2, 1) == [[0], [1]]
    with pytest.raises(ValueError, match="on 2 cores"):
        assign_cpus(threads, range(3), 3, 1)


def test_a_machine_that_tells_nothing_is_cut_by_cpu_numbers() -> None:
    threads = [{"cpu": n, "core": None, "socket": None, "numa": None} for n in range(4)]
    assert assign_cpus(threads, range(4), 2, None) == [[0, 1], [2, 3]]


def test_cpus_of_an_unknown_node_are_not_mixed_with_those_of_a_known_one() -> None:
    threads = described([(0, 1)] * 4)
    threads[1]["numa"] = threads[3]["numa"] = None
    assert sorted(assign_cpus(threads, range(4), 2, None)) == [[0, 2], [1, 3]]


# --- refusals ------------------------------------------------------------------------------------


def test_too_many_cpus_are_refused_with_the_arithmetic() -> None:
    expected = r"3 slots x 2 CPUs = 6 CPU threads, expected at most 4 usable threads on 4 cores"
    with pytest.raises(ValueError, match=expected):
        assign_cpus(machine(1, 4, 1), range(4), 3, 2)


def test_threads_enough_on_too_few_cores_are_refused_with_what_would_fit() -> None:
    expected = (
        r"3 slots x 1 CPUs = 3 CPU threads, expected at most 4 usable threads on 2 cores "
        r"\(two slots never share a core, so 2 of these slots fit\)"
    )
    with pytest.raises(ValueError, match=expected):
        assign_cpus(machine(1, 2, 2), range(4), 3, None)


@pytest.mark.parametrize(("slot_count", "size"), [(0, 1), (-1, None), (1, 0), (1, -2)])
def test_less_than_one_slot_or_cpu_is_refused(slot_count: int, size: int | None) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        assign_cpus(machine(1, 2, 1), range(2), slot_count, size)


def test_no_usable_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 0 usable threads on 0 cores"):
        assign_cpus(machine(1, 2, 1), [], 1, None)
