"""Many models by plain Ray, for comparison: a driver that reads this from standard input.

    python - batches|single REQUEST.json < workloads_many_models_bare.py

It prints {"models": …, "wall_s": …} as its last line. The same fits on the same tables as the workload's,
with one thread each; nothing is pinned, and results come back to the driver. `batches`: one task for each
file of so many models. `single`: one task for each model.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ray

from raytools.workloads.many_models_data import Batch, batches, make_table, read_keys, table_path
from raytools.workloads.many_models_fit import Fit, fit_key, limit_threads


@ray.remote(num_cpus=1)
def write(directory: str, batch: Batch) -> None:
    """The table of a batch, before the clock runs."""
    make_table(directory, batch, 0)


@ray.remote(num_cpus=1)
def fit_file(path: str, batch: Batch, fit: Fit) -> list:
    """All models of a file."""
    limit_threads(fit)
    return [fit_key(key, x, y, fit).score for key, x, y in read_keys(path, batch)]


@ray.remote(num_cpus=1)
def fit_one(fit: Fit, key: int, x: object, y: object) -> float:
    """One model, whose rows come along."""
    limit_threads(fit)
    return fit_key(key, x, y, fit).score


def main() -> None:
    """Writes tables, then fits: everything is handed out at once."""
    mode, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    ray.init(log_to_driver=False, logging_level="ERROR")
    fit = Fit(request["fit"], 0, 1)
    directory = Path(request["tables"])
    directory.mkdir(parents=True, exist_ok=True)
    wanted = batches(request["models"], request["batch"])
    ray.get([write.remote(str(directory), batch) for batch in wanted])
    paths = {batch: str(table_path(directory, batch.number)) for batch in wanted}
    began = time.monotonic()
    if mode == "batches":
        parts = ray.get([fit_file.remote(path, batch, fit) for batch, path in paths.items()])
        scores = [score for part in parts for score in part]
    else:
        scores = ray.get(
            [fit_one.remote(fit, *found) for batch, path in paths.items() for found in read_keys(path, batch)]
        )
    print(json.dumps({"models": len(scores), "wall_s": time.monotonic() - began}))


if __name__ == "__main__":
    main()
