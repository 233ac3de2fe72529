"""A run of the whole cluster.yml that has nothing to do, and what each host more costs."""

from __future__ import annotations

import statistics

from benchmarks import bringup_profile
from benchmarks.bringup_site import BenchmarkError, Site, say
from benchmarks.measure import Row

TITLE = "again: cluster.yml with nothing to do"
HOSTS = (1, 2, 3, 4, 8)
BAR_S = 15.0
_BAR_FOR = 3  # hosts


def measure(site: Site, hosts: tuple[int, ...], rounds: int, *, profile: bool) -> list[Row]:
    """One row per number of hosts, and the growth."""
    rows: list[Row] = []
    site.begin_with(hosts[0])
    for count in hosts:
        site.hosts(count)
        site.provision()
        row = Row(f"{count} hosts" if count > 1 else "1 host", bar=BAR_S if count == _BAR_FOR else None)
        for number in range(rounds):
            done = site.play("cluster")
            if any(done.changed.values()):
                raise BenchmarkError(f"the second run has changed something: {done.changed}\n{done.output}")
            row.values.append(done.wall_s)
            row.cpu_s.append(done.cpu_s)
            say(f"{row.name}, round {number + 1} of {rounds}: {done.wall_s:.1f} s")
        rows.append(row)
        if profile:
            say(bringup_profile.of_play(site, "cluster", title=row.name))
    return [*rows, *_growth(hosts, rows)]


def _growth(hosts: tuple[int, ...], rows: list[Row]) -> list[Row]:
    """The slope of the line through the medians."""
    if len(hosts) < 2:
        return []
    medians = [statistics.median(row.values) for row in rows]
    slope, _ = statistics.linear_regression(hosts, medians)
    return [
        Row(
            "growth per host",
            values=[slope],
            note="slope through the medians",
        )
    ]
