"""One lab of three hosts for all modules: bare, checked, provisioned once, taken down at the end.

The order of the modules is that of a cluster's life (their names: test_1_…, test_2_…). Each test leaves the
cluster healthy; where it cannot, `healed` lets the next one begin with a run of the playbook.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import CHECKOUT, HOSTS, Cluster, FirstRun

REUSE = os.environ.get("RAYTOOLS_LAB_REUSE") == "1"
"""For whoever writes tests: take the suite's lab as an earlier run has left it, and leave it running."""
LOGS = CHECKOUT / ".raytools" / "logs" / "lab-suite"


@pytest.fixture(scope="session")
def bare(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three hosts on which nothing of raytools is."""
    cluster = Cluster(os.environ.get("RAYTOOLS_LAB_NAME", "suite"))
    failed_before = request.session.testsfailed
    try:
        if not (REUSE and cluster.lab.addresses):
            cluster.create()
        yield cluster
    finally:
        if request.session.testsfailed > failed_before:
            keep_logs(cluster)
        if not REUSE:
            cluster.remove()


@pytest.fixture(scope="session")
def first(bare: Cluster) -> FirstRun:
    """Check mode from nothing, then the first real run. Its outcome is the tests' subject."""
    if REUSE and bare.raylet(HOSTS[0]):
        pytest.skip("a lab that is used again had its first run before")
    before = {host: bare.snapshot(host) for host in HOSTS}
    unlocked = bare.play("cluster", "--check")
    bare.take_lock()
    checked = bare.play("cluster", "--check")
    after = {host: bare.snapshot(host) for host in HOSTS}
    differences = [f"{host}: {line}" for host in HOSTS for line in sorted(before[host] ^ after[host])]
    played = bare.play("cluster", "-vvv", wait_s=900)
    return FirstRun(unlocked, checked, differences, played)


@pytest.fixture(scope="session")
def provisioned(bare: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """The cluster after its first run."""
    if REUSE and bare.raylet(HOSTS[0]):
        converged = bare.play("cluster")
        assert converged.exit_code == 0, converged.output
        return bare
    first: FirstRun = request.getfixturevalue("first")
    if first.played.exit_code != 0:
        pytest.fail(f"the first run failed:\n{first.played.output[-6000:]}")
    return bare


@pytest.fixture
def cluster(provisioned: Cluster) -> Iterator[Cluster]:
    """A healthy cluster, and healthy again for the next test even if this one failed."""
    yield provisioned
    provisioned.heal(30)


def keep_logs(cluster: Cluster) -> None:
    """Journals and Ray's logs of all hosts, before they go: .raytools/logs/lab-suite/<time>/."""
    directory = LOGS / time.strftime("%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    for host in cluster.lab.addresses:
        for name, script in _LOGS.items():
            text = cluster.sh(host, script, check=False) if cluster.lab.is_running(host) else "powered off"
            Path(directory, f"{host}-{name}").write_text(text)
    print(f"logs of the hosts: {directory}")


_LOGS = {
    "journal": "journalctl --no-pager --lines 1000",
    "ray.log": "tail -c 200000 /opt/raytools/logs/ray.log*",
    "session.log": "tail -n 80 /opt/raytools/ray/session_latest/logs/*.*",
    "state": "systemctl --no-pager status 'raytools-*'; ps -eo pid,user,etimes,args; df; ls -l /opt/raytools",
}
