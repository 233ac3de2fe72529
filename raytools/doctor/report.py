"""A report as JSON (`raytools.doctor/1`), as JUnit XML, and as text for people. Prints nothing."""

from __future__ import annotations

import io
import shutil
import textwrap
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


def to_text(report: Report, wall_s: float, width: int | None = None, colour: bool = False) -> str:
    """Nodes, findings with what to do, and a summary.

    Args:
        report: the result.
        wall_s: how long the examination took.
        width: of the terminal; taken from it by default.
        colour: whether to use the terminal's colours.
    """
    from rich.console import Console

    buffer = io.StringIO()
    columns = width or max(80, shutil.get_terminal_size().columns)
    console = Console(file=buffer, width=columns, force_terminal=colour, highlight=False, emoji=False)
    if report.level != "config":
        _print_nodes(report, console)
    _print_findings(report, console)
    _print_summary(report, wall_s, console)
    return buffer.getvalue()


def _print_nodes(report: Report, console: Console) -> None:
    from rich.table import Table

    caption = "declared / physical / logical"
    table = Table("node", "CPUs", "memory", "GPUs", "Ray", caption=caption, caption_justify="left")
    for node in report.gathered.nodes:
        table.add_row(*_row(node, report))
    console.print(table)


def _row(node: NodeReport, report: Report) -> tuple[str, ...]:
    if node.facts is None:
        return (node.name, "?", "?", "?", "no answer")
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

    if logical is not None:
        ray = "alive"
    else:
        ray = "not provisioned" if node.installed is None else "-" if report.level == "hosts" else "not alive"
    return (
        node.name,
        triple(declared.cpus, facts["cpu"]["usable"], "CPU"),
        triple(declared.memory, facts["memory"]["usable_bytes"], "memory", is_size=True),
        triple(declared.gpus, gpus, "GPU"),
        ray,
    )


def _print_findings(report: Report, console: Console) -> None:
    for finding in report.findings:
        word = "waived" if finding.waived else finding.severity
        where = f" {finding.node}:" if finding.node else ""
        style = "dim" if finding.waived else _STYLES[finding.severity]
        _print_hanging(console, f"{word:<8}", style, f"{finding.code}{where} {finding.message}")
        extra = f"waived: {finding.waived}" if finding.waived else finding.fix
        _print_hanging(console, " " * 8, "", f"-> {extra}", indent=11)


def _print_hanging(console: Console, label: str, style: str, text: str, indent: int = 8) -> None:
    """A label and wrapped text beside it. A command is never broken within a word."""
    from rich.text import Text

    room = console.width - indent
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    console.print(Text.assemble((label, style), lines[0]), soft_wrap=True)
    for line in lines[1:]:
        console.print(Text(" " * indent + line), soft_wrap=True)


def _print_summary(report: Report, wall_s: float, console: Console) -> None:
    from rich.text import Text

    counts: dict[str, int] = {}
    for check in report.checks:
        counts[check.status] = counts.get(check.status, 0) + 1
    words = {"pass": "passed", "warn": "warn", "fail": "failed", "crash": "crashed", "skip": "skipped"}
    said = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if status in counts)
    skipped: dict[str, list[str]] = {}
    for check in report.checks:
        if check.status == "skip":
            reason = next(iter(check.skipped.values()), "no node")
            skipped.setdefault(reason, []).append(check.code)
    for reason, codes in skipped.items():
        _print_hanging(console, "skipped ", "dim", f"{', '.join(codes)}: {reason}")
    nodes = len(report.gathered.nodes)
    console.print(
        Text.assemble(
            (f"{report.verdict}", _STYLES[report.verdict]),
            f": {len(report.checks)} checks on {nodes} node{'s' if nodes != 1 else ''} in {wall_s:.1f} s"
            f" (level {report.level}): {said}",
        )
    )
    if report.findings:
        console.print(Text(f"raytools doctor --explain {report.findings[0].code} says more", style="dim"))
