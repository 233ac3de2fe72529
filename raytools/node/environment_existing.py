"""An environment that somebody else made (`environment.prefix`): noted and compared, never written to.

It has no lock, so its id is its bare name. Standard library only: every node notes its own.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from raytools.errors import EnvironmentBuildError
from raytools.node.environment_place import exclusive, point_current_to
from raytools.node.manifest import (
    ENVIRONMENT_NAME,
    ENVIRONMENT_SCHEMA,
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


def adopt(prefix: Path, name: str, python: str, root: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Checks that an environment can be used here, and notes what it consists of, below `root`.

    Noted again only if it was changed since.

    Args:
        prefix: where it is.
        name: what it is called.
        python: the version its interpreter has to have, such as `3.11`.
        root: raytools' root on this node.
        say: told what takes time, and what has changed.

    Returns:
        The notes (environment.json), and `changed`: whether they were made now.

    Raises:
        EnvironmentBuildError: it is not there, its Python is another one than declared, or lacks a package.
    """
    say(f"looking at {prefix}")
    versions = _check(prefix, python)
    with exclusive(root / "envs", say):
        notes = read_environment(prefix, root)
        differences = compare(prefix, quick=True, root=root) if notes else []
        changed = notes is None or bool(differences)
        if changed:
            if differences:
                say(f"{len(differences)} differences since it was last noted, the first: {differences[0]}")
            notes = _note(prefix, name, root, versions)
        point_current_to(root, prefix)
    assert notes is not None
    return {**notes, "changed": changed}


def _note(prefix: Path, name: str, root: Path, versions: dict[str, str]) -> dict[str, Any]:
    manifest = make_manifest(prefix)
    directory = existing_directory(root, prefix)
    directory.mkdir(parents=True, exist_ok=True)
    write_manifest(directory, manifest)
    notes = {
        "schema": ENVIRONMENT_SCHEMA,
        "id": name,
        "name": name,
        "prefix": str(prefix),
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


def _check(prefix: Path, wanted: str) -> dict[str, str]:
    python = prefix / "bin" / "python"
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
    parts = wanted.split(".")
    if versions["python"].split(".")[: len(parts)] != parts:
        raise EnvironmentBuildError(
            f"environment.prefix: {python} is Python {versions['python']}",
            expected=f"Python {wanted} (environment.python)",
        )
    return versions
