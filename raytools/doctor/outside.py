"""Level `prove`, tried from the controller: whether Ray can be reached where only its nodes should reach it.

The controller stands for everybody who is no node. What it reaches by an address that is not the cluster's
own, or by one of the whole internet's, strangers may reach, too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raytools.doctor.model import NodeReport
from raytools.inventory import Host
from raytools.node.reach import addresses_of, reach_all
from raytools.project import Project

Nodes = tuple[NodeReport, ...]


def with_outside(project: Project, able: Sequence[Host], nodes: Nodes) -> Nodes:
    """Each node with what of its Ray the controller reaches by addresses that are not for Ray.

    Args:
        project: unused; all steps of level prove are called alike.
        able: hosts that answer and are provisioned.
        nodes: as they were inspected.
    """
    del project
    found = {node.name: node for node in nodes}
    wanted = {host.name: doors(host, found[host.name]) for host in able if host.connection != "local"}
    flat = [door for served in wanted.values() for door in served]
    said = reach_all([(door["address"], door["port"]) for door in flat])
    tried = iter([{**door, "problem": problem} for door, problem in zip(flat, said, strict=True)])
    answers = {name: tuple(next(tried) for _ in served) for name, served in wanted.items()}
    return tuple(
        replace(node, outside=answers[node.name]) if node.name in answers else node for node in nodes
    )


def doors(
    host: Host, node: NodeReport, resolve: Callable[[str], list[str]] = addresses_of
) -> list[dict[str, Any]]:
    """What ought to be closed: `address`, `port`, and its `name` in the plan.

    All ports of Ray by an address that is not the cluster's, or is one of the internet's; the dashboard by
    any address where it is declared to listen on loopback only.

    Args:
        host: as the inventory has it; its address is where the controller connects to.
        node: as it was inspected.
        resolve: a name -> addresses.
    """
    plan, listening = node.installed, (node.inspection or {}).get("listening")
    if plan is None or not isinstance(listening, Mapping) or "problem" in listening:
        return []
    ports = {name: plan["ray"]["ports"][name] for name in listening if name in plan["ray"]["ports"]}
    own = [] if node.facts is None else node.facts["network"]["addresses"] or []
    theirs = {*resolve(host.address), *(address for address in own if _is_of_the_internet(address))}
    cluster = plan["address"]
    foreign = {one for one in theirs if one != cluster or _is_of_the_internet(one)}
    found = [(address, name) for address in sorted(foreign) for name in ports]
    if "dashboard" in ports and _is_loopback(plan["ray"]["dashboard"]["host"]) and cluster not in foreign:
        found.append((cluster, "dashboard"))
    return [
        {"address": address, "port": ports[name], "name": name}
        for address, name in found
        if not _is_loopback(address)
    ]


def _is_of_the_internet(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "localhost")
