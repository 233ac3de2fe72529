"""`raytools run --wait`: waiters take turns, wake at once, cost nothing, and can be called off."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.local.limited_runs import PATIENCE, Runs, plain_user, wait_until
from tests.local.test_run import private_locks as private_locks
from tests.local.test_run import pytestmark as needs_cgroups

pytestmark = [needs_cgroups, pytest.mark.usefixtures("private_locks")]

PROGRAM = ("-m", "raytools")
# for waiters that only the kernel wakes: they do not look for themselves as long as a test takes
UNTIL_WOKEN = (
    "-c",
    "from raytools.__main__ import main; from raytools.node import waiting; waiting._SAFETY_S = 60.0; main()",
)


class Started:
    """A `raytools run` in the background."""

    def __init__(
        self,
        directory: Path,
        name: str,
        command: Sequence[str],
        options: Sequence[str],
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._record = directory / f"{name}.json"
        self._stderr = directory / f"{name}.err"
        with self._stderr.open("wb") as stderr:
            run = [sys.executable, *program, "run", "--record", str(self._record)]
            self.process = subprocess.Popen(
                [*run, *options, "--", *command],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
            )  # fmt: skip

    def record(self) -> dict[str, Any]:
        return json.loads(self._record.read_text()) if self._record.exists() else {}

    def runs(self) -> bool:
        return self._record.exists()

    def waits(self) -> bool:
        return "waiting: " in self.stderr()

    def stderr(self) -> str:
        return self._stderr.read_text()

    def wait(self, timeout_s: float = 30.0) -> int:
        return self.process.wait(timeout_s * PATIENCE)


class Starter:
    """Starts runs; those that are left at the end are ended."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.all: list[Started] = []

    def __call__(
        self, *command: str, options: Sequence[str] = (), program: Sequence[str] = PROGRAM
    ) -> Started:
        started = Started(self.directory, f"run-{len(self.all)}", command, options, program)
        self.all.append(started)
        return started

    def holding(self, *command: str, options: Sequence[str] = ()) -> Started:
        """One that has its slot."""
        started = self(*command, options=options)
        wait_until(started.runs)
        return started

    def waiting(
        self, *command: str, options: Sequence[str] = ("--wait", "60s"), program: Sequence[str] = PROGRAM
    ) -> Started:
        """One that waits for it."""
        started = self(*command, options=options, program=program)
        wait_until(started.waits)
        return started

    def held(self) -> list[dict[str, Any]]:
        found = []
        for path in self.held_files():
            with contextlib.suppress(FileNotFoundError, ValueError):  # it goes, or is being written
                found.append(json.loads(path.read_text()))
        return found

    def held_files(self) -> list[Path]:
        return list((self.directory / "locks" / "held").glob("*.json"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    made = Starter(tmp_path)
    yield made
    for started in made.all:
        started.process.kill()
        started.process.wait(10)
    # a supervisor takes its moment; one that a test killed leaves its file to the next run's sweep
    wait_until(lambda: not any(psutil.pid_exists(held["pid"]) for held in made.held()))
    sweep = [sys.executable, "-m", "raytools", "run", "--", "true"]
    subprocess.run(sweep, check=True, capture_output=True, timeout=30)
    assert made.held_files() == []


def two_slots(directory: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    slots = [
        {"index": index, "cpus": [cpu], "memory_bytes": 1 << 30, "gpus": []}
        for index, cpu in enumerate(cpus[:2])
    ]
    (directory / "root" / "node.json").write_text(json.dumps({"name": "here", "slots": slots}))


def test_a_waiter_gets_the_slot_when_its_holder_ends(start: Starter, tmp_path: Path) -> None:
    enough = tmp_path / "enough"
    holder = start.holding("sh", "-c", f"until [ -e {enough} ]; do sleep 0.05; done")
    waiter = start.waiting("true")
    assert holder.record()["run_id"] in waiter.stderr()
    enough.touch()
    assert waiter.wait() == 0
    assert waiter.record()["started_at"] < waiter.record()["finished_at"]
    assert holder.wait() == 0


def test_a_holder_whose_supervisor_is_killed_wakes_the_waiter_at_once(start: Starter) -> None:
    start.holding("sleep", "60")
    waiter = start.waiting("true", program=UNTIL_WOKEN)
    time.sleep(0.2)
    (held,) = start.held()
    os.kill(held["pid"], signal.SIGKILL)
    assert waiter.wait(10) == 0
    assert "swept run" in waiter.stderr()


def test_a_holder_that_is_ended_wakes_the_waiter_at_once(start: Starter) -> None:
    holder = start.holding("sleep", "60")
    waiter = start.waiting("true", program=UNTIL_WOKEN)
    holder.process.kill()
    assert waiter.wait(10) == 0


def test_waiting_in_vain_is_refused_and_names_the_holder(start: Starter) -> None:
    holder = start.holding("sleep", "60")
    began = time.monotonic()
    waiter = start("true", options=("--wait", "0.5s"))
    assert waiter.wait() == 125
    assert 0.5 <= time.monotonic() - began < 3 * PATIENCE
    assert waiter.record()["outcome"] == "refused"
    refusal = waiter.stderr().splitlines()[-1]
    assert f"is held by run {holder.record()['run_id']}" in refusal
    assert "sleep 60" in refusal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_waiting_as_killed(start: Starter, number: signal.Signals) -> None:
    start.holding("sleep", "60")
    waiter = start.waiting("true")
    waiter.process.send_signal(number)
    assert waiter.wait(5) == 128 + number
    assert waiter.record()["outcome"] == "killed"
    assert "while it waited" in waiter.stderr()
    assert len(start.held()) == 1


def test_a_waiter_that_is_killed_leaves_its_turn_to_the_next(start: Starter) -> None:
    holder = start.holding("sleep", "60")
    first = start.waiting("sleep", "60")
    second = start.waiting("true")
    first.process.kill()
    first.wait()
    holder.process.terminate()
    assert second.wait(5) == 0


def test_a_waiter_that_is_stopped_does_not_keep_the_others_from_the_slot(start: Starter) -> None:
    holder = start.holding("sleep", "60")
    stopped = start.waiting("true")
    start.waiting("true")
    other = start.waiting("true")
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        holder.process.terminate()
        assert other.wait(5) == 0
    finally:
        stopped.process.send_signal(signal.SIGCONT)
    assert stopped.wait(5) == 0


def test_twenty_waiters_use_no_cpu(start: Starter) -> None:
    start.holding("sleep", "60")
    waiters = [start("true", options=("--wait", "60s")) for _ in range(20)]
    for waiter in waiters:
        wait_until(waiter.waits, 30)
    watched = [*(waiter.process.pid for waiter in waiters), *supervisors_of_waiters(start)]
    assert len(watched) == 40
    before_s = cpu_s(watched)
    time.sleep(3)
    assert cpu_s(watched) - before_s < 0.5


def supervisors_of_waiters(start: Starter) -> list[int]:
    holding = {held["pid"] for held in start.held()}
    mark = f"RAYTOOLS_LOCK_DIR={start.directory / 'locks'}"
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(OSError):  # somebody else's, which has just ended
            waits = process.info["name"] == "raytools-run" and process.pid not in holding
            if waits and mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes():
                found.append(process.pid)
    return found


def cpu_s(pids: Sequence[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(time.user + time.system for time in times)


def test_thirty_runs_at_once_all_get_the_one_slot_and_never_two_at_a_time(
    start: Starter, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    script = f"echo begin >>{log}; sleep 0.02; echo end >>{log}"
    runs = [start("sh", "-c", script, options=("--wait", "60s")) for _ in range(30)]
    assert [run.wait() for run in runs] == [0] * 30
    assert log.read_text().split() == ["begin", "end"] * 30
    assert {run.record()["outcome"] for run in runs} == {"ok"}


def test_nobody_waits_much_longer_than_the_others(start: Starter, tmp_path: Path) -> None:
    """Progress for all, not first come first served to the letter: who came before the holder left gets its
    turn before many who came after it."""
    order = tmp_path / "order"
    holder = start.holding("sleep", "60")
    early = [start.waiting("sh", "-c", f"echo early >>{order}") for _ in range(3)]
    holder.process.terminate()
    late = [start("sh", "-c", f"echo late >>{order}", options=("--wait", "60s")) for _ in range(12)]
    assert [run.wait() for run in (*early, *late)] == [0] * 15
    assert "early" in order.read_text().split()[:4]
    assert order.read_text().split().count("early") == 3


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_two_slots_are_both_used_at_the_same_time(start: Starter, tmp_path: Path) -> None:
    two_slots(tmp_path)
    both = [start.holding("sleep", "60") for _ in range(2)]
    assert {run.record()["host"]["slot"] for run in both} == {0, 1}
    cpus = [run.record()["limits"]["cpu_set"] for run in both]
    assert not set(cpus[0]) & set(cpus[1])
    waiters = [start.waiting("true") for _ in range(2)]
    both[1].process.terminate()  # whichever ends, its slot goes on
    assert [waiter.wait(5) for waiter in waiters] == [0, 0]
    assert {waiter.record()["host"]["slot"] for waiter in waiters} == {both[1].record()["host"]["slot"]}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_waiters_for_one_slot_for_any_and_for_all_do_not_block_each_other(
    start: Starter, tmp_path: Path
) -> None:
    two_slots(tmp_path)
    first, second = (start.holding("sleep", "60", options=("--slot", str(slot))) for slot in (0, 1))
    for_all = start.waiting("true", options=("--wait", "60s", "--slot", "all"))
    for_second = start.waiting("true", options=("--wait", "60s", "--slot", "1"))
    for_any = start.waiting("true")
    second.process.terminate()
    assert [for_second.wait(5), for_any.wait(5)] == [0, 0]
    assert for_all.process.poll() is None
    first.process.terminate()
    assert for_all.wait(5) == 0


def test_a_wait_for_more_than_there_is_does_not_wait_at_all(start: Starter) -> None:
    began = time.monotonic()
    assert start("true", options=("--wait", "60s", "--memory", "1TiB")).wait(10) == 125
    assert time.monotonic() - began < 5 * PATIENCE


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a user")
@pytest.mark.skipif(shutil.which("useradd") is None, reason="needs useradd (package passwd)")
@pytest.mark.skipif(
    not Path("/usr/bin/python3").exists(), reason="needs the system's Python (package python3)"
)
def test_users_in_different_directories_wait_for_each_other(
    start: Starter, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with plain_user() as user:
        directory = Path("/tmp") / f"raytools-waiting-{user.user}"
        directory.mkdir()
        theirs = Runs(user, directory)
        try:
            shared = directory / "locks"
            monkeypatch.setenv("RAYTOOLS_LOCK_DIR", str(shared))
            start.directory = directory
            roots = start.holding("sleep", "60")  # root makes the directory of locks
            assert shared.stat().st_mode & 0o1777 == 0o1777
            waiter = theirs.start("true", options=("--wait", "30s"), until_ready=False)
            errors = directory / "record-0.err"
            wait_until(
                lambda: errors.exists() and f"run {roots.record()['run_id']} of root" in errors.read_text()
            )
            roots.process.terminate()
            assert waiter.result(10).ending == (0, "ok")
            held = theirs.start("sh", "-c", f"touch {theirs.ready}; sleep 60")
            again = start.waiting("true")
            assert f"of {user.user} (pid" in again.stderr()
            os.kill(held.process.pid, signal.SIGTERM)
            assert again.wait(5) == 0
        finally:
            theirs.clean_up()
            start.directory = tmp_path_factory.getbasetemp()
            start.all.clear()
            monkeypatch.undo()
