"""Baselines: the medians of a good smoke in a file, against which later ones are judged (`--baseline`).

What is in one, and how it is compared, is in raytools/workloads/equality.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.results import to_json, write_whole
from raytools.workloads.equality import BASELINE_SCHEMA, NODE_KEYS, baseline_of, is_number


def read_baseline(path: Path, workload: str) -> dict[str, Any]:
    """A baseline for this workload.

    Raises:
        RaytoolsError: there is none, or it is of another workload.
    """
    try:
        baseline = json.loads(path.read_text())
    except OSError as error:
        raise RaytoolsError(
            f"baseline {path} cannot be read ({error.strerror})",
            fix=f"Make one: raytools smoke --workload {workload} --save-baseline {path}",
        ) from error
    except ValueError as error:
        raise RaytoolsError(f"baseline {path} is no JSON ({error})", expected=BASELINE_SCHEMA) from error
    if not _is_baseline(baseline):
        raise RaytoolsError(
            f"{path} is no baseline", expected=f"what --save-baseline writes ({BASELINE_SCHEMA})"
        )
    if baseline["workload"] != workload:
        raise RaytoolsError(
            f"baseline {path} is of workload {baseline['workload']}", expected=f"one of {workload}"
        )
    found: dict[str, Any] = baseline
    return found


def _is_baseline(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and data.get("schema") == BASELINE_SCHEMA
        and isinstance(data.get("workload"), str)
        and isinstance(data.get("parameters"), dict)
        and isinstance(data.get("nodes"), dict)
        and all(_is_node(node) for node in data["nodes"].values())
    )


def _is_node(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and data.keys() >= NODE_KEYS
        and isinstance(data["metrics"], dict)
        and all(value is None or is_number(value) for value in data["metrics"].values())
    )


def check_place(path: Path) -> None:
    """Raises a RaytoolsError where `write_baseline` would: before the runs, not after them."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise RaytoolsError(
            f"baseline {path} cannot be written", expected="a file in a directory this user may write"
        )


def write_baseline(path: Path, document: Mapping[str, Any]) -> list[str]:
    """Writes the medians of a smoke that passed; returns the nodes that are in it.

    Raises:
        RaytoolsError: nothing in it is a measure, or the file cannot be written.
    """
    if document["verdict"] != "pass":
        raise RaytoolsError(
            f"baseline {path} was not written: the verdict is {document['verdict']}",
            expected="a smoke that passes",
        )
    baseline = baseline_of(document) if document.get("equality") else {"nodes": {}}
    if not baseline["nodes"]:
        raise RaytoolsError(
            f"baseline {path} was not written: no run is a measure", expected="runs that are not tainted"
        )
    try:
        write_whole(path, to_json(baseline))
    except OSError as error:
        raise RaytoolsError(f"baseline {path} cannot be written ({error.strerror})") from error
    return list(baseline["nodes"])
