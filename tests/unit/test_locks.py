"""Who holds what: real kernel locks in a directory of the test's own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from raytools.node import locks
from raytools.node.locks import BusyError, Holder


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYTOOLS_LOCK_DIR", str(tmp_path / "locks"))


def holder(run_id: str, cpus: list[int], memory_bytes: int = 1) -> Holder:
    return Holder(run_id, os.getpid(), "me", cpus, memory_bytes, ["sleep", "1"], "2026-01-01T00:00:00Z")


def test_a_cpu_is_held_by_one_run_at_a_time_and_the_refusal_names_it() -> None:
    first = locks.claim(holder("first", [0, 1]), None)
    with pytest.raises(BusyError, match="CPU 1 is held by run first of me"):
        locks.claim(holder("second", [1, 2]), None)
    first.release()
    locks.claim(holder("second", [1, 2]), None).release()


def test_a_refused_claim_holds_nothing() -> None:
    first = locks.claim(holder("first", [1]), None)
    with pytest.raises(BusyError):
        locks.claim(holder("second", [0, 1]), None)
    locks.claim(holder("third", [0]), None).release()
    first.release()
    assert locks.holders() == []
    assert locks.stale() == []


def test_memory_of_all_runs_together_stays_below_the_nodes() -> None:
    first = locks.claim(holder("first", [0], 6), 10)
    with pytest.raises(BusyError, match="6 B of memory are held by 1 other runs"):
        locks.claim(holder("second", [1], 5), 10)
    second = locks.claim(holder("second", [1], 4), 10)
    assert {held.run_id for held in locks.holders()} == {"first", "second"}
    first.release()
    second.release()


def _hold_for_ever(ready: object) -> None:
    locks.claim(holder("victim", [0]), None)
    ready.set()  # type: ignore[attr-defined]
    time.sleep(60)


def test_a_killed_holder_frees_its_cpus_at_once_and_is_listed_as_stale() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold_for_ever, args=(ready,))
    process.start()
    assert ready.wait(10)
    assert [held.run_id for held in locks.holders()] == ["victim"]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    locks.claim(holder("next", [0]), None).release()
    assert [dead.run_id for dead, _path in locks.stale()] == ["victim"]


def test_a_foreign_file_among_the_holders_is_ignored(tmp_path: Path) -> None:
    locks.lock_directory()
    (tmp_path / "locks" / "held" / "junk.json").write_text("not json")
    assert locks.holders() == []
    assert locks.stale() == []
