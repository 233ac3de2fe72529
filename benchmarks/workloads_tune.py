"""Tune with pinned trials, as in the workload `tune`, against Tune with the same trials that hold no CPUs.

    .venv/bin/python benchmarks/workloads_tune.py [--runs 4] [--trials 8] [--greedy] [-c cluster.yaml]

Each round is pinned, plain, plain, pinned, or the other way round: who comes first finds workers idle, which
in rounds of two made a seventh of the time. Bars: the trials of a round take at most 1.05 times the plain
ones' wall time, and the spread (coefficient of variation) of trial times is no larger; exits 1 if one is
missed. A trial works for some seconds: with 20 epochs it would be half of one, beside three in which its
process starts and that of another ends, and its time would tell of these. Two rows help to read the spread:
that of the same work `alone`, one after the other in one process while the cluster idles; and how long
trials waited for a CPU, the part of a trial that others take.

With --greedy every other trial keeps three more processes at work than it has asked for, and the times are
the others': what a trial gets when its neighbour takes what it can. The wall time has no bar then: pinned,
the greedy ones get no more than they asked for and take longer. It wants a cluster where two trials fit at
a time.

Needs a running cluster whose head is this machine, otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local_head import add_options, local_head
from measure import Row, print_rows

from raytools.node.driver import variables
from raytools.workloads.tables import fetch

BAR_WALL, BAR_SPREAD = 1.05, 1.0
_MEASURES = (
    ("wall", "s"),
    ("a trial's work", "s"),
    ("spread of trial times", "%"),
    ("a trial waits for a CPU", "ms"),
)
_EXPERIMENT = Path(__file__).with_name("workloads_tune_bare.py")


def main() -> int:
    """Measures in turns and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4, help="rounds of four experiments (default 4)")
    parser.add_argument("--trials", type=int, default=8, help="of each experiment (default 8)")
    parser.add_argument("--epochs", type=int, default=60, help="of each trial (default 60)")
    parser.add_argument("--rows", type=int, default=20_000, help="of the table (default 20,000)")
    parser.add_argument("--dataset", default="diamonds", help="diamonds (default) or breast_cancer")
    parser.add_argument("--greedy", action="store_true", help="every other trial takes more than it asks for")
    add_options(parser)
    options = parser.parse_args()
    cluster = local_head(options)
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder, "request.json")
        table = Path(folder, "table.csv")
        if content := fetch(options.dataset, cluster.project.state_dir / "data"):
            table.write_bytes(content)
        asked = {name: getattr(options, name) for name in ("dataset", "trials", "epochs", "rows", "greedy")}
        request.write_text(json.dumps({**asked, "table": str(table)}))
        rows = _measured(options.runs, options.greedy, lambda mode: _experiment(mode, request, cluster.node))
    return print_rows("Tune, beside greedy trials" if options.greedy else "Tune, same trials", rows)


def _measured(runs: int, greedy: bool, experiment: Callable[[str], dict[str, Any]]) -> list[Row]:
    """Rounds of pinned and plain in turns, and what they compare to."""
    walls, times, spreads, waits = (
        {mode: Row(f"{mode}: {what}", unit=unit) for mode in ("pinned", "plain")} for what, unit in _MEASURES
    )
    alone = Row("alone: spread of trial times", unit="%")
    wall = Row("wall: pinned / plain", bar=None if greedy else BAR_WALL, unit="x")
    spread = Row("spread: pinned / plain", bar=BAR_SPREAD, unit="x")
    for number in range(runs):
        first, second = list(walls)[:: 1 if number % 2 else -1]
        for mode in (first, second, second, first):
            measured = experiment(mode)
            walls[mode].values.append(measured["wall_s"])
            worked_s = [trial["work_s"] for trial in measured["trials"]]
            times[mode].values.append(statistics.median(worked_s))
            spreads[mode].values.append(100 * _cv(worked_s))
            waited_s = [trial["waited_s"] for trial in measured["trials"]]
            waits[mode].values.append(1000 * statistics.median(waited_s))
        if not greedy:
            alone.values.append(100 * _cv([trial["work_s"] for trial in experiment("alone")["trials"]]))
        wall.values.append(sum(walls["pinned"].values[-2:]) / sum(walls["plain"].values[-2:]))
        spread.values.append(sum(spreads["pinned"].values[-2:]) / sum(spreads["plain"].values[-2:]))
        seen = f"wall {wall.values[-1]:.3f} x, spread {spread.values[-1]:.3f} x"
        print(f"round {number + 1} of {runs}: {seen}", file=sys.stderr, flush=True)
    by_mode = [row for rows in (walls, times, spreads, waits) for row in rows.values()]
    return [*by_mode, *([] if greedy else [alone]), wall, spread]


def _cv(values: list[float]) -> float:
    return statistics.stdev(values) / statistics.mean(values)


def _experiment(mode: str, request: Path, node: dict[str, Any]) -> dict[str, Any]:
    """One experiment as a driver of the cluster's Ray, or alone with what a driver has of the environment."""
    with _EXPERIMENT.open() as script:
        done = subprocess.run(
            [node["python"], "-", mode, str(request)],
            stdin=script, capture_output=True, text=True, timeout=900, check=False, cwd=request.parent,
            env={**os.environ, **variables(node, node["environment"]["prefix"]), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{mode} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
