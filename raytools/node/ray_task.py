"""`@raytools.remote`: a Ray task whose body runs in a slot, under limits, in a process of its own.

    @raytools.remote(memory="8GiB", time="30m")
    def fit(path): ...

    run = ray.get(fit.remote("a.csv"))      # Run(value, outcome, record)
    value = run.result()                    # the value, or RunFailed

Ray's worker only waits: the function runs in a child of the supervisor (see supervisor.py), because Ray can
neither limit a worker nor kill what a worker started. The task asks Ray for `run_slot: 1` and the slot's
CPUs, memory and GPUs, so that no plain task lands beside it. Ray is imported only where it is used.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from raytools.errors import RaytoolsError
from raytools.node import launch
from raytools.node.cgroup_tree import read_text
from raytools.node.local_run import Run, RunFailed
from raytools.node.plain import Plain
from raytools.node.plan_file import Node, find_node_file, load_node
from raytools.node.record import LOST, OK, Record, utc_now
from raytools.node.records import Attempts
from raytools.node.request import STRICT, RunRequest
from raytools.node.sweep import CALL_NAME_PREFIX
from raytools.units import parse_duration_s, parse_size_bytes

__all__ = ["RemoteFunction", "Run", "RunFailed", "remote"]

T = TypeVar("T")


class RunOptions(Plain):
    """What one decorated function asks for; None means what the slot or the plan gives."""

    cpus: int | None = None
    memory_bytes: int | None = None
    time_s: float | None = None
    grace_s: float | None = None
    gpus: int | None = None
    variables: Mapping[str, str] | None = None
    enforce: str = STRICT
    wait_s: float = 60.0  # Ray gives run_slot only once, but a `raytools run` from a shell may hold the CPUs
    retries: int = 0  # of a run that was lost


class RemoteFunction(Generic[T]):
    """A function that runs limited. `remote(*arguments)` submits it, `options(...)` passes options to Ray."""

    def __init__(
        self,
        function: Callable[..., T],
        run_options: RunOptions,
        retries: int | None,
        ray_options: Mapping[str, Any],
    ) -> None:
        self._function = function
        self._run_options = run_options
        self._retries = retries  # None: as planned
        self._ray_options = dict(ray_options)
        functools.update_wrapper(self, function)

    def __call__(self, *_arguments: Any, **_named: Any) -> T:
        raise TypeError(f"call {self._function.__name__}.remote(...): it runs on the cluster, under limits")

    def options(self, **ray_options: Any) -> RemoteFunction[T]:
        """The same function with other options of Ray's, such as `name` or `scheduling_strategy`."""
        merged = {**self._ray_options, **ray_options}
        return RemoteFunction(self._function, self._run_options, self._retries, merged)

    def remote(self, *arguments: Any, **named: Any) -> Any:
        """Submits one run; returns an ObjectRef whose value is a Run."""
        import ray
        from ray import cloudpickle

        # Ray resolves ObjectRefs among the outer task's arguments, so they stay separate from the function
        node = _own_node()
        options = self._run_options
        if self._retries is None:
            options = RunOptions(**{**vars(options), "retries": int(node.run_defaults.get("retries", 0))})
        wanted = {**_slot_resources(node), "max_retries": options.retries + 1, **self._ray_options}
        task = ray.remote(_run_in_slot).options(**wanted)
        return task.remote(cloudpickle.dumps(self._function), options, arguments, named)


def remote(
    function: Callable[..., T] | None = None,
    *,
    cpus: int | None = None,
    memory: str | int | None = None,
    time: str | float | None = None,
    grace: str | float | None = None,
    gpus: int | None = None,
    env: Mapping[str, str] | None = None,
    enforce: str = STRICT,
    retries: int | None = None,
    **ray_options: Any,
) -> Any:
    """Makes a function run on the cluster, one slot each, under hard limits.

    Args:
        function: the function, when used without parentheses.
        cpus: CPU threads, at most the slot's.
        memory: hard limit of everything the function starts, as "8GiB" or bytes.
        time: wall time, as "30m" or seconds; the run is killed then.
        grace: between SIGTERM at `time` and the kill.
        gpus: GPUs, at most the slot's.
        env: variables for the function's process.
        enforce: "strict" refuses what cannot be enforced, "best-effort" records it as missing.
        retries: how often a run is started again that was lost, with its node, raylet or supervisor. Every
            other end is a result. None takes `runs.retries` of the plan.
        ray_options: passed to Ray's task, such as `name`.

    Raises:
        ValueError: a size or duration cannot be read.
    """
    options = RunOptions(
        cpus=cpus,
        memory_bytes=None if memory is None else parse_size_bytes(memory),
        time_s=None if time is None else parse_duration_s(time),
        grace_s=None if grace is None else parse_duration_s(grace),
        gpus=gpus,
        variables=dict(env or {}),
        enforce=enforce,
        retries=retries or 0,
    )

    def decorate(decorated: Callable[..., T]) -> RemoteFunction[T]:
        return RemoteFunction(decorated, options, retries, ray_options)

    return decorate if function is None else decorate(function)


def _own_node() -> Node:
    node = load_node(find_node_file())
    if not node.data:
        raise RaytoolsError(
            "no node.json found: this process does not know the cluster's slots",
            expected="a driver on the head, in the cluster's environment",
            fix='Run: eval "$(raytools env activate)"',
        )
    return node


def _slot_resources(node: Node) -> dict[str, Any]:
    """What the Ray task asks for: a slot, and all that is in it. Slots of a cluster are equal by default."""
    slot = min(node.slots, key=lambda candidate: (len(candidate.cpus), candidate.memory_bytes))
    return {
        "num_cpus": len(slot.cpus),
        "num_gpus": len(slot.gpus),
        "memory": slot.memory_bytes,
        "resources": {"run_slot": 1},
    }


def _run_in_slot(
    pickled: bytes, options: RunOptions, arguments: tuple[Any, ...], named: dict[str, Any]
) -> Run:
    """The Ray task: hands the function to a supervisor and waits. Runs in Ray's worker on the node.

    Ray starts it again when its worker, raylet or node is gone, once more often than runs may be retried.
    So there is always an attempt left that reports: what became of a run is known only by its record then.
    """
    import ray
    from ray import cloudpickle

    node_file = find_node_file()
    node = load_node(node_file)
    attempts = _attempts(ray, node)
    attempt, raylet = _ray_attempt(ray), _raylet_pid()
    if attempt > 1 and (earlier := attempts.last()) is not None and earlier.outcome != LOST:
        return Run(None, earlier.outcome or LOST, earlier.to_json())
    resolve = functools.partial(_resolved, ray)
    call = (pickled, tuple(map(resolve, arguments)), {name: resolve(value) for name, value in named.items()})
    call_bytes = cloudpickle.dumps(call)
    while True:
        number = max([attempt, *(known + 1 for known in attempts.numbers())])
        if number > 1 + options.retries:
            lost = attempts.last() or _unknown(node, number - 1)
            return Run(None, LOST, lost.to_json())
        run = _attempt(call_bytes, options, node_file, attempts, number)
        if run.outcome != LOST:
            return run
        attempts.write(number, Record.from_json(run.record))
        if raylet is not None and _raylet_pid() != raylet:
            os._exit(1)  # without its raylet this worker is nobody's: Ray starts the next attempt elsewhere


def _attempts(ray: Any, node: Node) -> Attempts:
    task = ray.get_runtime_context().get_task_id()
    folder = node.records_directory or os.path.join(tempfile.gettempdir(), "raytools-records")
    return Attempts(folder, task, node.name)


def _ray_attempt(ray: Any) -> int:
    """Which attempt of Ray's at this task this is, from 1. Internal to Ray; tested with the pinned one."""
    return 1 + int(ray._private.worker.global_worker.core_worker.get_current_task_attempt_number())


def _unknown(node: Node, number: int) -> Record:
    record = Record(launch.new_run_id(), ["call"], outcome=LOST, attempt=number, finished_at=utc_now())
    record.message = f"Ray lost it {number} times, and no record of it is found on {node.name}"
    return record


def _attempt(
    call_bytes: bytes, options: RunOptions, node_file: str | None, attempts: Attempts, number: int
) -> Run:
    with tempfile.TemporaryDirectory(prefix=f"{CALL_NAME_PREFIX}{os.getpid()}-", dir="/tmp") as folder:
        call_file, answer_file = Path(folder, "call"), Path(folder, "answer")
        call_file.write_bytes(call_bytes)
        request = _request(options, call_file, answer_file, node_file)
        request.attempt = number
        request.record_path = attempts.path(number)
        record = launch.start_by_exec(request).wait(_print_notice)
        return _answer(record, answer_file)


def _resolved(ray: Any, value: Any) -> Any:
    # inside a tuple Ray leaves references as they are; a plain task would see the value
    return ray.get(value) if isinstance(value, ray.ObjectRef) else value


def _request(options: RunOptions, call_file: Path, answer_file: Path, node_file: str | None) -> RunRequest:
    environment = dict(os.environ)
    # the function must import what the worker could: runtime_env's working_dir and py_modules are on its path
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    return RunRequest(
        command=[sys.executable, "-m", "raytools.node", "call", str(call_file), str(answer_file)],
        cwd=str(Path.cwd()),
        environment=environment,
        variables=dict(options.variables or {}),
        cpus=options.cpus,
        memory_bytes=options.memory_bytes,
        gpus=options.gpus,
        time_s=options.time_s,
        grace_s=options.grace_s,
        wait_s=options.wait_s,
        enforce=options.enforce,
        node_file=node_file,
        scratch=str(call_file.parent),
        raylet_pid=_raylet_pid(),
    )


def _raylet_pid() -> int | None:
    """The raylet, which is its workers' parent; with it gone, Ray considers the task lost."""
    parent = os.getppid()
    return parent if (read_text(f"/proc/{parent}/comm") or "").strip() == "raylet" else None


def _print_notice(event: dict[str, Any]) -> None:
    if event["event"] in ("notice", "crashed"):
        # a worker's stderr is streamed to the driver
        sys.stderr.write(f"raytools: {event['text']}\n")


def _answer(record: Record, answer_file: Path) -> Run:
    from ray import cloudpickle

    outcome, plain = record.outcome or LOST, record.to_json()
    if answer_file.is_file() and (data := answer_file.read_bytes()):
        value, cause, trace = cloudpickle.loads(data)
        return Run(value if outcome == OK else None, outcome, plain, cause, trace)
    return Run(None, outcome, plain)
