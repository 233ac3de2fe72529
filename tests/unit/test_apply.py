"""Files of the system and the commands that make them count, in one call."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from raytools.node import apply


def applied(
    request: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    code = apply.main([])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_what_says_something_else_is_written_and_what_says_the_same_is_not(tmp_path: Path) -> None:
    same, other, new = tmp_path / "same", tmp_path / "other", tmp_path / "new"
    same.write_text("a\n")
    same.chmod(0o644)
    other.write_text("b")
    files = {str(same): "a\n", str(other): "c\n", str(new): "d\n"}
    inode = same.stat().st_ino
    assert apply.apply({"files": files}) == [str(other), str(new)]
    assert {path: Path(path).read_text() for path in files} == files
    assert same.stat().st_ino == inode
    assert apply.apply({"files": files}) == []


def test_all_may_read_it_whatever_mode_it_had_and_whatever_the_umask_is(tmp_path: Path) -> None:
    file, new = tmp_path / "file", tmp_path / "new"
    file.write_text("a")
    file.chmod(0o600)
    before = os.umask(0o077)
    try:
        assert apply.apply({"files": {str(file): "a", str(new): "a"}}) == [str(file), str(new)]
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (file, new)} == {0o644}


def test_a_link_is_replaced_and_what_it_leads_to_is_not_written(tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    elsewhere.write_text("kept")
    link.symlink_to(elsewhere)
    apply.apply({"files": {str(link): "new"}})
    assert (link.read_text(), link.is_symlink(), elsewhere.read_text()) == ("new", False, "kept")


def test_what_an_interrupted_call_left_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".file.new").write_text("half")
    apply.apply({"files": {str(tmp_path / "file"): "whole"}})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "whole"


def test_commands_run_in_any_case_and_those_for_a_change_before_them_and_only_then(tmp_path: Path) -> None:
    log = tmp_path / "log"
    request = {
        "files": {str(tmp_path / "file"): "a"},
        "if_changed": [["sh", "-c", f"echo changed >> {log}; exit 5"]],
        "commands": [["sh", "-c", f"echo first >> {log}"], ["sh", "-c", f"echo second >> {log}"]],
    }
    apply.apply(request)
    assert log.read_text().split() == ["changed", "first", "second"]
    apply.apply(request)
    assert log.read_text().split() == ["changed", "first", "second", "first", "second"]


def test_a_command_that_fails_is_told_with_what_it_said_and_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {
        "files": {},
        "commands": [["sh", "-c", "echo no such key >&2; exit 3"], ["touch", f"{tmp_path}/went-on"]],
    }
    code, out, err = applied(request, monkeypatch, capsys)
    assert (code, out) == (1, "")
    assert "failed: no such key" in err
    assert not (tmp_path / "went-on").exists()


def test_a_command_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = applied({"files": {}, "commands": [["no-such-program"]]}, monkeypatch, capsys)
    assert code == 1
    assert "no-such-program could not be started: No such file or directory" in err


def test_it_says_whether_anything_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {"files": {str(tmp_path / "file"): "a"}}
    first, second = (applied(request, monkeypatch, capsys)[1] for _ in range(2))
    assert json.loads(first) == {"changed": True, "written": [str(tmp_path / "file")]}
    assert json.loads(second) == {"changed": False, "written": []}
