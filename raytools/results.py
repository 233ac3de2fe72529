"""What smokes found, kept on the controller: `<state>/results/<workload>/<id>/smoke.json`.

The nodes' storage has the same document and the record of each run, but the controller need not reach it.
Prints nothing. Comparing and exporting are pure.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
import secrets
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node.plain import as_dict
from raytools.node.record import Used
from raytools.workloads.base import entry_of, run_name
from raytools.workloads.equality import HOST_FIELDS, differences_in_what_was_asked, is_number

LATEST = "latest"
DOCUMENT_NAME = "smoke.json"
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")
_NAMED_IN_ERRORS = 8
_USED = tuple(as_dict(Used()))
EXPORT_COLUMNS = ("id", "workload", "node", "slot", "outcome", "tainted", *(f"used.{name}" for name in _USED))
"""Columns of an export before those of the metrics: always these, in this order."""


@dataclasses.dataclass(frozen=True)
class StoredResult:
    """One document of `raytools.smoke/1`, and where it is kept."""

    id: str
    workload: str
    path: Path
    document: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """One line of a list: what, when, and how it ended."""
        records = [run["record"] for run in self.document["runs"]]
        began = [record["started_at"] for record in records if record.get("started_at")]
        ended = [record["finished_at"] for record in records if record.get("finished_at")]
        return {
            "id": self.id,
            "workload": self.workload,
            "started_at": min(began, default=None),
            "verdict": self.document["verdict"],
            "complete": self.document.get("complete", True),
            "runs": len(records),
            "nodes": len({_node_name(record) for record in records}),
            "seconds": _seconds_between(min(began), max(ended)) if began and ended else None,
        }


def _seconds_between(began: str, ended: str) -> float:
    return round((_time(ended) - _time(began)).total_seconds(), 1)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _node_name(record: Mapping[str, Any]) -> str:
    return str((record.get("host") or {}).get("name") or "unknown node")


# -------------------------------------------------------------------------------------------------- keeping


def new_id() -> str:
    """A name in the form that the head gives, for what it has given none."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"


def keep(state_dir: Path, document: Mapping[str, Any]) -> StoredResult:
    """Writes a document so that it is there whole, after a power failure too, or not at all.

    Where the head is this machine and its storage this directory, its own document is already there.

    Args:
        state_dir: of the project.
        document: of `raytools.smoke/1`; its `id` names the directory.

    Raises:
        RaytoolsError: it cannot be written.
    """
    name = str(document.get("id") or "")
    name = name if _ID.fullmatch(name) else new_id()
    directory = state_dir / "results" / str(document["workload"]) / name
    try:
        if directory.is_dir():
            if _document_in(directory) != document:
                write_whole(directory / DOCUMENT_NAME, to_json(document))
        else:
            _make_whole(directory, to_json(document))
    except OSError as error:
        raise RaytoolsError(
            f"the result cannot be kept in {directory} ({error.strerror})",
            expected="a directory this user may write",
        ) from error
    return StoredResult(name, str(document["workload"]), directory / DOCUMENT_NAME, document)


def _document_in(directory: Path) -> Any:
    try:
        return json.loads((directory / DOCUMENT_NAME).read_text())
    except (OSError, ValueError):
        return None


def to_json(data: Mapping[str, Any]) -> str:
    """As it stands in files and on standard output."""
    return json.dumps(data, indent=1) + "\n"


def _make_whole(directory: Path, text: str) -> None:
    """The directory with its document under another name first: a name in a list is a whole result."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    beside.mkdir()
    try:
        with (beside / DOCUMENT_NAME).open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _sync(beside)
        beside.rename(directory)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync(directory.parent)


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step, and is on the disk when it returns."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -------------------------------------------------------------------------------------------------- finding


def stored(
    state_dir: Path, workload: str | None = None, limit: int | None = None
) -> tuple[list[StoredResult], list[str]]:
    """Results, newest first, and one sentence for each that cannot be read.

    Args:
        state_dir: of the project.
        workload: only of this one.
        limit: at most so many.
    """
    found: list[StoredResult] = []
    unreadable = []
    for directory in _directories(state_dir, workload):
        if limit is not None and len(found) >= limit:
            break
        try:
            found.append(_read(directory))
        except RaytoolsError as error:
            unreadable.append(str(error))
    return found, unreadable


def count(state_dir: Path, workload: str | None = None) -> int:
    """How many there are, readable or not."""
    return len(_directories(state_dir, workload))


def _directories(state_dir: Path, workload: str | None) -> list[Path]:
    """Directories with a document, newest first: ids begin with the time. One without it is still at work."""
    pattern = f"{workload or '*'}/*/{DOCUMENT_NAME}"
    found = [path.parent for path in (state_dir / "results").glob(pattern)]
    visible = [path for path in found if not path.name.startswith(".")]
    return sorted(visible, key=lambda path: (path.name, path.parent.name), reverse=True)


def _read(directory: Path) -> StoredResult:
    path = directory / DOCUMENT_NAME
    try:
        document = json.loads(path.read_text())
        result = StoredResult(directory.name, directory.parent.name, path, {"id": directory.name, **document})
        result.summary()
    except OSError as error:
        raise RaytoolsError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RaytoolsError(f"{path} is no document of raytools.smoke/1 ({error!r})") from error
    return result


def find(state_dir: Path, name: str, workload: str | None = None) -> StoredResult:
    """The result that a person means: its id, an unambiguous beginning or end of it, or `latest`.

    Raises:
        RaytoolsError: there is none, or several; names those that there are.
    """
    directories = _directories(state_dir, workload)
    if not directories:
        raise RaytoolsError(
            f"no result is kept in {state_dir / 'results' / (workload or '')}",
            fix="Make one: raytools smoke --workload autogluon",
        )
    fitting = directories[:1] if name == LATEST else [one for one in directories if one.name == name]
    if not fitting and name:
        fitting = [one for one in directories if one.name.startswith(name) or one.name.endswith(f"-{name}")]
    if not fitting:
        raise RaytoolsError(
            f"there is no result {name!r}", expected=f"{LATEST} or one of {_listed(directories)}"
        )
    if len(fitting) > 1:
        raise RaytoolsError(
            f"{name!r} fits {len(fitting)} results: {_listed(fitting)}", fix="Type more of it"
        )
    return _read(fitting[0])


def _listed(directories: Sequence[Path]) -> str:
    more = len(directories) - _NAMED_IN_ERRORS
    names = ", ".join(directory.name for directory in directories[:_NAMED_IN_ERRORS])
    return names + (f" and {more} more (raytools results list --limit 0)" if more > 0 else "")


# ------------------------------------------------------------------------------------------------ comparing


def compare(a: StoredResult, b: StoredResult) -> dict[str, Any]:
    """Two results node by node (`raytools.comparison/1`): medians over each node's `ok` runs, and b / a."""
    before, after = _runs_by_node(a), _runs_by_node(b)
    return {
        "schema": "raytools.comparison/1",
        "a": a.summary(),
        "b": b.summary(),
        "differences": list(_differences(a, b)),
        "notes": [*_notes(a, "A"), *_notes(b, "B")],
        "only_in_a": sorted(before.keys() - after.keys()),
        "only_in_b": sorted(after.keys() - before.keys()),
        "nodes": {
            name: {
                "differences": list(_host_differences(before[name], after[name])),
                "metrics": _compared(_medians(before[name]), _medians(after[name])),
            }
            for name in before
            if name in after
        },
    }


def _runs_by_node(result: StoredResult) -> dict[str, list[Mapping[str, Any]]]:
    """Entries of scope `cluster` by their own name: all nodes work on each."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in result.document["runs"]:
        name = entry_of(run["record"]) or _node_name(run["record"])
        found.setdefault(name, []).append(run)
    return found


def _differences(a: StoredResult, b: StoredResult) -> Iterator[str]:
    """What makes the two incomparable as a whole: the question was another one."""
    yield from differences_in_what_was_asked(a.document, b.document)
    before, after = a.document.get("enforce"), b.document.get("enforce")
    if None not in (before, after) and before != after:
        yield f"enforce {before}, now {after}"


def _notes(result: StoredResult, letter: str) -> Iterator[str]:
    """What speaks against the figures of one of the two."""
    if not result.document.get("complete", True):
        yield f"{letter} is incomplete: some of its runs had not finished"
    for run in result.document["runs"]:
        record = run["record"]
        if record.get("outcome") != "ok":
            yield f"{run_name(record)}: outcome {record.get('outcome')} in {letter}, its figures are left out"
        elif _is_tainted(record):
            why = "; ".join(record["fairness"].get("reasons") or [])
            yield f"{run_name(record)}: tainted in {letter}: {why}"


def _is_tainted(record: Mapping[str, Any]) -> bool:
    return (record.get("fairness") or {}).get("verdict") == "tainted"


def _host_differences(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Another machine, software or slot under the same name."""
    for field, title in HOST_FIELDS.items():
        yield from _changed(title, *(_values(runs, "host", field) for runs in (before, after)))
    yield from _changed("CPUs of a slot", *(_values(runs, "limits", "cpus") for runs in (before, after)))
    yield from _changed("slots", {str(len(before))}, {str(len(after))})


def _values(runs: Sequence[Mapping[str, Any]], part: str, field: str) -> set[str]:
    values = ((run["record"].get(part) or {}).get(field) for run in runs)
    return {str(value) for value in values if value is not None}


def _changed(title: str, before: set[str], after: set[str]) -> Iterator[str]:
    if before and after and before != after:
        yield f"{title} {' and '.join(sorted(before))}, now {' and '.join(sorted(after))}"


def figures_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """`used.*` of the record and the scalar metrics as `metrics.*`: the columns that a run has."""
    used = run["record"].get("used") or {}
    scalars = {name: value for name, value in run["metrics"].items() if not isinstance(value, list | dict)}
    return {f"used.{name}": used.get(name) for name in _USED} | {
        f"metrics.{name}": scalars[name] for name in sorted(scalars)
    }


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each figure the median over the runs that ended well; of words, those that occur."""
    figures = [figures_of(run) for run in runs if run["record"].get("outcome") == "ok"]
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in figures for name in one):
        values = [one[name] for one in figures if one.get(name) is not None]
        if values and all(map(is_number, values)):
            found[name] = statistics.median(values)
        elif values:
            found[name] = ", ".join(sorted({str(value) for value in values}))
    return found


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "a": before.get(name),
            "b": after.get(name),
            "ratio": _ratio(before.get(name), after.get(name)),
        }
        for name in dict.fromkeys([*before, *after])
    }


def _ratio(before: Any, after: Any) -> float | None:
    if not (is_number(before) and is_number(after) and before):
        return None
    ratio = after / before
    return float(f"{ratio:.6g}") if math.isfinite(ratio) else None


# ------------------------------------------------------------------------------------------------ exporting


def to_csv(results: Sequence[StoredResult]) -> str:
    """One line per run; columns are EXPORT_COLUMNS, then the metrics that occur, by name. Unknown: empty."""
    rows = [_row(result, run) for result in results for run in result.document["runs"]]
    metrics = sorted({name for row in rows for name in row} - set(EXPORT_COLUMNS))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*EXPORT_COLUMNS, *metrics], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _row(result: StoredResult, run: Mapping[str, Any]) -> dict[str, Any]:
    record = run["record"]
    return {
        "id": result.id,
        "workload": result.workload,
        "node": (record.get("host") or {}).get("name"),
        "slot": (record.get("host") or {}).get("slot"),
        "outcome": record.get("outcome"),
        "tainted": _is_tainted(record),
        **figures_of(run),
    }


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return " ".join(value.splitlines())  # a run is one line, for programs that read lines, too
    return "" if value is None else value
