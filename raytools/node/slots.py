"""Which CPU threads belong to which slot. Pure: a described machine in, CPU numbers out.

Rules; an earlier one wins over a later one:

1. Two slots never share a core: a sibling thread is half a CPU of its neighbour.
2. As many slots as possible stay on one NUMA node each.
3. The nodes have equal numbers of slots, as far as their sizes allow.
4. A slot has whole cores; part of a core only where whole ones do not add up to its size.
5. All slots have the same mix of cores, as their runs are compared with each other.

For rule 5 the number of threads of a core is the only sign of big and little cores that the facts give: a
core with two threads is another kind than one with one. Big and little cores without SMT look alike.

Reading order: assign_cpus, _place, then what is counted (_homes, _deal, _same_mix), then which cores it is.
Whether slots fit is exact where they may use one or two threads of a core, or equally many of all cores.
Where three or more (POWER) stand beside two, a few plans are refused or made smaller that would fit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

Thread = Mapping[str, "int | None"]
UNKNOWN = -1  # of a node or socket; CPUs of an unknown node count as one more node


class Kind(NamedTuple):
    """What tells cores apart. Sorts by width."""

    width: int  # threads that slots may use
    siblings: int  # threads it has


class Core(NamedTuple):
    """One core. Sorts by its lowest usable CPU number."""

    cpus: tuple[int, ...]  # the usable ones, ascending
    siblings: int
    node: int
    socket: int

    @property
    def kind(self) -> Kind:
        return Kind(len(self.cpus), self.siblings)


Mix = Counter[Kind]  # how many cores of each kind


def assign_cpus(
    threads: Sequence[Thread],
    allowed: Iterable[int],
    slot_count: int,
    cpus_per_slot: int | None,
    smt: bool = True,
) -> list[list[int]]:
    """CPU numbers of each slot, ascending.

    Args:
        threads: one mapping per CPU thread of the machine, as facts_cpu.threads gives them: cpu, core (the
            lowest CPU number of the core), socket, numa; the last three are None where nobody tells.
        allowed: the CPU numbers that may be used; those without a mapping are ignored.
        slot_count: how many slots the node is cut into.
        cpus_per_slot: CPU threads of each slot; None takes the most that fit.
        smt: False uses one thread of each core and leaves its siblings idle.

    Raises:
        ValueError: the slots do not fit; the message holds the arithmetic.
    """
    if slot_count < 1:
        raise ValueError(f"found {slot_count} slots per node, expected at least 1")
    if cpus_per_slot is not None and cpus_per_slot < 1:
        raise ValueError(f"found {cpus_per_slot} CPUs per slot, expected at least 1")
    cores = _cores(threads, set(allowed), smt)
    most = _width(_stock(cores)) // slot_count
    for size in range(most, 0, -1) if cpus_per_slot is None else [cpus_per_slot]:
        slots = _place(cores, slot_count, size)
        if slots:
            return slots
    raise ValueError(_does_not_fit(cores, slot_count, cpus_per_slot or 1))


def _cores(threads: Sequence[Thread], allowed: set[int], smt: bool) -> list[Core]:
    members: dict[int, list[tuple[int, Thread]]] = defaultdict(list)
    for thread in threads:
        cpu, core = thread["cpu"], thread["core"]
        assert cpu is not None, "a thread is known by its CPU number"
        # A core goes by its lowest CPU number. So a thread that does not know its core still joins the
        # siblings that name it, and is a core of its own if none does.
        members[cpu if core is None else core].append((cpu, thread))
    cores = []
    for siblings in members.values():
        numbers = {cpu for cpu, _ in siblings}
        usable = sorted(numbers & allowed)
        if usable:
            node, socket = (_known(name, siblings) for name in ("numa", "socket"))
            cores.append(Core(tuple(usable if smt else usable[:1]), len(numbers), node, socket))
    return sorted(cores)


def _known(name: str, siblings: Iterable[tuple[int, Thread]]) -> int:
    """What any of the siblings knows; the lowest number if they disagree, so that the core stays one."""
    values = (thread[name] for _, thread in siblings)
    return min((value for value in values if value is not None), default=UNKNOWN)


def _stock(cores: Iterable[Core]) -> Mix:
    return Counter(core.kind for core in cores)


def _width(mix: Mix) -> int:
    return sum(kind.width * count for kind, count in mix.items())


def _place(cores: Sequence[Core], slot_count: int, size: int) -> list[list[int]]:
    """The CPUs of each slot: first the slots of one node each, node by turns, then those across nodes.

    Empty if they do not fit.
    """
    stocks = {node: _stock(c for c in cores if c.node == node) for node in sorted({c.node for c in cores})}
    if not _deal(_stock(cores), slot_count, size):
        return []
    homes = _homes(stocks, slot_count, size)
    across = slot_count - sum(homes.values())
    same = _same_mix(stocks, homes, slot_count, size)
    mixes = {
        node: [same] * count if same else _deal(stocks[node], count, size) for node, count in homes.items()
    }
    rest = [same] * across if same else _deal(_left_over(stocks, homes, size), across, size)
    free = list(cores)
    slots = []
    for turn in range(slot_count):
        for node in (node for node, count in homes.items() if turn < count):
            slots.append(_take(free, [core for core in free if core.node == node], mixes[node][turn], size))
    for mix in rest:
        slots.append(_take(free, list(_nearest_first(free)), mix, size))
    return slots


# ------------------------------------------------------------------------- how many cores of which kind


def _deal(stock: Mix, slot_count: int, size: int) -> list[Mix]:
    """Cores for slots of one size, like cards: the widest first, to the slot that still needs most.

    Empty if they do not suffice. Only what whole cores leave open gets part of a core.
    """
    mixes: list[Mix] = [Counter() for _ in range(slot_count)]
    need = [size] * slot_count
    idle: list[Kind] = []  # wider than what any slot still needs: each of them could finish one slot
    for kind in sorted(stock.elements(), reverse=True):
        takers = [slot for slot in range(slot_count) if need[slot] >= kind.width]
        if not takers:
            idle.append(kind)
            continue
        # once some are idle, finish slots that need little: an idle core makes up for much as for little
        slot = (min if idle else max)(takers, key=need.__getitem__)
        mixes[slot][kind] += 1
        need[slot] -= kind.width
    for slot in (slot for slot in range(slot_count) if need[slot] > 0):
        if not idle:
            return []
        mixes[slot][idle.pop()] += 1
    return mixes


def _homes(stocks: Mapping[int, Mix], slot_count: int, size: int) -> dict[int, int]:
    """How many slots each NUMA node has for itself, the node with most threads first; the rest lie across."""
    room = {node: _room(stock, slot_count, size) for node, stock in stocks.items()}
    homes = dict.fromkeys(sorted(stocks, key=lambda node: (-_width(stocks[node]), node)), 0)
    for _ in range(min(slot_count, sum(room.values()))):
        homes[min((node for node in homes if homes[node] < room[node]), key=homes.__getitem__)] += 1

    def wasted(node: int) -> tuple[int, int]:
        dealt = _deal(stocks[node], homes[node], size)
        return sum(map(_width, dealt)) - homes[node] * size, homes[node]

    # Half cores that slots on one node leave idle may be what slots across nodes lack
    while not _suffices(_left_over(stocks, homes, size), slot_count - sum(homes.values()), size):
        homes[max((node for node in homes if homes[node]), key=wasted)] -= 1
    return homes


def _room(stock: Mix, at_most: int, size: int) -> int:
    """How many slots fit into these cores."""
    start = min(at_most, _width(stock) // size, stock.total())
    return next((count for count in range(start, 0, -1) if _suffices(stock, count, size)), 0)


def _suffices(stock: Mix, slot_count: int, size: int) -> bool:
    return slot_count == 0 or bool(_deal(stock, slot_count, size))


def _left_over(stocks: Mapping[int, Mix], homes: Mapping[int, int], size: int) -> Mix:
    left: Mix = sum(stocks.values(), Counter())
    for node, count in homes.items():
        left -= sum(_deal(stocks[node], count, size), Counter())
    return left


def _same_mix(stocks: Mapping[int, Mix], homes: Mapping[int, int], slot_count: int, size: int) -> Mix | None:
    """Whole cores that every slot can have alike; None if there is no such mix. Wide ones are preferred."""
    everywhere: Mix = sum(stocks.values(), Counter())
    mix: Mix = Counter()
    need = size
    for kind in sorted(everywhere, reverse=True):
        shares = [stocks[node][kind] // count for node, count in homes.items() if count]
        mix[kind] = min(everywhere[kind] // slot_count, need // kind.width, *shares)
        need -= mix[kind] * kind.width
    return mix if need == 0 else None


# ------------------------------------------------------------------------------------- which cores it is


def _take(free: list[Core], candidates: Iterable[Core], mix: Mix, size: int) -> list[int]:
    """Moves the cores of one slot out of `free`: the first candidates of each kind. Returns their CPUs."""
    wanted = Counter(mix)
    chosen = []
    for core in candidates:
        if wanted[core.kind]:
            wanted[core.kind] -= 1
            chosen.append(core)
            free.remove(core)
    spare = sum(len(core.cpus) for core in chosen) - size
    if spare:  # one core stays half used: the narrowest that can do without so many
        split = min((core for core in reversed(chosen) if len(core.cpus) > spare), key=lambda c: len(c.cpus))
        chosen[chosen.index(split)] = split._replace(cpus=split.cpus[:-spare])
    return sorted(cpu for core in chosen for cpu in core.cpus)


def _nearest_first(free: Sequence[Core]) -> Iterator[Core]:
    """For a slot across nodes: the emptiest node's cores, then those of other nodes, first on its socket."""
    threads: Counter[int] = Counter()
    sockets: dict[int, int] = {}
    for core in free:
        threads[core.node] += len(core.cpus)
        sockets.setdefault(core.node, core.socket)
    first = min(sockets, key=lambda node: (-threads[node], sockets[node], node))

    def distance(core: Core) -> tuple[bool, bool, int, int]:
        socket = sockets[core.node]
        return core.node != first, socket != sockets[first], -threads[core.node], core.node

    yield from sorted(free, key=distance)


def _does_not_fit(cores: Sequence[Core], slot_count: int, size: int) -> str:
    stock = _stock(cores)
    return (
        f"found {slot_count} slots x {size} CPUs = {slot_count * size} CPU threads, "
        f"expected at most {_width(stock)} usable threads on {len(cores)} cores "
        f"(two slots never share a core, so {_room(stock, slot_count, size)} of these slots fit)"
    )
