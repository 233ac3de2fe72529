"""The workload `autogluon`: what can be asked of it, what travels to the slots, how its runs are judged.

Standard library only; what happens inside the slot is in `autogluon_fit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raytools.errors import RaytoolsError
from raytools.units import format_duration
from raytools.workloads.base import (
    Prepared,
    Reason,
    SlotContext,
    Speed,
    WorkloadRun,
    in_one_sentence,
    option,
    run_name,
)
from raytools.workloads.tables import (
    DATASETS,
    fetch,
    find_dataset,
    read_own_parquet,
    read_own_table,
    score_band,
)

# Keys of AutoGluon 1.6's model registry and presets that a tabular benchmark asks for; checked on the
# controller, which has no AutoGluon, so that a typing error does not cost a run.
FAMILIES = (
    "GBM", "RF", "XT", "CAT", "XGB", "LR", "KNN", "NN_TORCH", "FASTAI", "REALMLP", "TABM", "EBM", "GBM_PREP",
    "TABICL", "MITRA", "TABDPT", "DUMMY",
)  # fmt: skip
DEFAULT_DATASET = "diamonds"
DEFAULT_FAMILIES = ("GBM", "RF", "XT")
_OVERRUN_S, _OVERRUN_SHARE = 10.0, 0.2  # both have to be exceeded: AutoGluon judges by whole models
PRESETS = (
    "medium", "good", "high", "best", "extreme", "high_v150", "best_v150", "medium_quality", "good_quality",
    "high_quality", "best_quality", "extreme_quality", "interpretable",
)  # fmt: skip
# Those with the default families or more among their own. `extreme` wants a GPU and rare packages.
_GOOD_PRESETS = (
    "medium", "good", "high", "best", "medium_quality", "good_quality", "high_quality", "best_quality",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AutoGluonParameters:
    """What can be asked of the workload; names are the options of `raytools smoke`."""

    dataset: str | None = option(None, f"table to train on: {', '.join(DATASETS)}  [{DEFAULT_DATASET}]")
    csv: str | None = option(None, "csv file of your own, instead of a dataset")
    parquet: str | None = option(None, "Parquet file of your own, instead of a dataset")
    label: str | None = option(None, "column to predict (needed with csv and parquet)")
    preset: str | None = option(None, "AutoGluon preset; chooses models and folds unless these are given")
    time_limit: float | None = option(120.0, "time AutoGluon may take for its fit", duration=True)
    models: tuple[str, ...] | None = option(None, "model families, comma-separated  [GBM,RF,XT]")
    folds: int | None = option(None, "folds of bagging, 0 for none  [2]")
    stack_levels: int = option(0, "levels of stacking above the first; needs bagging")
    dynamic_stacking: bool | None = option(
        None, "try first, in a quarter of the time, whether stacking is worth it  [as the preset]"
    )
    trees: int = option(100, "trees of each RF and XT forest (AutoGluon's own default is 300)")
    seed: int = option(0, "seed of the split into training and test rows, and of bagged models")

    @property
    def families(self) -> tuple[str, ...]:
        """Families that were asked for by name; none when a preset chooses."""
        return self.models if self.models is not None else () if self.preset else DEFAULT_FAMILIES


class AutoGluon:
    """Trains the asked families in every slot; tells whether AutoGluon did, and whether it stayed inside."""

    name = "autogluon"
    summary = "AutoGluon with bagging and a private Ray on a real table"
    scope: Literal["slot", "cluster"] = "slot"
    shown_tables = ("leaderboard",)
    shown_metrics = (
        "score",
        "score_metric",
        "fit_s",
        "nodes_seen",
        "cpus_seen",
        "reload_same",
        "clone_loaded_on",
    )
    speed = Speed("fit_s")
    Parameters = AutoGluonParameters

    def check(self, parameters: AutoGluonParameters) -> None:
        """Names, ranges, and the user's own table; see `Workload.check`."""
        _check(parameters)
        if _read_own(parameters) is None:
            find_dataset(parameters.dataset or DEFAULT_DATASET)

    def prepare(self, parameters: AutoGluonParameters, cache_dir: Path) -> Prepared:
        """Gets the table, and puts the label's name in; see `Workload.prepare`."""
        if (table := _read_own(parameters)) is not None:
            name = Path(parameters.csv or parameters.parquet or "").name
            name += " (own)" if name in DATASETS else ""  # it is not held against what ours gives
            own = dataclasses.replace(parameters, dataset=name, csv=None, parquet=None)
            return Prepared(own, {"table": table})
        name = parameters.dataset or DEFAULT_DATASET
        label = parameters.label or find_dataset(name).label
        content = fetch(name, cache_dir)
        _check_label(name, content, label)
        named = dataclasses.replace(parameters, dataset=name, label=label)
        return Prepared(named, {} if content is None else {"table": content})

    def run(self, parameters: AutoGluonParameters, context: SlotContext) -> dict[str, Any]:
        """Fits, scores on held-out rows, and looks at what AutoGluon's Ray saw; see `Workload.run`."""
        from raytools.workloads.autogluon_fit import train_and_score

        return train_and_score(parameters, context)

    def look_again(self, _parameters: AutoGluonParameters, context: SlotContext) -> dict[str, Any]:
        """Loads the clone of another run, on another node if there is one; see `base.second_look_of`."""
        from raytools.workloads.autogluon_fit import look_at_a_clone

        return look_at_a_clone(context)

    def judge(self, parameters: AutoGluonParameters, runs: Sequence[WorkloadRun]) -> list[Reason]:
        """Skipped families, scores, what was saved, what was beyond the slot; see `Workload.judge`."""
        trained = [run for run in runs if run.metrics]
        reasons = [reason for run in trained for reason in _judge_one(parameters, run)]
        return [*_judge_skipped(parameters, trained), *reasons, *_judge_travel(trained)]

    def time_s(self, parameters: AutoGluonParameters) -> float | None:
        """Time the run needs at most when AutoGluon keeps its limit; None leaves the node's default."""
        return None if parameters.time_limit is None else 2 * parameters.time_limit + 600


def _check(parameters: AutoGluonParameters) -> None:
    """Raises RaytoolsError for what cannot work, before anything starts."""
    unknown = [family for family in parameters.models or () if family not in FAMILIES]
    if unknown:
        raise RaytoolsError(
            f"there is no model family {unknown[0]!r}", expected=f"some of {', '.join(FAMILIES)}"
        )
    if parameters.models == ():
        raise RaytoolsError("no model family was given", expected=f"some of {', '.join(FAMILIES)}")
    if parameters.preset is not None and parameters.preset not in PRESETS:
        raise RaytoolsError(
            f"there is no preset {parameters.preset!r}", expected=f"one of {', '.join(PRESETS)}"
        )
    if parameters.folds is not None and (parameters.folds < 0 or parameters.folds == 1):
        raise RaytoolsError(f"folds is {parameters.folds}", expected="0 (no bagging) or at least 2")
    if parameters.time_limit is not None and parameters.time_limit <= 0:
        raise RaytoolsError(f"time limit is {parameters.time_limit} s", expected="more than 0 s")
    if parameters.trees < 1:
        raise RaytoolsError(f"trees is {parameters.trees}", expected="at least 1")
    if parameters.stack_levels < 0:
        raise RaytoolsError(f"stack_levels is {parameters.stack_levels}", expected="0 (no stacking) or more")
    if parameters.stack_levels and (parameters.folds == 0 or (parameters.preset and not parameters.folds)):
        folds = "0" if parameters.folds == 0 else "left to the preset"
        raise RaytoolsError(
            f"stack_levels is {parameters.stack_levels} and folds is {folds}",
            expected="at least 2 folds: stacked models learn from predictions about rows that were held back",
            fix="Give --folds N, or leave stacking to the preset, too",
        )
    _check_sources(parameters)


def _check_sources(parameters: AutoGluonParameters) -> None:
    """One table, and of an own one the label."""
    given = [name for name in ("csv", "parquet", "dataset") if getattr(parameters, name) is not None]
    if len(given) > 1:
        raise RaytoolsError(f"--{given[0]} and --{given[1]} were both given", expected="one of them")
    if given and given[0] != "dataset" and not parameters.label:
        raise RaytoolsError(
            f"--{given[0]} was given without --label", fix="Name the column to predict: --label COLUMN"
        )


def _read_own(parameters: AutoGluonParameters) -> bytes | None:
    """The user's own table, checked; None where a dataset was named or nothing."""
    if parameters.csv is not None:
        return read_own_table(Path(parameters.csv), str(parameters.label))
    if parameters.parquet is not None:
        return read_own_parquet(Path(parameters.parquet), str(parameters.label))
    return None


def _check_label(dataset: str, content: bytes | None, label: str) -> None:
    """A named dataset must have the column; of those that only nodes have, the usual label is known."""
    if content is None:
        columns = [find_dataset(dataset).label]
    else:
        columns = [column.strip('"') for column in content.split(b"\n", 1)[0].decode().strip().split(",")]
    if label not in columns:
        raise RaytoolsError(
            f"dataset {dataset} has no label {label!r}", expected=f"one of {', '.join(columns)}"
        )


def _judge_skipped(parameters: AutoGluonParameters, runs: Sequence[WorkloadRun]) -> Iterator[Reason]:
    """Families without a model: nodes with the same software skip the same."""
    return in_one_sentence(
        (
            run_name(run.record),
            Reason(
                f"AutoGluon skipped {skipped['family']}: {skipped['reason']}",
                fails=skipped["family"] in parameters.families,
            ),
        )
        for run in runs
        for skipped in run.metrics["skipped"]
    )


def _judge_one(parameters: AutoGluonParameters, run: WorkloadRun) -> Iterator[Reason]:
    metrics, where = run.metrics, run_name(run.record)
    if metrics["score"] is None:
        yield Reason(f"{where}: AutoGluon trained no model")
    yield from _judge_score(parameters, metrics, where)
    yield from _judge_overrun(parameters, metrics, where)
    yield from _judge_saved(metrics, where)
    if metrics["nodes_seen"] != 1:
        yield Reason(
            f"{where}: AutoGluon's Ray saw {metrics['nodes_seen']} nodes, expected its own slot alone"
        )
    promised = (run.record.get("limits") or {}).get("cpus")
    if promised is None:
        return
    if metrics["cpus_seen"] > promised:
        by = ", ".join(f"{who} {count}" for who, count in metrics["cpus_seen_by"].items())
        yield Reason(f"{where}: {metrics['cpus_seen']} CPUs were seen ({by}), the slot has {promised}")
    used = run.record.get("used") or {}
    if used.get("cpu_s") is not None and used.get("wall_s"):
        average = used["cpu_s"] / used["wall_s"]
        if average > promised * 1.05:
            yield Reason(f"{where}: {average:.2f} CPUs were used on average, the slot has {promised}")


def _judge_score(parameters: AutoGluonParameters, metrics: Mapping[str, Any], where: str) -> Iterator[Reason]:
    """The score against what others have had of the same table, where no less was asked than there."""
    band = score_band(str(parameters.dataset), str(parameters.label))
    if band is None or metrics["score"] is None or not _is_as_good_as_default(parameters):
        return
    score, low, high = metrics["score"], *band
    named = f"{where}: the {metrics['score_metric']} of {parameters.dataset} is {score:.4g}"
    if score < low:
        yield Reason(f"{named}, expected {low:g} to {high:g}: it learned less than it should")
    elif score > high:  # a larger preset may well be better; a label that leaked would look the same
        yield Reason(f"{named}, usually {low:g} to {high:g}: better than was ever measured", fails=False)


def _is_as_good_as_default(parameters: AutoGluonParameters) -> bool:
    """Whether at least what the bands were measured with was asked: families or preset, trees and time."""
    by_default = AutoGluonParameters()
    chosen = set(parameters.families) >= set(DEFAULT_FAMILIES) and parameters.trees >= by_default.trees
    in_time = parameters.time_limit is None or parameters.time_limit >= (by_default.time_limit or 0)
    return in_time and (chosen or (not parameters.families and parameters.preset in _GOOD_PRESETS))


def _judge_overrun(
    parameters: AutoGluonParameters, metrics: Mapping[str, Any], where: str
) -> Iterator[Reason]:
    """Told, never failed: the limit is AutoGluon's own estimate of what it can begin, no promise of a slot.

    What the slot promises is the run's hard limit (`time_s`), and a run beyond that does not end `ok`.
    """
    overrun_s, limit_s = metrics.get("overrun_s"), parameters.time_limit
    if overrun_s and limit_s and overrun_s > max(_OVERRUN_S, _OVERRUN_SHARE * limit_s):
        yield Reason(
            f"{where}: AutoGluon took {format_duration(metrics['fit_s'])} for its fit, "
            f"its time limit was {format_duration(limit_s)}",
            fails=False,
        )


def _judge_saved(metrics: Mapping[str, Any], where: str) -> Iterator[Reason]:
    """What was read back from the disk, here or on another node, predicts the same."""
    for what, named in (
        ("reload", "the reloaded predictor"),
        ("clone", "its clone for deployment"),
        ("clone_elsewhere", f"its clone for deployment, by another run on {metrics.get('clone_loaded_on')},"),
    ):
        trouble, difference = metrics.get(f"{what}_trouble"), metrics.get(f"{what}_difference")
        if trouble:
            yield Reason(f"{where}: {named} could not be tried: {trouble}")
        elif metrics.get(f"{what}_same") is False:
            yield Reason(f"{where}: {named} predicts something else, by up to {difference:.2g}")


def _judge_travel(runs: Sequence[WorkloadRun]) -> Iterator[Reason]:
    """Says once where clones stayed on their nodes although there are others."""
    names = {str((run.record.get("host") or {}).get("name")) for run in runs}
    stayed = [
        run for run in runs
        if run.metrics.get("clone_loaded_on") == (run.record.get("host") or {}).get("name")
    ]  # fmt: skip
    if len(names) > 1 and stayed:
        yield Reason(
            f"clones of {', '.join(run_name(run.record) for run in stayed)} were loaded on their own nodes "
            "only: others see them where all nodes share a storage",
            fails=False,
        )
