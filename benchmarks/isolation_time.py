"""How late a time limit is, seen from outside, and how soon after it nothing of the run is left."""

from __future__ import annotations

from collections.abc import Callable

from isolation_site import Site, Trouble, collect, program, rounds
from measure import Row

TITLE = "time: how much later than a limit of 2 s"
_LIMIT_S = 2.0
_OVERSHOOT_MS, _EMPTY_MS = 50.0, 200.0
_SLEEPERS = 200


def measure(site: Site, runs: int) -> list[Row]:
    """A command that ends at SIGTERM, one that does not, and one with many processes."""
    commands = {
        "sleep 60": ["sleep", "60"],
        "ignoring SIGTERM": program("stubborn"),
    }
    contestants: list[tuple[Row, Callable[[], float]]] = []
    for name, command in commands.items():
        contestants += [
            (_row(f"raytools run: {name}", _OVERSHOOT_MS), lambda c=command: _raytools(site, c)),
            (_row(f"runexec: {name}", note="waits 1 s more"), lambda c=command: _runexec(site, c)),
            (
                _row(f"timeout -s KILL: {name}", note="only the time"),
                lambda c=command: _timeout(site, c),
            ),
        ]
    contestants += [
        (_row(f"raytools run: {_SLEEPERS} processes, until the group is empty", _EMPTY_MS),
         lambda: _until_empty(site)),
        (_row(f"runexec: {_SLEEPERS} processes"), lambda: _runexec(site, program("sleepers", _SLEEPERS))),
    ]  # fmt: skip
    for row, once in rounds("time", runs, contestants):
        collect(row, lambda once=once: (once() * 1000, None))
    return [row for row, _once in contestants]


def _row(name: str, bar: float | None = None, note: str = "") -> Row:
    return Row(name, unit="ms", bar=bar, note=note)


def _raytools(site: Site, command: list[str]) -> float:
    done, _record = site.run_raytools(command, outcome="timeout", time_limit_s=_LIMIT_S)
    return done.wall_s - _LIMIT_S


def _runexec(site: Site, command: list[str]) -> float:
    done, _result = site.run_runexec(command, ending="walltime", wall_limit_s=_LIMIT_S)
    return done.wall_s - _LIMIT_S


def _timeout(site: Site, command: list[str]) -> float:
    command = ["timeout", "-s", "KILL", f"{_LIMIT_S:g}", *command]
    return site.run(command, accepted=(-9, 137)).wall_s - _LIMIT_S


def _until_empty(site: Site) -> float:
    """By the record, which counts from the start of the command: start-up is not in it."""
    done, record = site.run_raytools(program("sleepers", _SLEEPERS), outcome="timeout", time_limit_s=_LIMIT_S)
    if done.printed()["processes"] != _SLEEPERS or record["used"]["processes_left"]:
        raise Trouble(f"{done.printed()} started, {record['used']['processes_left']} left")
    if record["used"]["processes_swept"] < _SLEEPERS:
        raise Trouble(f"{record['used']['processes_swept']} of {_SLEEPERS} processes swept")
    return record["used"]["wall_s"] - _LIMIT_S
