"""examples/workload-template is as short as the documentation says, and a workload by its own entry point."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomllib

from raytools.errors import RaytoolsError
from raytools.node.record import Record
from raytools.workloads import base
from raytools.workloads.base import SlotContext, WorkloadRun

TEMPLATE = Path(__file__).resolve().parents[2] / "examples" / "workload-template"


@pytest.fixture
def primes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> base.Workload:
    """The workload, found as that of an installed package is."""
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["raytools.workloads"]
    metadata = tmp_path / "primes-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = "".join(f"{name} = {place}\n" for name, place in points.items())
    (metadata / "entry_points.txt").write_text(f"[raytools.workloads]\n{lines}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(TEMPLATE))
    assert base.names()[-1] == "primes"
    return base.find("primes")


def test_it_has_less_than_40_lines_of_python() -> None:
    [module] = TEMPLATE.glob("*.py")
    assert len(module.read_text().splitlines()) < 40


def test_it_counts_and_a_slot_that_counts_otherwise_is_named(primes: base.Workload, tmp_path: Path) -> None:
    parameters = base.make_parameters(primes, {"limit": "100"})
    primes.check(parameters)
    assert primes.prepare(parameters, tmp_path).inputs == {}
    context = SlotContext(1, 10**9, tmp_path, {}, report=lambda _: None, detail=lambda _: None)
    metrics = primes.run(parameters, context)  # type: ignore[attr-defined]
    assert metrics["primes"] == 25
    record = Record("1", ["workload"], outcome="ok")
    record.host.name = "n2"
    runs = [WorkloadRun({}, metrics), WorkloadRun(record.to_json(), {**metrics, "primes": 24})]
    assert [reason.text for reason in primes.judge(parameters, runs)] == ["n2: found 24 primes"]
    assert primes.judge(parameters, [WorkloadRun({}, {}), runs[0]]) == []


def test_a_parameter_that_cannot_be_used_is_refused(primes: base.Workload) -> None:
    with pytest.raises(RaytoolsError, match="limit is 2, expected at least 3"):
        primes.check(base.make_parameters(primes, {"limit": "2"}))
