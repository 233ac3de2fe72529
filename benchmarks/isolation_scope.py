"""What a limited run costs on cgroup v2, beside the scope of systemd that people would use instead.

    .venv/bin/python -m benchmarks.isolation_scope [--runs 20]

In a virtual machine of its own (once before: make vm-deps): there cgroup v2 and systemd are for sure. Both
limit CPUs, memory, swap, processes and time; a scope knows no slots, confines nothing and leaves no record.
"""

from __future__ import annotations

import argparse
import io
import json
import operator
import sys
import tarfile
from pathlib import Path

from benchmarks.measure import CHECKOUT, Row, print_rows
from tests.lab.machines import MachineSpec, running_lab

_DIRECTORY = "/opt/benchmark"
_PROGRAM = Path(__file__).with_name("isolation_programs") / "in_turns.py"


def main() -> int:
    """Measures in a machine, and removes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20, help="rounds (default 20)")
    options = parser.parse_args()
    with running_lab([MachineSpec("n1")]) as lab:
        machine = lab.machine("n1")
        machine.run(f"mkdir {_DIRECTORY}")
        machine.run(f"tar --extract --directory={_DIRECTORY}", data=_packed())
        run = f"cd {_DIRECTORY} && PYTHONPATH=. python3 in_turns.py {max(1, options.runs)}"
        walls = json.loads(machine.run(run, wait_s=1800).stdout)
        rows = [Row(name, values) for name, values in walls.items()]
        bare, scope, ours = rows
        for one, other in ((ours, bare), (scope, bare)):
            row = Row(f"{one.name} - {other.name}")
            row.values = list(map(operator.sub, one.values, other.values))
            rows.append(row)
        ratio = Row("raytools run / systemd-run --scope", unit="x")
        ratio.values = list(map(operator.truediv, ours.values, scope.values))
        return print_rows(f"/bin/true on cgroup v2, {machine.accelerator}", [*rows, ratio])


def _packed() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(
            CHECKOUT / "raytools", "raytools", filter=lambda one: None if "__pycache__" in one.name else one
        )
        archive.add(_PROGRAM, _PROGRAM.name)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
