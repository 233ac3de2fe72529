"""RT1xx: the CPUs that are declared are there, and Ray schedules exactly those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raytools.doctor.majority import odd_ones
from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Skipped
from raytools.node.inspect_load import STEAL_SHARE

THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "POLARS_MAX_THREADS",
)  # fmt: skip


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


def thread_variables(cluster: Gathered) -> Iterator[Finding]:
    """RT104: what decides how many threads a fit starts is the same for Ray on every node: in a worker, where
    one was asked (level prove), else in the raylet."""
    environments = {
        node.name: (node.worker or {}).get("environ") or ours[0]["environ"]
        for node in cluster.nodes
        if (ours := ((node.inspection or {}).get("rays") or {}).get("ours"))
        and ours[0]["environ"] is not None
    }
    if len(environments) < 2:
        raise Skipped("there are no two raylets to compare")
    for variable in THREAD_VARIABLES:
        most, odd = odd_ones({name: found.get(variable) for name, found in environments.items()})
        for name, value in odd.items():
            message = f"{variable} is {_shown(value)} for Ray here, {_shown(most)} on most nodes"
            fix = f"Set it for all in cluster.yaml under ray.env, not on one host; then: {PROVISION}"
            yield Finding("RT104", "warning", name, message, fix, declared=most, physical=value)


def _shown(value: str | None) -> str:
    return "not set" if value is None else repr(value)


def same_model(cluster: Gathered) -> Iterator[Finding]:
    """RT105: all nodes have the same processor, so that the same run takes the same time on each."""
    models = {node.name: node.facts["cpu"]["model"] for node in cluster.nodes if node.facts is not None}
    if len(models) < 2:
        raise Skipped("there are no two nodes to compare")
    most, odd = odd_ones(models)
    for name, model in odd.items():
        here, there = model or "unknown", most or "unknown"
        message = f"the CPU is {here}, on most nodes {there}: the same run takes another time"
        fix = "Compare times within one kind of machine only, or make the machines alike"
        yield Finding("RT105", "warning", name, message, fix, declared=most, physical=model)


def frequency(cluster: Gathered) -> Iterator[Finding]:
    """RT106: the same governor decides on the clock of all nodes' CPUs, and all may boost, or none."""
    kinds = {
        node.name: node.facts["cpu"].get("frequency") for node in cluster.nodes if node.facts is not None
    }
    known = {
        name: one for name, one in kinds.items() if one and (one["governors"] or one["boost"] is not None)
    }
    if not known:
        raise Skipped("no node says how its clock is governed, as in most virtual machines")
    governors, odd = odd_ones({name: tuple(one["governors"]) for name, one in known.items()})
    for name, found in odd.items():
        message = f"the clock's governor is {_joined(found)} here, {_joined(governors)} on most nodes"
        fix = (
            "Set node_cpu_governor for all nodes in the inventory, then: ansible-playbook playbooks/node.yml"
        )
        yield Finding("RT106", "warning", name, message, fix, declared=governors, physical=found)
    boost, odd_boost = odd_ones({name: one["boost"] for name, one in known.items()})
    for name, may in odd_boost.items():
        message = f"the CPUs {_may(may)} beyond their nominal clock here, on most nodes they {_may(boost)}"
        fix = "Switch turbo on or off on all nodes alike (firmware, or /sys/devices/system/cpu)"
        yield Finding("RT106", "warning", name, message, fix, declared=boost, physical=may)
    slow = [name for name, one in known.items() if one["governors"] and "performance" not in one["governors"]]
    for name in [one for one in slow if one not in odd]:
        message = (
            f"the clock's governor is {_joined(tuple(known[name]['governors']))}: times vary with the load"
        )
        fix = "For steady times: node_cpu_governor: performance in the inventory"
        yield Finding("RT106", "info", name, message, fix, declared="performance")


def _joined(names: tuple[str, ...]) -> str:
    return " and ".join(names) or "unknown"


def _may(boost: bool | None) -> str:
    return {True: "may go", False: "may not go", None: "do not say whether they go"}[boost]


def stolen(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT107: the hypervisor gives the node the CPU time that its CPUs promise."""
    del cluster
    load = node.need("load")
    now, ever = load["steal_share"], load["steal_share_since_boot"]
    if now is None:
        raise Skipped("the kernel does not tell")
    if now >= STEAL_SHARE:
        message = (
            f"{now:.0%} of the CPU time is taken away by the hypervisor (since boot {ever or 0:.1%}; "
            f"tolerance {STEAL_SHARE:.0%}): the machine's owner has promised its CPUs more than once"
        )
        fix = "Move the VM to a host that is not overbooked, or to a type with CPUs of its own"
        yield Finding("RT107", "warning", node.name, message, fix, declared=0, physical=now)


def slots_share_no_core(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT108: no CPU is in two slots, and no core's threads in two: they would slow each other down."""
    del cluster
    slots = node.need_installed()["slots"]
    core_of = {one["cpu"]: one["core"] for one in node.need_facts()["cpu"].get("threads") or []}
    users: dict[Any, set[int]] = {}
    for slot in slots:
        for cpu in slot["cpus"]:
            core = core_of.get(cpu)
            users.setdefault(("CPU", cpu) if core is None else ("core", core), set()).add(slot["index"])
    for (kind, number), indices in sorted(users.items(), key=str):
        if len(indices) > 1:
            message = (
                f"slots {', '.join(map(str, sorted(indices)))} share {kind} {number}: their runs compete"
            )
            fix = f"Lower slots.per_node, or make the plan again: {PROVISION}"
            yield Finding("RT108", "warning", node.name, message, fix, physical=sorted(indices))
