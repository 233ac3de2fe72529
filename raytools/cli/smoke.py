"""`raytools smoke`: a real workload in every slot of the cluster, its progress, and the verdict on it."""

from __future__ import annotations

import json
import sys
from enum import Enum
from typing import Annotated, Any

import typer

from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.errors import RaytoolsError
from raytools.project import find_project
from raytools.workloads import base

app = new_app()

_WORKLOADS = ", ".join(base.names())


class Enforce(str, Enum):
    """How a limit that cannot be enforced is treated."""

    STRICT = "strict"
    BEST_EFFORT = "best-effort"


@app.command()
def smoke(
    workload: Annotated[
        str | None, typer.Option("--workload", metavar="NAME", help=f"What to run: {_WORKLOADS}.  [required]")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Table: diamonds (default) or breast_cancer.")
    ] = None,
    csv: Annotated[
        str | None, typer.Option("--csv", metavar="FILE", help="A table of your own; needs --label.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column to predict.")] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="AutoGluon preset: medium, good, high, best, …")
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="For AutoGluon's fit, such as 90s or 5m.  [default: 2m]"),
    ] = None,
    models: Annotated[
        str | None, typer.Option(metavar="LIST", help="Model families.  [default: GBM,RF,XT]")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(metavar="N", help="Folds of bagging, 0 for none.  [default: 2]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any parameter of the workload; may be repeated."),
    ] = None,
    enforce: Annotated[
        Enforce, typer.Option(help="Refuse what cannot be enforced, or run it and say so.")
    ] = Enforce.STRICT,
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a real workload on every node and judge it.

    One limited run in every slot of every node at once. Exit code 0: pass, 1: fail, 2: could not run.
    """
    typed = {
        "dataset": dataset, "csv": csv, "label": label, "preset": preset, "time_limit": time_limit,
        "models": models, "folds": folds,
    }  # fmt: skip
    if workload is None:
        raise RaytoolsError("no workload was named", expected=f"--workload with one of {_WORKLOADS}")
    chosen = base.find(workload)
    values = {name: value for name, value in typed.items() if value is not None} | _settings(settings or [])
    parameters = base.make_parameters(chosen, values)
    chosen.check(parameters)

    from raytools.cli.smoke_view import Progress, print_result
    from raytools.config import load_config
    from raytools.inventory import load_inventory
    from raytools.smoke import run_smoke

    project = find_project(config, inventory)
    load_config(project.config_path)  # a mistake in it is told before anything runs
    hosts = load_inventory(project.inventory_path)
    with Progress(chosen.name) as progress:
        result = run_smoke(project, hosts, chosen, parameters, enforce=enforce.value, on_event=progress.take)
    if as_json:
        json.dump(result.document, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        print_result(result, chosen)
    raise typer.Exit(0 if result.document["verdict"] == "pass" else 1)


def _settings(texts: list[str]) -> dict[str, Any]:
    """`--set key=value`, as often as given."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise RaytoolsError(f"--set {text}", expected="KEY=VALUE")
        found[name.strip()] = value.strip()
    return found
