"""RT7xx: Ray is alive where it should be, with the flags of the plan, and can be interrupted."""

from __future__ import annotations

import signal
from collections.abc import Iterator

from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Skipped

_RESTART = "ansible-playbook playbooks/ray.yml"
DEFAULT_TEMP_DIR = "/tmp/ray"


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
            fix = f"{_RESTART} --limit {node.name}; why it ended: {node.root}/logs/ray.log there"
            yield Finding("RT701", "error", node.name, message, fix, declared="alive", logical=state)
    # of a node that has just lost its power Ray says for half a minute that it is alive
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
        raise Skipped(f"the environment of raylet {raylet['pid']} ({raylet['user']}) may not be read")
    plan = node.plan or node.need_installed()
    wanted = {**plan["ray"]["env"], "RAY_AUTH_MODE": plan["ray"]["auth"]}
    for name, declared in sorted(wanted.items()):
        effective = raylet["environ"].get(name)
        if effective == str(declared):
            continue
        shown = "not set" if effective is None else effective
        message = f"{name}: declared {declared}, in raylet {raylet['pid']} {shown}"
        yield Finding(
            "RT702", "error", node.name, message, _RESTART, declared=str(declared), logical=effective
        )


def signals(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT703: SIGINT ignored makes ray.cancel do nothing in every worker; SIGTERM ignored, stopping."""
    del cluster
    node.need_installed()
    raylet = node.need_raylet()
    ignored = raylet["signals_ignored"]
    if ignored is None:
        raise Skipped(f"the signals of raylet {raylet['pid']} may not be read")
    bad = [signal.Signals(number).name for number in (signal.SIGINT, signal.SIGTERM) if number in ignored]
    if bad:
        message = f"raylet {raylet['pid']} ignores {' and '.join(bad)}: ray.cancel and stopping do nothing"
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
