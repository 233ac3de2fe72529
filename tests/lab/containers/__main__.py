"""`python -m tests.lab.containers up|down|list|deps|clean`: what the make targets call."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from raytools.errors import RaytoolsError
from tests.lab.containers import container, dependencies, image
from tests.lab.containers.hosts import parse_host, plain_hosts
from tests.lab.containers.lab import Lab, labs_of, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 1 if it failed, 130 for Ctrl-C."""
    asked = _parser().parse_args(arguments)
    try:
        commands = {"up": _up, "down": _down, "list": _list, "deps": _dependencies, "clean": _clean}
        commands[asked.command](asked)
    except RaytoolsError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `… | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(
            "lab: interrupted. What is there is removed by `make lab-down`, or completed by `make lab-up`",
            file=sys.stderr,
        )
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.containers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start hosts, or make a running lab what is asked for")
    up.add_argument(
        "--hosts", type=int, default=3, metavar="N", help="how many, called n1 to nN (default: 3)"
    )
    up.add_argument(
        "--host", action="append", default=[], metavar="NAME:KEY=VALUE,…",
        help="a host that differs: cpus, memory, shm, without, user, port, become, extra, var.NAME",
    )  # fmt: skip
    down = commands.add_parser("down", help="end a lab and remove all of it")
    down.add_argument("--purge", action="store_true", help="and the cached image")
    for command in (up, down):
        command.add_argument("--lab", default="lab", metavar="NAME", help="which lab (default: lab)")
    commands.add_parser("list", help="this checkout's labs and their hosts")
    commands.add_parser("deps", help="install what the lab needs")
    commands.add_parser("clean", help="end all labs of this checkout and remove the cached image")
    return parser


def _up(asked: argparse.Namespace) -> None:
    lab = Lab(asked.lab)
    lab.up(plain_hosts(asked.hosts, [parse_host(text) for text in asked.host]))
    say(_how_to_use(lab))


def _how_to_use(lab: Lab) -> str:
    inventory, cluster, config = (_shown(path) for path in (lab.inventory, lab.cluster_yaml, lab.ssh_config))
    last = lab.hosts[-1].name
    return "\n".join(
        [
            "",
            f"  ansible-playbook -i {inventory} -e raytools_config={cluster} playbooks/cluster.yml",
            f"  raytools doctor -i {inventory} -c {cluster}",
            f"  ssh -F {config} {last}",
            f"  make lab-down{'' if lab.name == 'lab' else f' LAB={lab.name}'}",
        ]
    )


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def _down(asked: argparse.Namespace) -> None:
    lab = Lab(asked.lab)
    lab.down()
    say(f"lab {lab.name}: down, nothing is left of it")
    if asked.purge:
        _purge()


def _list(asked: argparse.Namespace) -> None:
    names = labs_of()
    for name in names:
        lab = Lab(name)
        running = {each.name for each in container.find(name) if each.running}
        for host, address in lab.addresses.items():
            say(f"{name}  {host}  {address}  {'up' if lab.container(host) in running else 'off'}")
    if not names:
        say("no labs")


def _dependencies(asked: argparse.Namespace) -> None:
    dependencies.install(say)


def _clean(asked: argparse.Namespace) -> None:
    for name in labs_of():
        Lab(name).down()
        say(f"lab {name}: down")
    _purge()


def _purge() -> None:
    removed = image.purge() if dependencies.podman_is_there() else []
    say(f"removed {', '.join(removed)}" if removed else "no cached image")


if __name__ == "__main__":
    sys.exit(main())
