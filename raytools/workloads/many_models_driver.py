"""The driver of the workload `many-models`, on the head: one method after the other, on the same tables.

In the results directory, below `many-models/`: `<method>/` with the models, `serial.json`, and `tables/`,
which goes when all is done. Standard library at import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import shutil
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytools.node.record import FAILED, OK, write_json
from raytools.node.workload_link import Cancelled
from raytools.workloads import start_together
from raytools.workloads.base import ClusterContext
from raytools.workloads.cluster_checks import require_ray, require_shared, workers_of
from raytools.workloads.many_models import DATA, TUNE, ManyModelsParameters, batch_of, methods_of
from raytools.workloads.many_models_data import Batch, batch_at, batches, make_table, table_path
from raytools.workloads.many_models_fit import Fit, Work, serial_fit_times_s
from raytools.workloads.many_models_methods import RUNNERS, Assignment, in_window
from raytools.workloads.many_models_results import Stamps, clear_unfinished, count, finished

_SERIAL_SAMPLE = 200  # fits: a second or two, and the median of them is steady
_MILLION = 1_000_000
_TELL_EVERY_S = 1.0

_asked_to_end = False  # by a signal


@dataclass(frozen=True)
class _Smoke:
    """What all methods share.

    Args:
        parameters: as asked.
        context: of this driver.
        cpus: of all nodes together, as Ray has them.
        workers: how many models can be fitted at a time.
    """

    parameters: ManyModelsParameters
    context: ClusterContext
    cpus: int
    workers: int

    @property
    def directory(self) -> Path:
        return self.context.results_dir / "many-models"

    @property
    def tables(self) -> Path:
        return self.directory / "tables"

    @property
    def fit(self) -> Fit:
        return Fit(self.parameters.fit, self.parameters.seed, self.parameters.cpus)


def run_methods(parameters: ManyModelsParameters, context: ClusterContext) -> None:
    """Every method that is not done yet, one after the other; each has the whole cluster.

    Raises:
        RaytoolsError: no node has as many CPUs as a model needs, or several nodes share no directory.
    """
    require_shared(context, "each of them reads tables that another has written")
    smoke = _Smoke(
        parameters,
        context,
        cpus=sum(node.slots * node.cpus for node in context.nodes),
        workers=workers_of(context.nodes, parameters.cpus, "a model"),
    )
    smoke.tables.mkdir(parents=True, exist_ok=True)
    with _heeding_signals():
        for method in methods_of(parameters):
            if method in context.done:
                continue
            began = time.monotonic()
            try:
                metrics = _run_method(method, smoke)
                problem = _problem(metrics)
            except Exception as error:  # of Ray or of a method: the others may do better
                if _asked_to_end:
                    raise Cancelled from error
                require_ray(error)
                traceback.print_exc()
                metrics, problem = {"method": method}, f"{type(error).__name__}: {_last_line(error)}"
            context.finished(method, metrics, time.monotonic() - began, FAILED if problem else OK, problem)
    shutil.rmtree(smoke.tables, ignore_errors=True)  # they are large, and can be made again


@contextlib.contextmanager
def _heeding_signals() -> Iterator[None]:
    """SIGTERM and SIGINT end the driver by `Cancelled`, at the latest when the next models are written.

    What a handler raises while Ray waits in its own code comes out as SystemError, if at all (ray.wait of
    Ray 2.58): so that there was a signal is noted, and looked at again.
    """
    global _asked_to_end

    def end(_number: int, _frame: object) -> None:
        global _asked_to_end
        _asked_to_end = True
        raise Cancelled

    _asked_to_end = False
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(error: Exception) -> str:
    """Ray has the trace of the worker first, and what was wrong in the last line."""
    return (str(error).strip().splitlines() or ["it said nothing"])[-1]


def _problem(metrics: dict[str, Any]) -> str | None:
    """Why the method is not done: it may be done again then, except for what is whole."""
    if metrics["models_failed"]:
        return f"{metrics['models_failed']} fits failed; the first: {metrics['problem']}"
    if metrics["models_missing"] or metrics["models_repeated"]:
        return f"{metrics['models_missing']} models missing, {metrics['models_repeated']} repeated"
    return None


def _run_method(method: str, smoke: _Smoke) -> dict[str, Any]:
    """Fits what is left of a method; then counts all of it from the files."""
    models, size = smoke.parameters.models, batch_of(smoke.parameters)
    wanted = batches(models, 1 if method == TUNE else size)
    results = smoke.directory / method
    clear_unfinished(results)
    before = finished(results, wanted)
    left = [batch for batch in wanted if batch.number not in before]
    if before:
        done = models - sum(batch.models for batch in left)
        smoke.context.report(method, f"goes on where it was interrupted, {done} models were finished")
    tables_s = _make_tables(method, smoke, sorted({batch.first // size for batch in left}))
    serial_fit_s = _serial_fit_s(method, smoke)
    progress = _Progress(method, smoke.context, sum(batch.models for batch in left))
    smoke.context.report(
        method, f"{progress.models} models in {len(left)} batches on {smoke.workers} workers"
    )
    works = [
        Work(batch, smoke.fit, str(table_path(smoke.tables, batch.first // size)), str(results))
        for batch in left
    ]
    began = time.monotonic()
    used = _run(method, works, smoke, progress)
    wall_s = time.monotonic() - began
    smoke.context.report(method, "counts the models in the files")
    return {
        "method": method,
        **count(results, models).metrics(),
        "nodes_unused": used.unused,
        "nodes_lost": used.lost,
        "models_before": models - progress.models,
        "models_refitted": _refitted(wanted, before, finished(results, wanted)),
        "batches": len(wanted),
        "driver_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "tables_s": round(tables_s, 3),
        **speeds(progress.models, wall_s, serial_fit_s, smoke.cpus, smoke.parameters.cpus),
    }


def _run(method: str, works: Sequence[Work], smoke: _Smoke, progress: _Progress) -> start_together.Nodes:
    gated = 0 if method == DATA else len(works)  # Ray Data decides itself how many nodes it needs
    gate = start_together.gate_name() if gated else ""
    with start_together.together(gate, smoke.context.nodes, smoke.fit.cpus, gated) as used:
        works = [dataclasses.replace(work, gate=gate) for work in works]
        RUNNERS[method](Assignment(works, smoke.workers, smoke.cpus, progress.add))
    return used


def _make_tables(method: str, smoke: _Smoke, numbers: Sequence[int]) -> float:
    """Writes the tables that are not there, on the cluster. Returns seconds."""
    models, size = smoke.parameters.models, batch_of(smoke.parameters)
    missing = [
        batch_at(number, models, size) for number in numbers if not table_path(smoke.tables, number).exists()
    ]
    calls = ((str(smoke.tables), batch, smoke.parameters.seed) for batch in missing)
    began = time.monotonic()
    keys = sum(batch.models for batch in missing)
    progress = _Progress(method, smoke.context, keys, "tables of {} of {} keys")
    for _, batch, _ in in_window(make_table, calls, smoke.cpus, cpus=1):
        progress.add(batch.models)
    return time.monotonic() - began


def _serial_fit_s(method: str, smoke: _Smoke) -> float:
    """Median of the fits of some keys in one process without Ray; measured once in each smoke."""
    path = smoke.directory / "serial.json"
    if path.exists():  # of this smoke, maybe before it was interrupted
        return float(json.loads(path.read_text())["median_s"])
    models = smoke.parameters.models
    keys = sorted({number * models // _SERIAL_SAMPLE for number in range(_SERIAL_SAMPLE)})
    smoke.context.report(method, f"{len(keys)} fits without Ray, to compare with")
    times_s: list[float] = []
    for _ in in_window(
        serial_fit_times_s, [(smoke.fit, keys)], 1, cpus=smoke.fit.cpus, results=times_s.extend
    ):
        pass
    write_json(path, {"median_s": statistics.median(times_s), "fits": len(times_s)})
    return statistics.median(times_s)


def speeds(
    models: int, wall_s: float, serial_fit_s: float, cpus: int, cpus_of_a_model: int
) -> dict[str, float | int | None]:
    """What a method costs beside the fits alone.

    Args:
        models: how many were fitted in `wall_s`.
        wall_s: from the first one handed out to the last one written, what starting workers takes included.
        serial_fit_s: of one model, alone on its CPUs.
        cpus: of the whole cluster.
        cpus_of_a_model: that each one holds.
    """
    share = wall_s * cpus / (cpus_of_a_model * models) if models else None
    return {
        "wall_s": round(wall_s, 3),
        "cpus": cpus,
        "serial_fit_s": round(serial_fit_s, 6),
        "models_per_s": round(models / wall_s, 3) if models else None,
        "overhead_per_model_s": None if share is None else round(share - serial_fit_s, 6),
        "cpu_efficiency": None if share is None else round(serial_fit_s / share, 4),
        "projected_million_s": round(_MILLION * wall_s / models, 1) if models else None,
    }


def _refitted(wanted: Sequence[Batch], before: Stamps, after: Stamps) -> int:
    """Models whose file was there before and is another one now."""
    return sum(
        batch.models
        for batch in wanted
        if batch.number in before and before[batch.number] != after.get(batch.number)
    )


class _Progress:
    """Tells how far it is, at most once a second."""

    def __init__(
        self, method: str, context: ClusterContext, models: int, text: str = "{} of {} models"
    ) -> None:
        self.models = models
        self._tell: Callable[[str], None] = lambda line: context.detail(method, line)
        self._text = text
        self._done = 0
        self._began = self._told = time.monotonic()

    def add(self, models: int) -> None:
        """So many more are done.

        Raises:
            Cancelled: a signal said so before.
        """
        if _asked_to_end:
            raise Cancelled
        self._done += models
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY_S or self._done == self.models:
            self._told = now
            per_s = self._done / max(now - self._began, 1e-9)
            left_s = (self.models - self._done) / per_s if per_s else 0
            self._tell(f"{self._text.format(self._done, self.models)}, {per_s:.0f}/s, {left_s:.0f} s left")
