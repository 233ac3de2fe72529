"""`raytools preflight`: can these hosts become this cluster? Asked of all before the first is changed."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.project import find_project
from raytools.survey import PROBE_TIMEOUT_S, Survey, survey

app = new_app()


@app.command()
def preflight(
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long a host may take.")
    ] = PROBE_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Look at all hosts before anything is changed: what forbids the cluster, and what to know about them.

    The playbooks ask the same, once per run. Exit codes: 0 possible, 1 not, 2 could not look.

    \b
    Examples:
      raytools preflight
      raytools preflight --json | jq '.nodes[].problems[]'
    """
    found = survey(find_project(config, inventory), timeout)
    if as_json:
        json.dump(found.to_json(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(found)
    raise typer.Exit(0 if found.possible and not found.errors else 1)


def _print(found: Survey) -> None:
    for host in found.inventory.hosts:
        judged = found.judged.get(host.name)
        problems = (
            [found.errors[host.name]]
            if host.name in found.errors
            else list(judged.problems if judged else ())
        )
        typer.echo(f"{host.name} ({host.role}): {'possible' if not problems else 'not possible'}")
        for problem in problems:
            typer.echo(f"  error: {problem}")
        for note in judged.notes if judged else ():
            typer.echo(f"  note: {note}")
    if found.problem:
        typer.echo(f"error: {found.problem}")
    for warning in found.warnings:
        typer.echo(f"note: {warning}")
