"""RT103: limits are not only configured; small real runs on each node have tried to exceed them."""

from __future__ import annotations

from collections.abc import Iterator

from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Skipped


def hold(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT103: each limit held when a run tried to leave it (`raytools run --check` on the node)."""
    del cluster
    node.need_installed()
    if node.proof is None:
        raise Skipped(node.proof_error or "no proof was made")
    fix = node.proof.get("fix") or PROVISION
    if node.proof.get("busy"):
        raise Skipped(f"other runs have the node: {node.proof['busy']}")
    for limit in node.proof["limits"]:
        if not limit["holds"]:
            message = f"limit {limit['limit']} does not hold: {limit['how']}"
            yield Finding("RT103", "error", node.name, message, fix, declared=limit["limit"])
