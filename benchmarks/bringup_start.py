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
    ours = Row(f"{count} hosts: playbooks/ray.yml")
    theirs = {name: Row(f"{count} hosts: {name}", note=peer.missing(site)) for name in peer.VARIANTS}
    returned: dict[str, list[float]] = {name: [] for name in theirs}
    site.play("stop")
    for number in range(rounds):
        turns: list[str | None] = [None, *theirs]
        for name in turns if number % 2 == 0 else turns[::-1]:
            if name is None:
                _ours(site, ours)
            elif (
                not theirs[name].note and not theirs[name].trouble
            ):  # what never came is not waited for again
                _theirs(site, name, theirs[name], returned[name])
        seen = ", ".join(f"{row.name.partition(': ')[2]} {_last(row)}" for row in (ours, *theirs.values()))
        say(f"{count} hosts, round {number + 1} of {rounds}: {seen}")
    for name, values_s in returned.items():
        if values_s:
            theirs[name].note = f"(the command returns after {statistics.median(values_s):.1f} s)"
    return [ours, *theirs.values(), _ratio(count, ours, list(theirs.values()))]


def _ratio(count: int, ours: Row, theirs: list[Row]) -> Row:
    """Round by round, against the one that was faster; only those that finish can be."""
    ratio = Row(f"{count} hosts: ours / the faster ray up", unit="x", bar=BAR if count == _BAR_FOR else None)
    finished = [row for row in theirs if row.values and not row.trouble]
    if not finished:
        ratio.trouble = "; ".join(dict.fromkeys(row.trouble or row.note for row in theirs))
        return ratio
    fastest = min(finished, key=lambda row: statistics.median(row.values))
    ratio.values = [one / other for one, other in zip(ours.values, fastest.values, strict=True)]
    return ratio


def _ours(site: Site, row: Row) -> None:
    """The whole process counts; it ends when Ray's head has reported every node alive."""
    done = site.play("ray")
    row.values.append(done.wall_s)
    row.cpu_s.append(done.cpu_s)
    site.play("stop")


def _theirs(site: Site, variant: str, row: Row, returned: list[float]) -> None:
    attempt = peer.bring_up(site, variant)
    row.trouble = attempt.trouble
    if attempt.returned_s is not None:
        returned.append(attempt.returned_s)
    if attempt.all_alive_s is not None:
        row.values.append(attempt.all_alive_s)
        return
    joined = ", ".join(f"{address} after {at_s:.1f} s" for address, at_s in attempt.joined_s.items())
    say(f"{variant}: {attempt.trouble}: {joined or 'none'}. The ends of its output and its autoscaler's log:")
    say(f"{attempt.said}\n{attempt.monitor}")


def _last(row: Row) -> str:
    return row.trouble or (f"{row.values[-1]:.1f} s" if row.values else row.note or "-")
