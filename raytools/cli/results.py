"""`raytools results …`: what smokes found, as it is kept on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raytools import results as store
from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.errors import RaytoolsError
from raytools.project import find_project
from raytools.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from raytools.cli.smoke_view import Named

app = new_app("List, show, compare and export what smokes found. See docs/workloads.md.")

WorkloadOption = Annotated[
    str | None, typer.Option("--workload", metavar="NAME", help="Only results of this workload.")
]
_ID_HELP = "Id of a result, an unambiguous part of it, or `latest`."
_DEFAULT_LIMIT = 20


@app.command(name="list")
def list_results(
    workload: WorkloadOption = None,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="The N newest; 0 for all.")] = _DEFAULT_LIMIT,
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the results, the newest first.

    \b
    Examples:
      raytools results list
      raytools results list --workload autogluon --limit 0
    """
    state_dir = find_project(config, inventory).state_dir
    found, unreadable = store.stored(state_dir, workload, limit or None)
    for problem in unreadable:
        typer.echo(f"raytools: {problem}", err=True)
    summaries = [result.summary() for result in found]
    if as_json:
        sys.stdout.write(store.to_json({"schema": "raytools.results/1", "results": summaries}))
        return
    if not summaries:
        typer.echo("No results yet. Make one: raytools smoke --workload autogluon")
        return
    _print_list(summaries)
    older = store.count(state_dir, workload) - len(found) - len(unreadable)
    if older:
        typer.echo(f"{older} older ones: raytools results list --limit 0")


def _print_list(summaries: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    from raytools.cli.smoke_view import output

    table = Table("id", "workload", "when (UTC)", "verdict", "runs", "nodes", "took")
    for one in summaries:
        table.add_row(
            one["id"],
            one["workload"],
            (one["started_at"] or "unknown")[:19].replace("T", " "),
            one["verdict"] + ("" if one["complete"] else ", incomplete"),
            str(one["runs"]),
            str(one["nodes"]),
            "unknown" if one["seconds"] is None else format_duration(one["seconds"]),
        )
    output().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="ID", help=_ID_HELP)],
    workload: WorkloadOption = None,
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one result as `raytools smoke` did.

    \b
    Examples:
      raytools results show latest
      raytools results show e418 --json
    """
    result = store.find(find_project(config, inventory).state_dir, name, workload)
    if as_json:
        sys.stdout.write(store.to_json(result.document))
        return
    from raytools.cli.smoke_view import print_result

    parameters = result.document.get("parameters")
    typer.echo(f"{result.id}: {result.workload}" + (f" with {_parameters(parameters)}" if parameters else ""))
    print_result(result.document, _shown(result))


def _parameters(parameters: Mapping[str, Any]) -> str:
    given = {name: value for name, value in parameters.items() if value is not None}
    return ", ".join(
        f"{name} {','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in given.items()
    )


def _shown(result: store.StoredResult) -> Named:
    """The workload; where this Python does not have it any more, one that shows all that a table can."""
    from raytools.workloads import base

    try:
        return base.find(result.workload)
    except RaytoolsError:
        return _Unknown(result.workload, tuple(_metrics(result)))


class _Unknown:
    shown_tables: tuple[str, ...] = ()

    def __init__(self, name: str, shown_metrics: tuple[str, ...]) -> None:
        self.name = name
        self.shown_metrics = shown_metrics


def _metrics(result: store.StoredResult) -> Iterator[str]:
    figures = (name for run in result.document["runs"] for name in store.figures_of(run))
    for name in dict.fromkeys(figures):
        if name.startswith("metrics."):
            yield name.removeprefix("metrics.")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_ID_HELP)],
    b: Annotated[str, typer.Argument(metavar="B", help=_ID_HELP)],
    workload: WorkloadOption = None,
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two results node by node: both values, and B as a multiple of A.

    \b
    Examples:
      raytools results compare e418 latest
    """
    state_dir = find_project(config, inventory).state_dir
    found = store.compare(store.find(state_dir, a, workload), store.find(state_dir, b, workload))
    if as_json:
        sys.stdout.write(store.to_json(found))
    else:
        _print_comparison(found)


def _print_comparison(found: Mapping[str, Any]) -> None:
    from raytools.cli.smoke_view import output

    console = output()
    for letter in ("a", "b"):
        one = found[letter]
        console.print(f"{letter.upper()}: {one['id']}, {one['workload']}, {one['verdict']}", soft_wrap=True)
    if found["differences"]:
        console.print(f"Not the same question: {'; '.join(found['differences'])}", soft_wrap=True)
    lines = list(found["notes"])
    lines += [f"{name}: {text}" for name, node in found["nodes"].items() for text in node["differences"]]
    lines += [f"{name}: only in {letter}" for letter in "AB" for name in found[f"only_in_{letter.lower()}"]]
    for line in lines:
        console.print(f"  - {line}", soft_wrap=True)
    rows = list(_rows(found["nodes"]))
    if rows:
        _print_rows(rows)
    equal = _equal_everywhere(found["nodes"])
    if equal:
        console.print(f"Equal on every node: {', '.join(equal)}", soft_wrap=True)


def _rows(nodes: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """What is not the same in both."""
    from raytools.cli.smoke_view import cell

    for node, about in nodes.items():
        for metric, values in about["metrics"].items():
            before, after = values["a"], values["b"]
            if before == after:
                continue
            only = "only in A" if after is None else "only in B" if before is None else "differs"
            ratio = only if values["ratio"] is None else f"{values['ratio']:.3g}"
            yield node, metric, *("-" if one is None else cell(one) for one in (before, after)), ratio


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table

    from raytools.cli.smoke_view import output

    table = Table()
    for column in ("node", "metric", "A", "B", "B / A"):
        table.add_column(column, justify="left" if column in ("node", "metric") else "right")
    for row in rows:
        table.add_row(*row)
    output().print(table)


def _equal_everywhere(nodes: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys(metric for node in nodes.values() for metric in node["metrics"])
    values = {name: [node["metrics"].get(name) for node in nodes.values()] for name in names}
    return [name for name in names if all(one is None or one["a"] == one["b"] for one in values[name])]


@app.command()
def export(
    csv: Annotated[str, typer.Option("--csv", metavar="FILE", help="File to write; - for standard output.")],
    workload: WorkloadOption = None,
    config: ConfigOption = None,
    inventory: InventoryOption = None,
) -> None:
    """Write all runs of all results as one table.

    \b
    Examples:
      raytools results export --csv runs.csv
      raytools results export --csv - --workload autogluon | column -s, -t
    """
    found, unreadable = store.stored(find_project(config, inventory).state_dir, workload)
    for problem in unreadable:
        typer.echo(f"raytools: {problem}", err=True)
    text = store.to_csv(found)
    if csv == "-":
        sys.stdout.write(text)
        return
    try:
        store.write_whole(Path(csv), text)
    except OSError as error:
        raise RaytoolsError(
            f"{csv} cannot be written ({error.strerror})",
            expected="a file in a directory this user may write",
        ) from error
    runs = sum(len(result.document["runs"]) for result in found)
    typer.echo(f"{csv}: {runs} runs of {len(found)} results", err=True)
