"""The workload many-models (method tasks) against plain Ray in batches, and against one task per model.

    .venv/bin/python benchmarks/workloads_many_models.py [--models 20000] [--runs 3] [-c cluster.yaml]
                                                         [-i inventory]

All take turns on the same cluster, with the same fits. Bars: ours has at least 0.95 of the models per
second of plain Ray with the best of its batch sizes, and at least 3 times those of one task per model;
exits 1 when one is missed. Needs a running cluster whose head is this machine, otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from local_head import add_options, local_head
from measure import SCRIPTS, Row, print_rows

LEAST_OF_PLAIN, LEAST_OF_SINGLE = 0.95, 3.0
BATCHES = (50, 250, 1000)  # of plain Ray; the best one counts
MOST_SINGLE = 5_000  # models of one task each: the rate is the same for more, and they take long
_BARE = Path(__file__).with_name("workloads_many_models_bare.py")


def main() -> int:
    """Measures in turns and prints the table."""
    options = _options()
    cluster = local_head(options)
    ours = Row("raytools, method tasks", unit="models/s")
    plain = {size: Row(f"plain Ray, batches of {size}", unit="models/s") for size in BATCHES}
    single = Row("plain Ray, one task per model", unit="models/s")
    peak = Row("raytools: most memory of the driver", unit="MiB")
    for number in range(options.runs):
        print(f"round {number + 1} of {options.runs}", file=sys.stderr, flush=True)
        metrics = _smoke(options, cluster.arguments)
        ours.values.append(metrics["models_per_s"])
        peak.values.append(metrics["driver_peak_bytes"] / 2**20)
        for size, row in plain.items():
            row.values.append(_plain("batches", options, options.models, size, cluster.node))
        single.values.append(_plain("single", options, min(options.models, MOST_SINGLE), 250, cluster.node))
    best = max(plain.values(), key=lambda row: row.median or 0.0)
    slower = _ratio("plain Ray's best / raytools", best, ours, 1 / LEAST_OF_PLAIN)
    faster = _ratio("one task per model / raytools", single, ours, 1 / LEAST_OF_SINGLE)
    title = f"{options.models} models, {options.fit}"
    return print_rows(title, [ours, *plain.values(), single, peak, slower, faster])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=20_000, help="how many (default 20000)")
    parser.add_argument(
        "--fit", default="boosting", help="boosting (default), some ms, ridge, one, or ols, a tenth"
    )
    parser.add_argument("--runs", type=int, default=3, help="rounds (default 3)")
    add_options(parser)
    return parser.parse_args()


def _ratio(name: str, over: Row, under: Row, bar: float) -> Row:
    """Of models per second, round by round; less is better for what stands below."""
    values = [a / b for a, b in zip(over.values, under.values, strict=True)]
    return Row(name, values=values, bar=round(bar, 3), unit="x")


def _smoke(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """One `raytools smoke`; its own verdict must be pass."""
    done = subprocess.run(
        [SCRIPTS / "raytools", "smoke", "--workload", "many-models", "--set", "methods=tasks",
         "--set", f"models={options.models}", "--set", f"fit={options.fit}", "--json", *arguments],
        stdout=subprocess.PIPE, text=True, timeout=7200, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"raytools smoke ended with exit code {done.returncode}:\n{done.stdout}")
    metrics: dict[str, Any] = json.loads(done.stdout)["runs"][0]["metrics"]
    return metrics


def _plain(mode: str, options: argparse.Namespace, models: int, batch: int, node: dict[str, Any]) -> float:
    """Models per second of the bare script, as a person starts a driver on a node."""
    driver = [node["python"], "-m", "raytools.node", "driver", "--root", node["root"]]
    with tempfile.TemporaryDirectory() as folder, _BARE.open() as script:
        request = Path(folder, "request.json")
        tables = str(Path(folder, "tables"))
        request.write_text(
            json.dumps({"models": models, "batch": batch, "tables": tables, "fit": options.fit})
        )
        done = subprocess.run(
            [*driver, node["python"], "-", mode, str(request)],
            stdin=script, capture_output=True, text=True, timeout=7200, check=False, cwd=folder,
            env=os.environ | {"PYTHONPATH": node["toolkit"]},
        )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"plain Ray ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return float(found["models"]) / float(found["wall_s"])


if __name__ == "__main__":
    sys.exit(main())
