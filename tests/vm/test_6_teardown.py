"""The end: nothing of raytools is left on a machine, also where the server of the storage is dead."""

from __future__ import annotations

import pytest

from tests.lab.cluster import ROOT, Cluster
from tests.vm.conftest import EXPORT, HOSTS, MOUNT, machine

pytestmark = pytest.mark.timeout(900)

SERVER, CLIENT = HOSTS


@pytest.mark.long
def test_a_worker_leaves_although_its_server_is_dead(provisioned: Cluster) -> None:
    cluster = provisioned
    cluster.sh(CLIENT, f"ls {MOUNT}/results")
    machine(cluster, SERVER).power_off()
    try:
        done = cluster.play("teardown", "--limit", CLIENT, "-e", "confirm=yes")
        assert done.exit_code == 0, done.output
        assert done.wall_s < 300  # it ends; systemd itself waits 30 s for the server
        look = f"ls /etc/systemd/system | grep mnt; grep -E '{MOUNT}|nfs4' /proc/mounts; ls -d {ROOT}"
        assert cluster.sh(CLIENT, f"{look} 2>/dev/null", check=False) == ""
    finally:
        machine(cluster, SERVER).start()


@pytest.mark.long
def test_what_storage_alone_has_made_is_taken_down_too(provisioned: Cluster) -> None:
    assert provisioned.play("storage").exit_code == 0
    done = provisioned.play("teardown", "--limit", CLIENT, "-e", "confirm=yes")
    assert done.exit_code == 0, done.output
    assert "nfs4" not in provisioned.sh(CLIENT, "cat /proc/mounts; ls /etc/systemd/system")


@pytest.mark.long
def test_what_runs_have_made_is_kept_if_that_is_asked_for(provisioned: Cluster) -> None:
    provisioned.sh(SERVER, f"echo kept > {EXPORT}/results/kept")
    done = provisioned.play("teardown", "-e", "confirm=yes", "-e", "keep_data=yes")
    assert done.exit_code == 0, done.output
    assert provisioned.sh(SERVER, f"cat {EXPORT}/results/kept") == "kept"
    assert provisioned.play("storage").exit_code == 0


@pytest.mark.long  # the lab of containers takes down all but mounts and exports
def test_teardown_leaves_neither_export_nor_mount_nor_server(provisioned: Cluster) -> None:
    done = provisioned.play("teardown", "-e", "confirm=yes")
    assert done.exit_code == 0, done.output
    for host in HOSTS:
        left = provisioned.sh(
            host,
            f"ls -d {EXPORT} {MOUNT} {ROOT} /etc/exports.d /sys/fs/cgroup/raytools.slice /run/lock/raytools; "
            f"grep -E '{MOUNT}|{EXPORT}|nfs4' /proc/mounts; ls /etc/systemd/system | grep -E 'mnt|raytools'; "
            "exportfs; systemctl is-active nfs-server | grep -v inactive; id ray; true",
        )
        assert left == "", host


@pytest.mark.long
def test_a_second_teardown_changes_nothing(provisioned: Cluster) -> None:
    provisioned.play("teardown", "-e", "confirm=yes").assert_nothing_changed(HOSTS)
