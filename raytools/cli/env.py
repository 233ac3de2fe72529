"""`raytools env lock|build|verify|activate`: the environment every node gets."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.config import load_config
from raytools.environment.identity import EnvironmentIdentity, fitting_lock, identify
from raytools.environment.progress import Progress
from raytools.environment.spec import EnvironmentSpec
from raytools.project import Project, find_project
from raytools.units import format_duration

app = new_app("Lock, build and verify the environment every node gets. See docs/environments.md.")

RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root", metavar="DIR", show_default=False,
        help="raytools' directory on the nodes.  [default: the head's, from the inventory]",
    ),
]  # fmt: skip


@app.command()
def lock(
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Resolve anew although nothing changed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Decide which packages exactly: solve the conda part, resolve the pip part, write the lock.

    A lock that fits cluster.yaml is kept as it is. Exit codes: 0 locked, 2 impossible.

    \b
    Examples:
      raytools env lock                           after environment: was changed in cluster.yaml
      raytools env lock --upgrade                 take newer packages
      RAYTOOLS_CHANNELS=local raytools env lock   ask no conda channel
    """
    project, spec = _declared(config, inventory)
    started = time.monotonic()
    if spec.prefix is not None:
        answer: dict[str, Any] = {"changed": False, "id": None, "path": None, "prefix": str(spec.prefix)}
        _print(as_json, answer, f"environment.prefix is {spec.prefix}: it is used as it is, nothing to lock")
        return
    from raytools.environment.resolve import lock_environment

    with _progress() as progress:
        found, changed = lock_environment(project, spec, upgrade=upgrade, progress=progress)
    answer = {
        "changed": changed,
        "id": found.environment_id,
        "path": str(found.path),
        "lock_digest": found.digest,
        "channels": list(found.channels),
        "reason": found.reason,
        "conda_packages": len(found.conda),
        "pip_packages": len(found.pip),
        "seconds": round(time.monotonic() - started, 2),
    }
    state = "locked" if changed else "already locked"
    text = (
        f"{found.environment_id}: {state}, Python {found.python}, {len(found.conda)} conda and "
        f"{len(found.pip)} pip packages, channels {', '.join(found.channels)}\n{found.path}"
    )
    _print(as_json, answer, text)


@app.command()
def build(
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    root: RootOption = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build although it is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build what is locked at the prefix all nodes will use, or note an existing environment.

    What is there already is left alone. Exit codes: 0 it is there, 2 impossible.

    \b
    Examples:
      raytools env build
      raytools env build --rebuild                if `raytools env verify` found differences
    """
    project, spec = _declared(config, inventory)
    directory = _root(project, root)
    if spec.prefix is not None:
        from raytools.environment.existing import adopt_environment

        with _progress() as progress:
            built = adopt_environment(spec, directory, progress=progress)
    else:
        from raytools.environment.build import build_environment

        found = fitting_lock(project, spec)
        with _progress() as progress:
            built = build_environment(project, found, directory, rebuild=rebuild, progress=progress)
    state = f"ready after {format_duration(built.seconds)}" if built.changed else "was there already"
    text = f"{built.id}: {state}\n{built.prefix}\ncontent {built.content_digest}"
    _print(as_json, built.to_json(), text)


@app.command()
def verify(
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every file of the environment on this machine and name what is not as it was built.

    Exit codes: 0 all as built, 1 differences, 2 could not verify.

    \b
    Examples:
      raytools env verify
      raytools env verify --json | jq -r '.differences[].message'
    """
    from raytools.environment.verify import sentences, verify_environment

    project, spec = _declared(config, inventory)
    directory = _root(project, root)
    result = verify_environment(identify(project, spec, directory), directory)
    took = format_duration(result.seconds)
    if not result.differences:
        text = f"{result.identity.id}: {result.files} files, all as built ({took})"
    else:
        lines = "\n".join(sentences(result.differences))
        text = (
            f"{lines}\n{result.identity.id}: {len(result.differences)} differences ({took}). "
            "Put the content back, or build it anew: raytools env build --rebuild"
        )
    _print(as_json, result.to_json(), text)
    raise typer.Exit(1 if result.differences else 0)


@app.command()
def activate(
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print exports for working by hand in the environment and on the cluster. Nothing relies on them.

    \b
    Example:
      eval "$(raytools env activate)"
    """
    from raytools.environment.activate import activation, as_shell

    project, spec = _declared(config, inventory)
    directory = _root(project, root)
    identity = identify(project, spec, directory)
    _require_built(identity, directory)
    variables = activation(identity.prefix, directory)
    if as_json:
        _print(True, variables, "")
    else:
        typer.echo(as_shell(variables), nl=False)


def _require_built(identity: EnvironmentIdentity, root: Path) -> None:
    from raytools.errors import EnvironmentBuildError
    from raytools.node.manifest import read_environment

    if read_environment(identity.prefix, root) is None:
        raise EnvironmentBuildError(
            f"environment {identity.id} was not built here", fix="Build it: raytools env build"
        )


def _declared(config: Path | None, inventory: Path | None) -> tuple[Project, EnvironmentSpec]:
    project = find_project(config, inventory)
    return project, EnvironmentSpec.from_config(load_config(project.config_path))


def _root(project: Project, root: Path | None) -> Path:
    if root is not None:
        return root.absolute()
    from raytools.inventory import load_inventory

    return Path(load_inventory(project.inventory_path).head.root)


def _print(as_json: bool, answer: dict[str, Any], text: str) -> None:
    if as_json:
        import json

        text = json.dumps(answer, indent=2)
    typer.echo(text)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
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
