"""Groups in memory, for what watches and empties groups: the same interface; processes are only numbers."""

from __future__ import annotations

from collections.abc import Sequence

from raytools.errors import RefusedError
from raytools.node.cgroup import GroupLimits, GroupUsage


class FakeGroup:
    """A group whose processes need as many kills as the test says.

    Args:
        lives: pid -> how many kills it takes; None survives all of them.
        oom_descriptor: what polls readable at the memory limit.
    """

    kind = "fake"
    kill_method = "signals"

    def __init__(self, lives: dict[int, int | None] | None = None, oom_descriptor: int | None = None) -> None:
        self.lives = dict(lives or {})
        self.missing: list[str] = []
        self.calls: list[str] = []
        self.used_cpu_s: float | None = 0.0
        self.held_anon_bytes: int | None = 0
        self.killed_by_memory: int | None = 0
        self.own_limit_was_hit = True
        self.changes: list[str] = []
        self.forks_at_kill: list[int] = []  # processes that were born in time to miss one kill
        self.removed = False
        self._oom_descriptor = oom_descriptor

    def entrances(self) -> list[str]:
        return []

    def visible(self) -> dict[str, str]:
        return {}

    def processes(self, besides: int | None = None) -> list[int]:
        return [pid for pid in self.lives if pid != besides]

    def freeze(self, frozen: bool) -> None:
        self.calls.append("freeze" if frozen else "thaw")

    def kill(self) -> None:
        self.calls.append("kill")
        left = {pid: lives if lives is None else lives - 1 for pid, lives in self.lives.items()}
        self.lives = {pid: lives for pid, lives in left.items() if lives is None or lives > 0}
        if self.forks_at_kill:
            self.lives[self.forks_at_kill.pop()] = 1

    def oom_descriptor(self) -> int | None:
        return self._oom_descriptor

    def cpu_s(self) -> float | None:
        return self.used_cpu_s

    def anon_bytes(self) -> int | None:
        self.calls.append("sample")
        return self.held_anon_bytes

    def oom_kills(self) -> int | None:
        return self.killed_by_memory

    def hit_own_limit(self) -> bool:
        return self.own_limit_was_hit

    def changed_limits(self, limits: GroupLimits) -> list[str]:
        return self.changes

    def usage(self) -> GroupUsage:
        return GroupUsage(
            cpu_s=self.used_cpu_s,
            memory_peak_bytes=self.held_anon_bytes,
            anon_bytes=self.held_anon_bytes,
            oom_kills=self.killed_by_memory,
            throttled_s=0.0,
            swap_in_bytes=None,
            cpu_pressure_s=None,
        )

    def remove(self) -> None:
        if self.lives:
            raise OSError(16, "Device or resource busy")
        self.removed = True


class FakeDriver:
    """Makes such groups, up to a number of them."""

    kind = "fake"

    def __init__(self, room: int = 10) -> None:
        self.groups: dict[str, FakeGroup] = {}
        self._room = room

    def paths(self, name: str) -> Sequence[str]:
        return [f"/fake/{name}"]

    def create(self, name: str, limits: GroupLimits) -> FakeGroup:
        if len(self.groups) >= self._room:
            raise RefusedError("cannot make the cgroup: no room", expected="room", fix="Make room")
        self.groups[name] = FakeGroup()
        return self.groups[name]
