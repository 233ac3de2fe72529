"""What is mounted at a directory, asked so that a dead server keeps nobody waiting."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raytools.node import mounts
from raytools.node.ray_temp_dir import name_of


def test_a_mount_is_told_with_source_and_type() -> None:
    found = mounts.look("/proc")
    assert (found["mounted"], found["filesystem"]) == (True, "proc")
    assert found["directory"]
    assert not found["stalled"]


def test_a_plain_directory_is_no_mount(tmp_path: Path) -> None:
    assert mounts.look(str(tmp_path)) == {
        "path": str(tmp_path), "directory": True, "stalled": False, "mounted": False, "source": None,
        "filesystem": None,
    }  # fmt: skip
    assert mounts.kind_and_owner(str(tmp_path)) == ("directory", name_of(tmp_path.stat().st_uid))
    assert mounts.look(str(tmp_path / "missing"))["directory"] is False


def test_a_directory_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "stat"  # in the place of a dead NFS server; tests/vm has a real one
    asked.write_text("#!/bin/sh\nexec sleep 60\n")
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(mounts, "ANSWER_WAIT_S", 0.3)
    began = time.monotonic()
    assert mounts.look(str(tmp_path))["stalled"]
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("also", "stalled"), [("", False), ("nfs4 n1:/srv rw", True)])
def test_who_asks_first_has_the_time_that_mounting_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, also: str, stalled: bool
) -> None:
    asked = tmp_path / "stat"
    asked.write_text("#!/bin/sh\nsleep 1; echo directory:ray\n")
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(mounts, "ANSWER_WAIT_S", 0.2)
    table = tmp_path / "mountinfo"
    lines = [f"22 1 0:20 / {tmp_path} rw - autofs systemd-1 rw"]
    lines += [f"23 22 0:21 / {tmp_path} rw - {also}"] if also else []
    table.write_text("\n".join(lines))
    monkeypatch.setattr(mounts, "MOUNT_TABLE", table)
    assert mounts.look(str(tmp_path))["stalled"] is stalled


def test_an_automounter_of_its_own_is_no_mount_and_names_are_unescaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 0:20 / /data\\040one rw - autofs systemd-1 rw,fd=5\n"
        "23 1 0:21 / /data\\040one rw,noatime shared:7 - nfs4 n1:/srv/my\\040data rw,vers=4.2\n"
        "24 1 0:22 / /other rw - autofs systemd-1 rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNT_TABLE", table)
    assert mounts.mount_at("/data one") == ("n1:/srv/my data", "nfs4")
    assert mounts.mount_at("/other") == (None, None)


def test_the_file_system_of_a_path_is_that_of_the_longest_mount_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "22 21 0:20 / /opt rw - autofs systemd-1 rw\n"
        "23 22 0:21 / /opt rw - nfs4 n1:/opt rw\n"
        "24 23 8:2 / /opt/ray\\040tools rw - xfs /dev/sdb1 rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNT_TABLE", table)
    assert mounts.filesystem_of("/optional/x") == "ext4"
    assert mounts.filesystem_of("/opt/x") == "nfs4"
    assert mounts.filesystem_of("/opt/ray tools/envs/a") == "xfs"
