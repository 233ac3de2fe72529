"""The workload `stress` in a slot: all of its CPUs, nearly all of its memory, local disk and shared storage.

Standard library only. One after the other, so that each figure is of one thing alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node.mounts import filesystem_of
from raytools.units import format_duration, format_size, parse_size_bytes
from raytools.workloads import stress_worker
from raytools.workloads.base import SlotContext
from raytools.workloads.stress import STORAGE_METRICS, StressParameters

_HOLD_S = 0.3  # the supervisor looks ten times a second: the record shall show the memory, too
_BLOCK_BYTES = 2**20
_SMALL_WRITES, _SMALL_BYTES = 5, 4096
_BOUND = 10  # a file takes at most a tenth of what is free
_IN_MEMORY = ("tmpfs", "ramfs")


def stress(parameters: StressParameters, context: SlotContext) -> dict[str, Any]:
    """All parts that were asked for; what was left out is null.

    Returns:
        The metrics of the workload, as JSON types.
    """
    metrics: dict[str, Any] = {"problems": [], "notes": []}
    cpus = sorted(os.sched_getaffinity(0))  # as programs count: if these are too many, the figures tell
    metrics["cpus_seen"] = len(cpus)
    with _crew(cpus if parameters.seconds or parameters.memory_share else ()) as crew:
        metrics |= _burn(crew, parameters.seconds, context)
        metrics |= _fill(crew, int(parameters.memory_share * context.memory_bytes), metrics["notes"], context)
    wanted_bytes = parse_size_bytes(parameters.file_size)
    places = {"": context.scratch_dir, "shared_": context.shared_dir if parameters.shared else None}
    for prefix, directory in places.items():
        metrics |= {f"{prefix}{name}": None for name in STORAGE_METRICS}
        if directory is not None and wanted_bytes:
            what = "shared storage" if prefix else "local disk"
            figures = _try_storage(what, directory, wanted_bytes, metrics, context)
            metrics |= {f"{prefix}{name}": value for name, value in figures.items()}
    return metrics


class _Member:
    """One worker process, on one CPU."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        # As little of an interpreter as can be: its memory is the slot's
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", stress_worker.__file__, str(cpu)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, command: str, argument: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: its answer says so
            self.process.stdin.write(json.dumps([command, argument]) + "\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RaytoolsError(f"CPU {self.cpu}: the process there ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RaytoolsError(f"CPU {self.cpu}: {answer['error']}")
        return answer

    def end(self) -> None:
        self.process.kill()
        # what it was told after it had died is still in the buffer, and closing tries to write it
        with contextlib.suppress(BrokenPipeError), self.process:  # closes its pipes and waits
            pass


@contextlib.contextmanager
def _crew(cpus: Sequence[int]) -> Iterator[list[_Member]]:
    """One worker on each CPU, all of them ready; none is left afterwards."""
    with contextlib.ExitStack() as undo:
        crew = []
        for cpu in cpus:
            crew.append(_Member(cpu))
            undo.callback(crew[-1].end)
        for member in crew:
            member.answer()
        yield crew


def _all(crew: Sequence[_Member], command: str, arguments: Sequence[Any]) -> list[dict[str, Any]]:
    """Everybody's answers to one command that all of them got at once."""
    for member, argument in zip(crew, arguments, strict=True):
        member.tell(command, argument)
    return [member.answer() for member in crew]


def _burn(crew: Sequence[_Member], seconds: float, context: SlotContext) -> dict[str, Any]:
    """CPU seconds of all CPUs together; units of work by second and CPU."""
    if not seconds:
        return {"cpu_s": None, "cpu_work_per_s": None}
    context.report(f"all {len(crew)} CPUs for {format_duration(seconds)}")
    answers = _all(crew, "burn", [seconds] * len(crew))
    return {
        "cpu_s": round(sum(answer["cpu_s"] for answer in answers), 3),
        "cpu_work_per_s": round(statistics.mean(a["units"] / a["wall_s"] for a in answers)),
    }


def _fill(
    crew: Sequence[_Member], target_bytes: int, notes: list[str], context: SlotContext
) -> dict[str, Any]:
    """Fills memory until all processes together have the target; all of it is there at the same time.

    The workers take equal parts of what this process and they themselves do not need already.
    """
    if not target_bytes:
        return {"memory_bytes": None, "memory_touched_bytes_per_s": None}
    context.report(f"{format_size(target_bytes)} of memory")
    pids = [os.getpid(), *(member.process.pid for member in crew)]
    part_bytes = max(0, target_bytes - resident_bytes(pids)) // len(crew)
    answers = _all(crew, "hold", [part_bytes] * len(crew))
    if any(answer["short"] for answer in answers):
        notes.append(
            "memory: stopped where the machine had next to none left: others use what the slot was promised"
        )
    _all(crew, "check", [None] * len(crew))
    held_bytes = resident_bytes(pids)
    time.sleep(_HOLD_S)
    touched_bytes = sum(answer["held_bytes"] for answer in answers)
    slowest_s = max(answer["wall_s"] for answer in answers)
    return {
        "memory_bytes": held_bytes,
        "memory_touched_bytes_per_s": round(touched_bytes / slowest_s) if touched_bytes else None,
    }


def resident_bytes(pids: Sequence[int]) -> int:
    """Memory that these processes have in RAM now and that is no file's; what is swapped out is not.

    The kernel walks their page tables for it: its usual counters are off by some pages for each CPU.
    """
    total_bytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                total_bytes += int(line.split()[1]) * 1024
    return total_bytes


def _try_storage(
    what: str, directory: Path, wanted_bytes: int, metrics: dict[str, Any], context: SlotContext
) -> dict[str, Any]:
    """Figures of one directory; what is wrong with it goes to the problems, what limits them to the notes."""
    try:
        return _figures(what, directory, wanted_bytes, metrics["notes"], context)
    except (OSError, ValueError) as error:
        metrics["problems"].append(f"{what}: {getattr(error, 'strerror', None) or error}")
        return {}


def _figures(
    what: str, directory: Path, wanted_bytes: int, notes: list[str], context: SlotContext
) -> dict[str, Any]:
    """Chooses the file's size and measures; raises what `measure` raises, and ValueError without room."""
    filesystem = filesystem_of(str(directory.resolve()))
    room_bytes = _room_bytes(directory, filesystem, context.memory_bytes)
    size_bytes = min(wanted_bytes, room_bytes)
    if size_bytes < min(_BLOCK_BYTES, wanted_bytes):
        raise ValueError(f"no room, a tenth of what is free is {format_size(room_bytes)}")
    if size_bytes < wanted_bytes:
        asked = format_size(wanted_bytes)
        notes.append(
            f"{what}: a file of {format_size(size_bytes)} instead of {asked}, a tenth of what is free"
        )
    if filesystem in _IN_MEMORY:
        notes.append(f"{what}: {directory} is {filesystem}, so its figures are those of memory")
    context.report(f"{what}: {format_size(size_bytes)}")
    figures = measure(directory, size_bytes)
    rates = [f"{format_size(figures[f'{done}_bytes_per_s'])}/s" for done in ("write", "read")]
    context.report(f"{what}: written at {rates[0]}, read at {rates[1]}")
    return {"filesystem": filesystem, **figures}


def _room_bytes(directory: Path, filesystem: str | None, memory_bytes: int) -> int:
    """The largest file that does no harm; in a file system of memory it is charged to the run."""
    found = os.statvfs(directory)
    free_bytes = found.f_bavail * found.f_frsize
    return min(free_bytes, memory_bytes if filesystem in _IN_MEMORY else free_bytes) // _BOUND


def measure(directory: Path, size_bytes: int) -> dict[str, Any]:
    """Writes a file, has it on the disk, reads it back from there and compares.

    Raises:
        OSError: the file system refuses.
        ValueError: something else was read than was written.
    """
    # A file without a name: however this process ends, the kernel removes it
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        pattern = os.urandom(_BLOCK_BYTES)
        began_s = time.monotonic()
        for block in _blocks(pattern, size_bytes):
            _write_all(file, block)
        os.fsync(file.fileno())
        written_s = time.monotonic() - began_s
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # out of the page cache
        file.seek(0)
        began_s = time.monotonic()
        _compare(file, pattern, size_bytes)
        read_s = time.monotonic() - began_s
        return {
            "file_bytes": size_bytes,
            "write_bytes_per_s": round(size_bytes / written_s),
            "read_bytes_per_s": round(size_bytes / read_s),
            "fsync_ms": _fsync_ms(file),
        }


def _blocks(pattern: bytes, size_bytes: int) -> Iterator[bytearray]:
    """The content: random, so that nothing compresses it; numbered, so that no block is like another."""
    block = bytearray(pattern)
    for offset in range(0, size_bytes, _BLOCK_BYTES):
        block[:8] = offset.to_bytes(8, "little")
        yield block if offset + _BLOCK_BYTES <= size_bytes else block[: size_bytes - offset]


def _write_all(file: FileIO, block: bytearray) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


def _compare(file: FileIO, pattern: bytes, size_bytes: int) -> None:
    """Raises ValueError unless the file holds what was written, to its end."""
    for number, expected in enumerate(_blocks(pattern, size_bytes)):
        found = bytearray(len(expected))
        rest = memoryview(found)
        while rest and (count := file.readinto(rest)):
            rest = rest[count:]
        if found != expected:
            raise ValueError(f"at {format_size(number * _BLOCK_BYTES)} something else was read than written")


def _fsync_ms(file: FileIO) -> float:
    """Median of how long it takes until a small write is on the disk."""
    took_ms = []
    for _ in range(_SMALL_WRITES):
        _write_all(file, bytearray(_SMALL_BYTES))
        began_s = time.perf_counter()
        os.fsync(file.fileno())
        took_ms.append((time.perf_counter() - began_s) * 1000)
    return round(statistics.median(took_ms), 2)
