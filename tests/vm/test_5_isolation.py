"""`ray.isolation: true`: Ray sets its own processes apart from its workers, and runs lie beside both."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.vm.conftest import COMES_UP_S, HEAD, HOSTS, driver, machine

pytestmark = [pytest.mark.timeout(1500), pytest.mark.long]


@pytest.fixture(scope="module")
def isolated(provisioned: Cluster) -> Iterator[Cluster]:
    """The cluster with that option; afterwards as it was."""
    with provisioned.changed_file(
        provisioned.lab.cluster_yaml, lambda text: text.replace("ray:\n", "ray:\n  isolation: true\n", 1)
    ):
        done = provisioned.play("cluster", wait_s=900)
        assert done.exit_code == 0, done.output
        yield provisioned
    assert provisioned.play("cluster", wait_s=900).exit_code == 0
    for host in HOSTS:
        assert "ray-node_" not in provisioned.sh(host, f"ls {group_of(provisioned, host)}")


def group_of(cluster: Cluster, host: str) -> str:
    """The directory of Ray's unit there."""
    return f"/sys/fs/cgroup{cluster.unit(host)['ControlGroup']}"


@pytest.mark.parametrize("host", HOSTS)
def test_rays_processes_have_memory_and_cpu_set_aside_below_the_unit(isolated: Cluster, host: str) -> None:
    node = isolated.sh(host, f"ls -d {group_of(isolated, host)}/ray-node_*")
    raylet = isolated.raylet(host)
    assert isolated.sh(host, f"grep -cx {raylet} {node}/system/leaf/cgroup.procs") == "1"
    assert isolated.sh(host, f"cat {node}/system/memory.low") == str(2**30)  # of 2.58; memory.min before
    upper_bounds = isolated.sh(host, f"cat {node}/user/memory.max {node}/user/memory.high").split()
    assert any(bound.isdigit() for bound in upper_bounds), upper_bounds
    assert isolated.sh(host, f"cat {node}/system/cpu.weight {node}/user/cpu.weight") == "5000\n5000"


def test_a_driver_that_begins_inside_has_limited_runs_beside_rays_groups(isolated: Cluster) -> None:
    before = isolated.raylets()
    done = machine(isolated, HEAD).run(driver(isolated, "fill_slots.py"), wait_s=400)
    by_host = json.loads(done.stdout.splitlines()[-1])
    assert set(by_host) == set(HOSTS)
    for host, (calm, greedy) in by_host.items():
        assert (calm["outcome"], greedy["outcome"]) == ("ok", "oom"), (host, calm, greedy)
        assert calm["enforced"]["missing"] == greedy["enforced"]["missing"] == []
    assert isolated.raylets() == before


def test_a_ray_client_begins_inside_by_itself(isolated: Cluster) -> None:
    before = isolated.raylets()
    address = f"{isolated.lab.addresses[HEAD]}:10001"
    done = machine(isolated, HEAD).run(driver(isolated, "as_client.py", address), wait_s=300)
    assert "/ray-node_" in done.stdout, done.stdout + done.stderr
    assert isolated.raylets() == before


def test_the_doctor_proves_every_node_after_limited_runs(isolated: Cluster) -> None:
    """They leave each group of the unit CPUs of its own: Ray may no longer move what root has started."""
    isolated.await_healthy(COMES_UP_S)
    before = isolated.raylets()
    report = isolated.raytools("doctor", "--level", "prove", "--threshold", "warning", wait_s=900)
    assert report.exit_code == 0, report.output
    assert isolated.raylets() == before
