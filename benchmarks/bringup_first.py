"""From bare hosts, a lock and warm caches to a checked cluster: build, install, set up, start, verify."""

from __future__ import annotations

import yaml

from benchmarks import bringup_profile
from benchmarks.bringup_site import Site, say
from benchmarks.measure import Row

TITLE = "first: bare hosts, a lock and warm caches -> cluster.yml is done"
HOSTS = (3,)
BAR_S = 180.0
_BAR_FOR = 3  # hosts


def measure(site: Site, hosts: tuple[int, ...], rounds: int, *, profile: bool) -> list[Row]:
    """One row per number of hosts. Where the caches are empty, a round that does not count fills them."""
    rows = []
    for count in hosts:
        row = Row(f"{count} hosts" if count > 1 else "1 host", bar=BAR_S if count == _BAR_FOR else None)
        site.bare_hosts(count)
        if not _is_warm(site):
            say("filling the caches: a first build that does not count")
            site.provision()
        for number in range(rounds):
            site.bare_hosts(count)
            site.forget_environment()
            if profile and number == 0:
                say(bringup_profile.of_play(site, "cluster", title=f"{row.name}, not counted"))
                site.bare_hosts(count)
                site.forget_environment()
            done = site.play("cluster")
            row.values.append(done.wall_s)
            row.cpu_s.append(done.cpu_s)
            say(f"{row.name}, round {number + 1} of {rounds}: {row.values[-1]:.1f} s")
        rows.append(row)
    return rows


def _is_warm(site: Site) -> bool:
    """Whether all that pip will install is in the cache."""
    locks = list((site.state / "locks").glob("*.lock.yaml"))
    wheels = site.state / "cache" / "wheels"
    packages = [package for lock in locks for package in yaml.safe_load(lock.read_text())["pip"]]
    return bool(packages) and all((wheels / package["sha256"]).is_dir() for package in packages)
