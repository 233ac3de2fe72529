"""The workload `autogluon`: what can be asked of it, what travels to the slots, how its runs are judged.

Standard library only; what happens inside the slot is in `autogluon_fit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from raytools.errors import RaytoolsError
from raytools.workloads.base import Prepared, Reason, SlotContext, WorkloadRun, option, run_name
from raytools.workloads.tables import fetch, find_dataset, read_own_table

# Keys of AutoGluon 1.6's model registry and presets that a tabular benchmark asks for; checked on the
# controller, which has no AutoGluon, so that a typing error does not cost a run.
FAMILIES = (
    "GBM", "RF", "XT", "CAT", "XGB", "LR", "KNN", "NN_TORCH", "FASTAI", "REALMLP", "TABM", "EBM", "GBM_PREP",
    "TABICL", "MITRA", "TABDPT", "DUMMY",
)  # fmt: skip
DEFAULT_DATASET = "diamonds"
DEFAULT_FAMILIES = ("GBM", "RF", "XT")
PRESETS = (
    "medium", "good", "high", "best", "extreme", "high_v150", "best_v150", "medium_quality", "good_quality",
    "high_quality", "best_quality", "extreme_quality", "interpretable",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AutoGluonParameters:
    """What can be asked of the workload; names are the options of `raytools smoke`."""

    dataset: str | None = option(None, "table to train on: diamonds or breast_cancer  [diamonds]")
    csv: str | None = option(None, "csv file of your own, instead of a dataset")
    label: str | None = option(None, "column to predict (needed with csv)")
    preset: str | None = option(None, "AutoGluon preset; chooses models and folds unless these are given")
    time_limit: float | None = option(120.0, "time AutoGluon may take for its fit", duration=True)
    models: tuple[str, ...] | None = option(None, "model families, comma-separated  [GBM,RF,XT]")
    folds: int | None = option(None, "folds of bagging, 0 for none  [2]")
    trees: int = option(100, "trees of each RF and XT forest (AutoGluon's own default is 300)")
    seed: int = option(0, "seed of the split into training and test rows")

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
    shown_metrics = ("score", "score_metric", "fit_s", "nodes_seen", "cpus_seen")
    Parameters = AutoGluonParameters

    def check(self, parameters: AutoGluonParameters) -> None:
        """Names, ranges, and the user's own table; see `Workload.check`."""
        _check(parameters)
        if parameters.csv is not None:
            read_own_table(Path(parameters.csv), str(parameters.label))
        else:
            find_dataset(parameters.dataset or DEFAULT_DATASET)

    def prepare(self, parameters: AutoGluonParameters, cache_dir: Path) -> Prepared:
        """Gets the table, and puts the label's name in; see `Workload.prepare`."""
        if parameters.csv is not None:
            path = Path(parameters.csv)
            own = dataclasses.replace(parameters, dataset=path.name, csv=None)
            return Prepared(own, {"table": read_own_table(path, str(parameters.label))})
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

    def judge(self, parameters: AutoGluonParameters, runs: Sequence[WorkloadRun]) -> list[Reason]:
        """Skipped families, and anything that was seen or used beyond the slot; see `Workload.judge`."""
        return [reason for run in runs if run.metrics for reason in _judge_one(parameters, run)]

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
    if parameters.csv is not None and parameters.dataset is not None:
        raise RaytoolsError("--csv and --dataset were both given", expected="one of them")
    if parameters.csv is not None and not parameters.label:
        raise RaytoolsError(
            "--csv was given without --label", fix="Name the column to predict: --label COLUMN"
        )


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


def _judge_one(parameters: AutoGluonParameters, run: WorkloadRun) -> Iterator[Reason]:
    metrics, where = run.metrics, run_name(run.record)
    for skipped in metrics["skipped"]:
        asked = skipped["family"] in parameters.families
        yield Reason(f"{where}: AutoGluon skipped {skipped['family']}: {skipped['reason']}", fails=asked)
    if metrics["score"] is None:
        yield Reason(f"{where}: AutoGluon trained no model")
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
