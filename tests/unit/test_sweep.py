"""Several sweepers of one dead run: each run sweeps as it begins, and several may begin at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raytools.node import locks
from raytools.node.locks import Holder
from raytools.node.sweep import Swept, sweep


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYTOOLS_LOCK_DIR", str(tmp_path / "locks"))


def a_dead_holder(run_id: str) -> None:
    """A process that claims CPU 0 and ends without releasing it."""
    if (pid := os.fork()) == 0:
        locks.claim(Holder(run_id, os.getpid(), "me", [0], 1, ["true"], "2026-01-01T00:00:00Z"), None)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def another_sweeps(monkeypatch: pytest.MonkeyPatch, swept: list[Swept]) -> None:
    """Between this sweep's look at who is dead and its work."""
    look = locks.stale

    def then_another_sweeps() -> list[tuple[Holder, str]]:
        found = look()
        monkeypatch.setattr(locks, "stale", look)
        swept.extend(sweep())
        return found

    monkeypatch.setattr(locks, "stale", then_another_sweeps)


def test_what_another_has_swept_meanwhile_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for run_id in ("first", "second"):
        a_dead_holder(run_id)
    others: list[Swept] = []
    another_sweeps(monkeypatch, others)
    assert sweep() == []
    assert {one.run_id for one in others} == {"first", "second"}
    assert locks.stale() == []
