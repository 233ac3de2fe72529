"""How a unit starts its program: `… enter-main [--after HOST:PORT] PROGRAM [ARGUMENT ...]`.

On cgroup v2 a group with processes cannot pass its controllers on, so the program moves into the leaf `main`
of its unit first. Elsewhere there is nothing to do. The unit keeps its main process: the program takes this
process over, by exec, or after a wait by running in this interpreter (raytools/node/start_after.py).
"""

from __future__ import annotations

import os
import sys

from raytools.node.cgroup_v2 import enter_main


def main(arguments: list[str]) -> int:
    """Becomes the program; 127 if it cannot be executed, 1 if what it waited for did not answer."""
    try:
        enter_main()
    except OSError as error:
        # the program is of use without runs, and they say themselves why they are refused
        print(f"enter-main: no leaf for runs: {error.filename}: {error.strerror}", file=sys.stderr)
    if arguments[:1] == ["--after"]:
        from raytools.node import start_after

        return start_after.main(arguments[1:])
    try:
        os.execvp(arguments[0], arguments)
    except OSError as error:
        print(f"enter-main: {arguments[0]}: {error.strerror}", file=sys.stderr)
    return 127
