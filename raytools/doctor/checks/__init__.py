"""The checks, one file per subject; this table is what the doctor runs, in this order.

A check is a pure function from gathered data to findings. It raises Skipped where it has nothing to judge.
"""

from __future__ import annotations

from raytools.doctor.checks import (
    configuration,
    cpu,
    environment,
    gpu,
    hygiene,
    limits,
    memory,
    network,
    provisioned,
    ray_service,
    security,
    storage,
)
from raytools.doctor.model import Check

CHECKS: tuple[Check, ...] = (
    Check("RT001", "configuration, inventory and lock agree", "config", of_cluster=configuration.consistent),
    Check(
        "RT002", "the nodes have the plan that cluster.yaml asks for", "hosts", configuration.plan_is_current
    ),
    Check("RT101", "CPUs: declared = physical = logical", "hosts", cpu.counts),
    Check("RT102", "slots pin CPUs that Ray may use", "cluster", cpu.slots_are_usable),
    Check("RT103", "limits hold in real runs", "prove", limits.hold),
    Check("RT201", "memory: declared = physical = logical", "hosts", memory.amounts),
    Check("RT202", "shared memory holds the object store", "hosts", memory.shared_memory),
    Check("RT203", "no swap", "hosts", memory.no_swap),
    Check("RT301", "GPUs: declared = present = logical", "hosts", gpu.counts),
    Check("RT400", "the node is provisioned", "hosts", provisioned.is_provisioned),
    Check("RT401", "the environment is what was built", "hosts", environment.content),
    Check("RT402", "libgomp is there", "hosts", environment.libgomp),
    Check("RT403", "Ray runs from the declared environment", "cluster", environment.versions),
    Check(
        "RT404", "the environment is the same on all nodes", "hosts", of_cluster=environment.same_everywhere
    ),
    Check("RT501", "disk space and inodes", "hosts", storage.space),
    Check("RT502", "shared storage is mounted and answers", "hosts", storage.shared),
    Check("RT601", "the node answers", "hosts", network.reachable),
    Check("RT602", "names and addresses", "hosts", network.names),
    Check(
        "RT701", "Ray is alive on every declared node and no other", "cluster", of_cluster=ray_service.alive
    ),
    Check("RT702", "flags have reached Ray", "cluster", ray_service.flags),
    Check("RT703", "Ray can be interrupted", "cluster", ray_service.signals),
    Check("RT704", "no other Ray on the node", "hosts", ray_service.others),
    Check("RT801", "nothing is left of dead Rays", "hosts", hygiene.leftovers),
    Check("RT802", "open files", "hosts", hygiene.open_files),
    Check("RT803", "nothing is left of killed runs", "hosts", hygiene.stale_runs),
    Check("RT901", "Ray's token and what listens", "hosts", security.token_and_listeners),
    Check("RT902", "nobody else can change what runs here", "hosts", security.owners_and_modes),
)
