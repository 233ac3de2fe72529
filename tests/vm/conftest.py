"""One lab of two machines for all modules: bare, storage, provisioned, taken down at the end.

The order of the modules is that of a cluster's life (their names: test_1_…, test_2_…).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.lab.machines import Lab, MachineSpec

REUSE = os.environ.get("RAYTOOLS_LAB_REUSE") == "1"
"""For whoever writes tests: take the suite's lab as an earlier run has left it, and leave it running."""
HOSTS = ("n1", "n2")


@pytest.fixture(scope="session")
def bare(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two machines on which nothing of raytools is; the first is the head."""
    name = os.environ.get("RAYTOOLS_LAB_NAME", "vm-suite")
    cluster = Cluster(name, lab=lambda directory: Lab(name, checkout=directory))
    failed_before = request.session.testsfailed
    try:
        if not (REUSE and cluster.lab.addresses):
            cluster.create([MachineSpec(host) for host in HOSTS])
        yield cluster
    finally:
        if request.session.testsfailed > failed_before:
            print(f"what the machines said: {cluster.lab.keep_logs()}")
        if not REUSE:
            cluster.remove()


@pytest.fixture(scope="session")
def stored(bare: Cluster) -> Cluster:
    """The machines with shared storage, and nothing else yet."""
    done = bare.play("storage")
    assert done.exit_code == 0, done.output
    return bare
