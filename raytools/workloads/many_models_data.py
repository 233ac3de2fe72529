"""Keys in batches, and the table of each batch: a Parquet file, some dozen rows per key, from the seed.

Standard library at import; numpy and pyarrow are imported where a table is made or read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

KEY, ROW, LABEL = "key", "row", "y"  # the row counts within its key
FEATURES = ("x0", "x1", "x2", "x3")
ROWS_PER_KEY = 48
_NOISE = 0.3


@dataclass(frozen=True)
class Batch:
    """Keys from `first` up to `end`, which is not one of them."""

    number: int
    first: int
    end: int

    @property
    def models(self) -> int:
        return self.end - self.first


def batches(models: int, size: int) -> list[Batch]:
    """All keys from 0 in batches of so many; the last may be smaller."""
    return [batch_at(number, models, size) for number in range(math.ceil(models / size))]


def batch_at(number: int, models: int, size: int) -> Batch:
    """The batch of that number."""
    return Batch(number, number * size, min((number + 1) * size, models))


def table_path(directory: Path, number: int) -> Path:
    """Where the table of a batch is."""
    return directory / f"table-{number:06d}.parquet"


def make_table(directory: str, batch: Batch, seed: int) -> None:
    """Writes the table of a batch, whole, unless it is there."""
    path = table_path(Path(directory), batch.number)
    if not path.exists():
        write_parquet(path, _columns(batch, seed))


def _columns(batch: Batch, seed: int) -> Any:
    import numpy
    import pyarrow

    x, y = zip(*(rows_of(key, seed) for key in range(batch.first, batch.end)), strict=True)
    features = numpy.concatenate(x)
    columns = {
        KEY: numpy.repeat(numpy.arange(batch.first, batch.end), ROWS_PER_KEY),
        ROW: numpy.tile(numpy.arange(ROWS_PER_KEY, dtype="int16"), batch.models),
    }
    columns |= {name: features[:, index] for index, name in enumerate(FEATURES)}
    return pyarrow.table(columns | {LABEL: numpy.concatenate(y)})


def rows_of(key: int, seed: int) -> tuple[Any, Any]:
    """Features and labels of one key, the same wherever they are drawn.

    A slope of its own for each feature, and one bend: something to learn for a line as well as for trees.
    """
    import numpy

    draw = numpy.random.default_rng([seed, key])
    slopes = draw.normal(size=len(FEATURES))
    x = draw.normal(size=(ROWS_PER_KEY, len(FEATURES)))
    y = x @ slopes + numpy.abs(x[:, 0]) + draw.normal(scale=_NOISE, size=ROWS_PER_KEY)
    return x.astype("float32"), y.astype("float32")


def read_keys(path: str, batch: Batch) -> Iterator[tuple[int, Any, Any]]:
    """Key, features and labels of each key of the batch, from a table that has them and may have more."""
    import numpy

    keys, x, y = _read(path)
    wanted = numpy.arange(batch.first, batch.end)
    begins, ends = numpy.searchsorted(keys, wanted), numpy.searchsorted(keys, wanted, side="right")
    for key, begin, end in zip(wanted.tolist(), begins.tolist(), ends.tolist(), strict=True):
        yield key, x[begin:end], y[begin:end]


@lru_cache(maxsize=1)  # a trial of Tune reads one key, and its process is given the next one
def _read(path: str) -> tuple[Any, Any, Any]:
    import numpy
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, use_threads=False)
    features = numpy.column_stack([table.column(name).to_numpy() for name in FEATURES])
    return table.column(KEY).to_numpy(), features, table.column(LABEL).to_numpy()


def write_parquet(path: Path, table: Any) -> None:
    """Writes a pyarrow table in one step: whole, or not there. Written again it replaces the first."""
    import pyarrow.parquet

    write_whole(path, lambda file: pyarrow.parquet.write_table(table, file))


def write_whole(path: Path, write: Callable[[Any], None]) -> None:
    """Calls `write` with a file that gets its name when it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
