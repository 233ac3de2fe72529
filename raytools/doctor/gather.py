"""Gathers what the checks judge: one call per node, Ray's view once on the head, all at the same time.

The only part of the doctor with side effects, and those are reading files and asking nodes. What cannot be
had is noted where it is missing; nothing here fails because of one node.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raytools.config import ClusterConfig, load_config
from raytools.doctor.model import LEVELS, Gathered, Level, LockState, NodeReport
from raytools.doctor.prove import prove
from raytools.errors import EnvironmentBuildError, PlanError, TransportError
from raytools.inventory import Host, Inventory, host_configs, load_inventory
from raytools.plan import as_set_up, make_plans
from raytools.planning import environment_ref
from raytools.project import Project
from raytools.transport import Answer, Asked, Calls, NodeCommand

NODE_TIME_S = 60.0
_SSH_VARIABLES = (
    "ansible_ssh_common_args", "ansible_ssh_extra_args", "ansible_ssh_args", "ansible_host_key_checking",
    "ansible_ssh_host_key_checking",
)  # fmt: skip


def gather(
    project: Project, level: Level, timeout_s: float = NODE_TIME_S, codes: Collection[str] | None = None
) -> Gathered:
    """All that the checks of a level need.

    Args:
        project: which cluster.yaml and inventory.
        level: how far to look.
        timeout_s: for each node.
        codes: of the checks that will be made; level prove tries only what these need. None: all.

    Raises:
        ConfigError: cluster.yaml or the inventory is wrong; nothing can be judged against it.
    """
    began = time.monotonic()
    config = load_config(project.config_path)
    inventory = load_inventory(project.inventory_path)
    configs = host_configs(config, inventory)
    timings = {"configuration": time.monotonic() - began}
    nodes = tuple(
        NodeReport(
            host.name,
            host.role,
            host.root,
            configs[host.name],
            address=host.cluster_address or host.address,
            ssh_arguments={
                name: str(value) for name in _SSH_VARIABLES if (value := host.variables.get(name)) is not None
            },
        )
        for host in inventory.hosts
    )
    gathered = Gathered(level, config, nodes, ansible_checks_host_keys=_ansible_checks_host_keys())
    if level == "config":
        return replace(gathered, lock=lock_state(project, config), timings_s=timings)
    began, asked_at = time.monotonic(), time.time()
    # the nodes think while this process reads the lock
    with Calls() as calls:
        asked = _inspect(calls, project, inventory, timeout_s)
        view = _ray_view(calls, project, inventory, timeout_s) if _includes(level, "cluster") else None
        lock = lock_state(project, config)
        answers = asked.answers()
        answered_at = time.time()
        ray, ray_error = _result(view.answers()[inventory.head.name]) if view else (None, None)
    nodes = tuple(_with_answer(node, answers[node.name]) for node in nodes)
    timings["nodes"] = time.monotonic() - began
    nodes, plan_error = _with_plans(project, config, inventory.hosts, nodes)
    if _includes(level, "prove"):
        nodes = prove(project, inventory.hosts, nodes, codes)
    return replace(
        gathered,
        nodes=nodes,
        lock=lock,
        plan_error=plan_error,
        ray=ray,
        ray_error=ray_error,
        timings_s=timings,
        asked_between=(asked_at, answered_at),
    )


def _ansible_checks_host_keys() -> bool | None:
    said = os.environ.get("ANSIBLE_HOST_KEY_CHECKING")
    return None if said is None else said.strip().lower() not in ("0", "false", "no", "off")


def _includes(level: Level, other: Level) -> bool:
    return LEVELS.index(level) >= LEVELS.index(other)


def lock_state(project: Project, config: ClusterConfig) -> LockState | None:
    """The lock on the controller, as far as it can be read; None where an existing prefix is used."""
    from raytools.environment.lock import misfits, read_current_lock
    from raytools.environment.spec import EnvironmentSpec

    spec = EnvironmentSpec.from_config(config)
    if spec.prefix is not None:
        return None
    try:
        lock = read_current_lock(project, spec)
        if lock is None:
            return LockState(None)
        packages = {package["name"]: package["version"] for package in lock.pip}
        return LockState(lock.environment_id, tuple(misfits(lock, spec)), packages=packages)
    except EnvironmentBuildError as error:
        return LockState(None, problem=str(error))


def _inspect(calls: Calls, project: Project, inventory: Inventory, timeout_s: float) -> Asked:
    commands = {
        host.name: NodeCommand(["inspect", "--node-json", f"{host.root}/node.json"])
        for host in inventory.hosts
    }
    return calls.start(inventory.hosts, commands, timeout_s, state_dir=project.state_dir)


def _with_answer(node: NodeReport, answer: Answer) -> NodeReport:
    try:
        return replace(node, inspection=answer.json())
    except TransportError as error:
        return replace(node, error=str(error))


def _ray_view(calls: Calls, project: Project, inventory: Inventory, timeout_s: float) -> Asked:
    head = inventory.head
    command = NodeCommand(["ray-view", "--node-json", f"{head.root}/node.json"], python="environment")
    return calls.start([head], command, timeout_s, state_dir=project.state_dir)


def _result(answer: Answer) -> tuple[Mapping[str, Any] | None, str | None]:
    if answer.error is None and answer.exit_code == 1 and answer.stderr.strip():
        return None, answer.stderr.strip().splitlines()[-1]  # ray_view's own sentence
    try:
        return answer.json(), None
    except TransportError as error:
        return None, str(error)


def _with_plans(
    project: Project, config: ClusterConfig, hosts: Sequence[Host], nodes: tuple[NodeReport, ...]
) -> tuple[tuple[NodeReport, ...], str | None]:
    """What cluster.yaml and the facts ask for now; a plan needs the facts of all nodes."""
    facts = {node.name: as_set_up(node.facts, node.installed) for node in nodes if node.facts is not None}
    if len(facts) < len(nodes):
        return nodes, None  # the missing nodes are findings of their own
    try:
        environment, _notes = environment_ref(project, config)
        plans = make_plans({node.name: node.config for node in nodes}, hosts, facts, environment)
    except (PlanError, EnvironmentBuildError) as error:
        return nodes, str(error)
    return tuple(replace(node, plan=plans[node.name].to_json()) for node in nodes), None
