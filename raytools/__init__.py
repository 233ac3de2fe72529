"""raytools: Ray on plain Linux VMs, where every run gets what it was promised.

Importing this package imports neither Ray nor Ansible nor fabric: nodes and start-up time depend on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from raytools.node.ray_task import Run, RunFailed, remote

__all__ = ["Run", "RunFailed", "__version__", "remote"]


def __getattr__(name: str) -> Any:
    if name in ("Run", "RunFailed", "remote"):
        from raytools.node import ray_task

        return getattr(ray_task, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
