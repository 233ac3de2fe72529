"""What a cluster smoke keeps: which entries are done, and how a person's words find it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from raytools.errors import RaytoolsError
from raytools.node.record import Record
from raytools.node.workload_cluster import entry_record
from raytools.node.workload_ledger import Ledger, find


def record(outcome: str = "ok") -> Record:
    return entry_record("three", "one", 2.0, outcome, None)


def test_a_file_that_is_no_entry_counts_as_not_done(tmp_path: Path) -> None:
    entries = ["one", "two", "three"]
    Ledger(tmp_path, entries).add("one", record(), {"size": 1})
    (tmp_path / "run-1.json").write_text('{"record": {"outcome": "ok"}, "metr')
    (tmp_path / "run-2.json").write_text('{"record": {"outcome": "ok"}, "metrics": {"entry": "of another"}}')
    ledger = Ledger(tmp_path, entries)
    assert ledger.done() == {"one": {"entry": "one", "size": 1}}
    assert ledger.left() == ledger.not_run() == ["two", "three"]


def test_an_entry_is_done_once_and_only_if_it_was_asked_for(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, ["one", "two"])
    ledger.add("one", record(), {})
    for entry in ("one", "four"):
        with pytest.raises(ValueError, match=rf"found entry '{entry}', expected one of \['two'\]"):
            ledger.add(entry, record(), {})


def test_a_smoke_is_found_by_its_id_a_part_of_it_and_a_path_with_that_name(tmp_path: Path) -> None:
    names = ["20260101T080000Z-a1b2", "20260102T080000Z-c3d4"]
    for name in names:
        (tmp_path / "tune" / name).mkdir(parents=True)
        (tmp_path / "tune" / name / "request.json").write_text("{}")
    (tmp_path / "stress" / "20260103T080000Z-e5f6").mkdir(parents=True)  # of scope slot: it has no request
    for text in (
        names[0],
        "a1b2",
        "20260101",
        f"/somewhere/else/{names[0]}",
        str(tmp_path / "tune" / names[0]),
    ):
        assert find(tmp_path, text) == tmp_path / "tune" / names[0]
    assert find(tmp_path, "latest").name == names[1]
    for text in ("2026", "e5f6", ""):
        with pytest.raises(RaytoolsError, match="expected the id of one of scope cluster"):
            find(tmp_path, text)
    with pytest.raises(RaytoolsError, match="no smokes below"):
        find(tmp_path, "a1b2", workload="many-models")
