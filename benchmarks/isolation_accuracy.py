"""How near the record's CPU time and memory are to what a program knows of itself; runexec's beside them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from isolation_site import Site, Trouble, program, rounds
from measure import Row

TITLE = "accuracy: how far the measurement is from the program's own"
_MIB = 1 << 20
_SHARE, _CPU_MS, _MEMORY_MIB = 0.01, 10.0, 4.0

# name -> arguments of isolation_programs/work.py
_WORKLOADS = {
    "1 s of CPU": ["--cpu", 1],
    "256 MiB": ["--memory", 256],
    "256 MiB for 10 ms": ["--memory", 256, "--hold", 0.01],
    "3 children of 0.3 s and 64 MiB": ["--children", 3, "--cpu", 0.3, "--memory", 64],
}


@dataclass
class _Series:
    """One measured quantity of one workload: pairs of the program's own value and the measured one."""

    name: str
    unit: str
    slack: float | None = None  # None: no bar
    note: str = ""
    pairs: list[tuple[float, float]] = field(default_factory=list)
    trouble: str = ""

    def row(self) -> Row:
        """The distances, against 1 % of the program's own value and the slack."""
        row = Row(self.name, [abs(found - own) for own, found in self.pairs], unit=self.unit)
        row.trouble, row.note = self.trouble, self.note
        if self.pairs:
            own, found = (statistics.median(values) for values in zip(*self.pairs, strict=True))
            row.note = " ".join(filter(None, [f"own {own:.1f}, measured {found:.1f}", self.note]))
            if self.slack is not None:
                row.bar = round(_SHARE * own + self.slack, 2)
        elif self.slack is not None:
            row.bar = self.slack
        return row


def measure(site: Site, runs: int) -> list[Row]:
    """Each workload under each of the two, in turns."""
    contestants = []
    for name, arguments in _WORKLOADS.items():
        ours = [
            _Series(f"{name}: used.cpu_s", "ms", _CPU_MS),
            _Series(f"{name}: used.memory_peak_bytes", "MiB", _MEMORY_MIB),
            _Series(f"{name}: used.anon_peak_bytes", "MiB", _MEMORY_MIB),
        ]
        if "10 ms" in name:  # documented: sampled ten times a second
            ours[2].slack, ours[2].note = None, "sampled"
        theirs = [
            _Series(f"{name}: runexec cputime", "ms"),
            _Series(f"{name}: runexec memory", "MiB"),
        ]
        command = program("work", *arguments)
        contestants += [(_raytools, command, ours), (_runexec, command, theirs)]
    for once, command, series in rounds("accuracy", runs, contestants):
        try:
            own, found = once(site, command)
        except Trouble as trouble:
            for one in series:
                one.trouble = str(trouble)[:120]
            continue
        for one, mine, measured in zip(series, own, found, strict=True):
            one.pairs.append((mine, measured))
    return [one.row() for _once, _command, series in contestants for one in series]


def _raytools(site: Site, command: list[str]) -> tuple[list[float], list[float]]:
    done, record = site.run_raytools(command)
    own, used = done.printed(), record["used"]
    missing = [key for key in ("cpu_s", "memory_peak_bytes", "anon_peak_bytes") if used[key] is None]
    if missing:
        raise Trouble(f"the record does not say {', '.join(missing)}")
    anon_mib = own["anon_bytes"] / _MIB
    return (
        [own["cpu_s"] * 1000, anon_mib, anon_mib],
        [used["cpu_s"] * 1000, used["memory_peak_bytes"] / _MIB, used["anon_peak_bytes"] / _MIB],
    )


def _runexec(site: Site, command: list[str]) -> tuple[list[float], list[float]]:
    done, result = site.run_runexec(command)
    own = done.printed()
    return (
        [own["cpu_s"] * 1000, own["anon_bytes"] / _MIB],
        [float(result["cputime"].rstrip("s")) * 1000, int(result["memory"].rstrip("B")) / _MIB],
    )
