"""RT7xx: Ray is alive where it should be, with the flags of the plan, and can be interrupted."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import Any

from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Severity, Skipped

_RESTART = "ansible-playbook playbooks/ray.yml"
DEFAULT_TEMP_DIR = "/tmp/ray"
_RAYS_OWN = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")  # Ray gives its workers their own
_MANY_RESTARTS = 10  # a worker whose head was away for half an hour has as many


def alive(cluster: Gathered) -> Iterator[Finding]:
    """RT701: Ray lists every declared node as alive, and no other."""
    if not any(node.installed for node in cluster.nodes):
        raise Skipped("no node is provisioned")
    if cluster.ray is None:
        message = f"Ray does not answer: {cluster.ray_error}"
        yield Finding("RT701", "error", cluster.nodes[0].name, message, PROVISION)
        return
    for node in cluster.nodes:
        if node.installed is None:
            continue  # RT400, RT601
        entries = cluster.ray_nodes(node)
        if not any(one["state"] == "ALIVE" for one in entries):
            state = "lists it as dead" if entries else "does not know it"
            message = f"Ray {state} (address {node.installed['address']})"
            fix = f"{_RESTART}; why it ended: {node.root}/logs/ray.log there"
            yield Finding("RT701", "error", node.name, message, fix, declared="alive", logical=state)
    # of a node that has just lost its power Ray says for up to a minute that it is alive
    declared = {(node.installed or node.plan or {}).get("address") or node.address for node in cluster.nodes}
    for other in cluster.ray["nodes"]:
        if other["state"] == "ALIVE" and other["address"] not in declared:
            message = (
                f"a node that is not in the inventory has joined: {other['hostname']} ({other['address']})"
            )
            fix = f"Stop Ray on {other['address']}, or add the machine to the inventory"
            yield Finding("RT701", "error", None, message, fix, logical=other["address"])


def flags(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT702: every variable of the plan's ray.env is in the raylet's environment, with that value."""
    del cluster
    node.need_installed()
    raylet = node.need_raylet()
    if raylet["environ"] is None:
        raise Skipped(f"the environment of {raylet['user']}'s raylet may not be read")
    plan = node.plan or node.need_installed()
    wanted = {**plan["ray"]["env"], "RAY_AUTH_MODE": plan["ray"]["auth"]}
    yield from _flags_of_worker(node, raylet, wanted)
    for name, declared in sorted(wanted.items()):
        effective = raylet["environ"].get(name)
        if effective == str(declared):
            continue
        shown = "not set" if effective is None else effective
        message = f"{name}: declared {declared}, in the raylet {shown}"
        yield Finding(
            "RT702", "error", node.name, message, _RESTART, declared=str(declared), logical=effective
        )


def _flags_of_worker(
    node: NodeReport, raylet: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Iterator[Finding]:
    """Level prove: what reached the raylet may be lost on its way to a worker."""
    if node.worker is None or "environ" not in node.worker:
        return
    for name, declared in sorted(wanted.items()):
        effective = node.worker["environ"].get(name)
        if raylet["environ"].get(name) == str(declared) != effective and name not in _RAYS_OWN:
            shown = "not set" if effective is None else effective
            message = f"{name}: declared {declared}, in a worker {shown} (the raylet has it)"
            fix = f"Look for it in the runtime environment of the job; then: {_RESTART}"
            values = {"declared": str(declared), "logical": effective}
            yield Finding("RT702", "warning", node.name, message, fix, **values)


def signals(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT703: SIGINT ignored makes ray.cancel do nothing in every worker; SIGTERM ignored, stopping."""
    del cluster
    node.need_installed()
    raylet = node.need_raylet()
    ignored = raylet["signals_ignored"]
    if ignored is None:
        raise Skipped("the signals of the raylet may not be read")
    bad = [signal.Signals(number).name for number in (signal.SIGINT, signal.SIGTERM) if number in ignored]
    if bad:
        message = f"the raylet ignores {' and '.join(bad)}: ray.cancel and stopping do nothing"
        fix = f"Start Ray with signals at default, not as a shell's background job: {_RESTART}"
        yield Finding("RT703", "error", node.name, message, fix, declared="default", physical=bad)


def others(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT704: another Ray takes CPUs that runs were promised; one in the default place is attached to."""
    del cluster
    rays = node.need("rays")
    for other in rays["others"]:
        if other["run_id"]:
            continue  # the private Ray of a limited run, inside its slot
        who = f"another Ray of user {other['user']} (raylet pid {other['pid']}, temp dir {other['temp_dir']})"
        attracts = other["temp_dir"] == DEFAULT_TEMP_DIR
        message = f"{who} runs here and shares the CPUs and memory that runs were promised"
        if attracts:
            message += "; a ray.init() without address, as AutoGluon's, attaches to it"
        fix = f"End it: kill -TERM {' '.join(map(str, other['ended_by']))}"
        if attracts:
            fix += ". Where it has to stay: RAY_ADDRESS=local for whatever starts a Ray of its own"
        yield Finding("RT704", "warning", node.name, message, fix, physical=other["temp_dir"])


def unit(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT705: systemd keeps Ray: its unit runs, starts at boot, and has groups of its own for runs."""
    del cluster
    node.need_installed()
    found = (node.inspection or {}).get("unit")
    if found is None or not node.need("rays")["ours"]:
        raise Skipped("systemd does not run Ray here")
    found = node.need("unit")
    name = found["name"]
    if found["active"] not in ("active", "activating"):
        raise Skipped("systemd does not run Ray here")  # a person's Ray from the same root, without root
    if not found["enabled"]:
        message = f"{name} is not enabled: after a reboot the node stays out of the cluster"
        yield Finding("RT705", "error", node.name, message, f"systemctl enable {name} (or {_RESTART})")
    missing = sorted({"cpu", "cpuset", "memory", "pids"} - set(found["delegated"]))
    if missing and (node.facts or {}).get("cgroup", {}).get("mode") == "v2":
        message = (
            f"{name} is not given {', '.join(missing)} to pass on: runs of Ray tasks are refused their limits"
        )
        yield Finding("RT705", "error", node.name, message, _RESTART, physical=found["delegated"])
    if found["restarts"]:
        message = f"systemd had to start {name} again, {found['restarts']} times since its last planned start"
        fix = f"See why: journalctl -u {name}; the end of {node.root}/logs/ray.log.1"
        severity: Severity = "warning" if found["restarts"] >= _MANY_RESTARTS else "info"
        yield Finding("RT705", severity, node.name, message, fix, declared=0, physical=found["restarts"])
