"""From what is declared and what is physical to one plan per node. Pure: no I/O, no clock, no Ray.

All nodes are planned at once, because equal slots have the smallest share of the whole cluster. Reading
order: make_plans, then the share of each node, its slots, what Ray is told (ray_flags.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raytools import __version__
from raytools.config import ClusterConfig, NfsStorage
from raytools.errors import PlanError
from raytools.inventory import Host
from raytools.node.ray_temp_dir import temp_dir_of
from raytools.node.slots import assign_cpus
from raytools.ray_flags import environment_of_ray, isolation_arguments, start_arguments
from raytools.units import format_size

MIB = 2**20
MEMORY_STEP_BYTES = 256 * MIB
SMALLEST_SLOT_BYTES = 512 * MIB
OBJECT_STORE_RANGE_BYTES = (256 * MIB, 2048 * MIB)
SMALLEST_OBJECT_STORE_BYTES = 80 * MIB  # Ray refuses less than 75 MiB
WORKER_PORTS_PER_CPU = 4  # idle and starting workers hold a port each, drivers too
MEMORY_TOLERANCE = 0.01  # of what a node had when it was set up: between kernels and boots of one machine
HEAD_PORTS = ("gcs", "dashboard", "client", "dashboard_metrics", "autoscaler_metrics")

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class EnvironmentRef:
    """The environment all nodes use: a locked one by its id and digest, or an existing one by its prefix.

    `has_grpcio`: Ray can serve clients (`ray://`) from it; asked to without, `ray start` fails. An existing
    one is taken to have it.
    """

    name: str
    id: str
    lock_digest: str | None = None
    prefix: str | None = None
    has_grpcio: bool = True

    def to_json(self, root: str) -> dict[str, Any]:
        """As in node.json, for a node with this root."""
        prefix = self.prefix or f"{root}/envs/{self.id}"
        return {"id": self.id, "prefix": prefix, "lock_digest": self.lock_digest}


@dataclass(frozen=True)
class Slot:
    """An exclusive share of a node: kernel CPU numbers, memory, GPU indices."""

    index: int
    cpus: tuple[int, ...]
    memory_bytes: int
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class NodePlan:
    """What one node is to be. `to_json()` is node.json; `warnings` are for people and not part of it."""

    name: str
    role: str
    cluster: str
    address: str
    root: str
    user: str | None  # who runs Ray; None: whoever connects to the node
    environment: EnvironmentRef | None
    declared: Mapping[str, int | None]
    physical: Mapping[str, int | None]
    slots: tuple[Slot, ...]
    object_store_bytes: int
    ray: Mapping[str, Any]
    runs: Mapping[str, Any]
    storage: Mapping[str, Any]
    waive: tuple[Mapping[str, str], ...]
    warnings: tuple[str, ...] = ()

    @property
    def logical(self) -> dict[str, int]:
        """What Ray is told to hand out."""
        return {
            "CPU": sum(len(slot.cpus) for slot in self.slots),
            "GPU": sum(len(slot.gpus) for slot in self.slots),
            "memory": sum(slot.memory_bytes for slot in self.slots),
            "object_store_memory": self.object_store_bytes,
            "run_slot": len(self.slots),
        }

    def to_json(self) -> dict[str, Any]:
        """node.json (`raytools.node/1`)."""
        environment = self.environment.to_json(self.root) if self.environment else None
        return {
            "schema": "raytools.node/1",
            "cluster": self.cluster,
            "name": self.name,
            "role": self.role,
            "address": self.address,
            "root": self.root,
            "user": self.user,
            "python": f"{environment['prefix']}/bin/python" if environment else None,
            "toolkit": f"{self.root}/toolkit/{__version__}",
            "temp_dir": temp_dir_of(self.root),
            "environment": environment,
            "declared": dict(self.declared),
            "physical": dict(self.physical),
            "slots": [
                {**asdict(slot), "cpus": list(slot.cpus), "gpus": list(slot.gpus)} for slot in self.slots
            ],
            "logical": self.logical,
            "ray": dict(self.ray),
            "runs": dict(self.runs),
            "storage": dict(self.storage),
            "doctor": {"waive": [dict(waiver) for waiver in self.waive]},
        }


def as_set_up(facts: Facts, installed: Mapping[str, Any] | None) -> Facts:
    """Facts with the memory that the node had when it was set up, where it has that still but for some pages.

    What the kernel keeps for itself differs from boot to boot; a plan that followed it would be another after
    each, and a run of the playbook would never have nothing to do.

    Args:
        facts: of now.
        installed: the node's node.json; None if it has none.
    """
    before = ((installed or {}).get("physical") or {}).get("memory_bytes")
    now = facts["memory"]["usable_bytes"]
    if not before or now is None or abs(now - before) > before * MEMORY_TOLERANCE:
        return facts
    return {**facts, "memory": {**facts["memory"], "usable_bytes": before}}


def make_plans(
    configs_by_host: Mapping[str, ClusterConfig],
    hosts: Sequence[Host],
    facts_by_host: Mapping[str, Facts],
    environment: EnvironmentRef | None,
) -> dict[str, NodePlan]:
    """The plans of all nodes, by host name, the head first.

    Args:
        configs_by_host: cluster.yaml with each host's variables merged in (inventory.host_configs).
        hosts: of the inventory.
        facts_by_host: `raytools.facts/1` of each host.
        environment: what all nodes use; None while nothing is locked.

    Raises:
        PlanError: what is declared does not fit a machine; one line per problem, with the arithmetic.
    """
    ordered = sorted(hosts, key=lambda host: host.role != "head")
    nodes = [_Node(host, configs_by_host[host.name], facts_by_host.get(host.name)) for host in ordered]
    problems = [problem for node in nodes for problem in _problems(node)]
    _raise_if_any(problems)
    _raise_if_any(_same_addresses(nodes))
    shares = {node.name: _share(node) for node in nodes}
    smallest = _smallest([shares[node.name] for node in nodes if node.config.slots.equal])
    plans: dict[str, NodePlan] = {}
    for node in nodes:
        share = smallest if node.config.slots.equal and smallest else shares[node.name]
        plans[node.name] = _plan(node, nodes, share, environment)
    return plans


# ------------------------------------------------------------------------------------- one node's numbers


@dataclass(frozen=True)
class _Share:
    """What one slot of a node can have at most."""

    cpus: int
    memory_bytes: int


@dataclass(frozen=True)
class _Node:
    """A host with what is declared and measured about it, and the numbers that follow."""

    host: Host
    config: ClusterConfig
    facts: Facts | None

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def measured(self) -> Facts:
        assert self.facts is not None, "checked by _problems"
        return self.facts

    @property
    def address(self) -> str | None:
        measured: str | None = (self.measured.get("network") or {}).get("primary_address")
        return self.host.cluster_address or measured

    @property
    def usable_cpus(self) -> int:
        return int(self.measured["cpu"]["usable"])

    @property
    def cpus(self) -> int:
        """CPU threads for all slots together."""
        declared = self.config.nodes.cpus
        offered = self.usable_cpus if declared is None else declared
        return offered - self.config.nodes.system_reserved.cpus

    @property
    def usable_bytes(self) -> int:
        return int(self.measured["memory"]["usable_bytes"])

    @property
    def offered_bytes(self) -> int:
        declared = self.config.nodes.memory
        return self.usable_bytes if declared is None else declared

    @property
    def object_store_bytes(self) -> int:
        """A tenth of the memory within bounds; /dev/shm, where it lives, has to stay half free for runs."""
        low, high = OBJECT_STORE_RANGE_BYTES
        size_bytes = min(max(self.offered_bytes // 10, low), high)
        shm_bytes = self.measured["memory"].get("shm_total_bytes")
        if shm_bytes is not None:
            size_bytes = min(size_bytes, shm_bytes // 2)
        return size_bytes // MIB * MIB

    @property
    def slots_bytes(self) -> int:
        """Memory for all slots together."""
        return self.offered_bytes - self.config.nodes.system_reserved.memory - self.object_store_bytes

    @property
    def gpus(self) -> list[int]:
        """Indices of the GPUs for all slots together."""
        indices = [int(gpu["index"]) for gpu in self.measured.get("gpus") or []]
        declared = self.config.nodes.gpus
        return indices if declared is None else indices[:declared]


def _share(node: _Node) -> _Share:
    slots = node.config.slots
    most = len(_assigned(node, None)[0])
    memory_bytes = node.slots_bytes // slots.per_node // MEMORY_STEP_BYTES * MEMORY_STEP_BYTES
    return _Share(min(most, node.cpus // slots.per_node), memory_bytes)


def _smallest(shares: Sequence[_Share]) -> _Share | None:
    if not shares:
        return None
    return _Share(min(share.cpus for share in shares), min(share.memory_bytes for share in shares))


def _assigned(node: _Node, cpus_per_slot: int | None) -> list[list[int]]:
    cpu, slots = node.measured["cpu"], node.config.slots
    return assign_cpus(cpu["threads"], cpu["allowed"], slots.per_node, cpus_per_slot, slots.smt)


# --------------------------------------------------------------------------------------------- problems


def _raise_if_any(problems: Sequence[str]) -> None:
    if problems:
        raise PlanError("\n".join(problems))


def _problems(node: _Node) -> Iterator[str]:
    """What makes a plan for this node impossible, each with its arithmetic and what to change."""
    if node.facts is None:
        yield f"{node.name}: there are no facts of this node. Is it reachable? raytools facts"
        return
    if node.address is None:
        yield f"{node.name}: found no address other nodes could use. Set raytools_address in the inventory"
    yield from _cpu_problems(node)
    yield from _memory_problems(node)
    yield from _gpu_problems(node)


def _cpu_problems(node: _Node) -> Iterator[str]:
    declared, usable = node.config.nodes.cpus, node.usable_cpus
    reserved, per_node = node.config.nodes.system_reserved.cpus, node.config.slots.per_node
    if declared is not None and declared > usable:
        yield (
            f"{node.name}: nodes.cpus declares {declared} CPUs, its kernel lets it use {usable} "
            f"({declared} - {usable} = {declared - usable} too many). Write nodes.cpus: {usable} or auto"
        )
        return
    if node.cpus < per_node:
        yield (
            f"{node.name}: {node.cpus + reserved} CPUs - {reserved} reserved = {node.cpus}, "
            f"too few for {_counted(per_node)}. Lower slots.per_node or nodes.system_reserved.cpus"
        )
        return
    try:
        _assigned(node, None)
    except ValueError as error:
        yield f"{node.name}: {error}. Lower slots.per_node"
    first, last = node.config.ray.ports.workers
    if last - first + 1 < WORKER_PORTS_PER_CPU * node.cpus:
        yield (
            f"{node.name}: ray.ports.workers has {last - first + 1} ports for {node.cpus} CPUs, "
            f"expected at least {WORKER_PORTS_PER_CPU} for each ({WORKER_PORTS_PER_CPU * node.cpus})"
        )


def _memory_problems(node: _Node) -> Iterator[str]:
    declared, usable = node.config.nodes.memory, node.usable_bytes
    reserved, per_node = node.config.nodes.system_reserved.memory, node.config.slots.per_node
    if declared is not None and declared > usable:
        yield (
            f"{node.name}: nodes.memory declares {format_size(declared)}, its kernel lets it use "
            f"{format_size(usable)} ({format_size(declared - usable)} too much). "
            f"Write nodes.memory: {usable // MIB}MiB or auto"
        )
        return
    store = node.object_store_bytes
    if store < SMALLEST_OBJECT_STORE_BYTES:
        yield (
            f"{node.name}: half of /dev/shm is {format_size(store)}, too little for Ray's object store, "
            f"expected at least {format_size(SMALLEST_OBJECT_STORE_BYTES)}. "
            "Enlarge it: mount -o remount,size=1G /dev/shm"
        )
    elif node.slots_bytes < per_node * SMALLEST_SLOT_BYTES:
        yield (
            f"{node.name}: {format_size(node.offered_bytes)} - {format_size(reserved)} reserved - "
            f"{format_size(store)} object store = {format_size(node.slots_bytes)} for {_counted(per_node)}, "
            f"expected at least {format_size(SMALLEST_SLOT_BYTES)} for each. "
            "Lower slots.per_node or nodes.system_reserved.memory"
        )


def _gpu_problems(node: _Node) -> Iterator[str]:
    declared, gpus = node.config.nodes.gpus, node.measured.get("gpus")
    if not declared:
        return
    if gpus is None:
        yield f"{node.name}: nodes.gpus declares {declared}, but its GPUs could not be counted"
    elif declared > len(gpus):
        yield (
            f"{node.name}: nodes.gpus declares {declared}, its driver shows {len(gpus)} "
            f"({declared} - {len(gpus)} = {declared - len(gpus)} missing). "
            f"Write nodes.gpus: {len(gpus)} or auto"
        )


def _counted(slots: int) -> str:
    return "1 slot" if slots == 1 else f"{slots} slots"


def _same_addresses(nodes: Sequence[_Node]) -> list[str]:
    seen: dict[str | None, str] = {}
    problems = []
    for node in nodes:
        if node.address in seen:
            problems.append(
                f"{node.name}: its address {node.address} is also that of {seen[node.address]}. "
                "Set raytools_address in the inventory"
            )
        seen.setdefault(node.address, node.name)
    return problems


# ----------------------------------------------------------------------------------------------- plans


def _plan(node: _Node, nodes: Sequence[_Node], share: _Share, environment: EnvironmentRef | None) -> NodePlan:
    slots = _slots(node, share)
    ray, warnings = _ray(node, nodes[0], slots, serves_clients=environment is None or environment.has_grpcio)
    config = node.config
    return NodePlan(
        name=node.name,
        role=node.host.role,
        cluster=config.cluster,
        address=str(node.address),
        root=node.host.root,
        user=node.host.service_user,
        environment=environment,
        declared={
            "cpus": config.nodes.cpus,
            "memory_bytes": config.nodes.memory,
            "gpus": config.nodes.gpus,
        },
        physical={
            "cpus": node.usable_cpus,
            "memory_bytes": node.usable_bytes,
            "gpus": None if node.measured.get("gpus") is None else len(node.measured["gpus"]),
        },
        slots=slots,
        object_store_bytes=node.object_store_bytes,
        ray=ray,
        runs={
            "time_s": config.runs.time,
            "grace_s": config.runs.grace,
            "retries": config.runs.retries,
            "env": dict(config.runs.env),
        },
        storage=_storage(node, nodes),
        waive=tuple(waiver.model_dump() for waiver in config.doctor.waive),
        warnings=(*warnings, *_idle(node, slots)),
    )


def _slots(node: _Node, share: _Share) -> tuple[Slot, ...]:
    try:
        cpus_by_slot = _assigned(node, share.cpus)
    except ValueError as error:
        raise PlanError(f"{node.name}: {error}. Set slots.equal: false, or slots.per_node") from error
    gpus = node.gpus
    each = len(gpus) // len(cpus_by_slot)
    return tuple(
        Slot(index, tuple(cpus), share.memory_bytes, tuple(gpus[index * each : (index + 1) * each]))
        for index, cpus in enumerate(cpus_by_slot)
    )


def _ray(
    node: _Node, head: _Node, slots: Sequence[Slot], *, serves_clients: bool
) -> tuple[dict[str, Any], list[str]]:
    config = node.config.ray
    # where the head listens is the head's to say, whatever a worker's own variables are
    ports = config.ports.single() | {name: getattr(head.config.ray.ports, name) for name in HEAD_PORTS}
    if not serves_clients:
        del ports["client"]
    token_path = f"{node.host.root}/token" if config.auth == "token" else None
    flags, warnings = environment_of_ray(
        config.env,
        ports,
        auth=config.auth,
        token_path=token_path,
        usable_bytes=node.usable_bytes,
        reserved_bytes=node.config.nodes.system_reserved.memory,
    )
    gcs_address = f"{_bracketed(str(head.address))}:{ports['gcs']}"
    arguments = start_arguments(
        is_head=node.host.role == "head",
        address=str(node.address),
        gcs_address=gcs_address,
        ports=ports,
        worker_ports=config.ports.workers,
        cpus=sum(len(slot.cpus) for slot in slots),
        gpus=sum(len(slot.gpus) for slot in slots),
        memory_bytes=sum(slot.memory_bytes for slot in slots),
        object_store_bytes=node.object_store_bytes,
        slot_count=len(slots),
        temp_dir=temp_dir_of(node.host.root),
        dashboard_host=config.dashboard.host if config.dashboard.enabled else None,
        environment=flags,
        log_to_driver=config.log_to_driver,
    )
    if config.isolation:
        reserved = node.config.nodes.system_reserved
        arguments += isolation_arguments(
            node.config.cluster, reserved_cpus=reserved.cpus, reserved_bytes=reserved.memory
        )
    ray = {
        "gcs_address": gcs_address,
        "start_args": arguments,
        "env": flags,
        "ports": {**ports, "workers": list(config.ports.workers)},
        "dashboard": {"enabled": config.dashboard.enabled, "host": config.dashboard.host},
        "auth": config.auth,
        "token_path": token_path,
    }
    return ray, [f"{node.name}: {warning}" for warning in warnings]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _storage(node: _Node, nodes: Sequence[_Node]) -> dict[str, Any]:
    storage = node.config.storage
    if not isinstance(storage, NfsStorage):
        return {"type": storage.type, "path": getattr(storage, "path", node.host.root)}
    by_name = {other.name: str(other.address) for other in nodes} | {"head": str(nodes[0].address)}
    server = by_name.get(storage.server, storage.server)  # else a machine outside of the cluster
    return {
        "type": "nfs",
        "path": storage.mount,
        "server": server,
        "serves": server == str(node.address),
        "export": storage.export,
        "options": list(storage.options),
        "unit": systemd_path_name(storage.mount),
    }


def systemd_path_name(path: str) -> str:
    """What systemd calls a path in the names of its units (`systemd-escape --path`; systemd.unit(5)).

    Args:
        path: absolute.
    """
    plain = "/".join(part for part in path.split("/") if part)
    escaped = []
    for position, byte in enumerate(plain.encode()):
        letter = chr(byte)
        if letter == "/":
            escaped.append("-")
        elif (letter.isascii() and letter.isalnum()) or letter in ":_" or (letter == "." and position > 0):
            escaped.append(letter)
        else:
            escaped.append(f"\\x{byte:02x}")
    return "".join(escaped) or "-"


def _idle(node: _Node, slots: Sequence[Slot]) -> Iterator[str]:
    """What no slot gets though nothing reserves it; with smt: false idle siblings are what was asked for."""
    used = sum(len(slot.cpus) for slot in slots)
    why = (
        "all slots of the cluster are equal"
        if node.config.slots.equal
        else f"{_counted(len(slots))} of a size"
    )
    if used < node.cpus and node.config.slots.smt:
        yield f"{node.name}: {node.cpus - used} of {node.cpus} CPUs are in no slot ({why})"
    gpus = sum(len(slot.gpus) for slot in slots)
    if gpus < len(node.gpus):
        yield f"{node.name}: {len(node.gpus) - gpus} of {len(node.gpus)} GPUs are in no slot ({why})"
