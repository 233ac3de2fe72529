"""The adversaries of tests/local on cgroup v2: root's on one machine, a granted plain user's on the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.cluster import Cluster
from tests.vm.conftest import HOSTS, machine
from tests.vm.pytest_inside import Case, run_inside

pytestmark = pytest.mark.timeout(2400)

SUITE = "tests/local/test_adversaries.py"
REQUESTERS = ("root", "plain-user")
# Each goes for another limit: the groups above, what outlives a run, memory, processes, time.
CORE = (
    "(neither_leave_its_groups and (direct or fsmount)) or born_in_another_group or services_that_would_start"
    " or double_forked or deaf_to_all_signals_does_not_outlive or (memory_over_the_limit and children) "
    "or fork_bomb_ends or shared_memory_goes or threads_that_pin or killed_supervisor"
)
# What this kernel has not, and so cannot be tried on it.
SKIPPED = {"no service here starts programs for others"}


def tried(cluster: Cluster, which: str, wait_s: float) -> dict[str, list[Case]]:
    """Both halves at the same time; prints the table."""

    def half(host: str, requester: str) -> list[Case]:
        chosen = f"{requester} and ({which})" if which else requester
        return run_inside(machine(cluster, host), SUITE, "-k", chosen, wait_s=wait_s)

    with ThreadPoolExecutor() as pool:
        found = dict(zip(REQUESTERS, pool.map(half, HOSTS, REQUESTERS), strict=True))
    for requester, cases in found.items():
        print(f"\n{requester}:", *cases, sep="\n")
    return found


def assert_none_got_through(found: dict[str, list[Case]], least: int) -> None:
    for requester, cases in found.items():
        assert len(cases) >= least, (requester, len(cases))
        assert [str(case) for case in cases if case.outcome == "failed"] == [], requester
        skipped = {case.said.partition("\n")[0] for case in cases if case.outcome == "skipped"}
        assert skipped <= SKIPPED, requester


def test_who_would_escape_outlive_or_outgrow_a_run_does_not(bare: Cluster) -> None:
    assert_none_got_through(tried(bare, CORE, 900), 10)


@pytest.mark.long
def test_no_adversary_gets_through(bare: Cluster) -> None:
    assert_none_got_through(tried(bare, "", 2000), 45)
