"""What the doctor works on: gathered reports, checks, findings. Data only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raytools.config import ClusterConfig

Severity = Literal["error", "warning", "info"]
Level = Literal["config", "hosts", "cluster", "prove"]
Verdict = Literal["ok", "warning", "error"]
Status = Literal["pass", "warn", "fail", "skip", "crash"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")  # least first
LEVELS: tuple[Level, ...] = ("config", "hosts", "cluster", "prove")  # each includes those before it
PROVISION = "ansible-playbook playbooks/cluster.yml"


class Skipped(Exception):  # noqa: N818 - not an error: a check cannot be made, and says why
    """A check has nothing to judge; the text says what is missing."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. `message` gives values with units, `fix` a line or a command."""

    code: str
    severity: Severity
    node: str | None
    message: str
    fix: str
    declared: Any = None
    physical: Any = None
    logical: Any = None
    waived: str | None = None


@dataclass(frozen=True)
class NodeReport:
    """One node as gathered; a part that could not be gathered is None, or has a `problem` in words.

    Args:
        name: its name in the inventory.
        role: head or worker.
        root: where raytools is installed there.
        config: cluster.yaml merged with the host's own `raytools:` variable.
        error: why it could not be asked.
        inspection: the answer of `python -m raytools.node inspect`.
        plan: what cluster.yaml and its facts ask of it now; None if no plan can be made.
        proof: the answer of `python -m raytools.node run --check --json` (level prove).
        proof_error: why there is none.
        reach: where it tried to connect to (`to`, `address`, `name`, `port`), each with `problem` or None.
        reach_error: why it was not tried.
        shared: why it cannot share the storage with the others; empty if it can, None if it was not tried.
        address: where the inventory says that it is.
        resolved: what the nodes' own names mean here; None where its resolver did not answer.
        imports: module -> `problem` and `s`, or a `problem` of it all.
        storage_trial: `problems` and `fsync_ms` of the storage, or a `problem`.
        worker: `environ` of a worker of Ray there, or a `problem`.
        ring: `latency_ms` and `mbit_per_s` towards the neighbour `to`, or a `problem`; `untried` if the node
            itself could not be asked.
        outside: what of its Ray the controller tried to reach by addresses that are not for Ray (`address`,
            `port`, `name`), each with `problem`, None where it was reached; None if it was not tried.
        ssh_arguments: what the inventory adds to ssh's arguments, by variable.
    """

    name: str
    role: str
    root: str
    config: ClusterConfig
    error: str | None = None
    inspection: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] | None = None
    proof: Mapping[str, Any] | None = None
    proof_error: str | None = None
    reach: tuple[Mapping[str, Any], ...] | None = None
    reach_error: str | None = None
    shared: str | None = None
    address: str | None = None
    resolved: Mapping[str, list[str] | None] | None = None
    imports: Mapping[str, Any] | None = None
    storage_trial: Mapping[str, Any] | None = None
    ring: Mapping[str, Any] | None = None
    worker: Mapping[str, Any] | None = None
    outside: tuple[Mapping[str, Any], ...] | None = None
    ssh_arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def reachable(self) -> bool:
        """Whether it answered."""
        return self.inspection is not None

    @property
    def installed(self) -> Mapping[str, Any] | None:
        """Its node.json; None if it is not provisioned."""
        found: Mapping[str, Any] | None = (self.inspection or {}).get("node")
        return found

    @property
    def facts(self) -> Mapping[str, Any] | None:
        """Its facts; None if it did not answer or they could not be collected."""
        found: Mapping[str, Any] | None = (self.inspection or {}).get("facts")
        return None if not found or "problem" in found else found

    def need_facts(self) -> Mapping[str, Any]:
        """Its facts.

        Raises:
            Skipped: there are none.
        """
        self._need_answer()
        if self.facts is None:
            raise Skipped(f"its facts could not be collected: {(self.inspection or {})['facts']['problem']}")
        return self.facts

    def need_installed(self) -> Mapping[str, Any]:
        """Its node.json.

        Raises:
            Skipped: it is not provisioned.
        """
        self._need_answer()
        if self.installed is None:
            raise Skipped("the node is not provisioned")
        return self.installed

    def need(self, part: str) -> Any:
        """One part of its inspection.

        Raises:
            Skipped: it could not be gathered.
        """
        self._need_answer()
        found = (self.inspection or {}).get(part)
        if found is None:
            raise Skipped(f"nothing was gathered of its {part}")
        if isinstance(found, Mapping) and "problem" in found:
            raise Skipped(f"nothing could be gathered of its {part}: {found['problem']}")
        return found

    def need_raylet(self) -> Mapping[str, Any]:
        """Our raylet on this node.

        Raises:
            Skipped: none runs.
        """
        ours = self.need("rays")["ours"]
        if not ours:
            raise Skipped("Ray does not run here")
        raylet: Mapping[str, Any] = ours[0]
        return raylet

    def _need_answer(self) -> None:
        if not self.reachable:
            raise Skipped("the node did not answer")


@dataclass(frozen=True)
class LockState:
    """The environment's lock on the controller: its id and versions, why it does not fit what is declared."""

    environment_id: str | None
    misfits: tuple[str, ...] = ()
    problem: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gathered:
    """All that is known of the cluster at one moment."""

    level: Level
    config: ClusterConfig
    nodes: tuple[NodeReport, ...]
    lock: LockState | None = None
    plan_error: str | None = None
    ray: Mapping[str, Any] | None = None
    ray_error: str | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    ansible_checks_host_keys: bool | None = None
    """Whether Ansible's environment says so; None: it says nothing, and Ansible does check."""
    asked_between: tuple[float, float] | None = None
    """Seconds since 1970 by the controller's clock: when the nodes were asked, and when all had answered."""

    def need_ray(self) -> Mapping[str, Any]:
        """Ray's own view.

        Raises:
            Skipped: there is none.
        """
        if self.ray is None:
            raise Skipped("Ray's own view could not be had")
        return self.ray

    def ray_nodes(self, node: NodeReport) -> list[Mapping[str, Any]]:
        """What Ray says of one node, by its address; dead entries of this session included."""
        plan = node.installed or node.plan
        address = plan["address"] if plan else None
        return [one for one in (self.ray or {}).get("nodes", []) if one["address"] == address]

    def logical(self, node: NodeReport) -> Mapping[str, float] | None:
        """The resources Ray's scheduler has for a node; None if it has none."""
        alive = [one for one in self.ray_nodes(node) if one["state"] == "ALIVE"]
        return alive[0]["resources_total"] if alive else None


NodeCheck = Callable[[NodeReport, Gathered], Iterable[Finding]]
ClusterCheck = Callable[[Gathered], Iterable[Finding]]


@dataclass(frozen=True)
class Check:
    """One row of the table of checks: exactly one of the three functions is set.

    `of_results` is asked last: it judges what the other checks have said. What `comes_and_goes` finds can be
    there at one look, gone at the next, and back at the third: load, and what it slows.
    """

    code: str
    title: str
    level: Level
    per_node: NodeCheck | None = None
    of_cluster: ClusterCheck | None = None
    of_results: ResultCheck | None = None
    comes_and_goes: bool = False


@dataclass(frozen=True)
class CheckResult:
    """How one check went: over which nodes it has this status, and why it was skipped elsewhere."""

    code: str
    title: str
    status: Status
    nodes: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    comes_and_goes: bool = False


ResultCheck = Callable[[Gathered, Sequence[CheckResult], Sequence[Finding]], Iterable[Finding]]


@dataclass(frozen=True)
class Report:
    """The doctor's result. `verdict` is the worst finding that is not waived."""

    verdict: Verdict
    level: Level
    gathered: Gathered
    checks: tuple[CheckResult, ...]
    findings: tuple[Finding, ...]

    def worst_at_least(self, threshold: Severity) -> bool:
        """Whether a finding that counts is at or above a severity."""
        wanted = SEVERITIES.index(threshold)
        return any(SEVERITIES.index(one.severity) >= wanted for one in self.findings if one.waived is None)
