"""Two unequal machines on which nobody becomes root: a lab of its own, everything below alice's home."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.lab.containers import HostSpec

pytestmark = pytest.mark.timeout(900)

HOME_ROOT = "/home/alice/raytools"
WITHOUT_ROOT = ("n1", "n2")
bare: dict[str, frozenset[str]] = {}  # host -> what was there before
# no AutoGluon: what is tested here is where things go and who owns them
SMALL = 'environment:\n  name: small\n  pip: ["ray[default]==2.58.1"]\n'


@pytest.fixture(scope="module")
def homes() -> Iterator[Cluster]:
    """Provisioned once; taken down at the end."""
    cluster = Cluster("noroot", HOME_ROOT)
    try:
        cluster.create(
            [
                HostSpec("n1", user="alice", become=False, memory="3g", shm="512m"),
                HostSpec("n2", user="alice", become=False, memory="2500m", shm="512m", cpus="0"),
            ]
        )
        cluster.lab.cluster_yaml.write_text(cluster.lab.cluster_yaml.read_text() + SMALL)
        bare.update({host: cluster.snapshot(host) for host in WITHOUT_ROOT})
        first = cluster.play("cluster")
        assert first.exit_code == 0, first.output
        assert "connected as alice, not root: no service user, no unit" in first.said
        yield cluster
    finally:
        cluster.remove()


def test_ray_runs_as_the_person_who_connects_and_nothing_is_outside_the_home(homes: Cluster) -> None:
    for host in WITHOUT_ROOT:
        (raylet,) = homes.processes_named(host, "raylet")
        assert homes.sh(host, f"stat -c %U /proc/{raylet}") == "alice"
        outside = homes.sh(
            host,
            "find / -xdev \\( -path /proc -o -path /sys -o -path /home/alice -o -path /shared \\) -prune -o "
            "\\( -name '*raytools*' -o -name 'raytools-ray-*' \\) -print",
        )
        assert set(outside.split()) <= {"/var/lib/raytools-lab-ready", "/run/lock/raytools"}
    assert homes.raytools("doctor").exit_code == 0


def test_equal_slots_have_the_smaller_machines_share(homes: Cluster) -> None:
    plan = homes.raytools("plan", "--json").json()
    slots = {name: node["slots"] for name, node in plan["nodes"].items()}
    assert [len(slots[name][0]["cpus"]) for name in ("n1", "n2")] == [1, 1]
    assert slots["n1"][0]["memory_bytes"] == slots["n2"][0]["memory_bytes"]
    assert any("1 of 2 CPUs are in no slot" in warning for warning in plan["warnings"])


def test_slots_of_their_own_where_the_inventory_says_so(homes: Cluster) -> None:
    host = "n1: {"
    with homes.changed_file(
        homes.lab.inventory, lambda text: text.replace(host, f"{host}raytools: {{slots: {{equal: false}}}}, ")
    ):
        plan = homes.raytools("plan", "--json").json()
    assert [len(plan["nodes"][name]["slots"][0]["cpus"]) for name in ("n1", "n2")] == [2, 1]


def test_the_second_run_changes_nothing(homes: Cluster) -> None:
    before = homes.processes_named("n1", "raylet")
    again = homes.play("cluster")
    assert again.exit_code == 0, again.output
    again.assert_nothing_changed(WITHOUT_ROOT)
    assert homes.processes_named("n1", "raylet") == before


def test_a_run_is_refused_with_the_command_that_allows_it_and_best_effort_says_what_is_missing(
    homes: Cluster,
) -> None:
    run = f"cd {HOME_ROOT} && PYTHONPATH=$(ls -d toolkit/*/) envs/current/bin/python -m raytools.node run"
    refused = homes.lab.ssh("n2", f"{run} -- true", check=False)
    assert refused.returncode == 125
    assert f"sudo env PYTHONPATH={HOME_ROOT}/toolkit/" in refused.stderr
    assert "-m raytools.node grant --user alice" in refused.stderr
    homes.lab.ssh("n2", f"{run} --enforce best-effort --record /tmp/record.json -- true")
    record = json.loads(homes.sh("n2", "cat /tmp/record.json; rm /tmp/record.json"))
    assert record["outcome"] == "ok"
    assert record["enforced"]["missing"]


@pytest.mark.long
def test_an_environment_that_is_there_already_is_used_on_every_node_and_never_written(
    homes: Cluster,
) -> None:
    prefix = homes.sh("n1", f"readlink -f {HOME_ROOT}/envs/current")
    listed = homes.sh("n1", f"find {prefix} -printf '%p %T@\\n' | sort | sha256sum")
    existing = f"environment:\n  name: mine\n  prefix: {prefix}\n"
    with homes.changed_file(homes.lab.cluster_yaml, lambda text: text.replace(SMALL, existing)):
        done = homes.play("cluster")
        assert done.exit_code == 0, done.output
        homes.play("cluster").assert_nothing_changed(WITHOUT_ROOT)
    for host in WITHOUT_ROOT:
        assert json.loads(homes.sh(host, f"cat {HOME_ROOT}/node.json"))["environment"]["prefix"] == prefix
        assert json.loads(homes.sh(host, f"cat {HOME_ROOT}/node.json"))["environment"]["lock_digest"] is None
    assert homes.sh("n1", f"find {prefix} -printf '%p %T@\\n' | sort | sha256sum") == listed


def test_teardown_leaves_the_home_as_it_was(homes: Cluster) -> None:
    assert homes.play("stop").exit_code == 0
    assert homes.processes_named("n1", "raylet") == []
    done = homes.play("teardown", "-e", "confirm=yes")
    assert done.exit_code == 0, done.output
    assert homes.sh("n1", "ls -A /shared") == ""
    for host in WITHOUT_ROOT:
        assert sorted(homes.snapshot(host) ^ bare[host]) == [], host
