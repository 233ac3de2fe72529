"""RT400: the node has been set up at all. Checks that need the set-up are skipped where it has not."""

from __future__ import annotations

from collections.abc import Iterator

from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport


def is_provisioned(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT400: node.json, toolkit and the environment's Python are there."""
    del cluster
    if node.reachable and node.installed is None:
        why = (node.inspection or {}).get("node_problem") or f"{node.root}/node.json is missing"
        yield Finding("RT400", "error", node.name, f"the node is not provisioned: {why}", PROVISION)
        return
    installed = node.need_installed()
    paths = node.need("paths")
    for name, what in (("python", "environment's Python"), ("toolkit", "toolkit")):
        if name in paths and paths[name] is None:
            message = f"the node is not provisioned: the {what} ({installed[name]}) does not exist"
            yield Finding("RT400", "error", node.name, message, PROVISION)
