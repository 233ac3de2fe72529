"""`raytools smoke`: a real workload on the cluster, its progress, and the verdict on it."""

from __future__ import annotations

import json
import math
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.errors import RaytoolsError
from raytools.project import find_project
from raytools.workloads import base
from raytools.workloads.tables import DATASETS

if TYPE_CHECKING:
    from raytools.smoke import SmokeResult

app = new_app()

_WORKLOADS = ", ".join([*base.names(), base.ALL])


class Enforce(str, Enum):
    """How a limit that cannot be enforced is treated."""

    STRICT = "strict"
    BEST_EFFORT = "best-effort"


@app.command()
def smoke(
    context: typer.Context,
    workload: Annotated[
        str | None, typer.Option("--workload", metavar="NAME", help=f"What to run: {_WORKLOADS}.  [required]")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Table: {', '.join(DATASETS)}.  [default: diamonds]")
    ] = None,
    csv: Annotated[
        str | None, typer.Option("--csv", metavar="FILE", help="A table of your own; needs --label.")
    ] = None,
    parquet: Annotated[
        str | None, typer.Option(metavar="FILE", help="The same as a Parquet file; needs --label.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column to predict.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="AutoGluon preset: medium, good, high, best, … (also medium_quality, …)."
        ),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="For AutoGluon's fit, such as 90s or 5m.  [default: 2m]"),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="AutoGluon's families, or how many of many-models.  [default: GBM,RF,XT]"
        ),
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
    max_slower: Annotated[
        str, typer.Option(metavar="PERCENT", help="How much slower than its peers a node may be.")
    ] = "20%",
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Nodes may not be slower than in this baseline either."),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="If it passes, write the medians by node to this file."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="ID|DIR",
            help="Do what an interrupted smoke has left (transfer, tune, many-models), as it was asked then.",
        ),
    ] = None,
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a real workload on the cluster and judge it.

    autogluon, stress: one limited run in every slot of every node at once. transfer, tune, many-models: one
    driver on the cluster's Ray. all: every workload, one after the other, with its usual parameters. Exit
    code 0: pass, 1: fail, 2: could not run (of all: 0 if all pass). What it found is kept: raytools results.

    \b
    Examples:
      raytools smoke --workload autogluon --dataset breast_cancer
      raytools smoke --workload stress --set seconds=1m
      raytools smoke --workload all --json
    """
    typed = {
        "dataset": dataset, "csv": csv, "parquet": parquet, "label": label, "preset": preset,
        "time_limit": time_limit, "models": models, "folds": folds,
    }  # fmt: skip
    if workload == base.ALL:
        from raytools.cli.smoke_all import refuse_what_belongs_to_one, smoke_all

        files = {"baseline": baseline, "save_baseline": save_baseline, "resume": resume}
        refuse_what_belongs_to_one({**typed, "set": settings, **files})
        smoke_all(
            enforce=enforce.value, max_slower=_share(max_slower),
            config=config, inventory=inventory, as_json=as_json,
        )  # fmt: skip
    if resume is not None:
        asked = [name for name, value in typed.items() if value is not None] + ["set"] * bool(settings)
        asked += [name for name in ("enforce", "max_slower") if _was_given(context, name)]
        _resume(resume, workload, asked, bool(baseline or save_baseline), config, inventory, as_json)
    if workload is None:
        raise RaytoolsError("no workload was named", expected=f"--workload with one of {_WORKLOADS}")
    chosen = base.find(workload)
    values = {name: value for name, value in typed.items() if value is not None} | _settings(settings or [])
    parameters = base.make_parameters(chosen, values)
    chosen.check(parameters)
    if chosen.scope == "cluster" and (baseline or save_baseline):
        raise RaytoolsError(
            f"a baseline was asked for, and {chosen.name} does not compare nodes",
            expected="a workload that compares nodes",
        )
    share = _share(max_slower)

    from raytools.baseline import check_place, read_baseline
    from raytools.cli.smoke_view import Progress
    from raytools.config import load_config
    from raytools.inventory import load_inventory
    from raytools.smoke import run_smoke

    expected = read_baseline(baseline, workload) if baseline else None
    if save_baseline:
        check_place(save_baseline)
    project = find_project(config, inventory)
    load_config(project.config_path)  # a mistake in it is told before anything runs
    hosts = load_inventory(project.inventory_path)
    with Progress(chosen.name) as progress:
        result = run_smoke(
            project, hosts, chosen, parameters,
            enforce=enforce.value, on_event=progress.take, max_slower=share, baseline=expected,
        )  # fmt: skip
    _show(result, as_json)
    if save_baseline:
        _save_baseline(save_baseline, result.document)
    raise typer.Exit(0 if result.document["verdict"] == "pass" else 1)


def _was_given(context: typer.Context, name: str) -> bool:
    """Whether a person wrote the option, which has a default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _resume(
    name: str,
    workload: str | None,
    asked: list[str],
    baselines: bool,
    config: Path | None,
    inventory: Path | None,
    as_json: bool,
) -> NoReturn:
    """What `--resume` does; what was asked then holds, so nothing may be asked now."""
    asked += ["baseline"] * baselines
    if asked:
        raise RaytoolsError(
            f"--{asked[0].replace('_', '-')} was given with --resume",
            expected="nothing that changes what was asked: the interrupted smoke knows it",
        )
    from raytools.cli.smoke_view import Progress
    from raytools.config import load_config
    from raytools.inventory import load_inventory
    from raytools.smoke import resume_smoke

    project = find_project(config, inventory)
    load_config(project.config_path)
    with Progress(workload or "smoke") as progress:
        result = resume_smoke(
            project, load_inventory(project.inventory_path), name, workload, on_event=progress.take
        )
    _show(result, as_json)
    raise typer.Exit(0 if result.document["verdict"] == "pass" else 1)


def _show(result: SmokeResult, as_json: bool) -> None:
    """The document or its tables, and under which id it is kept."""
    if as_json:
        json.dump(result.document, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        from raytools.cli.smoke_view import print_result

        print_result(result.document, base.find(result.document["workload"]))
        if result.kept_as:
            typer.echo(f"Kept: raytools results show {result.kept_as}")
    if result.not_kept:
        typer.echo(f"raytools: {result.not_kept}", err=True)


def _save_baseline(path: Path, document: dict[str, Any]) -> None:
    """A smoke that fails keeps its exit code; that nothing was written is a line on standard error."""
    from raytools.baseline import write_baseline

    try:
        nodes = write_baseline(path, document)
    except RaytoolsError as error:
        if document["verdict"] == "pass":
            raise
        typer.echo(f"raytools: {error}", err=True)
        return
    left_out = sorted({str(run["node"]) for run in document["equality"]["left_out"]} - set(nodes))
    without = f", without {', '.join(left_out)}" if left_out else ""
    typer.echo(f"Baseline: {path} ({', '.join(nodes)}{without})", err=True)


def _share(text: str) -> float:
    """`20%` or `20` as 0.2."""
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 < percent < math.inf:
        raise RaytoolsError(f"--max-slower {text}", expected="percent above 0, such as 20%")
    return percent / 100


def _settings(texts: list[str]) -> dict[str, Any]:
    """`--set key=value`, as often as given."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise RaytoolsError(f"--set {text}", expected="KEY=VALUE")
        found[name.strip()] = value.strip()
    return found
