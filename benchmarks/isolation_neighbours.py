"""How much a task in a slot suffers from a neighbour: one that is free to use the machine, one in a slot.

The task's own clock and CPU time, without start-up. Other load shows: it delays the task, but leaves the CPU
time of the same work as it is, and the records call such runs tainted.
"""

from __future__ import annotations

import contextlib
import operator
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from isolation_site import Site, Trouble, collect, compared, program, rounds, settle, wait
from measure import CHECKOUT, Row

TITLE = "neighbours: seconds of the same work"
_IN_SLOTS = 1.03
_READY_S = 20.0
_NEIGHBOUR_PROCESSES = 2  # as many as the CPUs it shares with the task when nothing holds it


def measure(site: Site, runs: int) -> list[Row]:
    """The same task in the same slot beside each neighbour."""
    rows = {
        (kind, neighbour): Row(f"{kind}: {label}")
        for kind in ("cpu", "memory")
        for neighbour, label in (
            ("none", "alone"),
            ("bare", "beside an unlimited neighbour"),
            ("slot", "neighbour in the other slot"),
            ("runexec", "both under runexec --cores"),
        )
    }
    tainted: Counter[tuple[str, str]] = Counter()
    for which in rounds("neighbours", runs, list(rows)):
        collect(rows[which], lambda which=which: _task(site, *which, tainted))
    for which, count in tainted.items():
        rows[which].note = f"{count} of {runs} records tainted"
    ratios = [
        compared(
            f"{kind}: {rows[kind, neighbour].name.partition(': ')[2]} / alone",
            rows[kind, neighbour], rows[kind, "none"], operator.truediv, unit="x",
            bar=_IN_SLOTS if (kind, neighbour) == ("cpu", "slot") else None,
        )
        for kind, neighbour in rows
        if neighbour != "none"
    ]  # fmt: skip
    held, alone = rows["cpu", "slot"], rows["cpu", "none"]
    fastest = Row("cpu: neighbour in the other slot / alone, fastest of each", unit="x")
    if held.values and alone.values:
        fastest.values = [min(held.values) / min(alone.values)]
    return [*rows.values(), *ratios, fastest]


def _task(site: Site, kind: str, neighbour: str, tainted: Counter[tuple[str, str]]) -> tuple[float, float]:
    command = program("task", kind)
    with _neighbour(site, kind, neighbour):
        if neighbour == "runexec":
            done, _result = site.run_runexec(command, settled=False)
        else:
            done, record = site.run_raytools(command, settled=False)
            tainted[kind, neighbour] += record["fairness"]["verdict"] != "comparable"
    took = done.printed()
    return took["wall_s"], took["cpu_s"]


@contextlib.contextmanager
def _neighbour(site: Site, kind: str, where: str) -> Iterator[None]:
    """Works for ever beside the task, from before it starts until after it ends."""
    endless = program("task", kind, _NEIGHBOUR_PROCESSES)
    told = site.folder / "neighbour.log"
    if where == "none":
        yield
        return
    if where == "bare":
        command = endless
    elif where == "slot":
        command = site.raytools(endless, slot=1, record=site.folder / "neighbour.json")
    else:
        command, told = site.runexec(endless, slot=1), site.log(1)
    told.write_text("")
    with (site.folder / "neighbour.log").open("w") as output:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        _wait_until_ready(process, told)
        yield
        if process.poll() is not None:
            raise Trouble(f"the neighbour ended with exit code {process.returncode} before the task did")
    finally:
        # all processes of a bare neighbour; raytools and runexec end theirs, which are in other sessions
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        wait(process)
        settle()


def _wait_until_ready(process: subprocess.Popen[bytes], told: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while "ready" not in told.read_text().splitlines():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Trouble(f"no neighbour: {told.read_text()[-80:]!r}")
        time.sleep(0.01)
