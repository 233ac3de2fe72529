"""Environment in place, Ray stopped -> all nodes alive: our playbook against `ray up`, in turns."""

from __future__ import annotations

import statistics

from benchmarks import bringup_profile
from benchmarks import bringup_ray_up as peer
from benchmarks.bringup_site import Site, say
from benchmarks.measure import Row

TITLE = "start: environment in place, Ray stopped -> all nodes alive"
HOSTS = (2, 3)
BAR = 0.8
_BAR_FOR = 2  # hosts


def measure(site: Site, hosts: tuple[int, ...], rounds: int, *, profile: bool) -> list[Row]:
    """Rows for each number of hosts: ours, the peer's, the ratio."""
    rows: list[Row] = []
    site.begin_with(hosts[0])
    for count in hosts:
        site.hosts(count)
        site.provision()
        rows += _compare(site, count, rounds)
        if profile:
            say(bringup_profile.of_play(site, "ray", title=f"{count} hosts"))
    return rows


def _compare(site: Site, count: int, rounds: int) -> list[Row]:
    ours, theirs = Row(f"{count} hosts: playbooks/ray.yml"), Row(f"{count} hosts: ray up")
    theirs.note = peer.missing(site)
    returned: list[float] = []
    site.play("stop")
    for number in range(rounds):
        for is_ours in (True, False) if number % 2 == 0 else (False, True):
            if is_ours:
                _ours(site, ours)
            elif not theirs.note and not theirs.trouble:  # what never came once is not waited for again
                _theirs(site, theirs, returned)
        say(f"{count} hosts, round {number + 1} of {rounds}: ours {_last(ours)}, ray up {_last(theirs)}")
    if returned:
        theirs.note = f"the command itself returns after {statistics.median(returned):.1f} s"
    ratio = Row(f"{count} hosts: ours / ray up", unit="x", bar=BAR if count == _BAR_FOR else None)
    ratio.values = [one / other for one, other in zip(ours.values, theirs.values, strict=False)]
    if not ratio.values:
        ratio.trouble = f"ray up: {theirs.trouble}" if theirs.trouble else theirs.note
    return [ours, theirs, ratio]


def _ours(site: Site, row: Row) -> None:
    """The whole process counts; it ends when Ray's head has reported every node alive."""
    done = site.play("ray")
    row.values.append(done.wall_s)
    row.cpu_s.append(done.cpu_s)
    site.play("stop")


def _theirs(site: Site, row: Row, returned: list[float]) -> None:
    attempt = peer.bring_up(site)
    row.trouble = attempt.trouble
    if attempt.returned_s is not None:
        returned.append(attempt.returned_s)
    if attempt.all_alive_s is not None:
        row.values.append(attempt.all_alive_s)
        return
    joined = ", ".join(f"{address} after {at_s:.1f} s" for address, at_s in attempt.joined_s.items())
    say(f"ray up: {attempt.trouble}: {joined or 'none'}. The launcher's and the autoscaler's last words:")
    say(f"{attempt.said[-1500:]}\n{attempt.monitor[-6000:]}")


def _last(row: Row) -> str:
    return row.trouble or (f"{row.values[-1]:.1f} s" if row.values else row.note or "-")
