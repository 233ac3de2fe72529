"""AutoGluon inside `raytools smoke` against the same fit bare, and against AutoGluon's defaults.

    .venv/bin/python benchmarks/autogluon.py [--runs 3] [-c cluster.yaml] [-i inventory]

The three take turns, so that a disturbance hits all alike. Bar: the fit in the slot takes at most 1.05 times
the bare one; exits 1 when it is missed. Needs a running cluster whose head is this machine, otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from local_head import add_options, local_head
from measure import SCRIPTS, Row, print_rows

from raytools.workloads.autogluon import AutoGluon, AutoGluonParameters

BAR = 1.05
_BARE = Path(__file__).with_name("autogluon_bare.py")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def main() -> int:
    """Measures in turns and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="rounds (default 3)")
    add_options(parser)
    options = parser.parse_args()
    cluster = local_head(options)
    rows = {
        name: (Row(f"{name}: fit"), Row(f"{name}: everything"))
        for name in ("smoke", "bare, pinned, passive OpenMP", "AutoGluon's defaults")
    }
    smoke, bare, defaults = rows.values()
    with tempfile.TemporaryDirectory() as folder:
        request = _write_request(Path(folder), cluster.node, cluster.project.state_dir / "data")
        for number in range(options.runs):
            print(f"round {number + 1} of {options.runs}", file=sys.stderr, flush=True)
            _add(smoke, _smoke(cluster.arguments))
            _add(bare, _plain("bare", request, cluster.node, {"OMP_WAIT_POLICY": "passive"}))
            _add(defaults, _plain("defaults", request, cluster.node, {}))
    defaults[0].note = "includes the start of the Ray that AutoGluon sizes itself"
    ratio = Row("fit: smoke / bare", bar=BAR, unit="x")
    ratio.values = [statistics.median(smoke[0].values) / statistics.median(bare[0].values)]
    fastest = Row("fit: smoke / bare, fastest of each", unit="x")
    fastest.values = [min(smoke[0].values) / min(bare[0].values)]
    fastest.note = "the medians' ratio says little on a busy machine"
    cost = Row("fit: defaults / smoke", unit="x")
    cost.values = [statistics.median(defaults[0].values) / statistics.median(smoke[0].values)]
    return print_rows("AutoGluon on diamonds", [*smoke, *bare, *defaults, ratio, fastest, cost])


def _write_request(folder: Path, node: dict[str, Any], cache_dir: Path) -> Path:
    """What the bare script needs to do the same: parameters, slot, table."""
    prepared = AutoGluon().prepare(AutoGluonParameters(), cache_dir)
    slot = node["slots"][0]
    path = folder / "request.json"
    path.write_text(
        json.dumps(
            {
                "parameters": asdict(prepared.parameters),
                "cpus": slot["cpus"],
                "memory_bytes": slot["memory_bytes"],
                "table": str(cache_dir / "diamonds.csv"),
            }
        )
    )
    return path


def _smoke(arguments: list[str]) -> dict[str, float]:
    """One `raytools smoke`; its own verdict must be pass."""
    done = subprocess.run(
        [SCRIPTS / "raytools", "smoke", "--workload", "autogluon", "--json", *arguments],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"raytools smoke ended with exit code {done.returncode}:\n{done.stderr}{done.stdout}")
    run = json.loads(done.stdout)["runs"][0]
    return {"fit_s": run["metrics"]["fit_s"], "wall_s": run["record"]["used"]["wall_s"]}


def _plain(mode: str, request: Path, node: dict[str, Any], variables: dict[str, str]) -> dict[str, float]:
    """One run of the bare script with the environment's Python, with no thread or Ray settings of ours."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "OMP_")) and name not in _THREADS
    }
    with _BARE.open() as script:
        done = subprocess.run(
            [node["python"], "-", mode, str(request)],
            stdin=script, capture_output=True, text=True, timeout=900, check=False,
            # elsewhere than in this directory, whose autogluon.py is not the package
            cwd=request.parent,
            env=kept | {"PYTHONPATH": node["toolkit"], "RAY_ADDRESS": "local", **variables},
        )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{mode} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _add(rows: tuple[Row, Row], measured: dict[str, float]) -> None:
    for row, key in zip(rows, ("fit_s", "wall_s"), strict=True):
        row.values.append(measured[key])


if __name__ == "__main__":
    sys.exit(main())
