"""`python -m tests.lab.machines up|down|list|deps|clean`: what the make targets call."""

from __future__ import annotations

import sys

from tests.lab.base import CHECKOUT
from tests.lab.command_line import Program
from tests.lab.machines import dependencies, image
from tests.lab.machines.lab import Lab

PROGRAM = Program(
    module="tests.lab.machines",
    lab=Lab,
    default="vm",
    count=2,
    interrupted="`make vm-up` has taken back what it had begun; `make vm-down` removes the rest",
    install=dependencies.install,
    purge=lambda: image.purge(CHECKOUT),
)

if __name__ == "__main__":
    sys.exit(PROGRAM.main())
