"""`raytools smoke` before anything starts: help, and mistakes that end with exit 2 and a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from raytools.cli import main

TABLE = "x,y\n" + "1,2\n" * 30


def test_help_names_the_workloads_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "--help"]) == 0
    said = capsys.readouterr().out
    assert "What to run: autogluon" in said
    options = (
        "--workload --dataset --csv --parquet --label --preset --time-limit --models --folds --enforce "
        "--json --config"
    )
    for option in options.split():
        assert option in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no workload was named, expected --workload with one of autogluon"),
        (["--workload", "nope"], "no workload 'nope', expected one of autogluon"),
        (["--workload", "autogluon", "--models", "GBM,FOO"], "no model family 'FOO'"),
        (["--workload", "autogluon", "--dataset", "rubies"], "no dataset 'rubies', expected one of diamonds"),
        (["--workload", "autogluon", "--time-limit", "soon"], "found 'soon', expected a duration"),
        (["--workload", "autogluon", "--set", "trees"], "--set trees, expected KEY=VALUE"),
        (["--workload", "autogluon", "--set", "leaves=3"], "no parameter 'leaves'"),
        (["--workload", "autogluon", "--csv", "gone.csv", "--label", "y"], "gone.csv does not exist"),
        (["--workload", "autogluon", "--csv", "own.csv"], "without --label"),
        (["--workload", "autogluon", "--csv", "own.csv", "--label", "z"], "no column 'z', expected one of"),
        (["--workload", "autogluon", "--csv", "empty.csv", "--label", "y"], "empty.csv is empty"),
        (["--workload", "autogluon", "--parquet", "own.csv", "--label", "y"], "is not a Parquet file"),
        (["--workload", "autogluon", "--parquet", "own.csv", "--csv", "own.csv"], "were both given"),
        (["--workload", "autogluon", "--folds", "0", "--set", "stack_levels=1"], "at least 2 folds"),
        (["--workload", "autogluon", "--enforce", "perhaps"], "'perhaps' is not one of"),
        (["--workload", "autogluon", "-c", "gone.yaml"], "gone.yaml:1:"),
        (["--workload", "autogluon", "-i", "gone.yml"], "gone.yml:1:"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_before_anything_starts(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.csv").write_text(TABLE)
    Path("empty.csv").touch()
    Path("cluster.yaml").write_text("cluster: demo\n")
    assert main(["smoke", *arguments, "--json"]) == 2
    out, said = capsys.readouterr()
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert out == ""
