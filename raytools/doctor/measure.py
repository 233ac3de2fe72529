"""Level `prove`, what is measured on the nodes: imports, storage, the network between neighbours."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raytools.doctor.checks.cpu import THREAD_VARIABLES
from raytools.doctor.model import NodeReport
from raytools.errors import TransportError
from raytools.inventory import Host
from raytools.project import Project
from raytools.transport import Answer, NodeCommand, call

_IMPORTS_TIME_S = 300.0
_STORAGE_TIME_S = 60.0
_WORKERS_TIME_S = 120.0
_RING_WAIT_S = 20.0  # nodes are not asked at the very same moment
_RING_TIME_S = 60.0

Nodes = tuple[NodeReport, ...]


def with_workers(project: Project, able: Sequence[Host], nodes: Nodes) -> Nodes:
    """Each node with what a worker of Ray has in its environment there; the arguments as below."""
    heads = [host for host in able if host.role == "head"]
    if not heads:
        return nodes
    names = {name for node in nodes if node.installed for name in node.installed["ray"]["env"]}
    command = NodeCommand(
        ["ray-workers", "--node-json", f"{heads[0].root}/node.json"],
        stdin=json.dumps(sorted({*names, "RAY_AUTH_MODE", *THREAD_VARIABLES})),
        python="installed",
    )
    answer = call(heads, command, _WORKERS_TIME_S, state_dir=project.state_dir)[heads[0].name]
    found = _or_problem(answer) or {}
    problem = {"problem": found["problem"]} if isinstance(found.get("problem"), str) else None
    return tuple(
        replace(node, worker=problem or found.get(node.installed["address"])) if node.installed else node
        for node in nodes
    )


def with_imports(project: Project, able: Sequence[Host], nodes: Nodes) -> Nodes:
    """Each node with what could be imported there.

    Args:
        project: whose state directory the connections use.
        able: hosts that answer and are provisioned.
        nodes: as they were inspected.
    """
    command = NodeCommand(["imports"], python="environment", as_service_user=True)
    answers = call(able, command, _IMPORTS_TIME_S, state_dir=project.state_dir)
    return tuple(replace(node, imports=_or_problem(answers.get(node.name))) for node in nodes)


def with_storage_trials(project: Project, able: Sequence[Host], nodes: Nodes) -> Nodes:
    """Each node with how its storage behaved; the arguments as above."""
    found = {node.name: node for node in nodes}
    commands = {host.name: _trial(host, found[host.name]) for host in able}
    answers = call(able, commands, _STORAGE_TIME_S, state_dir=project.state_dir)
    return tuple(replace(node, storage_trial=_or_problem(answers.get(node.name))) for node in nodes)


def with_ring(project: Project, able: Sequence[Host], nodes: Nodes) -> Nodes:
    """Each node with how fast it sent to its neighbour; the arguments as above."""
    ring = _ring(able, {node.name: node for node in nodes})
    if not ring:
        return nodes
    commands = {name: command for name, (_, command) in ring.items()}
    answers = call(able, commands, _RING_TIME_S, state_dir=project.state_dir)
    return tuple(
        replace(node, ring=_with_neighbour(answers.get(node.name), ring.get(node.name, (None,))[0]))
        for node in nodes
    )


def _trial(host: Host, node: NodeReport) -> NodeCommand:
    path = (node.installed or {})["storage"]["path"]
    return NodeCommand(["storage-trial", "--path", path, "--name", host.name], as_service_user=True)


def _ring(able: Sequence[Host], found: Mapping[str, NodeReport]) -> dict[str, tuple[str, NodeCommand]]:
    """Each host's name with the name of the next and what to ask it; {} where there are no two.

    The port is the last of the workers' range: it has to be open between nodes, and Ray takes it last.
    """
    if len(able) < 2:
        return {}
    places = {}
    for host in able:
        plan = found[host.name].installed or {}
        address = plan["address"]
        bracketed = f"[{address}]" if ":" in address else address
        places[host.name] = f"{bracketed}:{plan['ray']['ports']['workers'][1]}"
    word = secrets.token_hex(16)
    following = [*able[1:], able[0]]
    return {
        host.name: (
            other.name,
            NodeCommand(
                ["ring", "--own", places[host.name], "--next", places[other.name], f"--wait={_RING_WAIT_S}"],
                stdin=word,
            ),
        )
        for host, other in zip(able, following, strict=True)
    }


def _or_problem(answer: Answer | None) -> Mapping[str, Any] | None:
    if answer is None:
        return None
    try:
        found: Mapping[str, Any] = answer.json()
    except TransportError as error:
        return {"problem": str(error)}
    return found


def _with_neighbour(answer: Answer | None, name: str | None) -> Mapping[str, Any] | None:
    if answer is None:
        return None
    try:
        return {**answer.json(), "to": name}
    except TransportError as error:  # that is no word about the network between nodes
        return {"problem": str(error), "untried": True, "to": name}
