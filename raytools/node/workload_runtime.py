"""`python -m raytools.node workload`: drives a workload on the cluster, as its scope asks.

Runs on the head with the environment's Python: the request is JSON on standard input, events are JSON lines
on standard output. SIGTERM or SIGINT cancels the runs. Scope `slot` is in workload_slots.py, scope
`cluster` in workload_cluster.py.

Events: `nodes`; per run `started`, `progress`, `trace`, `finished`; `again` for a run that was lost and is
done once more; `waiting` for runs whose slot is taken; `log` for lines nobody claimed; at the end `result`
(the `raytools.smoke/1` document), `error` or `cancelled`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node import workload_cluster, workload_slots
from raytools.node.facts import read_node_json
from raytools.node.workload_link import Cancelled, Emit, Listener, emitter


def main(argv: list[str]) -> int:
    """`python -m raytools.node workload --node-json FILE`: 0 pass, 1 fail, 2 could not run, 130 cancelled."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node workload", description=main.__doc__)
    parser.add_argument("--node-json", required=True, help="the plan of this node")
    options = parser.parse_args(argv)
    request = json.load(sys.stdin)
    events = sys.stdout
    emit = emitter(events)
    # Ray prints what runs print to this process's own output, which carries our events
    sys.stdout = sys.stderr = Listener(emit)
    try:
        return _drive(request, options.node_json, emit)
    except RaytoolsError as error:
        emit("error", found=error.found, expected=error.expected, fix=error.fix)
        return 2
    except (Cancelled, KeyboardInterrupt):
        emit("cancelled")
        return 130
    finally:
        sys.stdout, sys.stderr = events, sys.__stderr__ or events


def _drive(request: Mapping[str, Any], node_file: str, emit: Emit) -> int:
    from raytools.workloads import base

    node = read_node_json(node_file)
    if node is None:
        raise RaytoolsError(f"{node_file} is not a plan", fix="Run: ansible-playbook playbooks/cluster.yml")
    if request.get("resume"):
        return workload_cluster.resume(request, node, emit)
    if base.find(request["workload"]).scope == "cluster":
        return workload_cluster.begin(request, node, emit)
    return workload_slots.begin(request, node, emit)
