"""A second look at what runs have left, on a real Ray: two slots, a storage that they share, a Parquet file.

One machine has no other node: the other slot stands for it, with the same way from run to run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.parquet_file import PARQUET

from .limited_runs import why_no_limits
from .smoke_cluster import started_cluster

_why_not = why_no_limits()
pytestmark = [
    pytest.mark.long,  # in the lab every node looks at another's clone
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(_why_not), reason=_why_not),
]


def test_clones_are_loaded_by_another_run_and_removed_with_the_smoke() -> None:
    with started_cluster(per_node=2, shared=True) as cluster:
        table = cluster.directory / "own.parquet"
        table.write_bytes(PARQUET)
        own = ("--parquet", str(table), "--label", "label")
        done = cluster.smoke(*own, "--models", "RF", "--folds", "0", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        document = json.loads(done.stdout)
        assert [run["record"]["host"]["slot"] for run in document["runs"]] == [0, 1]
        for run in document["runs"]:
            metrics = run["metrics"]
            assert (metrics["dataset"], metrics["rows"]) == ("own.parquet", 30)
            assert metrics["reload_same"] is metrics["clone_same"] is metrics["clone_elsewhere_same"] is True
            assert metrics["clone_loaded_on"] == "localhost"
            assert metrics["clone_elsewhere_model"] == metrics["best_model"]
        assert done.stderr.count("running: loading a clone from another run") == 2

        directory = Path(document["directory"])
        assert directory.parent == cluster.directory / "shared" / "results" / "autogluon"
        left = {path.name for path in directory.iterdir()}
        assert left == {"smoke.json", "run-0.json", "run-1.json", "again-0.json", "again-1.json"}
        looks = [json.loads((directory / f"again-{number}.json").read_text()) for number in (0, 1)]
        assert all(look["record"]["outcome"] == "ok" for look in looks)
        assert all(look["metrics"]["clone_elsewhere_same"] for look in looks)
        kept = json.loads(cluster.raytools("results", "show", "latest", "--json").stdout)
        assert kept["runs"] == document["runs"]
