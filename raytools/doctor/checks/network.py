"""RT6xx: nodes answer, have the addresses the plan says, and are not hidden behind 127.0.1.1."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from raytools.doctor.majority import odd_ones
from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Skipped

CLOCK_TOLERANCE_S = 2.0


def reachable(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT601: the node answered in time."""
    del cluster
    if not node.reachable:
        message = node.error or "the node did not answer"
        yield Finding("RT601", "error", node.name, message, f"ansible {node.name} -m ansible.builtin.ping")


def names(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT602: the planned address is one of the node's own, and its name does not lead to loopback."""
    network = node.need_facts()["network"]
    plan = node.installed or node.plan
    addresses = network["addresses"]
    if plan and addresses is not None and plan["address"] not in addresses:
        message = f"the plan's address {plan['address']} is not one of the node's: {', '.join(addresses)}"
        fix = f"Set raytools_address for {node.name} in the inventory, then: {PROVISION}"
        values = {"declared": plan["address"], "physical": addresses}
        yield Finding("RT602", "error", node.name, message, fix, **values)
    resolved = network["hostname_resolves_to"]
    hostname = node.need_facts()["host"]["hostname"]
    if len(cluster.nodes) < 2 or resolved is None:
        return  # alone, a node is its own loopback
    if resolved and all(one.startswith("127.") or one == "::1" for one in resolved):
        message = (
            f"the node's own name {hostname} resolves to {', '.join(resolved)}: what asks by name (workers, "
            "distributed training) offers other nodes an address they cannot reach"
        )
        fix = f"In /etc/hosts on {node.name}: {network['primary_address'] or 'ADDRESS'} {hostname}"
        yield Finding("RT602", "warning", node.name, message, fix, physical=resolved)


def clocks(cluster: Gathered) -> Iterator[Finding]:
    """RT603: each node's clock agrees with the controller's, as far as the time of the question tells."""
    if cluster.asked_between is None:
        raise Skipped("nobody has noted when the nodes were asked")
    began, ended = cluster.asked_between
    for node in cluster.nodes:
        if node.facts is None:
            continue
        said = datetime.fromisoformat(node.facts["collected_at"].replace("Z", "+00:00")).timestamp()
        skew_s = said - ended if said > ended else min(0.0, said - began)
        if abs(skew_s) > CLOCK_TOLERANCE_S:
            word = "ahead of" if skew_s > 0 else "behind"
            message = (
                f"the clock is at least {abs(skew_s):.1f} s {word} the controller's "
                f"(tolerance {CLOCK_TOLERANCE_S:g} s)"
            )
            fix = f"On {node.name}: timedatectl set-ntp true (or install chrony)"
            yield Finding("RT603", "warning", node.name, message, fix, declared=0, physical=round(skew_s, 1))


def connections(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT604: from each node, what Ray listens with on the others can be connected to."""
    del cluster
    node.need_installed()
    if node.reach is None:
        raise Skipped(node.reach_error or "Ray listens on no other node")
    problems: dict[tuple[str, str], list[str]] = {}
    for one in node.reach:
        if one["problem"]:
            key = (f"{one['to']} ({one['address']})", one["problem"])
            problems.setdefault(key, []).append(f"{one['port']} ({one['name']})")
    for (other, problem), ports in problems.items():
        message = f"cannot connect to {other}, port {', '.join(ports)}: {problem}"
        fix = "Let all nodes reach each other on ray.ports, workers' range included (firewall, VPN)"
        yield Finding("RT604", "error", node.name, message, fix, physical=ports)


def packets(cluster: Gathered) -> Iterator[Finding]:
    """RT605: packets between nodes may be of the same size everywhere."""
    sizes = {}
    for node in cluster.nodes:
        plan, facts = node.installed or node.plan, node.facts
        device = (facts["network"].get("devices") or {}).get(plan["address"]) if plan and facts else None
        if device and device["mtu_bytes"] and device["device"] != "lo":
            sizes[node.name] = device["mtu_bytes"]
    if len(sizes) < 2:
        raise Skipped("there are no two nodes to compare")
    most, odd = odd_ones(sizes)
    for name, found in odd.items():
        message = (
            f"packets may have {found} bytes (MTU) here, {most} on most nodes: where a router drops what is "
            "too large, small messages arrive and large objects hang"
        )
        fix = f"Give the device of the cluster's address an MTU of {most} (ip link set DEVICE mtu {most})"
        yield Finding("RT605", "warning", name, message, fix, declared=most, physical=found)


def names_of_others(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT607: where a node knows another by name, the name leads to it."""
    if node.resolved is None:
        raise Skipped("it was not tried, or there is no other node")
    for other in cluster.nodes:
        plan = other.installed or other.plan
        if other.name == node.name or plan is None or other.facts is None:
            continue
        name, wanted = other.facts["host"]["hostname"], plan["address"]
        found = node.resolved.get(name)
        if not found:
            continue  # Ray goes by addresses; that a name is not known is no fault
        theirs = {wanted, *(other.facts["network"]["addresses"] or [])} - {"127.0.0.1", "::1"}
        if not theirs & set(found):
            message = (
                f"{name}, as {other.name} calls itself, leads to {', '.join(found)} here; it is at {wanted}: "
                "what goes by names (distributed training) asks somebody else"
            )
            fix = f"Correct the entry of {name} in /etc/hosts on {node.name}, or in the DNS"
            yield Finding("RT607", "warning", node.name, message, fix, declared=wanted, physical=found)
