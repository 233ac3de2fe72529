"""A cluster of its own for tests of `raytools smoke`: one node, this machine, real Ray and real limits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from raytools.node import toolkit as node_toolkit
from raytools.toolkit import pack_toolkit

from .planned_node import built_prefix, free_base_port, is_of_this_machine

NODE_BYTES = 6 * 2**30
# agents of the node, and Ray Data's detached actors, which any later job uses, too
_RAYS_OWN = (
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
    "ray::_AutoscalingCoordinatorActor",
    "ray::_StatsActor",
)


@dataclass(frozen=True)
class Cluster:
    """A project with one node: this machine."""

    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def node(self) -> dict[str, Any]:
        node: dict[str, Any] = json.loads((self.root / "node.json").read_text())
        return node

    def raytools(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "raytools", *arguments]

    def smoke(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.raytools("smoke", "--workload", "autogluon", *arguments)

    def service(self, verb: str) -> None:
        command = [sys.executable, "-m", "raytools.node", "ray", verb, "--root", str(self.root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr

    def processes(self) -> list[str]:
        """Command lines of what belongs to a workload or a run of this cluster."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if not is_of_this_machine(process.pid):
                continue
            text = " ".join(process.info["cmdline"] or [])
            is_rays = " ray " in text or " ray-start " in text
            if ("raytools.node" in text and not is_rays) or "rt-run" in text:
                found.append(text)
        return found

    def workers(self) -> list[psutil.Process]:
        """Processes to which this cluster's Ray has given work, such as trials."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            name = " ".join(process.info["cmdline"] or [])
            if name.startswith("ray::") and "IDLE" not in name and not name.startswith(_RAYS_OWN):
                with contextlib.suppress(psutil.Error):
                    if process.environ().get("RAYTOOLS_ROOT") == str(self.root):
                        found.append(process)
        return found

    def remote_work(self) -> list[str]:
        """What these processes are called."""
        return [" ".join(process.info["cmdline"]) for process in self.workers()]

    def driver(self) -> psutil.Process:
        """The driver of a workload of scope `cluster`, on the head."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "workload" in words and str(self.root / "node.json") in words and words[0].endswith("python"):
                return process
        raise AssertionError("there is no driver")


def configuration(prefix: Path, base_port: int, per_node: int, shared: Path | None) -> dict[str, Any]:
    names = (
        "gcs", "dashboard", "client", "node_manager", "object_manager", "runtime_env_agent",
        "dashboard_agent_grpc", "dashboard_agent_http", "metrics_export", "dashboard_metrics",
        "autoscaler_metrics",
    )  # fmt: skip
    ports: dict[str, Any] = {name: base_port + index for index, name in enumerate(names)}
    ports["workers"] = [base_port + 11, base_port + 70]
    # who tests beside others on one machine has locks of their own, or the CPUs of one are those of all
    locks = {name: os.environ[name] for name in ("RAYTOOLS_LOCK_DIR",) if name in os.environ}
    return {
        "cluster": "smoketest",
        "environment": {"prefix": str(prefix)},
        "ray": {"ports": ports, "dashboard": {"enabled": False}, "env": locks},
        "nodes": {"memory": NODE_BYTES, "system_reserved": {"memory": "1GiB"}},
        "slots": {"per_node": per_node},
        "storage": {"type": "existing", "path": str(shared)} if shared else {"type": "local"},
    }


@contextlib.contextmanager
def started_cluster(
    per_node: int = 1, *, shared: bool = False, prefix: Path | None = None
) -> Iterator[Cluster]:
    """A cluster of one node with its Ray, which ends with it; its ports and directories are its own.

    Args:
        per_node: number of slots.
        shared: its storage is a directory that it is told all nodes share: `<directory>/shared`.
        prefix: of its environment; the built one if there is none.
    """
    prefix = prefix or built_prefix()
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="raytools-smoke-")))
    storage = cluster.directory / "shared" if shared else None
    wanted = configuration(prefix, free_base_port(72), per_node, storage)
    if storage:
        (storage / "results").mkdir(parents=True)
    (cluster.directory / "cluster.yaml").write_text(yaml.safe_dump(wanted))
    host = {"ansible_connection": "local", "raytools_root": str(cluster.root)}
    inventory = {"head": {"hosts": {"localhost": host}}, "workers": {"hosts": {}}}
    (cluster.directory / "inventory").mkdir()
    (cluster.directory / "inventory" / "hosts.yml").write_text(yaml.safe_dump(inventory))
    planned = cluster.raytools("plan", "--json")
    assert planned.returncode == 0, planned.stderr
    node = json.loads(planned.stdout)["nodes"]["localhost"]
    cluster.root.mkdir()
    (cluster.root / "node.json").write_text(json.dumps(node))
    (cluster.root / "token").touch(0o600)
    (cluster.root / "token").write_text(os.urandom(32).hex())
    packed = pack_toolkit(cluster.directory / ".raytools" / "toolkit")
    node_toolkit.install(Path(packed.path), cluster.root, packed.digest, None)
    cluster.service("ensure")
    try:
        yield cluster
    finally:
        cluster.service("stop")
        shutil.rmtree(Path(node["temp_dir"]).parent, ignore_errors=True)
        shutil.rmtree(cluster.directory)
