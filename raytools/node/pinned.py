"""`with raytools.pinned(cpus=1):` - exclusive CPUs for a block of work inside a Ray worker.

For what is too small for a run of its own: trials of Tune, thousands of little models. The CPUs come from the
same locks as those of runs, so nothing on this node that asks them shares one. Only CPUs are held: memory and
time are not limited, and a program may still re-pin itself.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import time as clock
from collections.abc import Iterator, Sequence
from pathlib import Path

from raytools.errors import RaytoolsError
from raytools.node.cgroup import user_name
from raytools.node.launch import new_run_id
from raytools.node.locks import PINNED, BusyError, Claim, Holder, claim_any
from raytools.node.plan_file import find_node_file, load_node
from raytools.node.record import utc_now
from raytools.units import parse_duration_s

RAYS_THREADS = frozenset(
    {
        "client.poll", "default-executo", "event_engine", "gcs_client_io_s", "grpc_global_tim",
        "grpcpp_sync_ser", "jemalloc_bg_thd", "nexting_thread", "PipeDumpThd", "PipeReaderThd",
        "resolver-execut", "server.poll", "task_event_buff", "timer_manager", "worker.io", "worker.user_obj",
    }
)  # fmt: skip
"""What the threads call themselves with which Ray runs a worker (Ray 2.58, without numbers at the end). All
others, those of a library's pool too, have the name of the one that started them: `ray::` and the task's."""
_known_as_rays: set[int] = set()  # to read all names for each of thousands of blocks would cost more
_held_by_thread: dict[int, set[int]] = {}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.05
_SAID_AFTER_S = 5.0  # that it waits, and for whom; Ray shows it to the driver
_log = logging.getLogger("raytools")


@contextlib.contextmanager
def pinned(cpus: int = 1, wait: str | float = "60s") -> Iterator[list[int]]:
    """Holds CPUs for the block and pins the threads of this process to them; restores both afterwards.

    Threads and processes that are started in the block inherit its CPUs. Inside a limited run the CPUs are a
    part of that run's own. Ray's own threads in a worker, which compute nothing, stay where they were: on the
    CPUs of the block they would interrupt it a hundred times a second.

    Args:
        cpus: how many CPU threads.
        wait: how long to wait for them. Among tasks that ask Ray for as many CPUs as they pin, there is
            always one free; a `raytools run` from a shell may hold it.

    Yields:
        The numbers of the CPUs.

    Raises:
        BusyError: they did not become free in time; names who holds them.
        RaytoolsError: this thread holds them itself.
        ValueError: more than this process may use, or none.
    """
    candidates = _candidates()
    if not 1 <= cpus <= len(candidates):
        raise ValueError(
            f"found cpus={cpus}, expected 1 to {len(candidates)}: this process may use {candidates}"
        )
    before: dict[int, set[int]] = {}
    outer = _held_by_thread.get(_thread.get_ident(), set())
    if len(set(candidates) - outer) < cpus:
        raise RaytoolsError(
            f"this thread holds {sorted(outer)} of the CPUs {candidates} already",
            expected=f"{cpus} that it does not hold",
            fix="Ask for all in the outer `pinned` block",
        )
    claim = _claim(candidates, cpus, parse_duration_s(wait))
    try:
        _held_by_thread[_thread.get_ident()] = outer | set(claim.holder.cpus)
        _pin_all(set(claim.holder.cpus), before)
        yield list(claim.holder.cpus)
    finally:
        usual = before.get(os.getpid()) or set(candidates)
        for thread in _threads():
            _pin(thread, before.get(thread) or usual)
        _held_by_thread[_thread.get_ident()] = outer
        claim.release()


def _candidates() -> list[int]:
    """The CPUs of the node's slots that this process may use; inside a run, those of the run."""
    allowed = os.sched_getaffinity(0)
    if "RAYTOOLS_RUN_ID" in os.environ:
        return sorted(allowed)
    slots = load_node(find_node_file()).whole.cpus
    return [cpu for cpu in slots if cpu in allowed]


def _claim(candidates: Sequence[int], count: int, wait_s: float) -> Claim:
    """Polls, as these blocks are short and a Ray worker has to stay interruptible."""
    began, pause_s, said = clock.monotonic(), _FIRST_PAUSE_S, False
    holder = Holder(
        run_id=new_run_id(),
        pid=os.getpid(),
        user=user_name(),
        cpus=[],
        memory_bytes=0,
        command=["raytools.pinned"],
        started_at=utc_now(),
        kind=PINNED,
    )
    while True:
        try:
            return claim_any(holder, candidates, count)
        except BusyError as error:
            waited_s = clock.monotonic() - began
            if waited_s >= wait_s:
                raise
            if not said and waited_s >= _SAID_AFTER_S:
                said = True
                _log.warning("raytools.pinned waits, at most %.0f s: %s", wait_s, error.found)
            clock.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]


def _pin_all(cpus: set[int], before: dict[int, set[int]]) -> None:
    """Pins all threads but Ray's and notes what each had; again for those that were started meanwhile."""
    _known_as_rays.intersection_update(_threads())
    while new := [thread for thread in _threads() if thread not in before]:
        for thread in new:
            before[thread] = set()
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it ended just now
                before[thread] = os.sched_getaffinity(thread)
                if not _is_rays(thread):
                    os.sched_setaffinity(thread, cpus)


def _is_rays(thread: int) -> bool:
    if thread not in _known_as_rays:
        name = Path(f"/proc/self/task/{thread}/comm").read_text()
        if name.rstrip("0123456789\n") not in RAYS_THREADS:
            return False
        _known_as_rays.add(thread)
    return True


def _pin(thread: int, cpus: set[int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(thread, cpus)
