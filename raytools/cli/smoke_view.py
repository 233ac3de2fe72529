"""How `raytools smoke` looks: progress on standard error while it runs, tables and the verdict after it."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from raytools.units import format_duration, format_size
from raytools.workloads.base import entry_of, run_name

_PLAIN_EVERY_S = 5.0  # between two details of one run where no terminal can be redrawn
_LOG_LINES = 40
_SHOWN_ROWS = 60  # of a metric that is a table


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
        self._kept = ""
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
        if self._kept:
            self._console.print(self._kept, markup=False, highlight=False, soft_wrap=True)
        failed = [run for run in self._runs.values() if run.state not in ("ok", "starting", "running")]
        for line in self._traces or (list(self._log) if failed else []):
            self._console.print(Text(line, style="dim"))

    def take(self, event: Mapping[str, Any]) -> None:
        """Shows one event of the runtime."""
        kind, name = event["event"], event.get("run")
        if kind == "nodes":
            self._runs = {node["run"]: _RunState(node["run"]) for node in event["nodes"]}
            self._say(f"{self._workload}: one run on each of {', '.join(self._runs)}")
        elif kind == "entries":
            self._workload = event["workload"]
            self._runs = {entry: _RunState(entry) for entry in event["entries"]}
            self._say(f"{self._workload}: {len(self._runs)} entries: {', '.join(self._runs)}")
        elif kind == "again":
            self._runs[event["run"]] = _RunState(event["run"])
            self._say(f"{event['lost']} was lost; it is done once more: {event['run']}")
        elif kind == "waiting":
            for waiting in event["runs"]:
                self._change(
                    waiting, "waiting", "for Ray to start a process, or for the slot; see: raytools slots"
                )
        elif kind == "log":
            self._log.append(event["line"])
        elif kind == "trace":
            self._traces.append(event["text"])
        elif kind == "kept":
            had = f"{event['finished']} of {event['asked']} {event['what']} had finished"
            self._kept = f"{had}: raytools results show {event['id']}"
            if event["what"] == "entries":
                self._kept += f"\nThe rest: raytools smoke --resume {event['id']}"
        elif kind == "not_kept":
            self._kept = event["why"]
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


def print_result(document: Mapping[str, Any], workload: Named) -> None:
    """Tables of metrics, by node and between nodes, and the verdict with its reasons, on standard output."""
    console = output()
    entries = [run for run in document["runs"] if entry_of(run["record"])]
    # entries are different work; what slots did is alike, and the other nodes' tables are in the results
    for run in entries or document["runs"][:1]:
        for name in workload.shown_tables:
            if rows := run["metrics"].get(name):
                where = run_name(run["record"])
                console.print(_rows_table(f"{where}: {name}" if entries else f"{name} on {where}", rows))
    if entries:
        _print_entries(console, entries, workload.shown_metrics)
    else:
        _print_nodes(console, document["runs"], workload.shown_metrics)
    _print_equality(console, document.get("equality") or {})
    if document["spread"]["cv"] is not None:
        console.print(f"Spread of {document['spread']['metric']}: {document['spread']['cv']:.1%}")
    passed = document["verdict"] == "pass"
    console.print(Text(document["verdict"].upper(), style="bold green" if passed else "bold red"))
    for reason in document["reasons"]:
        console.print(f"  - {reason}", soft_wrap=True)
    if document.get("directory"):
        console.print(f"Records: {document['directory']}", soft_wrap=True)


def output() -> Console:
    """Standard output: as wide as the terminal, or wide enough for a table in a file."""
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False)


def _print_equality(console: Console, equality: Mapping[str, Any]) -> None:
    """The nodes beside each other, where there are several or a baseline, and what was left out."""
    nodes, baseline = equality.get("nodes") or {}, equality.get("baseline")
    left_out = equality.get("left_out") or []
    if len(nodes) > 1 or (nodes and baseline):
        heads, rows = _equality_cells(equality, nodes, baseline)
        _print_cells(console, "medians by node, and how much slower than others", heads, rows)
    several = len({*nodes, *(run["node"] for run in left_out)}) > 1
    if several and left_out and (nodes or any(run["why"] == "tainted" for run in left_out)):
        named = ", ".join(f"{run['run']} ({run['why']})" for run in left_out)
        console.print(Text(f"Not compared: {named}"))


def _equality_cells(
    equality: Mapping[str, Any], nodes: Mapping[str, Any], baseline: Mapping[str, Any] | None
) -> tuple[list[str], list[list[str]]]:
    heads = ["node"]
    for metric in equality["metrics"]:
        heads += [metric, "than peers", *(["than baseline"] if baseline else [])]
    models = {node["cpu_model"] for node in nodes.values()}
    rows = []
    for name, node in nodes.items():
        cells = [name]
        for metric, figure in node["metrics"].items():
            cells += [cell(figure["median"]), _signed(figure["slower"])]
            if baseline:
                cells.append(_signed((baseline["nodes"].get(name) or {}).get(metric, {}).get("slower")))
        rows.append([*cells, *([str(node["cpu_model"])] if len(models) > 1 else [])])
    return [*heads, *(["CPU model"] if len(models) > 1 else [])], rows


def _print_cells(console: Console, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One line per row where that fits; else one column per row, in as many tables as fit.

    A table that is cut to the width of a terminal shows `0.9…` for a score.
    """
    lines = _lines(title, heads, rows)
    if not rows or _fits(console, lines):
        console.print(lines)
        return
    for size in range(len(rows), 0, -1):
        turned = [
            _lines(title, *_turned(heads, rows[first : first + size])) for first in range(0, len(rows), size)
        ]
        if size == 1 or all(_fits(console, table) for table in turned):
            for table in turned:
                console.print(table)
            return


def _turned(
    heads: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    first, *others = zip(heads, *rows, strict=True)
    return first, others


def _lines(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _fits(console: Console, table: Table) -> bool:
    unbounded = console.options.update(width=10_000)
    return Measurement.get(console, unbounded, table).maximum <= console.width


def _signed(share: float | None) -> str:
    """How much slower; what is faster has a minus."""
    return "-" if share is None else f"{100 * share:+.1f} %"


def _rows_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column, value in rows[0].items():
        justify: JustifyMethod = "left" if isinstance(value, str) else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows[:_SHOWN_ROWS]:
        table.add_row(*(Text(cell(row.get(column), column)) for column in rows[0]))
    if len(rows) > _SHOWN_ROWS:
        table.caption = f"and {len(rows) - _SHOWN_ROWS} more, which --json has"
    return table


def _print_nodes(console: Console, runs: list[dict[str, Any]], shown_metrics: tuple[str, ...]) -> None:
    heads = ("node", "outcome", *shown_metrics, "wall", "memory peak", "CPUs used")
    rows = []
    for run in runs:
        record, metrics = run["record"], run["metrics"]
        used, limits = record["used"], record["limits"]
        memory = _or_unknown(used["memory_peak_bytes"], format_size)
        rows.append(
            [
                run_name(record),
                record["outcome"],
                *(cell(metrics.get(name), name) for name in shown_metrics),
                _or_unknown(used["wall_s"], format_duration),
                f"{memory} of {_or_unknown(limits['memory_bytes'], format_size)}",
                f"{_cpus_used(used)} of {_or_unknown(limits['cpus'], str)}",
            ]
        )
    _print_cells(console, "by node", heads, rows)


def _print_entries(console: Console, runs: list[dict[str, Any]], shown_metrics: tuple[str, ...]) -> None:
    rows = [
        [
            run_name(run["record"]),
            run["record"]["outcome"],
            *(cell(run["metrics"].get(name), name) for name in shown_metrics),
            _or_unknown(run["record"]["used"]["wall_s"], format_duration),
        ]
        for run in runs
    ]
    _print_cells(console, "by entry", ("entry", "outcome", *shown_metrics, "wall"), rows)


def _cpus_used(used: Mapping[str, Any]) -> str:
    """CPUs that were busy on average."""
    if used["cpu_s"] is None or not used["wall_s"]:
        return "unknown"
    return f"{used['cpu_s'] / used['wall_s']:.2f}"


def cell(value: Any, name: str = "") -> str:
    """A value in a table; one whose name says that it is bytes, as people write them."""
    if value is None:
        return "unknown"
    if isinstance(value, int | float) and name.endswith(("_bytes", "bytes_per_s")):
        return format_size(value) + ("/s" if name.endswith("_per_s") else "")
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _or_unknown(value: Any, shown: Any) -> str:
    return "unknown" if value is None else shown(value)
