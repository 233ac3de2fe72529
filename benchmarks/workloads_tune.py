"""Tune with pinned trials, as in the workload `tune`, against Tune with the same trials that hold no CPUs.

    .venv/bin/python benchmarks/workloads_tune.py [--runs 4] [--trials 8] [-c cluster.yaml] [-i inventory]

Each round is pinned, plain, plain, pinned, or the other way round: who comes first finds workers idle, which
in rounds of two made a seventh of the time. Bars: the trials of a round take at most 1.05 times the plain
ones' wall time, and the spread (coefficient of variation) of trial times is no larger; exits 1 if one is
missed. Needs a running cluster whose head is this machine, otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import CHECKOUT, Row, print_rows

from raytools.inventory import load_inventory
from raytools.node.driver import variables
from raytools.project import find_project
from raytools.workloads.tables import fetch

BAR_WALL, BAR_SPREAD = 1.05, 1.0
_EXPERIMENT = Path(__file__).with_name("workloads_tune_bare.py")


def main() -> int:
    """Measures in turns and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4, help="rounds of four experiments (default 4)")
    parser.add_argument("--trials", type=int, default=8, help="of each experiment (default 8)")
    parser.add_argument("--epochs", type=int, default=20, help="of each trial (default 20)")
    parser.add_argument("--rows", type=int, default=20_000, help="of the table (default 20,000)")
    parser.add_argument("--dataset", default="diamonds", help="diamonds (default) or breast_cancer")
    parser.add_argument("-c", "--config", help="cluster.yaml to use")
    parser.add_argument("-i", "--inventory", help="inventory to use")
    options = parser.parse_args()
    project = find_project(options.config or CHECKOUT / "cluster.yaml", options.inventory)
    head = load_inventory(project.inventory_path).head
    if head.connection != "local":
        sys.exit(f"the head is {head.name}: this benchmark wants a cluster whose head is this machine")
    node = json.loads(Path(head.root, "node.json").read_text())
    walls = {mode: Row(f"{mode}: wall") for mode in ("pinned", "plain")}
    spreads = {mode: Row(f"{mode}: spread of trial times", unit="%") for mode in walls}
    wall, spread = (
        Row("wall: pinned / plain", bar=BAR_WALL, unit="x"),
        Row("spread: pinned / plain", unit="x"),
    )
    spread.bar = BAR_SPREAD
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder, "request.json")
        table = Path(folder, "table.csv")
        if content := fetch(options.dataset, project.state_dir / "data"):
            table.write_bytes(content)
        asked = {name: getattr(options, name) for name in ("dataset", "trials", "epochs", "rows")}
        request.write_text(json.dumps({**asked, "table": str(table)}))
        for number in range(options.runs):
            first, second = list(walls)[:: 1 if number % 2 else -1]
            for mode in (first, second, second, first):
                measured = _experiment(mode, request, node)
                walls[mode].values.append(measured["wall_s"])
                spreads[mode].values.append(100 * _cv(measured["trials_s"]))
            wall.values.append(sum(walls["pinned"].values[-2:]) / sum(walls["plain"].values[-2:]))
            spread.values.append(sum(spreads["pinned"].values[-2:]) / sum(spreads["plain"].values[-2:]))
            seen = f"wall {wall.values[-1]:.3f} x, spread {spread.values[-1]:.3f} x"
            print(f"round {number + 1} of {options.runs}: {seen}", file=sys.stderr, flush=True)
    return print_rows("Tune, same trials", [*walls.values(), *spreads.values(), wall, spread])


def _cv(values: list[float]) -> float:
    return statistics.stdev(values) / statistics.mean(values)


def _experiment(mode: str, request: Path, node: dict[str, Any]) -> dict[str, Any]:
    """One experiment as a driver of the cluster's Ray."""
    with _EXPERIMENT.open() as script:
        done = subprocess.run(
            [node["python"], "-", mode, str(request)],
            stdin=script, capture_output=True, text=True, timeout=900, check=False, cwd=request.parent,
            env={**os.environ, **variables(node, node["environment"]["prefix"])},
        )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{mode} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
