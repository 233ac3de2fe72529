"""`python -m raytools.node COMMAND`: what a node is asked to do. Imports only the chosen command's module."""

from __future__ import annotations

import importlib
import sys

# command -> module with `main(argv: list[str]) -> int`
COMMANDS = {
    "facts": "raytools.node.facts",
    "environment": "raytools.node.environment",
    "inspect": "raytools.node.inspect",
    "logs": "raytools.node.logs",
    "reach": "raytools.node.reach",
    "ring": "raytools.node.ring",
    "imports": "raytools.node.imports",
    "storage-trial": "raytools.node.storage_trial",
    "mend": "raytools.node.mend",
    "probe": "raytools.node.probe",
    "toolkit": "raytools.node.toolkit",
    "apply": "raytools.node.apply",
    "stamp": "raytools.node.stamp",
    "grant": "raytools.node.grant",
    "storage": "raytools.node.storage",
    "drain": "raytools.node.drain",
    "jobs": "raytools.node.jobs",
    "members": "raytools.node.members",
    "ray-view": "raytools.node.ray_view",
    "ray-workers": "raytools.node.ray_workers",
    "ray": "raytools.node.ray_service",
    "ray-unit": "raytools.node.ray_unit",
    "supervise": "raytools.node.supervisor",
    "workload": "raytools.node.workload_runtime",
    "driver": "raytools.node.driver",
    "call": "raytools.node.call",
    "run": "raytools.node.run",
    "ray-start": "raytools.node.ray_start",
    "enter-main": "raytools.node.enter_main",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; 2 for a command that does not exist."""
    arguments = sys.argv[1:] if argv is None else argv
    module = COMMANDS.get(arguments[0]) if arguments else None
    if module is None:
        found = arguments[0] if arguments else "no command"
        print(
            f"python -m raytools.node: found {found}, expected one of {', '.join(COMMANDS)}", file=sys.stderr
        )
        return 2
    return int(importlib.import_module(module).main(arguments[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
