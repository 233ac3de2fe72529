"""`raytools plan`: what each node gets, from what is declared and what its machine has."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.errors import PlanError
from raytools.planning import ClusterPlan, check_facts, plan_cluster
from raytools.project import find_project
from raytools.units import format_size

app = new_app()


@app.command()
def plan(
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            "--facts",
            metavar="FILE",
            help="Plan for the machines of this JSON file, as `raytools facts --nodes --json` prints it.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each node gets: slots, Ray's arguments, ports, flags. Changes nothing.

    \b
    Examples:
      raytools plan
      raytools plan --json | jq '.nodes[].slots'
      raytools facts --nodes --json > facts.json && raytools plan --facts facts.json
    """
    planned = plan_cluster(find_project(config, inventory), _read_facts(facts) if facts else None)
    if as_json:
        json.dump(planned.to_json(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print_tables(planned)
    for warning in planned.warnings:
        typer.echo(f"note: {warning}", err=True)


def _read_facts(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}", expected="a file of facts") from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: found no JSON ({error})", expected="a file of facts") from error
    return check_facts(data, str(path))


def _print_tables(planned: ClusterPlan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("node", "slot", "CPUs", "memory", "GPUs", "of the machine's")
    for name, node in planned.nodes.items():
        physical = node.physical
        machine = f"{physical['cpus']} CPUs, {format_size(physical['memory_bytes'] or 0)}"
        for slot in node.slots:
            first = slot.index == 0
            table.add_row(
                f"{name} ({node.role})" if first else "",
                str(slot.index),
                f"{len(slot.cpus)}: {_ranges(slot.cpus)}",
                format_size(slot.memory_bytes),
                _ranges(slot.gpus) or "-",
                machine if first else "",
            )
    Console().print(table)
    head = next(iter(planned.nodes.values()))
    environment = head.environment.to_json(head.root)["prefix"] if head.environment else "not locked yet"
    typer.echo(f"Ray at {head.ray['gcs_address']}, environment {environment}")


def _ranges(numbers: tuple[int, ...]) -> str:
    """`0-3,8` as the kernel writes lists of CPUs."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
