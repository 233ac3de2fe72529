"""Each check on recorded reports: a healthy node passes, each fault is found, gaps are skipped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from raytools.config import ClusterConfig
from raytools.doctor.checks import CHECKS
from raytools.doctor.evaluate import evaluate
from raytools.doctor.explanations import EXPLANATIONS
from raytools.doctor.model import CheckResult, Finding, Gathered, LockState, NodeReport, Report

GIB = 2**30
CONFIG: dict[str, Any] = {"environment": {"pip": ["ray[default]==2.58.1", "lightgbm"]}}

FACTS: dict[str, Any] = {
    "schema": "raytools.facts/1",
    "host": {"hostname": "n1", "fqdn": "n1", "kernel": "6.1.0", "arch": "x86_64"},
    "cpu": {
        "model": "Some CPU", "present": 4, "online": [0, 1, 2, 3], "affinity": [0, 1, 2, 3],
        "cpuset": [0, 1, 2, 3], "allowed": [0, 1, 2, 3], "quota_cpus": None, "usable": 4,
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


def path_fact(path: str, mode: int = 0o755, user: str = "ray") -> dict[str, Any]:
    return {"path": path, "mode": mode, "uid": 1000, "user": user, "size_bytes": 64}


INSPECTION: dict[str, Any] = {
    "schema": "raytools.inspection/1", "facts": FACTS, "node": PLAN, "node_problem": None,
    "rays": {
        "ours": [{
            "pid": 815, "user": "ray", "environ": {"RAY_task_oom_retries": "0", "RAY_AUTH_MODE": "token"},
            "signals_ignored": [17], "nofile": {"soft": 65536, "hard": 65536}, "program_replaced": False,
            "interpreter": "/opt/raytools/envs/automl-1a2b3c4d5e6f/bin/python3", "cpus_allowed": [0, 1, 2, 3],
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


class Sample:
    """A healthy one-node cluster that a test breaks in one place."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = copy.deepcopy(CONFIG)
        self.inspection = copy.deepcopy(INSPECTION)
        self.plan: dict[str, Any] | None = copy.deepcopy(PLAN)
        self.ray: dict[str, Any] | None = copy.deepcopy(RAY)
        self.lock: LockState | None = LockState("automl-1a2b3c4d5e6f")
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
        gathered = Gathered("prove", config, (node, *self.more_nodes), lock=self.lock, ray=self.ray)
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
        "RT103": "skip"
    }


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


@pytest.mark.parametrize("part", ["rays", "paths", "locks", "listening", "versions", "environment", "above"])
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


def no_plan_possible(s: Sample) -> None:
    s.changes["plan_error"] = "n1: too few CPUs for 8 slots"


def limit_does_not_hold(s: Sample) -> None:
    proof = {"ok": False, "fix": "sudo raytools grant --user ray", "limits": [
        {"limit": "cpu", "holds": False, "how": "it could move itself to CPUs 0 1"},
        {"limit": "time", "holds": True, "how": "ended"},
    ]}  # fmt: skip
    gathered = s.gathered()
    s.changes["nodes"] = (replace(gathered.nodes[0], proof=proof),)


FAULTS: list[tuple[Callable[[Sample], None], str, str, tuple[str, ...]]] = [
    (declared_more_cpus, "RT101", "error", ("declared 8", "physical 4", "logical 4", "nodes.cpus: 4")),
    (fewer_cpus_than_at_setup, "RT101", "error", ("physical 2", "4 present, 2 allowed", "had 4")),
    (ray_counts_the_machine, "RT101", "error", ("logical 16", "the plan has 4", "cluster.yml")),
    (slot_on_a_cpu_ray_may_not_use, "RT102", "error", ("[2, 3]", "[0, 1]")),
    (limit_does_not_hold, "RT103", "error", ("cpu", "0 1", "raytools grant --user ray")),
    (declared_more_memory, "RT201", "error", ("declared 32 GiB", "physical 16 GiB", "memory: 16384MiB")),
    (ray_has_other_memory, "RT201", "error", ("logical 15 GiB", "the plan has 12 GiB")),
    (memory_limited_after_setup, "RT201", "error", ("limited by a cgroup", "had 16 GiB", "tolerance 1%")),
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
    (few_inodes, "RT501", "error", ("5000 inodes", "/tmp")),
    (storage_stalls, "RT502", "error", ("/mnt/raytools does not answer", "the server 192.0.2.12")),
    (nfs_not_mounted, "RT502", "error", ("192.0.2.12:/srv/raytools", "nothing is mounted", "storage.yml")),
    (shared_directory_gone, "RT502", "error", ("/shared is not there", "storage.path")),
    (address_gone, "RT602", "error", ("192.0.2.11", "192.0.2.99", "raytools_address")),
    (ray_down, "RT701", "error", ("Ray does not answer", "Connection refused")),
    (ray_says_dead, "RT701", "error", ("lists it as dead", "logs/ray.log")),
    (stranger_joined, "RT701", "error", ("192.0.2.77", "not in the inventory")),
    (flag_missing, "RT702", "error", ("RAY_task_oom_retries: declared 0", "not set", "ray.yml")),
    (flag_differs, "RT702", "error", ("declared 0", "in raylet 815 5")),
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
    elsewhere = {"RT400", "RT404", "RT601"}  # below
    assert {fault[1] for fault in FAULTS} | elsewhere == {check.code for check in CHECKS}


# --- what is no fault, and what cannot be judged -------------------------------------------------


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
