"""What a workload is, how one is found by name, and how the runs of one are judged.

Standard library only, Python 3.10: the controller, the head and the slot all import this file.
"""

from __future__ import annotations

import dataclasses
import importlib
import statistics
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

from raytools.errors import RaytoolsError
from raytools.units import parse_duration_s

ENTRY_POINT_GROUP = "raytools.workloads"
ALL = "all"  # stands for every workload (`raytools smoke --workload all`): none is called that

# A new workload of our own is one line here; those of third parties come by entry point.
BUILT_IN = {
    "autogluon": "raytools.workloads.autogluon:AutoGluon",
    "many-models": "raytools.workloads.many_models:ManyModels",
    "stress": "raytools.workloads.stress:Stress",
    "transfer": "raytools.workloads.transfer:Transfer",
    "tune": "raytools.workloads.tune:Tune",
}


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
        shared_dir: a directory that all nodes share and the run may write into; None where they share none.
        node: the node's name in the inventory.
        hand_over_dir: see `second_look_of`; None where nobody will look, or there is no way there.
    """

    cpus: int
    memory_bytes: int
    scratch_dir: Path
    inputs: Mapping[str, bytes]
    report: Callable[[str], None]
    detail: Callable[[str], None]
    gpus: int = 0
    shared_dir: Path | None = None
    node: str = ""
    hand_over_dir: Path | None = None


@dataclasses.dataclass(frozen=True)
class ClusterNode:
    """One node of the cluster: its name in the inventory, where Ray knows it, what each of its slots has."""

    name: str
    address: str
    node_id: str
    slots: int
    cpus: int
    memory_bytes: int


class Finished(Protocol):
    """How a workload tells that an entry has ended."""

    def __call__(
        self,
        entry: str,
        metrics: Mapping[str, Any],
        wall_s: float,
        outcome: str = "ok",
        message: str | None = None,
    ) -> None:
        """Writes the entry to the storage, whole, before it returns; tells whoever waits.

        Args:
            entry: one of `entries`.
            metrics: JSON types.
            wall_s: how long it took, all attempts together.
            outcome: `ok` or `failed`.
            message: why it failed.
        """


@dataclasses.dataclass(frozen=True)
class ClusterContext:
    """The cluster as the driver of a workload of scope `cluster` has it.

    Args:
        nodes: the living nodes that have slots.
        inputs: what `prepare` collected on the controller, by name.
        results_dir: of this smoke, as the head sees it: below the storage, kept.
        shared: whether all nodes see that directory.
        report: shows one line about an entry to the person who waits: a step that has begun.
        detail: the same, one line of many, of which the last one is shown.
        finished: to be called once for each entry that was done.
        done: metrics of the entries that an interrupted smoke had done: not to be done again.
    """

    nodes: Sequence[ClusterNode]
    inputs: Mapping[str, bytes]
    results_dir: Path
    shared: bool
    report: Callable[[str, str], None]
    detail: Callable[[str, str], None]
    finished: Finished
    done: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


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


@dataclasses.dataclass(frozen=True)
class Speed:
    """A metric that tells how fast a node was: seconds, and less is faster, unless it is said otherwise."""

    metric: str
    more_is_faster: bool = False


class Workload(Protocol):
    """Real work with a name, typed parameters, and a judgement: what the two scopes share.

    `scope` is `slot` (SlotWorkload: one limited run per slot of every node) or `cluster` (ClusterWorkload:
    one driver on the cluster's Ray). `Parameters` is a frozen dataclass; `option()` gives its fields their
    help texts. `shown_metrics` are columns of the table of runs, `shown_tables` metrics that are lists of
    objects.
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

    def judge(self, parameters: Any, runs: Sequence[WorkloadRun]) -> list[Reason]:
        """What speaks against the runs, beyond what `judge_runs` sees for every workload."""


class SlotWorkload(Workload, Protocol):
    """One limited run per slot of every node.

    `speed` may be missing (`speed_of` reads it): the metric by which nodes are compared beside wall time.
    So may `look_again` (`second_look_of`).
    """

    speed: Speed | None = None

    def run(self, parameters: Any, context: SlotContext) -> dict[str, Any]:
        """Does the work inside the slot and returns the metrics, as JSON types."""

    def time_s(self, parameters: Any) -> float | None:
        """Time limit of each run in seconds; None for the node's default (`runs.time`)."""


class ClusterWorkload(Workload, Protocol):
    """One driver on the cluster's Ray, one entry per configuration; what it starts pins itself (`pinned`)."""

    def entries(self, parameters: Any) -> tuple[str, ...]:
        """Names of all entries, in their order. Pure: an interrupted smoke is resumed by them."""

    def check_on_head(self, parameters: Any) -> None:
        """Checks what only the nodes' environment knows, on the head, before anything starts.

        May not import Ray, which reads the cluster's variables when it is imported.

        Raises:
            RaytoolsError: something is missing there; says what to add.
        """

    def run_cluster(self, parameters: Any, context: ClusterContext) -> None:
        """Does the entries that are not in `context.done`, and tells of each as it ends (`context.finished`).

        Runs on the head; Ray is connected. What is left in `context.results_dir` is there again on resume.
        """


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
    return [*BUILT_IN, *sorted({point.name for point in _entry_points()} - {*BUILT_IN, ALL})]


def find(name: str) -> Workload:
    """The workload of that name.

    Raises:
        RaytoolsError: there is none, which names the known ones, or another package's cannot be loaded.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return typing.cast("Workload", getattr(importlib.import_module(module), attribute)())
    for point in _entry_points():
        if point.name == name != ALL:
            return _load(point)
    raise RaytoolsError(
        f"there is no workload {name!r}",
        expected=f"one of {', '.join(names())}",
        fix=f"Workloads of other packages are found by the entry point group {ENTRY_POINT_GROUP!r}",
    )


def _load(point: Any) -> Workload:
    try:
        workload = typing.cast("Workload", point.load()())
        own_name = workload.name
    except Exception as error:  # another package's code, which may do anything
        raise RaytoolsError(
            f"workload {point.name} cannot be loaded from {point.value} ({type(error).__name__}: {error})",
            expected="a module that imports only the standard library at its top, and a class in it",
            fix=f"See the entry points {ENTRY_POINT_GROUP!r} of its package",
        ) from error
    if own_name != point.name:  # results and resume go by the workload's own
        raise RaytoolsError(
            f"workload {point.name}, {point.value}, calls itself {own_name!r}",
            expected="the same name in its entry point and in its class",
        )
    return workload


def _entry_points() -> Iterable[Any]:
    return entry_points(group=ENTRY_POINT_GROUP)


def speed_of(workload: Workload) -> Speed | None:
    """The metric by which a workload wants nodes to be compared; many have none and do not say so."""
    return getattr(workload, "speed", None)


def second_look_of(workload: Workload) -> Callable[[Any, SlotContext], dict[str, Any]] | None:
    """The optional method `look_again(parameters, context)` of a workload of scope `slot`.

    What a run leaves in `context.hand_over_dir` can be looked at from another node. That directory is on the
    storage that all nodes share; the run makes it if it needs it, and it is removed when the smoke ends. When
    all runs have ended, each that ended `ok` is looked at by another limited run, on another node if there is
    one: its `context.hand_over_dir` is that of the first, and the metrics that it returns are added to those
    of the first. A look that does not end `ok` fails the smoke. No second look takes place with less than two
    runs, or without shared storage.
    """
    return getattr(workload, "look_again", None)


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
    told = [(run_name(run.record), reason) for run in runs for reason in _judge_run(run, enforce)]
    not_held = dict.fromkeys(
        text for run in runs if entry_of(run.record) is not None for text in _not_enforced(run)
    )  # entries are promised nothing that would be missing
    return [*in_one_sentence(told), *(Reason(text, fails=False) for text in not_held)]


def _judge_run(run: WorkloadRun, enforce: str) -> Iterator[Reason]:
    outcome = run.record.get("outcome")
    if outcome != "ok":
        yield Reason(end_of(run.record))
    missing = _not_enforced(run)
    if missing and outcome != "refused" and entry_of(run.record) is None:  # refused says it, and was not run
        yield Reason(f"not enforced: {'; '.join(missing)}", fails=enforce == "strict")
    fairness = run.record.get("fairness") or {}
    if fairness.get("verdict") == "tainted":
        yield Reason(f"tainted: {'; '.join(fairness.get('reasons') or [])}", fails=False)


def _not_enforced(run: WorkloadRun) -> list[str]:
    return list((run.record.get("enforced") or {}).get("missing") or [])


def in_one_sentence(told: Iterable[tuple[str, Reason]]) -> Iterator[Reason]:
    """`n1, n2: REASON`: what holds for several runs is said once, in the order in which it came up.

    Args:
        told: the run's name, and what is to be said of it.
    """
    names: dict[Reason, list[str]] = {}
    for name, reason in told:
        names.setdefault(reason, []).append(name)
    for reason, those in names.items():
        yield dataclasses.replace(reason, text=f"{', '.join(those)}: {reason.text}")


def entry_command(workload: str, entry: str) -> list[str]:
    """What stands as `command` in the record of an entry."""
    return ["workload", workload, entry]


def entry_of(record: Mapping[str, Any]) -> str | None:
    """The entry whose record this is; None for a run in a slot."""
    command = record.get("command") or []
    return str(command[2]) if len(command) == 3 and command[0] == "workload" else None


def run_name(record: Mapping[str, Any]) -> str:
    """How people name a run: `node`, `node slot 1` where a node has several slots, or the entry."""
    if (entry := entry_of(record)) is not None:
        return entry
    host = record.get("host") or {}
    name, slot = host.get("name") or "unknown node", host.get("slot")
    return f"{name} slot {slot}" if slot else str(name)


def end_of(record: Mapping[str, Any]) -> str:
    """How a run ended, and what its record says about that."""
    return f"outcome {record.get('outcome')}{_why(record)}"


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
    """How far the runs' times lie apart: coefficient of variation of wall time, None below two runs.

    Entries are different work, so their times are no spread.
    """
    alike = [run for run in runs if entry_of(run.record) is None]
    walls_s = [
        wall_s for run in alike if (wall_s := (run.record.get("used") or {}).get("wall_s")) is not None
    ]
    cv = statistics.stdev(walls_s) / statistics.mean(walls_s) if len(walls_s) > 1 else None
    return {"metric": "wall_s", "cv": None if cv is None else round(cv, 4)}


def smoke_document(
    workload: Workload,
    parameters: Any,
    runs: Sequence[WorkloadRun],
    *,
    enforce: str,
    missing: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    equality: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The fixed JSON `raytools.smoke/1`: every run, and the verdict with its reasons.

    Args:
        missing: what was expected and did not take part, one sentence each; every one fails.
        inputs: sha256 of what travelled to the slots, by name.
        equality: `max_slower`, a share, and `baseline`, what `equality.baseline_of` made, or None; of scope
            `slot` only.
    """
    from raytools.workloads import equality as nodes  # it takes its words from here

    asked = equality or {}
    document = _document(workload, parameters, runs, enforce=enforce, inputs=inputs)
    reasons = [Reason(text) for text in missing]
    reasons += judge_runs(runs, enforce=enforce)
    reasons += workload.judge(parameters, runs)
    if workload.scope == "cluster":  # entries use all nodes together: there is nothing to compare nodes by
        return document | _verdict(reasons)
    max_slower = asked.get("max_slower", nodes.DEFAULT_MAX_SLOWER)
    figures, unequal = nodes.compare_nodes(runs, speed_of(workload), max_slower)
    document["equality"] = figures
    reasons += unequal
    if asked.get("baseline"):
        figures["baseline"], slower = nodes.compare_with_baseline(document, asked["baseline"])
        reasons += slower
    return document | _verdict(reasons)


def unfinished_document(
    workload: Workload,
    parameters: Any,
    runs: Sequence[WorkloadRun],
    *,
    enforce: str,
    missing: Sequence[str],
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The same of a smoke that came to no end: what had finished. It fails, and nodes are not compared.

    Args:
        missing: what had not finished, one sentence each.
    """
    reasons = [Reason(text) for text in missing] + judge_runs(runs, enforce=enforce)
    document = _document(workload, parameters, runs, enforce=enforce, inputs=inputs)
    return document | _verdict(reasons) | {"complete": False, "verdict": "fail"}


def _document(
    workload: Workload,
    parameters: Any,
    runs: Sequence[WorkloadRun],
    *,
    enforce: str,
    inputs: Mapping[str, str] | None,
) -> dict[str, Any]:
    """All but what is judged; the keys are in the order in which they are read."""
    return {
        "schema": "raytools.smoke/1",
        "workload": workload.name,
        "verdict": None,
        "reasons": [],
        "runs": [{"record": dict(run.record), "metrics": dict(run.metrics)} for run in runs],
        "spread": spread(runs),
        "parameters": dataclasses.asdict(parameters),
        "inputs": dict(inputs or {}),
        "enforce": enforce,
        "complete": True,
        "equality": None,
    }


def _verdict(reasons: Sequence[Reason]) -> dict[str, Any]:
    """The verdict and its reasons, those that fail first."""
    told = sorted(reasons, key=lambda reason: not reason.fails)
    return {
        "verdict": "fail" if any(reason.fails for reason in told) else "pass",
        "reasons": [reason.text for reason in told],
    }
