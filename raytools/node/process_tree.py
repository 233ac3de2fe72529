"""Best effort where no cgroup can be made: the run is the tree of the supervisor's descendants.

The supervisor is their subreaper, so even a daemon that double-forks stays in the tree. CPU is held by
affinity and memory by polling, both of which a program can outrun; the record says so.
"""

from __future__ import annotations

import contextlib
import os
import resource
from signal import SIGCONT, SIGKILL, SIGSTOP

import psutil

from raytools.node import cgroup
from raytools.node.cgroup import GroupUsage


class ProcessTree:
    """Everything below the supervisor, seen as a group."""

    kind = "process-tree"
    kill_method = "signals"

    def __init__(self, memory_limit_bytes: int) -> None:
        self._supervisor = psutil.Process()
        self._memory_limit_bytes = memory_limit_bytes
        self._peak_bytes: int | None = None
        self._cpu_s: dict[tuple[int, float], float] = {}
        self._over_limit = False
        self._besides: int | None = None
        self.missing = [
            "cpu: held by affinity, which a program can change",
            "memory: polled, so a quick allocation can exceed it",
            "pids: not limited",
        ]

    def entrances(self) -> list[str]:
        return []  # the main process is the supervisor's descendant already

    def birthplace(self) -> str | None:
        return None

    def visible(self) -> dict[str, str]:
        return {}

    def processes(self, besides: int | None = None) -> list[int]:
        self._besides = besides
        return [process.pid for process in self._members() if _alive(process)]

    def _members(self) -> list[psutil.Process]:
        below = self._supervisor.children(recursive=True)
        return [process for process in below if process.pid != self._besides]

    def freeze(self, frozen: bool) -> None:
        cgroup.signal_all(self.processes(self._besides), SIGSTOP if frozen else SIGCONT)

    def kill(self) -> None:
        cgroup.signal_all(self.processes(self._besides), SIGKILL)

    def oom_descriptor(self) -> int | None:
        return None

    def cpu_s(self) -> float | None:
        return self.usage().cpu_s

    def anon_bytes(self) -> int | None:
        return self.usage().anon_bytes

    def oom_kills(self) -> int | None:
        return 1 if self._over_limit else 0

    def hit_own_limit(self) -> bool:
        return True

    def changed_limits(self, limits: cgroup.GroupLimits) -> list[str]:
        del limits
        return []

    def usage(self) -> GroupUsage:
        total_bytes = 0
        for process in self._members():
            with contextlib.suppress(psutil.Error), process.oneshot():
                memory, times = process.memory_info(), process.cpu_times()
                # shared pages (libraries, the object store) would be counted once per process
                total_bytes += memory.rss - memory.shared
                self._cpu_s[process.pid, process.create_time()] = times.user + times.system
        self._peak_bytes = max(total_bytes, self._peak_bytes or 0)
        if total_bytes > self._memory_limit_bytes:
            self._over_limit = True
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)  # exact, once the supervisor has reaped them
        return GroupUsage(
            cpu_s=max(sum(self._cpu_s.values()), ended.ru_utime + ended.ru_stime),
            memory_peak_bytes=self._peak_bytes,
            anon_bytes=total_bytes,
            oom_kills=1 if self._over_limit else 0,
            throttled_s=None,
            swap_in_bytes=None,
            cpu_pressure_s=None,
        )

    def remove(self) -> None:
        """Nothing to remove."""


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
    return False
