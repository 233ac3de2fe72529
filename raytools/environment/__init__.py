"""The conda environment of a cluster: spec -> lock -> build -> manifest -> verify.

Importing this package is cheap; what locks and builds is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raytools.environment.lock import Lock, read_current_lock
from raytools.environment.spec import EnvironmentSpec
from raytools.project import Project

if TYPE_CHECKING:
    from raytools.environment.build import Built, build_environment
    from raytools.environment.resolve import lock_environment

__all__ = ["Built", "EnvironmentSpec", "Lock", "build_environment", "load_lock", "lock_environment"]


def load_lock(project: Project, config: Any) -> Lock | None:
    """The lock of the configuration's environment, None if it was never locked (or is an existing prefix).

    Whether it still fits the configuration is another question: `raytools.environment.lock.require_fit`.

    Args:
        project: where cluster.yaml is.
        config: a ClusterConfig.

    Raises:
        EnvironmentBuildError: there is a lock, but it is damaged.
    """
    return read_current_lock(project, EnvironmentSpec.from_config(config))


def __getattr__(name: str) -> Any:
    if name in ("Built", "build_environment"):
        from raytools.environment import build

        return getattr(build, name)
    if name == "lock_environment":
        from raytools.environment import resolve

        return resolve.lock_environment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
