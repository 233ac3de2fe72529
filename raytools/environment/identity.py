"""Which environment the nodes shall use: its name, prefix and lock digest. Cheap; nothing is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raytools.environment.lock import LOCK_COMMAND, Lock, read_current_lock, require_fit
from raytools.environment.spec import EnvironmentSpec
from raytools.errors import EnvironmentBuildError
from raytools.project import Project


@dataclass(frozen=True)
class EnvironmentIdentity:
    """The `environment` part of node.json."""

    id: str
    prefix: Path
    lock_digest: str | None

    def to_json(self) -> dict[str, str | None]:
        """As it is in node.json."""
        return {"id": self.id, "prefix": str(self.prefix), "lock_digest": self.lock_digest}


def fitting_lock(project: Project, spec: EnvironmentSpec) -> Lock:
    """The lock, if there is one and it answers to what is declared.

    Raises:
        EnvironmentBuildError: never locked, or changed since.
    """
    lock = read_current_lock(project, spec)
    if lock is None:
        raise EnvironmentBuildError(
            f"environment {spec.name} was never locked", fix=f"Lock it: {LOCK_COMMAND}"
        )
    require_fit(lock, spec)
    return lock


def identify(project: Project, spec: EnvironmentSpec, root: Path) -> EnvironmentIdentity:
    """The environment that is declared, as it is named on every node.

    Args:
        project: where the lock is.
        spec: what is declared.
        root: raytools' root on the node.

    Raises:
        EnvironmentBuildError: never locked, or changed since.
    """
    if spec.prefix is not None:
        return EnvironmentIdentity(spec.name, spec.prefix, None)
    lock = fitting_lock(project, spec)
    return EnvironmentIdentity(lock.environment_id, root / "envs" / lock.environment_id, lock.digest)
