"""Starting a driver on a node: what it is told, and where it begins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raytools.errors import RaytoolsError
from raytools.node import driver


def plan(root: Path, *start_args: str, auth: str = "token", **changes: Any) -> dict[str, Any]:
    node = {
        "schema": "raytools.node/1",
        "root": str(root),
        "user": None,
        "toolkit": str(Path(driver.__file__).parents[2]),
        "environment": {"prefix": f"{root}/envs/abc"},
        "ray": {
            "gcs_address": "10.0.0.1:6379",
            "auth": auth,
            "token_path": f"{root}/token" if auth == "token" else None,
            "start_args": ["--head", *start_args],
        },
        **changes,
    }
    (root / "node.json").write_text(json.dumps(node))
    return node


def started(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    code = str(Path(driver.__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "raytools.node", "driver", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": code, "RAYTOOLS_ROOT": str(root), **variables},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_driver_has_the_environments_programs_and_rays_address_and_token(tmp_path: Path) -> None:
    node = plan(tmp_path)
    done = started(tmp_path, sys.executable, "-c", "import os, json; print(json.dumps(dict(os.environ)))")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert told["RAY_AUTH_TOKEN_PATH"] == f"{tmp_path}/token"
    assert told["PATH"].partition(":")[0] == f"{tmp_path}/envs/abc/bin"
    assert told["PATH"].endswith(os.environ["PATH"])
    assert told["PYTHONPATH"].partition(":")[0] == node["toolkit"]


def test_without_authentication_there_is_no_token_to_name(tmp_path: Path) -> None:
    told = driver.variables(plan(tmp_path, auth="disabled"), "/env")
    assert told["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN_PATH" not in told


def test_under_isolation_it_begins_in_the_leaf_of_rays_unit(tmp_path: Path) -> None:
    leaf = tmp_path / "unit" / "main"
    leaf.mkdir(parents=True)
    plan(tmp_path, f"--cgroup-path={tmp_path}/unit")
    done = started(tmp_path, sys.executable, "-c", f"print(open('{leaf}/cgroup.procs').read())")
    assert (done.returncode, done.stdout) == (0, "0\n")


def test_where_rays_unit_does_not_run_no_driver_starts(tmp_path: Path) -> None:
    plan(tmp_path, f"--cgroup-path={tmp_path}/unit")
    done = started(tmp_path, "echo", "started")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path}/unit/main does not exist" in done.stderr


def test_who_may_not_enter_is_told_how_to_before_anything_is_harmed(tmp_path: Path) -> None:
    (tmp_path / "unit" / "main" / "cgroup.procs").mkdir(parents=True)  # nobody can write that
    node = plan(tmp_path, f"--cgroup-path={tmp_path}/unit")
    with pytest.raises(RaytoolsError) as refused:
        driver.become_driver(node)
    assert f"sudo env PYTHONPATH={node['toolkit']}" in (refused.value.fix or "")
    assert "-m raytools.node driver PROGRAM" in (refused.value.fix or "")


def test_under_isolation_roots_driver_is_refused_because_ray_could_not_move_it(tmp_path: Path) -> None:
    procs = tmp_path / "unit" / "main" / "cgroup.procs"
    procs.parent.mkdir(parents=True)
    plan(tmp_path, f"--cgroup-path={tmp_path}/unit", user="nobody")
    done = started(tmp_path, "--user", "root", "echo", "started")
    assert (done.returncode, done.stdout) == (2, "")
    assert "root's driver would end the raylet, which nobody may not move" in done.stderr
    assert not procs.exists()


def test_where_rays_user_is_root_its_drivers_are_too(tmp_path: Path) -> None:
    (tmp_path / "unit" / "main").mkdir(parents=True)
    plan(tmp_path, f"--cgroup-path={tmp_path}/unit", user="root")
    done = started(tmp_path, "echo", "started")
    assert (done.returncode, done.stdout) == (0, "started\n")


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    plan(tmp_path)
    done = started(tmp_path, "no-such-program")
    assert (done.returncode, done.stderr) == (127, "driver: no-such-program: No such file or directory\n")


def test_a_user_that_is_not_there_is_named(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody")
    plan(tmp_path)
    done = started(tmp_path, "--user", "nobody-of-that-name", "true")
    assert done.returncode == 2
    assert "this node has no user nobody-of-that-name" in done.stderr


def test_a_node_without_a_plan_says_how_to_get_one(tmp_path: Path) -> None:
    done = started(tmp_path, "true")
    assert done.returncode == 2
    assert "ansible-playbook playbooks/node.yml" in done.stderr
