"""Records that were written: reading one, and those of all attempts at one task of Ray's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytools.node import locks, records
from raytools.node.locks import Holder
from raytools.node.record import KILLED, LOST, OK, Host, Record, write_json
from raytools.node.records import Attempts, read_record

HERE = "here"


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYTOOLS_LOCK_DIR", str(tmp_path / "locks"))


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(str(tmp_path / "storage" / "records"), "task", HERE)


@pytest.fixture
def held() -> Iterator[None]:
    """Run `running` has a living supervisor on this node."""
    holder = Holder("running", os.getpid(), "me", [0], 1, ["true"], "2026-01-01T00:00:00Z")
    claim = locks.claim(holder, None)
    yield
    claim.release()


def record(run_id: str, outcome: str | None = None, node: str = HERE, attempt: int = 1) -> Record:
    return Record(run_id, ["true"], outcome=outcome, attempt=attempt, host=Host(name=node))


def written(path: Path | str, what: Record) -> str:
    write_json(path, what.to_json())
    return str(path)


def test_a_final_record_reads_as_it_was_written(tmp_path: Path) -> None:
    final = record("gone", OK)
    assert read_record(written(tmp_path / "r.json", final), HERE) == final


def test_a_run_that_its_supervisor_still_holds_has_no_outcome_yet(tmp_path: Path, held: None) -> None:
    path = written(tmp_path / "r.json", record("running"))
    assert read_record(path, HERE).outcome is None
    assert read_record(path).outcome is None


def test_a_run_that_nobody_on_its_node_holds_is_lost(tmp_path: Path, held: None) -> None:
    path = written(tmp_path / "r.json", record("another"))
    found = read_record(path, HERE)
    assert (found.outcome, found.message) == (LOST, "its supervisor vanished")
    assert json.loads(Path(path).read_text())["outcome"] is None  # reading changes nothing


def test_what_is_not_held_here_may_go_on_on_its_own_node(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", record("elsewhere", node="other"))
    assert read_record(path, HERE).outcome is None


def test_a_run_that_ended_while_we_looked_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "r.json", record("quick"))

    def it_ends_now() -> list[Holder]:
        written(path, record("quick", OK))
        return []

    monkeypatch.setattr(locks, "holders", it_ends_now)
    assert read_record(path, HERE).outcome == OK


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"schema": "raytools.run/1"}', '{"schema": "raytools.run/9"}']
)
def test_what_is_no_record_is_a_value_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=r".+"):
        read_record(str(tmp_path / "r.json"), HERE)


def test_a_missing_record_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(str(tmp_path / "r.json"), HERE)


def test_a_task_without_records_has_no_attempts(attempts: Attempts) -> None:
    assert attempts.numbers() == []
    assert attempts.last() is None


def test_attempts_are_numbered_as_numbers_and_other_tasks_and_files_do_not_count(attempts: Attempts) -> None:
    for number in (10, 9, 1):
        written(attempts.path(number), record(f"r{number}", OK, attempt=number))
    folder = Path(attempts.path(1)).parent
    for name in (
        "task2-3.json",
        "other-task-4.json",
        "task-x.json",
        ".task-5.json.1.ab",
        "task-6.json~",
        "task-",
    ):
        (folder / name).write_text("junk")
    assert attempts.numbers() == [1, 9, 10]
    last = attempts.last()
    assert last is not None
    assert (last.run_id, last.attempt) == ("r10", 10)


def test_the_last_attempt_of_a_dead_supervisor_is_lost_and_its_record_says_so_from_now_on(
    attempts: Attempts,
) -> None:
    written(attempts.path(1), record("dead"))
    last = attempts.last()
    assert last is not None
    assert last.outcome == LOST
    stored = json.loads(Path(attempts.path(1)).read_text())
    assert (stored["outcome"], stored["message"]) == (LOST, "its supervisor vanished")
    assert stored["finished_at"] is not None


def test_the_last_attempt_is_waited_for_while_its_supervisor_tidies_up(
    attempts: Attempts, held: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(attempts.path(1), record("running"))
    monkeypatch.setattr(records.time, "sleep", lambda _: written(path, record("running", KILLED)))
    last = attempts.last()
    assert last is not None
    assert last.outcome == KILLED


def test_a_node_that_never_answers_for_its_run_has_lost_it(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_FINAL_WAIT_S", 0.1)
    written(attempts.path(1), record("elsewhere", node="other"))
    last = attempts.last()
    assert last is not None
    assert last.outcome == LOST
    assert "its node (other) does not answer for it" in str(last.message)


def test_a_final_record_stays_as_its_supervisor_wrote_it(attempts: Attempts) -> None:
    path = Path(written(attempts.path(1), record("done", OK)))
    before = path.read_bytes()
    attempts.last()
    assert path.read_bytes() == before


def test_write_keeps_the_time_of_the_end_where_it_is_known(attempts: Attempts) -> None:
    known = record("a", LOST)
    known.finished_at = "2026-01-01T00:00:00.000Z"
    attempts.write(1, known)
    attempts.write(2, record("b", LOST))
    assert read_record(attempts.path(1)).finished_at == "2026-01-01T00:00:00.000Z"
    assert read_record(attempts.path(2)).finished_at is not None


def test_an_attempt_that_is_given_up_is_lost_for_everybody_who_reads_it(attempts: Attempts) -> None:
    written(attempts.path(1), record("r1", node="other"))
    given_up = attempts.give_up("its node is dead")
    assert given_up is not None
    assert (given_up.outcome, given_up.message) == (LOST, "its node is dead")
    read_again = read_record(attempts.path(1), HERE)
    assert (read_again.outcome, read_again.message) == (LOST, "its node is dead")
    assert read_again.finished_at


def test_an_attempt_that_had_ended_keeps_its_end_when_it_is_given_up(attempts: Attempts) -> None:
    written(attempts.path(1), record("r1", OK))
    given_up = attempts.give_up("its node is dead")
    assert given_up is not None
    assert given_up.outcome == OK
    assert read_record(attempts.path(1), HERE).outcome == OK


def test_where_no_attempt_left_a_record_there_is_none_to_give_up(attempts: Attempts) -> None:
    assert attempts.give_up("its node is dead") is None
