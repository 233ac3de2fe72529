"""Who holds what: real kernel locks in a directory of the test's own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from raytools.errors import RaytoolsError
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


def test_a_holder_that_releases_while_it_is_looked_at_is_no_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, try_shared = locks.claim(holder("first", [0]), None), locks._try_shared

    def after_its_release(descriptor: int) -> bool:
        claim.release()
        return try_shared(descriptor)

    monkeypatch.setattr(locks, "_try_shared", after_its_release)
    assert locks.stale() == []


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


# ------------------------------------------------------------------------------- some of several CPUs


def test_the_first_free_cpus_are_taken_and_the_holder_says_which() -> None:
    other = locks.claim(holder("other", [1]), None)
    asking = holder("asking", [])
    made = locks.claim_any(asking, [0, 1, 2, 3], 2)
    assert made.holder.cpus == asking.cpus == [0, 2]
    assert {held.run_id: held.cpus for held in locks.holders()} == {"other": [1], "asking": [0, 2]}
    other.release()
    made.release()
    assert locks.holders() == []


def test_the_order_of_the_candidates_is_the_order_of_choice() -> None:
    made = locks.claim_any(holder("asking", []), [3, 1, 2], 2)
    assert made.holder.cpus == [1, 3]
    made.release()


def test_too_few_free_cpus_are_refused_name_the_holders_and_hold_nothing() -> None:
    first, second = locks.claim(holder("first", [0]), None), locks.claim(holder("second", [1]), None)
    elsewhere = locks.claim(holder("elsewhere", [7]), None)
    with pytest.raises(BusyError, match=r"1 of the CPUs \[0, 1, 2\] are free, 2 asked") as busy:
        locks.claim_any(holder("asking", []), [0, 1, 2], 2)
    assert {held.run_id for held in busy.value.holders} == {"first", "second"}
    assert "elsewhere" not in str(busy.value)
    locks.claim(holder("next", [2]), None).release()
    for claim in (first, second, elsewhere):
        claim.release()


def test_cpus_taken_one_way_are_held_for_the_other() -> None:
    some = locks.claim_any(holder("some", []), [0, 1], 1)
    with pytest.raises(BusyError, match="CPU 0 is held by run some"):
        locks.claim(holder("whole", [0, 1]), None)
    some.release()


def test_a_claim_that_cannot_be_signed_holds_nothing(tmp_path: Path) -> None:
    first = locks.claim(holder("same", [0]), None)
    with pytest.raises(FileExistsError):
        locks.claim(holder("same", [1]), None)
    with pytest.raises(FileExistsError):
        locks.claim_any(holder("same", []), [1, 2], 2)
    locks.claim(holder("other", [1, 2]), None).release()
    first.release()


def test_a_released_claim_may_be_released_again() -> None:
    made = locks.claim(holder("once", [0]), None)
    made.release()
    made.release()


# ------------------------------------------------------------------------------------------ the directory


def test_the_directory_is_open_to_all_users_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        made = locks.claim(holder("first", [0]), None)
    finally:
        os.umask(before)
    for path in (tmp_path / "locks", tmp_path / "locks" / "held"):
        assert path.stat().st_mode & 0o7777 == 0o1777
    for path in (tmp_path / "locks" / "cpu-0", tmp_path / "locks" / "held" / "first.json"):
        assert path.stat().st_mode & 0o777 == 0o644
    made.release()


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "held").mkdir(parents=True)
    (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RaytoolsError, match=r"locks is not a directory .* mode 1777"):
        locks.claim(holder("first", [0]), None)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYTOOLS_LOCK_DIR", str(tmp_path / "file" / "locks"))
    with pytest.raises(RaytoolsError, match="file/locks"):
        locks.claim(holder("first", [0]), None)


def test_a_full_disk_is_told_and_nothing_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(locks.os, "write", full)
        with pytest.raises(RaytoolsError, match="No space left on device"):
            locks.claim(holder("first", [0]), None)
    assert list((tmp_path / "locks" / "held").iterdir()) == []
    locks.claim(holder("second", [0]), None).release()


class Machine:
    """Which directories there are, with which modes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modes: dict[str, int] = {}
        monkeypatch.setattr(locks.os.path, "isdir", lambda path: path in self.modes)
        monkeypatch.setattr(locks.os, "stat", self._stat)

    def _stat(self, path: str) -> os.stat_result:
        if path not in self.modes:
            raise FileNotFoundError(2, "No such file or directory", path)
        return os.stat_result((self.modes[path], *(0,) * 9))


@pytest.mark.parametrize(
    ("modes", "directory"),
    [
        ({"/run/lock": 0o1777, "/var/lock": 0o1777}, "/run/lock/raytools"),
        ({"/var/lock": 0o1777}, "/var/lock/raytools"),
        ({"/run/lock": 0o755}, "/tmp/raytools-locks"),
        ({"/run/lock": 0o755, "/run/lock/raytools": 0o1777}, "/run/lock/raytools"),
        ({}, "/tmp/raytools-locks"),
    ],
)
def test_the_default_directory_is_the_same_for_root_and_for_all_users(
    monkeypatch: pytest.MonkeyPatch, modes: dict[str, int], directory: str
) -> None:
    for uid in (0, 1000, 1001):
        with monkeypatch.context() as patch:
            machine = Machine(patch)
            machine.modes = modes
            patch.setattr(locks.os, "getuid", lambda uid=uid: uid)
            patch.setattr(locks.os, "geteuid", lambda uid=uid: uid)
            # what root may write to is not what decides
            patch.setattr(locks.os, "access", lambda *_, uid=uid: uid == 0)
            assert locks._default_directory() == directory
