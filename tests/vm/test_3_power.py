"""Power failures: the cluster comes back without a person, and a run that was lost is recorded as lost."""

from __future__ import annotations

import json
import threading

import pytest

from tests.lab.cluster import Cluster, until
from tests.vm.conftest import COMES_UP_S, HEAD, HOSTS, WORKER, driver, machine

pytestmark = pytest.mark.timeout(1200)

RECORDS = "/mnt/raytools/records"


def loses_power(cluster: Cluster, host: str) -> None:
    """Its plug is pulled, if it was not yet, and put back."""
    if cluster.lab.is_running(host):
        machine(cluster, host).power_off()
    machine(cluster, host).start()


def records(cluster: Cluster) -> dict[str, str]:
    """Name -> text of every record in the storage."""
    listed = cluster.sh(HEAD, f"cd {RECORDS} && grep -H '' *.json 2>/dev/null", check=False)
    found: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, text = line.partition(":")
        found[name] = found.get(name, "") + text
    return found


@pytest.mark.long
def test_a_run_on_a_worker_without_power_is_recorded_as_lost_and_done_elsewhere(disturbed: Cluster) -> None:
    cluster = disturbed
    known = records(cluster)
    command = driver(cluster, "outlive_a_node.py", WORKER)
    said: list[str] = []
    driving = threading.Thread(
        target=lambda: said.append(machine(cluster, HEAD).run(command, wait_s=600).stdout)
    )
    driving.start()
    until(lambda: records(cluster).keys() - known.keys(), 180, "the run's first record")
    machine(cluster, WORKER).power_off()
    # Ray's health check takes a minute; the driver's own connection is given up after 30 s + 60 s
    driving.join(300)
    assert said, "the driver did not end"
    answer = json.loads(said[0].splitlines()[-1])
    assert answer["value"] == HEAD
    assert (answer["record"]["outcome"], answer["record"]["attempt"]) == ("ok", 2)
    new = [json.loads(text) for name, text in records(cluster).items() if name not in known]
    assert {(one["host"]["name"], one["attempt"], one["outcome"]) for one in new} == {
        (WORKER, 1, "lost"),
        (HEAD, 2, "ok"),
    }
    cluster.assert_comes_back((WORKER,), lambda host: loses_power(cluster, host), COMES_UP_S)


@pytest.mark.long
@pytest.mark.parametrize("hosts", [(HEAD,), HOSTS], ids=["head", "both"])
def test_after_a_power_failure_the_cluster_comes_back(disturbed: Cluster, hosts: tuple[str, ...]) -> None:
    disturbed.assert_comes_back(hosts, lambda host: loses_power(disturbed, host), COMES_UP_S)


@pytest.mark.long
def test_then_a_run_of_the_playbook_finds_nothing_to_do(cluster: Cluster) -> None:
    done = cluster.play("cluster")
    assert done.exit_code == 0, done.output
    done.assert_nothing_changed(HOSTS)
