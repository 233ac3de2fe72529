"""One Tune experiment on the cluster's Ray: the environment's Python reads this from standard input.

    python - MODE REQUEST.json < workloads_tune_bare.py

Prints {"wall_s": …, "trials": [{"work_s": …, "waited_s": …}, …]}.

`pinned`: the model of the workload `tune` on CPUs that the trial holds. `plain`: the same, and it holds none.
`alone`: the same work, one after the other, without Ray. FIFO, every trial with the same settings and epochs,
so that trials differ in time only by what the machine gave them. With `"greedy": true` every other trial
keeps three more processes at work than it has asked for, and only the others are told.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETTINGS = {"learning_rate": 0.1, "max_leaf_nodes": 31}
MORE_THAN_ASKED_FOR = 3  # processes
_COMPUTES = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"


def main() -> None:
    """Runs one experiment; the request names table, trials, epochs and rows."""
    from raytools.workloads.tables import find_dataset, load_frame
    from raytools.workloads.tune_trial import make_task

    mode, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    table = Path(request["table"])
    frame = load_frame(request["dataset"], table.read_bytes() if table.is_file() else None)
    label = find_dataset(request["dataset"]).label
    task = make_task(frame, label, rows=request["rows"], seed=0, cpus=1)
    began = time.monotonic()
    if mode == "alone":
        trials = [_alone(task, request["epochs"]) for _ in range(request["trials"])]
        print(json.dumps({"wall_s": time.monotonic() - began, "trials": trials}))
    else:
        print(json.dumps(_tuned(mode, task, request)))


def _tuned(mode: str, task: Any, request: dict[str, Any]) -> dict[str, Any]:
    import ray
    from ray import tune

    ray.init(logging_level="ERROR", log_to_driver=False)
    trial = tune.with_parameters(_trial, task=task, pins=mode == "pinned")
    kinds = [False, True] if request["greedy"] else [False]
    storage = tempfile.mkdtemp(prefix="tune-bench-")
    began = time.monotonic()
    try:
        results = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={**SETTINGS, "greedy": tune.grid_search(kinds)},
            tune_config=tune.TuneConfig(metric="score", mode="max", num_samples=request["trials"]),
            run_config=tune.RunConfig(
                name="bench", storage_path=storage, stop={"epoch": request["epochs"]}, verbose=0
            ),
        ).fit()
        wall_s = time.monotonic() - began
        if results.num_errors:
            raise SystemExit(str(results.errors[0]))
        told = [one.metrics for one in results if not one.config["greedy"]]
        trials = [{name: one[name] for name in ("work_s", "waited_s")} for one in told]
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    return {"wall_s": wall_s, "trials": trials}


def _trial(config: dict[str, Any], task: Any, pins: bool) -> None:
    """What the workload's trial does, and measures itself."""
    from ray import tune

    import raytools
    from raytools.workloads.tune_trial import BoostedTrees

    settings = {name: value for name, value in config.items() if name in SETTINGS}
    with raytools.pinned(1) if pins else contextlib.nullcontext():
        if config["greedy"]:
            for _ in range(MORE_THAN_ASKED_FOR):
                subprocess.Popen([sys.executable, "-c", _COMPUTES])  # each ends with this process
        for told in _epochs(BoostedTrees(settings, task)):
            tune.report(told)


def _alone(task: Any, epochs: int) -> dict[str, Any]:
    from raytools.workloads.tune_trial import BoostedTrees

    told = next(told for told in _epochs(BoostedTrees(SETTINGS, task)) if told["epoch"] == epochs)
    return {name: told[name] for name in ("work_s", "waited_s")}


def _epochs(model: Any) -> Iterator[dict[str, Any]]:
    """Each with the seconds since the end of the first one: not what it takes to start a process."""
    first = None
    while True:
        told = model.next_epoch()
        now_s, waiting_s = time.monotonic(), _waiting_s()
        first = first or (now_s, waiting_s)
        yield {**told, "work_s": now_s - first[0], "waited_s": waiting_s - first[1]}


def _waiting_s() -> float:
    """Seconds for which this thread could have run and had no CPU (Linux: scheduler/sched-stats)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


if __name__ == "__main__":
    main()
