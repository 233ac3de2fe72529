"""What Ray's files take, and who owns the place of a Ray without options: on real files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raytools.node import inspect, inspect_files
from raytools.node.inspect_files import default_temp_dir, ray_files
from raytools.node.inspect_processes import user_name

KIB = 2**10
NOBODY = 65534


def fill(path: Path, size_bytes: int = 100 * KIB) -> None:
    """A file that really takes room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(os.urandom(size_bytes))
        os.fsync(stream.fileno())


@pytest.fixture
def temp_dir(tmp_path: Path) -> Path:
    """A temp dir of Ray's with three sessions, of which the third runs, and what else is in one."""
    directory = tmp_path / "rt" / "ray"
    for number, count in ((1, 1), (2, 2), (3, 4)):
        for file in range(count):
            fill(directory / f"session_{number}" / "logs" / f"{file}.log")
    (directory / "session_latest").symlink_to(directory / "session_3")
    fill(directory / "prom_metrics_service_discovery.json")
    fill(tmp_path / "root" / "logs" / "ray.log")
    return directory


def in_kib(size_bytes: int | None) -> int:
    """To whole files of 100 KiB: file systems keep more than was written."""
    assert size_bytes is not None
    return size_bytes // (100 * KIB) * 100


def test_sessions_that_are_over_are_counted_and_the_living_one_for_itself(
    temp_dir: Path, tmp_path: Path
) -> None:
    found = ray_files(str(temp_dir), str(tmp_path / "root"), str(temp_dir / "session_3"))
    assert [(one["path"], in_kib(one["bytes"])) for one in found["sessions"]] == [
        (f"{temp_dir}/session_1", 100),
        (f"{temp_dir}/session_2", 200),
    ]
    assert in_kib(found["session_bytes"]) == 400
    assert in_kib(found["log_bytes"]) == 100
    assert found["complete"]


def test_the_living_session_is_known_by_whatever_way_leads_to_it(temp_dir: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"  # as where /tmp is a link
    short.symlink_to(temp_dir.parent)
    for living in (short / "ray" / "session_3", temp_dir / "session_latest"):
        found = ray_files(str(short / "ray"), str(tmp_path / "root"), str(living))
        assert [Path(one["path"]).name for one in found["sessions"]] == ["session_1", "session_2"]
        assert in_kib(found["session_bytes"]) == 400


def test_where_no_ray_runs_all_sessions_are_over(temp_dir: Path, tmp_path: Path) -> None:
    found = ray_files(str(temp_dir), str(tmp_path / "root"), None)
    assert [Path(one["path"]).name for one in found["sessions"]] == ["session_1", "session_2", "session_3"]
    assert found["session_bytes"] is None


def test_what_a_link_leads_to_is_not_counted(temp_dir: Path, tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere" / "model.bin", 600 * KIB)
    (temp_dir / "session_1" / "data").symlink_to(tmp_path / "elsewhere")
    (temp_dir / "session_1" / "model.bin").symlink_to(tmp_path / "elsewhere" / "model.bin")
    found = ray_files(str(temp_dir), str(tmp_path / "root"), str(temp_dir / "session_3"))
    assert in_kib(found["sessions"][0]["bytes"]) == 100


def test_a_count_that_ends_early_says_so(
    temp_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_files, "_MOST_FILES", 2)
    found = ray_files(str(temp_dir), str(tmp_path / "root"), str(temp_dir / "session_3"))
    assert [in_kib(one["bytes"]) for one in found["sessions"]] == [100, 100]
    assert not found["complete"]


def test_a_node_on_which_ray_was_never_started_has_no_files(tmp_path: Path) -> None:
    assert ray_files(str(tmp_path / "ray"), str(tmp_path), None) == {
        "sessions": [], "session_bytes": None, "log_bytes": 0, "complete": True,
    }  # fmt: skip


def test_while_it_is_not_known_which_session_lives_none_is_called_over(
    temp_dir: Path, tmp_path: Path
) -> None:
    node = {"temp_dir": str(temp_dir), "root": str(tmp_path / "root")}
    found = inspect.file_facts(node, {"problem": "PermissionError: /proc"})
    assert list(found) == ["problem"]
    assert "PermissionError: /proc" in found["problem"]
    living = {"ours": [{"session_dir": str(temp_dir / "session_3")}]}
    assert len(inspect.file_facts(node, living)["sessions"]) == 2


# --- the place of a Ray without options -------------------------------------------------------------


@pytest.mark.parametrize(("mode", "usable"), [(0o1777, True), (0o777, True), (0o755, False), (0o700, False)])
def test_a_place_is_usable_for_others_if_all_may_write(tmp_path: Path, mode: int, usable: bool) -> None:
    place = tmp_path / "ray"
    place.mkdir()
    place.chmod(mode)
    found = default_temp_dir("somebody else", str(place))
    assert found == {
        "path": str(place), "user": user_name(os.getuid()), "mode": mode, "directory": True, "usable": usable,
    }  # fmt: skip


@pytest.mark.parametrize(("mode", "usable"), [(0o755, True), (0o555, False)])
def test_a_place_is_usable_for_its_owner_if_the_owner_may_write(
    tmp_path: Path, mode: int, usable: bool
) -> None:
    place = tmp_path / "ray"
    place.mkdir()
    place.chmod(mode)
    for user in (None, user_name(os.getuid())):  # whoever asks, or by name
        found = default_temp_dir(user, str(place))
        assert found is not None
        assert found["usable"] is usable


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give a directory away")
def test_a_place_of_another_user_is_not_usable_for_the_one_who_asks(tmp_path: Path) -> None:
    place = tmp_path / "ray"
    place.mkdir(mode=0o755)
    os.chown(place, NOBODY, NOBODY)
    found = default_temp_dir(None, str(place))
    assert found is not None
    assert (found["user"], found["usable"]) == (user_name(NOBODY), False)


def test_a_file_in_its_place_is_not_usable(tmp_path: Path) -> None:
    place = tmp_path / "ray"
    place.touch(mode=0o666)
    found = default_temp_dir(None, str(place))
    assert found is not None
    assert (found["directory"], found["usable"]) == (False, False)


def test_where_nothing_is_there_nothing_is_said(tmp_path: Path) -> None:
    assert default_temp_dir(None, str(tmp_path / "ray")) is None


# --- the token -----------------------------------------------------------------------------------


def test_tokens_are_compared_by_a_digest_that_does_not_tell_them(tmp_path: Path) -> None:
    digests = []
    for name, text in (("a", "0123456789abcdef"), ("b", "0123456789abcdef\n"), ("c", "fedcba9876543210")):
        (tmp_path / name).write_text(text)
        digests.append(inspect.token_facts(str(tmp_path / name))["digest"])
    assert digests[0] == digests[1]  # Ray does not mind the end of a line
    assert digests[0] != digests[2]
    assert all(len(digest) == 16 for digest in digests)
    assert "0123456789abcdef" not in digests


def test_a_cluster_without_a_token_has_no_digest() -> None:
    assert inspect.token_facts(None) == {"digest": None}
