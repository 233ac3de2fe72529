"""Wall times of raytools' commands on this machine, against their bars. Exits 1 when a bar is missed.

    .venv/bin/python benchmarks/commands.py [--runs 10] [--without-playbook]

Needs the cluster of the checkout to run (`make quickstart`); wants an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys

from measure import SCRIPTS, Row, print_rows, time_command

RAYTOOLS = str(SCRIPTS / "raytools")
PLAYBOOK = [str(SCRIPTS / "ansible-playbook"), "playbooks/cluster.yml"]

# name, arguments, bar in seconds, share of --runs, accepted exit codes
COMMANDS = (
    ("raytools --help", ["--help"], 0.25, 1.0, (0,)),
    ("raytools config check", ["config", "check"], 0.25, 1.0, (0,)),
    ("raytools facts --json", ["facts", "--json"], 0.5, 1.0, (0,)),
    ("raytools doctor --json", ["doctor", "--json"], 3.0, 0.5, (0, 1)),  # findings are an answer, too
)


def main() -> int:
    """Measures everything once per round, so that a disturbance hits all alike."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10, help="rounds (default 10)")
    parser.add_argument("--without-playbook", action="store_true", help="leave the playbook out")
    options = parser.parse_args()
    rows = [Row(name, bar=bar) for name, _, bar, _, _ in COMMANDS]
    limited, bare = Row("raytools run -- true"), Row("true")
    for number in range(options.runs):
        for row, (_, arguments, _, share, accepted) in zip(rows, COMMANDS, strict=True):
            if number < max(1, options.runs * share):
                time_command([RAYTOOLS, *arguments], row, accepted=accepted)
        time_command([RAYTOOLS, "run", "--", "true"], limited)
        time_command(["true"], bare)
    rows += [limited, bare, _difference(limited, bare)]
    if not options.without_playbook:
        rows.append(_playbook())
    return print_rows("commands", rows)


def _difference(limited: Row, bare: Row) -> Row:
    """What a limited run costs; the bar is what importing Typer and pydantic alone would take."""
    row = Row("  what the limits cost", bar=0.12, trouble=limited.trouble)
    row.values = [one - other for one, other in zip(limited.values, bare.values, strict=False)]
    return row


def _playbook() -> Row:
    """The second run of two: the first may have something to do."""
    row = Row("playbooks/cluster.yml, nothing to do", bar=15.0)
    for _ in range(2):
        row.values.clear()
        time_command(PLAYBOOK, row)
    return row


if __name__ == "__main__":
    sys.exit(main())
