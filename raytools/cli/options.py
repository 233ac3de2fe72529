"""What all commands share: how an application is made, and the options every command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "-c", "--config", metavar="FILE", help="cluster.yaml to use.  [default: found here or above]",
        show_default=False,
    ),
]  # fmt: skip
InventoryOption = Annotated[
    Path | None,
    typer.Option(
        "-i", "--inventory", metavar="PATH", help="Ansible inventory to use.  [default: as in ansible.cfg]",
        show_default=False,
    ),
]  # fmt: skip
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON, and it alone, on standard output.", show_default=False)
]


def new_app(help_text: str | None = None) -> typer.Typer:
    """A Typer application in the project's manner: plain help, plain errors, no completion options.

    Rich help and tracebacks would cost 80 ms of start-up; `raytools.cli.main` prints the errors.

    Args:
        help_text: what the group is for; the single command of a module has it in its docstring.
    """
    return typer.Typer(
        help=help_text,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=help_text is not None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
