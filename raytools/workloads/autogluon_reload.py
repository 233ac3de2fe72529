"""Do saved predictors predict as the one that was trained? Asked of a fresh process, which remembers nothing.

`python -m raytools.workloads.autogluon_reload SAMPLE ANSWER PREDICTOR…` loads each predictor and writes how
far its predictions are from those in the sample. It is a child of the run, so the slot's limits hold for it.
Standard library at import: pandas and AutoGluon are imported where they are used.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Forests add up their trees in the order in which threads end, and models compute in 32 bits: the last digits
# are no property of a predictor. One that was read wrongly is off by far more.
TOLERANCE = 1e-5


def predictions(predictor: Any, rows: Any, model: str | None = None) -> list[list[float]]:
    """What a model, by default the best, makes of the rows: probabilities of classes, or values."""
    predict = predictor.predict_proba if predictor.can_predict_proba else predictor.predict
    found = predict(rows, model=model)
    values = found.to_numpy(dtype=float)
    return [[float(cell) for cell in (row if values.ndim == 2 else [row])] for row in values]


def write_sample(path: Path, rows: Any, expected: list[list[float]]) -> None:
    """Rows and what is expected of them, for `differences`."""
    path.write_bytes(pickle.dumps({"rows": rows, "expected": expected}))


def differences(sample: Path, predictors: Mapping[str, Path], work_dir: Path) -> dict[str, dict[str, Any]]:
    """Loads each predictor in a process of its own kind.

    Args:
        sample: what `write_sample` wrote.
        predictors: directories of saved predictors, by any name.
        work_dir: where the answer may be written.

    Returns:
        For each name either `difference` (see `largest_difference`), or `trouble`, a sentence.
    """
    answer = work_dir / "reload.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", __name__, str(sample), str(answer), *map(str, predictors.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not answer.is_file():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        trouble = f"the process that was to load it ended with {done.returncode} ({last})"
        return {name: {"trouble": trouble} for name in predictors}
    return dict(zip(predictors, json.loads(answer.read_text()), strict=True))


def is_same(found: Mapping[str, Any]) -> bool:
    """Whether one of the `differences` is none."""
    return "trouble" not in found and found["difference"] <= TOLERANCE


def largest_difference(expected: list[list[float]], found: list[list[float]]) -> float:
    """As a share of what was expected, or of 1 where that is smaller; infinite where the shapes differ."""
    if [len(row) for row in expected] != [len(row) for row in found]:
        return float("inf")
    pairs = [
        pair for rows in zip(expected, found, strict=True) for pair in zip(rows[0], rows[1], strict=True)
    ]
    return max((abs(was - now) / max(1.0, abs(was)) for was, now in pairs), default=0.0)


def main(argv: list[str]) -> int:
    """Writes the answer; what goes wrong with a predictor is part of it."""
    sample, answer, *paths = argv
    asked = pickle.loads(Path(sample).read_bytes())  # noqa: S301 - ours, as the models beside it are
    found = [_look_at(path, asked["rows"], asked["expected"]) for path in paths]
    Path(answer).write_text(json.dumps(found))
    return 0


def _look_at(path: str, rows: Any, expected: list[list[float]]) -> dict[str, Any]:
    from autogluon.tabular import TabularPredictor

    try:
        predictor = TabularPredictor.load(path, verbosity=0)
        difference = largest_difference(expected, predictions(predictor, rows))
    except Exception as error:  # noqa: BLE001 - AutoGluon raises whatever its models do
        return {"trouble": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    if difference != difference or difference == float("inf"):  # JSON knows neither
        return {"trouble": "it predicts something else, or nothing, for some of the rows"}
    return {"difference": difference}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
