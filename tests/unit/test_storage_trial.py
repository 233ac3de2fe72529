"""Does a directory keep what programs expect of storage: on real directories and with real locks."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytools.node import storage_trial
from raytools.node.storage_trial import main, try_out

NOBODY = 65534
# holds a lock until its standard input ends
HOLDS = """
import fcntl, sys
stream = open(sys.argv[1], "r+b")
getattr(fcntl, sys.argv[2])(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A directory for results, as provisioning makes it."""
    (tmp_path / "results").mkdir()
    return tmp_path


def trial_of(storage: Path) -> Path:
    return storage / "results" / ".raytools-trial-n1"


@contextlib.contextmanager
def locked_by_somebody(path: Path, kind: str) -> Iterator[None]:
    """Another process holds a lock, `lockf` (fcntl) or `flock`."""
    command = [sys.executable, "-c", HOLDS, str(path), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "locked\n"
            yield
        finally:
            holder.stdin.close()


def test_an_ordinary_directory_has_no_problem_and_is_left_as_it_was(storage: Path) -> None:
    found = try_out(trial_of(storage))
    assert found["problems"] == []
    assert found["fsync_ms"] >= 0  # of a tmpfs it is nothing
    assert list((storage / "results").iterdir()) == []


def test_what_a_trial_that_was_killed_has_left_is_no_problem(storage: Path) -> None:
    trial_of(storage).mkdir()
    (trial_of(storage) / "trial").write_bytes(b"old")
    assert try_out(trial_of(storage))["problems"] == []
    assert not trial_of(storage).exists()


@pytest.mark.parametrize(("kind", "named"), [("lockf", "fcntl"), ("flock", "flock")])
def test_a_lock_that_is_refused_is_named(storage: Path, kind: str, named: str) -> None:
    trial_of(storage).mkdir()
    file = trial_of(storage) / "trial"
    file.touch()
    with locked_by_somebody(file, kind):
        found = try_out(trial_of(storage))
    assert found["problems"] == [f"files cannot be locked by {named}: Resource temporarily unavailable"]
    assert found["fsync_ms"] >= 0  # of a tmpfs it is nothing


def test_each_lock_is_given_back_as_over_nfs_the_two_kinds_exclude_each_other(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as stream:
        assert storage_trial._lock_problem(stream.fileno()) is None
        for kind in ("lockf", "flock"):
            with locked_by_somebody(file, kind):
                pass


@contextlib.contextmanager
def as_a_plain_user(directory: Path) -> Iterator[None]:
    """As a user who may look into a directory and not write there; root may everything."""
    directory.chmod(0o555)
    if os.getuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_that_may_not_be_written_is_a_problem_with_its_path() -> None:
    with tempfile.TemporaryDirectory() as name:  # all may enter it, unlike a directory of pytest's
        storage = Path(name)
        storage.chmod(0o755)
        (storage / "results").mkdir()
        with as_a_plain_user(storage / "results"):
            found = try_out(trial_of(storage))
        (storage / "results").chmod(0o755)
    assert found == {"problems": [f"Permission denied ({trial_of(storage)})"], "fsync_ms": None}


def test_a_file_where_a_directory_should_be_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    (problem,) = try_out(trial_of(tmp_path))["problems"]
    assert str(tmp_path / "results") in problem


def test_storage_that_is_not_there_is_a_problem_and_is_not_made(tmp_path: Path) -> None:
    found = try_out(trial_of(tmp_path / "unmounted"))
    assert found["problems"] == [f"No such file or directory ({tmp_path}/unmounted/results)"]
    assert list(tmp_path.iterdir()) == []


def test_storage_without_a_directory_for_results_gets_it(tmp_path: Path) -> None:
    assert try_out(trial_of(tmp_path))["problems"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_the_command_tries_below_the_results_and_answers_json(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--path", str(storage), "--name", "n1"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    (storage / "results").rmdir()
    (storage / "results").touch()
    assert main(["--path", str(storage), "--name", "n1"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"]
