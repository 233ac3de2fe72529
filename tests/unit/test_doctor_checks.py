"""Each check on recorded reports: a healthy node passes, each fault is found, gaps are skipped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from raytools.config import ClusterConfig
from raytools.doctor.checks import CHECKS
from raytools.doctor.evaluate import evaluate
from raytools.doctor.explanations import EXPLANATIONS
from raytools.doctor.model import (
    SEVERITIES,
    CheckResult,
    Finding,
    Gathered,
    LockState,
    NodeReport,
    Report,
)
from raytools.doctor.table import WORST_AND_COMPARED

GIB = 2**30
CONFIG: dict[str, Any] = {"environment": {"pip": ["ray[default]==2.58.1", "lightgbm"]}}

FACTS: dict[str, Any] = {
    "schema": "raytools.facts/1",
    "collected_at": "2026-01-01T12:00:00.000Z",
    "host": {"hostname": "n1", "fqdn": "n1", "kernel": "6.1.0", "arch": "x86_64"},
    "cgroup": {"mode": "v2"},
    "cpu": {
        "model": "Some CPU", "present": 4, "online": [0, 1, 2, 3], "affinity": [0, 1, 2, 3],
        "cpuset": [0, 1, 2, 3], "allowed": [0, 1, 2, 3], "quota_cpus": None, "usable": 4,
        "threads": [
            {"cpu": 0, "core": 0, "socket": 0, "numa": 0}, {"cpu": 1, "core": 1, "socket": 0, "numa": 0},
            {"cpu": 2, "core": 0, "socket": 0, "numa": 0}, {"cpu": 3, "core": 1, "socket": 0, "numa": 0},
        ],
        "frequency": {"governors": ["performance"], "boost": True},
    },
    "memory": {
        "total_bytes": 16 * GIB, "limit_bytes": None, "usable_bytes": 16 * GIB, "available_bytes": 15 * GIB,
        "swap_total_bytes": 0, "shm_total_bytes": 8 * GIB, "shm_available_bytes": 8 * GIB,
    },
    "gpus": [],
    "disk": {
        "root": {
            "path": "/opt/raytools", "total_bytes": 100 * GIB, "available_bytes": 50 * GIB,
            "inodes_available": 10**6,
        },
        "tmp": {
            "path": "/tmp", "total_bytes": 90 * GIB, "available_bytes": 40 * GIB, "inodes_available": 10**6,
        },
    },
    "limits": {"nofile_soft": 1024, "nofile_hard": 524288, "nproc_soft": 60000},
    "network": {
        "primary_address": "192.0.2.11", "addresses": ["127.0.0.1", "192.0.2.11"],
        "hostname_resolves_to": ["192.0.2.11"],
        "devices": {
            "127.0.0.1": {"device": "lo", "mtu_bytes": 65536, "speed_mbit": None},
            "192.0.2.11": {"device": "eth0", "mtu_bytes": 1500, "speed_mbit": 1000},
        },
    },
    "libraries": {"libgomp.so.1": "/usr/lib/x86_64-linux-gnu/libgomp.so.1"},
    "user": {"name": "ray", "uid": 1000},
}  # fmt: skip

PLAN: dict[str, Any] = {
    "schema": "raytools.node/1", "cluster": "demo", "name": "n1", "role": "head", "address": "192.0.2.11",
    "root": "/opt/raytools", "python": "/opt/raytools/envs/automl-1a2b3c4d5e6f/bin/python",
    "toolkit": "/opt/raytools/toolkit/0.1.0", "temp_dir": "/tmp/rt-1a2b3c4d",
    "environment": {
        "id": "automl-1a2b3c4d5e6f", "prefix": "/opt/raytools/envs/automl-1a2b3c4d5e6f",
        "lock_digest": "1a2b",
    },
    "declared": {"cpus": None, "memory_bytes": None, "gpus": None},
    "physical": {"cpus": 4, "memory_bytes": 16 * GIB, "gpus": 0},
    "slots": [{"index": 0, "cpus": [0, 1, 2, 3], "memory_bytes": 12 * GIB, "gpus": []}],
    "logical": {"CPU": 4, "GPU": 0, "memory": 12 * GIB, "object_store_memory": GIB, "run_slot": 1},
    "ray": {
        "gcs_address": "192.0.2.11:6379", "start_args": [], "env": {"RAY_task_oom_retries": "0"},
        "ports": {"gcs": 6379, "dashboard": 8265, "workers": [20000, 20999]},
        "dashboard": {"enabled": True, "host": "127.0.0.1"}, "auth": "token",
        "token_path": "/opt/raytools/token",
    },
    "runs": {}, "storage": {"type": "local", "path": "/opt/raytools"}, "doctor": {"waive": []},
}  # fmt: skip


WORKER = {"RAY_task_oom_retries": "0", "RAY_AUTH_MODE": "token"}


def path_fact(path: str, mode: int = 0o755, user: str = "ray") -> dict[str, Any]:
    return {"path": path, "mode": mode, "uid": 1000, "user": user, "size_bytes": 64}


INSPECTION: dict[str, Any] = {
    "schema": "raytools.inspection/1", "facts": FACTS, "node": PLAN, "node_problem": None,
    "rays": {
        "ours": [{
            "pid": 815, "user": "ray", "environ": {"RAY_task_oom_retries": "0", "RAY_AUTH_MODE": "token"},
            "signals_ignored": [17], "nofile": {"soft": 65536, "hard": 65536}, "program_replaced": False,
            "interpreter": "/opt/raytools/envs/automl-1a2b3c4d5e6f/bin/python3", "cpus_allowed": [0, 1, 2, 3],
            "processes_max": 60000,
        }],
        "others": [], "leftovers": [],
    },
    "paths": {
        "root": path_fact("/opt/raytools"), "token": path_fact("/opt/raytools/token", 0o600),
        "temp_dir": path_fact("/tmp/rt-1a2b3c4d", 0o700), "toolkit": path_fact("/opt/raytools/toolkit/0.1.0"),
        "prefix": path_fact("/opt/raytools/envs/automl-1a2b3c4d5e6f"),
        "python": path_fact("/opt/raytools/envs/automl-1a2b3c4d5e6f/bin/python"),
        "node_json": path_fact("/opt/raytools/node.json", 0o644),
    },
    "above": [path_fact("/opt", user="root"), path_fact("/", user="root")],
    "locks": {"holders": [], "stale": []},
    "listening": {"gcs": ["::"], "dashboard": ["127.0.0.1"]},
    "versions": {"python": "3.11.7", "ray": "2.58.1"},
    "storage": {
        "path": "/opt/raytools", "total_bytes": 100 * GIB, "available_bytes": 50 * GIB,
        "inodes_available": 10**6, "directory": True, "stalled": False, "mounted": False, "source": None,
        "filesystem": None,
    },
    "environment": {"content_digest": "c0ffee", "differences": [], "compared_s": 0.3},
    "unit": {
        "name": "raytools-ray-demo.service", "active": "active", "enabled": True, "restarts": 0,
        "delegated": ["cpu", "cpuset", "memory", "pids"],
    },
    "gpus": {"driver": None, "holders": []},
    "places": {"prefix_filesystem": "ext4"}, "exports": [],
    "load": {
        "foreign_cpus": 0.04, "foreign_memory_bytes": 180 * 2**20,
        "users": {
            "cpu": [{"pid": 611, "name": "sshd", "user": "root", "cpus": 0.04}],
            "memory": [{"pid": 602, "name": "journald", "user": "root", "memory_bytes": 180 * 2**20}],
        },
        "zombies": [{"pid": 815, "name": "raylet", "user": "ray", "count": 2}], "zombie_count": 2,
        "stuck": [],
        "steal_share": 0.001, "steal_share_since_boot": 0.004,
    },
    "files": {
        "sessions": [{"path": f"/tmp/rt-1a2b3c4d/ray/session_{day}", "bytes": 2**20} for day in (1, 2, 3)],
        "session_bytes": 90 * 2**20, "log_bytes": 2**20, "complete": True,
    },
    "token": {"digest": "5ea1ed0123456789"}, "default_temp_dir": None,
}  # fmt: skip

RAY: dict[str, Any] = {
    "schema": "raytools.ray-view/1", "gcs_address": "192.0.2.11:6379",
    "versions": {"ray": "2.58.1", "python": "3.11.7"},
    "nodes": [{
        "node_id": "ab", "name": "192.0.2.11", "hostname": "n1", "address": "192.0.2.11", "state": "ALIVE",
        "is_head": True, "labels": {},
        "resources_total": {
            "CPU": 4.0, "memory": 12.0 * GIB, "object_store_memory": 1.0 * GIB, "run_slot": 1.0,
            "node:192.0.2.11": 1.0,
        },
    }],
}  # fmt: skip


NOON_S = datetime(2026, 1, 1, 12, tzinfo=timezone.utc).timestamp()
ASKED_BETWEEN = (NOON_S - 0.5, NOON_S + 1.5)


class Sample:
    """A healthy one-node cluster that a test breaks in one place."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = copy.deepcopy(CONFIG)
        self.inspection = copy.deepcopy(INSPECTION)
        self.plan: dict[str, Any] | None = copy.deepcopy(PLAN)
        self.ray: dict[str, Any] | None = copy.deepcopy(RAY)
        self.lock: LockState | None = LockState("automl-1a2b3c4d5e6f", packages={"ray": "2.58.1"})
        self.changes: dict[str, Any] = {}
        self.more_nodes: list[NodeReport] = []

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = self.inspection["facts"]
        return found

    @property
    def raylet(self) -> dict[str, Any]:
        found: dict[str, Any] = self.inspection["rays"]["ours"][0]
        return found

    def set_facts(self, part: str, **values: Any) -> None:
        self.facts[part].update(values)

    def gathered(self) -> Gathered:
        config = ClusterConfig.model_validate(self.config)
        node = NodeReport("n1", "head", "/opt/raytools", config, inspection=self.inspection, plan=self.plan)
        gathered = Gathered(
            "prove", config, (node, *self.more_nodes), self.lock, ray=self.ray, asked_between=ASKED_BETWEEN
        )
        return replace(gathered, **self.changes)

    def report(self) -> Report:
        return evaluate(self.gathered())

    def findings(self, code: str) -> list[Finding]:
        return [finding for finding in self.report().findings if finding.code == code]

    def only(self, code: str) -> Finding:
        found = self.report().findings
        assert [finding.code for finding in found] == [code], found
        return found[0]

    def check(self, code: str) -> CheckResult:
        return next(check for check in self.report().checks if check.code == code)


@pytest.fixture
def sample() -> Sample:
    return Sample()


def second_node(**changes: Any) -> NodeReport:
    inspection = copy.deepcopy(INSPECTION)
    plan = {**copy.deepcopy(PLAN), "name": "n2", "role": "worker", "address": "192.0.2.12"}
    inspection["node"] = plan
    inspection["facts"]["network"] |= {
        "addresses": ["127.0.0.1", "192.0.2.12"],
        "primary_address": "192.0.2.12",
        "devices": {"192.0.2.12": inspection["facts"]["network"]["devices"]["192.0.2.11"]},
    }
    config = ClusterConfig.model_validate(CONFIG)
    node = NodeReport("n2", "worker", "/opt/raytools", config, inspection=inspection, plan=plan)
    return replace(node, **changes)


# --- all together --------------------------------------------------------------------------------


def test_a_healthy_node_has_no_findings(sample: Sample) -> None:
    report = sample.report()
    assert report.findings == ()
    assert report.verdict == "ok"
    assert {check.code: check.status for check in report.checks if check.status != "pass"} == {
        "RT103": "skip", "RT104": "skip", "RT105": "skip", "RT204": "skip", "RT302": "skip",
        "RT303": "skip", "RT405": "skip", "RT406": "skip", "RT504": "skip", "RT505": "skip", "RT604": "skip",
        "RT605": "skip", "RT606": "skip", "RT607": "skip", "RT903": "skip", "RT905": "skip",
        "RT906": "skip",
    }  # fmt: skip


def test_codes_are_unique_within_their_ranges_and_each_is_explained() -> None:
    codes = [check.code for check in CHECKS]
    assert len(set(codes)) == len(codes)
    assert set(codes) == set(EXPLANATIONS)


def test_no_check_crashes_when_everything_is_missing() -> None:
    config = ClusterConfig()
    for inspection in (None, {"facts": {"problem": "OSError: no"}, "node": None}):
        node = NodeReport("n1", "head", "/opt/raytools", config, inspection=inspection)
        report = evaluate(Gathered("prove", config, (node,)))
        assert not [check.code for check in report.checks if check.status == "crash"]


@pytest.mark.parametrize(
    "part",
    [
        "rays", "paths", "locks", "listening", "versions", "environment", "above", "load", "files",
        "default_temp_dir",
    ],
)  # fmt: skip
def test_a_part_that_could_not_be_gathered_is_skipped_with_its_reason(sample: Sample, part: str) -> None:
    sample.inspection[part] = {"problem": "PermissionError: it may not be read"}
    report = sample.report()
    assert not [check.code for check in report.checks if check.status == "crash"]
    reasons = [reason for check in report.checks for reason in check.skipped.values()]
    said = [*reasons, *(finding.message for finding in report.findings)]
    assert any("PermissionError: it may not be read" in text for text in said)


# --- one node, one fault -------------------------------------------------------------------------


def declared_more_cpus(s: Sample) -> None:
    s.config["nodes"] = {"cpus": 8}
    s.plan = None  # as plan.py refuses it


def fewer_cpus_than_at_setup(s: Sample) -> None:
    s.set_facts("cpu", usable=2, allowed=[0, 1])
    s.plan = None


def ray_counts_the_machine(s: Sample) -> None:
    s.ray["nodes"][0]["resources_total"]["CPU"] = 16.0  # type: ignore[index]


def slot_on_a_cpu_ray_may_not_use(s: Sample) -> None:
    s.raylet["cpus_allowed"] = [0, 1]


def declared_more_memory(s: Sample) -> None:
    s.config["nodes"] = {"memory": "32GiB"}
    s.plan = None


def ray_has_other_memory(s: Sample) -> None:
    s.ray["nodes"][0]["resources_total"]["memory"] = 15.0 * GIB  # type: ignore[index]


def memory_limited_after_setup(s: Sample) -> None:
    s.set_facts("memory", limit_bytes=14 * GIB, usable_bytes=14 * GIB)


def small_shared_memory(s: Sample) -> None:
    s.set_facts("memory", shm_total_bytes=64 * 2**20)


def no_shared_memory(s: Sample) -> None:
    s.set_facts("memory", shm_total_bytes=None)


def swap_on(s: Sample) -> None:
    s.set_facts("memory", swap_total_bytes=2 * GIB)


def gpu_missing(s: Sample) -> None:
    s.config["nodes"] = {"gpus": 1}


def gpu_driver_silent(s: Sample) -> None:
    s.inspection["facts"]["gpus"] = None


def file_edited(s: Sample) -> None:
    s.inspection["environment"]["differences"] = [
        {"message": "changed lib/python3.11/site-packages/ray/__init__.py (package ray)", "package": "ray"}
    ]


def no_manifest(s: Sample) -> None:
    s.inspection["environment"] = {"problem": "no environment was built here"}


def no_libgomp(s: Sample) -> None:
    s.facts["libraries"]["libgomp.so.1"] = None


def ray_of_another_environment(s: Sample) -> None:
    s.raylet["interpreter"] = "/home/me/venv/bin/python3"


def environment_replaced_under_ray(s: Sample) -> None:
    s.raylet["program_replaced"] = True


def other_ray_version_running(s: Sample) -> None:
    s.ray["versions"]["ray"] = "2.57.0"  # type: ignore[index]


def other_python_installed(s: Sample) -> None:
    s.config["environment"]["python"] = "3.12"


def disk_full(s: Sample) -> None:
    s.facts["disk"]["root"]["available_bytes"] = 500 * 2**20


def disk_filling(s: Sample) -> None:
    s.facts["disk"]["tmp"]["available_bytes"] = 3 * GIB


def small_disk(s: Sample) -> None:
    s.facts["disk"]["tmp"] |= {"total_bytes": 12 * GIB, "available_bytes": 3 * GIB}


NFS = {
    "type": "nfs", "path": "/mnt/raytools", "server": "192.0.2.12", "serves": False,
    "export": "/srv/raytools", "options": ["hard"], "unit": "mnt-raytools",
}  # fmt: skip


def declare_storage(s: Sample, storage: dict[str, Any]) -> None:
    """As if it had been provisioned so."""
    s.inspection["node"]["storage"] = storage
    assert s.plan is not None
    s.plan["storage"] = storage


def storage_stalls(s: Sample) -> None:
    declare_storage(s, NFS)
    s.inspection["storage"] = {"path": "/mnt/raytools", "stalled": True, "source": "192.0.2.12:/srv/raytools"}


def nfs_not_mounted(s: Sample) -> None:
    declare_storage(s, NFS)


def shared_directory_gone(s: Sample) -> None:
    declare_storage(s, {"type": "existing", "path": "/shared"})
    s.inspection["storage"]["directory"] = False


def few_inodes(s: Sample) -> None:
    s.facts["disk"]["tmp"]["inodes_available"] = 5000


def address_gone(s: Sample) -> None:
    s.set_facts("network", addresses=["127.0.0.1", "192.0.2.99"])


def ray_down(s: Sample) -> None:
    s.ray = None
    s.changes["ray_error"] = "nothing answers at the GCS's address 192.0.2.11:6379 (Connection refused)"
    s.inspection["rays"]["ours"] = []


def ray_says_dead(s: Sample) -> None:
    s.ray["nodes"][0]["state"] = "DEAD"  # type: ignore[index]


def stranger_joined(s: Sample) -> None:
    stranger = {**s.ray["nodes"][0], "address": "192.0.2.77", "hostname": "x"}  # type: ignore[index]
    s.ray["nodes"].append(stranger)  # type: ignore[index]


def flag_missing(s: Sample) -> None:
    del s.raylet["environ"]["RAY_task_oom_retries"]


def flag_differs(s: Sample) -> None:
    s.raylet["environ"]["RAY_task_oom_retries"] = "5"


def interrupts_ignored(s: Sample) -> None:
    s.raylet["signals_ignored"] = [2, 17]


def ray_in_the_default_place(s: Sample) -> None:
    s.inspection["rays"]["others"] = [
        {
            "pid": 99,
            "ended_by": [98],
            "user": "me",
            "temp_dir": "/tmp/ray",
            "gcs_address": None,
            "run_id": None,
        }
    ]


def orphans(s: Sample) -> None:
    s.inspection["rays"]["leftovers"] = [
        {
            "pid": 41,
            "user": "ray",
            "command": "ray::train",
            "temp_dir": None,
            "ours": True,
            "name": "ray::train",
        },
        {"pid": 42, "user": "ray", "command": "sleep 1000", "temp_dir": None, "ours": False, "name": "sleep"},
    ]


def few_files(s: Sample) -> None:
    s.raylet["nofile"] = {"soft": 1024, "hard": 524288}


def rather_few_files(s: Sample) -> None:
    s.raylet["nofile"] = {"soft": 5000, "hard": 5000}


def killed_run(s: Sample) -> None:
    s.inspection["locks"]["stale"] = [
        {"text": "run r1 of ray (pid 5)", "path": "/run/lock/raytools/held/r1.json"}
    ]


def token_readable(s: Sample) -> None:
    s.inspection["paths"]["token"]["mode"] = 0o644


def token_gone(s: Sample) -> None:
    s.inspection["paths"]["token"] = None


def token_of_another_user(s: Sample) -> None:
    s.inspection["paths"]["token"]["user"] = "root"


def dashboard_open(s: Sample) -> None:
    s.inspection["listening"]["dashboard"] = ["0.0.0.0"]


def root_writable_for_all(s: Sample) -> None:
    s.inspection["paths"]["root"]["mode"] = 0o777


def parent_writable_for_all(s: Sample) -> None:
    s.inspection["above"][0]["mode"] = 0o777


def toolkit_of_another_user(s: Sample) -> None:
    s.inspection["paths"]["toolkit"]["user"] = "mallory"


def plan_outdated(s: Sample) -> None:
    s.plan["runs"] = {"time_s": 60.0}  # type: ignore[index]


def lock_outdated(s: Sample) -> None:
    s.lock = LockState("automl-1a2b3c4d5e6f", ("environment.pip: added 'optuna'",))


def lock_damaged(s: Sample) -> None:
    s.lock = LockState(None, problem="the lock cluster.lock.yaml was edited")


def not_locked(s: Sample) -> None:
    s.lock = LockState(None)


def stranger_on_the_gpu(s: Sample) -> None:
    s.inspection["node"]["slots"][0]["gpus"] = [0]
    s.plan["slots"][0]["gpus"] = [0]  # type: ignore[index]
    mine = {"uuid": "GPU-5a", "pid": 815, "used_bytes": GIB, "user": "ray", "command": "python fit.py"}
    s.inspection["gpus"]["holders"] = [
        {**mine, "in_run": True, "ours": False},
        {**mine, "pid": 7, "user": "ada", "command": "jupyter", "in_run": False, "ours": False},
    ]


def environment_on_nfs(s: Sample) -> None:
    s.inspection["places"]["prefix_filesystem"] = "nfs4"


def clock_ahead(s: Sample) -> None:
    s.facts["collected_at"] = "2026-01-01T12:00:09.500Z"


def clock_behind(s: Sample) -> None:
    s.facts["collected_at"] = "2026-01-01T11:58:59.500Z"


def unit_disabled(s: Sample) -> None:
    s.inspection["unit"]["enabled"] = False


def unit_without_groups(s: Sample) -> None:
    s.inspection["unit"]["delegated"] = ["memory", "pids"]


def unit_restarts(s: Sample) -> None:
    s.inspection["unit"]["restarts"] = 12


def unit_restarted_twice(s: Sample) -> None:
    s.inspection["unit"]["restarts"] = 2


def _exported(s: Sample, client: str, *options: str, path: str = "/srv/raytools") -> None:
    served = {
        "type": "nfs", "path": "/opt/raytools", "serves": True, "export": "/srv/raytools",
        "options": ["hard"], "server": "192.0.2.11", "unit": "opt-raytools",
    }  # fmt: skip
    declare_storage(s, served)
    s.inspection["storage"] |= {"mounted": True, "source": "/dev/sda1"}
    s.inspection["exports"] = [
        {"path": "/srv/raytools", "client": "192.0.2.11", "options": ["rw", "root_squash"]},
        {"path": "/home", "client": "*", "options": ["rw"]},  # somebody else's business
        {"path": path, "client": client, "options": ["rw", *options]},
    ]


def exported_to_a_stranger(s: Sample) -> None:
    _exported(s, "192.0.2.77", "root_squash")


def exported_from_above(s: Sample) -> None:
    _exported(s, "*", "root_squash", path="/srv")


def exported_with_root(s: Sample) -> None:
    _exported(s, "192.0.2.11", "no_root_squash")


def _proved(s: Sample, **found: Any) -> None:
    s.changes["nodes"] = (replace(s.gathered().nodes[0], **found),)


def another_node_out_of_reach(s: Sample) -> None:
    there = {"to": "n3", "address": "192.0.2.13"}
    blocked = {"problem": "no answer within 3 s"}
    _proved(s, reach=(
        {**there, "name": "node_manager", "port": 10101, **blocked},
        {**there, "name": "object_manager", "port": 10102, **blocked},
        {**there, "to": "n2", "name": "gcs", "port": 6379, "problem": None},
    ))  # fmt: skip


def storage_that_is_not_shared(s: Sample) -> None:
    s.inspection["node"]["storage"] = {"type": "existing", "path": "/opt/raytools"}
    s.plan["storage"] = {"type": "existing", "path": "/opt/raytools"}  # type: ignore[index]
    _proved(s, shared="user ray cannot read below /opt/raytools what other nodes have just written there")


def no_plan_possible(s: Sample) -> None:
    s.changes["plan_error"] = "n1: too few CPUs for 8 slots"


def limit_does_not_hold(s: Sample) -> None:
    proof = {"ok": False, "fix": "sudo raytools grant --user ray", "limits": [
        {"limit": "cpu", "holds": False, "how": "it could move itself to CPUs 0 1"},
        {"limit": "time", "holds": True, "how": "ended"},
    ]}  # fmt: skip
    gathered = s.gathered()
    s.changes["nodes"] = (replace(gathered.nodes[0], proof=proof),)


def _pinned(s: Sample, *pip: str, python: str = "3.11") -> None:
    s.config["environment"] = {"pip": list(pip), "python": python}
    s.lock = LockState("automl-1a2b3c4d5e6f")  # as it would be without what is locked


def autogluon_of_another_ray(s: Sample) -> None:
    _pinned(s, "ray[default]==2.58.1", "AutoGluon.Tabular[lightgbm]==1.5.0")


def locked_ray_of_another_autogluon(s: Sample) -> None:
    _pinned(s, "ray[default]", "autogluon.tabular==1.6.3")
    s.lock = LockState("automl-1a2b3c4d5e6f", packages={"ray": "2.60.0", "autogluon-core": "1.6.3"})


def python_too_new_for_autogluon(s: Sample) -> None:
    _pinned(s, "autogluon.tabular==1.4.0", python="3.13")
    s.inspection["versions"]["python"] = s.ray["versions"]["python"] = "3.13.1"  # type: ignore[index]


def python_too_old_for_ray(s: Sample) -> None:
    _pinned(s, "ray===2.58.1", python="3.9")
    s.inspection["versions"]["python"] = s.ray["versions"]["python"] = "3.9.1"  # type: ignore[index]


def clock_saves_energy(s: Sample) -> None:
    s.facts["cpu"]["frequency"]["governors"] = ["powersave"]


def hypervisor_takes_time(s: Sample) -> None:
    s.inspection["load"] |= {"steal_share": 0.12, "steal_share_since_boot": 0.031}


def _slots(s: Sample, *cpus_of_slots: list[int]) -> None:
    """As they were planned and installed, of equal memory."""
    for plan in (s.plan, s.inspection["node"]):
        assert plan is not None
        plan["slots"] = [
            {"index": index, "cpus": cpus, "memory_bytes": 12 * GIB // len(cpus_of_slots), "gpus": []}
            for index, cpus in enumerate(cpus_of_slots)
        ]


def slots_share_a_core(s: Sample) -> None:
    _slots(s, [0, 1], [2], [3])
    for thread in s.facts["cpu"]["threads"]:
        thread["core"] = 0 if thread["cpu"] in (1, 2) else thread["cpu"]


def slots_share_a_cpu(s: Sample) -> None:
    _slots(s, [0, 1], [1, 2])
    s.facts["cpu"]["threads"] = None  # a machine that does not tell its cores


def ray_may_kill_early(s: Sample) -> None:
    s.raylet["environ"]["RAY_memory_usage_threshold"] = "0.75"


def more_reserved_than_is_left(s: Sample) -> None:
    s.config["nodes"] = {"system_reserved": {"memory": "4GiB"}}


def a_library_is_missing(s: Sample) -> None:
    problem = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"
    _proved(s, imports={"ray": {"problem": None, "s": 1.5}, "torch": {"problem": problem, "s": 0.4}})


def an_import_kills_the_interpreter(s: Sample) -> None:
    problem = "the interpreter ended with exit code -4"
    _proved(s, imports={"pyarrow": {"problem": problem, "s": None}, "ray": {"problem": None, "s": 1.5}})


def storage_without_locks(s: Sample) -> None:
    problem = "files cannot be locked by fcntl: No locks available"
    _proved(s, storage_trial={"problems": [problem], "fsync_ms": 3.0})


def default_place_taken(s: Sample) -> None:
    s.inspection["default_temp_dir"] = {
        "path": "/tmp/ray", "user": "ada", "mode": 0o755, "directory": True, "usable": False,
    }  # fmt: skip


def default_place_is_a_file(s: Sample) -> None:
    s.inspection["default_temp_dir"] = {
        "path": "/tmp/ray", "user": "ray", "mode": 0o644, "directory": False, "usable": False,
    }  # fmt: skip


def worker_with_another_flag(s: Sample) -> None:
    _proved(s, worker={"environ": {**WORKER, "RAY_task_oom_retries": "3"}})


def worker_without_a_flag(s: Sample) -> None:
    _proved(s, worker={"environ": {"RAY_task_oom_retries": "0"}})


def someone(pid: int, name: str, user: str = "ada", **more: Any) -> dict[str, Any]:
    return {"pid": pid, "name": name, "user": user, **more}


def a_process_hangs(s: Sample) -> None:
    s.inspection["load"]["stuck"] = [someone(77, "cp", "root")]


def many_zombies(s: Sample) -> None:
    parents = [someone(50, "agent", count=90), someone(51, "cron", "root", count=15)]
    s.inspection["load"] |= {"zombies": parents, "zombie_count": sum(one["count"] for one in parents)}


def zombies_of_a_container(s: Sample) -> None:
    s.inspection["load"] |= {"zombies": [someone(1, "sleep", "root", count=300)], "zombie_count": 300}


def somebody_computes(s: Sample) -> None:
    users = [someone(70 + number, "cc1plus", cpus=0.9) for number in range(5)]
    s.inspection["load"] |= {"foreign_cpus": 4.5, "users": {"cpu": users, "memory": []}}


def somebody_holds_memory(s: Sample) -> None:
    users = [someone(70, "jupyter", memory_bytes=3 * GIB)]
    s.inspection["load"] |= {"foreign_memory_bytes": 3 * GIB, "users": {"cpu": [], "memory": users}}


def _old_sessions(s: Sample, count: int, bytes_each: int) -> None:
    s.inspection["files"]["sessions"] = [
        {"path": f"/tmp/rt-1a2b3c4d/ray/session_{number:02}", "bytes": bytes_each} for number in range(count)
    ]


def many_old_sessions(s: Sample) -> None:
    _old_sessions(s, 12, 2**20)


def large_old_sessions(s: Sample) -> None:
    _old_sessions(s, 2, 3 * GIB)
    s.inspection["files"]["complete"] = False


def large_living_session(s: Sample) -> None:
    s.inspection["files"]["session_bytes"] = 5 * GIB


def large_logs(s: Sample) -> None:
    s.inspection["files"]["log_bytes"] = 4 * GIB


def few_processes(s: Sample) -> None:
    s.raylet["processes_max"] = 512


def rather_few_processes(s: Sample) -> None:
    s.raylet["processes_max"] = 2000


def host_key_is_not_compared(s: Sample) -> None:
    arguments = {"ansible_ssh_common_args": "-o ControlPersist=60s -o StrictHostKeyChecking=no"}
    _proved(s, ssh_arguments=arguments, address="198.51.100.11")


def any_host_key_will_do(s: Sample) -> None:
    _proved(s, ssh_arguments={"ansible_ssh_extra_args": "-o UserKnownHostsFile=/dev/null"})


def the_inventory_says_not_to_check(s: Sample) -> None:
    _proved(s, ssh_arguments={"ansible_host_key_checking": "False"})


def ansible_is_told_not_to_check(s: Sample) -> None:
    s.changes["ansible_checks_host_keys"] = False


FAULTS: list[tuple[Callable[[Sample], None], str, str, tuple[str, ...]]] = [
    (declared_more_cpus, "RT101", "error", ("declared 8", "physical 4", "logical 4", "nodes.cpus: 4")),
    (fewer_cpus_than_at_setup, "RT101", "error", ("physical 2", "4 present, 2 allowed", "had 4")),
    (ray_counts_the_machine, "RT101", "error", ("logical 16", "the plan has 4", "cluster.yml")),
    (slot_on_a_cpu_ray_may_not_use, "RT102", "error", ("[2, 3]", "[0, 1]")),
    (limit_does_not_hold, "RT103", "error", ("cpu", "0 1", "raytools grant --user ray")),
    (declared_more_memory, "RT201", "error", ("declared 32 GiB", "physical 16 GiB", "memory: 16384MiB")),
    (ray_has_other_memory, "RT201", "error", ("logical 15 GiB", "the plan has 12 GiB")),
    (memory_limited_after_setup, "RT201", "error", ("limited by a cgroup", "had 16 GiB", "tolerance 1%")),
    (autogluon_of_another_ray, "RT004", "error", (
        "autogluon 1.5.0 works with ray>=2.43.0,<2.53", "ray 2.58.1 is declared", "Pin ray>=2.43.0,<2.53",
        "raytools env lock",
    )),
    (locked_ray_of_another_autogluon, "RT004", "error", ("autogluon 1.6.3", ">=2.55.0,<2.59", "ray 2.60.0")),
    (python_too_new_for_autogluon, "RT004", "error", (
        "autogluon 1.4.0 needs Python >=3.9,<3.13", "3.13 is declared", "environment.python",
    )),
    (python_too_old_for_ray, "RT004", "error", ("ray 2.58.1 needs Python >=3.10", "3.9 is declared")),
    (clock_saves_energy, "RT106", "info", ("governor is powersave", "node_cpu_governor: performance")),
    (hypervisor_takes_time, "RT107", "warning", ("12% of the CPU time", "since boot 3.1%", "tolerance 5%")),
    (slots_share_a_core, "RT108", "warning", ("slots 0, 1 share core 0", "slots.per_node", "cluster.yml")),
    (slots_share_a_cpu, "RT108", "warning", ("slots 0, 1 share CPU 1",)),
    (ray_may_kill_early, "RT205", "warning", (
        "above 75% of the memory (12 GiB)", "promised 13 GiB", "Remove RAY_memory_usage_threshold",
    )),
    (more_reserved_than_is_left, "RT206", "error", (
        "1 slots 12 GiB + object store 1 GiB + reserved 4 GiB = 17 GiB", "the node had 16 GiB", "cluster.yml",
    )),
    (a_library_is_missing, "RT405", "error", ("`import torch` fails", "libGL.so.1: cannot open")),
    (an_import_kills_the_interpreter, "RT405", "error", ("`import pyarrow` fails", "exit code -4")),
    (storage_without_locks, "RT505", "error", (
        "storage /opt/raytools: files cannot be locked by fcntl: No locks available", "nolock", "storage.yml",
    )),
    (worker_with_another_flag, "RT702", "warning", (
        "RAY_task_oom_retries: declared 0, in a worker 3", "the raylet has it", "runtime environment",
    )),
    (worker_without_a_flag, "RT702", "warning", ("RAY_AUTH_MODE: declared token, in a worker not set",)),
    (default_place_taken, "RT706", "warning", (
        "/tmp/ray belongs to ada with mode 0755", "ray.init() without options", "rm -rf /tmp/ray",
    )),
    (default_place_is_a_file, "RT706", "warning", ("/tmp/ray is no directory",)),
    (a_process_hangs, "RT804", "warning", (
        "without an end (state D, unchanged for a second): cp (pid 77, root)", "RT502",
    )),
    (many_zombies, "RT804", "warning", (
        "105 processes have ended", "90 of agent (pid 50, ada), 15 of cron (pid 51, root)", "kill 50",
    )),
    (zombies_of_a_container, "RT804", "warning", ("300 of sleep (pid 1, root)", "docker run --init")),
    (somebody_computes, "RT805", "warning", (
        "4.5 CPUs", "cc1plus (pid 70, ada)", "and 2 more", "kill 70", "nodes.system_reserved.cpus",
    )),
    (somebody_holds_memory, "RT805", "warning", (
        "3 GiB of memory", "jupyter (pid 70, ada)", "nodes.system_reserved.memory is 2 GiB", "kill 70",
    )),
    (many_old_sessions, "RT806", "warning", (
        "12 sessions of Ray that are over take 12 MiB below /tmp/rt-1a2b3c4d/ray",
        "raytools doctor --fix",
    )),
    (large_old_sessions, "RT806", "warning", ("2 sessions", "at least 6 GiB")),
    (large_living_session, "RT806", "warning", ("this session of Ray take 5 GiB", "ray.yml")),
    (large_logs, "RT806", "warning", ("logs below /opt/raytools/logs take 4 GiB", "Remove old ones")),
    (few_processes, "RT807", "error", ("may be 512 in all", "4096 are recommended", "TasksMax=infinity")),
    (rather_few_processes, "RT807", "warning", ("may be 2000 in all",)),
    (host_key_is_not_compared, "RT904", "warning", (
        "ansible_ssh_common_args switches off", "StrictHostKeyChecking=no", "ssh-keyscan 198.51.100.11",
    )),
    (any_host_key_will_do, "RT904", "warning", ("ansible_ssh_extra_args", "/dev/null", "ssh-keyscan n1")),
    (the_inventory_says_not_to_check, "RT904", "warning", ("ansible_host_key_checking",)),
    (ansible_is_told_not_to_check, "RT904", "warning", ("ANSIBLE_HOST_KEY_CHECKING", "Unset it")),
    (small_shared_memory, "RT202", "error", ("64 MiB", "1 GiB", "remount,size=1088M")),
    (no_shared_memory, "RT202", "error", ("not mounted",)),
    (swap_on, "RT203", "warning", ("2 GiB", "swapoff -a")),
    (gpu_missing, "RT301", "error", ("declared 1, present 0", "nodes.gpus: 0")),
    (gpu_driver_silent, "RT301", "error", ("nvidia-smi does not answer",)),
    (file_edited, "RT401", "error", ("ray/__init__.py", "packages ray", "1 difference", "env verify")),
    (no_manifest, "RT401", "error", ("no environment was built here", "environment.yml")),
    (no_libgomp, "RT402", "error", ("libgomp.so.1", "LightGBM", "conda: [libgomp]")),
    (ray_of_another_environment, "RT403", "error", ("/home/me/venv", "automl-1a2b3c4d5e6f", "ray.yml")),
    (environment_replaced_under_ray, "RT403", "error", ("replaced or deleted",)),
    (other_ray_version_running, "RT403", "error", ("ray 2.57.0", "2.58.1")),
    (other_python_installed, "RT403", "error", ("python 3.11.7 is installed", "declares 3.12")),
    (disk_full, "RT501", "error", ("500 MiB of 100 GiB", "/opt/raytools")),
    (disk_filling, "RT501", "warning", ("3 GiB of 90 GiB", "/tmp", "95 %")),
    (small_disk, "RT501", "warning", ("3 GiB of 12 GiB", "less than 5 GiB", "may not fit")),
    (stranger_on_the_gpu, "RT303", "warning", ("GPU-5a", "pid 7 of ada (jupyter)", "1 GiB", "kill 7")),
    (environment_on_nfs, "RT503", "warning", ("/opt/raytools/envs/automl-1a2b3c4d5e6f", "nfs4")),
    (another_node_out_of_reach, "RT604", "error", ("n3 (192.0.2.13), port 10101 (node_manager), 10102",)),
    (storage_that_is_not_shared, "RT504", "error", ("cannot read below /opt/raytools",)),
    (clock_ahead, "RT603", "warning", ("at least 8.0 s ahead of", "tolerance 2 s")),
    (clock_behind, "RT603", "warning", ("at least 60.0 s behind",)),
    (unit_disabled, "RT705", "error", ("raytools-ray-demo.service is not enabled",)),
    (unit_without_groups, "RT705", "error", ("cpu, cpuset",)),
    (unit_restarts, "RT705", "warning", ("12 times",)),
    (unit_restarted_twice, "RT705", "info", ("2 times",)),
    (exported_to_a_stranger, "RT903", "error", ("/srv/raytools", "192.0.2.77", "no node of this cluster")),
    (exported_from_above, "RT903", "error", ("/srv is exported to *",)),
    (exported_with_root, "RT903", "error", ("no_root_squash",)),
    (few_inodes, "RT501", "error", ("5000 inodes", "/tmp")),
    (storage_stalls, "RT502", "error", ("/mnt/raytools does not answer", "the server 192.0.2.12")),
    (nfs_not_mounted, "RT502", "error", ("192.0.2.12:/srv/raytools", "nothing is mounted", "storage.yml")),
    (shared_directory_gone, "RT502", "error", ("/shared is not there", "storage.path")),
    (address_gone, "RT602", "error", ("192.0.2.11", "192.0.2.99", "raytools_address")),
    (ray_down, "RT701", "error", ("Ray does not answer", "Connection refused")),
    (ray_says_dead, "RT701", "error", ("lists it as dead", "logs/ray.log")),
    (stranger_joined, "RT701", "error", ("192.0.2.77", "not in the inventory")),
    (flag_missing, "RT702", "error", ("RAY_task_oom_retries: declared 0", "not set", "ray.yml")),
    (flag_differs, "RT702", "error", ("declared 0", "in the raylet 5")),
    (interrupts_ignored, "RT703", "error", ("SIGINT", "ray.cancel")),
    (ray_in_the_default_place, "RT704", "warning", ("/tmp/ray", "kill -TERM 98", "RAY_ADDRESS=local")),
    (orphans, "RT801", "error", ("2 processes", "pid 41 of ray", "this cluster's", "kill 41 42")),
    (few_files, "RT802", "error", ("may open 1024", "8192", "LimitNOFILE")),
    (rather_few_files, "RT802", "warning", ("may open 5000",)),
    (killed_run, "RT803", "warning", ("run r1 of ray", "raytools run -- true")),
    (token_readable, "RT901", "error", ("mode 0644", "chmod 0600 /opt/raytools/token")),
    (token_gone, "RT901", "error", ("does not exist",)),
    (token_of_another_user, "RT901", "error", ("belongs to root, Ray runs as ray",)),
    (dashboard_open, "RT901", "error", ("0.0.0.0", "declared is 127.0.0.1")),
    (root_writable_for_all, "RT902", "error", ("/opt/raytools has mode 0777", "chmod o-w /opt/raytools")),
    (parent_writable_for_all, "RT902", "error", ("/opt has mode 0777",)),
    (toolkit_of_another_user, "RT902", "warning", ("belongs to mallory", "chown")),
    (plan_outdated, "RT002", "warning", ("node.json", "runs.time_s: None -> 60.0", "cluster.yml")),
    (lock_outdated, "RT001", "error", ("added 'optuna'", "raytools env lock")),
    (lock_damaged, "RT001", "error", ("was edited",)),
    (not_locked, "RT001", "warning", ("never been locked",)),
    (no_plan_possible, "RT001", "error", ("too few CPUs for 8 slots",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "code", "severity", "said"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS]
)
def test_one_fault_is_one_finding_with_values_and_what_to_do(
    sample: Sample, fault: Callable[[Sample], None], code: str, severity: str, said: tuple[str, ...]
) -> None:
    fault(sample)
    finding = sample.only(code)
    assert finding.severity == severity
    for text in said:
        assert text in f"{finding.message} | {finding.fix}"
    assert finding.fix


def test_every_code_has_a_fault_that_it_finds() -> None:
    elsewhere = {
        "RT003",
        "RT104",
        "RT105",
        "RT204",
        "RT302",
        "RT400",
        "RT404",
        "RT406",
        "RT601",
        "RT605",
        "RT606",
        "RT607",
        "RT905",
        "RT906",
    }  # below, and in test_doctor_selection.py
    assert {fault[1] for fault in FAULTS} | elsewhere == {check.code for check in CHECKS}


# --- what is no fault, and what cannot be judged -------------------------------------------------


def test_the_table_names_every_check_in_order_and_how_bad_its_findings_get() -> None:
    assert list(WORST_AND_COMPARED) == [check.code for check in CHECKS]
    found: dict[str, set[str]] = {}
    for _, code, severity, _ in FAULTS:
        found.setdefault(code, set()).add(severity)
    del found["RT106"]  # only among several nodes is it as bad as it gets
    for code, severities in found.items():
        assert max(severities, key=SEVERITIES.index) == WORST_AND_COMPARED[code][0], code  # type: ignore[arg-type]


def test_fewer_declared_cpus_than_there_are_is_only_information(sample: Sample) -> None:
    sample.config["nodes"] = {"cpus": 3}
    assert sample.findings("RT101")[0].severity == "info"
    assert sample.report().verdict == "ok"


def test_a_quota_explains_the_physical_count(sample: Sample) -> None:
    sample.config["nodes"] = {"cpus": 4}
    sample.set_facts("cpu", quota_cpus=2.5, usable=2)
    sample.plan = None
    assert "quota 2.5" in sample.findings("RT101")[0].message


def test_a_few_mebibytes_less_after_a_kernel_update_are_tolerated(sample: Sample) -> None:
    sample.set_facts("memory", total_bytes=16 * GIB - 2**24, usable_bytes=16 * GIB - 2**24)
    assert sample.findings("RT201") == []


def test_memory_and_object_store_together_may_not_exceed_the_machine(sample: Sample) -> None:
    for part in (sample.plan, sample.inspection["node"]):
        assert part
        part["logical"]["memory"] = 16 * GIB
    assert sample.ray
    sample.ray["nodes"][0]["resources_total"]["memory"] = 16.0 * GIB
    assert "Ray promises more than there is" in sample.only("RT201").message


def test_unmeasured_memory_is_skipped_and_not_zero(sample: Sample) -> None:
    sample.set_facts("memory", usable_bytes=None, swap_total_bytes=None)
    assert sample.check("RT201").skipped == {"n1": "the node's memory could not be measured"}
    assert sample.check("RT203").status == "skip"


def test_a_silent_gpu_driver_is_nothing_where_no_gpu_is_declared(sample: Sample) -> None:
    sample.config["nodes"] = {"gpus": 0}
    gpu_driver_silent(sample)
    assert sample.check("RT301").status == "skip"


def test_libgomp_matters_little_where_nothing_loads_it(sample: Sample) -> None:
    sample.config["environment"]["pip"] = ["ray==2.58.1"]
    no_libgomp(sample)
    assert sample.only("RT402").severity == "info"


def test_another_users_raylet_is_skipped_with_the_reason(sample: Sample) -> None:
    sample.raylet.update(environ=None, signals_ignored=None, nofile=None, cpus_allowed=None)
    report = sample.report()
    assert report.findings == ()
    for code in ("RT102", "RT702", "RT703", "RT802"):
        assert "may not be read" in sample.check(code).skipped["n1"]


def test_an_environment_that_may_not_be_read_is_skipped_and_not_called_broken(sample: Sample) -> None:
    sample.inspection["environment"] = {"problem": "PermissionError: [Errno 13] Permission denied: '/x'"}
    for name in ("token", "python", "toolkit"):
        del sample.inspection["paths"][name]
    assert sample.report().findings == ()
    assert "Permission denied" in sample.check("RT401").skipped["n1"]
    assert "cannot be seen" in sample.check("RT901").skipped["n1"]


def test_limits_cannot_be_proved_while_other_runs_have_the_node(sample: Sample) -> None:
    limit_does_not_hold(sample)
    node = sample.changes["nodes"][0]
    node.proof["busy"] = "CPU 0 is held by run 0583 of ada (pid 4, CPUs [0], 1 GiB)"
    assert sample.report().findings == ()
    assert "held by run 0583" in sample.check("RT103").skipped["n1"]


def test_the_private_ray_of_a_limited_run_is_no_other_ray(sample: Sample) -> None:
    ray_in_the_default_place(sample)
    sample.inspection["rays"]["others"][0]["run_id"] = "r1"
    assert sample.report().findings == ()


def test_an_nfs_server_mounts_its_own_directory_without_nfs(sample: Sample) -> None:
    declare_storage(sample, {**NFS, "serves": True})
    sample.inspection["storage"] |= {"mounted": True, "source": "/dev/vda", "filesystem": "ext4"}
    assert sample.findings("RT502") == []
    sample.inspection["storage"] |= {"mounted": False, "source": None, "filesystem": None}
    assert len(sample.findings("RT502")) == 1


def test_one_disk_is_reported_once(sample: Sample) -> None:
    for name in ("root", "tmp"):
        sample.facts["disk"][name] = {
            "path": f"/{name}", "total_bytes": 100 * GIB, "available_bytes": GIB // 2,
            "inodes_available": 10**6,
        }  # fmt: skip
    sample.inspection["storage"] = None
    assert len(sample.findings("RT501")) == 1


def test_a_loopback_name_is_a_trap_only_with_several_nodes(sample: Sample) -> None:
    sample.set_facts("network", hostname_resolves_to=["127.0.1.1"])
    assert sample.report().findings == ()
    sample.more_nodes = [second_node()]
    assert sample.ray
    sample.ray["nodes"].append({**sample.ray["nodes"][0], "address": "192.0.2.12"})
    finding = sample.only("RT602")
    assert finding.severity == "warning"
    assert "In /etc/hosts on n1: 192.0.2.11 n1" in finding.fix


def test_auth_disabled_and_open_to_the_network_is_a_warning(sample: Sample) -> None:
    for part in (sample.plan, sample.inspection["node"]):
        assert part
        part["ray"] |= {"auth": "disabled", "token_path": None}
    sample.raylet["environ"]["RAY_AUTH_MODE"] = "disabled"
    sample.inspection["paths"]["token"] = None
    finding = sample.only("RT901")
    assert finding.severity == "warning"
    assert "ray.auth: token" in finding.fix


def test_versions_that_fit_are_fine_whether_pinned_or_locked(sample: Sample) -> None:
    _pinned(sample, "ray[default,tune]==2.58.1", "autogluon.tabular[lightgbm,ray]==1.6.3", "optuna")
    assert sample.report().findings == ()
    _pinned(sample, "ray", "autogluon")
    sample.lock = LockState(
        "automl-1a2b3c4d5e6f", packages={"ray": "2.58.1", "autogluon-core": "1.6.3", "optuna": "4.0"}
    )
    assert sample.report().findings == ()


def test_a_lock_of_another_declaration_says_nothing_of_the_versions_that_are_declared(sample: Sample) -> None:
    _pinned(sample, "ray[default]==2.58.1", "autogluon.tabular==1.6.3")
    sample.lock = LockState(
        "automl-1a2b3c4d5e6f", ("environment.pip: added 'ray[default]==2.58.1'",), packages={"ray": "2.40.0"}
    )
    assert sample.only("RT001")


def test_versions_that_are_not_pinned_unknown_or_no_versions_are_not_judged(sample: Sample) -> None:
    for pip in (
        ("ray>=2.40", "autogluon.tabular"),
        ("ray==2.40.*", "autogluon==9.9"),
        ("ray @ file:///x.whl",),
    ):
        _pinned(sample, *pip, "pkg with blanks")
        assert sample.check("RT004").status == "pass"


def test_the_versions_of_an_existing_environment_are_its_makers(sample: Sample) -> None:
    sample.config["environment"] = {"prefix": "/opt/conda/envs/mine", "pip": [], "conda": []}
    assert "existing environment" in sample.check("RT004").skipped["cluster"]


def test_clocks_that_no_machine_shows_are_skipped(sample: Sample) -> None:
    sample.facts["cpu"]["frequency"] = {"governors": [], "boost": None}
    assert "virtual machines" in sample.check("RT106").skipped["cluster"]
    del sample.facts["cpu"]["frequency"]
    assert sample.check("RT106").status == "skip"


def test_cpu_time_that_is_taken_away_is_tolerated_below_a_share_and_skipped_where_unknown(
    sample: Sample,
) -> None:
    sample.inspection["load"]["steal_share"] = 0.04
    assert sample.report().findings == ()
    sample.inspection["load"]["steal_share"] = None
    assert sample.check("RT107").skipped == {"n1": "the kernel does not tell"}


def test_slots_with_whole_cores_of_their_own_do_not_share(sample: Sample) -> None:
    _slots(sample, [0, 2], [1, 3])
    assert sample.report().findings == ()


def test_rays_monitor_is_judged_by_rays_own_threshold_unless_it_is_off(sample: Sample) -> None:
    for plan in (sample.plan, sample.inspection["node"]):
        assert plan is not None
        plan["slots"][0]["memory_bytes"] = 14.5 * GIB  # with the object store 97 %
    found = sample.findings("RT205")
    assert "above 95% of the memory (15.2 GiB)" in found[0].message
    sample.raylet["environ"]["RAY_memory_usage_threshold"] = "most of it"
    assert "above 95%" in sample.findings("RT205")[0].message
    sample.raylet["environ"]["RAY_memory_monitor_refresh_ms"] = "0"
    assert sample.findings("RT205") == []


def test_an_amount_that_fits_but_for_rounding_adds_up(sample: Sample) -> None:
    sample.config["nodes"] = {"system_reserved": {"memory": "3200MiB"}}  # 16.125 of 16 GiB
    assert sample.findings("RT206") == []


def test_what_could_not_be_measured_is_skipped_with_the_reason_and_not_called_slow(sample: Sample) -> None:
    silent = {"problem": "n1: no answer within 60 s"}
    _proved(sample, imports=silent, storage_trial=silent)
    assert sample.report().findings == ()
    for code in ("RT405", "RT505"):
        assert sample.check(code).skipped == {"n1": "it could not be tried: n1: no answer within 60 s"}
    assert sample.check("RT406").status == "skip"


def test_a_slow_disk_alone_is_not_slower_than_others(sample: Sample) -> None:
    _proved(sample, storage_trial={"problems": [], "fsync_ms": 900.0})
    assert sample.report().findings == ()
    _proved(sample, storage_trial={"problems": ["Read-only file system (/x)"], "fsync_ms": None})
    assert "Read-only file system" in sample.only("RT505").message


def test_a_worker_that_has_all_or_could_not_be_asked_is_no_fault(sample: Sample) -> None:
    for worker in (None, {"problem": "no worker has started within 60 s"}, {"environ": WORKER}):
        _proved(sample, worker=worker)
        assert sample.report().findings == ()


def test_what_the_raylet_lacks_is_not_said_of_its_worker_again(sample: Sample) -> None:
    flag_missing(sample)
    _proved(sample, worker={"environ": {"RAY_AUTH_MODE": "token"}})
    assert "in the raylet" in sample.only("RT702").message


def test_a_default_place_that_everybody_may_use_is_no_fault(sample: Sample) -> None:
    sample.inspection["default_temp_dir"] = {
        "path": "/tmp/ray", "user": "ada", "mode": 0o777, "directory": True, "usable": True,
    }  # fmt: skip
    assert sample.report().findings == ()


def test_load_below_what_is_reserved_is_no_fault(sample: Sample) -> None:
    sample.config["nodes"] = {"system_reserved": {"cpus": 1, "memory": "2GiB"}}
    sample.inspection["load"] |= {"foreign_cpus": 1.4, "foreign_memory_bytes": 2 * GIB}
    assert sample.findings("RT805") == []
    sample.inspection["load"]["foreign_cpus"] = 1.6
    assert sample.findings("RT805")[0].declared == 1.5


def test_a_limit_of_processes_that_does_not_exist_or_is_large_is_no_fault(sample: Sample) -> None:
    for most in (None, 4096):
        sample.raylet["processes_max"] = most
        assert sample.report().findings == ()


def test_sessions_of_the_last_clean_stops_are_no_fault(sample: Sample) -> None:
    _old_sessions(sample, 9, 2**20)
    assert sample.report().findings == ()
    sample.inspection["files"] |= {"sessions": [], "session_bytes": None, "complete": False}
    assert sample.report().findings == ()


def test_host_keys_that_are_checked_are_no_fault(sample: Sample) -> None:
    sample.changes["ansible_checks_host_keys"] = True
    _proved(sample, ssh_arguments={
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=yes -J jump.example",
        "ansible_host_key_checking": "True",
    })  # fmt: skip
    assert sample.report().findings == ()


# --- several nodes -------------------------------------------------------------------------------


def test_a_node_that_does_not_answer_is_one_finding_and_the_rest_is_judged(sample: Sample) -> None:
    sample.more_nodes = [second_node(inspection=None, error="n2: nothing listens there", plan=None)]
    swap_on(sample)
    codes = [finding.code for finding in sample.report().findings]
    assert codes == ["RT601", "RT203"]
    assert sample.findings("RT601")[0].node == "n2"
    assert sample.check("RT203").nodes == ("n1",)
    assert sample.check("RT203").skipped == {"n2": "the node did not answer"}


def test_a_node_without_node_json_is_not_provisioned_and_told_how_to(sample: Sample) -> None:
    sample.inspection["node"] = None
    sample.inspection["node_problem"] = "/opt/raytools/node.json does not exist"
    sample.inspection["rays"]["ours"] = []
    sample.ray = None
    sample.lock = None
    finding = sample.only("RT400")
    assert "node.json does not exist" in finding.message
    assert finding.fix == "ansible-playbook playbooks/cluster.yml"
    assert sample.check("RT701").status == "skip"


def test_a_missing_toolkit_is_not_provisioned(sample: Sample) -> None:
    sample.inspection["paths"]["toolkit"] = None
    assert "toolkit (/opt/raytools/toolkit/0.1.0) does not exist" in sample.only("RT400").message


def test_nodes_with_different_content_are_named(sample: Sample) -> None:
    node = second_node()
    assert node.inspection
    node.inspection["environment"]["content_digest"] = "badcafe"
    sample.more_nodes = [node]
    assert sample.ray
    sample.ray["nodes"].append({**sample.ray["nodes"][0], "address": "192.0.2.12"})
    finding = sample.only("RT404")
    assert (finding.node, finding.declared, finding.physical) == ("n2", "c0ffee", "badcafe")


# --- several nodes -------------------------------------------------------------------------------


UNTRIED = {
    "RT103", "RT302", "RT303", "RT405", "RT406", "RT504", "RT505", "RT604", "RT606", "RT607", "RT903",
    "RT906",
}  # fmt: skip
# a sample proves nothing, and serves no storage


def like_the_first(s: Sample, number: int) -> NodeReport:
    """Node n<number>, as healthy as the first and alive in Ray."""
    address = f"192.0.2.1{number}"
    node = second_node(name=f"n{number}")
    assert node.inspection is not None
    node.inspection["node"] |= {"name": node.name, "address": address}
    node.inspection["facts"]["host"]["hostname"] = node.name
    device = {"device": "eth0", "mtu_bytes": 1500, "speed_mbit": 1000}
    node.inspection["facts"]["network"] |= {
        "addresses": ["127.0.0.1", address], "primary_address": address, "devices": {address: device},
    }  # fmt: skip
    entry = {**copy.deepcopy(RAY["nodes"][0]), "address": address, "is_head": False}
    s.ray["nodes"].append(entry)  # type: ignore[index]
    return replace(node, plan=node.inspection["node"])


@pytest.fixture
def three(sample: Sample) -> Sample:
    """Three healthy nodes of one kind."""
    sample.more_nodes = [like_the_first(sample, number) for number in (2, 3)]
    return sample


def inspected(s: Sample, node: int) -> dict[str, Any]:
    found: Any = s.more_nodes[node - 2].inspection
    return found  # type: ignore[no-any-return]


def test_three_nodes_of_one_kind_have_no_findings(three: Sample) -> None:
    assert three.report().findings == ()
    assert {check.code for check in three.report().checks if check.status == "skip"} == UNTRIED


def test_another_processor_is_named_with_its_node(three: Sample) -> None:
    inspected(three, 3)["facts"]["cpu"]["model"] = "Other CPU"
    found = three.only("RT105")
    assert (found.node, found.severity) == ("n3", "warning")
    assert "Other CPU, on most nodes Some CPU" in found.message


def test_another_number_of_threads_is_named_with_its_node(three: Sample) -> None:
    inspected(three, 2)["rays"]["ours"][0]["environ"]["OMP_NUM_THREADS"] = "1"
    found = three.only("RT104")
    assert (found.node, found.severity) == ("n2", "warning")
    assert "OMP_NUM_THREADS is '1' for Ray here, not set on most nodes" in found.message


def test_another_gpu_driver_is_named_with_its_node(three: Sample) -> None:
    three.inspection["gpus"]["driver"] = inspected(three, 2)["gpus"]["driver"] = "550.54.15"
    inspected(three, 3)["gpus"]["driver"] = "535.183.01"
    found = three.only("RT302")
    assert (found.node, found.severity) == ("n3", "warning")
    assert "535.183.01, 550.54.15 on most nodes" in found.message


def test_of_two_nodes_the_first_counts_as_most(sample: Sample) -> None:
    sample.more_nodes = [like_the_first(sample, 2)]
    inspected(sample, 2)["facts"]["cpu"]["model"] = "Other CPU"
    assert sample.only("RT105").node == "n2"


def test_like_machines_with_unlike_memory_for_ray_are_named(three: Sample) -> None:
    inspected(three, 3)["node"]["logical"]["memory"] = 11 * GIB  # as it was planned there
    three.ray["nodes"][2]["resources_total"]["memory"] = 11.0 * GIB  # type: ignore[index]
    found = three.only("RT204")
    assert found.node == "n3"
    assert "11 GiB of memory here, 12 GiB on most machines like it" in found.message


def test_a_step_of_rounding_between_like_machines_is_tolerated(three: Sample) -> None:
    inspected(three, 3)["node"]["logical"]["memory"] = 12 * GIB - 256 * 2**20
    three.ray["nodes"][2]["resources_total"]["memory"] = 12.0 * GIB - 256 * 2**20  # type: ignore[index]
    assert three.report().findings == ()


def test_a_machine_for_which_something_else_is_declared_is_another_kind(three: Sample) -> None:
    config = ClusterConfig.model_validate({**CONFIG, "nodes": {"memory": "14GiB"}})
    inspected(three, 3)["node"]["logical"]["memory"] = 10 * GIB
    three.ray["nodes"][2]["resources_total"]["memory"] = 10.0 * GIB  # type: ignore[index]
    three.more_nodes[1] = replace(three.more_nodes[1], config=config)
    assert not three.findings("RT204")


# --- several nodes: what is compared, and what was tried between them ------------------------------


def of_node(s: Sample, name: str, **found: Any) -> None:
    """What was found of one node; gathers once, so that later changes of the sample are not seen."""
    s.changes["nodes"] = tuple(
        replace(node, **found) if node.name == name else node for node in s.gathered().nodes
    )


@pytest.fixture
def tried(three: Sample) -> Sample:
    """Three healthy nodes on which everything was tried."""
    names = {"n1": ["192.0.2.11"], "n2": ["192.0.2.12"], "n3": []}
    for node, neighbour in (("n1", "n2"), ("n2", "n3"), ("n3", "n1")):
        of_node(
            three,
            node,
            imports={"ray": {"problem": None, "s": 1.4}, "numpy": {"problem": None, "s": 0.2}},
            storage_trial={"problems": [], "fsync_ms": 2.5},
            ring={"latency_ms": 0.2, "mbit_per_s": 940.0, "to": neighbour},
            resolved=dict(names),
            reach=(),
            outside=({"address": "198.51.100.1", "port": 6379, "name": "gcs", "problem": "no answer"},),
        )
    return three


def test_three_nodes_on_which_everything_was_tried_have_no_findings(tried: Sample) -> None:
    assert tried.report().findings == ()
    skipped = {check.code for check in tried.report().checks if check.status == "skip"}
    assert skipped == UNTRIED - {"RT405", "RT406", "RT505", "RT604", "RT606", "RT607", "RT906"}


def test_another_governor_is_named_with_its_node(three: Sample) -> None:
    inspected(three, 2)["facts"]["cpu"]["frequency"]["governors"] = ["powersave"]
    found = three.only("RT106")
    assert (found.node, found.severity) == ("n2", "warning")
    assert "the clock's governor is powersave here, performance on most nodes" in found.message
    assert "node_cpu_governor" in found.fix


def test_a_node_whose_clock_may_not_go_as_high_is_named(three: Sample) -> None:
    inspected(three, 3)["facts"]["cpu"]["frequency"]["boost"] = False
    found = three.only("RT106")
    assert (found.node, found.severity) == ("n3", "warning")
    assert "the CPUs may not go beyond their nominal clock here, on most nodes they may go" in found.message


def test_nodes_that_all_save_energy_are_told_so_each_in_order(three: Sample) -> None:
    for facts in (three.facts, inspected(three, 2)["facts"], inspected(three, 3)["facts"]):
        facts["cpu"]["frequency"]["governors"] = ["schedutil"]
    found = three.findings("RT106")
    assert [(one.node, one.severity) for one in found] == [("n1", "info"), ("n2", "info"), ("n3", "info")]
    assert three.report().verdict == "ok"


def test_a_node_that_does_not_show_its_clock_is_left_out(three: Sample) -> None:
    inspected(three, 2)["facts"]["cpu"]["frequency"] = {"governors": [], "boost": None}
    assert three.report().findings == ()


def test_packets_of_another_size_are_named_with_their_node(three: Sample) -> None:
    inspected(three, 3)["facts"]["network"]["devices"]["192.0.2.13"]["mtu_bytes"] = 9000
    found = three.only("RT605")
    assert (found.node, found.severity) == ("n3", "warning")
    assert (found.declared, found.physical) == (1500, 9000)
    assert "9000 bytes (MTU) here, 1500 on most nodes" in found.message
    assert "ip link set DEVICE mtu 1500" in found.fix


def test_a_device_that_is_not_known_or_is_loopback_is_not_compared(three: Sample) -> None:
    inspected(three, 2)["facts"]["network"]["devices"] = {}
    inspected(three, 3)["facts"]["network"]["devices"]["192.0.2.13"] |= {"device": "lo", "mtu_bytes": 65536}
    assert "no two nodes" in three.check("RT605").skipped["cluster"]


def test_another_token_is_named_with_its_node_and_not_shown(three: Sample) -> None:
    inspected(three, 2)["token"]["digest"] = "badcafe000000000"
    found = three.only("RT905")
    assert (found.node, found.severity) == ("n2", "error")
    assert "not that of n1 (sha256 begins with badcafe000000000, not 5ea1ed0123456789)" in found.message
    assert "copy it from n1" in found.fix


def test_tokens_that_may_not_be_read_are_not_compared(three: Sample) -> None:
    three.inspection["token"] = {"problem": "PermissionError: [Errno 13] Permission denied"}
    inspected(three, 2)["token"]["digest"] = "badcafe000000000"
    assert "not that of n2" in three.only("RT905").message  # the first that could be read
    inspected(three, 2)["token"] = {"digest": None}
    assert "no two tokens" in three.check("RT905").skipped["cluster"]


def test_a_slow_import_is_named_with_its_node(tried: Sample) -> None:
    of_node(tried, "n3", imports={"ray": {"problem": None, "s": 9.0}})
    found = tried.only("RT406")
    assert (found.node, found.severity) == ("n3", "warning")
    assert "`import ray` takes 9.00 s here, 1.40 s on most nodes" in found.message
    assert "--level prove" in found.fix


def test_of_two_nodes_the_one_that_imports_slower_is_only_told(tried: Sample) -> None:
    of_node(tried, "n2", imports={"ray": {"problem": None, "s": 9.0}})
    of_node(tried, "n3", imports=None)
    found = tried.only("RT406")
    assert (found.node, found.severity) == ("n2", "info")
    assert "`import ray` takes 9.00 s here, 1.40 s on the other node" in found.message


def test_an_import_that_is_slower_by_little_is_no_fault(tried: Sample) -> None:
    for name, took_s in (("n1", 0.5), ("n2", 0.5), ("n3", 3.4)):  # seven times, but not 3 s
        of_node(tried, name, imports={"ray": {"problem": None, "s": took_s}})
    assert tried.report().findings == ()
    for name, took_s in (("n1", 20.0), ("n2", 20.0), ("n3", 50.0)):  # 30 s, but not three times
        of_node(tried, name, imports={"ray": {"problem": None, "s": took_s}})
    assert tried.report().findings == ()


def test_a_disk_that_is_slower_than_others_is_only_information(tried: Sample) -> None:
    of_node(tried, "n2", storage_trial={"problems": [], "fsync_ms": 480.0})
    found = tried.only("RT505")
    assert (found.node, found.severity) == ("n2", "info")
    assert "takes 480 ms until it is on the disk, 2 ms on most nodes" in found.message
    of_node(tried, "n2", storage_trial={"problems": [], "fsync_ms": 60.0})
    assert tried.report().findings == ()


def test_a_neighbour_out_of_reach_is_named_by_who_could_not_reach_it(tried: Sample) -> None:
    of_node(tried, "n2", ring={"problem": "192.0.2.13, port 20999: timed out", "to": "n3"})
    found = tried.only("RT606")
    assert (found.node, found.severity) == ("n2", "error")
    assert "workers' ports of n3: 192.0.2.13, port 20999: timed out" in found.message
    assert "ray.ports.workers" in found.fix


def test_a_neighbour_that_could_not_listen_or_be_asked_is_not_out_of_reach(tried: Sample) -> None:
    refused = {"problem": "192.0.2.13, port 20999: Connection refused", "to": "n3"}
    of_node(tried, "n2", ring=refused)
    busy = "cannot listen at 192.0.2.13, port 20999: Address already in use"
    for deaf in ({"problem": busy}, {"problem": "n3: no answer within 40 s", "untried": True}):
        of_node(tried, "n3", ring={**deaf, "to": "n1"})
        assert tried.report().findings == ()
        assert tried.check("RT606").status == "pass"


def test_a_ring_in_which_nobody_could_be_asked_is_skipped(tried: Sample) -> None:
    for name in ("n1", "n2", "n3"):
        of_node(tried, name, ring={"problem": f"{name}: no answer", "untried": True, "to": "n1"})
    assert "nothing could be tried" in tried.check("RT606").skipped["cluster"]


def test_a_link_slower_than_others_is_only_information(tried: Sample) -> None:
    of_node(tried, "n3", ring={"latency_ms": 0.3, "mbit_per_s": 94.0, "to": "n1"})
    found = tried.only("RT606")
    assert (found.node, found.severity) == ("n3", "info")
    assert "94 Mbit/s to n1, 940 Mbit/s between most nodes" in found.message
    of_node(tried, "n3", ring={"latency_ms": 0.3, "mbit_per_s": 400.0, "to": "n1"})
    assert tried.report().findings == ()


def test_a_name_that_leads_to_somebody_else_is_named_where_it_does(tried: Sample) -> None:
    of_node(tried, "n3", resolved={"n1": ["198.51.100.7"], "n2": ["192.0.2.12"], "n3": ["127.0.1.1"]})
    found = tried.only("RT607")
    assert (found.node, found.severity) == ("n3", "warning")
    assert (found.declared, found.physical) == ("192.0.2.11", ["198.51.100.7"])
    assert "n1, as n1 calls itself, leads to 198.51.100.7 here; it is at 192.0.2.11" in found.message
    assert "Correct the entry of n1 in /etc/hosts on n3" in found.fix


def test_a_name_that_leads_to_loopback_on_another_node_leads_to_itself(tried: Sample) -> None:
    of_node(tried, "n2", resolved={"n1": ["127.0.0.1"], "n2": [], "n3": []})
    assert "leads to 127.0.0.1 here" in tried.only("RT607").message


def test_names_that_are_not_known_or_lead_to_another_address_of_the_node_are_no_fault(tried: Sample) -> None:
    tried.facts["network"]["addresses"].append("10.0.0.1")
    of_node(tried, "n2", resolved={"n1": ["10.0.0.1"], "n2": None, "n3": None})
    assert tried.report().findings == ()
    of_node(tried, "n2", resolved=None)
    assert "not tried" in tried.check("RT607").skipped["n2"]


def test_what_the_controller_reaches_by_an_address_that_is_not_the_clusters_is_named(tried: Sample) -> None:
    doors = [
        {"address": "198.51.100.2", "port": 6379, "name": "gcs", "problem": None},
        {"address": "198.51.100.2", "port": 10002, "name": "node_manager", "problem": None},
        {"address": "198.51.100.2", "port": 8265, "name": "dashboard", "problem": "Connection refused"},
    ]
    of_node(tried, "n2", outside=tuple(doors))
    found = tried.only("RT906")
    assert (found.node, found.severity) == ("n2", "warning")
    assert "reaches Ray at 198.51.100.2, port 6379 (gcs), 10002 (node_manager); nodes use 192.0.2.12" in (
        found.message
    )
    assert "Close these ports of 198.51.100.2" in found.fix


@pytest.mark.parametrize(("outside", "why"), [(None, "was not tried"), ((), "no other address")])
def test_a_node_without_a_second_address_has_no_outside(tried: Sample, outside: Any, why: str) -> None:
    of_node(tried, "n2", outside=outside)
    assert why in tried.check("RT906").skipped["n2"]
    assert tried.report().findings == ()


def test_facts_without_what_newer_checks_compare_are_skipped_and_nothing_crashes(three: Sample) -> None:
    for found in (three.inspection, inspected(three, 2), inspected(three, 3)):
        del found["facts"]["cpu"]["frequency"], found["facts"]["cpu"]["threads"]
        del found["facts"]["network"]["devices"]
        del found["load"], found["files"], found["token"], found["default_temp_dir"]
        del found["rays"]["ours"][0]["processes_max"]
    report = three.report()
    assert report.findings == ()
    new = {"RT106", "RT107", "RT605", "RT804", "RT805", "RT806", "RT905"}
    assert {check.code for check in report.checks if check.status == "skip"} == UNTRIED | new
