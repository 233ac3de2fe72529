"""Does a directory keep what programs expect of storage: `python -m raytools.node storage-trial`.

Locks, renames that replace, and writes that are on the disk when `fsync` returns; how long that takes.
Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

_FSYNCS = 5
_BLOCK = b"\0" * 4096


def try_out(directory: Path) -> dict[str, Any]:
    """`problems` in words, and the median `fsync_ms` of small writes.

    Args:
        directory: of this node alone, made for this; removed afterwards.
    """
    problems: list[str] = []
    took_ms: list[float] = []
    file, other = directory / "trial", directory / "trial.new"
    try:
        directory.parent.mkdir(exist_ok=True)  # no more: storage that is not there must not be made here
        directory.mkdir(exist_ok=True)
        with open(file, "wb") as stream:
            for _ in range(_FSYNCS):
                stream.write(_BLOCK)
                stream.flush()
                began = time.perf_counter()
                os.fsync(stream.fileno())
                took_ms.append((time.perf_counter() - began) * 1000)
            if problem := _lock_problem(stream.fileno()):
                problems.append(problem)
        other.write_bytes(b"new")
        os.replace(other, file)
        if file.read_bytes() != b"new":
            problems.append("a file that was replaced still has its old content")
    except OSError as error:
        problems.append(f"{error.strerror or error} ({error.filename or directory})")
    finally:
        for path in (file, other):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()
    return {
        "problems": problems,
        "fsync_ms": round(statistics.median(took_ms), 2) if took_ms else None,
    }


def _lock_problem(descriptor: int) -> str | None:
    """Both kinds of locks; nobody else has this file, so neither may be refused.

    One after the other: over NFS both are the same locks of the server, and one keeps the other out.
    """
    wanted = fcntl.LOCK_EX | fcntl.LOCK_NB
    for name, lock in (("fcntl", fcntl.lockf), ("flock", fcntl.flock)):
        try:
            lock(descriptor, wanted)
            lock(descriptor, fcntl.LOCK_UN)
        except OSError as error:
            return f"files cannot be locked by {name}: {error.strerror}"
    return None


def main(argv: list[str]) -> int:
    """JSON on standard output."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node storage-trial", description=__doc__)
    parser.add_argument("--path", required=True, type=Path, help="the storage")
    parser.add_argument("--name", required=True, help="this node's")
    options = parser.parse_args(argv)
    directory = options.path / "results" / f".raytools-trial-{options.name}"
    json.dump(try_out(directory), sys.stdout)
    return 0
