"""Scope `slot` of a workload: one limited run in every slot of every node at once, and what becomes of each.

A run that was lost, with its node, its raylet or its supervisor, is done once more, elsewhere if there is
another node; both attempts are in the result. Nodes are looked at here, because Ray's own drivers notice one
without power by their connections (gRPC's keepalive, see KEEPALIVE_MS of ray_flags.py), later than its head.
Ray is imported inside functions only.
"""

from __future__ import annotations

import dataclasses
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raytools.errors import RaytoolsError
from raytools.node import ray_view, workload_second_look
from raytools.node.record import LOST, Record, utc_now, write_json
from raytools.node.records import Attempts
from raytools.node.workload_link import (
    Cancelled,
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
    from raytools.workloads.base import SlotWorkload, WorkloadRun

_POLL_S = 0.2
_LOOK_AT_NODES_S = 3.0
_CANCEL_WAIT_S = 6.0  # less than transport gives a command that is called off
_WAITING_AFTER_S = 10.0
_ATTEMPTS = 2  # of a run that is lost


def begin(request: Mapping[str, Any], node: dict[str, Any], emit: Emit) -> int:
    """A smoke: 0 pass, 1 fail.

    Args:
        request: as the controller sent it.
        node: the plan of this node.
        emit: tells an event.

    Raises:
        RaytoolsError: the cluster cannot do it.
    """
    from raytools.workloads import base

    become_driver(node)
    workload = cast("SlotWorkload", base.find(request["workload"]))
    parameters = base.make_parameters(workload, request["parameters"])
    expected = request.get("nodes") or []
    targets = _living(node, expected)
    results = new_results_dir(node, workload.name)
    emit("nodes", nodes=[dataclasses.asdict(target) for target in targets], results=str(results))
    with connected(node) as ray:
        smoke = SlotSmoke(ray, workload, parameters, request, node, results, emit)
        runs, troubles = smoke.run(targets)
    # by where they ran: which of a node's runs gets which of its slots is decided when it starts
    runs.sort(key=lambda run: (str(run.record["host"]["name"]), run.record["host"]["slot"] or 0))
    present = {target.host for target in targets} | {run.record["host"]["name"] for run in runs}
    document = base.smoke_document(
        workload,
        parameters,
        runs,
        enforce=request["enforce"],
        missing=absent(expected, present) + troubles,
        inputs=request.get("input_digests"),
        equality=request.get("equality"),
    ) | {"id": results.name, "directory": str(results)}
    write_json(results / "smoke.json", document)
    emit("result", document=document, results=str(results))
    return 0 if document["verdict"] == "pass" else 1


@dataclasses.dataclass(frozen=True)
class Target:
    """One run to start on a node that has a slot for it; `run` names it for people."""

    run: str
    host: str
    node_id: str
    attempt: int = 1


def targets_of(ray_nodes: list[dict[str, Any]], expected: list[dict[str, str]]) -> list[Target]:
    """Every slot of every node that has slots.

    Args:
        ray_nodes: the living nodes, as `ray_view` tells.
        expected: the inventory's nodes, `name` and `address`, for the names.

    Raises:
        RaytoolsError: none has a slot.
    """
    found = []
    for one in ray_nodes:
        slots = int(one["resources_total"].get("run_slot", 0))
        name = inventory_name(one, ray_nodes, expected)
        found += [
            Target(name if slots == 1 else f"{name} run {index + 1}", name, one["node_id"])
            for index in range(slots)
        ]
    if not found:
        raise RaytoolsError(
            f"none of the {len(ray_nodes)} nodes of this Ray has a slot",
            expected="nodes started with the resource run_slot",
            fix="Run: ansible-playbook playbooks/cluster.yml",
        )
    return found


def _living(node: Mapping[str, Any], expected: list[dict[str, str]]) -> list[Target]:
    """Every slot that Ray can give now."""
    alive = [one for one in ray_view.view(node)["nodes"] if one["state"] == "ALIVE"]
    return targets_of(alive, expected)


def elsewhere(lost: Target, living: Sequence[Target]) -> Target | None:
    """Where a run that was lost is done once more: on another host, else on its own if that has begun anew.

    Args:
        lost: where it was.
        living: the slots there are now.
    """
    found = [one for one in living if one.host != lost.host]
    found += [one for one in living if one.host == lost.host and one.node_id != lost.node_id]
    if not found:
        return None
    there = found[0]
    return Target(f"{lost.run} again on {there.host}", there.host, there.node_id, lost.attempt + 1)


class SlotSmoke:
    """The runs of one smoke: what was started, and what has become of it.

    Args:
        ray: the module, connected.
        workload, parameters: what runs.
        request: as the controller sent it.
        node: the plan of this node.
        results: the smoke's directory; each run is written there when it ends.
        emit: tells an event.
    """

    def __init__(
        self,
        ray: Any,
        workload: SlotWorkload,
        parameters: Any,
        request: Mapping[str, Any],
        node: Mapping[str, Any],
        results: Path,
        emit: Emit,
    ) -> None:
        self._ray, self._workload, self._parameters = ray, workload, parameters
        self._request, self._node, self._results, self._emit = request, node, results, emit
        self._started: dict[Any, Target] = {}  # by Ray's references, in the order of their starts
        self._runs: dict[Any, WorkloadRun] = {}
        self._hands_over = False
        self._inputs: Any = None

    def run(self, targets: Sequence[Target]) -> tuple[list[WorkloadRun], list[str]]:
        """All runs in the order of their targets, and one sentence for each second look that went wrong."""
        self._hands_over = _looks_again(self._workload, self._node, targets)
        self._inputs = self._ray.put(decode_inputs(self._request.get("inputs") or {}))
        try:
            for target in targets:
                self._start(target, "run", self._inputs, len(self._started))
            runs = self._collect()
            return self._look_again(runs) if self._hands_over else (runs, [])
        except (Cancelled, KeyboardInterrupt):
            self._cancel()
            raise
        finally:
            if self._hands_over:
                workload_second_look.remove_left(self._results, len(self._started), self._emit)

    def _start(self, target: Target, method: str, inputs: Any, owner: int) -> Any:
        """Starts one limited run.

        Args:
            target: where.
            method: `run` or `look_again` of the workload.
            inputs: for it, or a reference to them.
            owner: number of the run whose directory is handed over.

        Returns:
            Ray's reference.
        """
        reference = self._submit(target, method, inputs, self._left_by(owner))
        self._started[reference] = target
        return reference

    def _submit(self, target: Target, method: str, inputs: Any, hand_over: str | None) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from raytools.node.ray_task import remote
        from raytools.node.workload_in_slot import run_here

        workload, parameters = self._workload, self._parameters
        limited = remote(run_here, enforce=self._request["enforce"], time=workload.time_s(parameters))
        return limited.options(
            name=f"smoke-{workload.name}",
            scheduling_strategy=NodeAffinitySchedulingStrategy(target.node_id, soft=False),
        ).remote(workload.name, dataclasses.asdict(parameters), inputs, target.run, method, hand_over)

    def _left_by(self, number: int) -> str | None:
        """Where the run of that number leaves what it hands over, below the shared results."""
        if not self._hands_over:
            return None
        return f"{self._workload.name}/{self._results.name}/{workload_second_look.directory_name(number)}"

    def _collect(self) -> list[WorkloadRun]:
        """Waits for all runs. Short waits, so that a signal is answered at once."""
        began = looked = time.monotonic()
        waiting_said = False
        while left := [reference for reference in self._started if reference not in self._runs]:
            done, _ = self._ray.wait(left, num_returns=1, timeout=_POLL_S)
            for reference in done:
                self._ended(reference, self._outcome(reference))
            now = time.monotonic()
            if not waiting_said and now - began > _WAITING_AFTER_S:
                waiting_said = True
                self._emit("waiting", runs=[self._started[reference].run for reference in left])
            if now - looked > _LOOK_AT_NODES_S:
                looked = now
                for reference, run in self._on_dead_nodes([x for x in left if x not in self._runs]).items():
                    self._ended(reference, run)
        return [self._runs[reference] for reference in self._started]

    def _ended(self, reference: Any, run: WorkloadRun) -> None:
        """Writes and tells a run that has ended; one that was lost is done once more."""
        target = self._started[reference]
        run = dataclasses.replace(run, record={**run.record, "attempt": target.attempt})
        self._runs[reference] = run
        found = {"record": run.record, "metrics": run.metrics}
        write_json(self._results / f"run-{list(self._started).index(reference)}.json", found)
        self._emit("finished", run=target.run, outcome=run.record["outcome"], **found)
        if run.record["outcome"] == LOST and target.attempt < _ATTEMPTS:
            self._again(target)

    def _again(self, lost: Target) -> None:
        try:
            living = _living(self._node, self._request.get("nodes") or [])
        except RaytoolsError as error:
            self._emit("log", line=f"{lost.run} is not done again: {error}")
            return
        if (target := elsewhere(lost, living)) is None:
            self._emit("log", line=f"{lost.run} is not done again: there is no other node")
            return
        self._emit("again", run=target.run, lost=lost.run)
        self._start(target, "run", self._inputs, len(self._started))

    def _on_dead_nodes(self, left: Sequence[Any]) -> dict[Any, WorkloadRun]:
        """Those that Ray itself would wait for much longer, and what became of them."""
        alive = {one["NodeID"] for one in self._ray.nodes() if one["Alive"]}
        found = {}
        for reference in left:
            target = self._started[reference]
            if target.node_id not in alive:
                self._ray.cancel(reference, force=True)
                found[reference] = self._lost(reference, f"Ray holds its node, {target.host}, for dead")
        return found

    def _outcome(self, reference: Any) -> WorkloadRun:
        """What became of one run; a run that Ray lost gets a record that says so."""
        from ray.exceptions import RayError

        from raytools.workloads import base

        target = self._started[reference]
        try:
            run = self._ray.get(reference)
        except RayError as error:
            if isinstance(getattr(error, "cause", None), RaytoolsError):
                raise error.cause from error
            self._emit("log", line=f"{target.run}: {error}")
            first = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            return self._lost(reference, first)
        record = dict(run.record)
        if run.cause is not None and not record.get("message"):
            record["message"] = f"{type(run.cause).__name__}: {run.cause}"
        if run.trace:
            self._emit("trace", run=target.run, text=run.trace)
        return base.WorkloadRun(record, run.value or {})

    def _lost(self, reference: Any, why: str) -> WorkloadRun:
        """A run that nobody answers for; with what its supervisor noted at its start, where that is seen."""
        from raytools.workloads import base

        record = self._noted(reference) or Record(secrets.token_hex(6), ["workload"])
        record.outcome, record.message, record.finished_at = LOST, why, utc_now()
        record.host.name = self._started[reference].host
        return base.WorkloadRun(record.to_json(), {})

    def _noted(self, reference: Any) -> Record | None:
        """The run's record in the storage, which says from now on that it was lost."""
        folder = f"{self._node['storage']['path']}/records"
        target = self._started[reference]
        try:
            attempts = Attempts(folder, reference.task_id().hex(), str(self._node["name"]))
            return attempts.give_up(f"its node, {target.host}, does not answer for it")
        except (OSError, ValueError) as error:
            self._emit("log", line=f"{target.run}: its record below {folder} cannot be had: {error}")
            return None

    def _look_again(self, runs: list[WorkloadRun]) -> tuple[list[WorkloadRun], list[str]]:
        """The runs with what others found in what they had left, and what went wrong meanwhile."""
        targets = list(self._started.values())

        def start(owner: int, looker: int) -> Any:
            return self._start(targets[looker], "look_again", {}, owner)

        merged, troubles = workload_second_look.look_again(
            self._ray, runs, start, self._outcome, self._on_dead_nodes, self._results
        )
        for target, run in zip(targets, merged, strict=True):  # the controller keeps what it has heard last
            found = {"record": run.record, "metrics": run.metrics}
            self._emit("finished", run=target.run, outcome=run.record["outcome"], **found)
        return merged, troubles

    def _cancel(self) -> None:
        """Ends the runs and waits until they are gone; a worker tells its supervisor by closing its link."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # asked once is enough
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        started = list(self._started)
        for reference in started:
            self._ray.cancel(reference, force=False)
        self._ray.wait(started, num_returns=len(started), timeout=_CANCEL_WAIT_S)


def _looks_again(workload: SlotWorkload, node: Mapping[str, Any], targets: Sequence[Target]) -> bool:
    """Whether runs are looked at by others; see `base.second_look_of`."""
    from raytools.workloads import base

    several = len(targets) > 1
    return several and shared_dir(node) is not None and base.second_look_of(workload) is not None
