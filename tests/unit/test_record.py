"""The record: what is written is what is read, and always whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raytools.node.record import Record, write_json


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    record = Record("abc", ["true"], outcome="ok")
    record.limits.cpu_set = [0, 1]
    write_json(tmp_path / "r.json", record.to_json())
    assert Record.from_json(json.loads((tmp_path / "r.json").read_text())) == record


def test_a_fresh_record_claims_nothing() -> None:
    plain = Record("abc", ["true"]).to_json()
    assert plain["schema"] == "raytools.run/1"
    assert plain["outcome"] is None
    measured = ("wall_s", "cpu_s", "memory_peak_bytes", "anon_peak_bytes", "oom_kills", "throttled_s")
    assert all(plain["used"][name] is None for name in measured)


def test_another_schema_is_no_record() -> None:
    with pytest.raises(ValueError, match=r"raytools\.run/1"):
        Record.from_json({"schema": "raytools.run/9"})


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, {"old": True})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]
