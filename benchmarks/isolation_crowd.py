"""Many runs started at once that wait for two slots: what each costs must not grow with their number."""

from __future__ import annotations

import operator
import subprocess
import time
from collections import Counter

from isolation_site import Site, Trouble, collect, compared, rounds, settle, used_cpu_s, wait
from measure import CHECKOUT, SCRIPTS, Row

TITLE = "crowd: runs started at once on a node of two slots, each `raytools run --wait 5m -- /bin/true`"
_SIZES = (15, 30, 60)
_GROWTH = 1.5
_COMMAND = [str(SCRIPTS / "raytools"), "run", "--wait", "5m", "--", "/bin/true"]


def measure(site: Site, runs: int) -> list[Row]:
    """A crowd takes seconds: a quarter of the rounds will do, but three."""
    totals = {size: Row(f"{size} at once") for size in _SIZES}
    for size in rounds("crowd", max(min(3, runs), runs // 4), _SIZES):
        collect(totals[size], lambda size=size: _crowd(site, size))
    per_run = {size: _per_run(row, size) for size, row in totals.items()}
    growth = compared(
        f"per run: {_SIZES[-1]} / {_SIZES[0]}", per_run[_SIZES[-1]], per_run[_SIZES[0]],
        operator.truediv, unit="x", bar=_GROWTH,
    )  # fmt: skip
    return [*totals.values(), *per_run.values(), growth]


def _per_run(total: Row, size: int) -> Row:
    row = Row(f"per run of {size}", unit="ms", trouble=total.trouble)
    row.values = [value / size * 1000 for value in total.values]
    row.cpu_s = [value / size for value in total.cpu_s]
    return row


def _crowd(site: Site, size: int) -> tuple[float, float]:
    """Until the last one ended; all must have got their turn."""
    cpu_before_s = used_cpu_s()
    with (site.folder / "stderr").open("w+") as stderr:
        began = time.perf_counter()
        processes = [
            subprocess.Popen(
                _COMMAND, cwd=CHECKOUT,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
            )
            for _ in range(size)
        ]  # fmt: skip
        codes = Counter(wait(process) for process in processes)
        wall_s = time.perf_counter() - began
        settle()
        stderr.seek(0)
        complaints = [line for line in stderr.read().splitlines() if "waiting:" not in line]
    if set(codes) != {0}:
        raise Trouble(f"exit codes {dict(codes)}: {(complaints or [''])[-1]}")
    return wall_s, used_cpu_s() - cpu_before_s
