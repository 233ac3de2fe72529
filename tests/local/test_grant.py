"""`raytools grant`: a plain user gets the right to limited runs, uses it, and loses it again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raytools.node import cgroup
from raytools.node.cgroup_tree import locate_self
from raytools.node.cgroup_v1 import granted_folder
from tests.local.limited_runs import CHECKOUT, PYTHON, Requester, Runs, plain_user

_groups = locate_self()
V1 = _groups.version("memory") == _groups.version("cpuset") == 1
pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a user and to grant"),
    pytest.mark.skipif(shutil.which("useradd") is None, reason="needs useradd (package passwd)"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (package util-linux)"),
    pytest.mark.skipif(not Path(PYTHON).exists(), reason="needs the system's Python (package python3)"),
    pytest.mark.skipif(
        not V1 and not Path("/run/systemd/system").is_dir(),
        reason="nothing to grant: neither cgroup v1 with memory and cpuset nor cgroup v2 under systemd",
    ),
]
only_v1 = pytest.mark.skipif(not V1, reason="a subtree of each controller is what cgroup v1 needs")


@pytest.fixture(scope="module")
def user() -> Iterator[Requester]:
    """A fresh user. It is granted before each test, and once more is no mistake."""
    with plain_user() as made:
        yield made


@pytest.fixture
def runs(user: Requester) -> Iterator[Runs]:
    assert grant(user.user).returncode == 0
    made = Runs(user, Path(tempfile.mkdtemp(prefix="raytools-runs-")))
    try:
        yield made
        assert made.nothing_is_left() == []
    finally:
        made.clean_up()


def grant(user: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raytools", "grant", "--user", user, *options],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def check(runs: Runs) -> tuple[int, dict[str, Any]]:
    """`raytools run --check --json` as that user."""
    finished = subprocess.run(
        runs.requester.as_user([PYTHON, "-m", "raytools", "run", "--check", "--json"]),
        cwd=runs.directory, env=runs._environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert finished.stdout, finished.stderr
    return finished.returncode, json.loads(finished.stdout)


def folders(user: Requester) -> list[Path]:
    """The user's subtrees, one per controller of cgroup v1."""
    name = granted_folder(user.uid)
    return [Path(_groups.tops[c]) / name for c in cgroup.CONTROLLERS if _groups.version(c) == 1]


@only_v1
def test_a_grant_makes_a_subtree_of_each_controller_that_belongs_to_the_user(runs: Runs) -> None:
    said = grant(runs.requester.user)
    lines = said.stdout.splitlines()
    assert len(lines) == len(folders(runs.requester)) > 0
    for folder, line in zip(folders(runs.requester), lines, strict=True):
        assert f"{folder} belongs to {runs.requester.user}" in line
        assert folder.stat().st_uid == runs.requester.uid
        assert (folder / "cgroup.procs").stat().st_uid == runs.requester.uid


@only_v1
def test_limits_of_the_subtree_stay_roots(runs: Runs) -> None:
    for folder in folders(runs.requester):
        files = [
            path for path in folder.iterdir() if path.is_file() and path.name not in ("cgroup.procs", "tasks")
        ]
        assert {path.stat().st_uid for path in files} == {0}


@only_v1
def test_the_user_cannot_take_processes_of_others_into_its_subtree(runs: Runs) -> None:
    for folder in folders(runs.requester):
        command = runs.requester.as_user(["sh", "-c", f"echo {os.getpid()} > {folder}/cgroup.procs"])
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_a_run_of_that_user_is_enforced(runs: Runs) -> None:
    result = runs.run("sh", "-c", "exit 3", options=("--memory", "100MiB"))
    assert result.ending == (3, "failed")
    enforced = result.record["enforced"]
    assert enforced["missing"] == []
    assert enforced["cpu"] == enforced["memory"] in ("cgroup-v1", "cgroup-v2")
    assert enforced["confinement"] == "mount-namespace"
    hungry = runs.run(PYTHON, "-c", "x = bytearray(10**9)", options=("--memory", "100MiB"))
    assert hungry.ending == (137, "oom")


def test_the_check_of_that_user_is_green(runs: Runs) -> None:
    code, answer = check(runs)
    assert [proof for proof in answer["limits"] if not proof["holds"]] == []
    assert (code, answer["ok"], answer["fix"]) == (0, True, None)


@only_v1
def test_a_revoke_while_a_run_goes_on_says_so_and_does_it_no_harm(runs: Runs) -> None:
    script = f"touch {runs.ready}; until [ -e enough ]; do sleep 0.05; done; exit 5"
    going_on = runs.start("sh", "-c", script, options=("--memory", "100MiB"))
    refused = grant(runs.requester.user, "--revoke")
    assert refused.returncode != 0
    assert "is in use" in refused.stderr
    assert f"no runs of {runs.requester.user}" in refused.stderr
    assert "raytools slots" in refused.stderr
    assert "Traceback" not in refused.stderr
    (runs.directory / "enough").touch()
    result = going_on.result()
    assert result.ending == (5, "failed")
    assert result.record["enforced"]["missing"] == []


def test_after_a_revoke_nothing_is_left_and_a_run_is_refused_with_the_way_back(runs: Runs) -> None:
    said = grant(runs.requester.user, "--revoke")
    assert said.returncode == 0
    if V1:
        assert len(said.stdout.splitlines()) == len(folders(runs.requester))
        assert [folder for folder in folders(runs.requester) if folder.exists()] == []
    refused = runs.run("true")
    assert refused.ending == (125, "refused")
    assert f"grant --user {runs.requester.user}" in refused.stderr
    code, answer = check_without_psutil_is_told(runs)
    assert code != 0
    assert f"grant --user {runs.requester.user}" in answer

    assert grant(runs.requester.user).returncode == 0
    assert runs.run("true").ending == (0, "ok")


def check_without_psutil_is_told(runs: Runs) -> tuple[int, str]:
    """The check of a user without a grant: it needs best effort, for which that Python may lack psutil."""
    finished = subprocess.run(
        runs.requester.as_user([PYTHON, "-m", "raytools", "run", "--check"]),
        cwd=runs.directory, env=runs._environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in finished.stderr
    return finished.returncode, finished.stdout + finished.stderr


@only_v1
def test_a_part_of_the_grant_that_went_is_named_and_granted_again(runs: Runs) -> None:
    lost = next(folder for folder in folders(runs.requester) if "pids" in folder.parts)
    os.chown(lost, 0, 0)
    refused = runs.run("true")
    assert refused.ending == (125, "refused")
    assert f"controller pids: {lost} is not writable" in refused.stderr
    assert f"grant --user {runs.requester.user}" in refused.stderr
    lost.rmdir()
    refused = runs.run("true")
    assert refused.ending == (125, "refused")
    assert "controller pids" in refused.stderr
    assert grant(runs.requester.user).returncode == 0
    assert runs.run("true").ending == (0, "ok")


def test_a_revoke_of_what_was_never_granted_is_no_error(runs: Runs) -> None:
    assert grant(runs.requester.user, "--revoke").returncode == 0
    again = grant(runs.requester.user, "--revoke")
    assert (again.returncode, again.stderr) == (0, "")


def test_an_unknown_user_is_refused_in_one_line() -> None:
    for options in ((), ("--revoke",)):
        refused = grant("no-such-user", *options)
        assert refused.returncode == 2
        assert "found no user 'no-such-user'" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_only_root_can_grant_and_anybody_else_is_told_how() -> None:
    script = """
import os
from raytools.errors import RaytoolsError
from raytools.node import grant
os.seteuid(65534)
for act in (grant.grant, grant.revoke):
    try:
        act("somebody")
    except RaytoolsError as error:
        print(error)
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines() == [
        "not root, expected root. Run: sudo raytools grant --user somebody",
        "not root, expected root. Run: sudo raytools grant --user somebody --revoke",
    ]
