"""The controller's side of `raytools smoke`: prepare the inputs, drive the head, hand over the verdict.

Prints nothing; what happens meanwhile is told to a callback, event by event (see node/workload_runtime.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raytools.errors import RaytoolsError, TransportError
from raytools.node.workload_runtime import SCHEMA, encode_inputs
from raytools.transport import NodeCommand, stream

if TYPE_CHECKING:
    from raytools.inventory import Inventory
    from raytools.project import Project
    from raytools.workloads.base import Workload

OnEvent = Callable[[dict[str, Any]], None]

_BUILD_IT = "Build and start the cluster: ansible-playbook playbooks/cluster.yml"


@dataclasses.dataclass(frozen=True)
class SmokeResult:
    """The document `raytools.smoke/1`, and the directory on the head where it and the records are."""

    document: dict[str, Any]
    directory: str


def run_smoke(
    project: Project,
    inventory: Inventory,
    workload: Workload,
    parameters: Any,
    *,
    enforce: str,
    on_event: OnEvent,
) -> SmokeResult:
    """Runs a workload in every slot of the cluster and waits for the verdict.

    Args:
        project: whose state directory caches tables.
        inventory: whose head is asked; every node of it must take part.
        workload: one of scope `slot`.
        parameters: of that workload.
        enforce: `strict` or `best-effort`.
        on_event: told every event as it comes.

    Raises:
        RaytoolsError: a parameter is wrong, the cluster is not there, or it could not run the workload.
    """
    if workload.scope != "slot":
        raise RaytoolsError(f"workload {workload.name} has scope {workload.scope!r}", expected="scope 'slot'")
    prepared = workload.prepare(parameters, project.state_dir / "data")
    request = {
        "schema": SCHEMA,
        "workload": workload.name,
        "parameters": dataclasses.asdict(prepared.parameters),
        "inputs": encode_inputs(prepared.inputs),
        "enforce": enforce,
        "nodes": [
            {"name": host.name, "address": host.cluster_address or host.address} for host in inventory.hosts
        ],
    }
    return _ask_head(project, inventory, request, on_event)


def _ask_head(
    project: Project, inventory: Inventory, request: dict[str, Any], on_event: OnEvent
) -> SmokeResult:
    head = inventory.head
    command = NodeCommand(
        ["workload", "--node-json", f"{head.root}/node.json"],
        stdin=json.dumps(request),
        python="installed",
    )
    last: dict[str, Any] = {}

    def take(line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = {"event": "log", "line": line}
        if event["event"] in ("result", "error", "cancelled"):
            last.update(event)
        on_event(event)

    answer = stream(head, command, take, state_dir=project.state_dir)
    if answer.error:
        raise TransportError(answer.error, fix=_BUILD_IT)
    if last.get("event") == "result":
        return SmokeResult(last["document"], last["results"])
    if last.get("event") == "error":
        raise RaytoolsError(
            f"{head.name}: {last['found']}", expected=last.get("expected"), fix=last.get("fix") or _BUILD_IT
        )
    said = "; ".join(answer.stderr.strip().splitlines()[-3:]) or "it said nothing"
    raise TransportError(
        f"{head.name}: the workload's driver ended with exit code {answer.exit_code} and no result ({said})"
    )
