"""AutoGluon in a slot: a private Ray that cannot leave it, the fit, the scores, and what was seen.

The private Ray is started *before* AutoGluon, with explicit sizes: AutoGluon then finds Ray initialised and
stays in it. Left alone it would attach to the cluster's Ray, or size its own from the whole machine.
Imported on nodes only, yet standard library at import: pandas, Ray and AutoGluon are imported inside.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from raytools.units import format_duration
from raytools.workloads.autogluon import FAMILIES, AutoGluonParameters
from raytools.workloads.autogluon_reload import differences, is_same, predictions, write_sample
from raytools.workloads.base import SlotContext
from raytools.workloads.tables import load_frame

_FORESTS = ("RF", "XT")
_TEST_SHARE = 0.2
_OBJECT_STORE_SHARE = 0.3
_AUTOGLUON_SHARE = 0.9
_RAY_MINIMUM_STORE_BYTES = 80 * 2**20
_NOISE = "Failed to import torch"  # said before every model; the slot's GPUs are given explicitly
_LEADERBOARD_COLUMNS = ("score_val", "score_test", "fit_time", "fit_time_marginal", "pred_time_test")
_COMPARED_ROWS = 20_000  # of the held-out ones at most: they are predicted three times
_HANDED_OVER_ROWS = 200  # that another node predicts
# All nodes write at once: hundreds of megabytes would make those far from the server look slow
_HANDED_OVER_BYTES = 64 * 2**20
_SAMPLE, _CLONE = "sample.pickle", "clone"  # what is handed over


def train_and_score(parameters: AutoGluonParameters, context: SlotContext) -> dict[str, Any]:
    """Fits in a private Ray, or without one where nothing is bagged; scores, and tells what was seen.

    Returns:
        The metrics of the workload, as JSON types.
    """
    dataset, label = str(parameters.dataset), str(parameters.label)
    with _private_ray(context) if parameters.folds != 0 else nullcontext():
        frame = load_frame(dataset, context.inputs.get("table")).dropna(subset=[label])
        train, test = _split(frame, label, parameters.seed)
        context.report(f"{dataset}: {len(train)} rows to train on, {len(test)} held out")
        predictor, fit_s, log = _fit(parameters, context, train)
        metrics = {
            "dataset": dataset,
            "rows": len(frame),
            **_what_was_trained(parameters, predictor, log, fit_s),
            **_scores(predictor, test),
            "fit_s": round(fit_s, 3),
            "overrun_s": _overrun_s(parameters.time_limit, fit_s),
            **_what_was_seen(),
        }
    return metrics | _saved(predictor, test.drop(columns=[label])[:_COMPARED_ROWS], context)


def look_at_a_clone(context: SlotContext) -> dict[str, Any]:
    """Loads the clone that another run has left, and predicts the rows that it has left with it."""
    left = context.hand_over_dir
    if left is None or not (left / _SAMPLE).is_file():
        return {}  # that run trained nothing, or could not write: it has said so
    context.report("loading a clone from another run")
    found = differences(left / _SAMPLE, {"clone": left / _CLONE}, context.scratch_dir)["clone"]
    return _told("clone_elsewhere", found) | {"clone_loaded_on": context.node}


def _overrun_s(limit_s: float | None, fit_s: float) -> float | None:
    """By how much the fit took longer than its limit; 0 where it kept it, None where it had none."""
    return None if limit_s is None else round(max(0.0, fit_s - limit_s), 3)


def _saved(predictor: Any, rows: Any, context: SlotContext) -> dict[str, Any]:
    """Whether what is on the disk predicts the same: the predictor, and its clone for deployment.

    The clone is left to another run, too, where there is one that can see it.
    """
    if not predictor.model_names():
        return {}
    context.report("loading the predictor and its clone anew")
    clone, sample = context.scratch_dir / _CLONE, context.scratch_dir / _SAMPLE
    predictor.clone_for_deployment(str(clone))
    expected = predictions(predictor, rows)
    write_sample(sample, rows, expected)
    found = differences(sample, {"reload": Path(predictor.path), "clone": clone}, context.scratch_dir)
    metrics = _told("reload", found["reload"]) | _told("clone", found["clone"])
    metrics |= {"clone_loaded_on": context.node, "clone_bytes": _size_bytes(clone)}
    if context.hand_over_dir is not None:
        metrics |= _hand_over(predictor, clone, rows[:_HANDED_OVER_ROWS], context.hand_over_dir)
    return metrics


def _told(what: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """One of the `differences` as metrics."""
    told: dict[str, Any] = {f"{what}_same": is_same(found), f"{what}_difference": found.get("difference")}
    return told | ({f"{what}_trouble": found["trouble"]} if "trouble" in found else {})


def _hand_over(predictor: Any, clone: Path, rows: Any, directory: Path) -> dict[str, Any]:
    """Copies the clone to where other nodes see it, or one of a smaller model; tells which, and trouble."""
    model = predictor.model_best
    if _size_bytes(clone) > _HANDED_OVER_BYTES:
        models = Path(predictor.path, "models")
        first_level = predictor.model_names(level=1, can_infer=True)
        model = min(first_level, key=lambda name: _size_bytes(models / name))
        clone = clone.with_name("smaller")
        predictor.clone_for_deployment(str(clone), model=model)
    told = {"clone_elsewhere_model": model}
    try:
        shutil.copytree(clone, directory / _CLONE)
        write_sample(directory / _SAMPLE, rows, predictions(predictor, rows, model))  # last: now all is there
    except (OSError, shutil.Error) as error:
        trouble = f"it could not be written to {directory}: {getattr(error, 'strerror', None) or error}"
        return told | {"clone_elsewhere_trouble": trouble}
    return told


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@contextmanager
def _private_ray(context: SlotContext) -> Iterator[None]:
    """A Ray of the slot's size whose files are in the run's own directory."""
    # The slot's cgroup is the memory limit: Ray's monitor looks at the whole machine and would only disturb.
    # AutoGluon reads the second: a fold that died is a result, not a reason for another try.
    os.environ.update({"RAY_memory_monitor_refresh_ms": "0", "RAY_DISABLE_RETRIES": "1"})
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    store_bytes = _object_store_bytes(context.memory_bytes)
    context.report("starting a private Ray")
    ray.init(
        address="local",
        num_cpus=context.cpus,
        num_gpus=context.gpus,
        object_store_memory=store_bytes,
        _memory=context.memory_bytes - store_bytes,
        include_dashboard=False,
        _temp_dir=str(context.scratch_dir / "r"),  # short: Ray's sockets below it may not exceed 107 bytes
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _object_store_bytes(memory_bytes: int) -> int:
    """30 % of the slot, less where the run's own /dev/shm is smaller: beyond it Ray would spill to files."""
    share = int(memory_bytes * _OBJECT_STORE_SHARE)
    room = int(shutil.disk_usage("/dev/shm").free * 0.95)
    return max(_RAY_MINIMUM_STORE_BYTES, min(share, room))


def _split(frame: Any, label: str, seed: int) -> tuple[Any, Any]:
    """Training and test rows; each class in its share where the label has classes with enough rows."""
    from sklearn.model_selection import train_test_split

    values = frame[label]
    counts = values.value_counts()
    classes = values.nunique() <= max(2, 0.05 * len(frame)) and not _is_measured(values)
    stratify = values if classes and counts.min() >= 2 and len(counts) <= _TEST_SHARE * len(frame) else None
    train, test = train_test_split(frame, test_size=_TEST_SHARE, random_state=seed, stratify=stratify)
    return train, test


def _is_measured(values: Any) -> bool:
    """Whether the label is a quantity (AutoGluon would take it for regression), not a class."""
    from pandas.api.types import is_numeric_dtype

    return bool(is_numeric_dtype(values)) and values.nunique() > 20


def _fit(parameters: AutoGluonParameters, context: SlotContext, train: Any) -> tuple[Any, float, list[str]]:
    """Trains; returns the predictor, the seconds of `fit` alone, and AutoGluon's log."""
    context.report("importing AutoGluon")
    from autogluon.tabular import TabularPredictor

    with _listening(context) as log:
        predictor = TabularPredictor(
            label=parameters.label,
            eval_metric=_metric(train[parameters.label]),
            path=str(context.scratch_dir / "models"),
            verbosity=2,
        )
        began = time.monotonic()
        predictor.fit(train, **fit_arguments(parameters, context))
        return predictor, time.monotonic() - began, log


def fit_arguments(parameters: AutoGluonParameters, context: SlotContext) -> dict[str, Any]:
    """Arguments of `TabularPredictor.fit`: what was asked, and the slot's size."""
    arguments: dict[str, Any] = {
        "num_cpus": context.cpus,
        "num_gpus": context.gpus,
        "memory_limit": round(_AUTOGLUON_SHARE * context.memory_bytes / 2**30, 3),
        "raise_on_no_models_fitted": False,  # which ones failed, and why, is the result
    }
    if parameters.time_limit is not None:
        arguments["time_limit"] = parameters.time_limit
    if parameters.preset:
        arguments["presets"] = parameters.preset
    if parameters.families:
        arguments["hyperparameters"] = {
            family: {"n_estimators": parameters.trees} if family in _FORESTS else {}
            for family in parameters.families
        }
    if parameters.dynamic_stacking is not None:
        arguments["dynamic_stacking"] = parameters.dynamic_stacking
    elif parameters.stack_levels:  # what was asked for is done, whatever a preset would try first
        arguments["dynamic_stacking"] = False
    folds = parameters.folds if parameters.folds is not None or parameters.preset else 2
    if folds is not None:
        arguments |= {
            "num_bag_folds": folds,
            "num_bag_sets": 1 if folds else None,
            "num_stack_levels": parameters.stack_levels,
        }
    if folds != 0:  # of bagged models alone; without bagging every family has an option of another name
        arguments["ag_args_ensemble"] = {"model_random_seed": parameters.seed}
    return {name: value for name, value in arguments.items() if value is not None}


def _metric(values: Any) -> str | None:
    """R2 for quantities: it needs no unit to be read. For classes AutoGluon's own choice, accuracy."""
    return "r2" if _is_measured(values) else None


@contextmanager
def _listening(context: SlotContext) -> Iterator[list[str]]:
    """Collects AutoGluon's log and reports it line by line."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for line in record.getMessage().splitlines():
                if line.strip() and not line.strip().startswith(_NOISE):
                    lines.append(line.strip())
                    step = line.startswith("Fitting model")
                    (context.report if step else context.detail)(line.strip())

    listener, logger = Listener(), logging.getLogger("autogluon")
    logger.addHandler(listener)
    try:
        yield lines
    finally:
        logger.removeHandler(listener)


def _what_was_trained(
    parameters: AutoGluonParameters, predictor: Any, log: Sequence[str], fit_s: float
) -> dict[str, Any]:
    """Families with at least one model, and for each asked one without: why."""
    from autogluon.tabular.registry import ag_model_registry as registry

    kinds = _model_kinds(predictor)
    failures = predictor.model_failures().to_dict("records") if hasattr(predictor, "_trainer") else []
    trained = [family for family in FAMILIES if registry.key_to_cls(family).__name__ in kinds]
    own = set(parameters.families)
    limit_s = parameters.time_limit
    unstarted = "AutoGluon did not start it"
    if limit_s is not None and fit_s > 0.9 * limit_s:
        unstarted = f"its time limit of {format_duration(limit_s)} was used up by the others"
    skipped = [
        {"family": family, "reason": _why_skipped(registry.key_to_cls(family), failures, log) or unstarted}
        for family in parameters.families
        if family not in trained
    ]
    if not own:
        skipped = [{"family": row["model"], "reason": _failure_text(row)} for row in failures]
    return {
        "families": [family for family in trained if not own or family in own],
        "families_asked": list(parameters.families),
        "skipped": skipped,
    }


def _model_kinds(predictor: Any) -> set[str]:
    """Class names of the trained models; of a bagged one, the class inside."""
    if not predictor.model_names():
        return set()
    # The public `info()` tells the same but loads every model from disk: seconds for large forests
    return {kind.__name__ for kind in predictor._trainer.get_models_attribute_dict("type_inner").values()}


def _why_skipped(kind: Any, failures: Sequence[Mapping[str, Any]], log: Sequence[str]) -> str | None:
    """AutoGluon's failure of that class, else what its log says of it."""
    for row in failures:
        if kind.__name__ in (row.get("child_model_type"), row.get("model_type")):
            return _failure_text(row)
    name = str(getattr(kind, "ag_name", kind.__name__))
    said = [line for line in log if re.search(r"skip", line, re.IGNORECASE) and name in line]
    return said[-1] if said else None


def _failure_text(row: Mapping[str, Any]) -> str:
    text = str(row.get("exc_str") or "").strip().splitlines()
    return f"{row.get('exc_type')}: {text[0] if text else ''}".removesuffix(": ")


def _scores(predictor: Any, test: Any) -> dict[str, Any]:
    """The best model's score on the held-out rows (higher is better), and the table of all models."""
    metric = predictor.eval_metric.name
    if not predictor.model_names():
        return {"score": None, "score_metric": metric, "leaderboard": []}
    rows = predictor.leaderboard(test, display=False).to_dict("records")
    board = [
        {"model": row["model"]}
        | {f"{name}_s" if "time" in name else name: _number(row[name]) for name in _LEADERBOARD_COLUMNS}
        for row in rows
    ]
    best = predictor.model_best
    score = next(row["score_test"] for row in board if row["model"] == best)
    return {"score": score, "score_metric": metric, "best_model": best, "leaderboard": board}


def _number(value: Any) -> float | None:
    """A float for JSON, which has no NaN."""
    number = float(value)
    return None if math.isnan(number) else round(number, 6)


def _what_was_seen() -> dict[str, Any]:
    """How large the machine looks from inside: to the kernel, AutoGluon, and the Ray that it used, if any."""
    import ray
    from autogluon.common.utils.resource_utils import ResourceManager

    seen = {
        "affinity": len(os.sched_getaffinity(0)),
        "autogluon": int(ResourceManager.get_cpu_count()),
    }
    if not ray.is_initialized():  # neither by us nor by AutoGluon
        return {"nodes_seen": 1, "cpus_seen": max(seen.values()), "cpus_seen_by": seen}
    seen["ray"] = int(ray.cluster_resources().get("CPU", 0))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {"nodes_seen": len(nodes), "cpus_seen": max(seen.values()), "cpus_seen_by": seen}
