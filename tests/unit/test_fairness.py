"""What taints a run: where the thresholds lie, and that what was not counted is null and never 0."""

from __future__ import annotations

from typing import Any

import pytest

from raytools.node import fairness
from raytools.node.cgroup_tree import UNIFIED, OwnCgroups
from raytools.node.fairness import Snapshot, judge
from raytools.node.record import Limits, Record, Used

NO_GROUPS = OwnCgroups(None, {}, {}, ())
NOTHING = Snapshot(busy_s=0.0, neighbour_s=0.0, steal_s=0.0, swap_in_bytes=0, throttled_s=0.0, pressure_s=0.0)


def after(**changes: Any) -> Snapshot:
    """The counters at the end of a run that began with all of them at 0."""
    return Snapshot(**{**NOTHING.__dict__, **changes})


def finished(wall_s: float | None = 100.0, cpus: int | None = 2, cpu_s: float | None = 0.0) -> Record:
    """A run of 200 CPU seconds; the shares are 20 s for others, 2 s for steal and for quotas."""
    return Record("id", ["true"], limits=Limits(cpus=cpus), used=Used(wall_s=wall_s, cpu_s=cpu_s))


def reasons(record: Record, group_pressure_s: float | None = None, **changes: Any) -> list[str]:
    found = judge(NOTHING, after(**changes), record, group_pressure_s)
    assert found.verdict == ("tainted" if found.reasons else "comparable")
    return found.reasons


def test_a_run_that_nobody_disturbed_is_comparable() -> None:
    assert reasons(finished(cpu_s=180.0), busy_s=180.0) == []


@pytest.mark.parametrize(
    ("counter", "exactly", "over", "words"),
    [
        ("busy_s", 20.0, 20.01, "others used 20.01 s of this run's CPUs"),
        ("steal_s", 2.0, 2.01, "the hypervisor took 2.01 s of this run's CPUs"),
        ("throttled_s", 2.0, 2.01, "a CPU quota of a group above held it back for 2.01 s"),
        ("swap_in_bytes", 0, 4096, "the machine swapped in 4096 bytes meanwhile"),
    ],
)
def test_exactly_the_threshold_is_comparable_and_over_it_is_tainted(
    counter: str, exactly: float, over: float, words: str
) -> None:
    assert reasons(finished(), **{counter: exactly}) == []
    assert reasons(finished(), **{counter: over}) == [words]


@pytest.mark.parametrize("counter", ["busy_s", "steal_s", "throttled_s"])
def test_short_runs_have_a_floor_below_which_nothing_can_be_told(counter: str) -> None:
    assert reasons(finished(wall_s=0.1), **{counter: 0.25}) == []
    assert len(reasons(finished(wall_s=0.1), **{counter: 0.26})) == 1


def test_the_share_counts_all_cpus_of_the_run() -> None:
    assert len(reasons(finished(cpus=1), busy_s=10.5)) == 1
    assert reasons(finished(cpus=2), busy_s=10.5) == []


def test_the_runs_own_use_is_not_other_load() -> None:
    found = judge(NOTHING, after(busy_s=150.0, neighbour_s=80.0), finished(cpu_s=140.0), None)
    assert (found.outside_cpu_s, found.neighbour_cpu_s, found.reasons) == (10.0, 80.0, [])
    rounded = judge(NOTHING, after(busy_s=139.9), finished(cpu_s=140.0), None)
    assert rounded.outside_cpu_s == 0.0  # /proc/stat counts in steps, a cgroup does not


def test_everything_not_enforced_and_not_killed_is_a_reason() -> None:
    record = finished()
    record.enforced.missing = ["pids: not limited"]
    record.used.processes_left = 2
    assert reasons(record) == ["not enforced: pids: not limited", "2 processes could not be killed"]


def test_the_quotas_of_groups_above_are_added_to_the_runs_own() -> None:
    record = finished()
    record.used.throttled_s = 1.5
    found = judge(NOTHING, after(throttled_s=1.0), record, None)
    assert record.used.throttled_s == 2.5
    assert found.reasons == ["a CPU quota of a group above held it back for 2.50 s"]


def test_only_what_came_during_the_run_counts() -> None:
    before = Snapshot(
        busy_s=500.0, neighbour_s=50.0, steal_s=30.0, swap_in_bytes=8192, throttled_s=9.0, pressure_s=7.0
    )
    found = judge(before, before, finished(), None)
    assert (found.verdict, found.steal_s, found.swap_in_bytes, found.cpu_pressure_s) == (
        "comparable",
        0,
        0,
        0,
    )


def test_the_runs_own_pressure_is_preferred_to_the_nodes() -> None:
    assert judge(NOTHING, after(pressure_s=5.0), finished(), 1.25).cpu_pressure_s == 1.25
    assert judge(NOTHING, after(pressure_s=5.0), finished(), None).cpu_pressure_s == 5.0


@pytest.mark.parametrize("gone", ["before", "after", "both"])
def test_what_was_not_counted_is_null_and_no_reason(gone: str) -> None:
    unknown = after(swap_in_bytes=None, throttled_s=None, pressure_s=None)
    first = unknown if gone in ("before", "both") else NOTHING
    last = (
        unknown if gone in ("after", "both") else after(swap_in_bytes=4096, throttled_s=50.0, pressure_s=9.0)
    )
    record = finished(cpu_s=None)
    found = judge(first, last, record, None)
    assert (found.swap_in_bytes, found.cpu_pressure_s, found.outside_cpu_s) == (None, None, None)
    assert record.used.throttled_s is None
    assert (found.verdict, found.reasons) == ("comparable", [])


def test_a_run_whose_time_is_unknown_is_judged_by_the_floor() -> None:
    assert reasons(finished(wall_s=None, cpus=None), busy_s=0.25) == []
    assert len(reasons(finished(wall_s=None, cpus=None), busy_s=0.26)) == 1


# ------------------------------------------------------------------------------------- reading the counters

STAT = """\
cpu  1000 0 0 5000 0 0 0 77 0 0
cpu0 100 20 30 1000 500 4 6 40 900 900
cpu1 200 0 0 1000 500 0 0 30 0 0
cpu10 400 0 0 1000 500 0 0 7 0 0
intr 1 2 3
cpu2 1 1 1 1 1 1 1 1 1 1
"""


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files of an invented machine."""
    made: dict[str, str] = {}
    monkeypatch.setattr(fairness, "read_text", made.get)
    monkeypatch.setattr(fairness, "_TICK_S", 0.01)
    return made


def test_busy_is_everything_but_idle_waiting_guests_and_steal(files: dict[str, str]) -> None:
    files["/proc/stat"] = STAT
    found = fairness.snapshot([0], NO_GROUPS)
    assert found.busy_s == pytest.approx(1.6)
    assert found.steal_s == pytest.approx(0.4)
    assert found.neighbour_s == pytest.approx(6.0)  # cpu1 and cpu10, which is not cpu1


def test_a_machine_that_tells_nothing_gives_nulls(files: dict[str, str]) -> None:
    files["/proc/stat"] = STAT
    found = fairness.snapshot([0], NO_GROUPS)
    assert (found.swap_in_bytes, found.throttled_s, found.pressure_s) == (None, None, None)


def test_swap_and_pressure_are_read_in_bytes_and_seconds(files: dict[str, str]) -> None:
    files["/proc/stat"] = STAT
    files["/proc/vmstat"] = "pgpgin 5\npswpin 3\npswpout 9\n"
    files["/proc/pressure/cpu"] = (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=9\n"
    )
    found = fairness.snapshot([0], NO_GROUPS)
    assert found.swap_in_bytes == 3 * fairness._PAGE_BYTES
    assert found.pressure_s == 2.5


@pytest.mark.parametrize("text", ["", "some avg10=0.00 total=", "Operation not supported"])
def test_pressure_that_cannot_be_read_is_null(files: dict[str, str], text: str) -> None:
    files["/some/pressure"] = text
    assert fairness.pressure_s("/some/pressure") is None
    assert fairness.pressure_s("/no/such") is None


def test_quotas_of_all_groups_above_add_up_in_both_versions(files: dict[str, str]) -> None:
    files["/proc/stat"] = STAT
    files["/sys/fs/cgroup/cpu/a/b/cpu.stat"] = "nr_throttled 1\nthrottled_time 1500000000\n"
    files["/sys/fs/cgroup/cpu/a/cpu.stat"] = "throttled_time 500000000\n"
    v1 = OwnCgroups("v1", {"cpu": "/sys/fs/cgroup/cpu/a/b"}, {"cpu": "/sys/fs/cgroup/cpu"}, ())
    assert fairness.snapshot([0], v1).throttled_s == pytest.approx(2.0)

    files["/sys/fs/cgroup/a/cpu.stat"] = "usage_usec 9\nthrottled_usec 250000\n"
    own, top = "/sys/fs/cgroup/a", "/sys/fs/cgroup"
    v2 = OwnCgroups("v2", {"cpu": own, UNIFIED: own}, {"cpu": top, UNIFIED: top}, ("cpu",))
    assert fairness.snapshot([0], v2).throttled_s == pytest.approx(0.25)


def test_quotas_that_no_group_tells_are_null(files: dict[str, str]) -> None:
    files["/proc/stat"] = STAT
    own, top = "/sys/fs/cgroup/a", "/sys/fs/cgroup"
    v2 = OwnCgroups("v2", {"cpu": own, UNIFIED: own}, {"cpu": top, UNIFIED: top}, ("cpu",))
    assert fairness.snapshot([0], v2).throttled_s is None
