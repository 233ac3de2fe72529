"""An environment that somebody else made (`environment.prefix`), on this machine: noted, never written to."""

from __future__ import annotations

import time
from pathlib import Path

from raytools.environment.build import Built
from raytools.environment.progress import SILENT, Progress
from raytools.environment.spec import EnvironmentSpec
from raytools.node.environment_existing import NEEDED, adopt

__all__ = ["NEEDED", "adopt_environment"]


def adopt_environment(spec: EnvironmentSpec, root: Path, *, progress: Progress = SILENT) -> Built:
    """Checks that the environment can be used, and notes what it consists of, below `root`.

    Noted again only if it was changed since; `changed` says so.

    Raises:
        EnvironmentBuildError: it is not there, its Python is another one than declared, or lacks a package.
    """
    assert spec.prefix is not None
    started = time.monotonic()
    notes = adopt(spec.prefix, spec.name, spec.python, root, progress.phase)
    return Built(
        bool(notes["changed"]),
        spec.name,
        spec.prefix,
        None,
        notes["content_digest"],
        time.monotonic() - started,
    )
