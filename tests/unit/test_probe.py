"""The probe looks at this machine, below a root of its own: one call answers all that provisioning asks."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raytools.node import locks, probe, ray_ports, stamp, toolkit
from raytools.node.ray_temp_dir import name_of, temp_dir_of

CHECKOUT = Path(__file__).resolve().parents[2]


def probed(root: Path, **changes: Any) -> dict[str, Any]:
    request = {"root": str(root), "cluster": "t", "user": None, "ports": {}, "storage_path": None} | changes
    return probe.probe(request)


@pytest.fixture
def listener() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_machine_on_which_nothing_was_done_is_described_and_not_changed(tmp_path: Path) -> None:
    found = probed(tmp_path / "root")
    assert found["schema"] == "raytools.state/1"
    assert found["facts"]["schema"] == "raytools.facts/1"
    assert abs(found["clock_s"] - time.time()) < 10
    nothing = {
        "node": None, "root_owner": None, "root_writable": True, "stamps": {}, "account": None,
        "toolkit": {"installed": None, "zips": []}, "environments": {}, "current": None, "raylet_pid": None,
        "token_sha256": None, "busy_ports": [], "storage": None,
    }  # fmt: skip
    assert {name: found[name] for name in nothing} == nothing
    assert not (tmp_path / "root").exists()
    json.dumps(found)


def test_one_call_takes_its_request_on_standard_input_and_answers_json(tmp_path: Path) -> None:
    request = {"root": str(tmp_path), "cluster": "t", "user": "root", "ports": {}, "storage_path": None}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "raytools.node", "probe"], input=json.dumps(request), cwd=CHECKOUT,
        env={"PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["interpreter"] == sys.executable
    assert found["account"][:2] == [0, 0]


def test_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["--root", "/x"]) == 2
    assert "request on standard input" in capsys.readouterr().err


def test_whose_the_root_is_and_what_is_below_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text('{"cluster": "t", "environment": {"prefix": "/e"}}')
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit" / "raytools-0123456789ab.zip").touch()
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "current").symlink_to("automl-1")
    stamp.write(tmp_path, "base", "d1", [str(tmp_path)])
    found = probed(tmp_path)
    assert found["root_owner"] == name_of(os.getuid())
    assert found["node"]["cluster"] == "t"
    assert found["toolkit"] == {"installed": None, "zips": ["0123456789ab"]}
    assert found["current"] == "automl-1"
    assert found["stamps"]["base"]["inputs"] == "d1"


def test_the_installed_toolkit_is_named(tmp_path: Path) -> None:
    target = tmp_path / "toolkit" / toolkit.__version__
    target.mkdir(parents=True)
    (target / toolkit.DIGEST_NAME).write_text("abc\n")
    assert probed(tmp_path)["toolkit"]["installed"] == "abc"


@pytest.mark.parametrize("content", ["{", "[]", '{"environment": null}', ""])
def test_a_damaged_plan_does_not_keep_the_playbooks_from_mending_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "node.json").write_text(content)
    assert probed(tmp_path)["environments"] == {}


def test_the_token_is_named_by_its_digest_and_not_told(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("5ecret\n")
    found = probed(tmp_path)
    assert found["token_sha256"] == hashlib.sha256(b"5ecret").hexdigest()
    assert "5ecret" not in json.dumps(found)


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd is PID 1 here")
def test_without_systemd_there_is_no_unit(tmp_path: Path) -> None:
    found = probed(tmp_path)
    assert found["unit"] is None
    assert found["systemd"] is False


# --------------------------------------------------------------------------------------------------- ports


def test_a_port_that_somebody_else_holds_is_reported(tmp_path: Path, listener: int) -> None:
    (said,) = probed(tmp_path, ports={"gcs": listener})["busy_ports"]
    assert said.startswith(f"port {listener} (gcs) is held by ")
    assert f"(pid {os.getpid()}) of user {name_of(os.getuid())}" in said


def test_a_port_that_this_roots_own_ray_holds_is_not_reported(tmp_path: Path) -> None:
    """`ray ensure` has made a session and written its leader down; here a listener stands for Ray."""
    code = (
        "import socket, sys\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n"
        "print(s.getsockname()[1], flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    ) as ray:  # fmt: skip
        assert ray.stdout is not None
        ports = {"gcs": int(ray.stdout.readline())}
        assert len(probed(tmp_path, ports=ports)["busy_ports"]) == 1
        (tmp_path / "ray.state.json").write_text(json.dumps({"pid": ray.pid}))
        assert probed(tmp_path, ports=ports)["busy_ports"] == []
        ray.communicate()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": null}', '{"pid": "x"}'])
def test_a_damaged_state_file_owns_nothing(tmp_path: Path, listener: int, content: str) -> None:
    (tmp_path / "ray.state.json").write_text(content)
    assert len(probed(tmp_path, ports={"gcs": listener})["busy_ports"]) == 1


def test_a_process_that_ends_while_it_is_looked_at_disturbs_nothing(
    tmp_path: Path, listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder is gone when its name is asked for: then nobody holds the port any more."""
    monkeypatch.setattr(ray_ports, "_holders", lambda inodes: dict.fromkeys(inodes, 2**22 + 1))
    assert probed(tmp_path, ports={"gcs": listener})["busy_ports"] == []


def test_another_ray_is_named_and_ones_own_is_not(tmp_path: Path) -> None:
    """A process with a raylet's name and flags stands for one."""
    code = "open('/proc/self/comm', 'w').write('raylet'); print('up', flush=True); input()"
    for temp_dir, expected in (("/tmp/rt-none/ray", 1), (temp_dir_of(tmp_path), 0)):
        with subprocess.Popen(
            [sys.executable, "-S", "-c", code, f"--temp_dir={temp_dir}"],
            env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as ray:  # fmt: skip
            assert ray.stdout is not None
            ray.stdout.readline()
            named = [said for said in probed(tmp_path)["other_rays"] if f"(pid {ray.pid}," in said]
            assert len(named) == expected
            ray.communicate("\n")


# ---------------------------------------------------------------------------------------- runs and storage


def test_runs_that_hold_slots_are_named_and_asking_makes_no_lock_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "locks"
    monkeypatch.setenv("RAYTOOLS_LOCK_DIR", str(directory))
    assert probed(tmp_path)["runs"] == []
    assert not directory.exists()
    holder = locks.Holder(
        run_id="r1", pid=os.getpid(), user="ada", cpus=[0], memory_bytes=2**30, command=["fit.py"],
        started_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    claim = locks.claim(holder, None)
    try:
        (run,) = probed(tmp_path)["runs"]
        assert run.startswith("run r1 of ada ")
    finally:
        claim.release()
    assert probed(tmp_path)["runs"] == []


def test_storage_is_looked_at_where_it_is_declared(tmp_path: Path) -> None:
    path = tmp_path / "data"
    assert probed(tmp_path, storage_path=str(path))["storage"] == {
        "path": str(path), "directory": False, "stalled": False, "mounted": False, "source": None,
        "filesystem": None, "results_owner": None,
    }  # fmt: skip
    (path / "results").mkdir(parents=True)
    found = probed(tmp_path, storage_path=str(path))["storage"]
    assert (found["directory"], found["results_owner"]) == (True, name_of(os.getuid()))
