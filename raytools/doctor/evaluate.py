"""Runs the checks over what was gathered. Pure: same report in, same findings out; a crash is a finding."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from raytools.doctor.checks import CHECKS
from raytools.doctor.model import (
    LEVELS,
    SEVERITIES,
    Check,
    CheckResult,
    Finding,
    Gathered,
    Report,
    Skipped,
    Status,
    Verdict,
)

# the status of a check is the first of these that any node has; skipped only if it was skipped everywhere
_ORDER: tuple[Status, ...] = ("crash", "fail", "warn", "pass", "skip")
_CLUSTER = "cluster"


def evaluate(gathered: Gathered, checks: Sequence[Check] = CHECKS) -> Report:
    """Judges a gathered cluster.

    Args:
        gathered: what is known.
        checks: the table; tests pass their own.
    """
    possible = [check for check in checks if LEVELS.index(check.level) <= LEVELS.index(gathered.level)]
    results: list[CheckResult] = []
    findings: list[Finding] = []
    for check in sorted(possible, key=lambda one: one.of_results is not None):
        result, found = _run(check, gathered, tuple(results), tuple(findings))
        results.append(result)
        findings += found
    results.sort(key=lambda one: [check.code for check in possible].index(one.code))
    findings.sort(key=lambda one: -SEVERITIES.index(one.severity))
    return Report(_verdict(findings), gathered.level, gathered, tuple(results), tuple(findings))


def _run(
    check: Check, gathered: Gathered, results: Sequence[CheckResult], earlier: Sequence[Finding]
) -> tuple[CheckResult, list[Finding]]:
    statuses: dict[str, Status] = {}
    skipped: dict[str, str] = {}
    findings: list[Finding] = []
    for name, judge in _parts(check, gathered, results, earlier):
        try:
            found = [_waived(finding, gathered) for finding in judge()]
        except Skipped as reason:
            statuses[name], skipped[name] = "skip", str(reason)
            continue
        except Exception as error:  # noqa: BLE001 - one broken check must not hide what the others found
            found = [_crash(check, name, error)]
            statuses[name] = "crash"
        else:
            statuses[name] = _status(found)
        findings += found
    status: Status = next((one for one in _ORDER if one in statuses.values()), "skip")
    names = tuple(name for name, one in statuses.items() if one == status and name != _CLUSTER)
    if check.per_node is None:
        concerned = {finding.node for finding in findings if finding.node is not None}
        names = tuple(node.name for node in gathered.nodes if node.name in concerned or not concerned)
    return CheckResult(check.code, check.title, status, names, skipped, check.comes_and_goes), findings


def _parts(
    check: Check, gathered: Gathered, results: Sequence[CheckResult], earlier: Sequence[Finding]
) -> Iterable[tuple[str, Callable[[], Iterable[Finding]]]]:
    if check.of_results is not None:
        of_results = check.of_results
        yield _CLUSTER, lambda: list(of_results(gathered, results, earlier))
        return
    if check.of_cluster is not None:
        of_cluster = check.of_cluster
        yield _CLUSTER, lambda: list(of_cluster(gathered))
        return
    assert check.per_node is not None
    per_node = check.per_node
    for node in gathered.nodes:
        yield node.name, lambda node=node: list(per_node(node, gathered))  # type: ignore[misc]


def _waived(finding: Finding, gathered: Gathered) -> Finding:
    reasons = [waiver.reason for waiver in gathered.config.doctor.waive if waiver.code == finding.code]
    return replace(finding, waived=reasons[0]) if reasons else finding


def _status(findings: Sequence[Finding]) -> Status:
    counted = {finding.severity for finding in findings if finding.waived is None}
    return "fail" if "error" in counted else "warn" if "warning" in counted else "pass"


def _crash(check: Check, name: str, error: Exception) -> Finding:
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = (
        f"the check itself failed ({type(error).__name__}: {error}, at {place.filename.rpartition('/')[2]}:"
        f"{place.lineno}); the other checks are not affected"
    )
    fix = "Please report it with the output of: raytools doctor --json"
    return Finding(check.code, "error", None if name == _CLUSTER else name, message, fix)


def _verdict(findings: Sequence[Finding]) -> Verdict:
    counted = {finding.severity for finding in findings if finding.waived is None}
    return "error" if "error" in counted else "warning" if "warning" in counted else "ok"
