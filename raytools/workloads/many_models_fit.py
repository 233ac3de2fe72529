"""The fit of one key, the work on one batch, and the serial fit that all methods are measured against.

    python -m raytools.workloads.many_models_fit FIT SEED THREADS KEY ...      prints seconds of each fit

Standard library at import; numpy and scikit-learn are imported where a model is fitted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from raytools.workloads import start_together
from raytools.workloads.many_models import OLS, RIDGE
from raytools.workloads.many_models_data import Batch, read_keys, rows_of

_HELD_OUT = 12  # rows of each key
_TREES = 10
_WAIT_FOR_CPUS = "5m"  # a `raytools run` from a shell may hold them, which Ray does not know
_WARM_UP_FITS = 10
_DIGITS = 6  # of a prediction: another CPU model may add up in another order


@dataclass(frozen=True)
class Fit:
    """How models are fitted: which kind, from which seed, on how many CPUs each."""

    kind: str
    seed: int
    cpus: int


@dataclass(frozen=True)
class Model:
    """What became of one key.

    Args:
        key: the key.
        score: R² on the held-out rows; NaN where the fit failed.
        fingerprint: of the key and its predictions: the same for the same model.
        fit_s: seconds of fit and score.
        coefficients: of a line; empty for trees.
        problem: why the fit failed; empty where it did not.
        cpus: CPUs that the kernel let it use.
        node, pid: where it was fitted.
    """

    key: int
    score: float
    fingerprint: int
    fit_s: float
    coefficients: list[float]
    problem: str
    cpus: int
    node: str
    pid: int


def fit_key(key: int, x: Any, y: Any, fit: Fit) -> Model:
    """Fits one key and scores it on rows that are held out. What goes wrong is part of the result."""
    began = time.perf_counter()
    score, fingerprint, coefficients, problem = math.nan, 0, [], ""
    try:
        # of float32 another CPU model may give other digits of the fingerprint
        x, y = x.astype("float64"), y.astype("float64")
        model = _new_model(fit)
        model.fit(x[:-_HELD_OUT], y[:-_HELD_OUT])
        predicted = model.predict(x[-_HELD_OUT:])
        score = _r2(y[-_HELD_OUT:], predicted)
        coefficients = [float(value) for value in getattr(model, "coef_", ())]
        fingerprint = fingerprint_of(key, predicted.tolist())
    except Exception as error:  # noqa: BLE001 - whatever one key's rows do to the fit: the others go on
        problem = f"{type(error).__name__}: {(str(error).splitlines() or ['it said nothing'])[0]}"
    fit_s = time.perf_counter() - began
    cpus = len(os.sched_getaffinity(0))
    return Model(key, score, fingerprint, fit_s, coefficients, problem, cpus, _node_name(), os.getpid())


class LeastSquares:
    """A line by ordinary least squares, without scikit-learn: a tenth of a millisecond."""

    def fit(self, x: Any, y: Any) -> None:
        """Finds `coef_` and `intercept_`.

        Args:
            x: features, (rows, features).
            y: labels, (rows,).
        """
        import numpy

        with_one = numpy.column_stack([x, numpy.ones(len(x))])
        *self.coef_, self.intercept_ = numpy.linalg.lstsq(with_one, y, rcond=None)[0]

    def predict(self, x: Any) -> Any:
        """What the line says, (rows,); `x` as of `fit`."""
        return x @ self.coef_ + self.intercept_


def _new_model(fit: Fit) -> Any:
    if fit.kind == OLS:
        return LeastSquares()
    if fit.kind == RIDGE:
        from sklearn.linear_model import Ridge

        return Ridge()
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        max_iter=_TREES, max_leaf_nodes=8, min_samples_leaf=4, learning_rate=0.3, early_stopping=False,
        random_state=fit.seed,
    )  # fmt: skip


def _r2(wanted: Any, found: Any) -> float:
    spread = float(((wanted - wanted.mean()) ** 2).sum())
    return 1 - float(((wanted - found) ** 2).sum()) / spread if spread else math.nan


def fingerprint_of(key: int, predicted: Sequence[float]) -> int:
    """64 bits that stand for a model: its key and what it predicts."""
    text = json.dumps([key, [f"{value:.{_DIGITS}g}" for value in predicted]])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@cache
def _node_name() -> str:
    from raytools.node.plan_file import find_node_file, load_node

    return load_node(find_node_file()).name


@cache
def limit_threads(fit: Fit) -> None:
    """For good, in this process: libraries may have counted the machine's CPUs when they were loaded."""
    import numpy  # noqa: F401 - only what is loaded is limited
    import threadpoolctl

    if fit.kind != OLS:
        import sklearn.ensemble  # noqa: F401
    threadpoolctl.threadpool_limits(limits=fit.cpus)


@dataclass(frozen=True)
class Work:
    """One batch of a method.

    Args:
        batch: its keys.
        fit: how they are fitted.
        table: that they are in.
        results: directory that its models are written in.
        gate: that the first batch of each process waits at, see `start_together`; empty: none.
    """

    batch: Batch
    fit: Fit
    table: str
    results: str
    gate: str = ""


def fit_batch(work: Work) -> int:
    """Fits the keys of a batch, on CPUs of its own, and writes them in one file. Returns how many failed."""
    from raytools.node.pinned import pinned
    from raytools.workloads.many_models_results import write_models

    with pinned(work.fit.cpus, wait=_WAIT_FOR_CPUS):
        limit_threads(work.fit)
        start_together.join(work.gate)
        models = [fit_key(key, x, y, work.fit) for key, x, y in read_keys(work.table, work.batch)]
        write_models(Path(work.results), work.batch, models)
    return sum(1 for model in models if model.problem)


def fit_group(group: dict[str, Any], fit: Fit) -> dict[str, Any]:
    """Fits the one key of a group of Ray Data, on CPUs of its own. A shuffle may have mixed the rows."""
    import numpy

    from raytools.node.pinned import pinned
    from raytools.workloads.many_models_data import FEATURES, KEY, LABEL, ROW

    order = numpy.argsort(group[ROW])
    x = numpy.column_stack([group[name] for name in FEATURES])[order]
    with pinned(fit.cpus, wait=_WAIT_FOR_CPUS):
        limit_threads(fit)
        model = fit_key(int(group[KEY][0]), x, group[LABEL][order], fit)
    return {"model": [json.dumps(vars(model))]}


def serial_fit_times_s(fit: Fit, keys: Sequence[int]) -> list[float]:
    """Seconds of each fit in one plain process without Ray, which holds its CPUs. Runs on a node, as a task.

    Raises:
        RuntimeError: the process failed.
    """
    from raytools.node.pinned import pinned

    command = [sys.executable, "-m", __name__, fit.kind, str(fit.seed), str(fit.cpus), *map(str, keys)]
    # the process must import what this worker can
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with pinned(fit.cpus, wait=_WAIT_FOR_CPUS):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the serial fit ended with exit code {done.returncode}: {done.stderr[-500:]}")
    times_s: list[float] = json.loads(done.stdout)
    return times_s


def main(arguments: Sequence[str]) -> None:
    """Fits the keys one after the other; the first ones once before, to have everything loaded."""
    kind, seed, threads, *keys = arguments
    fit = Fit(kind, int(seed), int(threads))
    limit_threads(fit)
    tables = {int(key): rows_of(int(key), fit.seed) for key in keys}
    for key, (x, y) in list(tables.items())[:_WARM_UP_FITS]:
        fit_key(key, x, y, fit)
    print(json.dumps([fit_key(key, x, y, fit).fit_s for key, (x, y) in tables.items()]))


if __name__ == "__main__":
    main(sys.argv[1:])
