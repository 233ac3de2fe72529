"""lock -> environment: built in place at the prefix every node will use, valid once its notes are written.

Interrupted at any point it is not there: the directory without notes is removed and built anew.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from raytools.environment import conda, pip_part
from raytools.environment.local_channel import ensure_local_channel, locked_packages_are_there
from raytools.environment.lock import LOCK_COMMAND, Lock
from raytools.environment.progress import SILENT, Progress
from raytools.environment.resolve import install_conda_part, local_channel_directory, wheel_store
from raytools.environment.spec import LOCAL_CHANNEL
from raytools.errors import EnvironmentBuildError
from raytools.node.environment_place import exclusive, point_current_to
from raytools.node.manifest import (
    ENVIRONMENT_NAME,
    ENVIRONMENT_SCHEMA,
    content_digest,
    make_manifest,
    own_directory,
    read_environment,
    write_json,
    write_manifest,
)
from raytools.project import Project


@dataclass(frozen=True)
class Built:
    """An environment that is ready. `lock_digest` is None for an existing one (`environment.prefix`)."""

    changed: bool
    id: str
    prefix: Path
    lock_digest: str | None
    content_digest: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What `raytools env build --json` prints."""
        return {**asdict(self), "prefix": str(self.prefix), "seconds": round(self.seconds, 2)}


def environment_prefix(root: Path, lock: Lock) -> Path:
    """Where the environment is on every node."""
    return root / "envs" / lock.environment_id


def build_environment(
    project: Project, lock: Lock, root: Path, *, rebuild: bool = False, progress: Progress = SILENT
) -> Built:
    """Builds what is locked below `root`, unless it is there already, and points `envs/current` to it.

    Args:
        project: whose channel `local` and caches are used.
        lock: what to build; the caller has checked that it fits the declaration.
        root: absolute path of `<root>`, the same on every node.
        rebuild: build even if it is there.
        progress: told what is being done.

    Raises:
        EnvironmentBuildError: a package cannot be had or is not what was locked, or the root is not
            writable.
    """
    started = time.monotonic()
    prefix = environment_prefix(root, lock)
    built = None if rebuild else _already_built(prefix, lock)
    if built is None:
        with exclusive(root / "envs", progress.phase):
            built = None if rebuild else _already_built(prefix, lock)
            if built is None:
                try:
                    notes = _build(project, lock, prefix, progress)
                except OSError as error:
                    raise EnvironmentBuildError(f"cannot build {prefix}: {error}") from error
                built = _describe(notes, prefix, changed=True)
    point_current_to(root, prefix)
    return replace(built, seconds=time.monotonic() - started)


def _already_built(prefix: Path, lock: Lock) -> Built | None:
    notes = read_environment(prefix)
    if notes is None or notes["lock_digest"] != lock.digest or notes["prefix"] != str(prefix):
        return None  # not there, unfinished, or moved here from where it was built
    return _describe(notes, prefix, changed=False)


def _describe(notes: dict[str, Any], prefix: Path, *, changed: bool) -> Built:
    return Built(changed, notes["id"], prefix, notes["lock_digest"], notes["content_digest"], 0.0)


def _build(project: Project, lock: Lock, prefix: Path, progress: Progress) -> dict[str, Any]:
    if prefix.exists():
        progress.phase(f"removing the former {prefix.name}")
        (own_directory(prefix) / ENVIRONMENT_NAME).unlink(missing_ok=True)  # first: now it is not there
        shutil.rmtree(prefix)
    progress.phase("installing the conda part")
    _require_local_packages(project, lock, progress)
    install_conda_part(project, list(lock.conda), prefix, tuple(lock.spec["conda"]))
    progress.phase(f"installing {len(lock.pip)} pip packages")
    # pip keeps one CPU busy; meanwhile the standard library is compiled on another
    with _compiler(prefix, skip="site-packages", workers=1):
        pip_part.install(prefix, lock.pip, store=wheel_store(project), progress=progress)
    progress.phase("compiling byte code")
    with _compiler(prefix, skip="site-packages/.*/tests/", workers=len(os.sched_getaffinity(0))):
        pass
    progress.phase("noting every file")
    manifest = make_manifest(prefix)
    directory = own_directory(prefix)
    directory.mkdir()
    write_manifest(directory, manifest)
    notes = {
        "schema": ENVIRONMENT_SCHEMA,
        "id": lock.environment_id,
        "name": lock.name,
        "prefix": str(prefix),
        "lock_digest": lock.digest,
        "content_digest": content_digest(manifest.entries),
        "python": lock.python,
        "files": len(manifest.entries),
        "size_bytes": manifest.size_bytes,
        "built_at": datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    write_json(directory / ENVIRONMENT_NAME, notes)  # last: from here on the environment exists
    return notes


def _require_local_packages(project: Project, lock: Lock, progress: Progress) -> None:
    """Makes channel `local` again if it is gone, and refuses if that gives something else."""
    local = [package for package in lock.conda if conda.is_local(package)]
    directory = local_channel_directory(project)
    if not local or locked_packages_are_there(directory, local):
        return
    ensure_local_channel(directory, {package["name"] for package in local}, progress)
    if not locked_packages_are_there(directory, local):
        raise EnvironmentBuildError(
            f"channel `{LOCAL_CHANNEL}` no longer gives the packages that were locked: this machine's Python "
            f"(or libgomp) is another one now",
            expected=", ".join(f"{package['name']} {package['version']}" for package in local),
            fix=f"Lock again: {LOCK_COMMAND} --upgrade",
        )


@contextlib.contextmanager
def _compiler(prefix: Path, *, skip: str, workers: int) -> Iterator[None]:
    """Compiles byte code for all modules whose path does not match `skip`, while the block runs.

    Modules written for other Pythons cannot be compiled: compileall exits with 1 then, as it always does.
    """
    command = [
        str(prefix / "bin" / "python"), "-I", "-m", "compileall", "-qq", "-x", skip, "-j", str(workers),
        str(prefix / "lib"),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield
    if process.returncode not in (0, 1):
        raise EnvironmentBuildError(f"compiling byte code in {prefix} failed: exit code {process.returncode}")
