"""The workload `tune`: what can be asked of it, which search goes with which scheduler, how it is judged.

Standard library only. What the driver does is in `tune_driver`, what a trial does in `tune_trial`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raytools.errors import RaytoolsError
from raytools.workloads.base import ClusterContext, Prepared, Reason, WorkloadRun, option, run_name
from raytools.workloads.cluster_checks import ALL, judge_nodes, named, require_modules
from raytools.workloads.tables import fetch, find_dataset

PBT = "pbt"  # a scheduler that is its own search: it changes the trials it has
SEARCHES = ("random", "optuna", "hyperopt", PBT)
SCHEDULERS = ("fifo", "asha", "hyperband", "median", PBT)
APIS = ("class", "function")
_FEWEST_ROWS = 100
_SAME_CONFIGURATIONS = ("random",)  # searches that try the same whatever the scheduler says
DRAWING = ("random", PBT)  # searches that learn nothing: all their trials can be had at once
_SEARCH_PACKAGES = {"optuna": "optuna", "hyperopt": "hyperopt"}


@dataclasses.dataclass(frozen=True)
class TuneParameters:
    """What can be asked of the workload."""

    searches: tuple[str, ...] = option(("random", "optuna"), f"{', '.join(SEARCHES)}, or {ALL}")
    schedulers: tuple[str, ...] = option(("fifo", "asha"), f"{', '.join(SCHEDULERS)}, or {ALL}")
    api: str = option("class", "how the trial is written for Tune: class (Trainable) or function")
    trials: int = option(24, "of each pair")
    epochs: int = option(27, "of each trial at most")
    cpus: int = option(1, "CPUs of each trial, held by raytools.pinned")
    dataset: str = option("diamonds", "table to train on: diamonds or breast_cancer")
    rows: int = option(20_000, "of the table at most, drawn by the seed")
    seed: int = option(0, "of the rows, the search and the models")
    mlflow: bool = option(False, "log to MLflow's file store, too (mlflow/ in the results)")
    saving: float = option(2.5, "how many times fewer epochs asha has to need than fifo; 0: not judged")
    loss: float = option(0.02, "how much worse asha's best score may be, as a share of fifo's")


@dataclasses.dataclass(frozen=True)
class Pair:
    """One entry: a search and a scheduler."""

    search: str
    scheduler: str

    @property
    def name(self) -> str:
        return f"{self.search}-{self.scheduler}"


class Tune:
    """Tunes gradient boosting with every asked pair; tells whether stopping early saves what it should."""

    name = "tune"
    summary = "Ray Tune: searches and schedulers on gradient boosting, trials pinned to their CPUs"
    scope: Literal["slot", "cluster"] = "cluster"
    shown_metrics = ("trials", "budget_epochs", "best_score", "score_metric", "nodes")
    shown_tables: tuple[str, ...] = ()
    Parameters = TuneParameters

    def check(self, parameters: TuneParameters) -> None:
        """Names, pairs and ranges; see `Workload.check`."""
        pairs(parameters)
        find_dataset(parameters.dataset)
        if parameters.api not in APIS:
            raise RaytoolsError(f"there is no api {parameters.api!r}", expected=f"one of {', '.join(APIS)}")
        least = {"trials": 1, "epochs": 1, "cpus": 1, "rows": _FEWEST_ROWS, "saving": 0, "loss": 0}
        for name, minimum in least.items():
            found = getattr(parameters, name)
            if not found >= minimum:
                raise RaytoolsError(f"{name} is {found}", expected=f"at least {minimum}")

    def prepare(self, parameters: TuneParameters, cache_dir: Path) -> Prepared:
        """Gets the table; see `Workload.prepare`."""
        content = fetch(parameters.dataset, cache_dir)
        return Prepared(parameters, {} if content is None else {"table": content})

    def entries(self, parameters: TuneParameters) -> tuple[str, ...]:
        """One for each pair; see `ClusterWorkload.entries`."""
        return tuple(pair.name for pair in pairs(parameters))

    def check_on_head(self, parameters: TuneParameters) -> None:
        """Whether the environment has what was asked for; see `ClusterWorkload.check_on_head`."""
        require_modules(needed_modules(parameters))

    def run_cluster(self, parameters: TuneParameters, context: ClusterContext) -> None:
        """One experiment after the other; see `ClusterWorkload.run_cluster`."""
        from raytools.workloads.tune_driver import run_pairs

        run_pairs(parameters, context)

    def judge(self, parameters: TuneParameters, runs: Sequence[WorkloadRun]) -> list[Reason]:
        """Lost trials, CPUs that were not held, and what stopping early saved; see `Workload.judge`."""
        ended = [run for run in runs if run.metrics.get("trials") is not None]
        return [reason for run in ended for reason in _judge_one(parameters, run)] + [
            reason for search in SEARCHES for reason in _judge_saving(parameters, search, ended)
        ]


def pairs(parameters: TuneParameters) -> tuple[Pair, ...]:
    """Every asked search with every asked scheduler; `all` stands for those that fit the others.

    Raises:
        RaytoolsError: an unknown name, or one that has nothing among the others that it goes with.
    """
    searches = named(parameters.searches, SEARCHES, "search")
    schedulers = named(parameters.schedulers, SCHEDULERS, "scheduler")
    found = tuple(
        Pair(search, scheduler)
        for search in searches
        for scheduler in schedulers
        if (search == PBT) == (scheduler == PBT)
    )
    alone = [
        *(
            (name, schedulers)
            for name in parameters.searches
            if _is_alone(name, {pair.search for pair in found})
        ),
        *(
            (name, searches)
            for name in parameters.schedulers
            if _is_alone(name, {pair.scheduler for pair in found})
        ),
    ]
    if alone:
        name, others = alone[0]
        raise RaytoolsError(
            f"{name} does not go with {', '.join(others)}",
            expected=f"search {PBT} with scheduler {PBT} and with nothing else: it is both",
        )
    return found


def _is_alone(name: str, paired: set[str]) -> bool:
    return name != ALL and name not in paired


def needed_modules(parameters: TuneParameters) -> dict[str, str]:
    """Which packages the asked pairs need, and what for."""
    found = dict.fromkeys(("pandas", "pyarrow", "sklearn"), "the workload tune")
    found["tensorboardX"] = "TensorBoard"
    for search in dict.fromkeys(pair.search for pair in pairs(parameters)):
        if search in _SEARCH_PACKAGES:
            found[_SEARCH_PACKAGES[search]] = f"search {search}"
    if parameters.mlflow:
        found["mlflow"] = "mlflow=true"
    return found


def _judge_one(parameters: TuneParameters, run: WorkloadRun) -> Iterator[Reason]:
    where, metrics = run_name(run.record), run.metrics
    if metrics["trials"] != parameters.trials:
        yield Reason(f"{where}: {metrics['trials']} trials, {parameters.trials} were asked for")
    if metrics.get("best_score") is None:
        yield Reason(f"{where}: no trial had a score")
    seen = metrics.get("cpus_seen")
    if seen is not None and seen > parameters.cpus:
        yield Reason(f"{where}: a trial could use {seen} CPUs, it was to hold {parameters.cpus}")
    yield from judge_nodes(run)
    if metrics.get("trials_before"):
        yield Reason(
            f"{where}: was resumed, {metrics['trials_before']} trials had ended before; its wall time is "
            "that of the last part",
            fails=False,
        )


def _judge_saving(parameters: TuneParameters, search: str, runs: Sequence[WorkloadRun]) -> Iterator[Reason]:
    """The same search with fifo and with asha: epochs and best score of the two."""
    by_scheduler = {run.metrics["scheduler"]: run.metrics for run in runs if run.metrics["search"] == search}
    if not parameters.saving or not {"fifo", "asha"} <= by_scheduler.keys():
        return
    whole, stopped = by_scheduler["fifo"], by_scheduler["asha"]
    saving, loss = saved(whole, stopped)
    if saving is None or loss is None:
        return
    said = (
        f"{search}: asha needed {stopped['budget_epochs']} epochs, fifo {whole['budget_epochs']} "
        f"({saving:.2f} times fewer), best score {stopped['best_score']:.4g} and {whole['best_score']:.4g}"
    )
    resumed = whole.get("trials_before") or stopped.get("trials_before")  # Tune does not restore schedulers
    fails = search in _SAME_CONFIGURATIONS and not resumed
    if saving < parameters.saving:
        yield Reason(f"{said}; expected {parameters.saving:g} times fewer", fails=fails)
    if loss > parameters.loss:
        yield Reason(f"{said}; at most {100 * parameters.loss:g} % worse was expected", fails=fails)


def saved(whole: Mapping[str, Any], stopped: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """By which factor fewer epochs the second needed, and which share of the first's best score it lost."""
    if not stopped["budget_epochs"] or None in (whole["best_score"], stopped["best_score"]):
        return None, None
    best = whole["best_score"]
    loss = (best - stopped["best_score"]) / abs(best) if best else 0.0
    return whole["budget_epochs"] / stopped["budget_epochs"], loss
