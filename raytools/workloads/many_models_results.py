"""Models in files, one for each batch, and the proof from these files that every model is there exactly once.

A batch is done when `models-<number>.parquet` is there. One with a fit that failed is named `failed-…`,
and is done again on resume. Standard library at import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytools.workloads.many_models_data import Batch, write_parquet

if TYPE_CHECKING:
    from raytools.workloads.many_models_fit import Model

_WHOLE, _FAILED = "models", "failed"
_NO_FILE = (0, 0)


def models_path(directory: Path, number: int) -> Path:
    """Where the models of a batch are when all of them were fitted."""
    return directory / f"{_WHOLE}-{number:06d}.parquet"


def failed_path(directory: Path, number: int) -> Path:
    """Where they are when a fit failed."""
    return directory / f"{_FAILED}-{number:06d}.parquet"


def is_written(directory: Path, number: int) -> bool:
    """Whether somebody has come to the end of a batch, well or not."""
    return models_path(directory, number).exists() or failed_path(directory, number).exists()


def write_models(directory: Path, batch: Batch, models: Sequence[Model]) -> None:
    """Writes the models of a batch in one step. A second attempt at it replaces the first one's file."""
    import pyarrow

    failed = any(model.problem for model in models)
    path = (failed_path if failed else models_path)(directory, batch.number)
    # what is empty in all rows would have no type of its own
    kinds = {
        "key": pyarrow.int64(), "score": pyarrow.float64(), "fingerprint": pyarrow.uint64(),
        "fit_s": pyarrow.float32(), "coefficients": pyarrow.list_(pyarrow.float64()),
        "problem": pyarrow.string(), "cpus": pyarrow.int32(), "node": pyarrow.string(),
        "pid": pyarrow.int64(),
    }  # fmt: skip
    rows = [vars(model) for model in models]
    write_parquet(path, pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(list(kinds.items()))))
    if not failed:
        failed_path(directory, batch.number).unlink(missing_ok=True)


def clear_unfinished(directory: Path) -> None:
    """Makes the directory; removes what killed writers left. Nobody may be writing there."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob(".*.parquet.*"):
        path.unlink(missing_ok=True)


Stamps = dict[int, tuple[int, int]]


def finished(directory: Path, batches: Sequence[Batch]) -> Stamps:
    """Numbers of the batches that are done; with inode and time, which change when one is done again."""
    found = {}
    for batch in batches:
        stamp = _stamp(models_path(directory, batch.number))
        if stamp != _NO_FILE:
            found[batch.number] = stamp
    return found


def _stamp(path: Path) -> tuple[int, int]:
    with contextlib.suppress(FileNotFoundError):
        state = path.stat()
        return state.st_ino, state.st_mtime_ns
    return _NO_FILE


class Tally:
    """Counts models as their files are read: a byte and four for each, whatever else a file has.

    Args:
        models: how many keys there should be, from 0.
    """

    def __init__(self, models: int) -> None:
        self._times_seen = bytearray(models)
        self._fit_s = array("f")
        self._score_sum = 0.0
        self._digest = 0
        self.repeated = 0
        self.failed = 0
        self.problem: str | None = None
        self.cpus_seen: int | None = None
        self.nodes: set[str] = set()

    def add(self, models: Iterator[Any] | Sequence[Any]) -> None:
        """Counts some models.

        Raises:
            ValueError: a key that nobody asked for.
        """
        for model in models:
            if not 0 <= model.key < len(self._times_seen):
                raise ValueError(
                    f"found a model of key {model.key}, expected 0 to {len(self._times_seen) - 1}"
                )
            if self._times_seen[model.key]:
                self.repeated += 1
                continue
            self._times_seen[model.key] = 1
            self.cpus_seen = max(self.cpus_seen or 0, model.cpus)
            self.nodes.add(model.node)
            if model.problem:
                self.failed += 1
                self.problem = self.problem or f"key {model.key}: {model.problem}"
                continue
            self._fit_s.append(model.fit_s)
            self._score_sum += model.score
            # a sum does not depend on which file a model is in, nor on their order
            self._digest = (self._digest + model.fingerprint) % 2**64

    @property
    def models(self) -> int:
        """Keys that have a model, or a fit that failed."""
        return sum(self._times_seen)

    @property
    def missing(self) -> int:
        return len(self._times_seen) - self.models

    def metrics(self) -> dict[str, Any]:
        """What all methods have to agree in, and what was seen of the fits."""
        fitted = len(self._fit_s)
        return {
            "models": self.models,
            "models_missing": self.missing,
            "models_repeated": self.repeated,
            "models_failed": self.failed,
            "problem": self.problem,
            "score": round(self._score_sum / fitted, 6) if fitted else None,
            "score_metric": "r2",
            "digest": f"{self._digest:016x}",
            "fit_s": round(statistics.median(self._fit_s), 6) if fitted else None,
            "cpus_seen": self.cpus_seen,
            "nodes": sorted(self.nodes),
        }


def count(directory: Path, models: int) -> Tally:
    """Reads every file of models below the directory, one after the other.

    Files are found by looking, not by the names that were asked for: one too many would be found, too.
    """
    tally = Tally(models)
    for path in sorted(directory.glob(f"{_WHOLE}-*.parquet")) + sorted(
        directory.glob(f"{_FAILED}-*.parquet")
    ):
        tally.add(read_models(path))
    return tally


def read_models(path: Path) -> Iterator[Model]:
    """The models of one file."""
    import pyarrow.parquet

    from raytools.workloads.many_models_fit import Model

    names = [field.name for field in dataclasses.fields(Model)]
    table = pyarrow.parquet.read_table(path, columns=names, use_threads=False)
    for row in zip(*(table.column(name).to_pylist() for name in names), strict=True):
        yield Model(*row)
