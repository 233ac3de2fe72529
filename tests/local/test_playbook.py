"""The playbooks on this machine, from the outside: changes, processes, messages. Needs a built environment.

A project of its own in a temporary directory, with the checkout's playbooks and an existing environment
(`environment.prefix`): what the quick start builds in `.raytools/` is not touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from .limited_runs import PATIENCE
from .planned_node import CHECKOUT, built_prefix, free_base_port

pytestmark = pytest.mark.timeout(400)

INVENTORY = """
head:
  hosts:
    localhost:
      ansible_connection: local
      ansible_python_interpreter: "{{ ansible_playbook_python }}"
      raytools_root: .raytools
workers:
  hosts: {}
"""


@dataclass(frozen=True)
class Played:
    exit_code: int
    output: str
    wall_s: float

    @property
    def changed(self) -> int:
        return sum(map(int, re.findall(r"\bchanged=(\d+)", self.output)))


@dataclass(frozen=True)
class Project:
    directory: Path
    base_port: int
    prefix: Path

    @property
    def root(self) -> Path:
        return self.directory / ".raytools"

    def configure(self, **flags: str) -> None:
        names = (
            "gcs", "dashboard", "client", "node_manager", "object_manager", "runtime_env_agent",
            "dashboard_agent_grpc", "dashboard_agent_http", "metrics_export", "dashboard_metrics",
            "autoscaler_metrics",
        )  # fmt: skip
        ports: dict[str, Any] = {name: self.base_port + index for index, name in enumerate(names)}
        ports["workers"] = [self.base_port + 11, self.base_port + 70]
        config = {
            "cluster": "playtest",
            "environment": {"prefix": str(self.prefix)},
            "ray": {"ports": ports, "dashboard": {"enabled": False}, "env": flags},
            "nodes": {"cpus": 1, "memory": "1GiB", "system_reserved": {"memory": "0"}},
        }
        (self.directory / "cluster.yaml").write_text(yaml.safe_dump(config))

    def play(self, playbook: str, *options: str) -> Played:
        """The checkout's playbook, as a user would name another project."""
        started = time.monotonic()
        done = subprocess.run(
            [
                CHECKOUT / ".venv" / "bin" / "ansible-playbook", f"playbooks/{playbook}.yml",
                "-i", self.directory / "inventory" / "hosts.yml",
                "-e", f"raytools_config={self.directory / 'cluster.yaml'}", *options,
            ],
            cwd=CHECKOUT, env={**os.environ, "ANSIBLE_NOCOLOR": "1", "RAYTOOLS_CHANNELS": "local"},
            capture_output=True, text=True, timeout=390, check=False,
        )  # fmt: skip
        return Played(done.returncode, done.stdout + done.stderr, time.monotonic() - started)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.root / "ray.state.json").read_text())
        return state


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    directory = Path(tempfile.mkdtemp(prefix="raytools-play-"))
    project = Project(directory, free_base_port(72), built_prefix())
    (directory / "inventory").mkdir()
    (directory / "inventory" / "hosts.yml").write_text(INVENTORY)
    project.configure()
    try:
        yield project
    finally:
        stopped = project.play("stop")
        temp_dir = (project.root / "ray").readlink() if (project.root / "ray").is_symlink() else None
        shutil.rmtree(directory)
        if temp_dir:
            shutil.rmtree(temp_dir.parent, ignore_errors=True)
        assert stopped.exit_code == 0, stopped.output


@pytest.fixture(scope="module")
def cluster(project: Project) -> Project:
    """The cluster of this project is up."""
    played = project.play("cluster")
    assert played.exit_code == 0, played.output
    return project


def test_check_mode_on_a_fresh_machine_succeeds_and_leaves_nothing(project: Project) -> None:
    played = project.play("cluster", "--check")
    assert played.exit_code == 0, played.output
    assert not (project.root / "node.json").exists()
    assert not (project.root / "ray.state.json").exists()


def test_a_busy_port_is_named_before_anything_is_changed(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", project.base_port))
        taken.listen()
        played = project.play("cluster")
    assert played.exit_code != 0
    said = " ".join(played.output.split())
    assert f"port {project.base_port} (gcs) is held by" in said
    assert f"(pid {os.getpid()})" in said
    assert played.changed == 0
    assert not (project.root / "node.json").exists()


def test_a_wrong_key_ends_the_playbook_with_its_line(project: Project) -> None:
    try:
        (project.directory / "cluster.yaml").write_text("cluster: x\nslot: {}\n")
        played = project.play("preflight")
    finally:
        project.configure()
    assert played.exit_code != 0
    assert "cluster.yaml:2: slot:" in " ".join(played.output.split())


def test_the_second_run_changes_nothing_and_ray_keeps_running(cluster: Project) -> None:
    before = cluster.state()
    again = cluster.play("cluster")
    assert again.exit_code == 0, again.output
    assert again.changed == 0, again.output
    assert cluster.state() == before
    assert psutil.Process(before["raylet_pid"]).name() == "raylet"
    print(f"second run: {again.wall_s:.1f} s")
    assert again.wall_s < 60 * PATIENCE, "15 s alone on the machine; see benchmarks"


@pytest.mark.long
def test_every_playbook_runs_alone_without_changes(cluster: Project) -> None:
    before = cluster.state()
    for name in ("preflight", "environment", "storage", "node", "ray", "verify"):
        played = cluster.play(name)
        assert played.exit_code == 0, played.output
        assert played.changed == 0, played.output
    assert cluster.state() == before


@pytest.mark.long  # in tests/local/test_ray_service.py without a playbook, in the lab with one
def test_a_changed_flag_restarts_ray_with_it(cluster: Project) -> None:
    before = cluster.state()
    cluster.configure(OMP_WAIT_POLICY="active")
    played = cluster.play("cluster")
    assert played.exit_code == 0, played.output
    assert played.changed == 2, played.output  # node.json and Ray
    after = cluster.state()
    assert after["raylet_pid"] != before["raylet_pid"]
    assert psutil.Process(after["raylet_pid"]).environ()["OMP_WAIT_POLICY"] == "active"


def test_a_token_is_made_once_for_the_owner_alone(cluster: Project) -> None:
    token = cluster.root / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    content = token.read_text()
    assert re.fullmatch(r"[0-9a-fA-F]{64}", content)
    assert content not in cluster.play("ray", "-vvv").output
    assert token.read_text() == content


def test_stop_ends_this_cluster_and_a_second_stop_changes_nothing(cluster: Project) -> None:
    raylet = psutil.Process(cluster.state()["raylet_pid"])
    stopped = cluster.play("stop")
    assert stopped.exit_code == 0, stopped.output
    assert stopped.changed == 1
    assert not raylet.is_running() or raylet.status() == psutil.STATUS_ZOMBIE
    assert not (cluster.root / "ray.state.json").exists()
    assert cluster.play("stop").changed == 0
