"""RT1xx: the CPUs that are declared are there, and Ray schedules exactly those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Skipped


def counts(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT101: declared <= physical, and logical = planned. Exact: a CPU is whole."""
    cpu = node.need_facts()["cpu"]
    declared, physical = node.config.nodes.cpus, int(cpu["usable"])
    logical = logical_count(cluster.logical(node), "CPU")
    values: dict[str, Any] = {
        "declared": "auto" if declared is None else declared,
        "physical": physical,
        "logical": logical,
    }
    said = (
        f"declared {values['declared']}, physical {physical} ({why_usable(cpu)}), logical {_or_none(logical)}"
    )
    if declared is not None and declared > physical:
        fix = f"Set nodes.cpus: {physical} (or auto) in cluster.yaml, or give the machine {declared} CPUs"
        yield Finding(
            "RT101", "error", node.name, f"CPUs: {said}. More is declared than there is", fix, **values
        )
    elif declared is not None and declared < physical:
        message = f"CPUs: {said}. {physical - declared} CPUs stay unused"
        fix = "Set nodes.cpus: auto in cluster.yaml to use them all"
        yield Finding("RT101", "info", node.name, message, fix, **values)
    planned = _planned(node, "CPU")
    before = node.installed["physical"]["cpus"] if node.installed else physical
    if logical is not None and planned is not None and logical != planned:
        message = f"CPUs: {said}. Ray schedules {logical:g} where the plan has {planned:g}"
        yield Finding("RT101", "error", node.name, message, PROVISION, **values)
    elif logical is not None and planned is None and logical > physical:
        message = f"CPUs: {said}. Ray schedules more than there is"
        yield Finding("RT101", "error", node.name, message, PROVISION, **values)
    elif before != physical:
        message = f"CPUs: {said}. The node had {before} when it was set up"
        yield Finding("RT101", "error", node.name, message, f"Restore the CPUs, or: {PROVISION}", **values)


def why_usable(cpu: Mapping[str, Any]) -> str:
    """What makes the number of usable CPUs: `4 present, 2 allowed by affinity and cpuset, quota 1.5`."""
    parts = [f"{cpu['present'] or 'unknown'} present"]
    if len(cpu["allowed"]) != cpu["present"]:
        parts.append(f"{len(cpu['allowed'])} allowed by affinity, cpuset and online")
    if cpu["quota_cpus"] is not None:
        parts.append(f"quota {cpu['quota_cpus']:g}")
    return ", ".join(parts)


def logical_count(resources: Mapping[str, float] | None, name: str) -> float | None:
    """What Ray has of a resource; it leaves out what it has none of."""
    return None if resources is None else resources.get(name, 0.0)


def _planned(node: NodeReport, name: str) -> float | None:
    plan = node.plan or node.installed
    return None if plan is None else plan["logical"].get(name, 0)


def _or_none(value: float | None) -> str:
    return "none (Ray does not run)" if value is None else f"{value:g}"


def slots_are_usable(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT102: every CPU of a slot is one the raylet may run on, else a run cannot be pinned to it."""
    del cluster
    slots = node.need_installed()["slots"]
    allowed = node.need_raylet()["cpus_allowed"]
    if allowed is None:
        raise Skipped("the raylet's CPUs may not be read")
    missing = sorted({cpu for slot in slots for cpu in slot["cpus"]} - set(allowed))
    if missing:
        message = f"slots have CPUs {missing}, but the raylet may only run on {allowed}"
        fix = f"Start Ray without taskset and outside a smaller cpuset: {PROVISION}"
        yield Finding("RT102", "error", node.name, message, fix, physical=allowed, logical=missing)
