"""A piece of work, `cpu` (fits into the caches) or `memory` (does not), once and timed, or for ever.

    task.py cpu|memory [PROCESSES]

Prints as JSON how long it took and its CPU time; with a number of processes it prints `ready` once all are
at it, and never ends.
"""

import json
import os
import sys
import time

BLOCK_BYTES = 256 << 20


def compute() -> None:
    """Integer arithmetic in the interpreter."""
    for _ in range(200):
        total = 0
        for number in range(100_000):
            total += number & 7


def copy(block: bytearray) -> None:
    """Copies of more memory than any cache holds."""
    for _ in range(8):
        bytearray(block)


def main() -> None:
    """The task, or its neighbour."""
    kind, processes = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for _ in range(processes - 1):
        if os.fork() == 0:
            break
    else:
        if processes:
            print("ready", flush=True)
    block = bytearray(b"x") * BLOCK_BYTES if kind == "memory" else bytearray()
    while True:
        began, cpu_before_s = time.perf_counter(), time.process_time()
        copy(block) if kind == "memory" else compute()
        if not processes:
            took = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu_before_s}
            print(json.dumps(took), flush=True)
            return


main()
