"""From bare machines to a cluster that trains AutoGluon under limits of cgroup v2."""

from __future__ import annotations

import json

import pytest

from tests.lab.cluster import ROOT, Cluster, Done, told
from tests.vm.conftest import AS_RAY, HEAD, HOSTS, WORKER, driver, machine

pytestmark = pytest.mark.timeout(2400)

PROOFS = {"cpu", "memory", "processes", "time", "orphans", "confinement"}


def test_the_first_run_succeeds_on_every_machine(built: Done) -> None:
    assert built.exit_code == 0, built.output[-6000:]
    assert set(built.recap) == set(HOSTS)
    print(f"first run: {built.wall_s:.0f} s")


@pytest.mark.parametrize("host", HOSTS)
def test_ray_runs_below_a_unit_whose_groups_are_the_service_accounts(cluster: Cluster, host: str) -> None:
    unit = cluster.unit(host)
    assert (unit["ActiveState"], unit["User"], unit["Slice"]) == ("active", "ray", "raytools.slice")
    assert set(unit["DelegateControllers"].split()) == {"cpu", "cpuset", "memory", "pids"}
    group = f"/sys/fs/cgroup{unit['ControlGroup']}"
    assert cluster.sh(host, f"stat -c %U {group} {group}/cgroup.procs {group}/main").split() == ["ray"] * 3
    assert cluster.sh(host, f"cat {group}/cgroup.procs") == ""
    assert cluster.sh(host, f"grep -cx {cluster.raylet(host)} {group}/main/cgroup.procs") == "1"


def test_the_doctor_proves_every_node_and_finds_nothing_worse_than_info(cluster: Cluster) -> None:
    report = cluster.raytools("doctor", "--level", "prove", "--threshold", "warning", "--json", wait_s=900)
    assert report.faults == [], told(report.faults)
    print(f"doctor, level prove: {report.wall_s:.0f} s")


def test_a_second_run_changes_nothing(cluster: Cluster) -> None:
    before = cluster.raylets()
    again = cluster.play("cluster")
    assert again.exit_code == 0, again.output
    again.assert_nothing_changed(HOSTS)
    assert cluster.raylets() == before
    print(f"second run: {again.wall_s:.0f} s")


# --- limits ---


@pytest.mark.parametrize("user", ["root", "ray", "alice"])
def test_every_limit_is_proven(cluster: Cluster, user: str) -> None:
    node_code = f"env PYTHONPATH=$(ls {ROOT}/toolkit/*.zip) {ROOT}/envs/current/bin/python -m raytools.node"
    check = f"{node_code} run --check --json"
    if user == "ray":  # it has no log-in: a unit such as Ray's
        unit = (
            "systemd-run --quiet --pipe --uid=ray --slice=raytools.slice -p Delegate='cpuset cpu memory pids'"
        )
        check = f"{unit} {node_code} enter-main {check}"
    if user == "alice":
        cluster.sh(WORKER, f"{node_code} grant --user alice")
    try:
        shell = "alice" if user == "alice" else "root"
        done = machine(cluster, WORKER).run(check, user=shell, wait_s=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        table = json.loads(done.stdout)
        assert table["ok"] is True
        assert {row["limit"]: row["holds"] for row in table["limits"]} == dict.fromkeys(PROOFS, True), table
    finally:
        if user == "alice":
            cluster.sh(WORKER, f"{node_code} grant --user alice --revoke")


@pytest.mark.long
def test_a_run_that_wants_more_memory_than_its_slot_dies_alone(cluster: Cluster) -> None:
    before = cluster.raylets()
    done = machine(cluster, HEAD).run(driver(cluster, "fill_slots.py"), wait_s=400)
    by_host = json.loads(done.stdout.splitlines()[-1])
    assert set(by_host) == set(HOSTS)
    for host, (calm, greedy) in by_host.items():
        assert (calm["outcome"], greedy["outcome"]) == ("ok", "oom"), (host, calm, greedy)
        assert greedy["used"]["oom_kills"] >= 1
        assert calm["enforced"]["memory"] == calm["enforced"]["cpu"] == "cgroup-v2"
        assert calm["enforced"]["time"] == "cgroup.kill"
        assert calm["enforced"]["missing"] == greedy["enforced"]["missing"] == []
        assert 0.85 < calm["used"]["memory_peak_bytes"] / calm["limits"]["memory_bytes"] <= 1
        # the kernel lets the process that it is about to kill have some pages more
        assert greedy["used"]["memory_peak_bytes"] <= greedy["limits"]["memory_bytes"] + 2**20
        assert set(calm["limits"]["cpu_set"]).isdisjoint(greedy["limits"]["cpu_set"])
        assert calm["fairness"]["cpu_pressure_s"] is not None
        assert {calm["host"]["name"], greedy["host"]["name"]} == {host}
    assert cluster.raylets() == before, "Ray itself was hit"


@pytest.mark.long
@pytest.mark.timeout(2000)
def test_autogluon_trains_in_every_slot_and_is_limited_in_each(cluster: Cluster) -> None:
    smoke = cluster.raytools(
        "smoke", "--workload", "autogluon", "--dataset", "breast_cancer", "--models", "GBM,RF",
        "--set", "trees=20", "--folds", "0", "--time-limit", "300s", "--json", wait_s=1900,
    )  # fmt: skip
    assert smoke.exit_code == 0, smoke.output
    document = smoke.json()
    assert document["verdict"] == "pass"
    records = [run["record"] for run in document["runs"]]
    assert sorted((one["host"]["name"], one["host"]["slot"]) for one in records) == [
        (host, slot) for host in HOSTS for slot in (0, 1)
    ]
    for record in records:
        assert record["outcome"] == "ok", record
        assert record["enforced"]["cpu"] == record["enforced"]["memory"] == "cgroup-v2"
        assert record["enforced"]["missing"] == []
        assert record["used"]["memory_peak_bytes"] <= record["limits"]["memory_bytes"]
    left = cluster.sh(WORKER, f"ls {ROOT}; {AS_RAY} ls /sys/fs/cgroup/raytools.slice/*/", check=False)
    assert "rt-run-" not in left
    print(f"smoke autogluon in four slots: {smoke.wall_s:.0f} s")
