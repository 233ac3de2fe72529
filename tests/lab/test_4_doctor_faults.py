"""Each fault on real hosts is found, with its code and on its node, and nothing else is.

Writes the table of faults: .raytools/logs/doctor-faults.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.cluster import CHECKOUT, Cluster, Done, told, until
from tests.lab.doctor_faults import FAULTS, Fault
from tests.lab.workload_faults import running_command

pytestmark = pytest.mark.timeout(300)

TABLE = CHECKOUT / ".raytools" / "logs" / "doctor-faults.md"


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """The rows; written when all faults have been tried."""
    rows: list[str] = []
    yield rows
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    head = ["| fault | found | seconds | result |", "|---|---|---|---|"]
    TABLE.write_text("\n".join([*head, *rows]) + "\n")


def each_fault() -> list[object]:
    """All of them; another cause of what an earlier one has shown already takes long, with all the others."""
    faults, shown = [], set[str]()
    for fault in FAULTS:
        codes = {finding.split()[0] for finding in fault.expected}
        marks = [pytest.mark.long] if codes <= shown else []
        shown |= codes
        faults.append(pytest.param(fault, id=fault.name, marks=marks))
    return faults


@pytest.mark.parametrize("fault", each_fault())
def test_a_fault_is_found_on_its_node_and_nothing_else_is(
    provisioned: Cluster, table: list[str], fault: Fault
) -> None:
    with fault.make(provisioned) as inventory:
        done = provisioned.raytools(
            "doctor", "--level", fault.level, "--json", *fault.options, inventory=inventory
        )
    assert done.exit_code in (0, 1), done.output
    found = {f"{one['code']} {one['node'] or ''}".strip() for one in done.faults}
    result = "as expected" if found == fault.expected else f"expected {', '.join(sorted(fault.expected))}"
    table.append(f"| {fault.name} | {', '.join(sorted(found))} | {done.wall_s:.1f} | {result} |")
    assert found == fault.expected, told(done.faults)
    assert all(one["fix"] and one["message"] for one in done.faults)


def fixed(cluster: Cluster) -> Done:
    done = cluster.raytools("doctor", "--threshold", "warning", "--fix", "--yes")
    assert done.exit_code == 0, done.output
    return done


def test_fix_ends_what_a_dead_ray_has_left_and_nothing_else(provisioned: Cluster) -> None:
    before = provisioned.raylets()
    leave = "setsid env RAYTOOLS_RAY_SESSION=dead RAYTOOLS_ROOT=/opt/raytools sleep 611 >/dev/null 2>&1 &"
    provisioned.sh("n2", leave)
    provisioned.sh("n2", "setsid sleep 612 >/dev/null 2>&1 &")
    try:
        done = fixed(provisioned)
        assert "n2: ended 1 processes" in done.said
        assert len(provisioned.processes_named("n2", "sleep")) == 1
        assert provisioned.raylets() == before
    finally:
        provisioned.sh("n2", "pkill -xf 'sleep 61[12]'", check=False)


def test_fix_starts_the_ray_of_a_dead_worker_and_no_heads(provisioned: Cluster) -> None:
    before = provisioned.raylets()
    provisioned.sh("n2", f"systemctl stop {provisioned.unit_name}")
    done = provisioned.raytools("doctor", "--fix", "--yes", "--wait", "60s")
    assert done.exit_code == 0, done.output
    before_it, restarted, _ = done.said.partition(f"n2: restarted {provisioned.unit_name}")
    assert restarted, done.said
    assert "s left" not in before_it, "what can be mended is not waited for"
    after = provisioned.raylets()
    assert (after["n1"], after["n3"]) == (before["n1"], before["n3"])
    assert after["n2"] not in (None, before["n2"])


@pytest.mark.long
def test_an_interrupted_fix_says_what_may_not_be_done(provisioned: Cluster) -> None:
    provisioned.sh("n2", f"systemctl stop {provisioned.unit_name}")
    with running_command(provisioned, "doctor", "--fix", "--yes") as running:
        starts = f"systemctl is-active {provisioned.unit_name} | grep activating"
        until(lambda: provisioned.sh("n2", starts, check=False), 60, "the unit starts")
        running.interrupt()
    assert running.process.returncode == 130, running.said()
    assert f"interrupted: may be done or not: n2: restart {provisioned.unit_name}." in running.said()
    provisioned.await_healthy(90)  # what systemd was asked for it goes on with


def test_fix_sweeps_a_run_whose_supervisor_was_killed(provisioned: Cluster) -> None:
    fault = next(one for one in FAULTS if one.name == "a run whose supervisor was killed")
    with fault.make(provisioned):
        done = fixed(provisioned)
        assert "n2: swept 1 runs" in done.said
        assert provisioned.processes_named("n2", "sleep") == []


def test_fix_removes_sessions_that_are_over_but_for_the_last(provisioned: Cluster) -> None:
    fault = next(one for one in FAULTS if one.name == "sessions of crashed Rays")
    with fault.make(provisioned):
        done = fixed(provisioned)
        assert "n2: removed" in done.said
        living = provisioned.raylet("n2")
        assert living is not None


def test_without_a_person_to_ask_fix_does_nothing(provisioned: Cluster) -> None:
    fault = next(one for one in FAULTS if one.name == "a process of a dead Ray of this cluster")
    with fault.make(provisioned):
        done = provisioned.raytools("doctor", "--fix")
        assert done.exit_code == 2
        assert "nobody can answer here" in done.said
        assert len(provisioned.processes_named("n2", "sleep")) == 1


def test_after_all_faults_nothing_is_found(provisioned: Cluster) -> None:
    provisioned.await_healthy(90)
    done = provisioned.raytools("doctor", "--level", "prove", "--threshold", "warning", "--json")
    assert done.faults == [], told(done.faults)
    assert done.exit_code == 0
    print(f"level prove on three hosts: {done.wall_s:.1f} s")
