"""How `raytools smoke --workload all` is asked for and looks: a heading for each, one table at the end."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from raytools.errors import RaytoolsError
from raytools.workloads import base

if TYPE_CHECKING:
    from raytools.smoke import OnEvent
    from raytools.smoke_all import Done

_CANCELLED_CODE = 130


def refuse_what_belongs_to_one(given: Mapping[str, Any]) -> None:
    """Options that only one workload would understand, or of which each would need its own.

    Args:
        given: options by name; those that were not typed are None or empty.

    Raises:
        RaytoolsError: one was typed; names it.
    """
    for name, value in given.items():
        if value not in (None, []):
            raise RaytoolsError(
                f"--{name.replace('_', '-')} belongs to one workload, and --workload {base.ALL} was given",
                expected="--enforce, --max-slower, --json, -c or -i: each workload has its usual parameters",
                fix="Name the workload that is meant: raytools smoke --workload NAME",
            )


def smoke_all(
    *, enforce: str, max_slower: float, config: Path | None, inventory: Path | None, as_json: bool
) -> NoReturn:
    """Runs all and shows what became of them; ends with the exit code.

    Raises:
        RaytoolsError: cluster.yaml or the inventory cannot be used.
    """
    from raytools.config import load_config
    from raytools.inventory import load_inventory
    from raytools.project import find_project
    from raytools.smoke_all import EXIT_CODES, run_all, verdict_of

    project = find_project(config, inventory)
    load_config(project.config_path)  # a mistake in it is told before anything runs
    hosts = load_inventory(project.inventory_path)
    finished: list[Done] = []

    def on_done(done: Done) -> None:
        finished.append(done)
        if done.wall_s is not None:
            typer.echo(f"{done.name}: {done.verdict}{_because(done)}", err=True)
        if done.not_kept:
            typer.echo(f"raytools: {done.not_kept}", err=True)

    try:
        run_all(
            project, hosts,
            enforce=enforce, max_slower=max_slower, watched=_under_a_heading(), on_done=on_done,
        )  # fmt: skip
    except KeyboardInterrupt:
        _show(finished, as_json)
        raise typer.Exit(_CANCELLED_CODE) from None
    _show(finished, as_json)
    raise typer.Exit(EXIT_CODES[verdict_of(finished)])


def _under_a_heading() -> Any:
    """What `run_all` watches with; counts the workloads."""
    count, number = len(base.names()), 0

    @contextlib.contextmanager
    def watched(name: str, summary: str) -> Iterator[OnEvent]:
        from raytools.cli.smoke_view import Progress

        nonlocal number
        number += 1
        typer.secho(f"\n{number} of {count}: {name}: {summary}", bold=True, err=True)
        with Progress(name) as progress:
            yield progress.take

    return watched


def _because(done: Done) -> str:
    return f" ({done.error})" if done.error else ""


def _show(finished: Sequence[Done], as_json: bool) -> None:
    from raytools.smoke_all import document_of

    document = document_of(finished)
    if as_json:
        json.dump(document, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    from rich.table import Table
    from rich.text import Text

    from raytools.cli.smoke_view import output
    from raytools.units import format_duration

    table = Table(title="all workloads", title_justify="left")
    for column in ("workload", "verdict", "wall", "first reason", "id"):
        table.add_column(
            column, justify="right" if column == "wall" else "left", no_wrap=column != "first reason"
        )
    for done in finished:
        wall = "" if done.wall_s is None else format_duration(done.wall_s)
        table.add_row(done.name, done.verdict, wall, Text(done.first_reason), done.kept_as or "")
    console = output()
    typer.echo("", err=True)
    console.print(table)
    passed = document["verdict"] == "pass"
    console.print(Text(document["verdict"].upper(), style="bold green" if passed else "bold red"))
    if any(done.kept_as for done in finished):
        console.print("All of one: raytools results show ID")
