"""`python -m raytools.node environment install|switch|list|prune`: the environments of this node.

Runs before there is an environment: the standard library, GNU tar and libzstd are all it needs. JSON on
standard output; what it is doing, and one message if it cannot, on standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node.environment_existing import adopt
from raytools.node.environment_install import Archive, install
from raytools.node.environment_inventory import list_environments, overview, prune, switch

__all__ = ["install", "list_environments", "main", "overview", "prune", "switch"]


def main(argv: list[str]) -> int:
    """Runs one of the commands; 1 if it could not be done."""
    arguments = _parser().parse_args(argv)
    try:
        answer = _run(arguments)
    except RaytoolsError as error:
        print(f"environment: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    root = arguments.root
    if arguments.command == "install":
        archive = Archive(arguments.archive, arguments.sha256, arguments.size_bytes, arguments.files)
        return install(root, archive, arguments.id, _say, again=arguments.again)
    if arguments.command == "adopt":
        return adopt(arguments.prefix, arguments.name, arguments.python, root, _say)
    if arguments.command == "switch":
        return switch(root, arguments.id)
    if arguments.command == "list":
        return overview(root)
    return prune(root, arguments.keep, dry_run=arguments.dry_run, ignore_unseen=arguments.ignore_unseen)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m raytools.node environment", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="unpack an archive, unless its environment is there")
    install.add_argument("--archive", required=True, type=Path)
    install.add_argument("--sha256", required=True)
    install.add_argument("--id", required=True)
    install.add_argument(
        "--size-bytes", type=int, default=0, help="unpacked (`unpacked_bytes` of the archive)"
    )
    install.add_argument("--files", type=int, default=0, help="unpacked (`unpacked_files` of the archive)")
    install.add_argument("--again", action="store_true", help="replace what is there")
    adopting = commands.add_parser("adopt", help="note an environment that somebody else made")
    adopting.add_argument("--prefix", required=True, type=_absolute)
    adopting.add_argument("--name", required=True)
    adopting.add_argument("--python", required=True, metavar="VERSION")
    switch = commands.add_parser("switch", help="point envs/current to an installed environment")
    switch.add_argument("--id", required=True)
    listing = commands.add_parser("list", help="what is there")
    prune = commands.add_parser("prune", help="remove what nobody needs")
    prune.add_argument("--keep", action="append", default=[], metavar="ID")
    prune.add_argument("--dry-run", action="store_true")
    prune.add_argument("--ignore-unseen", action="store_true", help="although not all processes can be seen")
    for command in (install, adopting, switch, listing, prune):
        command.add_argument("--root", required=True, type=_absolute)
    return parser


def _absolute(text: str) -> Path:
    return Path(text).absolute()
