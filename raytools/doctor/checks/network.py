"""RT6xx: nodes answer, have the addresses the plan says, and are not hidden behind 127.0.1.1."""

from __future__ import annotations

from collections.abc import Iterator

from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport


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
