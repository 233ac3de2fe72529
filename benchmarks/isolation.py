"""What isolation costs and how well it holds, side by side with BenchExec's `runexec`.

    .venv/bin/python benchmarks/isolation.py [--runs 20] [--only PART]

Parts: start, time, accuracy, neighbours, crowd. In each, the contestants take turns, so that a disturbance
hits all alike; prints one table per part and exits 1 when a bar is missed. Needs the right to make cgroups
and an otherwise idle machine, but no cluster: slots and locks are its own. The first use installs BenchExec
below .raytools/benchmarks.
"""

from __future__ import annotations

import argparse
import signal
import sys

import isolation_accuracy
import isolation_crowd
import isolation_neighbours
import isolation_start
import isolation_time
from isolation_site import Site
from measure import load_note, print_rows

PARTS = {
    "start": isolation_start,
    "time": isolation_time,
    "accuracy": isolation_accuracy,
    "neighbours": isolation_neighbours,
    "crowd": isolation_crowd,
}


def main() -> int:
    """Measures part after part; what was made is removed however it ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20, help="rounds of each part (default 20)")
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    missed = 0
    with Site() as site:
        for name in [options.only] if options.only else PARTS:
            busy_before = load_note()
            rows = PARTS[name].measure(site, max(1, options.runs))
            missed |= print_rows(PARTS[name].TITLE, rows, load=busy_before)
    return missed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
