"""`raytools facts`: what this machine, or every node, has. As a table or JSON."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.project import Project, find_project
from raytools.units import format_size

app = new_app()
_TIME_S = 30.0


@app.command()
def facts(
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="Ask every node of the inventory instead (-i implies it).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine has, or every node: CPUs, memory, GPUs, limits.

    \b
    Examples:
      raytools facts --json                       this machine, one JSON object
      raytools facts --nodes                      all nodes, in parallel
      raytools facts --nodes --json > facts.json && raytools plan --facts facts.json
    """
    project = find_project(config, inventory)
    if not nodes and inventory is None:
        found = _of_this_machine(project)
        _print({found["host"]["hostname"]: found}, found if as_json else None)
        return
    by_name, errors = _of_nodes(project)
    _print(
        by_name,
        {"schema": "raytools.facts-of-nodes/1", "nodes": by_name, "errors": errors} if as_json else None,
    )
    for text in errors.values():
        typer.echo(text, err=True)
    raise typer.Exit(1 if errors else 0)


def _of_this_machine(project: Project) -> dict[str, Any]:
    from raytools.node.facts import collect, read_node_json
    from raytools.node.plan_file import find_node_file

    path = find_node_file(str(project.config_path))
    return collect(read_node_json(str(path)) if path else None, str(project.state_dir))


def _of_nodes(project: Project) -> tuple[dict[str, Any], dict[str, str]]:
    from raytools.errors import TransportError
    from raytools.inventory import load_inventory
    from raytools.transport import NodeCommand, call

    hosts = load_inventory(project.inventory_path).hosts
    commands = {host.name: NodeCommand(["facts", "--root", host.root]) for host in hosts}
    found: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for name, answer in call(hosts, commands, _TIME_S, state_dir=project.state_dir).items():
        try:
            found[name] = answer.json()
        except TransportError as error:
            errors[name] = str(error)
    return found, errors


def _print(by_name: dict[str, Any], as_json: Any) -> None:
    if as_json is not None:
        json.dump(as_json, sys.stdout)
        sys.stdout.write("\n")
    else:
        _print_table(by_name)


def _print_table(by_name: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("node", "system", "kernel", "CPUs", "memory", "shared memory", "GPUs", "cgroups", "address")
    for name, found in by_name.items():
        cpu, memory, gpus = found["cpu"], found["memory"], found["gpus"]
        table.add_row(
            name,
            found["host"]["os"] or "unknown",
            found["host"]["kernel"],
            _of(cpu["usable"], cpu["present"]),
            _of(_size(memory["usable_bytes"]), _size(memory["total_bytes"])),
            _size(memory["shm_total_bytes"]),
            "unknown" if gpus is None else str(len(gpus)),
            found["cgroup"]["mode"] or "none",
            found["network"]["primary_address"] or "unknown",
        )
    Console().print(table)


def _of(usable: object, present: object) -> str:
    return str(usable) if usable == present else f"{usable} of {present}"


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else format_size(size_bytes)
