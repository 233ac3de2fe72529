"""The doctor around its checks: waivers, thresholds, crashes, levels, reports in every form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from raytools.cli import main
from raytools.config import ClusterConfig
from raytools.doctor.checks import CHECKS
from raytools.doctor.evaluate import evaluate
from raytools.doctor.explanations import EXPLANATIONS, page
from raytools.doctor.model import Check, Finding, Gathered, NodeReport, Report, Skipped
from raytools.doctor.report import to_json, to_junit, to_text


def cluster(waive: list[dict[str, str]] | None = None, level: str = "cluster") -> Gathered:
    config = ClusterConfig.model_validate({"doctor": {"waive": waive or []}})
    nodes = tuple(NodeReport(name, "worker", "/opt/raytools", config) for name in ("n1", "n2"))
    return Gathered(level, config, nodes)  # type: ignore[arg-type]


def finding(code: str, severity: str, node: str | None = "n1") -> Finding:
    return Finding(code, severity, node, f"{severity} of {code}", "do this", 8, 4, 8)  # type: ignore[arg-type]


def always(code: str, severity: str) -> Check:
    def judge(node: NodeReport, gathered: Gathered) -> Iterator[Finding]:
        if node.name == "n1":
            yield finding(code, severity)

    return Check(code, f"title of {code}", "hosts", judge)


def broken(node: NodeReport, gathered: Gathered) -> Iterator[Finding]:
    raise KeyError("rays")


def never(node: NodeReport, gathered: Gathered) -> Iterator[Finding]:
    raise Skipped("there is nothing to see")


def report_of(*checks: Check, waive: list[dict[str, str]] | None = None) -> Report:
    return evaluate(cluster(waive), checks)


# --- judging -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("severity", "verdict", "status"),
    [("error", "error", "fail"), ("warning", "warning", "warn"), ("info", "ok", "pass")],
)
def test_the_worst_finding_makes_the_verdict(severity: str, verdict: str, status: str) -> None:
    report = report_of(always("RT101", severity))
    assert (report.verdict, report.checks[0].status) == (verdict, status)


@pytest.mark.parametrize(("threshold", "counts"), [("error", False), ("warning", True), ("info", True)])
def test_a_warning_counts_from_its_threshold_on(threshold: str, counts: bool) -> None:
    report = report_of(always("RT203", "warning"))
    assert report.worst_at_least(threshold) is counts  # type: ignore[arg-type]


def test_a_waived_finding_is_shown_with_its_reason_and_does_not_count() -> None:
    report = report_of(always("RT203", "error"), waive=[{"code": "RT203", "reason": "test machines"}])
    assert [one.waived for one in report.findings] == ["test machines"]
    assert (report.verdict, report.checks[0].status) == ("ok", "pass")
    assert not report.worst_at_least("info")
    assert "waived: test machines" in to_text(report, 1.0)


def test_a_waiver_of_one_code_does_not_reach_another() -> None:
    report = report_of(always("RT101", "error"), waive=[{"code": "RT203", "reason": "test machines"}])
    assert report.verdict == "error"


def test_a_check_that_crashes_is_an_error_and_the_others_are_judged() -> None:
    report = report_of(Check("RT101", "broken", "hosts", broken), always("RT203", "warning"))
    assert [check.status for check in report.checks] == ["crash", "warn"]
    assert report.verdict == "error"
    assert "the check itself failed (KeyError: 'rays', at test_doctor.py:" in report.findings[0].message


def test_a_check_that_is_skipped_everywhere_says_why() -> None:
    check = report_of(Check("RT103", "limits", "hosts", never)).checks[0]
    assert check.status == "skip"
    assert check.skipped == {"n1": "there is nothing to see", "n2": "there is nothing to see"}


def test_findings_come_worst_first() -> None:
    report = report_of(always("RT101", "info"), always("RT203", "warning"), always("RT301", "error"))
    assert [one.severity for one in report.findings] == ["error", "warning", "info"]


@pytest.mark.parametrize(
    ("level", "present", "absent"),
    [
        ("config", "RT001", "RT101"),
        ("hosts", "RT101", "RT701"),
        ("cluster", "RT701", "RT103"),
        ("prove", "RT103", ""),
    ],
)
def test_each_level_includes_the_ones_before_it(level: str, present: str, absent: str) -> None:
    codes = [check.code for check in evaluate(cluster(level=level)).checks]
    assert present in codes
    assert "RT001" in codes
    assert absent not in codes


# --- forms ---------------------------------------------------------------------------------------


def test_the_json_has_the_fixed_keys() -> None:
    found = json.loads(json.dumps(to_json(report_of(always("RT101", "error")))))
    assert found["schema"] == "raytools.doctor/1"
    assert (found["verdict"], found["level"]) == ("error", "cluster")
    assert found["nodes"][0].keys() >= {"name", "reachable", "facts", "logical"}
    assert found["nodes"][0]["reachable"] is False
    assert found["checks"][0] | {"skipped": {}} == {
        "code": "RT101",
        "title": "title of RT101",
        "status": "fail",
        "nodes": ["n1"],
        "skipped": {},
    }
    assert found["findings"] == [
        {
            "code": "RT101",
            "severity": "error",
            "node": "n1",
            "message": "error of RT101",
            "fix": "do this",
            "declared": 8,
            "physical": 4,
            "logical": 8,
            "waived": None,
        }
    ]


def test_junit_has_a_case_per_node_and_fails_from_the_threshold_on() -> None:
    report = report_of(
        always("RT101", "error"), always("RT203", "warning"), Check("RT103", "x", "hosts", never)
    )
    suite = ElementTree.fromstring(to_junit(report, "error"))
    assert (suite.get("failures"), suite.get("skipped")) == ("1", "2")
    failed = suite.find("testcase/failure")
    assert failed is not None
    assert failed.get("message") == "error of RT101"
    assert "fix: do this" in str(failed.text)
    assert ElementTree.fromstring(to_junit(report, "warning")).get("failures") == "2"


# --- the page and the command --------------------------------------------------------------------


def test_the_documentation_is_the_one_the_command_prints() -> None:
    found = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert found == page(), "write it again: python -m raytools.doctor.explanations > docs/doctor.md"


def test_every_code_can_be_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for check in CHECKS:
        assert main(["doctor", "--explain", check.code.lower()]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"{check.code}  {check.title}")
        for part in ("Meaning", "Cause", "Fix", "Accepting it"):
            assert part in printed


def test_an_unknown_code_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--explain", "RT999"]) == 2
    assert "RT101" in capsys.readouterr().err


def test_a_wrong_configuration_means_that_the_doctor_could_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("clutser: demo\n")
    assert main(["doctor", "-c", str(path), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ":1: clutser: found" in captured.err


def test_explanations_are_not_empty_promises() -> None:
    for code, found in EXPLANATIONS.items():
        for text in (found.meaning, found.cause, found.fix, found.waiver):
            assert len(text) > 15, code
