"""What goes wrong with hosts, connections and processes: one clear message each, or healed.

A clock that is wrong cannot be made here: all hosts have this machine's. tests/unit judges one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.cluster import HEAD, HOSTS, ROOT, Cluster, Done, until
from tests.lab.commands import run
from tests.lab.containers import HostSpec

pytestmark = pytest.mark.timeout(600)

AS_ALICE = "setpriv --reuid=alice --regid=alice --init-groups --reset-env --"


def worker(data: dict, name: str) -> dict:  # type: ignore[type-arg]
    host: dict = data["workers"]["hosts"][name]  # type: ignore[type-arg]
    return host


def preflight(cluster: Cluster, path: Path | None = None) -> Done:
    """What forbids the cluster, as `raytools preflight` says it."""
    return cluster.raytools("preflight", inventory=path)


def log_ins(cluster: Cluster) -> list[str]:
    return [
        cluster.sh(host, "journalctl -u ssh --no-pager | grep -c Accepted", check=False) for host in HOSTS
    ]


# --- what the inventory says: no host is asked ---


def test_two_heads_are_refused_before_any_host_is_asked(cluster: Cluster) -> None:
    before = log_ins(cluster)
    with cluster.changed_inventory(
        lambda data: data["head"]["hosts"].update(n2=data["workers"]["hosts"].pop("n2"))
    ) as path:
        done = preflight(cluster, path)
    assert done.exit_code == 2
    assert "n1" in done.said
    assert "n2" in done.said
    assert "head" in done.said
    assert log_ins(cluster) == before


def test_one_host_in_both_groups_is_refused(cluster: Cluster) -> None:
    with cluster.changed_inventory(lambda data: data["workers"]["hosts"].update(n1={})) as path:
        done = preflight(cluster, path)
    assert done.exit_code == 2
    assert "n1" in done.said


def test_two_names_with_one_address_are_refused_before_any_host_is_asked(cluster: Cluster) -> None:
    before = log_ins(cluster)
    address = cluster.lab.addresses["n3"]
    with cluster.changed_inventory(lambda data: worker(data, "n2").update(ansible_host=address)) as path:
        done = cluster.play("preflight", inventory=path)
    assert done.exit_code != 0
    assert address in done.said
    assert "n2" in done.said
    assert "n3" in done.said
    assert log_ins(cluster) == before


# --- connections ---


def test_a_wrong_key_is_told_with_user_and_what_to_check(cluster: Cluster) -> None:
    other = cluster.directory / "other_key"
    if not other.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)])
    with cluster.changed_inventory(
        lambda data: worker(data, "n2").update(ansible_ssh_private_key_file=str(other))
    ) as path:
        done = preflight(cluster, path)
    assert done.exit_code == 1
    assert "n2 (" in done.said
    assert "refused to log admin in" in done.said
    assert "ansible_ssh_private_key_file" in done.said
    assert "n3 (worker): possible" in done.said


def test_a_changed_host_key_is_told_with_the_command_that_forgets_it(cluster: Cluster) -> None:
    addresses = cluster.lab.addresses

    def swap(text: str) -> str:
        keys = {line.split()[0]: line.split()[2] for line in text.splitlines()}
        return text.replace(keys[addresses["n2"]], keys[addresses["n3"]])

    with cluster.changed_file(cluster.lab.known_hosts, swap):
        done = cluster.play("preflight")
    assert done.exit_code != 0
    assert f"ssh-keygen -R {addresses['n2']}" in done.said
    assert done.recap["n2"].failed == 1
    assert done.recap["n3"].failed == 0


def test_a_host_key_that_is_not_known_is_told_with_the_command_that_accepts_it(cluster: Cluster) -> None:
    def forget(text: str) -> str:
        return "".join(
            f"{line}\n" for line in text.splitlines() if not line.startswith(cluster.lab.addresses["n2"])
        )

    with cluster.changed_file(cluster.lab.known_hosts, forget):
        done = preflight(cluster)
    assert done.exit_code == 1
    assert "the host key is not known" in done.said
    assert "StrictHostKeyChecking=ask" in done.said


def test_an_account_that_may_not_become_root_is_told(cluster: Cluster) -> None:
    cluster.sh("n2", "mv /etc/sudoers.d/lab /root/lab-sudoers")
    try:
        done = preflight(cluster)
    finally:
        cluster.sh("n2", "mv /root/lab-sudoers /etc/sudoers.d/lab")
    assert done.exit_code == 1
    assert "n2 (worker): not possible" in done.said
    assert "sudo" in done.said
    assert "ansible_become" in done.said


def test_a_host_without_python_is_told(cluster: Cluster) -> None:
    before = cluster.lab.hosts
    cluster.lab.up([*before, HostSpec("n4", without=("python3",))])
    try:
        done = preflight(cluster)
    finally:
        cluster.lab.up(before)
    assert done.exit_code == 1
    assert "n4 (worker): not possible" in done.said
    assert "python3" in done.said.lower()
    assert "n3 (worker): possible" in done.said


def test_two_names_for_one_machine_are_refused(cluster: Cluster) -> None:
    n3 = cluster.lab.addresses["n3"]
    second = f"{n3.rpartition('.')[0]}.99"
    cluster.sh("n3", f"ip address add {second}/24 dev eth0")
    key = next(line for line in cluster.lab.known_hosts.read_text().splitlines() if line.startswith(f"{n3} "))
    try:
        with (
            cluster.changed_file(cluster.lab.known_hosts, lambda text: text + key.replace(n3, second) + "\n"),
            cluster.changed_inventory(
                lambda data: data["workers"]["hosts"].update(n4={"ansible_host": second})
            ) as path,
        ):
            done = preflight(cluster, path)
    finally:
        cluster.sh("n3", f"ip address delete {second}/24 dev eth0")
    assert done.exit_code == 1
    assert "it is the same machine as n3" in done.said


# --- hosts: nothing is changed on any of them ---


def test_a_full_disk_stops_the_playbook_before_any_host_is_changed(cluster: Cluster) -> None:
    cluster.sh("n2", "mkdir -p /small && mount -t tmpfs -o size=200m tmpfs /small")
    try:
        with cluster.changed_inventory(
            lambda data: data["all"]["vars"].update(raytools_root="/small")
        ) as path:
            done = cluster.play("cluster", inventory=path)
    finally:
        cluster.sh("n2", "umount /small && rmdir /small")
    assert done.exit_code != 0
    assert (
        "the disk of /small has 200.0 MiB free" in done.said or "the disk of /small has 200 MiB" in done.said
    )
    assert "Make room" in done.said
    done.assert_nothing_changed()
    assert [cluster.sh(host, "ls -d /small", check=False) for host in HOSTS] == ["", "", ""]


def test_a_busy_port_is_told_with_process_pid_and_user(cluster: Cluster) -> None:
    program = "import socket,time; s=socket.socket(); s.bind(('', 10201)); s.listen(); time.sleep(600)"
    cluster.sh("n2", f'setsid {AS_ALICE} python3 -c "{program}" >/dev/null 2>&1 &')
    until(lambda: cluster.sh("n2", "ss -Hltn 'sport = :10201'"), 10, "it listens")
    pid = cluster.sh("n2", "ss -Hltnp 'sport = :10201' | sed 's/.*pid=//; s/,.*//'")
    try:
        with cluster.changed_file(cluster.lab.cluster_yaml, with_port):
            done = cluster.play("cluster")
    finally:
        cluster.sh("n2", f"kill {pid}")
    assert done.exit_code != 0
    assert f"port 10201 (node_manager) is held by python3 (pid {pid}) of user alice" in done.said
    done.assert_nothing_changed()


def with_port(text: str) -> str:
    return text + "ray:\n  ports: {node_manager: 10201}\n"


def test_rays_isolation_is_refused_with_the_cause_where_it_cannot_work(cluster: Cluster) -> None:
    with cluster.changed_file(cluster.lab.cluster_yaml, lambda text: text + "ray: {isolation: true}\n"):
        refused = cluster.play("cluster")
    assert refused.exit_code != 0
    assert "ray.isolation: true needs cgroup v2 alone, found" in refused.said
    refused.assert_nothing_changed()


@pytest.mark.long  # noted: one of the doctor's faults; refused: tests/local/test_ray_service.py
def test_another_users_ray_is_noted_and_on_our_ports_refused(cluster: Cluster) -> None:
    start = (
        f"{ROOT}/envs/current/bin/ray start --head --port=7001 --node-manager-port=10201 --num-cpus=1 "
        "--min-worker-port=21000 --max-worker-port=21100 --ray-client-server-port=10011 "
        "--include-dashboard=false --object-store-memory=80000000 --temp-dir=/tmp/ray-of-alice"
    )
    cluster.sh("n2", f"cd /tmp && {AS_ALICE} env RAY_AUTH_MODE=disabled PATH=$PATH {start} >/dev/null 2>&1")
    before = cluster.raylets()
    try:
        with_other_ports = cluster.play("cluster")
        with cluster.changed_file(cluster.lab.cluster_yaml, with_port):
            on_ours = preflight(cluster)
    finally:
        cluster.sh("n2", "kill -9 $(ps -o pid= -u alice); rm -rf /tmp/ray-of-alice; true")
    assert with_other_ports.exit_code == 0, with_other_ports.output
    assert "there is another Ray of user alice" in with_other_ports.said
    assert cluster.raylets() == before
    assert on_ours.exit_code == 1
    assert "port 10201 (node_manager) is held by raylet" in on_ours.said
    assert "of user alice" in on_ours.said


# --- processes that die ---


@pytest.mark.parametrize("host", [HEAD, pytest.param("n2", marks=pytest.mark.long)])
def test_a_raylet_that_is_killed_is_back_without_a_person(cluster: Cluster, host: str) -> None:
    before = cluster.raylet(host)
    cluster.sh(host, f"kill -9 {before}")
    took_s = until(lambda: cluster.raylet(host) not in (None, before), 60, f"a raylet on {host}")
    took_s += cluster.await_healthy(90)
    print(f"raylet of {host} killed: all alive after {took_s:.1f} s")
    cluster.play("cluster").assert_nothing_changed()


def test_a_ray_whose_main_process_is_killed_is_back_and_leaves_no_process(cluster: Cluster) -> None:
    before = cluster.raylet("n2")
    cluster.sh("n2", f"kill -9 {cluster.unit('n2')['MainPID']}")
    took_s = until(lambda: cluster.raylet("n2") not in (None, before), 60, "a raylet on n2")
    took_s += cluster.await_healthy(90)
    print(f"main process killed: all alive after {took_s:.1f} s")
    assert len(cluster.processes_named("n2", "raylet")) == 1


def test_a_playbook_waits_for_a_ray_that_is_being_started(cluster: Cluster) -> None:
    unit = cluster.unit_name
    drop_in = f"/etc/systemd/system/{unit}.d"
    slow = f"mkdir -p {drop_in} && printf '[Service]\\nExecStartPre=/bin/sleep 30\\n' >{drop_in}/slow.conf"
    cluster.sh("n2", f"{slow} && systemctl daemon-reload && systemctl restart --no-block {unit}")
    try:
        until(lambda: cluster.unit("n2")["ActiveState"] == "activating", 60, "a start that is under way")
        begun = cluster.unit("n2")["InvocationID"]
        cluster.play("cluster").assert_nothing_changed()
        found = cluster.unit("n2")
    finally:
        cluster.sh("n2", f"rm -r {drop_in}; systemctl daemon-reload")
    assert (found["ActiveState"], found["InvocationID"]) == ("active", begun)
    cluster.await_healthy(90)


# --- hosts and controllers that die ---


def test_a_host_that_is_down_is_named_and_the_others_are_finished(cluster: Cluster) -> None:
    cluster.lab.power_off("n3", hard=True)
    try:
        done = cluster.play("cluster")
    finally:
        cluster.lab.power_on("n3")
    assert done.exit_code != 0
    assert done.recap["n3"].failed == 1
    assert done.recap["n1"].failed == done.recap["n2"].failed == 0, done.output
    assert "n3" in done.output.partition("PLAY [Verify]")[2].partition("PLAY RECAP")[0]
    assert f"n3 ({cluster.lab.addresses['n3']} port 22)" in done.said
    print(f"with a host that is down: {done.wall_s:.0f} s")
    cluster.await_healthy(90)
    cluster.play("cluster").assert_nothing_changed()


def test_a_controller_that_is_interrupted_leaves_what_the_next_run_completes(cluster: Cluster) -> None:
    cluster.sh("n2", f"rm {ROOT}/stamps/*.json {ROOT}/node.json /etc/systemd/system/raytools.slice")
    with cluster.playing("cluster") as process:
        log = cluster.directory / "playing.log"
        until(lambda: "PLAY [Node]" in log.read_text(), 120, "the node play")
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # seen once with ansible-core 2.19; a person presses Ctrl-C again
            print(f"still there 30 s after Ctrl-C:\n{log.read_text()[-2000:]}")
            os.killpg(process.pid, signal.SIGINT)
            process.wait(30)
    done = cluster.play("cluster")
    assert done.exit_code == 0, done.output
    cluster.play("cluster").assert_nothing_changed()


@pytest.mark.long
def test_an_installation_that_is_cut_off_is_completed_by_the_next_run(cluster: Cluster) -> None:
    """The controller is killed and the host loses power while files are unpacked."""
    cluster.sh("n3", f"systemctl stop {cluster.unit_name}; rm -rf {ROOT}/envs/automl-* ")
    part = f"ls -d {ROOT}/envs/.*.part-*/bin"
    with cluster.playing("cluster") as process:
        until(lambda: cluster.sh("n3", part, check=False), 180, "unpacking on n3")
        time.sleep(1)
        os.killpg(process.pid, signal.SIGKILL)
        cluster.lab.power_off("n3", hard=True)
    cluster.lab.power_on("n3")
    assert cluster.sh("n3", part, check=False), "it was interrupted in the middle"
    assert cluster.sh("n3", f"ls -d {ROOT}/envs/automl-*", check=False) == ""
    assert cluster.alive() == {cluster.lab.addresses[host] for host in ("n1", "n2")}
    done = cluster.play("cluster")
    assert done.exit_code == 0, done.output
    assert done.recap["n1"].changed == done.recap["n2"].changed == 0
    assert cluster.sh("n3", "find /opt/raytools/envs -maxdepth 1 -name '.*part*'") == ""
    assert cluster.raytools("doctor").exit_code == 0


def test_the_cluster_is_as_it_was_before_the_faults(cluster: Cluster) -> None:
    report = cluster.raytools("doctor", "--threshold", "warning")
    assert report.exit_code == 0, report.output
