"""`python -m raytools.node enter-main PROGRAM [ARGUMENT ...]`: how a delegated unit starts its program.

On cgroup v2 a group with processes cannot pass its controllers on, so the program moves into the leaf `main`
of its unit first. Elsewhere there is nothing to do. It execs in place: the unit keeps its main process.
"""

from __future__ import annotations

import os
import sys

from raytools.node.cgroup_v2 import enter_main


def main(arguments: list[str]) -> int:
    """Becomes the program; 127 if it cannot be executed."""
    try:
        enter_main()
    except OSError as error:
        # the program is of use without runs, and they say themselves why they are refused
        print(f"enter-main: no leaf for runs: {error.filename}: {error.strerror}", file=sys.stderr)
    try:
        os.execvp(arguments[0], arguments)
    except OSError as error:
        print(f"enter-main: {arguments[0]}: {error.strerror}", file=sys.stderr)
    return 127
