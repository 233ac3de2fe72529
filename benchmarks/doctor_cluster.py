"""How long the doctor takes on a cluster that runs, level by level, against its bars.

    .venv/bin/python -m benchmarks.doctor_cluster -i inventory/lab.yml [-c cluster.yaml] [--runs 5]

`make lab-up N=3` and the playbook give three hosts in containers. Findings are an answer, too: exit code 1 of
the doctor is accepted. Wants an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.measure import SCRIPTS, Row, print_rows, time_command

_LEVELS = (("config", 5.0, 1), ("hosts", 3.0, 1), ("cluster", 3.0, 1), ("prove", 60.0, 2))
"""Level, bar in seconds on three hosts, and the share of --runs it is measured in (1/n)."""


def main() -> int:
    """Measures each level once per round, so that a disturbance hits all alike."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-i", "--inventory", required=True)
    parser.add_argument("-c", "--config")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    where = ["-i", options.inventory, *(["-c", options.config] if options.config else [])]
    rows = [Row(f"doctor --level {level}", bar=bar) for level, bar, _ in _LEVELS]
    for number in range(options.runs):
        for row, (level, _, share) in zip(rows, _LEVELS, strict=True):
            if number % share == 0:
                command = [str(SCRIPTS / "raytools"), "doctor", "--level", level, "--json", *where]
                time_command(command, row, accepted=(0, 1))
    return print_rows("the doctor on a cluster", rows)


if __name__ == "__main__":
    sys.exit(main())
