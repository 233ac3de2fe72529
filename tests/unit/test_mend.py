"""What --fix does on a node: ends what this cluster has left; restarts a worker, never a head."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raytools.node import inspect_processes, mend

Start = Callable[..., "subprocess.Popen[bytes]"]
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(300)"
)


@pytest.fixture
def left_behind() -> Iterator[Start]:
    """Starts processes as a dead Ray of a root leaves them."""
    started: list[subprocess.Popen[bytes]] = []

    def start(root: Path, *command: str) -> subprocess.Popen[bytes]:
        variables = {"RAYTOOLS_RAY_SESSION": "fedcba9876543210", "RAYTOOLS_ROOT": str(root)}
        process = subprocess.Popen(
            command or ("sleep", "300"), env={**os.environ, **variables}, start_new_session=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        # Popen returns when exec has closed its pipe, a moment before the kernel shows the new environment
        deadline = time.monotonic() + 10
        while "RAYTOOLS_ROOT" not in (inspect_processes.environ(process.pid) or {}):
            assert time.monotonic() < deadline, "its environment does not show"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(5)
        assert process.stdout
        process.stdout.close()


def test_what_this_root_has_left_is_ended_and_another_roots_is_not(
    left_behind: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = left_behind(tmp_path), left_behind(tmp_path / "other")
    assert mend.main(["leftovers", "--root", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"done": "ended 1 processes"}
    assert ours.wait(5) == -signal.SIGTERM
    assert theirs.poll() is None


def test_what_is_deaf_to_sigterm_is_killed(
    left_behind: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mend, "_PATIENCE_S", 1.0)
    deaf = left_behind(tmp_path, sys.executable, "-c", DEAF)
    assert deaf.stdout
    deaf.stdout.readline()  # it is deaf from here on
    assert mend.end_leftovers(tmp_path) == "ended 1 processes"
    assert deaf.wait(5) == -signal.SIGKILL


def test_a_number_that_another_roots_process_has_taken_over_is_let_alone(
    left_behind: Start, tmp_path: Path
) -> None:
    assert mend._opened(left_behind(tmp_path / "other").pid, tmp_path) is None
    handle = mend._opened(left_behind(tmp_path).pid, tmp_path)
    assert handle is not None
    os.close(handle)


def test_where_nothing_is_left_nothing_is_done(tmp_path: Path) -> None:
    assert mend.end_leftovers(tmp_path) == "ended 0 processes"


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was asked of it, a line each."""
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n')
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "asked"


def plan(root: Path, role: str) -> None:
    (root / "node.json").write_text(
        json.dumps({"schema": "raytools.node/1", "role": role, "cluster": "demo"})
    )


def test_a_workers_unit_is_restarted(systemctl: Path, tmp_path: Path) -> None:
    plan(tmp_path, "worker")
    assert mend.main(["unit", "--root", str(tmp_path)]) == 0
    assert systemctl.read_text() == "restart raytools-ray-demo.service\n"


def test_a_heads_unit_is_never_restarted(
    systemctl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(tmp_path, "head")
    assert mend.main(["unit", "--root", str(tmp_path)]) == 1
    assert "ansible-playbook playbooks/ray.yml" in capsys.readouterr().err
    assert not systemctl.exists()
