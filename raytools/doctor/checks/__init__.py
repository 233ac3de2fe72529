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
    load,
    measured,
    memory,
    network,
    provisioned,
    ray_service,
    security,
    storage,
    versions,
)
from raytools.doctor.model import Check

CHECKS: tuple[Check, ...] = (
    Check("RT001", "configuration, inventory and lock agree", "config", of_cluster=configuration.consistent),
    Check(
        "RT002", "the nodes have the plan that cluster.yaml asks for", "hosts", configuration.plan_is_current
    ),
    Check("RT003", "every waiver is used", "config", of_results=configuration.waivers_are_used),
    Check("RT004", "versions fit each other", "config", of_cluster=versions.fit_each_other),
    Check("RT101", "CPUs: declared = physical = logical", "hosts", cpu.counts),
    Check("RT102", "slots pin CPUs that Ray may use", "cluster", cpu.slots_are_usable),
    Check("RT103", "limits hold in real runs", "prove", limits.hold),
    Check("RT104", "thread variables are the same on all nodes", "cluster", of_cluster=cpu.thread_variables),
    Check("RT105", "all nodes have the same processor", "hosts", of_cluster=cpu.same_model),
    Check("RT106", "clocks of CPUs are governed alike", "hosts", of_cluster=cpu.frequency),
    Check("RT107", "no hypervisor takes CPU time away", "hosts", cpu.stolen, comes_and_goes=True),
    Check("RT108", "no two slots share a core", "hosts", cpu.slots_share_no_core),
    Check("RT201", "memory: declared = physical = logical", "hosts", memory.amounts),
    Check("RT202", "shared memory holds the object store", "hosts", memory.shared_memory),
    Check("RT203", "no swap", "hosts", memory.no_swap),
    Check("RT204", "like machines have like memory for Ray", "cluster", of_cluster=memory.alike),
    Check("RT205", "Ray's monitor leaves runs alone", "cluster", memory.monitor),
    Check("RT206", "memory adds up", "hosts", memory.adds_up),
    Check("RT301", "GPUs: declared = present = logical", "hosts", gpu.counts),
    Check("RT302", "GPU drivers are the same on all nodes", "hosts", of_cluster=gpu.same_driver),
    Check("RT303", "nobody but runs computes on GPUs", "hosts", gpu.holders, comes_and_goes=True),
    Check("RT400", "the node is provisioned", "hosts", provisioned.is_provisioned),
    Check("RT401", "the environment is what was built", "hosts", environment.content),
    Check("RT402", "libgomp is there", "hosts", environment.libgomp),
    Check("RT403", "Ray runs from the declared environment", "cluster", environment.versions),
    Check(
        "RT404", "the environment is the same on all nodes", "hosts", of_cluster=environment.same_everywhere
    ),
    Check("RT405", "what runs import can be imported", "prove", measured.imports),
    Check(
        "RT406",
        "Ray is imported as fast everywhere",
        "prove",
        of_cluster=measured.import_time,
        comes_and_goes=True,
    ),
    Check("RT501", "disk space and inodes", "hosts", storage.space),
    Check("RT502", "shared storage is mounted and answers", "hosts", storage.shared),
    Check("RT503", "the environment is on a local disk", "hosts", storage.local_environment),
    Check("RT504", "what one node writes all can read", "prove", storage.is_shared),
    Check("RT505", "storage locks, renames and writes", "prove", measured.storage),
    Check("RT601", "the node answers", "hosts", network.reachable),
    Check("RT602", "names and addresses", "hosts", network.names),
    Check("RT603", "clocks agree", "hosts", of_cluster=network.clocks),
    Check("RT604", "nodes reach each other's Ray", "prove", network.connections),
    Check("RT605", "packets are of the same size everywhere", "hosts", of_cluster=network.packets),
    Check(
        "RT606",
        "neighbours reach workers' ports, equally fast",
        "prove",
        of_cluster=measured.neighbours,
        comes_and_goes=True,
    ),
    Check("RT607", "names of other nodes lead to them", "prove", network.names_of_others),
    Check(
        "RT701", "Ray is alive on every declared node and no other", "cluster", of_cluster=ray_service.alive
    ),
    Check("RT702", "flags have reached Ray", "cluster", ray_service.flags),
    Check("RT703", "Ray can be interrupted", "cluster", ray_service.signals),
    Check("RT704", "no other Ray on the node", "hosts", ray_service.others),
    Check("RT705", "systemd keeps Ray", "hosts", ray_service.unit),
    Check("RT706", "Ray's default place is usable", "hosts", load.default_temp_dir),
    Check("RT801", "nothing is left of dead Rays", "hosts", hygiene.leftovers),
    Check("RT802", "open files", "hosts", hygiene.open_files),
    Check("RT803", "nothing is left of killed runs", "hosts", hygiene.stale_runs),
    Check("RT804", "nothing hangs", "hosts", load.hanging, comes_and_goes=True),
    Check("RT805", "nothing else uses the node", "hosts", load.foreign, comes_and_goes=True),
    Check("RT806", "Ray's files leave room", "hosts", load.files),
    Check("RT807", "processes and threads", "cluster", load.processes),
    Check("RT901", "Ray's token and what listens", "hosts", security.token_and_listeners),
    Check("RT902", "nobody else can change what runs here", "hosts", security.owners_and_modes),
    Check("RT903", "the storage is exported to the cluster alone", "hosts", security.exports),
    Check("RT904", "host keys are checked", "config", of_cluster=security.host_keys),
    Check("RT905", "all nodes have the same token", "hosts", of_cluster=security.same_token),
    Check("RT906", "Ray is closed to the outside", "prove", security.closed),
)
