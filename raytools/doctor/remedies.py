"""What `raytools doctor --fix` may do about which finding. Only what is safe, and this cluster's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytools.doctor.model import Finding, NodeReport, Report
from raytools.errors import TransportError
from raytools.node.ray_temp_dir import KEPT_SESSIONS
from raytools.transport import NodeCommand, call

if TYPE_CHECKING:
    from raytools.inventory import Host
    from raytools.project import Project

_TIME_S = 330.0  # a unit may start for 300 s


@dataclass(frozen=True)
class Remedy:
    """One thing to do on one node; `what` says it to a person, `kind` to `python -m raytools.node mend`."""

    node: str
    root: str
    kind: str
    what: str


def remedies(report: Report) -> list[Remedy]:
    """What can be done about the findings that count, in the order in which it should be done. Pure."""
    nodes = {node.name: node for node in report.gathered.nodes}
    found = [
        remedy
        for finding in report.findings
        if finding.waived is None and finding.node in nodes
        for remedy in _of(finding, nodes[str(finding.node)])
    ]
    order = ("leftovers", "runs", "sessions", "unit")  # what is left may keep a unit from starting
    return sorted(dict.fromkeys(found), key=lambda one: (order.index(one.kind), one.node))


def _of(finding: Finding, node: NodeReport) -> Iterator[Remedy]:
    inspection = node.inspection or {}
    if finding.code == "RT801":
        ours = [one for one in inspection["rays"]["leftovers"] if one["ours"]]
        if ours:
            pids = ", ".join(str(one["pid"]) for one in ours)
            what = f"end what dead Rays of this cluster have left: pid {pids}"
            yield Remedy(node.name, node.root, "leftovers", what)
    elif finding.code == "RT803":
        stale = inspection["locks"]["stale"]
        yield Remedy(node.name, node.root, "runs", f"sweep what {len(stale)} killed runs have left")
    elif finding.code == "RT806" and len(inspection["files"]["sessions"]) > KEPT_SESSIONS:
        what = f"remove what sessions of Ray that are over have left, but for the last {KEPT_SESSIONS}"
        yield Remedy(node.name, node.root, "sessions", what)
    elif finding.code == "RT701":
        unit = inspection.get("unit")
        runs = (inspection.get("rays") or {}).get("ours")
        if node.role == "worker" and unit and "problem" not in unit and not runs:
            yield Remedy(node.name, node.root, "unit", f"restart {unit['name']}")


def apply_remedies(
    project: Project, hosts: Sequence[Host], wanted: Sequence[Remedy]
) -> Iterator[tuple[Remedy, str]]:
    """Does all of them, one kind after the other, the nodes of a kind at the same time.

    Yields:
        Each with what was done, or why not, when its kind is done on all nodes.
    """
    for kind in dict.fromkeys(one.kind for one in wanted):
        there = {one.node: one for one in wanted if one.kind == kind}
        asked = [host for host in hosts if host.name in there]
        commands = {
            name: NodeCommand(["mend", kind, "--root", remedy.root], python="environment")
            for name, remedy in there.items()
        }
        for name, answer in call(asked, commands, _TIME_S, state_dir=project.state_dir).items():
            try:
                said = str(answer.json()["done"])
            except TransportError as error:
                said = f"failed: {error}"
            yield there[name], said
