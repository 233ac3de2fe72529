"""`python -m tests.lab.containers up|down|list|deps|clean`: what the make targets call."""

from __future__ import annotations

import sys

from tests.lab.command_line import Program
from tests.lab.containers import dependencies, image
from tests.lab.containers.lab import Lab

PROGRAM = Program(
    module="tests.lab.containers",
    lab=Lab,
    default="lab",
    count=3,
    interrupted="What is there is removed by `make lab-down`, or completed by `make lab-up`",
    install=dependencies.install,
    purge=lambda: image.purge() if dependencies.podman_is_there() else [],
)

if __name__ == "__main__":
    sys.exit(PROGRAM.main())
