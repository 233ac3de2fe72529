"""What a workload is, how one is found by name, and how the runs of one are judged.

Standard library only, Python 3.10: the controller, the head and the slot all import this file.
"""

from __future__ import annotations

import dataclasses
import importlib
import statistics
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

from raytools.errors import RaytoolsError
from raytools.units import parse_duration_s

ENTRY_POINT_GROUP = "raytools.workloads"

# A new workload of our own is one line here; those of third parties come by entry point.
BUILT_IN = {"autogluon": "raytools.workloads.autogluon:AutoGluon"}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What travels to the slots: parameters without paths of the controller, and the bytes they stood for."""

    parameters: Any
    inputs: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SlotContext:
    """The slot a run is in, as promised.

    Args:
        cpus: number of CPU threads of the slot.
        memory_bytes: memory of the slot.
        scratch_dir: the run's own directory, gone after the run; its path is short.
        inputs: what `prepare` collected on the controller, by name.
        report: shows one line to the person who waits: a step that has begun.
        detail: one line of many, of which the last one is shown.
        gpus: number of GPUs of the slot.
    """

    cpus: int
    memory_bytes: int
    scratch_dir: Path
    inputs: Mapping[str, bytes]
    report: Callable[[str], None]
    detail: Callable[[str], None]
    gpus: int = 0


@dataclasses.dataclass(frozen=True)
class WorkloadRun:
    """One finished run: its record (`raytools.run/1`) and its metrics, {} if it got nowhere."""

    record: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Reason:
    """One sentence of a verdict. One that does not fail is still part of the verdict: it names its limits."""

    text: str
    fails: bool = True


class Workload(Protocol):
    """Real work with a name, typed parameters, and a judgement.

    `scope` is `slot` (one limited run per slot of every node) or `cluster` (one driver on the cluster's Ray).
    `Parameters` is a frozen dataclass; `option()` gives its fields their help texts. `shown_metrics` are
    columns of the table by node, `shown_tables` metrics that are lists of objects.
    """

    name: str
    summary: str
    scope: Literal["slot", "cluster"]
    shown_metrics: tuple[str, ...]
    shown_tables: tuple[str, ...]
    Parameters: type

    def check(self, parameters: Any) -> None:
        """Checks the parameters, on the controller, before anything else is looked at.

        Raises:
            RaytoolsError: one of them cannot be used.
        """

    def prepare(self, parameters: Any, cache_dir: Path) -> Prepared:
        """Collects the inputs of checked parameters, on the controller.

        Args:
            cache_dir: what was fetched once is kept here.

        Raises:
            RaytoolsError: an input cannot be had.
        """

    def run(self, parameters: Any, context: SlotContext) -> dict[str, Any]:
        """Does the work inside the slot and returns the metrics, as JSON types."""

    def time_s(self, parameters: Any) -> float | None:
        """Time limit of each run in seconds; None for the node's default (`runs.time`)."""

    def judge(self, parameters: Any, runs: Sequence[WorkloadRun]) -> list[Reason]:
        """What speaks against the runs, beyond what `judge_runs` sees for every workload."""


def option(default: Any, help_text: str, *, duration: bool = False) -> Any:
    """A field of a `Parameters` class.

    Args:
        default: the field's default.
        help_text: what `raytools smoke --help` says.
        duration: the value is seconds, written as people do (`90s`, `5m`).
    """
    return dataclasses.field(default=default, metadata={"help": help_text, "duration": duration})


def names() -> list[str]:
    """Names of all workloads that this Python knows, built-in ones first."""
    return [*BUILT_IN, *sorted({point.name for point in _entry_points()} - set(BUILT_IN))]


def find(name: str) -> Workload:
    """The workload of that name.

    Raises:
        RaytoolsError: there is none; names the known ones.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return typing.cast("Workload", getattr(importlib.import_module(module), attribute)())
    for point in _entry_points():
        if point.name == name:
            return typing.cast("Workload", point.load()())
    raise RaytoolsError(
        f"there is no workload {name!r}",
        expected=f"one of {', '.join(names())}",
        fix=f"Workloads of other packages are found by the entry point group {ENTRY_POINT_GROUP!r}",
    )


def _entry_points() -> Iterable[Any]:
    return entry_points(group=ENTRY_POINT_GROUP)


def make_parameters(workload: Workload, values: Mapping[str, Any]) -> Any:
    """A `Parameters` object from texts (`--set key=value`) or JSON values; what is left out gets its default.

    Raises:
        RaytoolsError: an unknown name, or a value of the wrong kind.
    """
    known = {field.name: field for field in dataclasses.fields(workload.Parameters)}
    hints = typing.get_type_hints(workload.Parameters)
    converted = {}
    for name, value in values.items():
        if name not in known:
            raise RaytoolsError(
                f"workload {workload.name} has no parameter {name!r}", expected=f"one of {', '.join(known)}"
            )
        try:
            converted[name] = _convert(value, hints[name], bool(known[name].metadata.get("duration")))
        except (ValueError, TypeError) as error:
            raise RaytoolsError(f"parameter {name} of workload {workload.name}: {error}") from error
    return workload.Parameters(**converted)


def _convert(value: Any, kind: Any, duration: bool) -> Any:
    """`value` as `kind`: str, int, float, bool, a tuple of str (comma-separated), or one of these or None."""
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if type(None) in options and value in (None, "", "none"):
        return None
    target = next(option for option in options if option is not type(None))
    if duration:
        return parse_duration_s(value)
    if typing.get_origin(target) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts if part.strip())
    if target is bool and not isinstance(value, bool):
        if str(value).lower() not in ("true", "false"):
            raise ValueError(f"found {value!r}, expected true or false")
        return str(value).lower() == "true"
    if target in (int, float):
        try:
            return target(value)
        except ValueError:
            raise ValueError(f"found {value!r}, expected a number ({target.__name__})") from None
    return target(value)


def judge_runs(runs: Sequence[WorkloadRun], *, enforce: str) -> list[Reason]:
    """What every workload is judged by: how its runs ended, whether their limits were real, who disturbed.

    Args:
        runs: all runs that were asked for, also those that never started.
        enforce: `strict` (a limit that was not enforced fails) or `best-effort` (it is said).
    """
    if not runs:
        return [Reason("no run took place")]
    reasons: list[Reason] = []
    for run in runs:
        where = run_name(run.record)
        if run.record.get("outcome") != "ok":
            reasons.append(Reason(f"{where}: outcome {run.record.get('outcome')}{_why(run.record)}"))
        enforced = run.record.get("enforced") or {}
        missing = enforced.get("missing") or []
        if missing and run.record.get("outcome") != "refused":  # refused says it already, and was not run
            reasons.append(Reason(f"{where}: not enforced: {'; '.join(missing)}", fails=enforce == "strict"))
        fairness = run.record.get("fairness") or {}
        if fairness.get("verdict") == "tainted":
            why = "; ".join(fairness.get("reasons") or [])
            reasons.append(Reason(f"{where}: tainted: {why}", fails=False))
    return reasons


def run_name(record: Mapping[str, Any]) -> str:
    """`node` or, where a node has several slots, `node slot 1`: how people name a run."""
    host = record.get("host") or {}
    name, slot = host.get("name") or "unknown node", host.get("slot")
    return f"{name} slot {slot}" if slot else str(name)


def _why(record: Mapping[str, Any]) -> str:
    """What the record says about its end, for a sentence."""
    if record.get("message"):
        return f" ({record['message']})"
    if record.get("outcome") == "timeout":
        return f" (its limit was {(record.get('limits') or {}).get('time_s')} s)"
    if record.get("outcome") == "failed":
        return f" (exit code {record.get('exit_code')}, signal {record.get('signal')})"
    return ""


def spread(runs: Sequence[WorkloadRun]) -> dict[str, Any]:
    """How far the runs' times lie apart: coefficient of variation of wall time, None below two runs."""
    walls_s = [wall_s for run in runs if (wall_s := (run.record.get("used") or {}).get("wall_s")) is not None]
    cv = statistics.stdev(walls_s) / statistics.mean(walls_s) if len(walls_s) > 1 else None
    return {"metric": "wall_s", "cv": None if cv is None else round(cv, 4)}


def smoke_document(
    workload: Workload,
    parameters: Any,
    runs: Sequence[WorkloadRun],
    *,
    enforce: str,
    missing: Sequence[str] = (),
) -> dict[str, Any]:
    """The fixed JSON `raytools.smoke/1`: every run, and the verdict with its reasons.

    Args:
        missing: what was expected and did not take part, one sentence each; every one fails.
    """
    reasons = [Reason(text) for text in missing]
    reasons += judge_runs(runs, enforce=enforce)
    reasons += workload.judge(parameters, runs)
    reasons.sort(key=lambda reason: not reason.fails)
    return {
        "schema": "raytools.smoke/1",
        "workload": workload.name,
        "verdict": "fail" if any(reason.fails for reason in reasons) else "pass",
        "reasons": [reason.text for reason in reasons],
        "runs": [{"record": dict(run.record), "metrics": dict(run.metrics)} for run in runs],
        "spread": spread(runs),
    }
