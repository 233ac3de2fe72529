"""The lock of an environment: exactly which packages it consists of, and how that was decided.

Two places: beside cluster.yaml (`cluster.lock.yaml`, for version control) if all packages come from
declared channels; in the project's local state (`.raytools/locks/<name>.lock.yaml`) if channel `local`
took part, because those packages exist on this machine only.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raytools.environment.spec import LOCAL_CHANNEL, EnvironmentSpec, describe_changes
from raytools.errors import EnvironmentBuildError
from raytools.project import Project

SCHEMA = "raytools.lock/1"
FORCE_VARIABLE = "RAYTOOLS_CHANNELS"
LOCK_COMMAND = "raytools env lock"

# what an environment is built by: raise it when the same packages shall give another environment
_BUILD = 1

_HEADER_TREE = "# Written by `raytools env lock`. Belongs into version control; do not edit.\n"
_HEADER_STATE = "# Written by `raytools env lock` for this machine only; do not edit.\n"


@dataclass(frozen=True)
class Lock:
    """What an environment consists of.

    `conda` are records that py-rattler can install again, `pip` have name, version and sha256 (and a url
    if one was declared). `reason` says why channel `local` was used, None if it was declared.
    """

    name: str
    python: str
    platform: str
    channels: tuple[str, ...]
    reason: str | None
    spec: dict[str, Any]
    conda: tuple[dict[str, Any], ...]
    pip: tuple[dict[str, Any], ...]
    path: Path | None = field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """sha256 over what decides the result; how it came about and where from do not."""
        content = {
            "build": _BUILD,
            "python": self.python,
            "platform": self.platform,
            "conda": [
                [package[key] for key in ("name", "version", "build", "subdir", "sha256")]
                for package in self.conda
            ],
            "pip": [[package["name"], package["version"], package["sha256"]] for package in self.pip],
        }
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @property
    def environment_id(self) -> str:
        """Name of the environment's directory: `automl-1a2b3c4d5e6f`."""
        return f"{self.name}-{self.digest[:12]}"

    @property
    def is_local(self) -> bool:
        """Whether packages of channel `local` take part."""
        return any(package["channel"] == LOCAL_CHANNEL for package in self.conda)


def tree_lock_path(project: Project) -> Path:
    """Beside cluster.yaml, named after it: two configurations in a directory have two locks."""
    return project.config_path.with_name(f"{project.config_path.stem}.lock.yaml")


def state_lock_path(project: Project, name: str) -> Path:
    """For locks that hold on this machine only."""
    return project.state_dir / "locks" / f"{name}.lock.yaml"


def local_is_forced() -> bool:
    """Whether RAYTOOLS_CHANNELS=local is set.

    Raises:
        EnvironmentBuildError: it is set to something else.
    """
    value = os.environ.get(FORCE_VARIABLE, "")
    if value not in ("", LOCAL_CHANNEL):
        raise EnvironmentBuildError(
            f"{FORCE_VARIABLE} is {value!r}", expected=f"`{LOCAL_CHANNEL}` or nothing"
        )
    return value == LOCAL_CHANNEL


def read_current_lock(project: Project, spec: EnvironmentSpec) -> Lock | None:
    """The lock that fits, else one that does not; None if there is none (or an existing prefix).

    The one beside cluster.yaml is preferred, unless channel `local` is forced or declared.
    """
    if spec.prefix is not None:
        return None
    paths = [tree_lock_path(project), state_lock_path(project, spec.name)]
    if local_is_forced() or LOCAL_CHANNEL in spec.channels:
        paths = paths[1:]
    locks = [read_lock(path) for path in paths if path.exists()]
    fitting = [lock for lock in locks if not misfits(lock, spec)]
    return next(iter(fitting or locks), None)


def require_fit(lock: Lock, spec: EnvironmentSpec) -> None:
    """Refuses a lock that answers to another declaration.

    Raises:
        EnvironmentBuildError: names what was changed and the command that locks again.
    """
    problems = misfits(lock, spec)
    if problems:
        raise EnvironmentBuildError(
            f"the environment was changed since it was locked ({'; '.join(problems)})",
            fix=f"Lock it again: {LOCK_COMMAND}",
        )


def misfits(lock: Lock, spec: EnvironmentSpec) -> list[str]:
    """Why this lock does not answer to the declaration; empty if it does."""
    problems = describe_changes(lock.spec, spec.to_json())
    may_be_local = LOCAL_CHANNEL in (spec.fallback, *spec.channels) or local_is_forced()
    if lock.is_local and not may_be_local:
        problems.append(f"{lock.reason}, which no longer holds")
    return problems


def read_lock(path: Path) -> Lock:
    """Reads a lock.

    Raises:
        EnvironmentBuildError: it is damaged, edited, or of another version of raytools.
    """
    fix = f"Lock again: rm {path} && {LOCK_COMMAND}"
    try:
        found = yaml.load(path.read_bytes(), Loader=_LOADER)  # noqa: S506 - a safe loader
        if found["schema"] != SCHEMA:
            raise EnvironmentBuildError(f"{path} has schema {found['schema']!r}", expected=SCHEMA, fix=fix)
        lock = Lock(
            name=found["name"],
            python=found["python"],
            platform=found["platform"],
            channels=tuple(found["channels"]),
            reason=found["reason"],
            spec=found["spec"],
            conda=tuple(found["conda"]),
            pip=tuple(found["pip"]),
            path=path,
        )
        digest = lock.digest
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise EnvironmentBuildError(f"cannot use the lock {path}: {error}", fix=fix) from error
    if digest != found.get("digest"):
        raise EnvironmentBuildError(f"the lock {path} was edited: its digest does not fit", fix=fix)
    return lock


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def write_lock(path: Path, lock: Lock) -> bool:
    """Writes the lock unless the file says just this already; returns whether it was written."""
    content = {
        "schema": SCHEMA,
        "name": lock.name,
        "digest": lock.digest,
        "python": lock.python,
        "platform": lock.platform,
        "channels": list(lock.channels),
        "reason": lock.reason,
        "spec": lock.spec,
        "conda": list(lock.conda),
        "pip": list(lock.pip),
    }
    text = _HEADER_STATE if lock.is_local else _HEADER_TREE
    text += yaml.dump(content, Dumper=_DUMPER, sort_keys=False, width=120, allow_unicode=True)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return True
