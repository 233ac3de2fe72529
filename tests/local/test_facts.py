"""Facts of this machine, compared with what its kernel says and does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raytools.node.facts import collect


def facts_of(*before: str) -> Any:
    """`raytools facts --json`, started by another program."""
    line = [*before, sys.executable, "-m", "raytools", "facts", "--json"]
    return json.loads(subprocess.run(line, capture_output=True, check=True, timeout=30).stdout)


def test_the_command_prints_the_facts_of_this_machine_alone_on_stdout() -> None:
    found = facts_of()
    assert found["schema"] == "raytools.facts/1"
    assert found["cpu"]["affinity"] == sorted(os.sched_getaffinity(0))
    assert found["memory"]["total_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found["host"]["kernel"] == os.uname().release


def test_affinity_narrows_what_is_usable() -> None:
    first = min(os.sched_getaffinity(0))
    found = facts_of("taskset", "-c", str(first))
    assert (found["cpu"]["allowed"], found["cpu"]["usable"]) == ([first], 1)


def test_the_limits_of_a_shell_are_those_that_are_reported() -> None:
    found = facts_of("sh", "-c", 'ulimit -Sn 512; exec "$@"', "sh")
    assert found["limits"]["nofile_soft"] == 512


def test_the_primary_address_is_one_of_this_machines() -> None:
    network = collect()["network"]
    assert network["primary_address"] is None or network["primary_address"] in network["addresses"]


def test_a_root_that_does_not_exist_yet_is_measured_where_it_will_be(tmp_path: Path) -> None:
    disk = collect(root=str(tmp_path / "not" / "yet"))["disk"]["root"]
    assert disk["path"] == str(tmp_path / "not" / "yet")
    assert disk["total_bytes"] == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


def test_libgomp_of_the_environment_is_found_before_the_systems(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libgomp.so.1").touch()
    found = collect({"environment": {"prefix": str(tmp_path)}})
    assert found["libraries"]["libgomp.so.1"] == str(tmp_path / "lib" / "libgomp.so.1")


@pytest.mark.parametrize("script", ["exit 1", "echo 0, GPU-1, Tesla T4, 15360", "echo no devices; exit 9"])
def test_nvidia_smi_is_asked_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gpus = collect()["gpus"]
    expected = [{"index": 0, "uuid": "GPU-1", "name": "Tesla T4", "memory_bytes": 15360 * 2**20}]
    assert gpus == (expected if "Tesla" in script else None)


# --- real control groups -------------------------------------------------------------------------


@pytest.fixture
def v1_group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A child of this process's own v1 group of one controller."""
    controller = request.param
    own = collect()["cgroup"]["own"].get(controller)
    if own is None or "unified" in own or not os.access(own, os.W_OK):
        pytest.skip(f"no cgroup v1 controller {controller} here that this user may use")
    group = Path(own) / f"raytools-test-{os.getpid()}"
    group.mkdir()
    yield group
    deadline = time.monotonic() + 5
    while (group / "cgroup.procs").read_text().strip() and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel lists a process for a moment after its end
    group.rmdir()


def facts_inside(group: Path) -> Any:
    return facts_of("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")


@pytest.mark.parametrize("v1_group", ["memory"], indirect=True)
def test_a_memory_limit_of_the_group_above_is_found(v1_group: Path) -> None:
    (v1_group / "memory.limit_in_bytes").write_text("536870912")
    inner = v1_group / "inner"
    inner.mkdir()
    try:
        memory = facts_inside(inner)["memory"]
    finally:
        inner.rmdir()
    assert (memory["limit_bytes"], memory["usable_bytes"]) == (536870912, 536870912)


@pytest.mark.parametrize("v1_group", ["cpu"], indirect=True)
def test_a_cpu_quota_of_the_group_is_found(v1_group: Path) -> None:
    (v1_group / "cpu.cfs_quota_us").write_text("150000")
    cpu = facts_inside(v1_group)["cpu"]
    assert cpu["quota_cpus"] == 1.5
    assert cpu["usable"] == 1


@pytest.mark.parametrize("v1_group", ["cpuset"], indirect=True)
def test_a_cpuset_of_the_group_is_found(v1_group: Path) -> None:
    first = min(os.sched_getaffinity(0))
    (v1_group / "cpuset.mems").write_text((v1_group.parent / "cpuset.mems").read_text())
    (v1_group / "cpuset.cpus").write_text(str(first))
    cpu = facts_inside(v1_group)["cpu"]
    assert (cpu["cpuset"], cpu["allowed"], cpu["usable"]) == ([first], [first], 1)
