"""A report as JSON (`raytools.doctor/1`), as JUnit XML, and as text for people. Prints nothing."""

from __future__ import annotations

import io
import shutil
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from raytools.doctor.model import SEVERITIES, Finding, NodeReport, Report, Severity
from raytools.units import format_size

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "raytools.doctor/1"
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan", "ok": "bold green"}
_STYLES |= {"fail": "bold red", "crash": "bold red", "warn": "yellow", "skip": "dim", "pass": "green"}
_RANGES = {
    "RT0": "config", "RT1": "CPU", "RT2": "memory", "RT3": "GPU", "RT4": "environment",
    "RT5": "storage", "RT6": "network", "RT7": "Ray", "RT8": "processes", "RT9": "security",
}  # fmt: skip
_INDENT = 8  # the words on the left: error, warning, info, waived, passed, skipped
# of many, so many that a person can still read them
_NODES_SHOWN = 12
_NAMES_SHOWN = 3
_TEXTS_SHOWN = 8
_REASONS_SHOWN = 3


def to_json(report: Report) -> dict[str, Any]:
    """The fixed schema; `skipped` of a check gives the reason by node."""
    return {
        "schema": SCHEMA,
        "verdict": report.verdict,
        "level": report.level,
        "nodes": [_node_json(node, report) for node in report.gathered.nodes],
        "checks": [
            {
                "code": check.code,
                "title": check.title,
                "status": check.status,
                "nodes": list(check.nodes),
                "skipped": dict(check.skipped),
            }
            for check in report.checks
        ],
        "findings": [asdict(finding) for finding in report.findings],
    }


def _node_json(node: NodeReport, report: Report) -> dict[str, Any]:
    logical = report.gathered.logical(node)
    nodes = node.config.nodes
    return {
        "name": node.name,
        "role": node.role,
        "reachable": node.reachable,
        "provisioned": node.installed is not None,
        "declared": {"cpus": nodes.cpus, "memory_bytes": nodes.memory, "gpus": nodes.gpus},
        "facts": node.facts,
        "logical": dict(logical) if logical is not None else None,
        "measured": {
            "imports": node.imports,
            "storage": node.storage_trial,
            "network": node.ring,
        },
    }


def to_junit(report: Report, threshold: Severity) -> str:
    """One test case per check and node; findings at or above the threshold are failures."""
    suite = ElementTree.Element("testsuite", name=f"raytools doctor ({report.level})")
    failures = skips = tests = 0
    for check in report.checks:
        for name in dict.fromkeys((*check.nodes, *check.skipped)) or ("cluster",):
            tests += 1
            case = ElementTree.SubElement(
                suite, "testcase", classname=name, name=f"{check.code} {check.title}"
            )
            found = [one for one in report.findings if one.code == check.code and one.node in (name, None)]
            counted = [one for one in found if _counts(one, threshold)]
            if counted:
                failures += 1
                text = "\n".join(_plain(one) for one in counted)
                ElementTree.SubElement(
                    case, "failure", message=counted[0].message, type=counted[0].severity
                ).text = text
            elif name in check.skipped:
                skips += 1
                ElementTree.SubElement(case, "skipped", message=check.skipped[name])
            if len(counted) < len(found):
                rest = [one for one in found if one not in counted]
                ElementTree.SubElement(case, "system-out").text = "\n".join(_plain(one) for one in rest)
    suite.attrib.update(tests=str(tests), failures=str(failures), skipped=str(skips), errors="0")
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _counts(finding: Finding, threshold: Severity) -> bool:
    return finding.waived is None and SEVERITIES.index(finding.severity) >= SEVERITIES.index(threshold)


def _plain(finding: Finding) -> str:
    waived = f" (waived: {finding.waived})" if finding.waived else ""
    return f"{finding.severity} {finding.code}: {finding.message}{waived}\n  fix: {finding.fix}"


# --- for people ----------------------------------------------------------------------------------


def to_text(
    report: Report, wall_s: float, width: int | None = None, colour: bool = False, verbose: bool = False
) -> str:
    """Nodes, a line for each check that found something with the details below it, and a summary.

    Args:
        report: the result.
        wall_s: how long the examination took.
        width: of the terminal; taken from it by default.
        colour: whether to use the terminal's colours.
        verbose: a line for each check that found nothing too, and for each node of many.
    """
    from rich.console import Console

    buffer = io.StringIO()
    columns = width or max(80, shutil.get_terminal_size().columns)
    console = Console(
        file=buffer, width=columns, force_terminal=colour, highlight=False, emoji=False, markup=False
    )
    if report.level != "config":
        _print_nodes(report, console, verbose)
    groups = _by_check(report)
    for findings in groups:
        _print_check(findings, report, console)
    if verbose:
        _print_each_without_findings(report, console)
    else:
        _print_passed(report, console)
        _print_skipped(report, console)
    _print_summary(report, wall_s, console)
    if groups:
        _print_hanging(
            console, "", "", f"raytools doctor --explain {groups[0][0].code} says more", rest="dim"
        )
    return buffer.getvalue()


def _names(nodes: Collection[str], report: Report) -> str:
    """`n1, n2, n3 and 7 more`, or `all 10 nodes`; empty for none."""
    of_cluster = [node.name for node in report.gathered.nodes]
    names = [name for name in of_cluster if name in nodes] + sorted(set(nodes) - set(of_cluster))
    if len(names) > 2 and set(names) == set(of_cluster):
        return f"all {len(names)} nodes"
    # "and 1 more" would be as long as its name
    shown = names if len(names) <= _NAMES_SHOWN + 1 else names[:_NAMES_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return ", ".join(shown) + more


def _print_hanging(
    console: Console, label: str, style: str, text: str, indent: int = _INDENT, rest: str = ""
) -> None:
    """A label and wrapped text beside it. A command is never broken within a word."""
    from rich.text import Text

    room = console.width - indent
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    console.print(Text.assemble((label, style), (lines[0], rest)), soft_wrap=True)
    for line in lines[1:]:
        console.print(Text(" " * indent + line, rest), soft_wrap=True)


# --- the nodes ---


def _print_nodes(report: Report, console: Console, everything: bool) -> None:
    nodes = report.gathered.nodes
    few = everything or len(nodes) <= _NODES_SHOWN
    shown = list(nodes) if few else _notable(report)
    rows, left_out = [_row(node, report) for node in shown], 0
    if not few and len(rows) > _NODES_SHOWN:
        rows, left_out = _alike_once(rows)
    if rows:
        _print_table(rows, console)
    if left_out:
        _print_hanging(console, "", "", f"and {left_out} more with findings; --verbose shows all", 0)
    others = len(nodes) - len(shown)
    if others:
        who = f"{others} {'other ' if shown else ''}node{'s' if others > 1 else ''}"
        said = "are as they should be" if others > 1 else "is as it should be"
        _print_hanging(console, "", "", f"{who} {said}", 0)


def _print_table(rows: Sequence[tuple[str, ...]], console: Console) -> None:
    from rich.table import Table

    caption = "declared / physical / logical"
    # without lines: they would take the room of three others, and rows would not fit 80 columns
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, caption=caption, caption_justify="left")
    for title in ("node", "CPUs", "memory", "GPUs", "Ray"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _notable(report: Report) -> list[NodeReport]:
    """The nodes that something was found on or whose Ray is not alive, worst first."""
    worst: dict[str | None, int] = {}
    for finding in report.findings:
        if finding.waived is None:
            rank = SEVERITIES.index(finding.severity)
            worst[finding.node] = max(rank, worst.get(finding.node, -1))
    for node in report.gathered.nodes:
        if _ray_word(node, report) not in ("alive", "-"):
            worst[node.name] = len(SEVERITIES)
    found = [node for node in report.gathered.nodes if node.name in worst]
    return sorted(found, key=lambda node: -worst[node.name])


def _alike_once(rows: Sequence[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], int]:
    """Rows that differ only in the node are one; and how many nodes there is still no room for."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, *cells in rows:
        alike.setdefault(tuple(cells), []).append(name)
    found = [
        (names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", *cells)
        for cells, names in alike.items()
    ]
    return found[:_NODES_SHOWN], sum(len(names) for names in list(alike.values())[_NODES_SHOWN:])


def _row(node: NodeReport, report: Report) -> tuple[str, ...]:
    if node.facts is None:
        return (node.name, "?", "?", "?", _ray_word(node, report))
    declared, facts = node.config.nodes, node.facts
    logical = report.gathered.logical(node)
    gpus = None if facts["gpus"] is None else len(facts["gpus"])

    def triple(said: int | None, physical: int | None, name: str, is_size: bool = False) -> str:
        def show(value: float | None, absent: str) -> str:
            if value is None:
                return absent
            return format_size(value) if is_size else f"{value:g}"

        of_ray = None if logical is None else logical.get(name, 0.0)
        return f"{show(said, 'auto')} / {show(physical, '?')} / {show(of_ray, '-')}"

    return (
        node.name,
        triple(declared.cpus, facts["cpu"]["usable"], "CPU"),
        triple(declared.memory, facts["memory"]["usable_bytes"], "memory", is_size=True),
        triple(declared.gpus, gpus, "GPU"),
        _ray_word(node, report),
    )


def _ray_word(node: NodeReport, report: Report) -> str:
    if node.facts is None:
        return "no answer"
    if report.gathered.logical(node) is not None:
        return "alive"
    return "not provisioned" if node.installed is None else "-" if report.level == "hosts" else "not alive"


# --- what was found ---


def _by_check(report: Report) -> list[list[Finding]]:
    """The findings of each check, worst first in both; what is waived comes last."""
    groups: dict[tuple[str, bool], list[Finding]] = {}
    for finding in sorted(
        report.findings, key=lambda one: (one.waived is not None, -SEVERITIES.index(one.severity))
    ):
        groups.setdefault((finding.code, finding.waived is not None), []).append(finding)
    return list(groups.values())


def _print_check(findings: Sequence[Finding], report: Report, console: Console) -> None:
    """One line, then each message once, then each fix once."""
    worst = findings[0]
    waived = worst.waived is not None
    style, rest = ("dim", "dim") if waived else (_STYLES[worst.severity], "")
    title = next((check.title for check in report.checks if check.code == worst.code), "")
    names = _names({one.node for one in findings if one.node is not None}, report)
    where = f" ({names})" if names else ""
    word = "waived" if waived else worst.severity
    _print_hanging(console, f"{word:<{_INDENT}}", style, f"{worst.code} {title}{where}", rest=rest)
    messages = [
        (one.message if one.severity == worst.severity else f"{one.severity}: {one.message}", one.node)
        for one in findings
    ]
    for line in _each_once(messages, "messages", report):
        _print_hanging(console, " " * _INDENT, "", line, rest=rest)
    fixes = [(f"waived: {one.waived}", None) if waived else (one.fix, one.node) for one in findings]
    for line in _each_once(fixes, "fixes", report):
        _print_hanging(console, " " * _INDENT, "", f"-> {line}", indent=_INDENT + 3, rest=rest)


def _each_once(said: Iterable[tuple[str, str | None]], what: str, report: Report) -> list[str]:
    """Each text once, with the names of its nodes unless they are all that the check's line names."""
    where: dict[str, dict[str, None]] = {}
    concerned: set[str] = set()
    for text, node in said:
        names = where.setdefault(text, {})
        if node is not None:
            names[node] = None
            concerned.add(node)
    lines = [
        text if not names or names.keys() == concerned else f"{_names(names, report)}: {text}"
        for text, names in where.items()
    ]
    if len(lines) <= _TEXTS_SHOWN:
        return lines
    return [*lines[:_TEXTS_SHOWN], f"and {len(lines) - _TEXTS_SHOWN} more {what}; --json has all"]


# --- what was not ---


def _print_passed(report: Report, console: Console) -> None:
    """A line for each range of codes."""
    found = {finding.code for finding in report.findings}
    ranges: dict[str, list[str]] = {}
    for check in report.checks:
        if check.status == "pass" and check.code not in found:
            ranges.setdefault(_RANGES.get(check.code[:3], f"{check.code[:3]}xx"), []).append(check.code)
    column = max((len(name) for name in ranges), default=0) + 2
    for name, codes in ranges.items():
        text = f"{name + ':':<{column}}{' '.join(codes)}"
        _print_hanging(console, f"{'passed':<{_INDENT}}", _STYLES["pass"], text, indent=_INDENT + column)


def _print_skipped(report: Report, console: Console) -> None:
    """By reason; of many reasons those that concern most checks, and the codes of the rest."""
    skipped: dict[str, list[str]] = {}
    for check in report.checks:
        if check.status == "skip":
            reason = next(iter(check.skipped.values()), "no node")
            skipped.setdefault(reason, []).append(check.code)
    lines = sorted(skipped.items(), key=lambda one: -len(one[1]))
    if len(lines) > _REASONS_SHOWN:
        rest = sorted(code for _, codes in lines[_REASONS_SHOWN - 1 :] for code in codes)
        lines = [*lines[: _REASONS_SHOWN - 1], ("--verbose says why", rest)]
    for reason, codes in lines:
        _print_hanging(console, f"{'skipped':<{_INDENT}}", _STYLES["skip"], f"{', '.join(codes)}: {reason}")


def _print_each_without_findings(report: Report, console: Console) -> None:
    """A line for each check, in the order of the codes; and where it could not be made."""
    found = {finding.code for finding in report.findings}
    for check in report.checks:
        if check.code in found:
            continue
        text = f"{check.code} {check.title}"
        reasons = list(dict.fromkeys(check.skipped.values()))
        if check.status == "skip":
            text += f": {reasons[0] if reasons else 'no node'}"
        elif reasons:
            text += f" (not on {_names(check.skipped, report)}: {reasons[0]})"
        _print_hanging(console, f"{check.status:<{_INDENT}}", _STYLES[check.status], text)


def _print_summary(report: Report, wall_s: float, console: Console) -> None:
    counts: dict[str, int] = {}
    for check in report.checks:
        counts[check.status] = counts.get(check.status, 0) + 1
    words = {"pass": "passed", "warn": "warn", "fail": "failed", "crash": "crashed", "skip": "skipped"}
    said = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if status in counts)
    nodes = len(report.gathered.nodes)
    text = (
        f": {len(report.checks)} checks on {nodes} node{'s' if nodes != 1 else ''} in {wall_s:.1f} s"
        f" (level {report.level}): {said}"
    )
    _print_hanging(console, report.verdict, _STYLES[report.verdict], text)
