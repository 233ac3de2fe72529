"""What one trial of the workload `tune` does: gradient boosting, epoch by epoch, on CPUs of its own.

Standard library at import; scikit-learn and Ray are imported where a trial runs.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytools.workloads import start_together

TREES_PER_EPOCH = 2
_WAIT_FOR_CPUS = "5m"  # a `raytools run` from a shell may hold them, which Ray does not know
_MODEL_NAME = "model.pickle"
_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Task:
    """What all trials of an experiment share: rows to learn from, rows to score on, and how.

    Args:
        x, y: rows to learn from, and their labels.
        x_test, y_test: those that are held out.
        quantity: whether the label is a quantity (then the score is R²) or a class (accuracy).
        seed: of the model.
        cpus: CPUs that each trial holds.
        gate: that the first epoch of each process waits at, see `start_together`; empty: none.
    """

    x: Any
    y: Any
    x_test: Any
    y_test: Any
    quantity: bool
    seed: int
    cpus: int
    gate: str = ""

    @property
    def score_metric(self) -> str:
        return "r2" if self.quantity else "accuracy"


def make_task(frame: Any, label: str, *, rows: int, seed: int, cpus: int) -> Task:
    """Draws the rows, and holds a fifth of them out. Words become numbers, in the order of the alphabet.

    Args:
        frame: a pandas DataFrame.
        label: the column to predict.
        rows: how many at most.
        seed: of the draw and of the model.
        cpus: CPUs of each trial.
    """
    from sklearn.model_selection import train_test_split

    frame = frame.sample(n=min(rows, len(frame)), random_state=seed)
    labels = frame[label]
    quantity = labels.dtype.kind in "if" and labels.nunique() > 20
    numbers = frame.drop(columns=label).apply(_as_numbers)
    x, x_test, y, y_test = train_test_split(
        numbers.to_numpy(dtype=float),
        labels.to_numpy(dtype=float) if quantity else labels.to_numpy(),
        test_size=_TEST_SHARE,
        random_state=seed,
    )
    return Task(x, y, x_test, y_test, quantity, seed, cpus)


def _as_numbers(column: Any) -> Any:
    return column if column.dtype.kind in "biuf" else column.astype("category").cat.codes


class BoostedTrees:
    """A model that learns epoch by epoch; its settings may change between two of them (PBT does that)."""

    def __init__(self, settings: Mapping[str, Any], task: Task) -> None:
        from sklearn import ensemble

        kind = (
            ensemble.HistGradientBoostingRegressor
            if task.quantity
            else ensemble.HistGradientBoostingClassifier
        )
        self._task = task
        self._settings = dict(settings)
        self._model = kind(warm_start=True, early_stopping=False, random_state=task.seed, **settings)
        self.epoch = 0

    def next_epoch(self) -> dict[str, Any]:
        """Adds its trees; returns what Tune is told."""
        self.epoch += 1
        self._model.set_params(max_iter=self.epoch * TREES_PER_EPOCH)
        self._model.fit(self._task.x, self._task.y)
        score = float(self._model.score(self._task.x_test, self._task.y_test))
        return {"epoch": self.epoch, "score": score, "cpus": len(os.sched_getaffinity(0))}

    def save(self, directory: Path) -> None:
        """Leaves the model in a directory that Tune makes a checkpoint of."""
        (directory / _MODEL_NAME).write_bytes(pickle.dumps((self.epoch, self._model)))

    def load(self, directory: Path) -> None:
        """Goes on from a checkpoint, which may be another trial's: the settings stay this trial's."""
        content = (directory / _MODEL_NAME).read_bytes()
        self.epoch, self._model = pickle.loads(content)  # noqa: S301 - our own, from the results directory
        self._model.set_params(**self._settings)


def trainable(api: str, task: Task, save_every: int) -> Any:
    """What Tune runs as a trial.

    Args:
        api: `class` or `function`.
        task: travels once, through Ray's object store.
        save_every: so many epochs a function makes a checkpoint; a class is saved by Tune.
    """
    from ray import tune

    made = (
        tune.with_parameters(_trainable_class(), task=task)
        if api == "class"
        else tune.with_parameters(_train, task=task, save_every=save_every)
    )
    return tune.with_resources(made, {"cpu": task.cpus})


def _train(config: dict[str, Any], task: Task, save_every: int) -> None:
    """The trial as a function: Tune ends it where it reports."""
    from ray import tune

    from raytools.node.pinned import pinned

    with pinned(task.cpus, wait=_WAIT_FOR_CPUS):
        start_together.join(task.gate)
        model = BoostedTrees(config, task)
        if checkpoint := tune.get_checkpoint():
            with checkpoint.as_directory() as directory:
                model.load(Path(directory))
        while True:  # the experiment's `stop` and the scheduler decide when it is enough
            told = model.next_epoch()
            if model.epoch % save_every:
                tune.report(told)
                continue
            with tempfile.TemporaryDirectory(prefix="raytools-tune-") as directory:
                model.save(Path(directory))
                tune.report(told, checkpoint=tune.Checkpoint.from_directory(directory))


def _trainable_class() -> type:
    from ray import tune

    class GradientBoosting(tune.Trainable):  # type: ignore[misc] # Ray has no types here
        """The trial as a class: Tune calls each step, saves it and may give its process to another trial."""

        def setup(self, config: dict[str, Any], task: Task) -> None:
            from raytools.node.pinned import pinned

            self._held = contextlib.ExitStack()
            self._held.enter_context(pinned(task.cpus, wait=_WAIT_FOR_CPUS))
            self._task = task
            self._trees = BoostedTrees(config, task)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._trees = BoostedTrees(new_config, self._task)
            return True

        def step(self) -> dict[str, Any]:
            start_together.join(self._task.gate)  # not in setup: some searches start one after the other
            return self._trees.next_epoch()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            self._trees.save(Path(checkpoint_dir))

        def load_checkpoint(self, checkpoint: str) -> None:
            self._trees.load(Path(checkpoint))

        def cleanup(self) -> None:
            self._held.close()

    return GradientBoosting
