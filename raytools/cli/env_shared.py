"""What the commands of `raytools env` share: the declaration, the root, how they answer and show progress."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from raytools.config import load_config
from raytools.environment.progress import Progress
from raytools.environment.spec import EnvironmentSpec
from raytools.project import Project, find_project
from raytools.units import format_duration

RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root", metavar="DIR", show_default=False,
        help="raytools' directory on the nodes.  [default: the head's, from the inventory]",
    ),
]  # fmt: skip


def declared(config: Path | None, inventory: Path | None) -> tuple[Project, EnvironmentSpec]:
    """The project, and the environment that its cluster.yaml declares."""
    project = find_project(config, inventory)
    return project, EnvironmentSpec.from_config(load_config(project.config_path))


def root_of(project: Project, root: Path | None) -> Path:
    """raytools' directory: as given, else the head's."""
    if root is not None:
        return root.absolute()
    from raytools.inventory import load_inventory

    return Path(load_inventory(project.inventory_path).head.root)


def answer_with(as_json: bool, answer: dict[str, Any], text: str) -> None:
    """Prints the one or the other."""
    if as_json:
        text = json.dumps(answer, indent=2)
    typer.echo(text)


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress]:
    """Progress on standard error, as a terminal or a log wants it."""
    progress = _TerminalProgress() if sys.stderr.isatty() else _LineProgress()
    try:
        yield progress
    finally:
        progress.wipe()


class _LineProgress(Progress):
    """For logs: a line per step."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def phase(self, text: str) -> None:
        self.wipe()
        sys.stderr.write(f"{format_duration(time.monotonic() - self._started):>8}  {text}\n")
        sys.stderr.flush()

    def note(self, text: str) -> None:
        self.wipe()
        sys.stderr.write(f"note: {text}\n")

    def wipe(self) -> None:
        """Nothing of what is shown in place stays."""


class _TerminalProgress(_LineProgress):
    """For people: the current detail is shown in place."""

    def detail(self, text: str) -> None:
        self.wipe()
        sys.stderr.write(f"{'':>10}{text}"[:100])
        sys.stderr.flush()

    def wipe(self) -> None:
        sys.stderr.write("\r\x1b[K")
