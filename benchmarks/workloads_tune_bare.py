"""One Tune experiment on the cluster's Ray: the environment's Python reads this from standard input.

    python - MODE REQUEST.json < workloads_tune_bare.py        prints {"wall_s": …, "trials_s": [ … ]}

`pinned`: the trial of the workload `tune` as it is. `plain`: the same one, which holds no CPUs. FIFO, every
trial with the same settings and epochs, so that trials differ in time only by what the machine gave them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Runs one experiment; the request names table, trials, epochs and rows."""
    import ray
    from ray import tune

    from raytools.workloads.tables import find_dataset, load_frame
    from raytools.workloads.tune_trial import make_task, trainable

    mode, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    ray.init(logging_level="ERROR", log_to_driver=False)
    table = Path(request["table"])
    frame = load_frame(request["dataset"], table.read_bytes() if table.is_file() else None)
    label = find_dataset(request["dataset"]).label
    task = make_task(frame, label, rows=request["rows"], seed=0, cpus=1)
    trial = trainable("function", task, save_every=10**6)
    if mode == "plain":
        trial = tune.with_resources(tune.with_parameters(_plain, task=task), {"cpu": 1})
    storage = tempfile.mkdtemp(prefix="tune-bench-")
    began = time.monotonic()
    try:
        results = tune.Tuner(
            trial,
            param_space={"learning_rate": 0.1, "max_leaf_nodes": 31},
            tune_config=tune.TuneConfig(metric="score", mode="max", num_samples=request["trials"]),
            run_config=tune.RunConfig(
                name="bench", storage_path=storage, stop={"epoch": request["epochs"]}, verbose=0
            ),
        ).fit()
        wall_s = time.monotonic() - began
        if results.num_errors:
            raise SystemExit(str(results.errors[0]))
        trials_s = [_work_s(one.metrics_dataframe) for one in results]
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    print(json.dumps({"wall_s": wall_s, "trials_s": trials_s}))


def _work_s(frame: Any) -> float:
    """Seconds from the end of the first epoch to that of the last: not what it took to start a process."""
    return float(frame["time_total_s"].iloc[-1] - frame["time_total_s"].iloc[0])


def _plain(config: dict[str, Any], task: Any) -> None:
    """The workload's trial but for `pinned`: on whatever CPUs Linux gives it."""
    from ray import tune

    from raytools.workloads.tune_trial import BoostedTrees

    model = BoostedTrees(config, task)
    while True:
        tune.report(model.next_epoch())


if __name__ == "__main__":
    main()
