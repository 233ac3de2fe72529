"""Watching a run until it has to end: its main process, its time, its memory, its requester, its raylet."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from raytools.node import cgroup
from raytools.node.child import Process
from raytools.node.link import Link
from raytools.node.plain import Plain
from raytools.node.record import KILLED, LOST, OOM, TIMEOUT, Limits
from raytools.units import format_duration, format_size

_FIRST_SAMPLE_S, _LAST_SAMPLE_S = 0.01, 0.1  # a short run is sampled more often
_OOM_COUNT_S = 0.2
_ANSWER_S = 5.0  # a requester that is stopped gives none
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class End(Plain):
    """How the main process ended, and what raytools did about it."""

    status: int | None = None  # of waitpid
    cause: str | None = None  # timeout | oom | killed | lost, when it did not end by itself
    message: str | None = None
    ending_signals: int = 0


class Watch:
    """One run from its start to the moment when nothing of it may go on."""

    def __init__(
        self,
        group: cgroup.Group,
        process: Process,
        main: int,
        link: Link,
        limits: Limits,
        raylet: int | None,
        shares_terminal: bool,
    ) -> None:
        self._group = group
        self._process = process
        self._main = main
        self._link = link
        self._limits = limits
        self._raylet = raylet  # a pidfd
        self._shares_terminal = shares_terminal
        self.end = End()
        self.anon_peak_bytes: int | None = None

    def until_end(self, started: float) -> None:
        """Returns when the main process has ended, the time is over, the memory limit killed, or nobody
        wants the run any more; what is left of it has to be killed then.

        Args:
            started: when it started, of time.monotonic.
        """
        oom = self._group.oom_descriptor()
        poller = select.poll()
        for descriptor in (self._link.fileno(), self._process.events, self._raylet, oom):
            if descriptor is not None:
                poller.register(descriptor, select.POLLIN)
        time_s = self._limits.time_s
        deadline = None if time_s is None else started + time_s
        grace_over: float | None = None
        next_sample = started + _FIRST_SAMPLE_S
        while True:
            now = time.monotonic()
            if grace_over is not None and now >= grace_over:
                return
            if grace_over is None and deadline is not None and now >= deadline:
                # who looks late, as on a busy machine, may find that it has ended in time
                if self._has_to_end({descriptor for descriptor, _event in poller.poll(0)}, oom):
                    return
                self._note(TIMEOUT, f"not finished after {format_duration(time_s or 0)}")
                cgroup.signal_all([self._main], signal.SIGTERM)
                grace_over = now + self._limits.grace_s
                continue
            if now >= next_sample:
                self._sample(samples_oom=oom is None)
                next_sample = now + min(max(_FIRST_SAMPLE_S, (now - started) / 10), _LAST_SAMPLE_S)
            due = min(t for t in (next_sample, grace_over or deadline) if t is not None)
            ready = {fd for fd, _event in poller.poll(max(0.0, due - now) * 1000)}
            if self._has_to_end(ready, oom):
                return

    def _has_to_end(self, ready: set[int], oom: int | None) -> bool:
        if oom in ready:
            self._note_oom()
            # the kernel kills one process on v1: the others must not go on as if nothing had happened
            self._group.freeze(True)
            _let_the_kernel_count(self._group)
            self._group.kill()
            return True
        if self._process.events in ready and self._has_ended():
            return True
        if self._raylet in ready:
            self._note(LOST, "the raylet that had started it vanished")
            return True
        if self._link.fileno() in ready and self._has_to_end_on_request():
            return True
        return self.end.cause == OOM

    def _has_ended(self) -> bool:
        """Takes what `init` says: the main process ended, or was stopped as by Ctrl-Z."""
        events = self._process.read_events()
        if events is None:
            self._note(LOST, "its first process was killed from outside")
            return True
        for event in events:
            if "status" in event:
                self.end.status = event["status"]
                self._hear_why()
                return True
            if event.get("stopped"):
                self._link.offer(event="stopped", pid=self._main)
        return False

    def _hear_why(self) -> None:
        """Ctrl-C reaches the command and its requester at once, but the requester may be the last to look.

        So it is asked: the kernel has signalled the whole group before it lets one of its members end.
        """
        status = self.end.status or 0
        by_signal = os.WIFSIGNALED(status) and os.WTERMSIG(status) in ENDING_SIGNALS
        if self._shares_terminal and by_signal and self.end.ending_signals == 0:
            self._link.offer(event="why")
            deadline = time.monotonic() + _ANSWER_S
            while not self._link.closed and time.monotonic() < deadline:
                messages = self._link.receive(deadline - time.monotonic())
                for message in messages:
                    if "signal" in message:
                        self._pass_on(message["signal"], group=False, delivered=True)
                if self.end.ending_signals or any("told" in message for message in messages):
                    break
            if self._link.closed:
                self._note(KILLED, "its requester vanished")

    def _sample(self, samples_oom: bool) -> None:
        anon_bytes = self._group.anon_bytes()
        if anon_bytes is not None:
            self.anon_peak_bytes = max(self.anon_peak_bytes or 0, anon_bytes)
        if samples_oom and self._group.oom_kills():
            self._note_oom()

    def _has_to_end_on_request(self) -> bool:
        """Handles what the requester sent; True if the run must end now."""
        for message in self._link.receive(0):
            if "end" in message:
                self._note(KILLED, message["end"])
                return True
            self._pass_on(message["signal"], bool(message.get("group")), bool(message.get("delivered")))
        if self._link.closed:
            if self._raylet is not None and _is_over(self._raylet):
                self._note(LOST, "the raylet that had started it vanished")
            else:
                self._note(KILLED, "its requester vanished")
            return True
        if self.end.ending_signals > 1:  # asked twice: no more patience
            self._note(KILLED, None)
            return True
        return False

    def _pass_on(self, number: int, group: bool, delivered: bool) -> None:
        """A signal for the main process or its group; the terminal may have delivered it already."""
        if not delivered:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-os.getpgid(self._main) if group else self._main, number)
        # a terminal's end is told by the kernel and by the shell: that is no impatience
        hangs_up_again = number == signal.SIGHUP and self.end.ending_signals > 0
        if number in ENDING_SIGNALS and not hangs_up_again:
            self.end.ending_signals += 1
            self.end.message = f"ended on request ({signal.Signals(number).name})"

    def _note_oom(self) -> None:
        limit = format_size(self._limits.memory_bytes or 0)
        if self._group.hit_own_limit():
            self._note(OOM, f"exceeded {limit} of memory")
        else:
            self._note(OOM, f"killed inside its {limit} of memory: a group above or the machine had no more")

    def _note(self, cause: str, message: str | None) -> None:
        """The first cause counts."""
        if self.end.cause is None:
            self.end.cause = cause
            self.end.message = message or self.end.message

    def note_oom_kills(self, count: int | None) -> None:
        """At the end: the group says that the memory limit killed something, unless we ended it ourselves."""
        if count:
            self._note_oom()


def _is_over(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _let_the_kernel_count(group: cgroup.Group) -> None:
    """The event comes before the kernel's own kill, which alone is counted: do not be quicker than it."""
    deadline = time.monotonic() + _OOM_COUNT_S
    while not group.oom_kills() and time.monotonic() < deadline:
        time.sleep(0.002)
