"""Hosts that reboot come back into the cluster without a person."""

from __future__ import annotations

import pytest

from tests.lab.cluster import HEAD, HOSTS, Cluster

pytestmark = pytest.mark.timeout(600)

LIMIT_S = 150  # quiet: a quarter of it


def test_a_worker_that_reboots_joins_again(cluster: Cluster) -> None:
    cluster.assert_comes_back(("n2",), cluster.lab.reboot, LIMIT_S)


def test_a_head_that_reboots_gets_its_workers_back(cluster: Cluster) -> None:
    cluster.assert_comes_back((HEAD,), cluster.lab.reboot, LIMIT_S)


@pytest.mark.long
def test_all_hosts_at_once(cluster: Cluster) -> None:
    cluster.assert_comes_back(HOSTS, cluster.lab.reboot, LIMIT_S)


def test_a_run_of_the_playbook_finds_nothing_to_do_afterwards(cluster: Cluster) -> None:
    done = cluster.play("cluster")
    assert done.exit_code == 0, done.output
    done.assert_nothing_changed()
