"""How workloads are found, how their parameters are read, and how runs become a verdict."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from raytools.errors import RaytoolsError
from raytools.workloads import base
from raytools.workloads.base import Prepared, Reason, WorkloadRun, option


@dataclasses.dataclass(frozen=True)
class Settings:
    size: int = option(1, "how many")
    share: float = option(0.5, "how much")
    names: tuple[str, ...] | None = option(None, "which")
    patience: float | None = option(60.0, "how long", duration=True)
    loud: bool = option(False, "whether to say so")


class Sleeper:
    name = "sleeper"
    summary = "sleeps"
    scope = "slot"
    shown_metrics = ("slept_s",)
    shown_tables = ()
    Parameters = Settings

    def check(self, parameters: Settings) -> None: ...

    def prepare(self, parameters: Settings, cache_dir: Path) -> Prepared:
        return Prepared(parameters)

    def run(self, parameters: Settings, context: base.SlotContext) -> dict[str, Any]:
        return {"slept_s": 1.0}

    def time_s(self, parameters: Settings) -> float | None:
        return None

    def judge(self, parameters: Settings, runs: list[WorkloadRun]) -> list[Reason]:
        slept = [run.metrics.get("slept_s") for run in runs]
        return [Reason("somebody did not sleep")] if None in slept else []


def run(name: str = "n1", outcome: str = "ok", wall_s: float | None = 10.0, **more: Any) -> WorkloadRun:
    record = {
        "outcome": outcome,
        "exit_code": 1,
        "signal": None,
        "message": None,
        "limits": {"cpus": 2, "time_s": 60.0},
        "enforced": {"missing": []},
        "used": {"wall_s": wall_s},
        "host": {"name": name, "slot": 0},
        "fairness": {"verdict": "comparable", "reasons": []},
    }
    return WorkloadRun(record | more, {"slept_s": 1.0})


def judged(runs: list[WorkloadRun], enforce: str = "strict", missing: tuple[str, ...] = ()) -> dict[str, Any]:
    return base.smoke_document(Sleeper(), Settings(), runs, enforce=enforce, missing=missing)


def test_parameters_are_read_from_texts_as_people_write_them() -> None:
    texts = {"size": "3", "share": "0.25", "names": "a, b,", "patience": "1h30m", "loud": "true"}
    expected = Settings(size=3, share=0.25, names=("a", "b"), patience=5400.0, loud=True)
    assert base.make_parameters(Sleeper(), texts) == expected


def test_parameters_survive_the_way_through_json_to_the_node() -> None:
    before = Settings(names=("a",), patience=None)
    travelled = {**dataclasses.asdict(before), "names": ["a"]}
    assert base.make_parameters(Sleeper(), travelled) == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colour": "red"}, "no parameter 'colour', expected one of size, share, names, patience, loud"),
        ({"size": "many"}, "parameter size of workload sleeper: found 'many', expected a number"),
        ({"patience": "soon"}, "found 'soon', expected a duration"),
        ({"loud": "very"}, "found 'very', expected true or false"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_was_expected(values: dict[str, str], message: str) -> None:
    with pytest.raises(RaytoolsError) as error:
        base.make_parameters(Sleeper(), values)
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_an_unknown_workload_is_refused_with_the_known_names() -> None:
    with pytest.raises(RaytoolsError, match=r"no workload 'autogloun', expected one of autogluon"):
        base.find("autogloun")


def test_a_workload_of_another_package_is_found_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sleepers.py").write_text("class Sleeper:\n    name = 'sleeper'\n")
    metadata = tmp_path / "sleepers-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sleepers\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[raytools.workloads]\nsleeper = sleepers:Sleeper\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert base.names() == [*base.BUILT_IN, "sleeper"]
    assert base.find("sleeper").name == "sleeper"


def test_runs_that_all_end_well_pass_without_a_reason() -> None:
    document = judged([run("n1"), run("n2")])
    assert (document["schema"], document["workload"]) == ("raytools.smoke/1", "sleeper")
    assert (document["verdict"], document["reasons"]) == ("pass", [])
    assert [one["record"]["host"]["name"] for one in document["runs"]] == ["n1", "n2"]


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ("failed", "n2: outcome failed (exit code 1, signal None)"),
        ("timeout", "n2: outcome timeout (its limit was 60.0 s)"),
        ("oom", "n2: outcome oom"),
        ("lost", "n2: outcome lost"),
    ],
)
def test_a_run_that_ends_otherwise_fails_the_verdict_by_name(outcome: str, reason: str) -> None:
    document = judged([run("n1"), run("n2", outcome)])
    assert document["verdict"] == "fail"
    assert document["reasons"] == [reason]


def test_a_refused_run_says_why_once() -> None:
    refused = run(outcome="refused", message="no cpuset here", enforced={"missing": ["cpu: no cpuset here"]})
    assert judged([refused])["reasons"] == ["n1: outcome refused (no cpuset here)"]


def test_what_is_not_enforced_fails_a_strict_verdict() -> None:
    document = judged([run(enforced={"missing": ["memory: not delegated"]})])
    assert document["verdict"] == "fail"
    assert document["reasons"] == ["n1: not enforced: memory: not delegated"]


def test_what_is_not_enforced_is_said_by_a_best_effort_verdict_that_passes() -> None:
    document = judged([run(enforced={"missing": ["memory: not delegated"]})], enforce="best-effort")
    assert document["verdict"] == "pass"
    assert document["reasons"] == ["n1: not enforced: memory: not delegated"]


def test_a_tainted_run_is_said_and_does_not_fail() -> None:
    document = judged([run(fairness={"verdict": "tainted", "reasons": ["steal 2 s"]})])
    assert (document["verdict"], document["reasons"]) == ("pass", ["n1: tainted: steal 2 s"])


def test_a_node_of_the_inventory_that_took_no_part_fails_the_verdict() -> None:
    document = judged([run()], missing=("n2: not in Ray",))
    assert (document["verdict"], document["reasons"]) == ("fail", ["n2: not in Ray"])


def test_no_run_at_all_is_no_pass() -> None:
    assert judged([])["verdict"] == "fail"


def test_reasons_that_fail_come_before_those_that_only_tell() -> None:
    tainted = run("n1", fairness={"verdict": "tainted", "reasons": ["steal"]})
    assert judged([tainted, run("n2", "oom")])["reasons"] == ["n2: outcome oom", "n1: tainted: steal"]


def test_what_holds_for_several_runs_is_said_once() -> None:
    runs = [run("n1", "oom"), run("n2"), run("n3", "oom"), run("n4", "failed", message="no such file")]
    assert judged(runs)["reasons"] == ["n1, n3: outcome oom", "n4: outcome failed (no such file)"]


def test_the_spread_is_the_coefficient_of_variation_of_the_times() -> None:
    assert judged([run(wall_s=9.0), run(wall_s=11.0)])["spread"] == {"metric": "wall_s", "cv": 0.1414}


def test_one_run_has_no_spread() -> None:
    assert judged([run()])["spread"] == {"metric": "wall_s", "cv": None}


def test_runs_are_named_by_slot_only_where_there_are_several() -> None:
    assert base.run_name({"host": {"name": "n1", "slot": 0}}) == "n1"
    assert base.run_name({"host": {"name": "n1", "slot": 2}}) == "n1 slot 2"
