"""RT3xx: the GPUs that are declared are present, and Ray schedules exactly those."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raytools.doctor.checks.cpu import logical_count
from raytools.doctor.majority import odd_ones
from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Skipped
from raytools.units import format_size


def counts(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT301: declared = present = logical."""
    gpus, declared = node.need_facts()["gpus"], node.config.nodes.gpus
    if gpus is None:
        if declared == 0:
            raise Skipped("the driver does not answer, and no GPU is declared")
        message = "GPUs: there is an NVIDIA driver, but nvidia-smi does not answer"
        yield Finding(
            "RT301", "error", node.name, message, "nvidia-smi (as this user, on the node)", declared
        )
        return
    logical = logical_count(cluster.logical(node), "GPU")
    values: dict[str, Any] = {
        "declared": "auto" if declared is None else declared,
        "physical": len(gpus),
        "logical": logical,
    }
    shown = "none (Ray does not run)" if logical is None else f"{logical:g}"
    said = f"GPUs: declared {values['declared']}, present {len(gpus)}, logical {shown}"
    if declared is not None and declared > len(gpus):
        fix = f"Set nodes.gpus: {len(gpus)} in cluster.yaml, or find out why nvidia-smi does not list them"
        yield Finding("RT301", "error", node.name, f"{said}. More is declared than is present", fix, **values)
    plan = node.plan or node.installed
    planned = plan["logical"].get("GPU", 0) if plan else None
    if logical is not None and planned is not None and logical != planned:
        message = f"{said}. Ray schedules {logical:g} where the plan has {planned:g}"
        yield Finding("RT301", "error", node.name, message, PROVISION, **values)


def same_driver(cluster: Gathered) -> Iterator[Finding]:
    """RT302: all nodes with GPUs have the same driver."""
    drivers = {
        node.name: found["driver"]
        for node in cluster.nodes
        if (found := (node.inspection or {}).get("gpus")) and found.get("driver")
    }
    if len(drivers) < 2:
        raise Skipped("there are no two nodes with GPUs")
    most, odd = odd_ones(drivers)
    for name, driver in odd.items():
        message = (
            f"the NVIDIA driver is {driver}, {most} on most nodes with GPUs: kernels and times may differ"
        )
        yield Finding(
            "RT302", "warning", name, message, f"Install driver {most}", declared=most, physical=driver
        )


def holders(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT303: only runs of this cluster compute on GPUs that slots were promised."""
    del cluster
    slots = node.need_installed()["slots"]
    if not any(slot["gpus"] for slot in slots):
        raise Skipped("no slot has a GPU")
    for one in node.need("gpus")["holders"]:
        if one["in_run"] or one["ours"]:
            continue
        who = f"pid {one['pid']} of {one['user'] or 'an unknown user'} ({one['command'] or 'it has ended'})"
        used = "" if one["used_bytes"] is None else f" with {format_size(one['used_bytes'])}"
        message = (
            f"GPU {one['uuid']} is used by {who}{used}, which is no run: its memory and time are missing"
        )
        yield Finding("RT303", "warning", node.name, message, f"kill {one['pid']}", physical=one["pid"])
