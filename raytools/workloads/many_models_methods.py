"""Ray's ways to fit many models: batched tasks, Pool, Ray Data and Tune. Each leaves one file for each batch.

All of them are bounded: what is handed out and not yet done does not grow with the number of models. Standard
library at import.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from raytools.workloads.many_models import DATA, POOL, TASKS, TUNE
from raytools.workloads.many_models_data import KEY
from raytools.workloads.many_models_fit import Model, Work, fit_batch, fit_group
from raytools.workloads.many_models_results import is_written, write_models

_ATTEMPTS_AFTER_A_LOSS = 3  # of a batch whose node or worker has gone
_HANDED_OUT_PER_WORKER = 3  # batches: one at work, and the next ones already with the node
_MODELS_OF_A_WAVE_PER_WORKER = 2_500
_BLOCKS_PER_WORKER = 4  # of a wave
_POLL_S = 0.1  # a signal is answered between two waits of Ray's, not in a long one


@dataclass(frozen=True)
class Assignment:
    """What a method is to do.

    Args:
        works: batches to fit.
        workers: how many models can be fitted at a time.
        cpus: of the whole cluster.
        add: to be told how many models more are written.
    """

    works: Sequence[Work]
    workers: int
    cpus: int
    add: Callable[[int], None]


def in_window(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    workers: int,
    *,
    cpus: int,
    results: Callable[[Any], object] = lambda _: None,
) -> Iterator[tuple[Any, ...]]:
    """Calls the function as Ray tasks, only some of them at a time; at an early end those are cancelled.

    Args:
        function: of a module, so that it travels by its name.
        calls: arguments of each call; read as they are needed.
        workers: how many run at a time.
        cpus: of each call.
        results: takes what a call returned.

    Yields:
        Arguments of a call that has ended, in the order of their ends.
    """
    import ray

    remote = ray.remote(function).options(num_cpus=cpus, max_retries=_ATTEMPTS_AFTER_A_LOSS)
    rest = iter(calls)
    running: dict[Any, tuple[Any, ...]] = {}  # by reference
    try:
        while True:
            for call in islice(rest, workers * _HANDED_OUT_PER_WORKER - len(running)):
                running[remote.remote(*call)] = call
            if not running:
                return
            ended, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
            for reference in ended:
                results(ray.get(reference))
                yield running.pop(reference)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _run_tasks(assignment: Assignment) -> None:
    """One task for each batch."""
    calls = ((work,) for work in assignment.works)
    cpus = assignment.works[0].fit.cpus if assignment.works else 1
    for (work,) in in_window(fit_batch, calls, assignment.workers, cpus=cpus):
        assignment.add(work.batch.models)


def _run_pool(assignment: Assignment) -> None:
    """Ray's `multiprocessing.Pool` over the files; each of its processes has one batch at a time.

    Raises:
        RayError: processes were lost in each of several Pools.
    """
    left: Sequence[Work] = assignment.works
    for attempt in range(1 + _ATTEMPTS_AFTER_A_LOSS):
        if not left:
            return
        if (lost := _run_one_pool(left, assignment)) is None:
            return
        left = [work for work in left if not is_written(Path(work.results), work.batch.number)]
        if left and attempt == _ATTEMPTS_AFTER_A_LOSS:
            raise lost


def _run_one_pool(works: Sequence[Work], assignment: Assignment) -> Exception | None:
    """One Pool, on what CPUs there are now; the last error if processes of it were lost with their batches.

    A lost process is not started again: other nodes have no free CPUs, and its batches would wait for it.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.multiprocessing import Pool

    cpus = works[0].fit.cpus
    there = room(ray.nodes(), cpus)
    options = {"num_cpus": cpus, "max_restarts": 0, "max_task_retries": 0}
    pool = Pool(processes=max(1, min(assignment.workers, there, len(works))), ray_remote_args=options)
    lost = None
    try:
        for models in pool.imap_unordered(_fit_file, iter(works), chunksize=1):
            if isinstance(models, RayError):  # that is how a Pool tells
                lost = models
            else:
                assignment.add(models)
    finally:
        pool.terminate()
    return lost


def room(nodes: Sequence[Mapping[str, Any]], cpus: int) -> int:
    """How many processes of so many CPUs the living nodes hold; a Pool waits for ever for more than that.

    Args:
        nodes: as `ray.nodes()` has them.
        cpus: of one process. They are all on one node, so what is left over on two does not add up.
    """
    return sum(int(node["Resources"].get("CPU", 0)) // cpus for node in nodes if node["Alive"])


def _fit_file(work: Work) -> int:
    fit_batch(work)
    return work.batch.models


def _run_data(assignment: Assignment) -> None:
    """Ray Data's `groupby().map_groups()` on the files, in waves: a shuffle holds all that it is given."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # sorted by key, batches come whole one after the other; and it has no actors that would hold CPUs
    context.shuffle_strategy = ray.data.context.ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=assignment.cpus)
    rest = iter(assignment.works)
    wave_models = max(1, assignment.workers * _MODELS_OF_A_WAVE_PER_WORKER)
    while wave := _wave(rest, wave_models):
        _run_wave(wave, assignment)


def _wave(rest: Iterator[Work], models: int) -> list[Work]:
    """The next batches, until there are so many models."""
    found: list[Work] = []
    while sum(work.batch.models for work in found) < models and (work := next(rest, None)) is not None:
        found.append(work)
    return found


def _run_wave(wave: Sequence[Work], assignment: Assignment) -> None:
    import ray

    fit = wave[0].fit
    # a sort cuts each block into as many parts as there are blocks
    blocks = min(len(wave), assignment.workers * _BLOCKS_PER_WORKER)
    groups = ray.data.read_parquet([work.table for work in wave], override_num_blocks=blocks).groupby(KEY)
    rows = groups.map_groups(partial(fit_group, fit=fit), batch_format="numpy", num_cpus=fit.cpus)
    gathered = Gathered(wave)
    for block in rows.iter_batches(batch_format="numpy", batch_size=None):
        for text in block["model"]:
            if (whole := gathered.add(Model(**json.loads(text)))) is not None:
                work, models = whole
                write_models(Path(work.results), work.batch, models)
                assignment.add(len(models))


class Gathered:
    """Models as they come, until those of a batch are all there."""

    def __init__(self, works: Iterable[Work]) -> None:
        self._works = {key: work for work in works for key in range(work.batch.first, work.batch.end)}
        self._models: dict[int, list[Model]] = {}

    def add(self, model: Model) -> tuple[Work, list[Model]] | None:
        """The batch of the model and its models, by key, if this was the last one."""
        work = self._works[model.key]
        models = self._models.setdefault(work.batch.number, [])
        models.append(model)
        if len(models) < work.batch.models:
            return None
        del self._models[work.batch.number]
        return work, sorted(models, key=lambda one: one.key)


_added: Callable[[int], None] | None = None  # the callback of an experiment is pickled, and looks here


def _run_tune(assignment: Assignment) -> None:
    """One trial of Ray Tune for each model. What an interruption left is an experiment of its own."""
    global _added
    from ray import tune

    if not assignment.works:
        return
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    # its own files of each trial would be most of the work, and at SIGINT the driver is to end
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1")
    experiment = Path(assignment.works[0].results).with_name("tune-experiment")
    shutil.rmtree(experiment, ignore_errors=True)
    trial = tune.with_parameters(_trainable(), works=list(assignment.works))
    _added = assignment.add
    try:
        results = tune.Tuner(
            tune.with_resources(trial, {"cpu": assignment.works[0].fit.cpus}),
            param_space={"number": tune.grid_search(list(range(len(assignment.works))))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name=experiment.name,
                storage_path=str(experiment.parent),
                failure_config=tune.FailureConfig(max_failures=_ATTEMPTS_AFTER_A_LOSS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the model is in its file
                callbacks=[_counting()],
                verbose=0,
            ),
        ).fit()
    finally:
        _added = None
    if results.errors:
        raise results.errors[0]
    shutil.rmtree(experiment, ignore_errors=True)


def _trainable() -> type:
    from ray import tune

    class OneModel(tune.Trainable):  # type: ignore[misc] # Ray has no types here
        """A trial that fits one model; its process is given to the next one."""

        def setup(self, config: dict[str, Any], works: Sequence[Work]) -> None:
            self._works, self._number = works, config["number"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._number = new_config["number"]
            return True

        def step(self) -> dict[str, Any]:
            return {"failed": fit_batch(self._works[self._number]), "done": True}

    return OneModel


def _counting() -> Any:
    from ray import tune

    class Counting(tune.Callback):  # type: ignore[misc] # Ray has no types here
        def on_trial_complete(self, **_: Any) -> None:
            from raytools.workloads import many_models_methods  # not a pickled copy of its variables

            if many_models_methods._added is not None:
                many_models_methods._added(1)

    return Counting()


RUNNERS: Mapping[str, Callable[[Assignment], None]] = {
    TASKS: _run_tasks,
    POOL: _run_pool,
    DATA: _run_data,
    TUNE: _run_tune,
}
