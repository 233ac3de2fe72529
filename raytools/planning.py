"""Collects what a plan needs — cluster.yaml, inventory, lock, facts of all nodes — and makes it.

The only side effects are reading files and one call per node; nothing is written and nothing printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytools.config import ClusterConfig, load_config
from raytools.errors import PlanError, TransportError
from raytools.inventory import Inventory, host_configs, load_inventory
from raytools.plan import EnvironmentRef, NodePlan, make_plans
from raytools.project import Project

FACTS_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class ClusterPlan:
    """The plans of all nodes, and what people should know about them."""

    nodes: Mapping[str, NodePlan]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """`raytools.plan/1`: node.json of every node, by name."""
        return {
            "schema": "raytools.plan/1",
            "nodes": {name: plan.to_json() for name, plan in self.nodes.items()},
            "warnings": list(self.warnings),
        }


def plan_cluster(project: Project, facts_by_host: Mapping[str, Any] | None = None) -> ClusterPlan:
    """The plan of a project's cluster.

    Args:
        project: which cluster.yaml and inventory.
        facts_by_host: plan for these machines instead of asking the real ones.

    Raises:
        ConfigError: cluster.yaml or the inventory is wrong.
        TransportError: a node does not answer.
        PlanError: what is declared does not fit the machines.
    """
    config = load_config(project.config_path)
    inventory = load_inventory(project.inventory_path)
    configs = host_configs(config, inventory)
    facts = gather_facts(project, inventory) if facts_by_host is None else facts_by_host
    environment, notes = environment_ref(project, config)
    plans = make_plans(configs, inventory.hosts, facts, environment)
    notes += [f"{name}: this host is in neither head nor workers and left out" for name in inventory.ignored]
    notes += [warning for plan in plans.values() for warning in plan.warnings]
    return ClusterPlan(plans, tuple(dict.fromkeys(notes)))


def gather_facts(project: Project, inventory: Inventory) -> dict[str, Any]:
    """Facts of all hosts, one call per node, in parallel.

    Raises:
        TransportError: one line for each node that does not answer; a plan needs them all.
    """
    from raytools.transport import NodeCommand, call

    commands = {host.name: NodeCommand(["facts", "--root", host.root]) for host in inventory.hosts}
    answers = call(inventory.hosts, commands, FACTS_TIMEOUT_S, state_dir=project.state_dir)
    facts: dict[str, Any] = {}
    problems: list[str] = []
    for name, answer in answers.items():
        try:
            facts[name] = answer.json()
        except TransportError as error:
            problems.append(str(error))
    if problems:
        raise TransportError("\n".join(problems))
    return facts


def environment_ref(project: Project, config: ClusterConfig) -> tuple[EnvironmentRef | None, list[str]]:
    """The environment a cluster uses as far as it is known, and why it is not known."""
    from raytools.environment.lock import misfits, read_current_lock
    from raytools.environment.spec import EnvironmentSpec

    name, prefix = config.environment.name, config.environment.prefix
    if prefix is not None:
        return EnvironmentRef(name, id=name, prefix=prefix.rstrip("/") or "/"), []
    spec = EnvironmentSpec.from_config(config)
    lock = read_current_lock(project, spec)
    if lock is None:
        return None, ["environment: not locked yet. raytools env lock"]
    changes = misfits(lock, spec)
    if changes:
        reason = f"environment: changed since it was locked ({'; '.join(changes)}). raytools env lock"
        return None, [reason]
    packages = {package["name"] for package in (*lock.conda, *lock.pip)}
    return EnvironmentRef(
        name, id=lock.environment_id, lock_digest=lock.digest, has_grpcio="grpcio" in packages
    ), []


def check_facts(data: object, source: str) -> Mapping[str, Any]:
    """Facts of invented machines: JSON of host name -> `raytools.facts/1`.

    Raises:
        PlanError: it is something else.
    """
    if isinstance(data, Mapping) and isinstance(data.get("nodes"), Mapping):
        data = data["nodes"]  # the output of `raytools facts --json`
    if not isinstance(data, Mapping) or not data:
        raise PlanError(f"{source}: found no facts", expected='{"NAME": <raytools.facts/1>, …}')
    for name, facts in data.items():
        try:
            cpu, memory = facts["cpu"], facts["memory"]
            complete = isinstance(cpu["usable"], int) and isinstance(memory["usable_bytes"], int)
            complete = complete and isinstance(cpu["threads"], list) and isinstance(cpu["allowed"], list)
        except (KeyError, TypeError):
            complete = False
        if not complete:
            raise PlanError(
                f"{source}: {name} is not facts of a machine",
                expected="cpu.usable, cpu.allowed, cpu.threads and memory.usable_bytes",
            )
    return data
