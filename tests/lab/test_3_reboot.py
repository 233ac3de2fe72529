"""Hosts that reboot come back into the cluster without a person."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.cluster import HEAD, HOSTS, NOTHING, Cluster, until

pytestmark = pytest.mark.timeout(600)

LIMIT_S = 150  # quiet: a quarter of it


def comes_back(cluster: Cluster, hosts: tuple[str, ...]) -> None:
    """Reboots hosts at once; all raylets of a new cluster, or the new ones of the old, are alive in time."""
    before = cluster.raylets()
    with ThreadPoolExecutor() as pool:
        list(pool.map(cluster.lab.reboot, hosts))
    others = [host for host in HOSTS if host not in hosts]
    if HEAD in hosts:  # the others' raylets belong to a head that is gone: they end, and begin anew
        until(
            lambda: all(cluster.raylet(host) not in (None, before[host]) for host in others),
            LIMIT_S,
            f"new raylets on {', '.join(others)}",
        )
    took_s = cluster.await_healthy(LIMIT_S)
    print(f"{', '.join(hosts)} rebooted: all alive {took_s:.1f} s after sshd was up again")
    if HEAD not in hosts:
        assert all(cluster.raylet(host) == before[host] for host in others)
    report = cluster.raytools("doctor", "--threshold", "warning")
    assert report.exit_code == 0, report.output


def test_a_worker_that_reboots_joins_again(cluster: Cluster) -> None:
    comes_back(cluster, ("n2",))


def test_a_head_that_reboots_gets_its_workers_back(cluster: Cluster) -> None:
    comes_back(cluster, (HEAD,))


def test_all_hosts_at_once(cluster: Cluster) -> None:
    comes_back(cluster, HOSTS)


def test_a_run_of_the_playbook_finds_nothing_to_do_afterwards(cluster: Cluster) -> None:
    done = cluster.play("cluster")
    assert done.exit_code == 0, done.output
    assert done.changed == NOTHING, done.output
