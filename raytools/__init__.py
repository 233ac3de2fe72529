"""raytools: Ray on plain Linux VMs, where every run gets what it was promised.

Importing this package imports neither Ray nor Ansible nor fabric: nodes and start-up time depend on it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` takes 5 ms
if TYPE_CHECKING:
    from typing import Any

    from raytools.node.local_run import Run, RunFailed, run
    from raytools.node.pinned import pinned
    from raytools.node.ray_task import remote

__version__ = "0.1.0"

__all__ = ["Run", "RunFailed", "__version__", "pinned", "remote", "run"]

_MODULES = {
    "Run": "local_run",
    "RunFailed": "local_run",
    "pinned": "pinned",
    "remote": "ray_task",
    "run": "local_run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"raytools.node.{_MODULES[name]}"), name)
