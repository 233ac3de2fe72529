"""Level prove: what was measured on the nodes: imports, storage, the network between neighbours."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from raytools.doctor.model import Finding, Gathered, NodeReport, Severity, Skipped
from raytools.units import format_duration

# What is slower than most by as much, and by so many seconds at least, is worth a look
_SLOWER = 3.0
_SLOWER_S = 3.0
_SLOW_FSYNC_MS = 100.0
_LONGEST_PROBLEM = 300


def imports(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT405: what runs import can be imported, shared libraries and the processor's instructions included."""
    del cluster
    found = _need(node.imports)
    for module, one in found.items():
        if one["problem"] is None:
            continue
        problem = " ".join(str(one["problem"]).split())[:_LONGEST_PROBLEM]
        message = f"`import {module}` fails in the environment: {problem}"
        fix = "Install the library that is named, or leave the package out of environment.pip"
        yield Finding("RT405", "error", node.name, message, fix, declared=module, physical=one["problem"])


def import_time(cluster: Gathered) -> Iterator[Finding]:
    """RT406: Ray is imported as fast on each node; a slow disk delays each worker, and each run."""
    took_s = {
        node.name: float(node.imports["ray"]["s"])
        for node in cluster.nodes
        if node.imports and node.imports.get("ray", {}).get("s") is not None
    }
    if len(took_s) < 2:
        raise Skipped("there are no two nodes to compare")
    usual = statistics.median_low(took_s.values())
    # of two nodes neither is the odd one
    severity: Severity = "warning" if len(took_s) > 2 else "info"
    where = "on most nodes" if len(took_s) > 2 else "on the other node"
    for name, found in took_s.items():
        if found > usual * _SLOWER and found > usual + _SLOWER_S:
            message = (
                f"`import ray` takes {format_duration(found)} here, {format_duration(usual)} {where}: "
                "each worker starts as much later"
            )
            look = "raytools doctor --level prove --only RT503,RT505,RT805"
            fix = f"Look at the disk and the load of {name}: {look}"
            yield Finding("RT406", severity, name, message, fix, declared=usual, physical=found)


def storage(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT505: the storage locks and renames; a disk that takes long to write is said."""
    found = _need(node.storage_trial)
    path = node.need_installed()["storage"]["path"]
    for problem in found["problems"]:
        message = f"storage {path}: {problem}"
        fix = "Mount it with locks (no `nolock`), writable for Ray: ansible-playbook playbooks/storage.yml"
        yield Finding("RT505", "error", node.name, message, fix, physical=problem)
    fsync_ms = found["fsync_ms"]
    others = [
        one.storage_trial["fsync_ms"]
        for one in cluster.nodes
        if one.storage_trial and one.storage_trial.get("fsync_ms") is not None
    ]
    if fsync_ms is None or fsync_ms < _SLOW_FSYNC_MS or fsync_ms < _SLOWER * statistics.median_low(others):
        return
    message = (
        f"storage {path}: a small write takes {fsync_ms:.0f} ms until it is on the disk, "
        f"{statistics.median_low(others):.0f} ms on most nodes"
    )
    fix = "Look at the disk, or the way to the server (raytools doctor --level prove --json has all figures)"
    yield Finding("RT505", "info", node.name, message, fix, physical=fsync_ms)


def neighbours(cluster: Gathered) -> Iterator[Finding]:
    """RT606: nodes reach the workers' ports of others, and the network is as fast everywhere."""
    rings = {node.name: node.ring for node in cluster.nodes if node.ring is not None}
    deaf = {
        name
        for name, one in rings.items()
        if one.get("untried") or str(one.get("problem")).startswith("cannot listen")
    }
    if deaf == set(rings):
        raise Skipped("there are no two nodes, or nothing could be tried")
    fast = {name: one["mbit_per_s"] for name, one in rings.items() if "problem" not in one}
    for name, one in rings.items():
        if "problem" in one and name not in deaf and one["to"] not in deaf:
            message = f"cannot reach the workers' ports of {one['to']}: {one['problem']}"
            fix = "Let all nodes reach each other on ray.ports.workers (firewall, VPN)"
            yield Finding("RT606", "error", name, message, fix, physical=one["problem"])
    usual = statistics.median_low(fast.values()) if fast else 0
    for name, mbit_per_s in fast.items():
        if mbit_per_s * _SLOWER < usual:
            message = f"{mbit_per_s:.0f} Mbit/s to {rings[name]['to']}, {usual:.0f} Mbit/s between most nodes"
            fix = "Look at the device: ethtool; ip -s link (errors, half duplex, another switch)"
            yield Finding("RT606", "info", name, message, fix, declared=usual, physical=mbit_per_s)


def _need(found: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if found is None:
        raise Skipped("it was not tried")
    if isinstance(found.get("problem"), str):
        raise Skipped(f"it could not be tried: {found['problem']}")
    return found
