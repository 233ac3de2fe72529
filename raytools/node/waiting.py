"""Waiting for a share of the node: one waiter at a time asks, the others sleep until something changes.

Sixty waiters that each polled the books would take the CPUs from the runs they wait for. So the kernel wakes
them (inotify) when a holder comes or goes, killed ones included: the descriptor that a holder keeps open for
writing is closed with it. Of those woken, only the one that has the queue's lock tries to claim.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Sequence

from raytools.node.link import readable
from raytools.node.locks import BusyError, Claim, Holder, claim, lock_directory, open_lock, try_lock

_IN_CLOSE_WRITE, _IN_CREATE, _IN_DELETE = 0x8, 0x100, 0x200
_POLL_S = 0.1  # where the kernel has no more inotify instances for this user
_FIRST_PAUSE_S = 0.01
_SAFETY_S = 1.0  # a woken waiter may find the queue's lock taken by one that gives up just then


class CalledOffError(Exception):
    """What the waiter was told to watch became ready: nobody wants the share any more."""


def claim_first(
    candidates: Sequence[Holder],
    memory_capacity_bytes: int | None,
    wait_s: float,
    watched: int,
    on_wait: Callable[[BusyError], None],
) -> Claim:
    """Claims the first candidate that is free.

    Args:
        candidates: the same asker with different shares, in the order to try them.
        memory_capacity_bytes: as for `locks.claim`.
        wait_s: how long to wait for one; 0 does not wait.
        watched: a descriptor that ends the waiting when it becomes readable.
        on_wait: told once, when there is something to wait for.

    Raises:
        BusyError: none became free in time.
        CalledOffError: `watched` became readable first.
    """
    attempt = _Attempt(candidates, memory_capacity_bytes)
    if (made := attempt.claim()) is not None:
        return made
    if wait_s <= 0:
        raise attempt.busy
    on_wait(attempt.busy)
    deadline, pause_s = time.monotonic() + wait_s, _SAFETY_S
    with _Changes() as changes, _Queue(candidates) as queue:
        while True:
            if queue.is_mine() and (made := attempt.claim()) is not None:
                return made
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise attempt.busy
            if changes.wait(min(left_s, pause_s), watched):
                raise CalledOffError
            # a dying holder's file may be closed a little before its locks are
            pause_s = _FIRST_PAUSE_S if changes.came else min(2 * pause_s, _SAFETY_S)


class _Attempt:
    def __init__(self, candidates: Sequence[Holder], memory_capacity_bytes: int | None) -> None:
        self._candidates = candidates
        self._memory_capacity_bytes = memory_capacity_bytes
        self.busy: BusyError = BusyError("nothing to claim", [])

    def claim(self) -> Claim | None:
        for candidate in self._candidates:
            try:
                return claim(candidate, self._memory_capacity_bytes)
            except BusyError as error:
                self.busy = error
        return None


class _Queue:
    """The right to ask, held by one waiter among those that want the same shares."""

    def __init__(self, candidates: Sequence[Holder]) -> None:
        cpus = "_".join(str(min(candidate.cpus)) for candidate in candidates)
        self._path = f"{lock_directory()}/queue-{cpus}"
        self._mine = False

    def __enter__(self) -> _Queue:
        self._descriptor = open_lock(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def is_mine(self) -> bool:
        self._mine = self._mine or try_lock(self._descriptor)
        return self._mine


class _Changes:
    """Becomes ready when a holder signs, leaves or dies (inotify(7))."""

    came = False  # whether the last waiting ended so

    def __enter__(self) -> _Changes:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int | None = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        held = f"{lock_directory()}/held".encode()
        mask = ctypes.c_uint32(_IN_CLOSE_WRITE | _IN_CREATE | _IN_DELETE)
        if self._descriptor < 0:
            self._descriptor = None
        elif libc.inotify_add_watch(self._descriptor, held, mask) < 0:
            os.close(self._descriptor)
            self._descriptor = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def wait(self, timeout_s: float, watched: int) -> bool:
        """Sleeps until something changed or the time is over; True if `watched` became readable."""
        if self._descriptor is None:
            return bool(readable([watched], min(timeout_s, _POLL_S)))
        ready = readable([watched, self._descriptor], timeout_s)
        self.came = self._descriptor in ready
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, 1 << 16):
                pass
        return watched in ready
