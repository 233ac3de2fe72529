"""One process of the workload `stress`: keeps one CPU busy, holds a part of the slot's memory.

A program of its own, run by its path: forks of the slot's main process would share its memory, which nobody
can count, and copy some of it. Standard library only. Commands are JSON lines on standard input, each
answered by one line: `["burn", seconds]`, `["hold", bytes]`, `["check", null]`. The end of the input ends it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

# One unit of work: BLAKE2b of 64 KiB. It fits every cache, and no CPU has instructions made for it.
_BUFFER = bytes(range(256)) * 256
_STEP_PAGES = 2**12  # 16 MiB at a time, of which each process may take one more than there is room for
_LEFT_BYTES = 2**27  # of the machine: with less it would come to a standstill, and the kernel kill somebody
_PAGE_BYTES = mmap.PAGESIZE


class Worker:
    """What one process does when it is told to; each method's result is the answer."""

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._touched_bytes = 0

    def burn(self, seconds: float) -> dict[str, Any]:
        """Works for so long; tells the units done, and the CPU and wall seconds they took.

        Raises:
            ValueError: the same work gave another result.
        """
        expected, units = hashlib.blake2b(_BUFFER).digest(), 0
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        while time.monotonic() - began_s < seconds:
            if hashlib.blake2b(_BUFFER).digest() != expected:
                raise ValueError("the same calculation gave two results")
            units += 1
        return {
            "units": units,
            "cpu_s": time.process_time() - began_cpu_s,
            "wall_s": time.monotonic() - began_s,
        }

    def hold(self, size_bytes: int) -> dict[str, Any]:
        """Takes memory that is nobody else's and touches every page of it; tells how long that took.

        It stops where the machine has next to nothing left, though the slot was promised more.
        """
        size_bytes = max(0, size_bytes // _PAGE_BYTES * _PAGE_BYTES)
        began_s = time.monotonic()
        if size_bytes:
            self._block = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for pages, marks in self._steps(size_bytes):
                if available_bytes() < _LEFT_BYTES:
                    break
                self._block[pages] = marks
                self._touched_bytes = min(pages.stop, size_bytes)
        return {
            "held_bytes": self._touched_bytes,
            "short": self._touched_bytes < size_bytes,
            "wall_s": time.monotonic() - began_s,
        }

    def check(self, _argument: None) -> dict[str, Any]:
        """Reads every page again.

        Raises:
            ValueError: one holds something else than was written.
        """
        for pages, marks in self._steps(self._touched_bytes):
            if self._block is not None and self._block[pages] != marks:
                raise ValueError("memory holds something else than was written to it")
        return {}

    def _steps(self, size_bytes: int) -> Iterator[tuple[slice, bytes]]:
        """Slices of the block's beginning, one byte of each page, and what these bytes are."""
        pages = size_bytes // _PAGE_BYTES
        marks = (bytes(range(1, 252)) * (_STEP_PAGES // 251 + 1))[:_STEP_PAGES]
        for first in range(0, pages, _STEP_PAGES):
            last = min(first + _STEP_PAGES, pages)
            yield slice(first * _PAGE_BYTES, last * _PAGE_BYTES, _PAGE_BYTES), marks[: last - first]


def available_bytes() -> int:
    """What the machine could still give to somebody, as the kernel estimates it."""
    with open("/proc/meminfo") as file:  # noqa: PTH123 - pathlib takes memory that is the slot's
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not say what is available")


def main(cpu: int) -> None:
    """Answers commands on one CPU until there are no more."""
    os.sched_setaffinity(0, {cpu})
    worker = Worker()
    commands: dict[str, Callable[[Any], dict[str, Any]]] = {
        "burn": worker.burn,
        "hold": worker.hold,
        "check": worker.check,
    }
    _say({})  # ready
    for line in sys.stdin:
        name, argument = json.loads(line)
        try:
            _say(commands[name](argument))
        except (OSError, ValueError) as error:
            _say({"error": str(error)})


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
