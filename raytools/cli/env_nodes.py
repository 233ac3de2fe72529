"""`raytools env list|prune|rollback`: the environments on all nodes of the inventory."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raytools.cli.env_shared import answer_with, declared, shown_progress
from raytools.cli.options import ConfigOption, InventoryOption, JsonOption
from raytools.project import Project
from raytools.units import format_size

UPGRADE = "ansible-playbook playbooks/upgrade.yml"


def list_environments(
    config: ConfigOption = None, inventory: InventoryOption = None, as_json: JsonOption = False
) -> None:
    """Show which environment is on which node, and whether it is the same there.

    Exit codes: 0 all nodes answered, 2 some did not.

    \b
    Examples:
      raytools env list
      raytools env list --json | jq '.environments'
    """
    from raytools.environment.nodes import LIST_SCHEMA, by_environment, declared_id, list_on_nodes

    project, spec = declared(config, inventory)
    wanted = declared_id(project, spec)
    answers = list_on_nodes(_hosts(project), project.state_dir)
    environments = by_environment(answers.found)
    if as_json:
        answer = {
            "schema": LIST_SCHEMA, "declared": wanted, "environments": environments,
            "nodes": answers.found, "errors": answers.errors,
        }  # fmt: skip
        answer_with(True, answer, "")
    else:
        _print_table(answers.found, wanted)
        for line in _summary(environments, wanted, len(answers.found)):
            typer.echo(line)
    _end(answers.errors)


def prune(
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=0, help="How many former ones stay on each node.")
    ] = 1,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    ignore_unseen: Annotated[
        bool,
        typer.Option("--ignore-unseen", help="Also where processes of other users cannot be looked into."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove environments that nobody needs from all nodes: shows them and asks first.

    What is declared, current, named by node.json or used by a living process always stays.
    Exit codes: 0 done, or not wanted, 2 some nodes did not answer.

    \b
    Examples:
      raytools env prune                          the current and the one before stay
      raytools env prune --keep 0 --yes
    """
    from raytools.environment.nodes import declared_id, list_on_nodes, prune_on_nodes, to_keep

    project, spec = declared(config, inventory)
    wanted = declared_id(project, spec)
    hosts = _hosts(project)
    listed = list_on_nodes(hosts, project.state_dir)
    kept = {name: to_keep(node["environments"], wanted, keep) for name, node in listed.found.items()}

    def ask(nodes: dict[str, list[str]], *, dry_run: bool) -> Any:
        return prune_on_nodes(hosts, nodes, project.state_dir, dry_run=dry_run, ignore_unseen=ignore_unseen)

    planned = ask(kept, dry_run=True)
    to_do = {name: kept[name] for name, answer in planned.found.items() if answer["removed"]}
    errors = {**listed.errors, **planned.errors}
    for line in _plan(planned.found):
        typer.echo(line, err=as_json)
    if to_do and (yes or typer.confirm("Remove them?", err=True)):
        done = ask(to_do, dry_run=False)
        errors |= done.errors
    else:
        done = None
    removed = {name: answer["removed"] for name, answer in done.found.items()} if done else {}
    text = "nothing was removed" if not removed else f"removed from {', '.join(removed)}"
    answer = {
        "changed": bool(removed), "removed": removed, "errors": errors,
        "kept": {name: answer["kept"] for name, answer in planned.found.items()},
    }  # fmt: skip
    answer_with(as_json, answer, text)
    _end(errors)


def rollback(
    identifier: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Of the environment.  [default: the one before]")
    ] = None,
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a former lock back, if it fits what is declared now; the nodes change with the next upgrade.

    Exit codes: 0 it is in place, 2 impossible: nothing was changed.

    \b
    Examples:
      raytools env rollback
      raytools env rollback automl-1a2b3c4d5e6f
    """
    from raytools.environment.former import roll_back
    from raytools.environment.nodes import by_environment, list_on_nodes

    project, spec = declared(config, inventory)
    with shown_progress() as progress:
        result = roll_back(project, spec, identifier, progress)
    found = result.lock.environment_id
    answers = list_on_nodes(_hosts(project), project.state_dir)
    nodes = by_environment(answers.found).get(found, {"nodes": []})["nodes"]
    lacking = [name for name in answers.found if name not in nodes]
    answer = {
        "changed": result.changed,
        "id": found,
        "path": str(result.lock.path),
        "former": result.former.environment_id if result.former else None,
        "installed_on": nodes,
        "not_installed_on": lacking,
        "errors": answers.errors,
        "next": UPGRADE,
    }
    state = "is locked again" if result.changed else "is what is locked"
    text = f"{found} {state}: {result.lock.path}\nstill installed on: {', '.join(nodes) or 'no node'}"
    if lacking:
        text += f"\nto be installed on: {', '.join(lacking)}"
    answer_with(as_json, answer, f"{text}\nNow: {UPGRADE}")
    for error in answers.errors.values():
        typer.echo(error, err=True)


def _hosts(project: Project) -> Any:
    from raytools.inventory import load_inventory

    return load_inventory(project.inventory_path).hosts


def _end(errors: dict[str, str]) -> None:
    for text in errors.values():
        typer.echo(text, err=True)
    raise typer.Exit(2 if errors else 0)


def _print_table(nodes: dict[str, Any], wanted: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("node", "environment", "state", "content", "size", "installed")
    table.columns[1].no_wrap = True
    for name, node in nodes.items():
        for one in node["environments"]:
            size_bytes, content = one["size_bytes"], one["content_digest"]
            table.add_row(
                name,
                one["id"],
                _state(one, wanted),
                content[:8] if content else "",
                "" if size_bytes is None else format_size(size_bytes),
                (one["installed_at"] or "")[:16].replace("T", " "),
            )
        if not node["environments"]:
            table.add_row(name, "none", "", "", "", "")
    Console().print(table)


def _state(one: dict[str, Any], wanted: str | None) -> str:
    words = {
        "unfinished": not one["complete"],
        "declared": one["id"] == wanted,
        "current": one["current"],
        "in node.json": one["in_node_json"],
        "in use": one["in_use"],
    }
    return ", ".join(word for word, holds in words.items() if holds)


def _summary(environments: dict[str, Any], wanted: str | None, count: int) -> list[str]:
    lines = [
        f"{identifier}: on {len(entry['nodes'])} of {count} nodes, "
        + ("content equal" if entry["equal"] else "content differs: raytools env verify on each of them")
        for identifier, entry in environments.items()
    ]
    if wanted is None:
        lines.append("declared: nothing that is locked. Lock it: raytools env lock")
    elif wanted not in environments:
        lines.append(
            f"{wanted}: declared, on no node. Install it: ansible-playbook playbooks/environment.yml"
        )
    return lines


def _plan(nodes: dict[str, Any]) -> list[str]:
    lines = []
    for name, answer in nodes.items():
        for one in answer["removed"]:
            size = "unfinished" if one["size_bytes"] is None else format_size(one["size_bytes"])
            lines.append(f"{name}: would remove {one['id']} ({size})")
        lines += [f"{name}: keeps {one['id']} ({one['why']})" for one in answer["kept"]]
    return lines
