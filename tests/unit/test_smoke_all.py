"""`raytools smoke --workload all`: each workload a result of its own, one table. Only Ray is played.

This process and the head know the same workloads: those of another package, and none of our own.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from raytools.cli import main
from raytools.smoke_all import Done, document_of, verdict_of
from raytools.workloads import base
from tests.unit.test_workload_cluster import Cluster

MORE = """
import three

class Twin(three.Three):
    name = "twin"

class Sad(three.Three):
    name = "sad"
    def judge(self, parameters, runs):
        return [three.Reason("too sad")]

class Lacks(three.Three):
    name = "lacks"
    def check_on_head(self, parameters):
        raise three.RaytoolsError("the package spam is missing", fix="Add it")

class Odd(three.Three):
    name = "odd"
    def prepare(self, parameters, cache_dir):
        raise KeyError("spam")

class Interrupted(three.Three):
    name = "stopped"
    def prepare(self, parameters, cache_dir):
        raise KeyboardInterrupt
"""


class Smoke:
    """`raytools smoke` in this process, where the workloads are those that a test names."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.cluster = Cluster(directory)
        self._capsys = capsys
        self._site = directory / "site"
        (self._site / "more.py").write_text(MORE)
        monkeypatch.syspath_prepend(str(self._site))
        importlib.import_module(
            "raytools.cli.smoke"
        )  # its help names the workloads, from when it was imported
        monkeypatch.setattr(base, "BUILT_IN", {})
        monkeypatch.setenv("PYTHONPATH", str(self._site))
        monkeypatch.chdir(directory)

    def registry(self, **places: str) -> None:
        lines = "".join(f"{name.replace('_', '-')} = {place}\n" for name, place in places.items())
        points = self._site / "three-1.dist-info" / "entry_points.txt"
        points.write_text(f"[raytools.workloads]\n{lines}")

    def all(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main(["smoke", "--workload", "all", *arguments])
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def kept(self) -> list[str]:
        results = self.cluster.directory / ".raytools" / "results"
        return sorted(path.parent.parent.name for path in results.glob("*/*/smoke.json"))


@pytest.fixture
def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Smoke:
    return Smoke(tmp_path, monkeypatch, capsys)


def test_all_that_pass_are_kept_one_by_one_and_stand_in_one_table(smoke: Smoke) -> None:
    smoke.registry(three="three:Three", twin="more:Twin")
    code, out, err = smoke.all()
    assert (code, smoke.kept()) == (0, ["three", "twin"])
    assert "1 of 2: three: three entries" in err
    assert "2 of 2: twin: three entries" in err
    assert err.index("1 of 2") < err.index("three: running: begun on 2 nodes") < err.index("2 of 2")
    row = next(line for line in out.splitlines() if "twin" in line)
    [document] = (smoke.cluster.root / "results" / "twin").iterdir()
    assert "pass" in row
    assert document.name in out
    assert "PASS" in out.splitlines()


def test_one_that_fails_or_cannot_run_does_not_keep_the_others_from_it(smoke: Smoke) -> None:
    smoke.registry(
        broken="more:Nothing", lacks="more:Lacks", odd="more:Odd", sad="more:Sad", three="three:Three"
    )
    code, out, _ = smoke.all("--json")
    assert (code, smoke.kept()) == (2, ["sad", "three"])
    document = json.loads(out)
    assert (document["schema"], document["verdict"]) == ("raytools.smoke-all/1", "fail")
    found = document["workloads"]
    assert list(found) == ["broken", "lacks", "odd", "sad", "three"]
    assert "workload broken cannot be loaded from more:Nothing (AttributeError" in found["broken"]["error"]
    assert found["lacks"] == {"error": "n1: the package spam is missing. Add it"}
    assert found["odd"] == {"error": "KeyError: 'spam'"}
    assert (found["sad"]["schema"], found["sad"]["verdict"]) == ("raytools.smoke/1", "fail")
    assert found["three"]["verdict"] == "pass"


def test_one_that_fails_is_exit_code_1_and_its_first_reason_is_in_the_table(smoke: Smoke) -> None:
    smoke.registry(sad="more:Sad", three="three:Three")
    code, out, _ = smoke.all()
    assert code == 1
    assert "too sad" in next(line for line in out.splitlines() if line.startswith("│ sad"))
    assert "FAIL" in out.splitlines()


def test_ctrl_c_ends_it_with_what_had_finished(smoke: Smoke) -> None:
    smoke.registry(sad="more:Sad", stopped="more:Interrupted", three="three:Three")
    code, out, _ = smoke.all("--json")
    assert code == 130
    found = json.loads(out)["workloads"]
    assert found["sad"]["verdict"] == "fail"
    assert found["stopped"] == {"error": "it was cancelled"}
    assert found["three"] == {"error": "it was not run: an earlier one was cancelled"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "word=ham"], "--set"),
        (["--csv", "own.csv", "--label", "y"], "--csv"),
        (["--dataset", "diamonds"], "--dataset"),
        (["--folds", "0"], "--folds"),
        (["--time-limit", "3s"], "--time-limit"),
        (["--baseline", "good.json"], "--baseline"),
        (["--save-baseline", "good.json"], "--save-baseline"),
        (["--resume", "latest"], "--resume"),
    ],
)
def test_options_of_one_workload_are_refused_for_all(smoke: Smoke, arguments: list[str], named: str) -> None:
    smoke.registry(three="three:Three")
    code, out, err = smoke.all(*arguments)
    assert (code, out, smoke.kept()) == (2, "", [])
    assert f"{named} belongs to one workload, and --workload all was given" in err


def test_an_entry_point_and_its_class_have_the_same_name(smoke: Smoke) -> None:
    smoke.registry(other="three:Three")
    with pytest.raises(base.RaytoolsError, match="workload other, three:Three, calls itself 'three'"):
        base.find("other")


def test_an_entry_point_called_all_is_not_taken(smoke: Smoke) -> None:
    smoke.registry(all="three:Three", three="three:Three")
    assert base.names() == ["three"]
    with pytest.raises(base.RaytoolsError, match="no workload 'all'"):
        base.find("all")


def test_the_worst_decides() -> None:
    good, bad = (Done(name, {"verdict": name, "reasons": []}) for name in ("pass", "fail"))
    error = Done("x", error="no Ray")
    assert verdict_of([good]) == "pass"
    assert verdict_of([good, bad]) == "fail"
    assert verdict_of([error, bad, good]) == verdict_of([]) == "could not run"
    assert document_of([good, error])["verdict"] == "fail"
