"""`raytools config check|show|schema`: is cluster.yaml right, and what does it say?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.config import json_schema, load_config
from raytools.config_check import summary
from raytools.project import find_project
from raytools.yaml_source import shown_path

app = new_app("Check and show cluster.yaml. See docs/configuration.md for every key.")

FileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="cluster.yaml to use, as with -c.", show_default=False)
]


@app.command()
def check(file: FileArgument = None, config: ConfigOption = None, inventory: InventoryOption = None) -> None:
    """Check cluster.yaml: one line per mistake and exit code 2, or one line that says what it describes.

    \b
    Examples:
      raytools config check
      raytools config check other.yaml
    """
    path = _config_path(file, config, inventory)
    typer.echo(f"{shown_path(path)}: ok: {summary(load_config(path))}")


@app.command()
def show(
    file: FileArgument = None,
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the configuration in effect: cluster.yaml with the defaults of all keys it leaves out.

    \b
    Examples:
      raytools config show
      raytools config show --json | jq .ray.ports
    """
    data = load_config(_config_path(file, config, inventory)).to_data()
    if as_json:
        _print_json(data)
        return
    import yaml

    typer.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def schema(
    config: ConfigOption = None, inventory: InventoryOption = None, as_json: JsonOption = False
) -> None:
    """Print the JSON schema of cluster.yaml, for editors that complete and check as you type.

    \b
    Example:
      raytools config schema > cluster.schema.json
    """
    del config, inventory, as_json  # taken by every command; the schema depends on none of them
    _print_json(json_schema())


def _config_path(file: Path | None, config: Path | None, inventory: Path | None) -> Path:
    if file is not None and config is not None:
        raise typer.BadParameter("found both FILE and -c, expected one of them")
    return find_project(config if file is None else file, inventory).config_path


def _print_json(data: object) -> None:
    import json

    typer.echo(json.dumps(data, indent=2))
