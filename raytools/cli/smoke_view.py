"""How `raytools smoke` looks: progress on standard error while it runs, tables and the verdict after it."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raytools.smoke import SmokeResult
from raytools.units import format_duration, format_size
from raytools.workloads.base import run_name

_PLAIN_EVERY_S = 5.0  # between two details of one run where no terminal can be redrawn
_LOG_LINES = 40


class Named(Protocol):
    """A workload, as far as it is shown."""

    name: str
    shown_metrics: tuple[str, ...]
    shown_tables: tuple[str, ...]


@dataclass
class _RunState:
    name: str
    state: str = "starting"
    line: str = ""
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    printed: float = 0.0


class Progress:
    """Elapsed time and the last line of every run; redrawn on a terminal, else a line now and then."""

    def __init__(self, workload: str) -> None:
        self._console = Console(stderr=True)
        self._workload = workload
        self._began = time.monotonic()
        self._runs: dict[str, _RunState] = {}
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._traces: list[str] = []
        self._live = Live(
            get_renderable=self._draw, console=self._console, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._say(f"{self._workload}: preparing")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        if kind is KeyboardInterrupt:
            self._console.print("Cancelled: the runs were ended.", markup=False)
        failed = [run for run in self._runs.values() if run.state not in ("ok", "starting", "running")]
        for line in self._traces or (list(self._log) if failed else []):
            self._console.print(Text(line, style="dim"))

    def take(self, event: Mapping[str, Any]) -> None:
        """Shows one event of the runtime."""
        kind, name = event["event"], event.get("run")
        if kind == "nodes":
            self._runs = {node["run"]: _RunState(node["run"]) for node in event["nodes"]}
            self._say(f"{self._workload}: one run on each of {', '.join(self._runs)}")
        elif kind == "waiting":
            for waiting in event["runs"]:
                self._change(waiting, "waiting", "the slot is taken; see: raytools slots")
        elif kind == "log":
            self._log.append(event["line"])
        elif kind == "trace":
            self._traces.append(event["text"])
        elif kind in ("started", "progress", "finished") and name in self._runs:
            state = event["outcome"] if kind == "finished" else "running"
            self._change(name, state, event.get("line"), always=event.get("step", True))

    def _change(self, name: str, state: str, line: str | None, always: bool = True) -> None:
        run = self._runs[name]
        if state == "waiting" and run.state != "starting":
            return
        if state not in ("starting", "waiting", "running"):
            run.ended = time.monotonic()
        run.state, run.line = state, line or run.line
        now = time.monotonic()
        if always or now - run.printed >= _PLAIN_EVERY_S:
            run.printed = now
            self._say(f"{name}: {state}{f': {line}' if line else ''}")

    def _say(self, text: str) -> None:
        """A plain line, where nothing is redrawn."""
        if not self._console.is_terminal:
            elapsed = format_duration(time.monotonic() - self._began)
            self._console.print(f"[{elapsed:>7}] {text}", markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> RenderableType:
        now = time.monotonic()
        title = Text(f"{self._workload}  {format_duration(now - self._began)}", style="bold")
        table = Table.grid(padding=(0, 2))
        for run in self._runs.values():
            elapsed = format_duration((run.ended or now) - run.began)
            table.add_row(run.name, run.state, elapsed, Text(run.line, overflow="ellipsis", no_wrap=True))
        return Group(title, table if self._runs else Text("preparing"))


def print_result(result: SmokeResult, workload: Named) -> None:
    """Tables of metrics, the table by node, and the verdict with its reasons, on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False)
    document = result.document
    for run in document["runs"][:1]:  # the nodes' own tables are in the results directory
        for name in workload.shown_tables:
            if rows := run["metrics"].get(name):
                console.print(_rows_table(f"{name} on {run_name(run['record'])}", rows))
    console.print(_nodes_table(document["runs"], workload.shown_metrics))
    if document["spread"]["cv"] is not None:
        console.print(f"Spread of {document['spread']['metric']}: {document['spread']['cv']:.1%}")
    passed = document["verdict"] == "pass"
    console.print(Text(document["verdict"].upper(), style="bold green" if passed else "bold red"))
    for reason in document["reasons"]:
        console.print(f"  - {reason}", soft_wrap=True)
    console.print(f"Records: {result.directory}", soft_wrap=True)


def _rows_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column, value in rows[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in rows[0]))
    return table


def _nodes_table(runs: list[dict[str, Any]], shown_metrics: tuple[str, ...]) -> Table:
    table = Table(title="by node", title_justify="left")
    for column in ("node", "outcome", *shown_metrics, "wall", "memory peak", "CPUs used"):
        table.add_column(column, justify="left" if column in ("node", "outcome") else "right", no_wrap=True)
    for run in runs:
        record, metrics = run["record"], run["metrics"]
        used, limits = record["used"], record["limits"]
        table.add_row(
            run_name(record),
            record["outcome"],
            *(_cell(metrics.get(name)) for name in shown_metrics),
            _or_unknown(used["wall_s"], format_duration),
            f"{_or_unknown(used['memory_peak_bytes'], format_size)}"
            f" of {_or_unknown(limits['memory_bytes'], format_size)}",
            f"{_cpus_used(used)} of {_or_unknown(limits['cpus'], str)}",
        )
    return table


def _cpus_used(used: Mapping[str, Any]) -> str:
    """CPUs that were busy on average."""
    if used["cpu_s"] is None or not used["wall_s"]:
        return "unknown"
    return f"{used['cpu_s'] / used['wall_s']:.2f}"


def _cell(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _or_unknown(value: Any, shown: Any) -> str:
    return "unknown" if value is None else shown(value)
