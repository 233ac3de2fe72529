"""The Ray service on this machine, with a real Ray. About two minutes; needs a built environment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from .limited_runs import PATIENCE
from .planned_node import CHECKOUT, built_prefix, free_base_port, own_address, write_node

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Answer:
    exit_code: int
    data: dict[str, Any]
    errors: str
    wall_s: float


@dataclass(frozen=True)
class Place:
    """A root with a plan, and the service called as the playbook calls it."""

    root: Path
    prefix: Path
    base_port: int

    def plan(self, *, toolkit: Path = CHECKOUT, **flags: str) -> dict[str, Any]:
        return write_node(self.root, self.prefix, self.base_port, toolkit=toolkit, **flags)

    def ray(self, command: str, **environment: str) -> Answer:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "raytools.node", "ray", command, "--root", str(self.root)],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        wall_s = time.monotonic() - started
        data = json.loads(done.stdout) if done.stdout else {}
        return Answer(done.returncode, data, done.stderr, wall_s)

    def started(self) -> Answer:
        answer = self.ray("ensure")
        assert answer.exit_code == 0, answer.errors
        return answer

    def processes(self) -> set[psutil.Process]:
        """Everything of this Ray, by its temp dir in the command line or by descent; zombies do not count."""
        temp_dir = str((self.root / "ray").readlink())
        found: set[psutil.Process] = set()
        for process in psutil.process_iter(["cmdline", "status"]):
            if process.info["status"] != psutil.STATUS_ZOMBIE and temp_dir in " ".join(
                process.info["cmdline"] or []
            ):
                found.add(process)
                with contextlib.suppress(psutil.Error):
                    found |= set(process.children(recursive=True))
        return {process for process in found if _lives(process)}


@contextlib.contextmanager
def a_place() -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="rt-test-"))
    place = Place(root, built_prefix(), free_base_port())
    place.plan()
    try:
        yield place
    finally:
        stopped = place.ray("stop")
        assert stopped.exit_code == 0, stopped.errors
        if (root / "ray").is_symlink():
            shutil.rmtree((root / "ray").readlink().parent, ignore_errors=True)
        shutil.rmtree(root)


@pytest.fixture
def place() -> Iterator[Place]:
    with a_place() as place:
        yield place


@contextlib.contextmanager
def listener(port: int) -> Iterator[None]:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("0.0.0.0", port))
        taken.listen()
        yield


def test_ray_starts_as_planned_outlives_its_shell_and_a_second_ensure_does_nothing(place: Place) -> None:
    place.plan(OMP_WAIT_POLICY="passive", RAY_task_oom_retries="0")
    first = place.ray("ensure", RAY_ADDRESS="10.0.0.1:1", RAY_GCS_SERVER_PORT="1", SECRET="x")
    assert first.exit_code == 0, first.errors
    assert first.data["changed"] is True
    assert first.data["reason"] == "not running"

    raylet = psutil.Process(first.data["raylet_pid"])
    assert raylet.name() == "raylet"
    environment = raylet.environ()
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert environment["RAY_task_oom_retries"] == "0"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAYTOOLS_ROOT"] == str(place.root)
    assert environment["PATH"].startswith(f"{place.prefix}/bin:")
    assert "SECRET" not in environment
    assert environment.get("RAY_ADDRESS") != "10.0.0.1:1"

    status = (Path("/proc") / str(first.data["pid"]) / "status").read_text()
    ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert not ignored & (1 << (number - 1)), f"{number.name} is ignored"
    main = psutil.Process(first.data["pid"])
    assert main.terminal() is None
    assert main.ppid() == 1 or "systemd" in psutil.Process(main.ppid()).name()
    assert os.getsid(main.pid) == main.pid
    soft, hard = main.rlimit(psutil.RLIMIT_NOFILE)
    assert soft == hard
    temp_dir = (place.root / "ray").readlink()
    assert temp_dir.parent.stat().st_mode & 0o777 == 0o700  # Ray itself opens temp_dir to everybody

    again = place.ray("ensure")
    assert again.data == {
        "changed": False,
        "pid": first.data["pid"],
        "raylet_pid": first.data["raylet_pid"],
        "digest": first.data["digest"],
    }
    assert again.wall_s < 1.0 * PATIENCE, "0.15 s alone on the machine"

    running = place.ray("status").data
    assert running["running"] is True
    assert running["changed_since_start"] == []
    assert running["processes"] >= 4


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((own_address(), port), timeout=1):
        return True
    return False


SLOW_AGENTS = """
import sys, time
for program, delay_s in (("dashboard/agent.py", 20), ("runtime_env/agent/main.py", 3)):
    if any(program in argument for argument in sys.orig_argv):
        time.sleep(delay_s)
"""


@pytest.mark.long
def test_ray_is_up_when_it_can_prepare_workers_and_its_other_agent_may_take_longer_than_15_s(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "raytools").symlink_to(CHECKOUT / "raytools")
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENTS)
    place.plan(toolkit=tmp_path)
    started = place.started()
    assert _answers(place.base_port + 3), "the agent that prepares workers"
    agents_port = place.base_port + 5
    assert not _answers(agents_port), "the test did not slow the agent"
    deadline = time.monotonic() + 30 * PATIENCE
    while not _answers(agents_port) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _answers(agents_port), "the agent never came up"
    assert psutil.Process(started.data["raylet_pid"]).name() == "raylet"
    assert place.ray("status").data["running"] is True


def test_measured_values_do_not_restart_ray_but_a_flag_does_and_is_named(place: Place) -> None:
    first = place.started()
    node = place.plan()
    node["physical"]["memory_bytes"] += 4096
    node["doctor"]["waive"] = [{"code": "RT801", "reason": "known"}]
    (place.root / "node.json").write_text(json.dumps(node))
    assert place.ray("ensure").data["changed"] is False

    place.plan(OMP_WAIT_POLICY="active")
    assert place.ray("status").data["changed_since_start"] == ["ray.env.OMP_WAIT_POLICY"]
    changed = place.ray("ensure")
    assert changed.data["changed"] is True
    assert changed.data["reason"] == "ray.env.OMP_WAIT_POLICY changed"
    assert changed.data["raylet_pid"] != first.data["raylet_pid"]
    assert not psutil.pid_exists(first.data["raylet_pid"])
    assert psutil.Process(changed.data["raylet_pid"]).environ()["OMP_WAIT_POLICY"] == "active"

    (place.root / "token").write_text("f" * 64)
    assert place.ray("ensure").data["reason"] == "the token changed"


def test_stop_ends_a_busy_ray_and_all_its_processes_within_its_time(place: Place) -> None:
    place.started()
    driver = _driver_with_a_running_task(place)
    try:
        before = place.processes()
        assert any(_name(process).startswith("ray::") for process in before)
        stopped = place.ray("stop")
    finally:
        driver.kill()
        driver.wait()
    assert stopped.exit_code == 0, stopped.errors
    assert stopped.data["changed"] is True
    assert stopped.data["killed"] == []
    assert stopped.wall_s < 20 * PATIENCE
    assert place.processes() == set()
    assert [process for process in before if _lives(process)] == []
    assert list((place.root / "ray").glob("session_*/sockets")) == []
    assert list((place.root / "ray").glob("session_*/logs")) != []
    assert not (place.root / "ray.state.json").exists()

    again = place.ray("stop")
    assert again.exit_code == 0
    assert again.data["changed"] is False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _name(process: psutil.Process) -> str:
    """Empty if it has ended just now, as short-lived children of Ray's agents do."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def _driver_with_a_running_task(place: Place) -> subprocess.Popen[str]:
    script = """
import ray, sys, time
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=1)
def long(path):
    open(path, "w").close()
    time.sleep(300)
ray.get(long.remote(sys.argv[2]))
"""
    node = json.loads((place.root / "node.json").read_text())
    mark = place.root / "task-runs"
    driver = subprocess.Popen(
        [str(place.prefix / "bin" / "python"), "-c", script, node["ray"]["gcs_address"], str(mark)],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(place.root / "token")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not mark.exists():
        assert time.monotonic() < deadline, "the task did not start"
        assert driver.poll() is None, "the driver ended"
        time.sleep(0.1)
    return driver


def test_another_ray_on_the_machine_survives_our_stop(place: Place) -> None:
    place.started()
    with a_place() as other:
        theirs = other.started()
        assert place.ray("stop").data["changed"] is True
        assert place.processes() == set()
        assert psutil.Process(theirs.data["raylet_pid"]).name() == "raylet"
        assert other.ray("ensure").data["raylet_pid"] == theirs.data["raylet_pid"]


def test_a_busy_port_is_named_with_its_holder_before_anything_starts(place: Place) -> None:
    with listener(place.base_port):
        refused = place.ray("ensure")
    assert refused.exit_code == 1
    assert f"port {place.base_port} (gcs) is held by" in refused.errors
    assert f"(pid {os.getpid()})" in refused.errors
    assert psutil.Process().username() in refused.errors
    assert "ray.ports" in refused.errors
    assert not (place.root / "ray.state.json").exists()
    assert not (place.root / "ray").exists()


def test_a_foreign_ray_on_our_ports_is_named_and_left_alone(place: Place) -> None:
    place.started()
    root = Path(tempfile.mkdtemp(prefix="rt-test-"))
    try:
        second = Place(root, place.prefix, place.base_port)
        second.plan()
        refused = second.ray("ensure")
        assert refused.exit_code == 1
        assert "gcs_server" in refused.errors
        assert "another Ray of user" in refused.errors
        assert str((place.root / "ray").readlink()) in refused.errors
        assert second.ray("stop").data["changed"] is False
    finally:
        shutil.rmtree(root)
    assert place.ray("status").data["running"] is True


def test_a_plan_with_a_busy_port_does_not_end_the_ray_that_runs(place: Place) -> None:
    first = place.started()
    other_port = free_base_port()
    with listener(other_port):
        moved = Place(place.root, place.prefix, other_port)
        moved.plan()
        refused = moved.ray("ensure")
    assert refused.exit_code == 1
    assert f"port {other_port} (gcs)" in refused.errors
    assert psutil.Process(first.data["raylet_pid"]).is_running()


@pytest.mark.parametrize("victim", ["pid", pytest.param("raylet_pid", marks=pytest.mark.long)])
def test_a_killed_ray_is_started_again(place: Place, victim: str) -> None:
    first = place.started()
    os.kill(first.data[victim], signal.SIGKILL)
    again = place.ray("ensure")
    assert again.exit_code == 0, again.errors
    assert again.data["changed"] is True
    assert again.data["reason"] in ("it had died", "its raylet had died")
    assert again.data["raylet_pid"] != first.data["raylet_pid"]
    raylets = [process for process in place.processes() if _name(process) == "raylet"]
    assert [process.pid for process in raylets] == [again.data["raylet_pid"]]


def test_an_interrupted_start_is_completed_not_repeated(place: Place) -> None:
    ensure = subprocess.Popen(
        [sys.executable, "-m", "raytools.node", "ray", "ensure", "--root", str(place.root)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    state = place.root / "ray.state.json"
    while not state.exists():
        time.sleep(0.02)
    ensure.send_signal(signal.SIGINT)
    ensure.wait(timeout=30)
    pid = json.loads(state.read_text())["pid"]
    again = place.started()
    assert again.data["pid"] == pid
    assert place.ray("ensure").data["changed"] is False


def test_a_ray_that_refuses_its_arguments_is_reported_with_its_last_words(place: Place) -> None:
    node = place.plan()
    node["ray"]["start_args"].append("--no-such-option=1")
    (place.root / "node.json").write_text(json.dumps(node))
    refused = place.ray("ensure")
    assert refused.exit_code == 1
    assert "does not know an argument of the plan" in refused.errors
    assert "No such option" in refused.errors
    assert place.ray("status").data["running"] is False


def test_stop_finds_our_ray_when_its_directory_was_removed(place: Place) -> None:
    place.started()
    raylet_pid = place.ray("status").data["raylet_pid"]
    (place.root / "ray.state.json").unlink()
    refused = place.ray("ensure")
    assert refused.exit_code == 1
    assert "make stop" in refused.errors
    stopped = place.ray("stop")
    assert stopped.data["changed"] is True
    assert place.processes() == set()
    assert not psutil.pid_exists(raylet_pid) or not _lives(psutil.Process(raylet_pid))


def test_a_missing_token_is_refused_before_anything_starts(place: Place) -> None:
    (place.root / "token").unlink()
    refused = place.ray("ensure")
    assert refused.exit_code == 1
    assert "there is no token" in refused.errors
    assert "playbooks/ray.yml" in refused.errors
