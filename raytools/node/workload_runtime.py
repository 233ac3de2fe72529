"""Drives one workload of scope `slot` on the cluster: one limited run in every slot of every node at once.

Runs on the head with the environment's Python: the request is JSON on standard input, events are JSON lines
on standard output. SIGTERM or SIGINT cancels the runs. Ray is imported inside functions only.

Events: `nodes`; per run `started`, `progress`, `trace`, `finished`; `waiting` for runs whose slot is taken;
`log` for lines nobody claimed; at the end `result` (the `raytools.smoke/1` document), `error` or `cancelled`.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import io
import json
import os
import re
import secrets
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from raytools.errors import RaytoolsError
from raytools.node import ray_view
from raytools.node.facts import read_node_json
from raytools.node.record import LOST, Record, utc_now, write_json

SCHEMA = "raytools.workload-request/1"
_MARKER = "@raytools "  # before our own lines among all that a run prints
_POLL_S = 0.2
_CANCEL_WAIT_S = 6.0  # less than transport gives a command that is called off
_WAITING_AFTER_S = 10.0
_RAY_PREFIX = re.compile(r"^\(.*?pid=\d+.*?\) ?")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")

Emit = Callable[..., None]


class _Cancelled(Exception):  # noqa: N818 - not an error: somebody asked for the end
    """The requester is gone or wants no more."""


def main(argv: list[str]) -> int:
    """`python -m raytools.node workload --node-json FILE`: 0 pass, 1 fail, 2 could not run, 130 cancelled."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node workload", description=main.__doc__)
    parser.add_argument("--node-json", required=True, help="the plan of this node")
    options = parser.parse_args(argv)
    request = json.load(sys.stdin)
    events = sys.stdout
    emit = _emitter(events)
    # Ray prints what runs print to this process's own output, which carries our events
    sys.stdout = sys.stderr = Listener(emit)
    try:
        return _drive(request, options.node_json, emit)
    except RaytoolsError as error:
        emit("error", found=error.found, expected=error.expected, fix=error.fix)
        return 2
    except (_Cancelled, KeyboardInterrupt):
        emit("cancelled")
        return 130
    finally:
        sys.stdout, sys.stderr = events, sys.__stderr__ or events


def encode_inputs(inputs: Mapping[str, bytes]) -> dict[str, str]:
    """Inputs as they travel in the request's `inputs`."""
    return {name: base64.b64encode(zlib.compress(data, 3)).decode() for name, data in inputs.items()}


def decode_inputs(texts: Mapping[str, str]) -> dict[str, bytes]:
    """The reverse of `encode_inputs`."""
    return {name: zlib.decompress(base64.b64decode(text)) for name, text in texts.items()}


def _emitter(events: TextIO) -> Emit:
    def emit(event: str, **fields: Any) -> None:
        events.write(json.dumps({"event": event, **fields}) + "\n")
        events.flush()

    return emit


class Listener(io.TextIOBase):
    """Standard output of the driver: Ray writes the runs' output here; our own lines in it become events."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(line)
        return len(text)

    def _take(self, line: str) -> None:
        _, found, payload = line.partition(_MARKER)
        if found and (message := _own_message(payload)):
            self._emit(**message)
            return
        said = _RAY_PREFIX.sub("", _ANSI.sub("", line)).rstrip()
        if said:
            self._emit("log", line=said)


def _own_message(payload: str) -> dict[str, Any] | None:
    """What we said in a run; None for a line of the run's own that happens to contain the marker."""
    try:
        message = json.loads(_ANSI.sub("", payload))
    except ValueError:
        return None
    return message if isinstance(message, dict) and {"event", "run"} <= message.keys() else None


def _drive(request: Mapping[str, Any], node_file: str, emit: Emit) -> int:
    from raytools.workloads import base

    node = read_node_json(node_file)
    if node is None:
        raise RaytoolsError(f"{node_file} is not a plan", fix="Run: ansible-playbook playbooks/cluster.yml")
    workload = base.find(request["workload"])
    parameters = base.make_parameters(workload, request["parameters"])
    ray_nodes = [one for one in ray_view.view(node)["nodes"] if one["state"] == "ALIVE"]
    expected = request.get("nodes") or []
    targets = _targets(ray_nodes, expected)
    emit("nodes", nodes=[dataclasses.asdict(target) for target in targets])
    results = _results_dir(node, workload.name)
    with _connected(node) as ray:
        pending = _submit(ray, workload, parameters, request, targets)
        try:
            runs = _collect(ray, pending, emit, results)
        except (_Cancelled, KeyboardInterrupt):
            _cancel(ray, pending)
            raise
    present = {target.host for target in targets} | {run.record["host"]["name"] for run in runs}
    document = base.smoke_document(
        workload, parameters, runs, enforce=request["enforce"], missing=_absent(expected, present)
    )
    write_json(results / "smoke.json", document)
    emit("result", document=document, results=str(results))
    return 0 if document["verdict"] == "pass" else 1


@dataclasses.dataclass(frozen=True)
class Target:
    """One run to start on a node that has a slot for it; `run` names it for people."""

    run: str
    host: str
    node_id: str


def _targets(ray_nodes: list[dict[str, Any]], expected: list[dict[str, str]]) -> list[Target]:
    """Every slot of every node that has slots.

    Args:
        ray_nodes: the living nodes, as `ray_view` tells.
        expected: the inventory's nodes, `name` and `address`, for the names.
    """
    found = []
    for one in ray_nodes:
        slots = int(one["resources_total"].get("run_slot", 0))
        name = _inventory_name(one, ray_nodes, expected)
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


def _inventory_name(
    one: Mapping[str, Any], ray_nodes: list[dict[str, Any]], expected: list[dict[str, str]]
) -> str:
    """The inventory's name of a node of Ray's, else what the node calls itself."""
    own = {one["name"], one["hostname"], one["address"]}
    named = [node["name"] for node in expected if own & {node["name"], node["address"]}]
    if not named and len(ray_nodes) == len(expected) == 1:  # `localhost` is no address Ray would know
        named = [expected[0]["name"]]
    return str(named[0] if named else one["hostname"])


def _absent(expected: list[dict[str, str]], present: set[str]) -> list[str]:
    """One sentence per node of the inventory that did not take part."""
    return [
        f"{node['name']}: in the inventory, but not in the cluster's Ray. See: raytools doctor"
        for node in expected
        if node["name"] not in present
    ]


class _connected:  # noqa: N801 - used as a function
    """A Ray driver on the cluster; leaving it ends what it started."""

    def __init__(self, node: Mapping[str, Any]) -> None:
        self._node = node

    def __enter__(self) -> Any:
        # The cluster's variables decide how runs behave; Ray and the runs read them when they start.
        os.environ["RAYTOOLS_ROOT"] = self._node["root"]
        os.environ["RAY_AUTH_MODE"] = self._node["ray"]["auth"]
        if self._node["ray"]["auth"] == "token":
            os.environ["RAY_AUTH_TOKEN_PATH"] = self._node["ray"]["token_path"]
        os.environ["RAY_DEDUP_LOGS"] = "0"  # nodes say the same lines; each is one node's progress
        os.environ["RAY_COLOR_PREFIX"] = "0"
        import ray

        ray.init(address=self._node["ray"]["gcs_address"], log_to_driver=True, logging_level="ERROR")
        signal.signal(signal.SIGTERM, _cancel_on_signal)  # after ray.init, which sets its own
        signal.signal(signal.SIGINT, _cancel_on_signal)
        return ray

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()


def _cancel_on_signal(_number: int, _frame: object) -> None:
    raise _Cancelled


def _submit(
    ray: Any, workload: Any, parameters: Any, request: Mapping[str, Any], targets: list[Target]
) -> dict[Any, Target]:
    """Starts one limited run per target; returns who will be answered by which reference."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raytools.node.ray_task import remote

    inputs = ray.put(decode_inputs(request.get("inputs") or {}))
    limited = remote(_run_here, enforce=request["enforce"], time=workload.time_s(parameters))
    settings = dataclasses.asdict(parameters)
    return {
        limited.options(
            name=f"smoke-{workload.name}",
            scheduling_strategy=NodeAffinitySchedulingStrategy(target.node_id, soft=False),
        ).remote(workload.name, settings, inputs, target.run): target
        for target in targets
    }


def _run_here(name: str, settings: dict[str, Any], inputs: dict[str, bytes], run: str) -> dict[str, Any]:
    """The run itself, in the slot: what `@raytools.remote` starts under limits."""
    from raytools.workloads import base

    def say(event: str, **fields: Any) -> None:
        print(_MARKER + json.dumps({"event": event, "run": run, **fields}), flush=True)

    workload = base.find(name)
    say("started")
    cpus, memory_bytes, gpus = _promised()
    with tempfile.TemporaryDirectory(prefix="w") as scratch:
        context = base.SlotContext(
            cpus=cpus,
            memory_bytes=memory_bytes,
            scratch_dir=Path(scratch),
            inputs=inputs,
            report=lambda line: say("progress", line=line, step=True),
            detail=lambda line: say("progress", line=line, step=False),
            gpus=gpus,
        )
        return workload.run(base.make_parameters(workload, settings), context)


def _promised() -> tuple[int, int, int]:
    """CPUs, memory and GPUs of the slot, as raytools.node.inside tells every run."""
    override = json.loads(os.environ["RAY_OVERRIDE_RESOURCES"])
    memory_bytes = int(override["memory"]) + int(override["object_store_memory"])
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    return int(os.environ["AG_CPU_COUNT"]), memory_bytes, len(gpus)


def _collect(ray: Any, pending: dict[Any, Target], emit: Emit, results: Path) -> list[Any]:
    """Waits for all runs; writes each as it ends. Short waits, so that a signal is answered at once."""
    runs: dict[Any, Any] = {}
    began, waiting_said = time.monotonic(), False
    while len(runs) < len(pending):
        left = [reference for reference in pending if reference not in runs]
        done, _ = ray.wait(left, num_returns=1, timeout=_POLL_S)
        for reference in done:
            runs[reference] = run = _outcome(ray, reference, pending[reference], emit)
            number = list(pending).index(reference)
            write_json(results / f"run-{number}.json", {"record": run.record, "metrics": run.metrics})
            emit("finished", run=pending[reference].run, outcome=run.record["outcome"])
        if not waiting_said and time.monotonic() - began > _WAITING_AFTER_S:
            waiting_said = True
            emit("waiting", runs=[pending[reference].run for reference in left])
    # by where they ran: which of a node's runs gets which of its slots is decided when it starts
    return sorted(
        runs.values(), key=lambda run: (str(run.record["host"]["name"]), run.record["host"]["slot"] or 0)
    )


def _outcome(ray: Any, reference: Any, target: Target, emit: Emit) -> Any:
    """What became of one run; a run that Ray lost gets a record that says so."""
    from ray.exceptions import RayError

    from raytools.workloads import base

    try:
        run = ray.get(reference)
    except RayError as error:
        if isinstance(getattr(error, "cause", None), RaytoolsError):
            raise error.cause from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        emit("log", line=f"{target.run}: {error}")
        lost = Record(secrets.token_hex(6), ["workload"], outcome=LOST, finished_at=utc_now(), message=first)
        lost.host.name = target.host
        return base.WorkloadRun(lost.to_json(), {})
    record = dict(run.record)
    if run.cause is not None and not record.get("message"):
        record["message"] = f"{type(run.cause).__name__}: {run.cause}"
    if run.trace:
        emit("trace", run=target.run, text=run.trace)
    return base.WorkloadRun(record, run.value or {})


def _cancel(ray: Any, pending: Mapping[Any, Target]) -> None:
    """Ends the runs and waits until they are gone; each worker tells its supervisor by closing its link."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # asked once is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for reference in pending:
        ray.cancel(reference, force=False)
    ray.wait(list(pending), num_returns=len(pending), timeout=_CANCEL_WAIT_S)


def _results_dir(node: Mapping[str, Any], workload: str) -> Path:
    """A new directory below the storage: `results/<workload>/<time>-<random>`."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path = Path(node["storage"]["path"], "results", workload, f"{stamp}-{secrets.token_hex(2)}")
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise RaytoolsError(
            f"{path} cannot be made: {error.strerror}", expected="a writable storage"
        ) from error
    return path
