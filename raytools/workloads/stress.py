"""The workload `stress`: what can be asked of it, and how its runs are judged, each next to the others.

Standard library only; what happens inside the slot is in `stress_slot`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raytools.errors import RaytoolsError
from raytools.units import format_duration, format_size, parse_size_bytes
from raytools.workloads.base import Prepared, Reason, SlotContext, Speed, WorkloadRun, option, run_name

MOST_MEMORY_SHARE = 0.98  # the kernel's own: page tables are 0.2 %, and the program's code has to stay
# of the local disk, and with `shared_` before them of shared storage
STORAGE_METRICS = ("filesystem", "file_bytes", "write_bytes_per_s", "read_bytes_per_s", "fsync_ms")
_LEAST_CPU_SHARE, _MOST_CPU_SHARE = 0.9, 1.05
_LEAST_MEMORY_SHARE = 0.99
_SLOW = 0.5  # of the median of the others
_SLOWEST_BYTES_PER_S = 10e6  # that a run's time limit waits for
_COMPARED = {
    "cpu_work_per_s": "work of each CPU",
    "memory_touched_bytes_per_s": "memory touched",
    "write_bytes_per_s": "local disk, written",
    "read_bytes_per_s": "local disk, read",
    "shared_write_bytes_per_s": "shared storage, written",
    "shared_read_bytes_per_s": "shared storage, read",
}


@dataclasses.dataclass(frozen=True)
class StressParameters:
    """What can be asked of the workload."""

    seconds: float = option(10.0, "how long all CPUs are busy, 0 for not at all", duration=True)
    memory_share: float = option(0.95, "of the slot's memory, 0 for none of it")
    file_size: str = option("256MiB", "size of the file on each storage, 0 for none")
    shared: bool = option(True, "whether to use shared storage where the nodes have some")


class Stress:
    """Uses up what every slot was promised; tells which node gives less than the others."""

    name = "stress"
    summary = "all CPUs, nearly all memory, local disk and shared storage of every slot"
    scope: Literal["slot", "cluster"] = "slot"
    shown_tables: tuple[str, ...] = ()
    speed = Speed("cpu_work_per_s", more_is_faster=True)
    shown_metrics = ("cpu_s", "cpu_work_per_s", "memory_bytes", "write_bytes_per_s", "read_bytes_per_s")
    Parameters = StressParameters

    def check(self, parameters: StressParameters) -> None:
        """Ranges; see `Workload.check`."""
        if not 0 <= parameters.seconds < math.inf:
            raise RaytoolsError(f"seconds is {parameters.seconds}", expected="0 or more")
        if not 0 <= parameters.memory_share <= MOST_MEMORY_SHARE:
            raise RaytoolsError(
                f"memory_share is {parameters.memory_share}",
                expected=f"0 to {MOST_MEMORY_SHARE}: the rest is what the program and the kernel need",
            )
        try:
            size_bytes = parse_size_bytes(parameters.file_size)
        except ValueError as error:
            raise RaytoolsError(f"file_size: {error}") from error
        if not (parameters.seconds or parameters.memory_share or size_bytes):
            raise RaytoolsError(
                "nothing is left to do", expected="seconds, memory_share or file_size above 0"
            )

    def prepare(self, parameters: StressParameters, cache_dir: Path) -> Prepared:  # noqa: ARG002
        """Nothing travels but the parameters; see `Workload.prepare`."""
        return Prepared(parameters)

    def run(self, parameters: StressParameters, context: SlotContext) -> dict[str, Any]:
        """CPUs, then memory, then storage; see `Workload.run`."""
        from raytools.workloads.stress_slot import stress

        return stress(parameters, context)

    def time_s(self, parameters: StressParameters) -> float | None:
        """Each storage is written and read once; memory, and all of a slow machine, get ten minutes."""
        storage_s = 4 * parse_size_bytes(parameters.file_size) / _SLOWEST_BYTES_PER_S
        return parameters.seconds + storage_s + 600

    def judge(self, parameters: StressParameters, runs: Sequence[WorkloadRun]) -> list[Reason]:
        """What a slot did not get, and what is slow compared with the others; see `Workload.judge`."""
        measured = [run for run in runs if run.metrics]
        reasons = [reason for run in measured for reason in _judge_one(parameters, run)]
        return reasons + [reason for run in measured for reason in _slow_figures(run, measured)]


def _judge_one(parameters: StressParameters, run: WorkloadRun) -> Iterator[Reason]:
    where, limits = run_name(run.record), run.record.get("limits") or {}
    for problem in run.metrics.get("problems") or ():
        yield Reason(f"{where}: {problem}")
    for note in run.metrics.get("notes") or ():
        yield Reason(f"{where}: {note}", fails=False)
    yield from _judge_cpus(parameters.seconds, where, limits.get("cpus"), run.metrics)
    held_bytes, limit_bytes = run.metrics.get("memory_bytes"), limits.get("memory_bytes")
    if held_bytes is None or limit_bytes is None:
        return
    asked_bytes = parameters.memory_share * limit_bytes
    if held_bytes < _LEAST_MEMORY_SHARE * asked_bytes:
        yield Reason(
            f"{where}: only {format_size(held_bytes)} of memory stayed in RAM, of {format_size(asked_bytes)}"
        )


def _judge_cpus(
    seconds: float, where: str, promised: int | None, metrics: Mapping[str, Any]
) -> Iterator[Reason]:
    """Whether the slot's CPUs were there, and nobody else's."""
    seen, cpu_s = metrics.get("cpus_seen"), metrics.get("cpu_s")
    if promised is None:
        return
    if seen is not None and seen != promised:
        yield Reason(f"{where}: {seen} CPUs were seen, the slot has {promised}")
        return
    if cpu_s is None:
        return
    asked_s = promised * seconds
    said = (
        f"{where}: {cpu_s:.1f} CPU seconds in {format_duration(seconds)}, {promised} CPUs have {asked_s:.1f}"
    )
    if cpu_s > _MOST_CPU_SHARE * asked_s:
        yield Reason(f"{said}: it used CPUs that are not its own")
    elif cpu_s < _LEAST_CPU_SHARE * asked_s:
        yield Reason(f"{said}: others used its CPUs", fails=False)


def _slow_figures(run: WorkloadRun, runs: Sequence[WorkloadRun]) -> Iterator[Reason]:
    """Figures below half the median of the other nodes; where there is one node only, of its other slots."""
    others = [other for other in runs if _host(other) != _host(run)] or [o for o in runs if o is not run]
    for name, what in _COMPARED.items():
        values = [other.metrics[name] for other in others if other.metrics.get(name) is not None]
        value = run.metrics.get(name)
        if value is None or not values:
            continue
        median = statistics.median(values)
        if value < _SLOW * median:
            yield Reason(
                f"{run_name(run.record)}: {what}: {_rate(name, value)}, less than half of what others have "
                f"(median {_rate(name, median)})",
                fails=False,
            )


def _host(run: WorkloadRun) -> Any:
    return (run.record.get("host") or {}).get("name")


def _rate(name: str, value: float) -> str:
    return f"{format_size(value)}/s" if "bytes" in name else f"{value:.0f} units/s"
