"""What the make targets call, the same for every kind of lab: up, down, list, deps, clean."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from raytools.errors import RaytoolsError
from tests.lab.base import BaseLab, labs_of
from tests.lab.commands import Report, say
from tests.lab.hosts import H, number_of, parse


@dataclass(frozen=True)
class Program(Generic[H]):
    """One kind of lab.

    Args:
        module: its package, for `python -m`.
        lab: makes a lab from its name.
        default: the name of a lab without one.
        count: how many hosts it has by default.
        interrupted: what a person is told after Ctrl-C.
        install: installs what the kind needs.
        purge: removes the cached images; returns their names.
    """

    module: str
    lab: Callable[[str], BaseLab[H]]
    default: str
    count: int
    interrupted: str
    install: Callable[[Report], None]
    purge: Callable[[], list[str]]

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Runs one command; 1 if it failed, 130 for Ctrl-C."""
        asked = self._parser().parse_args(arguments)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends it that way means the same
        try:
            commands = {"up": self._up, "down": self._down, "list": self._list}
            commands |= {"deps": self._deps, "clean": self._clean}
            commands[asked.command](asked)
        except RaytoolsError as error:
            print(f"lab: {error}", file=sys.stderr)
            return 1
        except BrokenPipeError:  # `… | head`: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            print(f"lab: interrupted. {self.interrupted}", file=sys.stderr)
            return 130
        return 0

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=__doc__)
        commands = parser.add_subparsers(dest="command", required=True)
        up = commands.add_parser("up", help="start hosts, or make a running lab what is asked for")
        up.add_argument(
            "--hosts", type=int, default=self.count, metavar="N",
            help=f"how many, called n1 to nN (default: {self.count})",
        )  # fmt: skip
        options = ", ".join(self._example().spec.OPTIONS)
        up.add_argument(
            "--host", action="append", default=[], metavar="NAME:KEY=VALUE,…",
            help=f"a host that differs: {options}, var.NAME",
        )  # fmt: skip
        down = commands.add_parser("down", help="end a lab and remove all of it")
        down.add_argument("--purge", action="store_true", help="and the cached image")
        for command in (up, down):
            default = self.default
            command.add_argument(
                "--lab", default=default, metavar="NAME", help=f"which lab (default: {default})"
            )
        commands.add_parser("list", help="this checkout's labs and their hosts")
        commands.add_parser("deps", help="install what the lab needs")
        commands.add_parser("clean", help="end all labs of this checkout and remove the cached image")
        return parser

    def _example(self) -> BaseLab[H]:
        return self.lab(self.default)

    def _labs(self) -> list[str]:
        return labs_of(self._example().KIND)

    def _up(self, asked: argparse.Namespace) -> None:
        lab = self.lab(asked.lab)
        lab.up(number_of(asked.hosts, lab.spec, [parse(text, lab.spec) for text in asked.host]))
        say(self._how_to_use(lab))

    def _how_to_use(self, lab: BaseLab[H]) -> str:
        inventory, cluster, config = map(_shown, (lab.inventory, lab.cluster_yaml, lab.ssh_config))
        return "\n".join(
            [
                "",
                f"  ansible-playbook -i {inventory} -e raytools_config={cluster} playbooks/cluster.yml",
                f"  raytools doctor -i {inventory} -c {cluster}",
                f"  ssh -F {config} {lab.hosts[-1].name}",
                f"  make {lab.TARGETS.down}{'' if lab.name == self.default else f' LAB={lab.name}'}",
            ]
        )

    def _down(self, asked: argparse.Namespace) -> None:
        lab = self.lab(asked.lab)
        lab.down()
        say(f"lab {lab.name}: down, nothing is left of it")
        if asked.purge:
            self._purge()

    def _list(self, asked: argparse.Namespace) -> None:
        names = self._labs()
        for name in names:
            lab = self.lab(name)
            for host, address in lab.addresses.items():
                say(f"{name}  {host}  {address}  {'up' if lab.is_running(host) else 'off'}")
        if not names:
            say("no labs")

    def _deps(self, asked: argparse.Namespace) -> None:
        self.install(say)

    def _clean(self, asked: argparse.Namespace) -> None:
        for name in self._labs():
            self.lab(name).down()
            say(f"lab {name}: down")
        self._purge()

    def _purge(self) -> None:
        removed = self.purge()
        say(f"removed {', '.join(removed)}" if removed else "no cached image")


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)
