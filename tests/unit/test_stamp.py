"""What a role has left on a node is recognised, and every change to it is noticed."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from raytools.node import stamp


def drifted(root: Path) -> list[str]:
    found: list[str] = stamp.read_all(root)["node"]["drifted"]
    return found


def stamped(root: Path, *things: Path | str) -> None:
    command = ["--root", str(root), "--name", "node", "--inputs", "d1", *map(str, things)]
    assert stamp.main(command) == 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_what_looks_as_it_was_left_has_not_drifted(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    things = [str(tmp_path / "file"), str(tmp_path / "link"), str(root), "user:root", "sysctl:kernel.ostype"]
    stamped(root, *things)
    assert stamp.read_all(root) == {"node": {"inputs": "d1", "drifted": []}}


def replaced(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_text("tExt"), id="content of the same length"),
        pytest.param(lambda path: path.chmod(0o666), id="mode"),
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(lambda path: replaced(path, lambda new: new.symlink_to("/etc/passwd")), id="a link"),
        pytest.param(lambda path: replaced(path, lambda new: new.mkdir()), id="a directory"),
        pytest.param(lambda path: replaced(path, os.mkfifo), id="a FIFO, which nobody writes to"),
    ],
)
def test_a_changed_file_has_drifted(root: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    for one in (path, other):
        one.write_text("text")
    stamped(root, path, other)
    change(path)
    assert drifted(root) == [str(path)]


def test_a_file_that_was_not_there_and_appears_has_drifted(root: Path, tmp_path: Path) -> None:
    stamped(root, tmp_path / "file")
    assert drifted(root) == []
    (tmp_path / "file").touch()
    assert drifted(root) == [str(tmp_path / "file")]


def test_a_file_too_large_to_read_is_known_by_size_and_time(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 21))
    stamped(root, path)
    assert drifted(root) == []
    os.utime(path, ns=(0, 0))
    assert drifted(root) == [str(path)]


def test_a_link_that_leads_elsewhere_has_drifted_and_its_targets_content_is_not_its_own(
    root: Path, tmp_path: Path
) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    target.write_text("text")
    link.symlink_to(target)
    stamped(root, link)
    target.write_text("other")
    assert drifted(root) == []
    replaced(link, lambda new: new.symlink_to(root))
    assert drifted(root) == [str(link)]


def test_a_directory_is_not_what_it_holds(root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "results"
    directory.mkdir()
    stamped(root, directory)
    (directory / "file").touch()
    assert drifted(root) == []
    directory.chmod(0o700)
    assert drifted(root) == [str(directory)]


def test_an_account_with_another_uid_home_or_shell_has_drifted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pwd.getpwuid(0)
    stamped(root, "user:root")
    for index, value in ((2, 1234), (5, "/elsewhere"), (6, "/bin/false")):
        changed = [*before]
        changed[index] = value
        entry = pwd.struct_passwd(changed)
        monkeypatch.setattr(pwd, "getpwnam", lambda _, entry=entry: entry)
        assert drifted(root) == ["user:root"]


def test_an_account_that_is_gone_has_drifted(root: Path) -> None:
    assert stamp.observe("user:nobody-of-this-name") is None
    stamped(root, "user:root")
    path = root / "stamps" / "node.json"
    path.write_text(path.read_text().replace("user:root", "user:nobody-of-this-name"))
    assert drifted(root) == ["user:nobody-of-this-name"]


def test_a_kernel_setting_with_another_value_has_drifted(root: Path) -> None:
    assert stamp.observe("sysctl:kernel.ostype") == ["Linux"]
    assert stamp.observe("sysctl:kernel.no_such_setting") is None
    stamped(root, "sysctl:kernel.ostype")
    path = root / "stamps" / "node.json"
    path.write_text(path.read_text().replace("Linux", "Other"))  # as if it had been another then
    assert drifted(root) == ["sysctl:kernel.ostype"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"inputs": "d1"}', '{"inputs": "d1", "things": []}', '{"things": {}}', "\xff"],
)
def test_a_damaged_stamp_is_as_none_and_the_role_runs_again(root: Path, content: str) -> None:
    stamped(root)
    (root / "stamps" / "base.json").write_bytes(content.encode("latin-1"))
    assert stamp.read_all(root) == {"node": {"inputs": "d1", "drifted": []}}


def test_a_stamp_that_was_written_half_is_none(root: Path) -> None:
    (root / "stamps").mkdir()
    (root / "stamps" / "node.new").write_text('{"inputs": "d1", "thi')
    assert stamp.read_all(root) == {}


def test_a_role_that_ran_again_has_the_new_stamp_alone(root: Path, tmp_path: Path) -> None:
    stamped(root, tmp_path / "before")
    stamped(root, tmp_path)
    assert list(json.loads((root / "stamps" / "node.json").read_text())["things"]) == [str(tmp_path)]
    assert [path.name for path in (root / "stamps").iterdir()] == ["node.json"]


def test_a_root_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stamp.main(["--root", str(tmp_path / "gone"), "--name", "node", "--inputs", "d1"]) == 1
    said = capsys.readouterr().err
    assert said == f"stamp: {tmp_path}/gone/stamps cannot be written (No such file or directory)\n"


def test_where_nothing_was_stamped_nothing_is_known(tmp_path: Path) -> None:
    assert stamp.read_all(tmp_path) == {}
