"""NFS: one machine serves it to the cluster's nodes, all use it, and whoever dies comes back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster, until
from tests.lab.workload_faults import batches_of, newest, smoke
from tests.vm.conftest import AS_RAY, EXPORT, HOSTS, MOUNT, machine

pytestmark = pytest.mark.timeout(900)

SERVER, CLIENT = HOSTS
# a line a second, each on disk before the next
WRITER = (
    "import os,time\n"
    f"f=open('{MOUNT}/results/lines','w')\n"
    "for n in range(10000):\n"
    " f.write(f'{n} {time.monotonic():.1f}\\n'); f.flush(); os.fsync(f.fileno()); time.sleep(1)\n"
)


@contextlib.contextmanager
def writing(cluster: Cluster) -> Iterator[None]:
    """A program of the service account that writes to the server while the block runs, seen by the server."""
    cluster.sh(CLIENT, f"cat > /opt/writer.py <<'PYTHON'\n{WRITER}\nPYTHON")
    cluster.sh(CLIENT, f"systemd-run --quiet --unit=writer {AS_RAY} python3 /opt/writer.py")
    try:
        until(lambda: lines(cluster) > 2, 60, "lines of the writer")
        yield
    finally:
        end = "systemctl kill --signal=KILL writer; systemctl stop writer; systemctl reset-failed writer"
        cluster.sh(CLIENT, f"{end}; rm -f /opt/writer.py", check=False)


def lines(cluster: Cluster) -> int:
    """How many lines have arrived at the server."""
    return int(cluster.sh(SERVER, f"wc -l < {EXPORT}/results/lines", check=False) or 0)


def assert_all_arrived(cluster: Cluster) -> None:
    numbers = [int(n) for n in cluster.sh(SERVER, f"cut -d' ' -f1 {EXPORT}/results/lines").split()]
    assert numbers == list(range(len(numbers)))
    assert cluster.sh(CLIENT, "systemctl is-active writer", check=False) == "active"


def test_the_server_exports_to_the_nodes_alone_and_each_writes_what_all_read(cluster: Cluster) -> None:
    exported = cluster.sh(SERVER, f"exportfs -s | grep '^{EXPORT} '").splitlines()
    assert {line.split()[1].partition("(")[0] for line in exported} == set(cluster.lab.addresses.values())
    assert all("root_squash" in line for line in exported)
    for host in HOSTS:
        cluster.sh(host, f"{AS_RAY} sh -c 'echo {host} > {MOUNT}/results/by-{host}'")
    for host in HOSTS:
        seen = cluster.sh(host, f"{AS_RAY} cat {MOUNT}/results/by-n1 {MOUNT}/results/by-n2")
        assert seen.split() == list(HOSTS)
        owners = cluster.sh(host, f"stat -c %U:%u {MOUNT}/results {MOUNT}/results/by-*")
        assert set(owners.split()) == {"ray:60990"}
    kind = cluster.sh(CLIENT, f"findmnt --noheadings --types nfs4 --output SOURCE,OPTIONS {MOUNT}")
    assert kind.startswith(f"{cluster.lab.addresses[SERVER]}:{EXPORT} ")
    assert {"vers=4.2", "hard", "noatime"} <= set(kind.split()[1].split(","))
    refused = cluster.sh(CLIENT, f"touch {MOUNT}/results/by-root 2>&1", check=False)
    assert "Permission denied" in refused  # root of a node is nobody there


def test_a_server_that_is_away_for_a_minute_makes_its_clients_wait_and_nothing_is_lost(
    disturbed: Cluster,
) -> None:
    with writing(disturbed):
        before = lines(disturbed)
        with machine(disturbed, SERVER).paused():
            time.sleep(60)
        healed_s = until(lambda: lines(disturbed) > before + 3, 150, "the writer goes on")
        print(f"the writer went on {healed_s:.1f} s after the server was back")
        assert_all_arrived(disturbed)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_workload_waits_for_a_server_that_is_away_for_a_minute_and_no_model_is_lost(
    disturbed: Cluster,
) -> None:
    arguments = (
        "--workload",
        "many-models",
        "--set",
        "fit=ridge",
        "--set",
        "models=6000",
        "--set",
        "batch=100",
    )
    with smoke(disturbed, *arguments, "--set", "methods=tasks") as running:
        running.until_said("tasks: running: 6000 models in", 600)
        directory = newest(disturbed, "many-models", f"{MOUNT}/results")
        until(lambda: batches_of(disturbed, directory, "tasks") > 5, 300, "batches")
        disturbed.sh(SERVER, "systemctl stop nfs-server")
        try:
            time.sleep(60)
            assert running.process.poll() is None, running.said()
        finally:
            disturbed.sh(SERVER, "systemctl start nfs-server")
        began = time.monotonic()
        document = running.document(900)
    print(f"many-models ended {time.monotonic() - began:.0f} s after the server was back")
    assert document["verdict"] == "pass", document["reasons"]
    (run,) = document["runs"]
    metrics = run["metrics"]
    assert (metrics["models"], metrics["models_missing"], metrics["models_repeated"]) == (6000, 0, 0)
    assert metrics["nodes"] == list(HOSTS)


@pytest.mark.long
def test_a_server_that_reboots_makes_its_clients_wait_and_nothing_is_lost(disturbed: Cluster) -> None:
    with writing(disturbed):
        machine(disturbed, SERVER).power_off()
        before = time.monotonic()
        machine(disturbed, SERVER).start()
        booted_s = time.monotonic() - before
        count = lines(disturbed)
        healed_s = until(lambda: lines(disturbed) > count + 3, 240, "the writer goes on")
        print(f"booted in {booted_s:.0f} s; the writer went on {healed_s:.1f} s later")
        assert_all_arrived(disturbed)


@pytest.mark.long
@pytest.mark.parametrize("order", [(CLIENT,), (CLIENT, SERVER)], ids=["client", "client before server"])
def test_after_power_failures_the_storage_is_there_again(disturbed: Cluster, order: tuple[str, ...]) -> None:
    for host in order:
        machine(disturbed, host).power_off()
    for host in order:  # a client that is up before its server must not give up
        machine(disturbed, host).start()
    until(
        lambda: disturbed.sh(CLIENT, f"timeout 20 cat {MOUNT}/results/by-n1", check=False) == "n1",
        240,
        "what was stored is read",
    )
    again = disturbed.play("storage")
    assert again.exit_code == 0, again.output
    again.assert_nothing_changed(HOSTS)


@pytest.mark.long
def test_a_dead_server_is_named_and_keeps_nobody_waiting(disturbed: Cluster) -> None:
    disturbed.sh(CLIENT, f"ls {MOUNT}/results")
    machine(disturbed, SERVER).power_off()
    try:
        began = time.monotonic()
        refused = disturbed.raytools("preflight")
        assert refused.exit_code != 0
        assert "n1" in refused.said
        assert time.monotonic() - began < 60
    finally:
        machine(disturbed, SERVER).start()
