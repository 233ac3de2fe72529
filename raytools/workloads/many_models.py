"""The workload `many-models`: what can be asked of it, and how it is judged.

Standard library only. Tables of keys are in `many_models_data`, the fit of one key in `many_models_fit`, its
result and the count of them in `many_models_results`; `many_models_driver` drives, `many_models_methods` has
Ray's ways.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from raytools.errors import RaytoolsError
from raytools.workloads.base import ClusterContext, Prepared, Reason, WorkloadRun, option, run_name
from raytools.workloads.cluster_checks import judge_nodes, named, require_modules

TASKS, POOL, DATA, TUNE = "tasks", "pool", "data", "tune"
METHODS = (TASKS, POOL, DATA, TUNE)
BOOSTING, RIDGE, OLS = "boosting", "ridge", "ols"
FITS = (BOOSTING, RIDGE, OLS)
MOST_TUNE_MODELS = 1_000  # a trial of Tune costs many times such a fit
_MOST_FILES = 100_000  # of one method; a directory with more of them is slow on shared storage
_FEWEST_BATCHES = 64
_LARGEST_BATCHES = {BOOSTING: 250, RIDGE: 500, OLS: 5_000}  # about a second: 1 % of it is what a task costs


@dataclasses.dataclass(frozen=True)
class ManyModelsParameters:
    """What can be asked of the workload."""

    methods: tuple[str, ...] = option((TASKS, POOL, DATA), f"{', '.join(METHODS)}, or all")
    models: int = option(2_000, "how many, one for each key")
    batch: int = option(0, "models of each task and of each file; 0: by their number, at most a second's")
    cpus: int = option(1, "CPUs of each model, held by raytools.pinned; its fit has as many threads")
    fit: str = option(BOOSTING, f"what is fitted: {', '.join(FITS)}")
    seed: int = option(0, "of the tables and the fits")
    efficiency: float = option(0.0, "least CPU efficiency of each method, as a share; 0: only told")


class ManyModels:
    """Fits one small model per key by several of Ray's ways; tells what each costs over the fits alone."""

    name = "many-models"
    summary = "one small model per key: batched tasks, Pool, Ray Data and Tune, against the serial fit"
    scope: Literal["slot", "cluster"] = "cluster"
    shown_metrics = ("models", "models_per_s", "overhead_per_model_s", "cpu_efficiency", "nodes")
    shown_tables: tuple[str, ...] = ()
    Parameters = ManyModelsParameters

    def check(self, parameters: ManyModelsParameters) -> None:
        """Names, ranges, and what a method cannot do; see `Workload.check`."""
        methods = methods_of(parameters)
        if parameters.fit not in FITS:
            raise RaytoolsError(f"there is no fit {parameters.fit!r}", expected=f"one of {', '.join(FITS)}")
        for name, minimum in {"models": 1, "batch": 0, "cpus": 1, "seed": 0, "efficiency": 0}.items():
            found = getattr(parameters, name)
            if not found >= minimum:
                raise RaytoolsError(f"{name} is {found}", expected=f"at least {minimum}")
        if parameters.efficiency > 1:
            raise RaytoolsError(f"efficiency is {parameters.efficiency}", expected="a share, at most 1")
        if TUNE in methods and parameters.models > MOST_TUNE_MODELS:
            raise RaytoolsError(
                f"method {TUNE} was asked for {parameters.models} models, each of them a trial",
                expected=f"at most {MOST_TUNE_MODELS} models with it",
                fix="Leave it out: --set methods=tasks,pool,data",
            )
        if (files := math.ceil(parameters.models / batch_of(parameters))) > _MOST_FILES:
            raise RaytoolsError(
                f"batch is {parameters.batch}, which makes {files} files",
                expected=f"at most {_MOST_FILES}",
                fix="Leave batch out, or take a larger one",
            )

    def prepare(self, parameters: ManyModelsParameters, cache_dir: Path) -> Prepared:
        """Nothing travels: tables are made on the nodes; see `Workload.prepare`."""
        del cache_dir
        return Prepared(parameters)

    def entries(self, parameters: ManyModelsParameters) -> tuple[str, ...]:
        """One for each method; see `ClusterWorkload.entries`."""
        return methods_of(parameters)

    def check_on_head(self, parameters: ManyModelsParameters) -> None:
        """Whether the environment has what was asked for; see `ClusterWorkload.check_on_head`."""
        needed = dict.fromkeys(("numpy", "pyarrow", "threadpoolctl"), "the workload many-models")
        if parameters.fit != OLS:
            needed["sklearn"] = f"fit={parameters.fit}"
        if {DATA, TUNE} & set(methods_of(parameters)):
            needed["pandas"] = "each of the methods data and tune"
        require_modules(needed)

    def run_cluster(self, parameters: ManyModelsParameters, context: ClusterContext) -> None:
        """One method after the other; see `ClusterWorkload.run_cluster`."""
        from raytools.workloads.many_models_driver import run_methods

        run_methods(parameters, context)

    def judge(self, parameters: ManyModelsParameters, runs: Sequence[WorkloadRun]) -> list[Reason]:
        """Every model exactly once and the same in all methods, on the CPUs it held; see `Workload.judge`."""
        counted = [run for run in runs if run.metrics.get("models") is not None]
        return [reason for run in counted for reason in _judge_one(parameters, run)] + list(
            _judge_digests(counted)
        )


def methods_of(parameters: ManyModelsParameters) -> tuple[str, ...]:
    """The asked methods, each once, in their order.

    Raises:
        RaytoolsError: an unknown name, or none at all.
    """
    return named(parameters.methods, METHODS, "method")


def batch_of(parameters: ManyModelsParameters) -> int:
    """Models of each batch. The cluster has no say in it: a resumed smoke has to find the same batches."""
    if parameters.batch:
        return parameters.batch
    return max(1, min(_LARGEST_BATCHES[parameters.fit], math.ceil(parameters.models / _FEWEST_BATCHES)))


def _judge_one(parameters: ManyModelsParameters, run: WorkloadRun) -> Iterator[Reason]:
    where, metrics = run_name(run.record), run.metrics
    for name, what in (
        ("models_missing", "models are missing"),
        ("models_repeated", "models are there more than once"),
        ("models_refitted", "models that were finished before were fitted again"),
    ):
        if metrics.get(name):
            yield Reason(f"{where}: {metrics[name]} of {parameters.models} {what}")
    if metrics.get("models_failed"):
        yield Reason(f"{where}: {metrics['models_failed']} fits failed; the first: {metrics.get('problem')}")
    seen = metrics.get("cpus_seen")
    if seen is not None and seen > parameters.cpus:
        yield Reason(f"{where}: a fit could use {seen} CPUs, it was to hold {parameters.cpus}")
    yield from judge_nodes(run)
    efficiency = metrics.get("cpu_efficiency")
    if efficiency is not None and efficiency < parameters.efficiency:
        yield Reason(
            f"{where}: CPU efficiency {efficiency:.2f}, expected {parameters.efficiency:g}: "
            f"{1000 * metrics['overhead_per_model_s']:.2f} ms per model over "
            f"{1000 * metrics['serial_fit_s']:.2f} ms of the serial fit"
        )
    if metrics.get("models_before"):
        yield Reason(
            f"{where}: was resumed, {metrics['models_before']} models were finished before; its figures are "
            "those of the last part",
            fails=False,
        )


def _judge_digests(runs: Sequence[WorkloadRun]) -> Iterator[Reason]:
    """Methods that have all models must have the same ones: same seed, same predictions."""
    whole = [
        run
        for run in runs
        if not any(run.metrics.get(f"models_{name}") for name in ("missing", "repeated", "failed"))
    ]
    if len({run.metrics.get("digest") for run in whole}) > 1:
        found = ", ".join(f"{run_name(run.record)} {run.metrics.get('digest')}" for run in whole)
        yield Reason(f"the methods' models are not the same: {found}")
