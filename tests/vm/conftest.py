"""One lab of two machines for all modules: bare, provisioned, taken down at the end.

The order of the modules is that of a cluster's life (their names: test_1_…, test_2_…). `make test-vm`
leaves out what is marked `long`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import CHECKOUT, ROOT, Cluster, Done
from tests.lab.machines import Lab, MachineSpec
from tests.lab.machines.machine import Machine

REUSE = os.environ.get("RAYTOOLS_LAB_REUSE") == "1"
"""For whoever writes tests: take the suite's lab as an earlier run has left it, and leave it running."""
HOSTS = ("n1", "n2")
HEAD, WORKER = HOSTS  # the head serves the storage
MOUNT, EXPORT = "/mnt/raytools", "/srv/raytools"
AS_RAY = "setpriv --reuid=ray --regid=ray --init-groups --reset-env --"
COMES_UP_S = 300.0  # all of Ray, emulated, on two processors of this machine for two machines
_PROGRAMS = Path(__file__).with_name("programs")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what its machines say of Ray at that moment: they are gone when it is read."""
    report = yield
    clusters = [one for one in item.funcargs.values() if isinstance(one, Cluster)]
    if call.when == "call" and report.failed and clusters:
        said = clusters[0].said_of_ray(set(clusters[0].lab.addresses.values()))
        report.sections.append(("what the machines say of Ray", said))
    return report


@pytest.fixture(scope="session")
def bare(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two machines on which nothing of raytools is; the first is the head."""
    name = os.environ.get("RAYTOOLS_LAB_NAME", "vm-suite")
    cluster = Cluster(name, lab=lambda path: Lab(name, checkout=path), hosts=HOSTS, pause_s=20.0)
    failed_before = request.session.testsfailed
    try:
        if not (REUSE and cluster.lab.addresses):
            cluster.create([MachineSpec(host) for host in HOSTS])
            yaml = cluster.lab.cluster_yaml
            text = yaml.read_text() + "slots: {per_node: 2}\n"
            if "not long" in request.config.getoption("-m"):
                text = _with_ray_alone(text)
            yaml.write_text(text)
        yield cluster
    finally:
        if request.session.testsfailed > failed_before:
            shutil.copytree(
                cluster.lab.keep_logs(), CHECKOUT / ".raytools" / "logs" / name, dirs_exist_ok=True
            )
        if not REUSE:
            cluster.remove()


@pytest.fixture(scope="session")
def built(bare: Cluster) -> Done:
    """The first run of the playbook. Its outcome is a test's subject."""
    return bare.play("cluster", wait_s=2100)  # the environment is built, if nobody has before


@pytest.fixture(scope="session")
def provisioned(bare: Cluster, built: Done) -> Cluster:
    """The cluster after its first run."""
    if built.exit_code != 0:
        pytest.fail(f"the first run failed:\n{built.output[-6000:]}")
    return bare


@pytest.fixture
def cluster(provisioned: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster, for tests that leave it healthy; after one that failed it is healed."""
    failed_before = request.session.testsfailed
    yield provisioned
    if request.session.testsfailed > failed_before:
        provisioned.heal(COMES_UP_S)


@pytest.fixture
def disturbed(provisioned: Cluster) -> Iterator[Cluster]:
    """The cluster, for tests that take something from it that it may still miss afterwards."""
    yield provisioned
    provisioned.heal(COMES_UP_S)


def _with_ray_alone(cluster_yaml: str) -> str:
    """Another environment: AutoGluon's GB would take minutes to copy and to verify. No Ray client either."""
    changed, count = re.subn(
        r'name: emulated(.*)\n  pip: \["ray\[[^=]*(==[^"]*)".*',
        r'name: core\1\n  pip: ["ray\2"]',
        cluster_yaml,
    )
    assert count == 1 or "emulated" not in cluster_yaml  # a machine that is not has the default one
    return changed


def machine(cluster: Cluster, host: str) -> Machine:
    """One machine, for all that can be done to it."""
    found = cluster.lab.machine(host)
    assert isinstance(found, Machine)
    return found


def driver(cluster: Cluster, program: str, *arguments: str) -> str:
    """The shell command that runs one of programs/ on the head, as a driver of the service account."""
    machine(cluster, HEAD).put({f"/opt/{program}": ((_PROGRAMS / program).read_text(), 0o644)})
    node = json.loads(cluster.sh(HEAD, f"cat {ROOT}/node.json"))
    python = f"{node['environment']['prefix']}/bin/python"
    inside = [python, "-m", "raytools.node", "driver", "--root", ROOT]
    return shlex.join(
        ["env", f"PYTHONPATH={node['toolkit']}", *inside, "python", f"/opt/{program}", *arguments]
    )
