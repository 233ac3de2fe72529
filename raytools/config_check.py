"""`raytools config check [FILE]` in its plain form, which editors and hooks call often.

Runs before Typer is imported: that is a quarter of its time. With options it is raytools/cli/config.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raytools.console import guarded

if TYPE_CHECKING:
    from raytools.config import ClusterConfig


def main(file: str | None) -> int:
    """Checks cluster.yaml; prints what it describes, or its mistakes. Returns the exit code."""
    return guarded(lambda: _check(Path(file) if file else None))


def _check(file: Path | None) -> None:
    from raytools.config import load_config
    from raytools.project import find_project
    from raytools.yaml_source import shown_path

    path = find_project(file, None).config_path
    print(f"{shown_path(path)}: ok: {summary(load_config(path))}")


def summary(config: ClusterConfig) -> str:
    """What a configuration describes, in one line."""
    environment = config.environment
    software = environment.prefix or f"Python {environment.python}, {len(environment.pip)} pip packages"
    slots = "1 slot" if config.slots.per_node == 1 else f"{config.slots.per_node} slots"
    return (
        f"cluster {config.cluster}, environment {environment.name} ({software}), {slots} per node, "
        f"storage {config.storage.type}, auth {config.ray.auth}"
    )
