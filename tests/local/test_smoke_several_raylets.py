"""What workloads of scope `cluster` do where there are several nodes: several raylets of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from .limited_runs import why_no_limits
from .planned_node import built_prefix, free_base_port, write_node

_why_not = why_no_limits()
pytestmark = [pytest.mark.timeout(300), pytest.mark.long, pytest.mark.skipif(bool(_why_not), reason=_why_not)]

SEVERAL = Path(__file__).with_name("several_raylets.py")
GATES = Path(__file__).with_name("gates.py")


def several_raylets(tmp_path: Path, program: Path, *arguments: str) -> Any:
    """What that program found on raylets of its own, with CPUs that nobody else can hold."""
    node = write_node(tmp_path / "root", built_prefix(), free_base_port(60), slots=2)
    short = tempfile.mkdtemp(prefix="rt-")  # Ray's sockets allow 107 bytes
    done = subprocess.run(
        [node["python"], str(program), *arguments],
        env={
            **os.environ, "PYTHONPATH": node["toolkit"], "RAYTOOLS_ROOT": node["root"],
            "RAYTOOLS_LOCK_DIR": str(tmp_path / "locks"), "RAY_TMPDIR": short,
        },
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    shutil.rmtree(short, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_gates_are_on_the_drivers_node(tmp_path: Path) -> None:
    assert several_raylets(tmp_path, GATES) == 10


def test_raylets_send_to_each_other_and_one_that_stands_still_fails_its_pairs_only(tmp_path: Path) -> None:
    usual, stopped = several_raylets(tmp_path, SEVERAL, "3", "8MiB")
    for entry in usual.values():
        assert entry["outcome"] == "ok", entry["metrics"]["pairs"]
        assert entry["metrics"]["transfers"] == 12
        assert len({(pair["from"], pair["to"]) for pair in entry["metrics"]["pairs"]}) == 6
        assert all(pair["bytes_per_s"] > 1e5 for pair in entry["metrics"]["pairs"])
        assert [node["node"] for node in entry["metrics"]["nodes"]] == ["n1", "n2", "n3"]
    assert list(stopped) == ["pairs"]
    assert stopped["pairs"]["outcome"] == "failed"
    for pair in stopped["pairs"]["metrics"]["pairs"]:
        assert bool(pair["problem"]) == ("n3" in (pair["from"], pair["to"])), pair
    assert stopped["pairs"]["wall_s"] < 60
