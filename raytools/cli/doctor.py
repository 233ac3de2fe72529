"""`raytools doctor`: proves that every node is what it claims to be, or says what is not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.errors import RaytoolsError
from raytools.project import Project, find_project
from raytools.units import parse_duration_s

if TYPE_CHECKING:
    from raytools.doctor.model import Check, Level, Report, Severity

_PAUSE_S = 2.0  # between two looks of --wait

app = new_app()


class LevelName(str, Enum):
    """How far to look; each level includes those before it."""

    CONFIG = "config"
    HOSTS = "hosts"
    CLUSTER = "cluster"
    PROVE = "prove"


class ThresholdName(str, Enum):
    """From which severity on a finding makes the exit code 1."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@app.command()
def doctor(
    config: ConfigOption = None,
    inventory: InventoryOption = None,
    level: Annotated[
        LevelName,
        typer.Option(
            help="config: files only. hosts: the machines, Ray need not run. cluster: and Ray. "
            "prove: and real runs that try to exceed their limits."
        ),
    ] = LevelName.CLUSTER,
    threshold: Annotated[
        ThresholdName, typer.Option(help="Exit with 1 for findings of this severity or worse.")
    ] = ThresholdName.ERROR,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long a node may take.")] = 60.0,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the result as JUnit XML.")
    ] = None,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Mend what is safe, after showing it: left processes, runs and sessions, dead workers.",
            show_default=False,
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --fix: do not ask.", show_default=False)] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tar.gz",
            help="Also write all that is known, with the ends of logs, for a bug report.",
        ),
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="CODES", help="Make these checks alone: RT101,RT7xx.", show_default=False)
    ] = "",
    skip: Annotated[
        str, typer.Option(metavar="CODES", help="Leave these checks out.", show_default=False)
    ] = "",
    wait: Annotated[
        str,
        typer.Option(
            metavar="DURATION", help="Look again until nothing is left to find, so long at most: 120s, 5m."
        ),
    ] = "0s",
    list_: Annotated[
        bool, typer.Option("--list", help="List all checks, and make none.", show_default=False)
    ] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="CODE", help="Explain a code such as RT101, and check nothing.")
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v", "--verbose", help="A line for each check that found nothing, too.", show_default=False
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove that every node is what it claims to be: declared = physical = logical.

    \b
    Examples:
      raytools doctor
      raytools doctor --level prove
      raytools doctor --only RT7xx,RT801 --wait 2m
      raytools doctor --json | jq '.findings[] | select(.waived == null)'
      raytools doctor --fix
      raytools doctor --bundle report.tar.gz
      raytools doctor --explain RT101

    Exit codes: 0 nothing at or above the threshold, 1 findings, 2 could not run.
    """
    if explain is not None:
        typer.echo(_explanation(explain))
        return
    if list_:
        typer.echo(_table(as_json))
        return
    from raytools.doctor.report import to_json, to_junit, to_text
    from raytools.doctor.selection import select

    checks = select(level.value, only, skip)
    wait_s = _duration("--wait", wait)
    began = time.monotonic()
    project = find_project(config, inventory)
    # what can be mended is mended at once: it is not to be waited for
    report = _examine(project, level.value, timeout, checks, threshold.value, 0 if fix else wait_s)
    if fix and (_mend(project, report, yes) or wait_s):
        report = _examine(project, level.value, timeout, checks, threshold.value, wait_s)
    if junit is not None:
        try:
            junit.write_text(to_junit(report, threshold.value), encoding="utf-8")
        except OSError as error:
            raise RaytoolsError(f"--junit {junit} cannot be written ({error.strerror})") from error
    if bundle is not None:
        from raytools.doctor.bundle import write_bundle

        write_bundle(bundle, project, report, time.monotonic() - began, timeout)
        typer.echo(
            f"{bundle}: look through it before you send it; secrets were removed as far as known", err=True
        )
    if as_json:
        json.dump(to_json(report), sys.stdout)
        sys.stdout.write("\n")
    else:
        text = to_text(report, time.monotonic() - began, colour=sys.stdout.isatty(), verbose=verbose)
        sys.stdout.write(text)
    raise typer.Exit(1 if report.worst_at_least(threshold.value) else 0)


def _duration(option: str, text: str) -> float:
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise RaytoolsError(f"{option}: {error}") from error


def _examine(
    project: Project,
    level: Level,
    timeout_s: float,
    checks: Sequence[Check],
    threshold: Severity,
    wait_s: float,
) -> Report:
    """Looks; and again, as long as it is to wait for a healthy cluster."""
    from raytools.doctor.evaluate import evaluate
    from raytools.doctor.gather import gather

    codes = {check.code for check in checks}
    deadline = time.monotonic() + wait_s
    while True:
        report = evaluate(gather(project, level, timeout_s, codes), checks)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not report.worst_at_least(threshold):
            return report
        first = next(one for one in report.findings if one.waived is None)
        where = f" {first.node}:" if first.node else ""
        typer.echo(f"{first.code}{where} {first.message} ({left_s:.0f} s left)", err=True)
        time.sleep(min(_PAUSE_S, left_s))


def _mend(project: Project, report: Report, yes: bool) -> bool:
    """Shows what it would do, asks, and does it; True if anything was tried."""
    from raytools.doctor.remedies import apply_remedies, remedies
    from raytools.inventory import load_inventory

    wanted = remedies(report)
    if not wanted:
        typer.echo("--fix: nothing was found that it may mend", err=True)
        return False
    for remedy in wanted:
        typer.echo(f"{remedy.node}: {remedy.what}", err=True)
    if not yes and not sys.stdin.isatty():
        raise RaytoolsError("--fix asks before it does this, and nobody can answer here", fix="Add: --yes")
    if not yes and not typer.confirm("Do this?", err=True):
        return False
    left = list(wanted)
    try:
        for remedy, said in apply_remedies(project, load_inventory(project.inventory_path).hosts, wanted):
            typer.echo(f"{remedy.node}: {said}", err=True)
            left.remove(remedy)
    except KeyboardInterrupt:
        if open_ := "; ".join(f"{remedy.node}: {remedy.what}" for remedy in left):
            typer.echo(
                f"\n--fix: interrupted: may be done or not: {open_}. raytools doctor shows it", err=True
            )
        raise
    return True


def _table(as_json: bool) -> str:
    from raytools.doctor.checks import CHECKS

    if as_json:
        return json.dumps([{"code": one.code, "title": one.title, "level": one.level} for one in CHECKS])
    return "\n".join(f"{one.code}  {one.level:<8} {one.title}" for one in CHECKS)


def _explanation(code: str) -> str:
    from raytools.doctor.explanations import EXPLANATIONS, explain

    wanted = code.strip().upper()
    if wanted not in EXPLANATIONS:
        raise RaytoolsError(f"--explain found {code!r}", expected=f"one of {', '.join(EXPLANATIONS)}")
    return explain(wanted)
