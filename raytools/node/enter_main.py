"""How a unit starts its program: `… enter-main PROGRAM [ARGUMENT ...]`, or `… enter-main ray-start …`.

On cgroup v2 a group with processes cannot pass its controllers on, so the program moves into the leaf `main`
of its unit first. Elsewhere there is nothing to do. The unit keeps its main process: the program takes this
process over, by exec, or `ray start` by running in this interpreter (raytools/node/ray_start.py).
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
    if arguments[:1] == ["ray-start"]:
        from raytools.node import ray_start

        return ray_start.main(arguments[1:])
    try:
        os.execvp(arguments[0], arguments)
    except OSError as error:
        print(f"enter-main: {arguments[0]}: {error.strerror}", file=sys.stderr)
    return 127
