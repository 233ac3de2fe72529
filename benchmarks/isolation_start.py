"""What limits and a measurement add to `/bin/true`: wall time, and CPU time of all that was started."""

from __future__ import annotations

import operator
import subprocess
import time
from collections.abc import Callable

from isolation_site import Done, Site, Trouble, collect, compared, rounds, settle, used_cpu_s
from measure import Row

import raytools
from raytools.errors import RaytoolsError

TITLE = "start: /bin/true, with a limit on CPUs, memory and time, and a measurement"
_TRUE = ["/bin/true"]
_SHARE_OF_RUNEXEC, _API_MS = 0.4, 5.0


def measure(site: Site, runs: int) -> list[Row]:
    """Command lines from outside; the in-process call against subprocess.run in this very process."""
    bare, limited = Row("/bin/true"), Row("raytools run")
    container, plain = Row("runexec"), Row("runexec --no-container")
    plain.note = "no mount namespace"
    bare_call, call = Row("subprocess.run", unit="ms"), Row("raytools.run", unit="ms")
    contestants: list[tuple[Row, Callable[[], tuple[float, float]]]] = [
        (bare, lambda: _outside(site.run(_TRUE))),
        (limited, lambda: _outside(site.run_raytools(_TRUE)[0])),
        (container, lambda: _outside(site.run_runexec(_TRUE)[0])),
        (plain, lambda: _outside(site.run_runexec(_TRUE, container=False)[0])),
        (bare_call, lambda: _inside(lambda: subprocess.run(_TRUE, check=True))),
        (call, lambda: _inside(_raytools_call)),
    ]
    for _row, once in contestants:  # compiles, and fills the page cache
        collect(Row("warm-up"), once)
    for row, once in rounds("start", runs, contestants):
        collect(row, once)
    faster = min(container, plain, key=lambda row: row.median or float("inf"))
    ratio = compared(
        f"raytools run / {faster.name}", limited, faster, operator.truediv, unit="x", bar=_SHARE_OF_RUNEXEC
    )
    added = compared("raytools.run - subprocess.run", call, bare_call, operator.sub, unit="ms", bar=_API_MS)
    return [bare, limited, container, plain, ratio, bare_call, call, added]


def _outside(done: Done) -> tuple[float, float]:
    return done.wall_s, done.cpu_s


def _inside(call: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of one call, and the CPU seconds of this process and of all it started."""
    cpu_before_s, began = time.process_time() + used_cpu_s(), time.perf_counter()
    call()
    wall_s, own_cpu_s = time.perf_counter() - began, time.process_time()
    settle()
    return wall_s * 1000, own_cpu_s + used_cpu_s() - cpu_before_s


def _raytools_call() -> None:
    try:
        outcome = raytools.run(_TRUE, memory="256MiB", time="1m").outcome
    except RaytoolsError as error:
        raise Trouble(str(error)) from error
    if outcome != "ok":
        raise Trouble(f"outcome {outcome}")
