"""`raytools slots`: the slots of this node and who holds them."""

from __future__ import annotations

import json

import typer

from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.node import locks
from raytools.node.plain import as_dict
from raytools.node.plan_file import find_node_file, load_node
from raytools.units import format_size

app = new_app()


@app.command(
    epilog="""\b
Examples:
  raytools slots          who holds what on this machine
  raytools slots --json   the same for a script"""
)
def slots(
    config: ConfigOption = None, inventory: InventoryOption = None, as_json: JsonOption = False
) -> None:
    """Show the slots of this node and who holds them."""
    del inventory  # every command takes it; slots are those of the machine it runs on
    node = load_node(find_node_file(str(config) if config else None))
    holders = locks.holders()
    if as_json:
        held = [as_dict(holder) for holder in holders]
        typer.echo(
            json.dumps({"node": node.name, "slots": [as_dict(s) for s in node.slots], "holders": held})
        )
        return

    from rich.console import Console
    from rich.table import Table

    table = Table("slot", "CPUs", "memory", "GPUs", "held by")
    for slot in node.slots:
        cpus = ",".join(map(str, slot.cpus))
        takers = [holder.describe() for holder in holders if set(holder.cpus) & set(slot.cpus)]
        gpus = ",".join(map(str, slot.gpus)) or "-"
        table.add_row(
            str(slot.index), cpus, format_size(slot.memory_bytes), gpus, "\n".join(takers) or "free"
        )
    Console().print(table)
