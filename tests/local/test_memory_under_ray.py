"""Memory adds up: two runs fill what this machine's plan gives them, and Ray's monitor kills neither.

The plan is `raytools plan`'s for this machine with two slots, Ray is started from it, and the runs touch what
they allocate. The reserve is the default, or more if other programs here need more: so this takes nearly all
of the memory there is for some seconds, and does not start if it is not there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from raytools.environment.activate import activation
from raytools.units import format_size

from .limited_runs import why_no_limits
from .planned_node import CHECKOUT, built_prefix, free_base_port

_why_not = why_no_limits()
if len(os.sched_getaffinity(0)) < 2:
    _why_not = "two slots need two CPUs, this process may use one"
pytestmark = [pytest.mark.timeout(240), pytest.mark.skipif(bool(_why_not), reason=_why_not)]

GIB = 2**30
SHARE = 0.95
_DEFAULT_RESERVE_BYTES = 2 * GIB
_RAYS_OWN_BYTES = GIB  # head, driver, workers and supervisors, and something to spare
_SEVERAL_SAMPLES_S = 1.5  # Ray's monitor looks four times a second

DRIVER = """
import json, mmap, os, sys, time
import ray, raytools

directory, fits, too_much = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def fill(name, size_bytes):
    # private and touched page by page: memory that nobody can take back
    held = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, size_bytes, mmap.PAGESIZE):
        held[offset] = 1
    mark(name + "-full")
    wait_for(name + "-may-go")
    return held[offset]

def mark(name):
    open(f"{directory}/{name}", "w").close()

def wait_for(name):
    while not os.path.exists(f"{directory}/{name}"):
        time.sleep(0.02)

def submit(name, size_bytes):
    return raytools.remote(fill).options(name=f"fill-{name}").remote(name, size_bytes)

ray.init(log_to_driver=False)
first, neighbour = submit("first", fits), submit("neighbour", fits)
runs = [ray.get(first)]
runs.append(ray.get(submit("over", too_much)))
mark("over-ended")
runs.append(ray.get(neighbour))
answer = [{"value": run.value, "record": run.record} for run in runs]
with open(f"{directory}/answer", "w") as file:
    json.dump(answer, file)
"""


@dataclass(frozen=True)
class Cluster:
    """A project with one node, this machine, and two slots."""

    directory: Path
    node: dict[str, Any]

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def slot_bytes(self) -> int:
        return int(self.node["slots"][0]["memory_bytes"])

    @property
    def threshold(self) -> float:
        """The share of the node above which Ray kills."""
        return float(self.node["ray"]["env"]["RAY_memory_usage_threshold"])

    @property
    def slots_share(self) -> float:
        """The share of the node that the plan gives to its slots."""
        return 2 * self.slot_bytes / int(self.node["physical"]["memory_bytes"])

    def service(self, verb: str) -> None:
        command = [sys.executable, "-m", "raytools.node", "ray", verb, "--root", str(self.root)]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr

    def raylet_log(self) -> str:
        folder = self.root / "ray" / "session_latest" / "logs"
        return "".join((folder / name).read_text() for name in ("raylet.out", "raylet.err"))

    def worker(self, name: str) -> int | None:
        """The Ray worker that waits for the run of this name."""
        for process in psutil.process_iter(["cmdline"]):
            if f"ray::fill-{name}" in " ".join(process.info["cmdline"] or []):
                return process.pid
        return None


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    prefix = built_prefix()
    with tempfile.TemporaryDirectory(prefix="raytools-memory-") as name:
        cluster = Cluster(Path(name), _planned(Path(name), prefix))
        _need_memory(2 * cluster.slot_bytes)
        try:
            cluster.service("ensure")
            yield cluster
        finally:
            cluster.service("stop")
            shutil.rmtree(Path(cluster.node["temp_dir"]).parent, ignore_errors=True)


def _planned(directory: Path, prefix: Path) -> dict[str, Any]:
    """Writes a project, has it planned by `raytools plan`, and writes what the node gets."""
    base = free_base_port(61)
    names = (
        "gcs", "dashboard", "client", "node_manager", "object_manager", "runtime_env_agent",
        "dashboard_agent_grpc", "dashboard_agent_http", "metrics_export", "dashboard_metrics",
        "autoscaler_metrics",
    )  # fmt: skip
    ports: dict[str, Any] = {name: base + index for index, name in enumerate(names)}
    ports["workers"] = [base + 11, base + 60]
    configuration = {
        "cluster": "memorytest",
        "environment": {"prefix": str(prefix)},
        "slots": {"per_node": 2},
        "nodes": {"system_reserved": {"memory": _reserve_bytes()}},
        "ray": {
            "ports": ports,
            "dashboard": {"enabled": False},
            "env": {"RAYTOOLS_LOCK_DIR": str(directory / "locks")},
        },
    }
    root = directory / "root"
    (directory / "cluster.yaml").write_text(yaml.safe_dump(configuration))
    host = {"ansible_connection": "local", "raytools_root": str(root)}
    (directory / "inventory").mkdir()
    inventory = {"head": {"hosts": {"localhost": host}}, "workers": {"hosts": {}}}
    (directory / "inventory" / "hosts.yml").write_text(yaml.safe_dump(inventory))
    planned = subprocess.run(
        [sys.executable, "-m", "raytools", "plan", "--json"],
        cwd=directory, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    node: dict[str, Any] = json.loads(planned.stdout)["nodes"]["localhost"]
    node["toolkit"] = str(CHECKOUT)  # what stands here, not what was installed once
    root.mkdir()
    (root / "node.json").write_text(json.dumps(node))
    (root / "token").touch(0o600)
    (root / "token").write_text(os.urandom(32).hex())
    return node


def _reserve_bytes() -> int:
    """What an administrator would reserve for all that is not a run: Ray acts at three quarters of it."""
    memory = psutil.virtual_memory()
    return max(_DEFAULT_RESERVE_BYTES, (memory.total - memory.available + _RAYS_OWN_BYTES) * 4 // 3)


def _need_memory(slots_bytes: int) -> None:
    needed_bytes = int(SHARE * slots_bytes) + _RAYS_OWN_BYTES
    available_bytes = psutil.virtual_memory().available
    if available_bytes < needed_bytes:
        text = (
            f"found {format_size(available_bytes)} of available memory, "
            f"expected {format_size(needed_bytes)}: {SHARE:.0%} of two slots with {format_size(slots_bytes)} "
            f"together, and {format_size(_RAYS_OWN_BYTES)} for Ray. End what else runs here"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)


@dataclass(frozen=True)
class Story:
    """Two runs fill their slots to 95 %; one of them makes room for a third, which wants more than its slot.

    `workers` are those of the neighbour that stays all the time: at its start, beside the other full one, and
    when the third has ended.
    """

    first: dict[str, Any]
    over: dict[str, Any]
    neighbour: dict[str, Any]
    workers: list[int | None]
    used_share: float  # of the node, as Ray's monitor reckons, when two were full


@pytest.fixture(scope="module")
def story(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Story:
    directory = tmp_path_factory.mktemp("story")
    active = activation(Path(cluster.node["environment"]["prefix"]), cluster.root)
    active["PATH"] += f":{os.environ['PATH']}"
    sizes = [str(int(share * cluster.slot_bytes)) for share in (SHARE, 1.05)]
    with (directory / "errors").open("wb") as errors:
        driver = subprocess.Popen(
            [cluster.node["python"], "-c", DRIVER, str(directory), *sizes],
            cwd=directory, env={**os.environ, **active}, stdout=errors, stderr=errors,
        )  # fmt: skip

    def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 90
        while not condition() and driver.poll() is None:
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    def exists(name: str) -> bool:
        return (directory / name).exists()

    try:
        until(lambda: cluster.worker("neighbour"))
        workers = [cluster.worker("neighbour")]
        until(lambda: exists("first-full") and exists("neighbour-full"))
        time.sleep(_SEVERAL_SAMPLES_S)
        memory = psutil.virtual_memory()
        workers.append(cluster.worker("neighbour"))
        (directory / "first-may-go").touch()
        until(lambda: exists("over-ended"))
        workers.append(cluster.worker("neighbour"))
        (directory / "neighbour-may-go").touch()
        until(lambda: exists("answer"))
        assert driver.wait(30) == 0, (directory / "errors").read_text()
    finally:
        driver.kill()
        driver.wait()
    first, over, neighbour = json.loads((directory / "answer").read_text())
    return Story(first, over, neighbour, workers, 1 - memory.available / memory.total)


def test_two_runs_at_95_percent_of_their_own_limits_survive_side_by_side(
    cluster: Cluster, story: Story
) -> None:
    for run in (story.first, story.neighbour):
        record = run["record"]
        assert (record["outcome"], run["value"], record["attempt"]) == ("ok", 1, 1)
        assert record["limits"]["memory_bytes"] == cluster.slot_bytes
        assert record["used"]["anon_peak_bytes"] >= SHARE * cluster.slot_bytes
        assert record["used"]["memory_peak_bytes"] <= cluster.slot_bytes
        assert record["used"]["oom_kills"] == 0
        assert [reason for reason in record["fairness"]["reasons"] if "swap" in reason] == []


def test_a_run_over_its_limit_ends_by_its_own_group_and_its_full_neighbour_does_not_notice(
    cluster: Cluster, story: Story
) -> None:
    over = story.over["record"]
    assert over["outcome"] == "oom"
    assert over["message"] == f"exceeded {format_size(cluster.slot_bytes)} of memory"
    assert over["used"]["oom_kills"] >= 1
    assert over["used"]["memory_peak_bytes"] <= cluster.slot_bytes
    assert over["attempt"] == 1
    assert over["started_at"] > story.neighbour["record"]["started_at"]
    assert over["finished_at"] < story.neighbour["record"]["finished_at"]
    assert story.neighbour["record"]["outcome"] == "ok"


def test_rays_monitor_is_on_and_kills_nothing_on_a_node_whose_slots_are_full(
    cluster: Cluster, story: Story
) -> None:
    assert SHARE * cluster.slots_share < story.used_share < cluster.threshold
    assert story.workers[0] is not None
    assert story.workers == [story.workers[0]] * 3
    # Ray's own words, seen with 2.58.1 when a plain task fills a node over the threshold
    log = cluster.raylet_log()
    watched = re.search(r"initialized with usage threshold at \d+ bytes \(([\d.]+)% of system memory\)", log)
    assert watched is not None, "Ray's monitor does not run"
    assert float(watched[1]) / 100 == pytest.approx(cluster.threshold)
    assert "Node memory usage above threshold" not in log
    assert "kill details" not in log
    assert "killed due to memory pressure" not in log
