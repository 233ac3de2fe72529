"""AutoGluon without raytools, for comparison: the environment's Python reads this from standard input.

    python - MODE REQUEST.json < autogluon_bare.py        prints {"fit_s": …, "wall_s": …} as its last line

`bare`: the workload's own code, so the same private Ray and the same fit, pinned as taskset would, without
limits. `defaults`: what a user gets who just calls AutoGluon: it starts Ray itself, from the whole machine.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Runs one mode; the request names parameters, slot and table."""
    began = time.monotonic()
    mode, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    scratch = Path(tempfile.mkdtemp(prefix="rb"))
    try:
        fit_s = {"bare": bare, "defaults": defaults}[mode](request, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps({"fit_s": fit_s, "wall_s": time.monotonic() - began}))


def bare(request: dict, scratch: Path) -> float:
    """The workload's code in a plain process on the slot's CPUs."""
    from raytools.workloads.autogluon import AutoGluonParameters
    from raytools.workloads.autogluon_fit import train_and_score
    from raytools.workloads.base import SlotContext

    os.sched_setaffinity(0, request["cpus"])
    context = SlotContext(
        cpus=len(request["cpus"]),
        memory_bytes=request["memory_bytes"],
        scratch_dir=scratch,
        inputs={"table": Path(request["table"]).read_bytes()},
        report=lambda _line: None,
        detail=lambda _line: None,
    )
    return train_and_score(AutoGluonParameters(**request["parameters"]), context)["fit_s"]


def defaults(request: dict, scratch: Path) -> float:
    """The same rows, families and folds; everything else as AutoGluon chooses."""
    import pandas
    from autogluon.tabular import TabularPredictor
    from sklearn.model_selection import train_test_split

    parameters = request["parameters"]
    frame = pandas.read_csv(request["table"])
    train, _test = train_test_split(frame, test_size=0.2, random_state=parameters["seed"])
    predictor = TabularPredictor(
        parameters["label"], eval_metric="r2", path=str(scratch / "models"), verbosity=0
    )
    forests = {"n_estimators": parameters["trees"]}
    began = time.monotonic()
    predictor.fit(
        train,
        hyperparameters={"GBM": {}, "RF": forests, "XT": forests},
        num_bag_folds=2,
        num_bag_sets=1,
        num_stack_levels=0,
        time_limit=parameters["time_limit"],
    )
    return time.monotonic() - began


if __name__ == "__main__":
    main()
