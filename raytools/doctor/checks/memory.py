"""RT2xx: memory that is declared is there, fits together, and is what Ray schedules; shared memory; swap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raytools.doctor.checks.cpu import logical_count
from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Skipped
from raytools.units import format_size

# MemTotal differs by some MiB between kernels and boots of one machine
PHYSICAL_TOLERANCE = 0.01
# Ray keeps memory in units of its own and may round
LOGICAL_TOLERANCE_BYTES = 1024


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
    elif abs(before - physical) > before * PHYSICAL_TOLERANCE:
        was = f"The node had {format_size(before)} when it was set up (tolerance {PHYSICAL_TOLERANCE:.0%})"
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
