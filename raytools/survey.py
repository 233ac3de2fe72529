"""Asks every host what it is now, in one call each, and plans the cluster from the answers.

A host that does not answer is planned by the facts it had when it last did (`<state>/facts/NAME.json`), so
that equal slots do not change because a machine is down; one that never answered is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytools.config import ClusterConfig, load_config
from raytools.errors import PlanError, RaytoolsError, TransportError
from raytools.inventory import Host, Inventory, host_configs, load_inventory
from raytools.plan import HEAD_PORTS, NodePlan, as_set_up, make_plans
from raytools.planning import check_facts, environment_ref
from raytools.preflight import Judged, judge
from raytools.project import Project
from raytools.toolkit import PackedToolkit, pack_toolkit
from raytools.transport import NodeCommand, call, prepare_calls

SCHEMA = "raytools.preflight/1"
PROBE_TIMEOUT_S = 60.0
DASHBOARD_PORTS = ("dashboard", "dashboard_metrics")

State = Mapping[str, Any]


@dataclass(frozen=True)
class Survey:
    """What is known of all hosts before anything is changed.

    `errors` says of a host why it did not answer; `problem` why no plan can be made; `judged` holds per host
    what forbids to go on and what people should know.
    """

    inventory: Inventory
    plans: Mapping[str, NodePlan]
    states: Mapping[str, State]
    errors: Mapping[str, str]
    judged: Mapping[str, Judged]
    problem: str | None
    warnings: tuple[str, ...]
    toolkit: PackedToolkit
    python: str  # the version that is declared for the environment

    @property
    def possible(self) -> bool:
        """Whether the hosts that answer can be provisioned."""
        judged = self.judged.values()
        return self.problem is None and self.head_answers and not any(one.problems for one in judged)

    @property
    def head_answers(self) -> bool:
        """Without the head there is no cluster to join."""
        return self.inventory.head.name in self.states

    def to_json(self) -> dict[str, Any]:
        """`raytools.preflight/1`."""
        return {
            "schema": SCHEMA,
            "verdict": "ok" if self.possible and not self.errors else "error",
            "problem": self.problem,
            "warnings": list(self.warnings),
            "python": self.python,
            "toolkit": {"path": self.toolkit.path, "digest": self.toolkit.digest},
            "nodes": {host.name: self._node(host) for host in self.inventory.hosts},
        }

    def _node(self, host: Host) -> dict[str, Any]:
        plan, judged = self.plans.get(host.name), self.judged.get(host.name)
        return {
            "error": self.errors.get(host.name),
            "problems": list(judged.problems) if judged else [],
            "notes": list(judged.notes) if judged else [],
            "plan": plan.to_json() if plan else None,
            "state": self.states.get(host.name),
        }


def survey(project: Project, timeout_s: float = PROBE_TIMEOUT_S) -> Survey:
    """Looks at all hosts of a project; changes nothing on them.

    Args:
        project: which cluster.yaml and inventory; its state directory remembers facts.
        timeout_s: for each host.

    Raises:
        ConfigError: cluster.yaml or the inventory is wrong: no host is asked.
        RaytoolsError: the state directory cannot be written.
    """
    config = load_config(project.config_path)
    with ThreadPoolExecutor(1) as beside:  # Ansible takes half a second to list the hosts
        asked = beside.submit(load_inventory, project.inventory_path)
        packed = pack_toolkit(project.state_dir / "toolkit")
        prepare_calls()
        inventory = asked.result()
    configs = host_configs(config, inventory)
    asked_s = time.time()
    states, errors = _ask(project, inventory.hosts, configs, timeout_s)
    answered_s = time.time()
    facts, notes = _facts(project.state_dir / "facts", inventory.hosts, states)
    environment, more = environment_ref(project, config)
    notes += more
    notes += [f"{name}: this host is in neither head nor workers and left out" for name in inventory.ignored]
    known = [host for host in inventory.hosts if host.name in facts]
    for host, state in states.items():
        facts[host] = as_set_up(facts[host], state.get("node"))
    plans: Mapping[str, NodePlan] = {}
    problem = None
    try:
        plans = make_plans(configs, known, facts, environment) if inventory.head in known else {}
    except PlanError as error:
        problem = str(error)
    judged = judge(inventory.hosts, configs, plans, states, (asked_s, answered_s))
    notes += [warning for plan in plans.values() for warning in plan.warnings]
    return Survey(
        inventory,
        plans,
        states,
        errors,
        judged,
        problem,
        tuple(dict.fromkeys(notes)),
        packed,
        config.environment.python,
    )


def _ask(
    project: Project, hosts: Sequence[Host], configs: Mapping[str, ClusterConfig], timeout_s: float
) -> tuple[dict[str, State], dict[str, str]]:
    commands = {
        host.name: NodeCommand(["probe"], stdin=json.dumps(_request(host, configs[host.name])))
        for host in hosts
    }
    states: dict[str, State] = {}
    errors: dict[str, str] = {}
    for name, answer in call(hosts, commands, timeout_s, state_dir=project.state_dir).items():
        try:
            states[name] = answer.json()
        except TransportError as error:
            errors[name] = str(error)
    return states, errors


def _request(host: Host, config: ClusterConfig) -> dict[str, Any]:
    unused: tuple[str, ...] = () if host.role == "head" else HEAD_PORTS
    if not config.ray.dashboard.enabled:
        unused += DASHBOARD_PORTS
    return {
        "root": host.root,
        "cluster": config.cluster,
        "user": host.service_user,
        "ports": {name: port for name, port in config.ray.ports.single().items() if name not in unused},
        "storage_path": getattr(config.storage, "path", None) or getattr(config.storage, "mount", None),
    }


# ------------------------------------------------------------------------------ facts of hosts that are down


def _facts(
    directory: Path, hosts: Sequence[Host], states: Mapping[str, State]
) -> tuple[dict[str, Any], list[str]]:
    """Facts of all hosts that answer, remembered ones of those that do not, and what to say about it."""
    found: dict[str, Any] = {}
    notes = []
    for host in hosts:
        path = directory / f"{host.name}.json"
        if host.name in states:
            found[host.name] = states[host.name]["facts"]
            _remember(path, host, found[host.name])
        elif remembered := _remembered(path, host):
            found[host.name] = remembered
            when = str(remembered.get("collected_at", "?"))
            notes.append(f"{host.name}: does not answer; planned by its facts of {when}")
        else:
            notes.append(
                f"{host.name}: has never answered at {_place(host)}; the cluster is planned without it"
            )
    return found, notes


def _remember(path: Path, host: Host, facts: Any) -> None:
    new = path.with_suffix(f".{os.getpid()}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.write_text(json.dumps({"address": host.address, "port": host.port, "facts": facts}))
        new.replace(path)
    except OSError as error:
        raise RaytoolsError(
            f"the facts of {host.name} cannot be kept in {path.parent} ({error.strerror})",
            expected="a directory this user may write",
        ) from error


def _remembered(path: Path, host: Host) -> Any:
    """Facts of this very machine: a host that got another address may be another machine."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, PlanError):
        kept = json.loads(path.read_text())
        if (kept["address"], kept.get("port")) == (host.address, host.port):
            return check_facts({host.name: kept["facts"]}, str(path))[host.name]
    return None


def _place(host: Host) -> str:
    return f"{host.address} port {host.port}" if host.port else host.address
