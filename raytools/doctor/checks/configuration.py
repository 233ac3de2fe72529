"""RT0xx: cluster.yaml, inventory, lock and the nodes' plans agree with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raytools.doctor.model import PROVISION, CheckResult, Finding, Gathered, NodeReport, Skipped

_LOCK_AGAIN = "raytools env lock"
_SHOWN = 6


def consistent(cluster: Gathered) -> Iterator[Finding]:
    """RT001: the lock answers to what is declared, and a plan can be made for these machines."""
    if cluster.plan_error:
        fix = "Change cluster.yaml or the machine; raytools plan shows the result"
        yield Finding("RT001", "error", None, f"no plan can be made: {cluster.plan_error}", fix)
    if cluster.config.environment.prefix is not None:
        return
    lock = cluster.lock
    if lock is None:
        return
    if lock.problem:
        yield Finding("RT001", "error", None, f"the lock cannot be used: {lock.problem}", _LOCK_AGAIN)
    elif lock.environment_id is None:
        yield Finding(
            "RT001",
            "warning",
            None,
            "the environment has never been locked",
            f"{_LOCK_AGAIN} (or {PROVISION})",
        )
    elif lock.misfits:
        message = f"the lock is older than what is declared: {'; '.join(lock.misfits)}"
        yield Finding("RT001", "error", None, message, f"{_LOCK_AGAIN} && {PROVISION}")


def waivers_are_used(
    cluster: Gathered, results: Sequence[CheckResult], findings: Sequence[Finding]
) -> Iterator[Finding]:
    """RT003: each waiver still has something to accept.

    Nothing is said of checks that were not made, nor of those whose findings come and go.
    """
    judged = {
        result.code
        for result in results
        if result.status not in ("skip", "crash") and not result.comes_and_goes
    }
    partly = {result.code for result in results if result.skipped}  # on some node it could not be made
    used = {finding.code for finding in findings if finding.waived is not None}
    for waiver in cluster.config.doctor.waive:
        if waiver.code in judged - partly - used:
            message = f"doctor.waive: {waiver.code} is accepted ({waiver.reason}), and nothing of it is found"
            fix = f"Remove the waiver of {waiver.code} from cluster.yaml"
            yield Finding("RT003", "warning", None, message, fix)


def plan_is_current(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT002: node.json says what cluster.yaml and the node's facts ask for now."""
    del cluster
    installed = node.need_installed()
    if node.plan is None:
        raise Skipped("there is no plan to compare with")
    changed = sorted(differences(_comparable(installed), _comparable(node.plan)))
    if changed:
        shown = ", ".join(changed[:_SHOWN]) + (
            f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        )
        message = f"{node.root}/node.json is not what cluster.yaml asks for now: {shown}"
        yield Finding("RT002", "warning", node.name, message, PROVISION)


def _comparable(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is measured (RT101, RT201) and what no node acts upon."""
    return {key: value for key, value in plan.items() if key not in ("physical", "doctor")}


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """`key: X -> Y` for each leaf that differs."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys(), key=str):
            yield from differences(before.get(key), after.get(key), f"{where}.{key}" if where else str(key))
    elif before != after:
        yield f"{where}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
