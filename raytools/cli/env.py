"""`raytools env …`: the environment on this machine; what is about all nodes is in env_nodes.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from raytools.cli import env_nodes
from raytools.cli.env_shared import RootOption, answer_with, declared, root_of, shown_progress
from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.environment.identity import EnvironmentIdentity, fitting_lock, identify
from raytools.units import format_duration, format_size

app = new_app("Lock, build, pack and verify the environment every node gets. See docs/environments.md.")


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
    project, spec = declared(config, inventory)
    started = time.monotonic()
    if spec.prefix is not None:
        answer: dict[str, Any] = {"changed": False, "id": None, "path": None, "prefix": str(spec.prefix)}
        answer_with(
            as_json, answer, f"environment.prefix is {spec.prefix}: it is used as it is, nothing to lock"
        )
        return
    from raytools.environment.resolve import lock_environment

    with shown_progress() as progress:
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
    answer_with(as_json, answer, text)


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
    project, spec = declared(config, inventory)
    directory = root_of(project, root)
    if spec.prefix is not None:
        from raytools.environment.existing import adopt_environment

        with shown_progress() as progress:
            built = adopt_environment(spec, directory, progress=progress)
    else:
        from raytools.environment.build import build_environment

        found = fitting_lock(project, spec)
        with shown_progress() as progress:
            built = build_environment(project, found, directory, rebuild=rebuild, progress=progress)
    state = f"ready after {format_duration(built.seconds)}" if built.changed else "was there already"
    text = f"{built.id}: {state}\n{built.prefix}\ncontent {built.content_digest}"
    answer_with(as_json, built.to_json(), text)


@app.command()
def pack(
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pack the built environment into one file, from which every node installs it.

    What is packed already is left alone. Exit codes: 0 it is there, 2 not built, or changed since.

    \b
    Example:
      raytools env pack --json | jq -r .path
    """
    from raytools.environment.archive import archive_directory, make_archive
    from raytools.errors import EnvironmentBuildError

    project, spec = declared(config, inventory)
    if spec.prefix is not None:
        raise EnvironmentBuildError(
            f"environment.prefix is {spec.prefix}: it is on every node already, nothing is packed"
        )
    directory = root_of(project, root)
    identity = identify(project, spec, directory)
    _require_built(identity, directory)
    with shown_progress() as progress:
        archive = make_archive(identity.prefix, archive_directory(project), progress)
    state = f"packed in {format_duration(archive.seconds)}" if archive.changed else "was packed already"
    text = (
        f"{archive.id}: {state}, {format_size(archive.size_bytes)}\n{archive.path}\nsha256 {archive.sha256}"
    )
    answer_with(as_json, archive.to_json(), text)


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

    project, spec = declared(config, inventory)
    directory = root_of(project, root)
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
    answer_with(as_json, result.to_json(), text)
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
    from raytools.environment.activate import activation, as_shell, warning

    project, spec = declared(config, inventory)
    directory = root_of(project, root)
    identity = identify(project, spec, directory)
    _require_built(identity, directory)
    variables = activation(identity.prefix, directory)
    if said := warning(directory):
        typer.echo(f"warning: {said}", err=True)
    if as_json:
        answer_with(True, variables, "")
    else:
        typer.echo(as_shell(variables), nl=False)


def _require_built(identity: EnvironmentIdentity, root: Path) -> None:
    from raytools.errors import EnvironmentBuildError
    from raytools.node.manifest import read_environment

    if read_environment(identity.prefix, root) is None:
        raise EnvironmentBuildError(
            f"environment {identity.id} was not built here", fix="Build it: raytools env build"
        )


app.command("list")(env_nodes.list_environments)
app.command("prune")(env_nodes.prune)
app.command("rollback")(env_nodes.rollback)
