"""The controller's side of `raytools smoke`: prepare the inputs, drive the head, keep the result, return it.

Prints nothing; what happens meanwhile is told to a callback, event by event (see node/workload_runtime.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytools.errors import RaytoolsError, TransportError
from raytools.node.workload_link import SCHEMA, encode_inputs
from raytools.results import keep, new_id
from raytools.transport import NodeCommand, stream
from raytools.workloads.base import WorkloadRun, find, make_parameters, unfinished_document
from raytools.workloads.equality import DEFAULT_MAX_SLOWER

if TYPE_CHECKING:
    from raytools.inventory import Inventory
    from raytools.project import Project
    from raytools.workloads.base import Workload

OnEvent = Callable[[dict[str, Any]], None]

_BUILD_IT = "Build and start the cluster: ansible-playbook playbooks/cluster.yml"
_OLD_HEAD = (
    "the nodes were not compared: the head's toolkit is older than this raytools. "
    "Run: ansible-playbook playbooks/cluster.yml"
)


@dataclasses.dataclass(frozen=True)
class SmokeResult:
    """The document `raytools.smoke/1`, and whether it is kept here.

    Args:
        kept_as: its id for `raytools results`, None if it could not be kept.
        not_kept: why, None if it was.
    """

    document: dict[str, Any]
    kept_as: str | None
    not_kept: str | None = None


@dataclasses.dataclass
class _Heard:
    """What the head has told so far: enough to keep what had finished, should the end never come."""

    directory: str | None = None
    request: dict[str, Any] = dataclasses.field(default_factory=dict)
    asked: list[str] = dataclasses.field(default_factory=list)
    finished: dict[str, WorkloadRun] = dataclasses.field(default_factory=dict)
    last: dict[str, Any] = dataclasses.field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "nodes":
            self.asked = [node["run"] for node in event["nodes"]]
            self.directory = event.get("results")
        elif kind == "again":
            self.asked.append(event["run"])
        elif kind == "entries":
            self.asked = event["entries"]
            self.directory = event["results"]
            self.request |= event  # of a smoke that is resumed only the head knows what was asked
        elif kind == "finished" and "record" in event:
            self.finished[event["run"]] = WorkloadRun(event["record"], event["metrics"])
        elif kind in ("result", "error", "cancelled"):
            self.last.update(event)

    @property
    def document(self) -> dict[str, Any] | None:
        """The head's own, with what an older toolkit there does not say."""
        if self.last.get("event") != "result":
            return None
        document: dict[str, Any] = dict(self.last["document"])
        if "equality" not in document:
            document["reasons"] = [*document["reasons"], _OLD_HEAD]
        document.setdefault("id", Path(self.last["results"]).name)
        document.setdefault("directory", self.last["results"])
        return document


def run_smoke(
    project: Project,
    inventory: Inventory,
    workload: Workload,
    parameters: Any,
    *,
    enforce: str,
    on_event: OnEvent,
    max_slower: float = DEFAULT_MAX_SLOWER,
    baseline: Mapping[str, Any] | None = None,
) -> SmokeResult:
    """Runs a workload on the cluster, waits for the verdict, and keeps the document.

    When it comes to no end, what had finished is kept, and the event `kept` tells its id.

    Args:
        project: whose state directory caches tables and keeps results.
        inventory: whose head is asked; every node of it must take part.
        workload: what to run.
        parameters: of that workload.
        enforce: `strict` or `best-effort`.
        on_event: told every event as it comes.
        max_slower: share by which a node may be slower than its peers, and than in the baseline.
        baseline: what an earlier smoke left (raytools/baseline.py).

    Raises:
        RaytoolsError: a parameter is wrong, the cluster is not there, or it could not run the workload.
    """
    prepared = workload.prepare(parameters, project.state_dir / "data")
    request = {
        "schema": SCHEMA,
        "workload": workload.name,
        "parameters": dataclasses.asdict(prepared.parameters),
        "inputs": encode_inputs(prepared.inputs),
        "input_digests": {name: hashlib.sha256(data).hexdigest() for name, data in prepared.inputs.items()},
        "enforce": enforce,
        "equality": {"max_slower": max_slower, "baseline": baseline},
        "nodes": _nodes(inventory),
    }
    return _ask_and_keep(project, inventory, request, on_event)


def resume_smoke(
    project: Project, inventory: Inventory, name: str, workload: str | None, *, on_event: OnEvent
) -> SmokeResult:
    """Does what an interrupted smoke of scope `cluster` has left, with what was asked then.

    Args:
        project: keeps the result, in the place of that of the interrupted one.
        inventory: whose head has the results of that smoke.
        name: its directory on the head, its id, a part of the id, or `latest`.
        workload: only one of this workload.
        on_event: told every event as it comes.

    Raises:
        RaytoolsError: there is no such smoke, the cluster is not there, or it could not run the workload.
    """
    request = {"schema": SCHEMA, "resume": name, "workload": workload, "nodes": _nodes(inventory)}
    return _ask_and_keep(project, inventory, request, on_event)


def _nodes(inventory: Inventory) -> list[dict[str, str]]:
    return [{"name": host.name, "address": host.cluster_address or host.address} for host in inventory.hosts]


def _ask_and_keep(
    project: Project, inventory: Inventory, request: dict[str, Any], on_event: OnEvent
) -> SmokeResult:
    heard = _Heard(request=dict(request))
    try:
        document = _ask_head(project, inventory, request, heard, on_event)
    except (KeyboardInterrupt, RaytoolsError) as end:
        why = "when it was cancelled" if isinstance(end, KeyboardInterrupt) else f"when it ended ({end})"
        unfinished = heard.document or _unfinished(heard, why)
        if unfinished:
            _keep_what_finished(project.state_dir, unfinished, heard, on_event)
        raise
    try:
        return SmokeResult(document, keep(project.state_dir, document).id)
    except RaytoolsError as error:
        return SmokeResult(document, None, str(error))


def _ask_head(
    project: Project, inventory: Inventory, request: dict[str, Any], heard: _Heard, on_event: OnEvent
) -> dict[str, Any]:
    head = inventory.head
    command = NodeCommand(
        ["workload", "--node-json", f"{head.root}/node.json"],
        stdin=json.dumps(request),
        python="installed",
    )

    def take(line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = {"event": "log", "line": line}
        heard.take(event)
        on_event(event)

    answer = stream(head, command, take, state_dir=project.state_dir)
    if answer.error:
        raise TransportError(answer.error, fix=_BUILD_IT)
    if heard.document is not None:
        return heard.document
    last = heard.last
    if last.get("event") == "error":
        raise RaytoolsError(
            f"{head.name}: {last['found']}", expected=last.get("expected"), fix=last.get("fix") or _BUILD_IT
        )
    said = "; ".join(answer.stderr.strip().splitlines()[-3:]) or "it said nothing"
    raise TransportError(
        f"{head.name}: the workload's driver ended with exit code {answer.exit_code} and no result ({said})"
    )


def _unfinished(heard: _Heard, why: str) -> dict[str, Any] | None:
    """The document of a smoke that came to no end; None where it did not even begin."""
    if "parameters" not in heard.request:
        return None
    workload = find(heard.request["workload"])
    finished = dict(heard.finished)  # the reader of the head's output may still be at work
    missing = [f"{run}: had not finished {why}" for run in heard.asked if run not in finished]
    document = unfinished_document(
        workload,
        make_parameters(workload, heard.request["parameters"]),
        list(finished.values()),
        enforce=heard.request["enforce"],
        missing=missing or [f"there was no verdict yet {why}"],
        inputs=heard.request["input_digests"],
    )
    named = Path(heard.directory).name if heard.directory else new_id()
    return {**document, "id": named, "directory": heard.directory}


def _keep_what_finished(
    state_dir: Path, document: Mapping[str, Any], heard: _Heard, on_event: OnEvent
) -> None:
    """Tells the event `kept` or `not_kept`; nothing where no run had finished and nothing can be resumed."""
    if not document["runs"] and "entries" not in heard.request:
        return
    try:
        kept = keep(state_dir, document)
    except RaytoolsError as error:
        on_event({"event": "not_kept", "why": str(error)})
    else:
        finished, asked = len(document["runs"]), len(heard.asked)
        what = "entries" if "entries" in heard.request else "runs"
        on_event({"event": "kept", "id": kept.id, "finished": finished, "asked": asked, "what": what})
