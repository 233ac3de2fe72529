"""What changes in a cluster's life: flags, nodes, environments, its end. The last test takes it down."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab.cluster import HEAD, HOSTS, NOTHING, ROOT, Cluster, until

pytestmark = pytest.mark.timeout(900)

OTHER_RAY = "2.58.0"
AS_RAY = "setpriv --reuid=ray --regid=ray --init-groups --reset-env"
DRIVER = """
import os, sys, time
os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"] = "token", "{root}/token"
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(address="{gcs}", logging_level="ERROR")
nodes = {{one["NodeManagerAddress"]: one["NodeID"] for one in ray.nodes() if one["Alive"]}}
@ray.remote
def work():
    open("/tmp/working", "w").close()
    until = time.monotonic() + {seconds}
    while time.monotonic() < until and not os.path.exists("/tmp/enough"):
        time.sleep(0.2)
    return "finished"
print(ray.get(work.options(scheduling_strategy=On(nodes["{address}"], soft=False)).remote()), flush=True)
time.sleep(600)
"""


def in_section(section: str, line: str) -> str:
    return f"{section}:\n  {line}\n"


@contextlib.contextmanager
def working(cluster: Cluster, host: str, seconds: int) -> Iterator[Path]:
    """A driver on the head whose one task runs on a host; it prints `finished` when the task has ended.

    The task ends after `seconds`, or when there is a file /tmp/enough on that host.
    """
    text = DRIVER.format(
        root=ROOT,
        gcs=f"{cluster.lab.addresses[HEAD]}:6379",
        address=cluster.lab.addresses[host],
        seconds=seconds,
    )
    said = cluster.directory / "driver.log"
    cluster.sh(host, "rm -f /tmp/working /tmp/enough")
    cluster.sh(HEAD, f"cat > /opt/driver.py <<'PYTHON'\n{text}\nPYTHON")
    with said.open("w") as log:
        process = subprocess.Popen(
            ["podman", "exec", cluster.lab.container(HEAD), *AS_RAY.split(),
             f"{ROOT}/envs/current/bin/python", "/opt/driver.py"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: cluster.sh(host, "ls /tmp/working", check=False), 60, f"a task on {host}")
        yield said
    finally:
        cluster.sh(HEAD, "pkill -KILL -f /opt/[d]river.py; rm -f /opt/driver.py", check=False)
        cluster.sh(host, "rm -f /tmp/working /tmp/enough", check=False)
        process.wait(30)


# --- a flag ---


def test_a_restart_that_would_end_somebodys_driver_is_refused_before_anything_changes(
    cluster: Cluster,
) -> None:
    before = cluster.raylets()
    plan = cluster.sh("n2", f"sha256sum {ROOT}/node.json")
    flag = in_section("ray", "env: {RAYTOOLS_LAB_FLAG: one}")
    with (
        working(cluster, "n2", 600),
        cluster.changed_file(cluster.lab.cluster_yaml, lambda text: text + flag),
    ):
        refused = cluster.play("cluster")
    assert refused.exit_code != 0
    assert "restarting it would end: " in refused.said
    assert "/opt/driver.py" in refused.said
    assert "-e ray_restart_busy=true" in refused.said
    refused.assert_nothing_changed()
    assert cluster.raylets() == before
    assert cluster.sh("n2", f"sha256sum {ROOT}/node.json") == plan


@pytest.mark.long  # a flag that has not is a fault of the doctor; one that restarts Ray: tests/local
def test_a_changed_flag_reaches_every_raylet(cluster: Cluster) -> None:
    before = cluster.raylets()
    flag = in_section("ray", "env: {RAYTOOLS_LAB_FLAG: two}")
    cluster.lab.cluster_yaml.write_text(cluster.lab.cluster_yaml.read_text() + flag)  # stays
    done = cluster.play("cluster")
    assert done.exit_code == 0, done.output
    for host in HOSTS:
        pid = cluster.raylet(host)
        assert pid != before[host]
        assert "RAYTOOLS_LAB_FLAG=two" in cluster.sh(host, f"tr '\\0' '\\n' < /proc/{pid}/environ")
    cluster.play("cluster").assert_nothing_changed()


# --- nodes ---


def test_only_a_new_node_is_built_and_a_node_that_leaves_is_drained_and_bare(cluster: Cluster) -> None:
    before = cluster.raylets()
    declared = cluster.lab.cluster_yaml.read_text()
    cluster.lab.add_host()
    cluster.lab.cluster_yaml.write_text(declared)  # the lab writes its own again
    bare = cluster.snapshot("n4")
    added = cluster.play("cluster")
    assert added.exit_code == 0, added.output
    assert {host: added.changed[host] for host in HOSTS} == NOTHING
    assert added.changed["n4"] > 0
    assert cluster.raylets() == before
    assert cluster.lab.addresses["n4"] in cluster.alive()

    head = cluster.play("remove", "-e", f"node={HEAD}", "-e", "confirm=yes")
    assert head.exit_code != 0
    assert "expected one of the workers" in head.said
    with working(cluster, "n4", 600) as said, ThreadPoolExecutor() as pool:
        busy = cluster.play("remove", "-e", "node=n4", "-e", "confirm=yes", "-e", "ray_drain_timeout=2")
        assert busy.exit_code != 0
        assert "n4 still at work after 2 s" in busy.said
        assert busy.changed == {"n4": 0}
        removing = pool.submit(cluster.play, "remove", "-e", "node=n4", "-e", "confirm=yes")
        drains = "pgrep -f 'raytools[.]node drain'"
        until(lambda: removing.done() or cluster.sh(HEAD, drains, check=False), 300, "a second drain")
        time.sleep(5)  # one that did not wait for the task would end it now
        cluster.sh("n4", "touch /tmp/enough")
        removed = removing.result()
        assert said.read_text().strip() == "finished"
    assert removed.exit_code == 0, removed.output
    assert "n4 has left the cluster" in removed.said
    assert sorted(cluster.snapshot("n4") ^ bare) == []
    assert cluster.raylets() == before
    cluster.lab.up([spec for spec in cluster.lab.hosts if spec.name in HOSTS])
    cluster.lab.cluster_yaml.write_text(declared)
    report = cluster.raytools("doctor", "--threshold", "warning")
    assert report.exit_code == 0, report.output


# --- environments ---


def environments(cluster: Cluster) -> dict[str, str]:
    """Host -> the environment whose Python its raylet's workers use."""
    return {host: cluster.sh(host, f"basename $(readlink {ROOT}/envs/current)") for host in HOSTS}


@pytest.mark.long
def test_another_environment_with_the_same_ray_is_rolled_out_without_losing_work(cluster: Cluster) -> None:
    before = environments(cluster)
    # without AutoGluon: how an environment is rolled out does not depend on what is in it, how long does
    changed = in_section("environment", 'pip: ["ray[default,tune]==2.58.1", tabulate]')
    old = cluster.lab.cluster_yaml.read_text()
    cluster.lab.cluster_yaml.write_text(old + changed)
    unlocked = cluster.play("upgrade")
    assert unlocked.exit_code != 0
    assert "raytools env lock" in unlocked.said
    assert cluster.raytools("env", "lock").exit_code == 0
    unasked = cluster.play("upgrade")
    assert unasked.exit_code != 0
    assert "-e confirm=yes" in unasked.said
    assert environments(cluster) == before
    with working(cluster, "n2", 12) as said:
        done = cluster.play("upgrade", "-e", "confirm=yes", "-e", "ray_drain_timeout=120")
        assert said.read_text().startswith("finished")
    assert done.exit_code == 0, done.output
    # workers have to join the new head before the doctor looks at them
    assert "Wait until Ray reports every declared node alive" in done.output
    assert "workers are drained and switched in turn" in done.said
    after = environments(cluster)
    assert len(set(after.values())) == 1
    assert after != before
    cluster.play("cluster").assert_nothing_changed()


@pytest.mark.long
def test_another_ray_is_switched_to_on_all_nodes_together(cluster: Cluster) -> None:
    before = environments(cluster)
    text = cluster.lab.cluster_yaml.read_text()
    cluster.lab.cluster_yaml.write_text(
        text.replace("ray[default,tune]==2.58.1", f"ray[default,tune]=={OTHER_RAY}")
    )
    assert cluster.raytools("env", "lock").exit_code == 0
    with working(cluster, "n3", 25) as said:
        done = cluster.play("upgrade", "-e", "confirm=yes", "-e", "ray_drain_timeout=120")
        assert said.read_text().startswith("finished")
    assert done.exit_code == 0, done.output
    assert f"(Ray {OTHER_RAY}, Python" in done.said
    assert "drained, stopped and switched together" in done.said
    assert environments(cluster) != before
    assert cluster.alive() == set(cluster.lab.addresses.values())
    cluster.play("cluster").assert_nothing_changed()


@pytest.mark.long
def test_a_former_environment_is_had_back(cluster: Cluster) -> None:
    before = environments(cluster)
    text = cluster.lab.cluster_yaml.read_text()
    refused = cluster.raytools("env", "rollback")
    assert refused.exit_code == 2
    assert "ray[default,tune]==2.58.1" in refused.said  # what to change back
    cluster.lab.cluster_yaml.write_text(text.replace(OTHER_RAY, "2.58.1"))
    assert cluster.raytools("env", "rollback").exit_code == 0
    done = cluster.play("upgrade", "-e", "confirm=yes")
    assert done.exit_code == 0, done.output
    assert environments(cluster) != before
    listed = cluster.raytools("env", "list", "--json").json()
    assert all(one["equal"] for one in listed["environments"].values())


# --- the end ---


@pytest.mark.long
def test_stop_ends_ray_on_every_host_and_the_next_run_starts_it_again(cluster: Cluster) -> None:
    assert cluster.play("stop").exit_code == 0
    assert cluster.raylets() == dict.fromkeys(HOSTS)
    assert all(not cluster.sh(host, "ps -o pid= -u ray", check=False) for host in HOSTS)
    cluster.play("stop").assert_nothing_changed()
    assert cluster.play("cluster").exit_code == 0


def test_teardown_asks_and_leaves_nothing_but_what_was_to_be_kept(provisioned: Cluster) -> None:
    cluster = provisioned  # nobody heals it afterwards: this is the end
    unasked = cluster.play("teardown")
    assert unasked.exit_code != 0
    assert "Nothing was removed" in unasked.said
    # what a power failure leaves of a file that was just written, and a disk that somebody has tidied up
    cluster.sh("n3", f": > {ROOT}/node.json")
    cluster.sh("n2", f"rm -rf {ROOT}/envs")
    done = cluster.play("teardown", "-e", "confirm=yes", "-e", "keep_data=yes")
    assert done.exit_code == 0, done.output
    assert "results" in cluster.sh("n2", "ls /shared")
    for host in HOSTS:
        left = cluster.sh(
            host,
            "find / -xdev \\( -path /proc -o -path /sys -o -path /var/log -o -path /shared \\) -prune -o "
            "\\( -name '*raytools*' -o -name 'rt-*' -o -user 60990 -o -group 60990 \\) -print; "
            "ls -d /opt/raytools /sys/fs/cgroup/*/raytools* /run/lock/raytools 2>/dev/null; "
            "grep -E '^ray:' /etc/passwd /etc/group; grep raytools /proc/mounts; "
            "ps -eo args= | grep -i '[r]aylet'; true",
        )
        assert left.replace("/var/lib/raytools-lab-ready", "").strip() == "", host
    again = cluster.play("teardown", "-e", "confirm=yes")
    assert again.exit_code == 0, again.output
    again.assert_nothing_changed()
