"""`raytools grant`: lets a plain user run under limits."""

from __future__ import annotations

from typing import Annotated

import typer

from raytools.cli.options import ConfigOption, InventoryOption, new_app
from raytools.node import grant as node_grant

app = new_app()


@app.command(
    epilog="""\b
Examples:
  sudo raytools grant --user alice            alice's runs are limited by cgroups
  sudo raytools grant --user alice --revoke   takes that back"""
)
def grant(
    user: Annotated[str, typer.Option(metavar="NAME", help="Who may make cgroups for runs.")],
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the right away again.")] = False,
    config: ConfigOption = None,
    inventory: InventoryOption = None,
) -> None:
    """Allow a user to run under limits on this machine (as root).

    On cgroup v1 this makes a subtree of each controller for the user; it is gone after a reboot.
    On cgroup v2 it adds the controllers to what systemd delegates to user sessions.
    """
    del config, inventory  # every command takes them; this one is about the machine it runs on
    for line in node_grant.revoke(user) if revoke else node_grant.grant(user):
        typer.echo(line)
