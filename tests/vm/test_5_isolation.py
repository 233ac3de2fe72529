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
        group = f"/sys/fs/cgroup{provisioned.unit(host)['ControlGroup']}"
        assert "ray-node_" not in provisioned.sh(host, f"ls {group}")


@pytest.mark.parametrize("host", HOSTS)
def test_rays_processes_have_memory_and_cpu_set_aside_below_the_unit(isolated: Cluster, host: str) -> None:
    group = f"/sys/fs/cgroup{isolated.unit(host)['ControlGroup']}"
    node = isolated.sh(host, f"ls -d {group}/ray-node_*")
    raylet = isolated.raylet(host)
    assert isolated.sh(host, f"grep -cx {raylet} {node}/system/leaf/cgroup.procs") == "1"
    assert isolated.sh(host, f"cat {node}/system/memory.min") == str(2**30)
    assert isolated.sh(host, f"cat {node}/system/cpu.weight {node}/user/cpu.weight") == "5000\n5000"


def test_limited_runs_are_beside_it_and_a_driver_from_outside_does_no_harm(isolated: Cluster) -> None:
    before = isolated.raylets()
    done = machine(isolated, HEAD).run(driver(isolated, "fill_slots.py"), wait_s=400)
    by_host = json.loads(done.stdout.splitlines()[-1])
    for host, (calm, greedy) in by_host.items():
        assert (calm["outcome"], greedy["outcome"]) == ("ok", "oom"), (host, calm, greedy)
        assert calm["enforced"]["missing"] == greedy["enforced"]["missing"] == []
    assert isolated.raylets() == before


def test_the_doctor_finds_nothing(isolated: Cluster) -> None:
    isolated.await_healthy(COMES_UP_S)
    report = isolated.raytools("doctor", "--threshold", "warning")
    assert report.exit_code == 0, report.output
