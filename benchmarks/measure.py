"""What the benchmarks share: time a command, take medians, print a table with bars."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

CHECKOUT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
_SHOWN = 10  # values; of more than that, the table shows how they spread


@dataclass
class Row:
    """One line of a benchmark's table: what was measured, how often, and how much it may be.

    `bar` None: for comparison only. `trouble` says why there is no value; that misses the bar, too.
    """

    name: str
    values: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    bar: float | None = None
    unit: str = "s"
    note: str = ""
    trouble: str = ""

    @property
    def median(self) -> float | None:
        """The middle value."""
        return statistics.median(self.values) if self.values else None

    @property
    def spread(self) -> str:
        """All values, or of many their ends and quartiles."""
        if len(self.values) <= _SHOWN:
            return " ".join(_short(value) for value in sorted(self.values))
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        ends = f"{_short(min(self.values))} – {_short(max(self.values))}"
        return f"{ends}, half in {_short(low)} – {_short(high)} ({len(self.values)})"

    @property
    def missed(self) -> bool:
        """Whether there is a bar and the median is above it or unknown."""
        return self.bar is not None and (bool(self.trouble) or self.median is None or self.median > self.bar)


def time_command(command: Sequence[str], row: Row, *, accepted: Sequence[int] = (0,)) -> None:
    """Runs a command once and adds its wall time to the row; an unexpected exit code is the row's trouble."""
    began, cpu_before_s = time.perf_counter(), children_cpu_s()
    done = subprocess.run(
        command,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=900,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    wall_s = time.perf_counter() - began
    if done.returncode in accepted:
        row.values.append(wall_s)
        row.cpu_s.append(children_cpu_s() - cpu_before_s)
        return
    last = (done.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
    row.trouble = f"exit code {done.returncode}: {last[:80]}"


def children_cpu_s() -> float:
    """CPU seconds of all children so far: on a busy machine they say more than wall time."""
    times = os.times()
    return times.children_user + times.children_system


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def print_rows(title: str, rows: Sequence[Row], load: str | None = None) -> int:
    """Prints the table; returns the exit code: 1 when a bar was missed.

    `load` is a `load_note()` from before, for benchmarks that load the machine themselves.
    """
    table = Table(title=f"{title} ({load or load_note()})", title_justify="left")
    for name, justify in (
        ("what", "left"),
        ("median", "right"),
        ("CPU", "right"),
        ("of", "left"),
        ("bar", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        median = "-" if row.median is None else f"{row.median:.3f} {row.unit}"
        bar = "" if row.bar is None else f"{row.bar:g} {row.unit}"
        verdict = row.trouble or ("" if row.bar is None else "MISSED" if row.missed else "ok")
        cpu = f"{statistics.median(row.cpu_s):.3f} s" if row.cpu_s else ""
        table.add_row(row.name, median, cpu, row.spread, bar, " ".join(filter(None, [verdict, row.note])))
    console = Console(width=None if sys.stdout.isatty() else 150, markup=False, highlight=False)
    console.print(table)
    return 1 if any(row.missed for row in rows) else 0


def load_note() -> str:
    """How busy the machine is: timings under load are noise."""
    return f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
