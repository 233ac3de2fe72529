"""Settings that a workload of scope `cluster` cannot have are refused on the controller."""

from __future__ import annotations

from pathlib import Path

import pytest

from raytools.cli import main


@pytest.mark.parametrize(
    ("workload", "setting", "message"),
    [
        ("tune", "searches=optuna,pbt", "pbt does not go with fifo, asha"),
        ("tune", "api=actor", "there is no api 'actor', expected one of class, function"),
        ("tune", "trials=0", "trials is 0, expected at least 1"),
        ("tune", "epochs=0", "epochs is 0"),
        ("tune", "cpus=0", "cpus is 0"),
        ("tune", "rows=5", "rows is 5, expected at least 100"),
        ("tune", "saving=nan", "saving is nan"),
        ("tune", "dataset=rubies", "there is no dataset 'rubies'"),
        ("tune", "csv=own.csv", "workload tune has no parameter 'csv'"),
        ("many-models", "methods=dask", "no method 'dask', expected some of tasks, pool, data, tune, or all"),
        ("many-models", "methods=", "no method was given"),
        ("many-models", "models=0", "models is 0, expected at least 1"),
        ("many-models", "models=many", "found 'many', expected a number"),
        ("many-models", "cpus=0", "cpus is 0"),
        ("many-models", "seed=-1", "seed is -1"),
        ("many-models", "fit=forest", "there is no fit 'forest', expected one of boosting, ridge, ols"),
        ("many-models", "efficiency=nan", "efficiency is nan"),
        ("many-models", "efficiency=80", "efficiency is 80.0, expected a share, at most 1"),
        ("transfer", "size=much", "size: found 'much', expected a size"),
        ("transfer", "size=10kB", "size is 10kB, expected at least 1MB"),
        ("transfer", "rounds=0", "rounds is 0, expected at least 1"),
        ("transfer", "peers=0", "peers is 0, expected at least 1"),
        ("transfer", "patience=0s", "patience is 0.0, expected a duration above 0"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    workload: str,
    setting: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["smoke", "--workload", workload, "--set", setting]) == 2
    out, said = capsys.readouterr()
    assert message in " ".join(said.split())
    assert out == ""
