"""Nodes find out whether a directory is shared: here each node is a name, and the share a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raytools.errors import RaytoolsError
from raytools.node import storage

NODES = ["n1", "n2", "n3"]


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(storage, "_PATIENCE_S", 0.0)
    (tmp_path / "results").mkdir()
    return tmp_path


def run(command: str, share: Path, *names: str) -> int:
    return storage.main([command, "--path", str(share), *(f"--name={name}" for name in names)])


def test_what_all_have_written_all_can_read_and_nothing_stays(share: Path) -> None:
    for name in NODES:
        assert run("write", share, name) == 0
    for _ in NODES:
        assert run("read", share, *NODES) == 0
    for name in NODES:
        assert run("clean", share, name) == 0
    assert list((share / "results").iterdir()) == []


def test_a_node_that_has_another_directory_is_named_with_its_reason(
    share: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NODES[:2]:
        storage.write(share, name)
    assert run("read", share, *NODES) != 0
    said = capsys.readouterr().err
    assert f"cannot read below {share} what other nodes have just written there" in said
    assert "(what n3 wrote: No such file or directory), expected one directory that all nodes share" in said
    assert "n1" not in said


def test_a_file_that_comes_late_is_waited_for(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An NFS client remembers for seconds that it was not there."""
    monkeypatch.setattr(storage, "_PATIENCE_S", 5.0)
    storage.write(share, "n1")
    monkeypatch.setattr(storage.time, "sleep", lambda _: storage.write(share, "n2"))
    storage.read(share, ["n1", "n2"])


def test_a_file_that_is_still_empty_is_not_there_yet(share: Path) -> None:
    storage.write(share, "n1")
    (share / "results" / ".raytools-shared" / "n2").touch()
    with pytest.raises(RaytoolsError, match="what n2 wrote: the file is empty or another's"):
        storage.read(share, ["n1", "n2"])


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_number_is_refused_with_both_numbers(share: Path) -> None:
    storage.write(share, "n1")
    storage.write(share, "n2")
    os.chown(share / "results" / ".raytools-shared" / "n2", 4242, 4242)
    with pytest.raises(RaytoolsError) as error:
        storage.read(share, ["n1", "n2"])
    assert f"what n2 wrote below {share} belongs to uid 4242, this node's root is uid 0" in str(error.value)
    assert "expected one uid on all nodes" in str(error.value)


def test_where_nothing_can_be_written_the_user_is_named(
    share: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (share / "results").rmdir()
    assert run("write", share, "n1") != 0
    said = capsys.readouterr().err
    assert f"cannot write to {share}/results/.raytools-shared (No such file or directory)" in said
    assert "Compare uids and export options" in said


def test_writing_twice_is_writing_once(share: Path) -> None:
    for _ in range(2):
        storage.write(share, "n1")
    storage.read(share, ["n1"])


def test_cleaning_leaves_what_the_others_still_read(share: Path) -> None:
    for name in NODES[:2]:
        storage.write(share, name)
    storage.clean(share, "n1")
    storage.clean(share, "n1")
    storage.read(share, ["n2"])


def test_a_file_that_cannot_be_removed_is_named(share: Path) -> None:
    (share / "results" / ".raytools-shared" / "n1").mkdir(parents=True)
    with pytest.raises(RaytoolsError, match=r"cannot remove .*/n1 \("):
        storage.clean(share, "n1")
