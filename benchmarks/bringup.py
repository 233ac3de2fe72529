"""How fast a cluster comes up, and how fast nothing is done, on hosts in containers.

    .venv/bin/python -m benchmarks.bringup [start|again|first] [--rounds 3] [--hosts 2,3] [--json FILE]

start   environment in place, Ray stopped -> all nodes alive: playbooks/ray.yml against `ray up`, in turns
again   playbooks/cluster.yml with nothing to do, for a growing number of hosts
first   bare hosts, a lock and warm caches -> playbooks/cluster.yml is done

Exits 1 when a bar is missed, 2 when something could not be measured. Makes a lab of its own (once before:
`make lab-deps`) with a root of its own, and removes both however it ends. Wants an otherwise idle machine.
Edit nothing in raytools/ or playbooks/ meanwhile: the hosts would be brought up to date.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import bringup_again, bringup_first, bringup_start
from benchmarks.bringup_site import BenchmarkError, Site
from benchmarks.measure import Row, load_note, print_rows
from tests.lab.containers.hosts import LabError

PARTS = {"start": bringup_start, "again": bringup_again, "first": bringup_first}


def main() -> int:
    """Part after part, a table for each at the end of it."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    missed = 0
    document: dict[str, Any] = {"started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "parts": {}}
    try:
        with Site(options.lab, keep=options.keep) as site:
            for name in [options.part] if options.part else PARTS:
                part = PARTS[name]
                busy_before = load_note()
                hosts = options.hosts or part.HOSTS
                rows = part.measure(site, hosts, options.rounds, profile=options.profile)
                missed |= print_rows(part.TITLE, rows, load=busy_before)
                document["parts"][name] = {"load": busy_before, "rows": [_as_json(row) for row in rows]}
                if options.json:
                    options.json.write_text(json.dumps(document, indent=2) + "\n")
    except (BenchmarkError, LabError) as error:
        print(error, file=sys.stderr)
        return 2
    return missed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bringup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="?", choices=PARTS, help="measure this part alone")
    parser.add_argument("--rounds", type=_count, default=3, help="how often each is measured (default 3)")
    parser.add_argument("--hosts", type=_counts, help="how many hosts, such as 2,3 (default: the part's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--profile", action="store_true", help="say where the time goes, too")
    parser.add_argument("--keep", action="store_true", help="leave the lab, and take up one that was left")
    parser.add_argument("--lab", default="bench", help="the lab's name (default bench)")
    return parser.parse_args()


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(one) for one in text.split(",")}))


def _as_json(row: Row) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "median": row.median, "missed": row.missed}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
