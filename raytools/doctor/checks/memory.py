"""RT2xx: memory that is declared is there, fits together, and is what Ray schedules; shared memory; swap."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from raytools.doctor.checks.cpu import logical_count
from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Skipped
from raytools.plan import MEMORY_TOLERANCE
from raytools.ray_flags import THRESHOLD
from raytools.units import format_size

# Ray keeps memory in units of its own and may round
LOGICAL_TOLERANCE_BYTES = 1024
# Slots are rounded down to 256 MiB: MemTotal of two like machines may lie on two sides of a step
ALIKE_SHARE = 0.02
MONITOR_INTERVAL = "RAY_memory_monitor_refresh_ms"
_RAYS_THRESHOLD = "0.95"
ALIKE_BYTES = 512 * 2**20


def amounts(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT201: declared <= physical, logical = planned, and all shares together fit."""
    memory = node.need_facts()["memory"]
    physical = memory["usable_bytes"]
    if physical is None:
        raise Skipped("the node's memory could not be measured")
    declared, logical = node.config.nodes.memory, logical_count(cluster.logical(node), "memory")
    values = {"declared": "auto" if declared is None else declared, "physical": physical, "logical": logical}
    said = f"memory: {_said(declared, memory, logical)}"
    if declared is not None and declared > physical:
        fix = f"Set nodes.memory: {physical // 2**20}MiB (or auto) in cluster.yaml, or enlarge the machine"
        message = f"{said}. More is declared than there is (tolerance 0)"
        yield Finding("RT201", "error", node.name, message, fix, **values)
    plan = node.plan or node.installed
    planned = plan["logical"].get("memory") if plan else None
    store = logical_count(cluster.logical(node), "object_store_memory") or 0
    before = node.installed["physical"]["memory_bytes"] if node.installed else physical
    if logical is not None and planned is not None and abs(logical - planned) > LOGICAL_TOLERANCE_BYTES:
        message = f"{said}. Ray schedules {format_size(logical)} where the plan has {format_size(planned)}"
        yield Finding("RT201", "error", node.name, message, PROVISION, **values)
    elif logical is not None and logical + store > physical:
        message = f"{said}. With the object store of {format_size(store)} Ray promises more than there is"
        yield Finding("RT201", "error", node.name, message, PROVISION, **values)
    elif abs(before - physical) > before * MEMORY_TOLERANCE:
        was = f"The node had {format_size(before)} when it was set up (tolerance {MEMORY_TOLERANCE:.0%})"
        fix = f"Restore the memory, or: {PROVISION}"
        yield Finding("RT201", "error", node.name, f"{said}. {was}", fix, **values)


def _said(declared: int | None, memory: Any, logical: float | None) -> str:
    parts = ["declared " + ("auto" if declared is None else format_size(declared))]
    physical = f"physical {format_size(memory['usable_bytes'])}"
    if memory["limit_bytes"] is not None and memory["usable_bytes"] == memory["limit_bytes"]:
        physical += f" (limited by a cgroup; the machine has {_size(memory['total_bytes'])})"
    parts.append(physical)
    parts.append("logical " + ("none (Ray does not run)" if logical is None else format_size(logical)))
    return ", ".join(parts)


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else format_size(size_bytes)


def shared_memory(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT202: /dev/shm is as large as Ray's object store; otherwise Ray puts it on disk, many times slower."""
    total = node.need_facts()["memory"]["shm_total_bytes"]
    plan = node.plan or node.installed
    if plan is None:
        raise Skipped("there is no plan that says how large the object store is")
    store = logical_count(cluster.logical(node), "object_store_memory")
    store = plan["logical"]["object_store_memory"] if store is None else store
    if total is None:
        message = f"shared memory: /dev/shm is not mounted, the object store needs {format_size(store)}"
    elif total < store:
        message = (
            f"shared memory: /dev/shm has {format_size(total)}, the object store needs {format_size(store)}"
        )
    else:
        return
    fix = f"mount -o remount,size={int(store) // 2**20 + 64}M /dev/shm (containers: --shm-size)"
    values = {"declared": plan["logical"]["object_store_memory"], "physical": total, "logical": store}
    yield Finding("RT202", "error", node.name, message, fix, **values)


def no_swap(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT203: a node that swaps gives its runs less than they were promised without anyone noticing."""
    del cluster
    swap = node.need_facts()["memory"]["swap_total_bytes"]
    if swap is None:
        raise Skipped("the node's swap could not be measured")
    if swap > 0:
        message = (
            f"swap: {format_size(swap)} is on. Runs are kept out of it, the rest of the node is not, "
            "and times of runs differ between nodes"
        )
        fix = "swapoff -a, and remove the swap line from /etc/fstab"
        yield Finding("RT203", "warning", node.name, message, fix, declared=0, physical=swap)


def alike(cluster: Gathered) -> Iterator[Finding]:
    """RT204: machines that are alike, and for which the same is declared, advertise the same to Ray (2 %)."""
    groups: dict[tuple[Any, ...], dict[str, float]] = {}
    for node in cluster.nodes:
        logical = logical_count(cluster.logical(node), "memory")
        if node.facts is None or logical is None or not node.facts["memory"]["total_bytes"]:
            continue
        total = round(node.facts["memory"]["total_bytes"] / 2**30)
        kind = (node.facts["cpu"]["usable"], total, node.config.nodes, node.config.slots)
        groups.setdefault(kind, {})[node.name] = logical
    if not any(len(group) > 1 for group in groups.values()):
        raise Skipped("no two machines are alike")
    for group in groups.values():
        usual = statistics.median_low(group.values())
        for name, found in group.items():
            if abs(found - usual) <= max(ALIKE_SHARE * usual, ALIKE_BYTES):
                continue
            message = (
                f"Ray has {format_size(found)} of memory here, {format_size(usual)} on most machines like "
                "it: runs find other limits"
            )
            yield Finding("RT204", "warning", name, message, PROVISION, declared=usual, logical=found)


def monitor(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT205: Ray's own monitor, which kills by node, stays out of it as long as runs keep their limits."""
    del cluster
    variables = node.need_raylet()["environ"]
    if variables is None:
        raise Skipped("the raylet's environment may not be read")
    plan = node.need_installed()
    physical = plan["physical"]["memory_bytes"]  # that it has become less is RT201's
    if variables.get(MONITOR_INTERVAL) == "0":
        return  # it is off
    try:
        threshold = float(variables.get(THRESHOLD, _RAYS_THRESHOLD))
    except ValueError:
        threshold = float(_RAYS_THRESHOLD)
    promised = sum(slot["memory_bytes"] for slot in plan["slots"]) + plan["logical"]["object_store_memory"]
    if promised > threshold * physical:
        message = (
            f"Ray kills tasks above {threshold:.0%} of the memory ({format_size(threshold * physical)}); "
            f"slots and object store are promised {format_size(promised)}: it may kill a run within its limit"
        )
        fix = f"Remove {THRESHOLD} from ray.env, or raise nodes.system_reserved.memory; then: {PROVISION}"
        values = {"declared": promised, "physical": physical, "logical": threshold}
        yield Finding("RT205", "warning", node.name, message, fix, **values)


def adds_up(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT206: what slots are promised, the object store and what is set aside fit into the node."""
    del cluster
    plan = node.need_installed()
    physical = plan["physical"]["memory_bytes"]  # that it has become less is RT201's
    slots = sum(slot["memory_bytes"] for slot in plan["slots"])
    store, reserved = plan["logical"]["object_store_memory"], node.config.nodes.system_reserved.memory
    if slots + store + reserved > physical * (1 + MEMORY_TOLERANCE):
        message = (
            f"{len(plan['slots'])} slots {format_size(slots)} + object store {format_size(store)} + "
            f"reserved {format_size(reserved)} = {format_size(slots + store + reserved)}, "
            f"the node had {format_size(physical)} when it was set up"
        )
        values = {"declared": slots + store + reserved, "physical": physical}
        yield Finding("RT206", "error", node.name, message, PROVISION, **values)
