"""Drives a workload of scope `cluster`: one driver on the cluster's Ray, one entry per configuration.

Each entry is written to the storage when it ends (workload_ledger.py), so that an interrupted smoke can be
resumed and what had ended well is not done again. workload_runtime.py has the command line.

Events: `entries` (what was asked, and where results go); per entry `progress` and `finished`; the others as
there.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raytools.errors import RaytoolsError
from raytools.node import ray_view
from raytools.node.record import OK, Record, utc_at, utc_now, write_json
from raytools.node.workload_ledger import Ledger, find, held, read_request, write_request
from raytools.node.workload_link import (
    Emit,
    absent,
    become_driver,
    connected,
    decode_inputs,
    inventory_name,
    new_results_dir,
    shared_dir,
)

if TYPE_CHECKING:
    from raytools.workloads.base import ClusterContext, ClusterNode, ClusterWorkload, WorkloadRun

_HELD = "affinity"  # raytools.pinned, by whatever the entry starts
_OTHERS_END_WAIT_S = 3.0  # Ray takes a moment to see that what has just ended is gone
_NOT_HELD = "what an entry starts holds its CPUs (raytools.pinned); its memory and time are not limited"


def begin(request: Mapping[str, Any], node: dict[str, Any], emit: Emit) -> int:
    """A new smoke: 0 pass, 1 fail.

    Args:
        request: as the controller sent it.
        node: the plan of this node.
        emit: tells an event.

    Raises:
        RaytoolsError: the cluster or its environment cannot do it.
    """
    become_driver(node)
    workload, parameters = _asked(request)
    workload.check_on_head(parameters)
    nodes = _nodes(node, request)
    directory = new_results_dir(node, workload.name)
    with held(directory):
        write_request(directory, request)
        return _drive(
            _Smoke(request, directory, Ledger(directory, workload.entries(parameters))), node, nodes, emit
        )


def resume(request: Mapping[str, Any], node: dict[str, Any], emit: Emit) -> int:
    """The rest of an interrupted smoke, with what was asked then: 0 pass, 1 fail.

    Args:
        request: `resume` names the smoke, `workload` may; `nodes` are those of today.
        node: the plan of this node.
        emit: tells an event.

    Raises:
        RaytoolsError: there is no such smoke, it is still at work, or the cluster cannot do it.
    """
    become_driver(node)
    directory = find(Path(node["storage"]["path"], "results"), request["resume"], request.get("workload"))
    with held(directory):
        asked = {**read_request(directory), "nodes": request.get("nodes") or []}
        workload, parameters = _asked(asked)
        workload.check_on_head(parameters)
        nodes = _nodes(node, asked)
        return _drive(
            _Smoke(asked, directory, Ledger(directory, workload.entries(parameters))), node, nodes, emit
        )


@dataclasses.dataclass(frozen=True)
class _Smoke:
    """What was asked, where its results are, and which of them there are already."""

    request: Mapping[str, Any]
    directory: Path
    ledger: Ledger


def _asked(request: Mapping[str, Any]) -> tuple[ClusterWorkload, Any]:
    from raytools.workloads import base

    workload = cast("ClusterWorkload", base.find(request["workload"]))
    return workload, base.make_parameters(workload, request["parameters"])


def _nodes(node: Mapping[str, Any], request: Mapping[str, Any]) -> list[ClusterNode]:
    alive = [one for one in ray_view.view(node)["nodes"] if one["state"] == "ALIVE"]
    return cluster_nodes(alive, request.get("nodes") or [])


def cluster_nodes(ray_nodes: list[dict[str, Any]], expected: list[dict[str, str]]) -> list[ClusterNode]:
    """The nodes that have slots, under the inventory's names.

    Args:
        ray_nodes: the living nodes, as `ray_view` tells.
        expected: the inventory's nodes, `name` and `address`.

    Raises:
        RaytoolsError: none has a slot.
    """
    from raytools.workloads.base import ClusterNode

    found = []
    for one in ray_nodes:
        resources = one["resources_total"]
        slots = int(resources.get("run_slot", 0))
        if slots:
            found.append(
                ClusterNode(
                    name=inventory_name(one, ray_nodes, expected),
                    address=one["address"],
                    node_id=one["node_id"],
                    slots=slots,
                    cpus=int(resources.get("CPU", 0)) // slots,
                    memory_bytes=int(resources.get("memory", 0)) // slots,
                )
            )
    if not found:
        raise RaytoolsError(
            f"none of the {len(ray_nodes)} nodes of this Ray has a slot",
            expected="nodes started with the resource run_slot",
            fix="Run: ansible-playbook playbooks/cluster.yml",
        )
    return found


def _drive(smoke: _Smoke, node: Mapping[str, Any], nodes: list[ClusterNode], emit: Emit) -> int:
    from raytools.workloads import base

    request, ledger = smoke.request, smoke.ledger
    workload, parameters = _asked(request)
    emit(
        "entries",
        workload=workload.name,
        entries=list(ledger.entries),
        results=str(smoke.directory),
        **{name: request.get(name) for name in ("parameters", "input_digests", "enforce")},
    )
    for run in ledger.runs():
        _tell(run, emit)
    if ledger.left():
        with connected(node) as ray:
            others = others_at_work(ray)
            for text in others:
                emit("progress", run=ledger.left()[0], line=text, step=True)
            workload.run_cluster(parameters, _context(smoke, node, nodes, others, emit))
    document = base.smoke_document(
        workload,
        parameters,
        ledger.runs(),
        enforce=request["enforce"],
        missing=[
            *(f"{entry}: was not run" for entry in ledger.not_run()),
            *absent(request.get("nodes") or [], {one.name for one in nodes}),
        ],
        inputs=request.get("input_digests"),
    ) | {"id": smoke.directory.name, "directory": str(smoke.directory)}
    write_json(smoke.directory / "smoke.json", document)
    emit("result", document=document, results=str(smoke.directory))
    return 0 if document["verdict"] == "pass" else 1


def others_at_work(ray: Any) -> list[str]:
    """Whether other drivers held CPUs of this Ray when the smoke began: a reason not to compare its figures.

    Args:
        ray: the module, connected; nothing of the smoke is at work yet.

    Returns:
        One sentence, or nothing.
    """
    deadline = time.monotonic() + _OTHERS_END_WAIT_S
    while True:
        found = ray.cluster_resources().get("CPU", 0.0)
        free = ray.available_resources().get("CPU", 0.0)
        if found <= free:
            return []
        if time.monotonic() > deadline:
            return [
                f"other work held {found - free:g} of Ray's {found:g} CPUs when this began; see: ray status"
            ]
        time.sleep(0.1)


def _context(
    smoke: _Smoke, node: Mapping[str, Any], nodes: list[ClusterNode], others: Sequence[str], emit: Emit
) -> ClusterContext:
    from raytools.workloads.base import ClusterContext

    workload = smoke.request["workload"]
    environment = (node.get("environment") or {}).get("id")

    def finished(
        entry: str, metrics: Mapping[str, Any], wall_s: float, outcome: str = OK, message: str | None = None
    ) -> None:
        record = entry_record(workload, entry, wall_s, outcome, message)
        record.host.name, record.host.environment = _own_name(node, nodes), environment
        if others:
            record.fairness.verdict, record.fairness.reasons = "tainted", list(others)
        _tell(smoke.ledger.add(entry, record, metrics), emit)

    return ClusterContext(
        nodes=nodes,
        inputs=decode_inputs(smoke.request.get("inputs") or {}),
        results_dir=smoke.directory,
        shared=shared_dir(node) is not None,
        report=lambda entry, line: emit("progress", run=entry, line=line, step=True),
        detail=lambda entry, line: emit("progress", run=entry, line=line, step=False),
        finished=finished,
        done=smoke.ledger.done(),
    )


def _own_name(node: Mapping[str, Any], nodes: Sequence[ClusterNode]) -> str:
    """The head's name in the inventory; its plan has it, too, but may be of another inventory."""
    return next((one.name for one in nodes if one.address == node["address"]), str(node["name"]))


def _tell(run: WorkloadRun, emit: Emit) -> None:
    entry = run.metrics["entry"]
    emit("finished", run=entry, outcome=run.record["outcome"], record=run.record, metrics=run.metrics)


def entry_record(workload: str, entry: str, wall_s: float, outcome: str, message: str | None) -> Record:
    """The record of an entry that ended just now: what was held, and that nothing more was."""
    from raytools.workloads.base import entry_command

    record = Record(secrets.token_hex(6), entry_command(workload, entry), outcome=outcome, message=message)
    record.started_at, record.finished_at = utc_at(time.time() - wall_s), utc_now()
    record.enforced.cpu, record.enforced.missing = _HELD, [_NOT_HELD]
    record.used.wall_s = round(wall_s, 3)
    return record
