"""In a machine: `/bin/true` bare, by `raytools run` and by `systemd-run --scope`, in turns, as root.

Argument: how many rounds. Prints one JSON object: contestant -> wall times, in seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_MIB = 2**20
_TRUE = ["/bin/true"]
_SCOPE = [
    "systemd-run", "--scope", "--quiet", "-p", f"MemoryMax={256 * _MIB}", "-p", "MemorySwapMax=0",
    "-p", "AllowedCPUs=0", "-p", "TasksMax=4096", "-p", "RuntimeMaxSec=60",
]  # fmt: skip
_RUN = [
    sys.executable, "-m", "raytools", "run", "--cpus", "1", "--memory", "256MiB", "--time", "60s", "--",
]  # fmt: skip

walls: dict[str, list[float]] = {"/bin/true": [], "systemd-run --scope": [], "raytools run": []}
commands = dict(zip(walls, (_TRUE, [*_SCOPE, *_TRUE], [*_RUN, *_TRUE]), strict=True))
with tempfile.TemporaryDirectory() as root:
    slot = {"index": 0, "cpus": sorted(os.sched_getaffinity(0)), "memory_bytes": 1024 * _MIB, "gpus": []}
    Path(root, "node.json").write_text(json.dumps({"name": "benchmark", "slots": [slot]}))
    os.environ["RAYTOOLS_ROOT"] = root
    for number in range(int(sys.argv[1]) + 1):
        order = list(commands) if number % 2 else list(reversed(commands))
        for name in order:
            began = time.perf_counter()
            subprocess.run(commands[name], check=True)
            if number:  # the first one compiles, and fills the page cache
                walls[name].append(time.perf_counter() - began)
print(json.dumps(walls))
