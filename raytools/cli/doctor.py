"""`raytools doctor`: proves that every node is what it claims to be, or says what is not."""

from __future__ import annotations

import json
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from raytools.cli.options import ConfigOption, InventoryOption, JsonOption, new_app
from raytools.errors import RaytoolsError
from raytools.project import find_project

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
    explain: Annotated[
        str | None, typer.Option(metavar="CODE", help="Explain a code such as RT101, and check nothing.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that every node is what it claims to be: declared = physical = logical.

    \b
    Examples:
      raytools doctor
      raytools doctor --level prove
      raytools doctor --json | jq '.findings[] | select(.waived == null)'
      raytools doctor --explain RT101

    Exit codes: 0 nothing at or above the threshold, 1 findings, 2 could not run.
    """
    if explain is not None:
        typer.echo(_explanation(explain))
        return
    from raytools.doctor.evaluate import evaluate
    from raytools.doctor.gather import gather
    from raytools.doctor.report import to_json, to_junit, to_text

    began = time.monotonic()
    report = evaluate(gather(find_project(config, inventory), level.value, timeout))
    if junit is not None:
        try:
            junit.write_text(to_junit(report, threshold.value), encoding="utf-8")
        except OSError as error:
            raise RaytoolsError(f"--junit {junit} cannot be written ({error.strerror})") from error
    if as_json:
        json.dump(to_json(report), sys.stdout)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(to_text(report, time.monotonic() - began, colour=sys.stdout.isatty()))
    raise typer.Exit(1 if report.worst_at_least(threshold.value) else 0)


def _explanation(code: str) -> str:
    from raytools.doctor.explanations import EXPLANATIONS, explain

    wanted = code.strip().upper()
    if wanted not in EXPLANATIONS:
        raise RaytoolsError(f"--explain found {code!r}", expected=f"one of {', '.join(EXPLANATIONS)}")
    return explain(wanted)
