"""Which processes belong to a Ray that lives, and which are left of one that is dead."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from raytools.node import inspect_processes
from raytools.node.inspect_processes import Process, leftovers, living_rays, parse_processes

SESSION = "/tmp/ray-of-alice/session_1"
GCS = "--gcs-address=192.0.2.12:7001"


def process(pid: int, name: str, *command: str, ppid: int = 1, uid: int = 1001) -> Process:
    return Process(pid, ppid, name, uid, 100, command)


def daemonized(*more: Process) -> dict[int, Process]:
    """`ray start --head` without --block: init has all of it."""
    every = [
        process(1, "systemd", "/sbin/init", ppid=0, uid=0),
        process(5_000_010, "gcs_server", "/env/gcs_server", f"--session-dir={SESSION}"),
        process(5_000_011, "raylet", "/env/raylet", f"--session_dir={SESSION}", GCS),
        process(
            5_000_012,
            "python",
            "/env/python",
            "/env/ray/autoscaler/_private/monitor.py",
            f"--logs-dir={SESSION}/logs",
        ),
        process(
            5_000_013, "python", "/env/python", "-m", "ray.util.client.server", "--address=192.0.2.12:7001"
        ),
        *more,
    ]
    return {one.pid: one for one in every}


def left(every: dict[int, Process]) -> list[int]:
    return [one["pid"] for one in leftovers(every, living_rays(every), "/opt/raytools")]


def test_nothing_of_another_users_living_ray_is_called_left_over() -> None:
    assert left(daemonized()) == []


def test_what_a_dead_ray_has_left_is_named_though_another_lives() -> None:
    other = process(
        5_000_020,
        "python",
        "/env/python",
        "/env/ray/_private/log_monitor.py",
        "--session-dir=/tmp/x/session_0",
    )
    served = process(
        5_000_021, "python", "/env/python", "-m", "ray.util.client.server", "--address=192.0.2.12:7777"
    )
    mine = process(
        5_000_022, "python", "/env/python", "-m", "ray.util.client.server", "--address=192.0.2.12:7001", uid=7
    )
    assert left(daemonized(other, served, mine)) == [5_000_020, 5_000_021, 5_000_022]


def test_the_server_of_a_ray_that_has_lost_its_raylet_is_left_over() -> None:
    every = daemonized()
    del every[5_000_010], every[5_000_011]
    assert left(every) == [5_000_012, 5_000_013]


def test_a_ray_that_is_just_starting_has_left_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # every process of the unit has the variable from the beginning
    monkeypatch.setattr(
        inspect_processes, "environ", lambda _: {inspect_processes.SESSION_VARIABLE: "systemd"}
    )
    python, node_code = "/env/python", ("-m", "raytools.node")
    unit = [
        process(5_000_030, "ray", python, "/env/bin/ray", "start", "--head", "--block"),
        process(5_000_032, "python", python, "/env/ray/_private/log_monitor.py", ppid=5_000_030),
        process(
            5_000_033,
            "python",
            python,
            *node_code,
            "enter-main",
            "ray-start",
            "--after",
            GCS,
            "/env/bin/ray",
            "start",
        ),
        process(5_000_034, "python", python, *node_code, "ray", "await", "--pid", "5000030"),
    ]
    assert left({one.pid: one for one in unit}) == []


def test_a_function_of_a_run_whose_supervisor_and_ray_are_gone_is_left_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspect_processes, "environ", lambda _: {inspect_processes.SESSION_VARIABLE: "dead"})
    call = process(
        5_000_040, "python", "/env/python", "-m", "raytools.node", "call", "/tmp/call", "/tmp/answer"
    )
    assert left({call.pid: call}) == [5_000_040]


def test_the_module_reads_this_machine() -> None:
    assert inspect_processes.processes()


def test_the_limit_of_processes_of_a_process_is_its_soft_one() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        _, hard = psutil.Process(child.pid).rlimit(psutil.RLIMIT_NPROC)
        psutil.Process(child.pid).rlimit(psutil.RLIMIT_NPROC, (21, hard))
        limits = Path(f"/proc/{child.pid}/limits").read_text()
        child.kill()
    assert parse_processes(limits) == 21
    assert (
        parse_processes("Max processes             unlimited            unlimited            processes")
        is None
    )
    assert parse_processes("") is None
