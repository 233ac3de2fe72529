"""The driver of the workload `tune`, on the head: one experiment for each pair of search and scheduler.

An experiment lives in the results directory (`tune/<entry>/`): checkpoints, Tune's own state, and results of
each trial for TensorBoard. An interrupted one is restored from there. Standard library at import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raytools.node.record import FAILED, OK
from raytools.node.workload_link import Cancelled
from raytools.workloads import start_together
from raytools.workloads.base import ClusterContext, ClusterNode
from raytools.workloads.cluster_checks import require_ray, require_shared, workers_of
from raytools.workloads.tables import find_dataset, load_frame
from raytools.workloads.tune import DRAWING, PBT, Pair, TuneParameters, pairs
from raytools.workloads.tune_trial import Task, make_task, trainable

METRIC, MODE, TIME = "score", "max", "epoch"
_REDUCTION = 4  # of ASHA: one trial of four goes on
_ATTEMPTS_AFTER_A_LOSS = 2  # of a trial whose node or worker has gone
# With so many checkpoints of a trial Tune saves and copies the whole experiment each time: few are faster.
_KEPT_CHECKPOINTS, _SAVE_EVERY_EPOCHS = 3, 5
_PAUSING = ("hyperband", "median", PBT)  # trials go on from the checkpoint of the epoch of the pause
_MOST_PENDING = "TUNE_MAX_PENDING_TRIALS_PG"  # documented by Tune, without a parameter of the same meaning

# Who is told of trials. Callbacks are pickled with the experiment, which this cannot be: they look here.
_listener: Callable[[Sequence[Any], Mapping[str, Any] | None], None] | None = None


def run_pairs(parameters: TuneParameters, context: ClusterContext) -> None:
    """Every pair that is not done yet, one after the other; each has the whole cluster.

    Raises:
        RaytoolsError: trials of several nodes have no directory that all of them see, or no node has the CPUs
            of one.
    """
    require_shared(context, "a trial may go on on another node")
    at_a_time = workers_of(context.nodes, parameters.cpus, "a trial")
    if parameters.mlflow:  # its release 3 has the file store in maintenance, and asks for this
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    task = _make_task(parameters, context)
    for pair in pairs(parameters):
        if pair.name in context.done:
            continue
        began = time.monotonic()
        try:
            metrics, problem = _run_pair(pair, parameters, task, context, at_a_time)
        except Exception as error:  # noqa: BLE001 - of Tune or a search: the other pairs may do better
            require_ray(error)
            traceback.print_exc()
            metrics, problem = {}, f"{type(error).__name__}: {_first_line(error)}"
        wall_s = time.monotonic() - began
        metrics = {"search": pair.search, "scheduler": pair.scheduler, "wall_s": round(wall_s, 3), **metrics}
        context.finished(pair.name, metrics, wall_s, FAILED if problem else OK, problem)


def _make_task(parameters: TuneParameters, context: ClusterContext) -> Task:
    frame = load_frame(parameters.dataset, context.inputs.get("table"))
    label = find_dataset(parameters.dataset).label
    return make_task(frame, label, rows=parameters.rows, seed=parameters.seed, cpus=parameters.cpus)


def _run_pair(
    pair: Pair, parameters: TuneParameters, task: Task, context: ClusterContext, at_a_time: int
) -> tuple[dict[str, Any], str | None]:
    """Metrics of one experiment, and what went wrong in it."""
    context.report(pair.name, f"{parameters.trials} trials, at most {parameters.epochs} epochs each")
    directory = context.results_dir / "tune" / pair.name
    learns, pauses = pair.search not in DRAWING, pair.scheduler in _PAUSING
    task = dataclasses.replace(task, gate=start_together.gate_name())
    tuner, before = _restored(directory, pair, parameters, task, context)
    if tuner is None:
        # A search that learns is asked for one trial after the other, unless it is told how many there may
        # be. It counts those that are paused, too: then there would be no more to take the places of these.
        most_at_a_time = at_a_time if learns and not pauses else None
        tuner = _new_tuner(directory, pair, parameters, task, most_at_a_time)
    with (
        _asked_ahead(at_a_time if learns and pauses else None),
        start_together.together(task.gate, context.nodes, task.cpus, parameters.trials - before) as used,
        _heard_by(context, pair.name),
        _ending_gently(),
    ):
        results = tuner.fit()
    metrics = {
        "trials_before": before,
        "score_metric": task.score_metric,
        **_metrics(results, context.nodes),
        "nodes_unused": used.unused,
        "nodes_lost": used.lost,
    }
    problem = None
    if results.num_errors:
        last_line = (str(results.errors[0]).strip().splitlines() or ["it said nothing"])[-1]
        problem = f"{results.num_errors} of {len(results)} trials failed; the first: {last_line}"
    return metrics, problem


def _restored(
    directory: Path, pair: Pair, parameters: TuneParameters, task: Task, context: ClusterContext
) -> tuple[Any, int]:
    """The experiment of an interrupted smoke or None, and how many trials of it had ended."""
    from ray import tune

    if not directory.exists():
        return None, 0
    try:
        trial = trainable(parameters.api, task, _save_every(pair, parameters))
        tuner = tune.Tuner.restore(str(directory), trial, restart_errored=True)
        before = tuner.get_results().num_terminated
    except Exception as error:  # whatever it is that Tune cannot read: the entry is done anew
        if isinstance(error, (OSError, SystemError)) and not isinstance(error, FileNotFoundError):
            raise  # storage that does not answer, a signal: nothing is wrong with what is there
        require_ray(error)
        aside = directory.with_name(f"{directory.name}.unreadable-{secrets.token_hex(4)}")
        directory.rename(aside)
        context.report(
            pair.name,
            f"what was begun cannot be restored ({_first_line(error)}): from the start; see {aside}",
        )
        return None, 0
    context.report(pair.name, f"goes on where it was interrupted, {before} trials had ended")
    return tuner, before


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _new_tuner(
    directory: Path, pair: Pair, parameters: TuneParameters, task: Task, most_at_a_time: int | None
) -> Any:
    from ray import tune

    space = _space()
    checkpoints = {"num_to_keep": _KEPT_CHECKPOINTS}
    if parameters.api == "class":  # a function reports its checkpoints itself
        checkpoints |= {"checkpoint_frequency": _SAVE_EVERY_EPOCHS}
    return tune.Tuner(
        trainable(parameters.api, task, _save_every(pair, parameters)),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode=MODE,
            num_samples=parameters.trials,
            search_alg=_search(pair.search, parameters.seed),
            scheduler=_scheduler(pair.scheduler, parameters.epochs, space),
            max_concurrent_trials=most_at_a_time,
            reuse_actors=True,  # a new process takes longer than a short trial
        ),
        run_config=tune.RunConfig(
            name=directory.name,
            storage_path=str(directory.parent),
            stop={TIME: parameters.epochs},
            checkpoint_config=tune.CheckpointConfig(**checkpoints),
            failure_config=tune.FailureConfig(max_failures=_ATTEMPTS_AFTER_A_LOSS),
            callbacks=_callbacks(directory, parameters),
            verbose=0,
        ),
    )


@contextlib.contextmanager
def _asked_ahead(trials: int | None) -> Iterator[None]:
    """While it lasts, so many trials may wait for a place, whoever proposes them; None: as Tune decides.

    For a search that learns Tune decides for one: the next process starts when the one before has begun.
    """
    if trials is None:
        yield
        return
    before = os.environ.get(_MOST_PENDING)
    os.environ[_MOST_PENDING] = str(trials)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_MOST_PENDING]
        else:
            os.environ[_MOST_PENDING] = before


def _save_every(pair: Pair, parameters: TuneParameters) -> int:
    """Epochs between two checkpoints. A class is saved when it is paused, a function has to have done it."""
    return 1 if parameters.api == "function" and pair.scheduler in _PAUSING else _SAVE_EVERY_EPOCHS


def _space() -> dict[str, Any]:
    """Settings of scikit-learn's gradient boosting, as wide as one would try them."""
    from ray import tune

    return {
        "learning_rate": tune.loguniform(0.01, 0.6),
        "l2_regularization": tune.loguniform(1e-3, 10.0),
        "max_leaf_nodes": tune.randint(4, 64),
        "min_samples_leaf": tune.randint(5, 60),
    }


def _search(name: str, seed: int) -> Any:
    """The search algorithm; the space is converted by Tune. PBT draws as `random` does."""
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if name == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(seed=seed)
    if name == "hyperopt":
        from ray.tune.search.hyperopt import HyperOptSearch

        return HyperOptSearch(random_state_seed=seed)
    return BasicVariantGenerator(random_state=seed)


def _scheduler(name: str, epochs: int, space: Mapping[str, Any]) -> Any:
    from ray.tune import schedulers

    if name == "asha":
        return schedulers.ASHAScheduler(time_attr=TIME, max_t=epochs, reduction_factor=_REDUCTION)
    if name == "hyperband":
        return schedulers.HyperBandScheduler(time_attr=TIME, max_t=epochs)
    if name == "median":
        return schedulers.MedianStoppingRule(time_attr=TIME, grace_period=max(1, epochs // 9))
    if name == PBT:
        changed = {name: space[name] for name in ("learning_rate", "l2_regularization")}
        return schedulers.PopulationBasedTraining(
            time_attr=TIME, perturbation_interval=max(1, epochs // 9), hyperparam_mutations=changed
        )
    return schedulers.FIFOScheduler()


def _callbacks(directory: Path, parameters: TuneParameters) -> list[Any]:
    """Beside those that Tune adds itself: result.json, progress.csv, TensorBoard."""
    from ray import tune

    class Listening(tune.Callback):  # type: ignore[misc] # Ray has no types here
        def on_trial_result(self, **info: Any) -> None:
            from raytools.workloads import tune_driver  # as it is in the process that has restored it

            tune_driver.tell(info["trials"], info["result"])

        def on_trial_complete(self, **info: Any) -> None:
            from raytools.workloads import tune_driver

            tune_driver.tell(info["trials"], None)

    found: list[Any] = [Listening()]
    if parameters.mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        store = (directory.parent.parent / "mlflow").as_uri()
        found.append(MLflowLoggerCallback(tracking_uri=store, experiment_name=directory.name))
    return found


def tell(trials: Sequence[Any], result: Mapping[str, Any] | None) -> None:
    """What the callback of an experiment calls: a result of a trial, or None for the end of one."""
    if _listener is not None:
        _listener(trials, result)


@contextlib.contextmanager
def _heard_by(context: ClusterContext, entry: str) -> Iterator[None]:
    """While it lasts, people see how many trials have ended, and the best score so far."""
    global _listener
    best: float | None = None
    epochs = 0

    def listen(trials: Sequence[Any], result: Mapping[str, Any] | None) -> None:
        nonlocal best, epochs
        if result is not None:
            epochs += 1
            score = result.get(METRIC)
            best = score if best is None or (score is not None and score > best) else best
        ended = sum(1 for trial in trials if trial.is_finished())
        shown = "" if best is None else f", best score {best:.4f}"
        context.detail(entry, f"{ended} trials ended, {epochs} epochs{shown}")

    _listener = listen
    try:
        yield
    finally:
        _listener = None


@contextlib.contextmanager
def _ending_gently() -> Iterator[None]:
    """SIGTERM and SIGINT let Tune save the experiment's state once more and end its trials; then `Cancelled`.

    Tune does that at SIGUSR1 (ray.tune.tune._setup_signal_catching). It would at SIGINT, too, but then nobody
    could tell from outside that it was interrupted.
    """
    asked = False

    def ask(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        signal.raise_signal(signal.SIGUSR1)

    def end_at_once(_number: int, _frame: object) -> None:
        raise Cancelled

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # of SIGUSR1: until Tune has its own handler there is nothing to save
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, end_at_once)
    try:
        yield
        if asked:
            raise Cancelled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _metrics(results: Any, nodes: Sequence[ClusterNode]) -> dict[str, Any]:
    """What an experiment came to. Epochs count as they were reported: one that was lost counts twice."""
    frames = [frame for one in results if (frame := one.metrics_dataframe) is not None and len(frame)]
    names = {node.address: node.name for node in nodes}
    scored = [one for one in results if _best_of(one) is not None]
    best = max(scored, key=lambda one: _best_of(one) or 0.0, default=None)
    addresses = sorted({str(address) for frame in frames for address in frame["node_ip"]})
    return {
        "trials": len(results),
        "trials_failed": results.num_errors,
        "budget_epochs": sum(len(frame) for frame in frames),
        "best_score": None if best is None else _best_of(best),
        "best_settings": None if best is None else dict(best.config),
        "cpus_seen": max((int(frame["cpus"].max()) for frame in frames), default=None),
        "nodes": [names.get(address, address) for address in addresses],
    }


def _best_of(result: Any) -> float | None:
    """The best score a trial had in any of its epochs."""
    frame = result.metrics_dataframe
    return None if frame is None or METRIC not in frame else float(frame[METRIC].max())
