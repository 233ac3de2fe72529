"""An environment that somebody else made (`environment.prefix`): noted and compared, never written to.

It has no lock, so its id is the bare name of the environment.
"""

from __future__ import annotations

import json
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from raytools.environment.build import Built
from raytools.environment.progress import SILENT, Progress
from raytools.environment.spec import EnvironmentSpec
from raytools.errors import EnvironmentBuildError
from raytools.node.environment_place import exclusive, point_current_to
from raytools.node.manifest import (
    ENVIRONMENT_NAME,
    ENVIRONMENT_SCHEMA,
    Difference,
    compare,
    content_digest,
    existing_directory,
    make_manifest,
    read_environment,
    write_json,
    write_manifest,
)

NEEDED = ("ray", "psutil")
"""What nodes cannot do without."""


def adopt_environment(spec: EnvironmentSpec, root: Path, *, progress: Progress = SILENT) -> Built:
    """Checks that the environment can be used, and notes what it consists of, below `root`.

    Noted again only if it was changed since; `changed` says so.

    Raises:
        EnvironmentBuildError: it is not there, its Python is another one than declared, or lacks a package.
    """
    assert spec.prefix is not None
    started = time.monotonic()
    progress.phase(f"looking at {spec.prefix}")
    versions = _check(spec)
    with exclusive(root / "envs", progress.phase):
        notes = read_environment(spec.prefix, root)
        differences = compare(spec.prefix, quick=True, root=root) if notes else []
        changed = notes is None or bool(differences)
        if changed:
            _tell(differences, progress)
            notes = _note(spec, root, versions)
        point_current_to(root, spec.prefix)
    assert notes is not None
    return Built(changed, spec.name, spec.prefix, None, notes["content_digest"], time.monotonic() - started)


def _tell(differences: list[Difference], progress: Progress) -> None:
    if differences:
        progress.note(f"{len(differences)} differences since it was last noted, the first: {differences[0]}")


def _note(spec: EnvironmentSpec, root: Path, versions: dict[str, str]) -> dict[str, Any]:
    assert spec.prefix is not None
    manifest = make_manifest(spec.prefix)
    directory = existing_directory(root, spec.prefix)
    directory.mkdir(parents=True, exist_ok=True)
    write_manifest(directory, manifest)
    notes = {
        "schema": ENVIRONMENT_SCHEMA,
        "id": spec.name,
        "name": spec.name,
        "prefix": str(spec.prefix),
        "lock_digest": None,
        "content_digest": content_digest(manifest.entries),
        "python": versions["python"],
        "files": len(manifest.entries),
        "size_bytes": manifest.size_bytes,
        "built_at": datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    write_json(directory / ENVIRONMENT_NAME, notes)
    return notes


_ASK = """
import importlib, json, sys
answer = {"python": "%d.%d.%d" % sys.version_info[:3]}
for name in sys.argv[1:]:
    try:
        answer[name] = importlib.import_module(name).__version__
    except ImportError as error:
        answer[name + " error"] = str(error)
print(json.dumps(answer))
"""


def _check(spec: EnvironmentSpec) -> dict[str, str]:
    assert spec.prefix is not None
    python = spec.prefix / "bin" / "python"
    if not python.exists():
        raise EnvironmentBuildError(
            f"environment.prefix: {python} does not exist",
            expected="an environment with Python in it",
            fix="Name the directory that has bin/python",
        )
    # -B: not even byte code is written into it
    command = [str(python), "-I", "-B", "-c", _ASK, *NEEDED]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentBuildError(f"environment.prefix: cannot run {python}: {error}") from error
    if done.returncode:
        raise EnvironmentBuildError(f"environment.prefix: {python} fails: {done.stderr.strip()[-300:]}")
    versions: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    missing = [f"{name} ({versions[name + ' error']})" for name in NEEDED if name not in versions]
    if missing:
        raise EnvironmentBuildError(
            f"environment.prefix: {python} cannot import {', '.join(missing)}",
            fix=f"Install them there: {python} -m pip install {' '.join(NEEDED)}",
        )
    parts = spec.python.split(".")
    if versions["python"].split(".")[: len(parts)] != parts:
        raise EnvironmentBuildError(
            f"environment.prefix: {python} is Python {versions['python']}",
            expected=f"Python {spec.python} (environment.python)",
        )
    return versions
