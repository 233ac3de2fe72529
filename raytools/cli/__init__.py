"""The command line. Each command parses, calls one function, prints; no logic lives here.

A command is a module of its own with an `app: typer.Typer` and is imported only when it is used, so
that `raytools --help` and `raytools config check` answer at once. A command ends with `typer.Exit(code)`
or by raising a RaytoolsError; this module alone turns errors into text and exit codes.
"""

from __future__ import annotations

import difflib
import gc
import importlib
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from raytools import __version__
from raytools.console import guarded
from raytools.errors import RaytoolsError

COMMANDS: dict[str, tuple[str, str]] = {
    "config": ("raytools.cli.config", "Check and show cluster.yaml."),
    "plan": ("raytools.cli.plan", "Show what each node gets: slots, Ray's arguments, ports, flags."),
    "preflight": ("raytools.cli.preflight", "Can these hosts become this cluster? Changes nothing."),
    "facts": ("raytools.cli.facts", "Show what each node has: CPUs, memory, GPUs, limits."),
    "env": ("raytools.cli.env", "Lock, build and verify the environment."),
    "doctor": ("raytools.cli.doctor", "Prove that every node is what it claims to be."),
    "smoke": ("raytools.cli.smoke", "Run a real workload on every node and judge it."),
    "results": ("raytools.cli.results", "List, show, compare and export what smokes found."),
    "run": ("raytools.node.run", "Run a command in a slot, under limits, with a record."),
    "slots": ("raytools.cli.slots", "Show the slots of this node and who holds them."),
    "grant": ("raytools.cli.grant", "Allow a user to run under limits (as root)."),
}

_HELP = """Ray on plain Linux VMs, where every run gets what it was promised, or its record says why not."""

_EPILOG = """\b
Examples:
  raytools config check                       is cluster.yaml right?
  raytools plan                               what will every node get?
  raytools doctor                             is the cluster what it claims to be?
  raytools smoke --workload autogluon         does it work?
  raytools run --cpus 1 --memory 2GiB --time 10m -- python train.py

`raytools COMMAND --help` explains a command."""


class LazyGroup(TyperGroup):
    """Lists the commands from a table and imports only the one that is used."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names in the table's order: the order in which people need them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Imports the command's module; an unknown name is a usage error with the nearest one."""
        if cmd_name.startswith("-"):
            return None
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {cmd_name!r}.{hint}")
        if cmd_name == "run":  # raytools.__main__ takes it before it gets here, unless something precedes it
            ctx.fail("Nothing goes between `raytools` and `run`.")
        module_name = COMMANDS[cmd_name][0]
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                raise
            raise RaytoolsError(f"this raytools ({__version__}) has no `raytools {cmd_name}`") from error
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The table's own help lines, so that help imports no command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"raytools {__version__}")
        raise typer.Exit


def _root() -> TyperGroup:
    app = typer.Typer(
        cls=LazyGroup,
        rich_markup_mode=None,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback(help=_HELP, epilog=_EPILOG, no_args_is_help=True)
    def _callback(
        version: bool = typer.Option(
            False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ) -> None:
        del version
        gc.enable()  # the command is imported by now

    return typer.main.get_group(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: without the program's name; the process's own by default.
    """

    def body() -> None:
        _root().main(args=None if arguments is None else list(arguments), prog_name="raytools")

    return guarded(body)
