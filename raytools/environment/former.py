"""Former locks, kept so that one can be put back: `.raytools/locks/former/<configuration>/<id>.lock.yaml`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raytools.environment.lock import (
    FORCE_VARIABLE,
    LOCK_COMMAND,
    Lock,
    local_is_forced,
    misfits,
    read_current_lock,
    read_lock,
    state_lock_path,
    tree_lock_path,
    write_lock,
)
from raytools.environment.progress import Progress
from raytools.environment.spec import EnvironmentSpec
from raytools.errors import EnvironmentBuildError
from raytools.project import Project

KEPT = 5


@dataclass(frozen=True)
class Rollback:
    """What was put back; not `changed` if it was in its place already."""

    changed: bool
    lock: Lock
    former: Lock | None


def lock_path(project: Project, lock: Lock) -> Path:
    """Where a lock belongs."""
    return state_lock_path(project, lock.name) if lock.is_local else tree_lock_path(project)


def former_directory(project: Project) -> Path:
    """Of this configuration; another one in the same directory has its own."""
    return project.state_dir / "locks" / "former" / project.config_path.stem


def keep_former(project: Project, spec: EnvironmentSpec, lock: Lock, progress: Progress) -> None:
    """Keeps the lock in force, if it is another one than that which replaces it.

    Raises:
        OSError: it cannot be written.
    """
    try:
        former = read_current_lock(project, spec)
    except EnvironmentBuildError as error:
        progress.note(f"the former lock is not kept: {error.found}")
        return
    if former is None or former.digest == lock.digest:
        return
    directory = former_directory(project)
    path = directory / f"{former.environment_id}.lock.yaml"
    write_lock(path, former)
    os.utime(path)  # the order in which they were replaced
    for old in _paths(directory)[KEPT:]:
        old.unlink()


def former_locks(project: Project) -> list[Lock]:
    """Those that can be put back, the one that was replaced last first.

    Raises:
        EnvironmentBuildError: one of them is damaged.
    """
    return [read_lock(path) for path in _paths(former_directory(project))]


def _paths(directory: Path) -> list[Path]:
    paths = list(directory.glob("*.lock.yaml"))
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def roll_back(
    project: Project, spec: EnvironmentSpec, identifier: str | None, progress: Progress
) -> Rollback:
    """Puts a former lock back in its place, and keeps the one that was there.

    Args:
        project: whose lock.
        spec: what is declared now.
        identifier: of the environment; None for the one before.
        progress: told what could not be kept.

    Raises:
        EnvironmentBuildError: there is no such lock, or it does not answer to what is declared; nothing was
            changed.
    """
    if spec.prefix is not None:
        raise EnvironmentBuildError(
            f"environment.prefix is {spec.prefix}: an existing environment has no lock to put back"
        )
    current = read_current_lock(project, spec)
    if identifier is not None and current is not None and current.environment_id == identifier:
        _require_fit(current, spec)
        return Rollback(False, current, current)
    lock = _choose(project, spec, identifier, current)
    _require_fit(lock, spec)
    path = lock_path(project, lock)
    try:
        keep_former(project, spec, lock, progress)
        write_lock(path, lock)
        if lock.is_local and not local_is_forced() and read_current_lock(project, spec) != lock:
            tree_lock_path(project).unlink()  # it would be preferred; a copy was kept, and git has it
    except OSError as error:
        raise EnvironmentBuildError(f"cannot put the lock back: {error}") from error
    return Rollback(True, replace(lock, path=path), current)


def _choose(project: Project, spec: EnvironmentSpec, identifier: str | None, current: Lock | None) -> Lock:
    present = current.environment_id if current else None
    others = [
        lock for lock in former_locks(project) if lock.name == spec.name and lock.environment_id != present
    ]
    chosen = [lock for lock in others if identifier in (None, lock.environment_id)]
    if chosen:
        return chosen[0]
    names = ", ".join(lock.environment_id for lock in others)
    wanted = identifier or f"environment {spec.name}"
    raise EnvironmentBuildError(
        f"no former lock of {wanted} is kept in {former_directory(project)}",
        expected=f"one of {names}" if names else f"one that `{LOCK_COMMAND}` replaced",
        fix=None if names else "Take cluster.lock.yaml, if there is one, from version control",
    )


def _require_fit(lock: Lock, spec: EnvironmentSpec) -> None:
    """Names the keys to change back, with their values."""
    if not lock.is_local and local_is_forced():
        raise EnvironmentBuildError(
            f"{FORCE_VARIABLE} is set, and the lock of {lock.environment_id} comes from "
            f"{', '.join(lock.channels)}",
            fix=f"Unset it: unset {FORCE_VARIABLE}",
        )
    declared = spec.to_json()
    changed = {key: value for key, value in lock.spec.items() if declared.get(key) != value}
    if changed:
        lines = "".join(f"\n  {key}: {_as_yaml(value)}" for key, value in changed.items())
        raise EnvironmentBuildError(
            f"the lock of {lock.environment_id} answers to another declaration; nothing was changed",
            fix=f"Change these keys of cluster.yaml back, and try again:\nenvironment:{lines}",
        )
    problems = misfits(lock, spec)
    if problems:
        raise EnvironmentBuildError(
            f"the lock of {lock.environment_id} does not fit: {'; '.join(problems)}; nothing was changed"
        )


def _as_yaml(value: Any) -> str:
    """JSON is YAML, whatever the value."""
    return json.dumps(value, ensure_ascii=False)
