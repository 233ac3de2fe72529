"""How long the doctor takes for many nodes, and how much memory: what the controller does, not the nodes.

    .venv/bin/python -m benchmarks.doctor_nodes [--nodes 100] [--runs 5]

Each node answers what this machine's real `inspect` has said, under its own name and address, 20 ms after it
was asked; no ssh is in it. Inventory, plan, judgement and text are real; each run is a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.measure import CHECKOUT, Row, print_rows
from raytools.inventory import Host
from raytools.transport import Answer, NodeCommand

_DELAY_S = 0.02
_AT_ONCE = 32  # as transport.call
_TIME_BAR_S, _MEMORY_BAR_MIB = 10.0, 300.0


def main() -> int:
    """Measures, and prints the table; `--once DIR` is one run, in its own process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        return _once(options.once)
    with tempfile.TemporaryDirectory() as directory:
        _write_project(Path(directory), options.nodes)
        wall = Row(f"doctor --level hosts, {options.nodes} nodes", bar=_TIME_BAR_S)
        memory = Row("its memory at most", bar=_MEMORY_BAR_MIB, unit="MiB")
        for _ in range(options.runs):
            command = [sys.executable, "-m", "benchmarks.doctor_nodes", "--once", directory]
            done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            wall.values.append(found["wall_s"])
            memory.values.append(found["peak_mib"])
        return print_rows(f"the doctor on {options.nodes} nodes with recorded answers", [wall, memory])


def _write_project(directory: Path, nodes: int) -> None:
    names = [f"n{number}" for number in range(1, nodes + 1)]
    hosts = {name: {"ansible_host": _address(name)} for name in names}
    inventory = {
        "head": {"hosts": {names[0]: hosts[names[0]]}},
        "workers": {"hosts": {name: hosts[name] for name in names[1:]}},
    }
    (directory / "hosts.json").write_text(json.dumps(inventory))
    (directory / "cluster.yaml").write_text("cluster: many\n")
    inspect = [sys.executable, "-m", "raytools.node", "inspect", "--node-json", "/nowhere/node.json"]
    done = subprocess.run(inspect, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    (directory / "inspection.json").write_text(done.stdout)


def _address(name: str) -> str:
    high, low = divmod(int(name[1:]), 200)
    return f"192.0.{high}.{low + 1}"


def _once(directory: Path) -> int:
    from raytools.doctor import gather
    from raytools.doctor.evaluate import evaluate
    from raytools.doctor.report import to_json, to_text
    from raytools.project import find_project

    inspection = json.loads((directory / "inspection.json").read_text())
    began = time.perf_counter()
    project = find_project(directory / "cluster.yaml", directory / "hosts.json")
    with mock.patch.object(gather, "call", _recorded(inspection)):
        report = evaluate(gather.gather(project, "hosts"))
    text = to_text(report, 0.0, 100)
    wall_s = time.perf_counter() - began
    assert len(to_json(report)["nodes"]) == len(report.gathered.nodes)
    assert all(node.reachable for node in report.gathered.nodes)
    assert "checks on" in text
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"wall_s": wall_s, "peak_mib": peak_mib}))
    return 0


def _recorded(inspection: Mapping[str, Any]) -> Any:
    """In the place of transport.call."""

    def answer(host: Host) -> Answer:
        time.sleep(_DELAY_S)
        own = copy.deepcopy(dict(inspection))
        own["facts"]["network"] |= {"primary_address": host.address, "addresses": [host.address]}
        return Answer(json.dumps(own), "", 0)

    def call(
        hosts: Sequence[Host], command: Mapping[str, NodeCommand], timeout_s: float, *, state_dir: Path
    ) -> dict[str, Answer]:
        del command, timeout_s, state_dir
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(zip((host.name for host in hosts), pool.map(answer, hosts), strict=True))

    return call


if __name__ == "__main__":
    sys.exit(main())
