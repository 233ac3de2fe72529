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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from raytools.errors import RaytoolsError
from raytools.node import launch
from raytools.node.plan_file import find_node_file, load_node
from raytools.node.record import OK
from raytools.node.request import STRICT, RunRequest
from raytools.node.sweep import RUN_NAME_PREFIX
from raytools.units import parse_duration_s, parse_size_bytes

T = TypeVar("T")


class RunFailed(RaytoolsError):  # noqa: N818 - the name is part of the public interface
    """A run did not end `ok`. `record` tells everything; `cause` is what the function raised, if it did."""

    exit_code = 1

    def __init__(self, record: Mapping[str, Any], cause: BaseException | None, trace: str | None) -> None:
        self.record = dict(record)
        self.cause = cause
        self.trace = trace
        message = record.get("message") or (f"{type(cause).__name__}: {cause}" if cause else None)
        text = f"run {record['run_id']} ended {record['outcome']}"
        super().__init__(text + (f": {message}" if message else "") + (f"\n{trace}" if trace else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return RunFailed, (self.record, self.cause, self.trace)


@dataclass(frozen=True)
class Run(Generic[T]):
    """What became of one run: the function's value (None unless `outcome` is ok) and the record."""

    value: T | None
    outcome: str
    record: dict[str, Any]
    cause: BaseException | None = None
    trace: str | None = None

    def result(self) -> T:
        """The function's value.

        Raises:
            RunFailed: the run ended otherwise; caused by what the function raised, if it did.
        """
        if self.outcome != OK:
            raise RunFailed(self.record, self.cause, self.trace) from self.cause
        return self.value  # type: ignore[return-value]  # None is a value, too


@dataclass(frozen=True)
class RunOptions:
    """What one decorated function asks for; None means what the slot gives."""

    cpus: int | None = None
    memory_bytes: int | None = None
    time_s: float | None = None
    grace_s: float | None = None
    gpus: int | None = None
    variables: Mapping[str, str] | None = None
    enforce: str = STRICT
    wait_s: float = 60.0  # Ray gives run_slot only once, but a `raytools run` from a shell may hold the CPUs


class RemoteFunction(Generic[T]):
    """A function that runs limited. `remote(*arguments)` submits it, `options(...)` passes options to Ray."""

    def __init__(
        self, function: Callable[..., T], run_options: RunOptions, ray_options: Mapping[str, Any]
    ) -> None:
        self._function = function
        self._run_options = run_options
        self._ray_options = dict(ray_options)
        functools.update_wrapper(self, function)

    def __call__(self, *_arguments: Any, **_named: Any) -> T:
        raise TypeError(f"call {self._function.__name__}.remote(...): it runs on the cluster, under limits")

    def options(self, **ray_options: Any) -> RemoteFunction[T]:
        """The same function with other options of Ray's, such as `name` or `scheduling_strategy`."""
        return RemoteFunction(self._function, self._run_options, {**self._ray_options, **ray_options})

    def remote(self, *arguments: Any, **named: Any) -> Any:
        """Submits one run; returns an ObjectRef whose value is a Run."""
        import ray
        from ray import cloudpickle

        # Ray resolves ObjectRefs among the outer task's arguments, so they stay separate from the function
        task = ray.remote(_run_in_slot).options(**{**_slot_resources(), **self._ray_options})
        return task.remote(cloudpickle.dumps(self._function), self._run_options, arguments, named)


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
    )

    def decorate(decorated: Callable[..., T]) -> RemoteFunction[T]:
        return RemoteFunction(decorated, options, ray_options)

    return decorate if function is None else decorate(function)


def _slot_resources() -> dict[str, Any]:
    """What the Ray task asks for: a slot, and all that is in it. Slots of a cluster are equal by default."""
    node = load_node(find_node_file())
    if not node.data:
        raise RaytoolsError(
            "no node.json found: this process does not know the cluster's slots",
            expected="a driver on the head, in the cluster's environment",
            fix='Run: eval "$(raytools env activate)"',
        )
    slot = min(node.slots, key=lambda candidate: (len(candidate.cpus), candidate.memory_bytes))
    return {
        "num_cpus": len(slot.cpus),
        "num_gpus": len(slot.gpus),
        "memory": slot.memory_bytes,
        "resources": {"run_slot": 1},
        "max_retries": 0,  # a run that ended is a result, also when it ended badly
    }


def _run_in_slot(
    pickled: bytes, options: RunOptions, arguments: tuple[Any, ...], named: dict[str, Any]
) -> Run[Any]:
    """The Ray task: hands the function to a supervisor and waits. Runs in Ray's worker on the node."""
    import ray
    from ray import cloudpickle

    resolve = functools.partial(_resolved, ray)
    call = (pickled, tuple(map(resolve, arguments)), {name: resolve(value) for name, value in named.items()})
    with tempfile.TemporaryDirectory(prefix=f"{RUN_NAME_PREFIX}call-") as folder:
        call_file, answer_file = Path(folder, "call"), Path(folder, "answer")
        call_file.write_bytes(cloudpickle.dumps(call))
        request = _request(options, call_file, answer_file)
        record = launch.start_by_exec(request).wait(_print_notice)
        return _answer(record.to_json(), answer_file)


def _resolved(ray: Any, value: Any) -> Any:
    # inside a tuple Ray leaves references as they are; a plain task would see the value
    return ray.get(value) if isinstance(value, ray.ObjectRef) else value


def _request(options: RunOptions, call_file: Path, answer_file: Path) -> RunRequest:
    node_file = find_node_file()
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
        node_file=str(node_file) if node_file else None,
        scratch=str(call_file.parent),
    )


def _print_notice(event: dict[str, Any]) -> None:
    if event["event"] in ("notice", "crashed"):
        # a worker's stderr is streamed to the driver
        sys.stderr.write(f"raytools: {event['text']}\n")


def _answer(record: dict[str, Any], answer_file: Path) -> Run[Any]:
    from ray import cloudpickle

    run: Run[Any] = Run(None, record["outcome"], record)
    if answer_file.is_file() and (data := answer_file.read_bytes()):
        value, cause, trace = cloudpickle.loads(data)
        return replace(run, value=value if run.outcome == OK else None, cause=cause, trace=trace)
    return run
