"""What the level `prove` tries on the nodes: limited runs, connections between nodes, shared storage."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raytools.doctor.measure import with_imports, with_ring, with_storage_trials, with_workers
from raytools.doctor.model import NodeReport
from raytools.doctor.outside import with_outside
from raytools.errors import TransportError
from raytools.inventory import Host
from raytools.project import Project
from raytools.transport import Answer, NodeCommand, call

_PROOF_TIME_S = 180.0
_MATRIX_TIME_S = 60.0
_BETWEEN_NODES = ("gcs", "node_manager", "object_manager")  # the others serve people and agents

Nodes = tuple[NodeReport, ...]


def prove(
    project: Project, hosts: Sequence[Host], nodes: Nodes, codes: Collection[str] | None = None
) -> Nodes:
    """The nodes with what was tried on each that answers and is provisioned.

    Args:
        project: whose state directory the connections use.
        hosts: of the inventory, in the order of `nodes`.
        nodes: as they were inspected.
        codes: what the checks that are made need is tried; None: all.
    """
    able = [host for host, node in zip(hosts, nodes, strict=True) if node.installed]
    if not able:
        return nodes
    for needed_by, step in STEPS:
        if codes is None or needed_by & set(codes):
            nodes = step(project, able, nodes)
    return nodes


def _with_proofs(project: Project, able: Sequence[Host], nodes: Nodes) -> Nodes:
    command = NodeCommand(["run", "--check", "--json"], python="installed")
    runs = call(able, command, _PROOF_TIME_S, state_dir=project.state_dir)
    return tuple(_with_proof(node, runs.get(node.name)) for node in nodes)


def _with_proof(node: NodeReport, answer: Answer | None) -> NodeReport:
    if answer is None:
        return node
    try:
        # exit code 1 says that a limit does not hold; the answer says which
        return replace(
            node, proof=replace(answer, exit_code=0 if answer.exit_code == 1 else answer.exit_code).json()
        )
    except TransportError as error:
        return replace(node, proof_error=str(error))


# --- connections ---------------------------------------------------------------------------------


def targets(nodes: Nodes) -> dict[str, list[dict[str, Any]]]:
    """Node -> where it has to be able to connect to: what listens on the others now. Pure."""
    listening: dict[str, list[dict[str, Any]]] = {}
    for node in nodes:
        found = (node.inspection or {}).get("listening")
        if node.installed is None or not isinstance(found, Mapping) or "problem" in found:
            continue
        ports = node.installed["ray"]["ports"]
        listening[node.name] = [
            {"to": node.name, "address": node.installed["address"], "name": name, "port": ports[name]}
            for name in _BETWEEN_NODES
            if name in found and name in ports
        ]
    return {
        node.name: [one for name, served in listening.items() if name != node.name for one in served]
        for node in nodes
        if node.installed
    }


def hostnames(nodes: Nodes) -> dict[str, str | None]:
    """Node -> what it calls itself. Pure."""
    return {node.name: node.facts["host"]["hostname"] for node in nodes if node.facts is not None}


def _with_connections(project: Project, able: Sequence[Host], nodes: Nodes) -> Nodes:
    wanted = targets(nodes)
    names = hostnames(nodes)
    asked = [host for host in able if wanted.get(host.name)]
    commands = {
        host.name: NodeCommand(
            ["reach"],
            stdin=json.dumps(
                {
                    "connect": [[one["address"], one["port"]] for one in wanted[host.name]],
                    "resolve": sorted({name for name in names.values() if name}),
                }
            ),
        )
        for host in asked
    }
    answers = call(asked, commands, _MATRIX_TIME_S, state_dir=project.state_dir) if asked else {}
    return tuple(_with_reach(node, wanted.get(node.name, []), answers.get(node.name)) for node in nodes)


def _with_reach(node: NodeReport, wanted: list[dict[str, Any]], answer: Answer | None) -> NodeReport:
    if answer is None:
        return node
    try:
        found = answer.json()
        pairs = zip(wanted, found["connect"], strict=True)
        return replace(
            node,
            reach=tuple({**one, "problem": said} for one, said in pairs),
            resolved=found["resolve"],
        )
    except (TransportError, ValueError, KeyError, TypeError) as error:
        return replace(node, reach_error=str(error))


# --- shared storage ------------------------------------------------------------------------------


def _with_shared_storage(project: Project, able: Sequence[Host], nodes: Nodes) -> Nodes:
    """Each writes, each reads what all have written, each removes its own: as Ray's user."""
    found = {node.name: node for node in nodes}
    hosts = [
        host
        for host in able
        if (installed := found[host.name].installed) and installed["storage"]["type"] != "local"
    ]
    if not hosts:
        return nodes

    def ask(command: str, names: Sequence[str] | None = None) -> dict[str, str]:
        """Node -> why it could not; those that could are left out."""
        commands = {}
        for host in hosts:
            path = (found[host.name].installed or {})["storage"]["path"]
            arguments = [f"--name={name}" for name in (names or [host.name])]
            commands[host.name] = NodeCommand(
                ["storage", command, "--path", path, *arguments], as_service_user=True
            )
        answers = call(hosts, commands, _MATRIX_TIME_S, state_dir=project.state_dir)
        return {name: said for name, answer in answers.items() if (said := _complaint(answer))}

    unable = ask("write")
    try:
        wrote = [host.name for host in hosts if host.name not in unable]
        if wrote:
            unable = {**ask("read", wrote), **unable}
    finally:
        ask("clean")
    tried = {host.name for host in hosts}
    return tuple(
        replace(node, shared=unable.get(node.name, "")) if node.name in tried else node for node in nodes
    )


def _complaint(answer: Answer) -> str | None:
    if answer.error:
        return answer.error
    if answer.exit_code == 0:
        return None
    return (answer.stderr.strip().splitlines() or [f"exit code {answer.exit_code}"])[-1]


STEPS: tuple[tuple[set[str], Callable[[Project, Sequence[Host], Nodes], Nodes]], ...] = (
    ({"RT103"}, _with_proofs),
    ({"RT104", "RT702"}, with_workers),
    ({"RT604", "RT607"}, _with_connections),
    ({"RT906"}, with_outside),
    ({"RT504"}, _with_shared_storage),
    ({"RT405", "RT406"}, with_imports),
    ({"RT505"}, with_storage_trials),
    ({"RT606"}, with_ring),
)
"""What is tried, one after the other so that nothing disturbs another, and the checks that judge it."""
