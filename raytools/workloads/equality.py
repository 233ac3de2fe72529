"""Whether nodes are equally fast: each against the median of the others, and against a baseline. Pure.

Only runs that ended `ok` and were not tainted are compared, and only nodes whose slots have equal sizes. With
one peer nobody can tell which of the two is the odd one: that is said and does not fail.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from raytools.units import format_size
from raytools.workloads.base import Reason, Speed, WorkloadRun, run_name

DEFAULT_MAX_SLOWER = 0.2
BASELINE_SCHEMA = "raytools.baseline/1"
WALL = Speed("wall_s")
HOST_FIELDS = {"cpu_model": "CPU model", "kernel": "kernel", "environment": "environment"}
NODE_KEYS = {"runs", "slot_cpus", "slot_gpus", "slot_memory_bytes", "metrics", *HOST_FIELDS}
# Starting a run takes some tenths of a second more or less; in a short run that is many percent.
_WALL_FLOOR_S = 1.0
_FEWEST_PEERS = 2
_MOST = 1e300
# Equal machines differ by what their kernels keep; a slot with more than that may have more to do.
_EQUAL_MEMORY = 0.1

Node = Mapping[str, Any]
"""Figures of one node, as in `equality.nodes` of `raytools.smoke/1` and in `nodes` of a baseline."""


class _Gap(NamedTuple):
    """A figure that is worse than what it is compared with. Sorts by how much."""

    share: float
    metric: str
    value: float
    reference: float


def compare_nodes(
    runs: Sequence[WorkloadRun], speed: Speed | None = None, max_slower: float = DEFAULT_MAX_SLOWER
) -> tuple[dict[str, Any], list[Reason]]:
    """The key `equality` of `raytools.smoke/1`, and what it says about the verdict.

    Args:
        runs: all that were asked for.
        speed: the workload's own metric, compared beside wall time.
        max_slower: share by which a node may be slower than the median of its peers.
    """
    speeds = _speeds(speed)
    nodes, left_out = _figures_by_node(runs, speeds)
    reasons: list[Reason] = []
    outliers = []
    for name, node in nodes.items():
        peers = _peers(name, nodes)
        for one in speeds:
            _add_peers(node["metrics"][one.metric], one, peers)
        found = list(_judge_node(name, node, peers, speeds, max_slower))
        outliers += [name] if any(reason.fails for reason in found) else []
        reasons += found
    figures = {
        "max_slower": max_slower,
        "metrics": {one.metric: _over_nodes(one, nodes) for one in speeds},
        "nodes": nodes,
        "outliers": outliers,
        "left_out": left_out,
        "baseline": None,
    }
    return figures, reasons + _unequal_slots(nodes)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a metric can be compared by size: no NaN, and nothing that a sum or JSON could not hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_MOST < value < _MOST


def slower_by(value: float | None, reference: float | None, speed: Speed) -> float | None:
    """By which share of the reference a value is worse; negative if it is better, None if nobody can tell."""
    if value is None or not reference:
        return None
    difference = (value - reference) / reference
    if not math.isfinite(difference):
        return None
    return round(-difference if speed.more_is_faster else difference, 4)


# ------------------------------------------------------------------------------------------ figures by node


def _speeds(speed: Speed | None) -> list[Speed]:
    return [WALL] if speed is None or speed.metric == WALL.metric else [WALL, speed]


def _figures_by_node(
    runs: Sequence[WorkloadRun], speeds: Sequence[Speed]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Figures of each node that has something to compare, and the runs that are left out, with the reason."""
    by_node: dict[str, list[WorkloadRun]] = {}
    left_out = []
    for run in runs:
        name = _host(run).get("name") or "unknown node"
        why = _why_left_out(run)
        if why is None:
            by_node.setdefault(name, []).append(run)
        else:
            left_out.append({"node": name, "run": run_name(run.record), "why": why})
    return {name: _node_figures(its_runs, speeds) for name, its_runs in by_node.items()}, left_out


def _why_left_out(run: WorkloadRun) -> str | None:
    if run.record.get("outcome") != "ok":
        return f"outcome {run.record.get('outcome')}"
    fairness = run.record.get("fairness") or {}
    return "tainted" if fairness.get("verdict") == "tainted" else None


def _host(run: WorkloadRun) -> Mapping[str, Any]:
    return run.record.get("host") or {}


def _node_figures(runs: Sequence[WorkloadRun], speeds: Sequence[Speed]) -> dict[str, Any]:
    limits = [run.record.get("limits") or {} for run in runs]
    memories = [one["memory_bytes"] for one in limits if one.get("memory_bytes")]
    host = _host(runs[0])
    return {
        "runs": len(runs),
        "slot_cpus": sorted({one["cpus"] for one in limits if one.get("cpus")}),
        "slot_gpus": sorted({len(one.get("gpus") or []) for one in limits}),
        "slot_memory_bytes": statistics.median_low(memories) if memories else None,
        **{field: host.get(field) for field in HOST_FIELDS},
        "metrics": {speed.metric: {"median": _median(runs, speed)} for speed in speeds},
    }


def _median(runs: Sequence[WorkloadRun], speed: Speed) -> float | None:
    sources = [(run.record.get("used") or {}) if speed == WALL else run.metrics for run in runs]
    values = [value for source in sources if is_number(value := source.get(speed.metric)) and value >= 0]
    return statistics.median(values) if values else None


def _have_equal_slots(one: Node, other: Node) -> bool:
    memories = [node["slot_memory_bytes"] for node in (one, other)]
    known = None not in memories
    return (
        one["slot_cpus"] == other["slot_cpus"]
        and one["slot_gpus"] == other["slot_gpus"]
        and not (known and max(memories) - min(memories) > _EQUAL_MEMORY * max(memories))
    )


def _slots_text(node: Node) -> str:
    cpus = " and ".join(str(count) for count in node["slot_cpus"]) or "unknown"
    gpus = " and ".join(str(count) for count in node["slot_gpus"] if count)
    memory_bytes = node["slot_memory_bytes"]
    parts = [
        f"{cpus} CPUs",
        f"{gpus} GPUs" if gpus else "",
        format_size(memory_bytes) if memory_bytes else "",
    ]
    return ", ".join(part for part in parts if part)


def _over_nodes(speed: Speed, nodes: Mapping[str, Node]) -> dict[str, Any]:
    """Median and coefficient of variation over the nodes; None where they have different slots."""
    values = [value for node in nodes.values() if (value := _median_of(node, speed)) is not None]
    alike = bool(values) and len(_groups(nodes)) == 1
    mean = statistics.mean(values) if values else 0
    varies = alike and len(values) > 1 and mean
    return {
        "more_is_faster": speed.more_is_faster,
        "median": statistics.median(values) if alike else None,
        "cv": round(statistics.stdev(values) / mean, 4) if varies else None,
    }


def _median_of(node: Node, speed: Speed) -> float | None:
    median: float | None = node["metrics"][speed.metric]["median"]
    return median


# ---------------------------------------------------------------------------------- against the other nodes


def _peers(name: str, nodes: Mapping[str, Node]) -> dict[str, Node]:
    """The other nodes with slots of the same size: what was promised more may well be faster."""
    mine = nodes[name]
    return {other: node for other, node in nodes.items() if other != name and _have_equal_slots(node, mine)}


def _add_peers(figure: dict[str, Any], speed: Speed, peers: Mapping[str, Node]) -> None:
    medians = [value for peer in peers.values() if (value := _median_of(peer, speed)) is not None]
    figure["peers"] = len(medians)
    figure["peers_median"] = statistics.median(medians) if medians else None
    figure["slower"] = slower_by(figure["median"], figure["peers_median"], speed)


def _judge_node(
    name: str, node: Node, peers: Mapping[str, Node], speeds: Sequence[Speed], max_slower: float
) -> Iterator[Reason]:
    """A node that is too slow; or one that leaves all others behind, which explains why they seem slow."""
    figures = node["metrics"]
    gaps = [
        gap
        for speed in speeds
        if (gap := _gap(speed, _median_of(node, speed), figures[speed.metric]["peers_median"], max_slower))
    ]
    sure = [gap for gap in gaps if figures[gap.metric]["peers"] >= _FEWEST_PEERS]
    differs = _what_differs(node, peers)
    if sure:
        said = _slower_than(name, "the median of its peers", sure, "theirs")
        yield Reason(f"{said}; allowed: {_percent(max_slower)}{differs}")
    elif gaps:
        said = _slower_than(name, " and ".join(peers), gaps, "there")
        yield Reason(f"{said}{differs}. This does not fail: of two nodes neither is the odd one", fails=False)
    elif len(peers) >= _FEWEST_PEERS:
        ahead = [speed.metric for speed in speeds if _is_far_ahead(node, peers, speed, max_slower)]
        if ahead:
            told = f"{name} is faster than every peer by more than {_percent(max_slower)}"
            yield Reason(f"{told} ({', '.join(ahead)}){differs}", fails=False)


def _gap(speed: Speed, value: float | None, reference: float | None, max_slower: float) -> _Gap | None:
    """What is too slow; of wall time, only what is more than the noise of starting a run."""
    share = slower_by(value, reference, speed)
    if share is None or value is None or reference is None or share <= max_slower:
        return None
    if speed == WALL and value - reference <= _WALL_FLOOR_S:
        return None
    return _Gap(share, speed.metric, value, reference)


def _is_far_ahead(node: Node, peers: Mapping[str, Node], speed: Speed, max_slower: float) -> bool:
    mine = _median_of(node, speed)
    theirs = [value for peer in peers.values() if (value := _median_of(peer, speed)) is not None]
    if mine is None or not theirs:
        return False
    fastest = max(theirs) if speed.more_is_faster else min(theirs)
    share = slower_by(mine, fastest, speed)
    within_noise = speed == WALL and fastest - mine <= _WALL_FLOOR_S
    return share is not None and -share > max_slower and not within_noise


def _unequal_slots(nodes: Mapping[str, Node]) -> list[Reason]:
    groups = _groups(nodes)
    if len(groups) < 2:
        return []
    listed = "; ".join(f"{_slots_text(nodes[names[0]])}: {', '.join(names)}" for names in groups)
    return [Reason(f"only nodes with equal slots are compared with each other ({listed})", fails=False)]


def _groups(nodes: Mapping[str, Node]) -> list[list[str]]:
    """Nodes with equal slots together."""
    groups: list[list[str]] = []
    for name, node in nodes.items():
        mine = next((names for names in groups if _have_equal_slots(nodes[names[0]], node)), None)
        if mine is None:
            groups.append([name])
        else:
            mine.append(name)
    return groups


# --------------------------------------------------------------------------------------- against a baseline


def baseline_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """A baseline (`raytools.baseline/1`): the medians of a smoke document by node, and what was asked."""
    nodes = document["equality"]["nodes"]
    return {
        "schema": BASELINE_SCHEMA,
        "from": document.get("id"),
        **{key: document.get(key) for key in ("workload", "parameters", "inputs")},
        "nodes": {
            name: {
                **{key: value for key, value in node.items() if key != "metrics"},
                "metrics": {metric: figure["median"] for metric, figure in node["metrics"].items()},
            }
            for name, node in nodes.items()
        },
    }


def compare_with_baseline(
    document: Mapping[str, Any], baseline: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Reason]]:
    """The key `equality.baseline`, and what it says about the verdict.

    Args:
        document: `workload`, `parameters`, `inputs`, and `equality` as `compare_nodes` made it.
        baseline: what `baseline_of` made of an earlier document.
    """
    figures: dict[str, Any] = {"from": baseline.get("from"), "why_not": None, "nodes": {}, "not_compared": {}}
    asked = differences_in_what_was_asked(baseline, document)
    if asked:
        figures["why_not"] = "; ".join(asked)
        return figures, [Reason(f"not compared with the baseline: {figures['why_not']}", fails=False)]
    equality = document["equality"]
    reasons: list[Reason] = []
    for name in [*baseline["nodes"], *(name for name in equality["nodes"] if name not in baseline["nodes"])]:
        then, now = baseline["nodes"].get(name), equality["nodes"].get(name)
        why_not = _why_not_compared(name, then, now, equality["left_out"])
        if why_not:
            figures["not_compared"][name] = why_not
            reasons.append(Reason(f"{name} is not compared with the baseline: {why_not}", fails=False))
        else:
            figures["nodes"][name], found = _against_baseline(name, then, now, equality)
            reasons += found
    return figures, reasons


def differences_in_what_was_asked(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One sentence for the workload, and for each parameter and input that is another one."""
    if then.get("workload") != now.get("workload"):
        return [f"workload {then.get('workload')}, now {now.get('workload')}"]
    if then.get("parameters") is None or now.get("parameters") is None:
        return ["its parameters were not kept"]
    found = []
    for kind, key in (("parameter", "parameters"), ("other data in", "inputs")):
        before, after = then.get(key) or {}, now.get(key) or {}
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name), after.get(name)
            if _plain(old) != _plain(new):
                values = f": {_shown(old)}, now {_shown(new)}" if key == "parameters" else ""
                found.append(f"{kind} {name}{values}")
    return found


def _plain(value: Any) -> Any:
    """As JSON has it: parameters are tuples before they travel, and lists afterwards."""
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _why_not_compared(
    name: str, then: Node | None, now: Node | None, left_out: Sequence[Mapping[str, Any]]
) -> str | None:
    if now is None:
        whys = [run["why"] for run in left_out if run["node"] == name]
        return f"its runs are no measure ({', '.join(sorted(set(whys)))})" if whys else "it took no part"
    if then is None:
        return "it is not in there"
    if then["cpu_model"] != now["cpu_model"]:
        return f"CPU model {then['cpu_model']}, now {now['cpu_model']}"
    if not _have_equal_slots(then, now):
        return f"slots of {_slots_text(then)}, now {_slots_text(now)}"
    return None


def _against_baseline(
    name: str, then: Node, now: Node, equality: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Reason]]:
    figures: dict[str, Any] = {}
    gaps = []
    for metric, about in equality["metrics"].items():
        speed = Speed(metric, about["more_is_faster"])
        value, reference = _median_of(now, speed), then["metrics"].get(metric)
        share = slower_by(value, reference, speed)
        figures[metric] = {"median": value, "baseline": reference, "slower": share}
        gap = _gap(speed, value, reference, equality["max_slower"])
        gaps += [gap] if gap else []
    changed = [
        f"; {title} differs ({then[field]}, now {now[field]})"
        for field, title in HOST_FIELDS.items()
        if then[field] != now[field]
    ]
    if not gaps:
        return figures, []
    said = _slower_than(name, "in the baseline", gaps, "then")
    return figures, [Reason(f"{said}; allowed: {_percent(equality['max_slower'])}{''.join(changed)}")]


# ------------------------------------------------------------------------------------------------ sentences


def _slower_than(name: str, than: str, gaps: Sequence[_Gap], whose: str) -> str:
    """`n3 is 31 % slower than the median of its peers (wall_s 13.1, theirs 10)`, the worst first."""
    worst_first = sorted(gaps, reverse=True)
    shown = "; ".join(f"{gap.metric} {gap.value:.4g}, {whose} {gap.reference:.4g}" for gap in worst_first)
    return f"{name} is {_percent(worst_first[0].share)} slower than {than} ({shown})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _what_differs(node: Node, peers: Mapping[str, Node]) -> str:
    """`; CPU model differs (X, theirs Y)` for each thing of the host in which it is unlike its peers."""
    found = ""
    for field, title in HOST_FIELDS.items():
        others = {name: peer[field] for name, peer in peers.items() if peer[field] != node[field]}
        if node[field] is None or not others or None in others.values():
            continue
        whose = "theirs" if len(others) == len(peers) else f"that of {', '.join(others)}"
        found += f"; {title} differs ({node[field]}, {whose} {' or '.join(sorted(set(others.values())))})"
    return found
