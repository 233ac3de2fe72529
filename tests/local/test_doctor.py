"""The doctor on a real Ray of this machine: sound, it finds nothing; each fault is put in and found."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from raytools.environment.spec import EnvironmentSpec
from raytools.node import ray_service
from raytools.node.facts import collect
from raytools.node.ray_temp_dir import temp_dir_of
from raytools.planning import plan_cluster
from raytools.project import find_project

from .planned_node import built_prefix, free_base_port

CHECKOUT = Path(__file__).resolve().parents[2]
# other Rays and their remains may well be on the machine that tests run on
NEIGHBOURS = {"RT704", "RT801"}
_WORKER_PORTS = 200

pytestmark = pytest.mark.timeout(300)


@dataclasses.dataclass
class Cluster:
    """A project of its own with a one-node cluster on this machine."""

    directory: Path
    root: Path
    prefix: Path
    config: dict[str, Any]

    def write_config(self, **changes: Any) -> None:
        (self.directory / "cluster.yaml").write_text(yaml.safe_dump(self.config | changes))

    def doctor(self, *options: str, before: tuple[str, ...] = (), code: int | None = None) -> dict[str, Any]:
        """`raytools doctor --json` in this project; `before` are a program and arguments that start it."""
        line = [*before, sys.executable, "-m", "raytools", "doctor", "--json", *options]
        environment = {**os.environ, "RAYTOOLS_LOCK_DIR": str(self.directory / "locks")}
        environment.pop("ANSIBLE_INVENTORY", None)
        done = subprocess.run(
            line,
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode in (0, 1), done.stderr
        if code is not None:
            assert done.returncode == code, done.stdout
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def findings(self, code: str, *options: str, before: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        found = self.doctor(*options, before=before)["findings"]
        return [finding for finding in found if finding["code"] == code]

    def provision(self) -> None:
        """What the playbook does for a node, with the same functions."""
        project = find_project(self.directory / "cluster.yaml")
        node = plan_cluster(project).to_json()["nodes"]["n1"]
        (self.root / "node.json").write_text(json.dumps(node))
        toolkit = Path(node["toolkit"])
        toolkit.mkdir(parents=True, exist_ok=True)
        if not (toolkit / "raytools").exists():
            (toolkit / "raytools").symlink_to(CHECKOUT / "raytools")

    @property
    def node(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "node.json").read_text())
        return found


def make_prefix(prefix: Path, base: Path) -> None:
    """A small environment that sees all packages of a big one, so that its own files can be damaged."""
    subprocess.run([base / "bin" / "python", "-m", "venv", "--without-pip", prefix], check=True, timeout=60)
    site = next(prefix.glob("lib/python3*/site-packages"))
    packages = next(base.glob("lib/python3*/site-packages"))
    (site / "base.pth").write_text(f"{packages}\n")
    (site / "extra.py").write_text("answer = 42\n")
    ray = prefix / "bin" / "ray"
    ray.write_text(f"#!{prefix}/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    base = built_prefix()
    directory = tmp_path_factory.mktemp("doctor")
    directory.chmod(0o755)
    root, prefix = directory / "root", directory / "environment"
    root.mkdir()
    make_prefix(prefix, base)
    first = free_base_port(11 + 2 * _WORKER_PORTS)  # its own, and those of the Ray that is started by hand
    ports = dict(zip(
        ("gcs", "client", "node_manager", "object_manager", "runtime_env_agent", "dashboard_agent_grpc",
         "dashboard_agent_http", "metrics_export", "dashboard_metrics", "autoscaler_metrics", "dashboard"),
        range(first, first + 11), strict=True,
    ))  # fmt: skip
    config = {
        "environment": {"prefix": str(prefix)},
        "ray": {
            "ports": {**ports, "workers": [first + 11, first + 10 + _WORKER_PORTS]},
            "dashboard": {"enabled": False},
        },
    }
    found = Cluster(directory, root, prefix, config)
    found.write_config()
    (directory / "inventory").mkdir()
    host = {"ansible_connection": "local", "raytools_root": str(root)}
    (directory / "inventory" / "hosts.yml").write_text(
        yaml.safe_dump({"head": {"hosts": {"n1": host}}, "workers": {"hosts": {}}})
    )
    yield found
    shutil.rmtree(Path(temp_dir_of(root)).parent, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(provisioned: Cluster) -> Iterator[Cluster]:
    """The same with Ray running."""
    from raytools.environment.existing import adopt_environment

    token = provisioned.root / "token"
    token.touch(0o600)
    token.write_text("0" * 64)
    spec = EnvironmentSpec("automl", "3.11", (), None, (), (), provisioned.prefix)
    adopt_environment(spec, provisioned.root)
    provisioned.provision()
    ray_service.ensure(provisioned.root)
    yield provisioned
    ray_service.stop(provisioned.root)


# --- before and after ----------------------------------------------------------------------------


def test_before_anything_is_installed_the_doctor_says_what_to_run(provisioned: Cluster) -> None:
    found = provisioned.doctor(code=1)
    assert found["verdict"] == "error"
    missing = [finding for finding in found["findings"] if finding["code"] == "RT400"]
    assert [finding["fix"] for finding in missing] == ["ansible-playbook playbooks/cluster.yml"]
    assert found["nodes"][0]["reachable"] is True
    assert found["nodes"][0]["facts"]["cpu"]["usable"] >= 1
    assert found["nodes"][0]["logical"] is None
    assert not [check for check in found["checks"] if check["status"] == "crash"]


def test_a_sound_cluster_has_no_errors(cluster: Cluster) -> None:
    began = time.monotonic()
    found = cluster.doctor()
    wall_s = time.monotonic() - began
    errors = [f for f in found["findings"] if f["severity"] == "error" and f["code"] not in NEIGHBOURS]
    assert errors == []
    statuses = {check["code"]: check["status"] for check in found["checks"]}
    for code in ("RT101", "RT201", "RT401", "RT403", "RT701", "RT702", "RT703", "RT802", "RT901", "RT902"):
        assert statuses[code] == "pass", found
    assert found["nodes"][0]["logical"]["CPU"] == cluster.node["logical"]["CPU"]
    print(f"doctor took {wall_s:.2f} s")  # with -s; a bound would fail on a busy machine


def test_the_exit_code_follows_the_threshold_and_waivers_count(cluster: Cluster) -> None:
    with changed_mode(cluster.root / "token", 0o640):
        cluster.doctor(code=1)
        waivers = [{"code": code, "reason": "this test"} for code in ("RT901", *NEIGHBOURS)]
        try:
            cluster.write_config(doctor={"waive": waivers})
            found = cluster.doctor(code=0)
        finally:
            cluster.write_config()
    assert [f["waived"] for f in found["findings"] if f["code"] == "RT901"] == ["this test"]


def test_junit_is_written_beside_the_json(cluster: Cluster) -> None:
    path = cluster.directory / "doctor.xml"
    cluster.doctor("--junit", str(path))
    assert '<testcase classname="n1" name="RT101' in path.read_text()


# --- faults --------------------------------------------------------------------------------------


def test_a_bundle_has_what_is_known_and_the_logs_and_not_the_token(cluster: Cluster, tmp_path: Path) -> None:
    cluster.doctor("--bundle", str(tmp_path / "report.tar.gz"))
    with tarfile.open(tmp_path / "report.tar.gz") as archive:
        texts = {one.name: archive.extractfile(one).read().decode() for one in archive.getmembers()}  # type: ignore[union-attr]
    (name,) = {one.split("/")[2] for one in texts if "/nodes/" in one}
    assert {"doctor.txt", "doctor.json", "cluster.yaml", f"nodes/{name}/session/raylet.out"} <= {
        one.removeprefix("raytools-doctor/") for one in texts
    }
    token = (cluster.root / "token").read_text().strip()
    assert len(token) > 16
    assert [one for one, text in texts.items() if token in text] == []
    assert "Ray runtime started" in texts[f"raytools-doctor/nodes/{name}/root/ray.log"]


@contextlib.contextmanager
def changed_mode(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


@contextlib.contextmanager
def changed_config(cluster: Cluster, **changes: Any) -> Iterator[None]:
    cluster.write_config(**changes)
    try:
        yield
    finally:
        cluster.write_config()


def test_a_token_that_others_can_read_is_found(cluster: Cluster) -> None:
    with changed_mode(cluster.root / "token", 0o644):
        assert "mode 0644" in cluster.findings("RT901")[0]["message"]


def test_a_root_that_everybody_can_write_to_is_found(cluster: Cluster) -> None:
    with changed_mode(cluster.root, 0o777):
        assert "mode 0777" in cluster.findings("RT902")[0]["message"]


def test_an_edited_a_deleted_and_an_added_file_are_each_named(cluster: Cluster) -> None:
    site = next(cluster.prefix.glob("lib/python3*/site-packages"))
    before = (site / "extra.py").read_text()
    try:
        (site / "extra.py").write_text("answer = 43\n")
        (site / "new.py").write_text("")
        message = cluster.findings("RT401")[0]["message"]
        assert "extra.py" in message
        assert "new.py" in message
        (site / "extra.py").unlink()
        assert "deleted" in cluster.findings("RT401")[0]["message"]
    finally:
        (site / "new.py").unlink()
        (site / "extra.py").write_text(before)
    assert cluster.findings("RT401") == [], "restored content is clean again, whatever its time"


def test_more_declared_cpus_than_there_are_are_found(cluster: Cluster) -> None:
    with changed_config(cluster, nodes={"cpus": 4096}):
        finding = cluster.findings("RT101")[0]
    assert (finding["declared"], finding["physical"]) == (4096, len(os.sched_getaffinity(0)))
    assert finding["logical"] == cluster.node["logical"]["CPU"]
    assert "nodes.cpus:" in finding["fix"]


def test_a_machine_that_has_lost_cpus_is_found(cluster: Cluster) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one CPU")
    finding = cluster.findings("RT101", before=("taskset", "-c", str(min(os.sched_getaffinity(0)))))[0]
    assert (finding["physical"], finding["logical"]) == (1, cluster.node["logical"]["CPU"])


def test_a_machine_that_has_lost_memory_is_found(cluster: Cluster) -> None:
    own = collect()["cgroup"]["own"].get("memory", "")
    if "unified" in own or not os.access(own, os.W_OK):
        pytest.skip("no cgroup v1 memory controller here that this user may use")
    group = Path(own) / f"raytools-doctor-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(4 * 2**30))
        inside = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
        finding = cluster.findings("RT201", before=inside)[0]
    finally:
        time.sleep(0.2)
        group.rmdir()
    assert finding["physical"] == 4 * 2**30
    assert finding["logical"] == cluster.node["logical"]["memory"]


def test_shared_memory_that_is_too_small_is_found(cluster: Cluster) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    script = 'mount -t tmpfs -o size=170m tmpfs /dev/shm && exec "$@"'
    finding = cluster.findings("RT202", before=("unshare", "-m", "sh", "-c", script, "sh"))[0]
    assert "170 MiB" in finding["message"]


def test_a_flag_that_has_not_reached_ray_is_found(cluster: Cluster) -> None:
    ray = {**cluster.config["ray"], "env": {"RAY_task_oom_retries": "7"}}
    with changed_config(cluster, ray=ray):
        assert "declared 7, in the raylet" in cluster.findings("RT702")[0]["message"]
        assert "ray.env.RAY_task_oom_retries: 0 -> 7" in cluster.findings("RT002")[0]["message"]


def test_what_an_older_session_has_left_is_found_and_the_fix_removes_it(cluster: Cluster) -> None:
    environment = {
        **os.environ,
        "RAYTOOLS_RAY_SESSION": "0123456789abcdef",
        "RAYTOOLS_ROOT": str(cluster.root),
    }
    orphan = subprocess.Popen(["sleep", "300"], env=environment, start_new_session=True)
    try:
        found = [f for f in cluster.findings("RT801") if str(orphan.pid) in f["fix"].split()]
        assert "this cluster's" in found[0]["message"]
    finally:
        os.kill(orphan.pid, signal.SIGTERM)
        orphan.wait(5)
    assert not [f for f in cluster.findings("RT801") if str(orphan.pid) in f["fix"].split()]


def test_what_an_older_session_has_left_is_ended_by_fix_and_nothing_else(cluster: Cluster) -> None:
    variables = {"RAYTOOLS_RAY_SESSION": "0123456789abcdef", "RAYTOOLS_ROOT": str(cluster.root)}
    ours = subprocess.Popen(["sleep", "300"], env={**os.environ, **variables}, start_new_session=True)
    elsewhere = {**variables, "RAYTOOLS_ROOT": f"{cluster.root}-other"}
    theirs = subprocess.Popen(["sleep", "300"], env={**os.environ, **elsewhere}, start_new_session=True)
    try:
        found = cluster.doctor("--fix", "--yes")
        assert ours.wait(10) == -signal.SIGTERM
        assert theirs.poll() is None
        named = [f["fix"].split() for f in found["findings"] if f["code"] == "RT801"]
        assert not [words for words in named if str(ours.pid) in words]
        assert [words for words in named if str(theirs.pid) in words]
    finally:
        for process in (ours, theirs):
            process.kill()
            process.wait(5)


def test_a_killed_runs_remains_are_found(cluster: Cluster) -> None:
    held = cluster.directory / "locks" / "held"
    held.mkdir(parents=True)
    holder = {
        "run_id": "r-dead", "pid": 4194303, "user": "me", "cpus": [0], "memory_bytes": 1, "command": ["fit"],
        "started_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    (held / "r-dead.json").write_text(json.dumps(holder))
    try:
        assert "r-dead" in cluster.findings("RT803")[0]["message"]
    finally:
        shutil.rmtree(cluster.directory / "locks")


def test_a_missing_environment_is_not_provisioned(cluster: Cluster) -> None:
    toolkit = Path(cluster.node["toolkit"])
    toolkit.rename(toolkit.with_name("away"))
    try:
        assert "toolkit" in cluster.findings("RT400")[0]["message"]
    finally:
        toolkit.with_name("away").rename(toolkit)


def test_a_lost_token_is_said_plainly(cluster: Cluster) -> None:
    token = cluster.root / "token"
    token.rename(cluster.root / "token.away")
    try:
        found = cluster.doctor(code=1)["findings"]
    finally:
        (cluster.root / "token.away").rename(token)
    messages = {f["code"]: f["message"] for f in found}
    assert "does not exist" in messages["RT901"]
    assert "token" in messages["RT701"]


def test_a_dead_ray_is_found_within_its_time(cluster: Cluster) -> None:
    ray_service.stop(cluster.root)
    began = time.monotonic()
    finding = cluster.findings("RT701")[0]
    assert time.monotonic() - began < 20, "a dead address may not hold up the doctor"
    assert "Connection refused" in finding["message"]


# --- a Ray that was started by hand, last: it takes the place of the one above -------------------


@contextlib.contextmanager
def ray_by_hand(cluster: Cluster) -> Iterator[int]:
    """As people do it: in the background of a script, with a shell's limits, Ray counting for itself."""
    node = cluster.node
    ports = node["ray"]["ports"]
    last = ports["workers"][1]
    script = 'trap "" INT; ulimit -n 3000; exec "$@" > "$LOG" 2>&1'
    line = [
        "sh", "-c", script, "sh", "taskset", "-c", str(min(os.sched_getaffinity(0))),
        f"{cluster.prefix}/bin/ray", "start", "--head", "--block", "--num-cpus=16",
        f"--node-ip-address={node['address']}", f"--port={ports['gcs']}", "--include-dashboard=false",
        f"--temp-dir={node['temp_dir']}", "--disable-usage-stats", "--memory=1000000000",
        "--object-store-memory=100000000", f"--ray-client-server-port={ports['client']}",
        f"--min-worker-port={last + 1}", f"--max-worker-port={last + _WORKER_PORTS}",
    ]  # fmt: skip
    log = cluster.directory / "by-hand.log"
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(cluster.directory), "LOG": str(log), "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": node["ray"]["token_path"], "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
    }  # fmt: skip
    Path(node["temp_dir"]).mkdir(mode=0o700, exist_ok=True, parents=True)
    log.write_text("")
    process = subprocess.Popen(line, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process.pid
    finally:
        members = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for member in psutil.wait_procs(members, 10)[1]:
            member.kill()
        if process.poll() is None:
            process.kill()
            process.wait(5)


def test_a_ray_started_by_hand_differs_in_everything_and_each_is_found(cluster: Cluster) -> None:
    ray_service.stop(cluster.root)
    with ray_by_hand(cluster):
        found = cluster.doctor(code=1)
        codes = {finding["code"]: finding["message"] for finding in found["findings"]}
        assert "Ray schedules 16" in codes["RT101"]
        if len(os.sched_getaffinity(0)) > 1:
            assert "the raylet may only run on" in codes["RT102"]
        assert "Ray schedules 953.7 MiB" in codes["RT201"]
        assert "RAY_task_oom_retries: declared 0" in " ".join(
            f["message"] for f in found["findings"] if f["code"] == "RT702"
        )
        assert "ignores SIGINT" in codes["RT703"]
        assert "may open 3000" in codes["RT802"]


def test_another_ray_is_named_with_the_command_that_ends_it(cluster: Cluster) -> None:
    ray_service.stop(cluster.root)
    node = cluster.node
    with ray_by_hand(cluster) as pid:
        # seen from a cluster with another temp dir, it is somebody else's
        (cluster.root / "node.json").write_text(json.dumps({**node, "temp_dir": "/tmp/rt-00000000"}))
        try:
            found = [f for f in cluster.findings("RT704") if node["temp_dir"] in f["message"]]
        finally:
            (cluster.root / "node.json").write_text(json.dumps(node))
    assert str(pid) in found[0]["fix"].split()


_ORPHANING_TASK = """
import ray, subprocess
ray.init(address="auto", log_to_driver=False)

@ray.remote
def start():
    # not a direct child: those the worker would end with its driver
    return subprocess.check_output(["sh", "-c", "setsid sleep 300 > /dev/null & echo $!"])

print(int(ray.get(start.remote())))
"""


def test_what_a_task_has_started_is_found_when_its_ray_was_killed(cluster: Cluster) -> None:
    ray_service.ensure(cluster.root)
    node = cluster.node
    environment = {
        **os.environ, "RAY_ADDRESS": node["ray"]["gcs_address"], "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": node["ray"]["token_path"],
    }  # fmt: skip
    environment.pop("RAYTOOLS_RAY_SESSION", None)
    driver = [node["python"], "-c", _ORPHANING_TASK]
    done = subprocess.run(driver, env=environment, capture_output=True, text=True, check=True, timeout=90)
    orphan = int(done.stdout)
    try:
        state = ray_service.status(cluster.root)
        for pid in (state["raylet_pid"], state["pid"]):  # the raylet would go with `ray start`
            os.kill(pid, signal.SIGKILL)
        found = [f for f in cluster.findings("RT801") if str(orphan) in f["fix"].split()]
        assert f"pid {orphan} of" in found[0]["message"]
        assert "sleep 300 (this cluster's)" in found[0]["message"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
        ray_service.stop(cluster.root)
