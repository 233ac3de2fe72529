"""The process that watches one run.

take the locks -> sweep what an earlier run left -> write the start record -> create the group -> confine and
start -> watch -> kill all in it -> measure -> write the record -> release

It is nobody's child: double-forked, in a session of its own, so that neither the requester's terminal nor Ray
(which kills a worker's direct children) takes it along. The end of the link to its requester ends the run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError, RefusedError
from raytools.node import cgroup, confine, fairness, locks
from raytools.node.child import Child, fork_child
from raytools.node.inside import inside_environment
from raytools.node.link import Link
from raytools.node.plan_file import Node, Slot, load_node
from raytools.node.record import (
    FAILED,
    KILLED,
    OK,
    OOM,
    REFUSED,
    TIMEOUT,
    Host,
    Limits,
    Record,
    utc_now,
    write_json,
)
from raytools.node.request import BEST_EFFORT, RunRequest, candidate_slots, promised_limits
from raytools.node.sweep import RUN_NAME_PREFIX, sweep
from raytools.units import format_duration, format_size

_SAMPLE_S = 0.1
_CLAIM_POLL_S = 0.1
_OOM_COUNT_S = 0.2
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class _RequesterGoneError(RaytoolsError):
    """Nobody waits for this run any more."""


@dataclass
class _End:
    """How the main process ended, and what raytools did about it."""

    status: int | None = None  # of waitpid
    cause: str | None = None  # timeout | oom | killed, when we ended it
    message: str | None = None
    signals_forwarded: int = 0
    swept: int = 0
    left: int = 0


def serve(end: socket.socket, stdio: tuple[int, int, int] = (0, 1, 2)) -> None:
    """Runs one request that comes over the link, answers with events and the record, and exits.

    Args:
        end: our end of the socket pair to the requester.
        stdio: descriptors that become the command's 0, 1 and 2.
    """
    link = Link(end)
    link.close_on_exec()
    message = link.receive_one()
    if message is None:
        return
    request = RunRequest(**message["request"])
    record = Record(run_id=message["run_id"], command=request.command, attempt=request.attempt)
    record.started_at = utc_now()
    try:
        _Supervision(request, record, link, stdio).run()
    except _RequesterGoneError as error:
        record.outcome, record.message = KILLED, str(error)
    except locks.BusyError as error:
        record.outcome, record.message = REFUSED, str(error)
        link.send(event="busy", text=error.found)
    except RaytoolsError as error:
        record.outcome, record.message = REFUSED, str(error)
    except Exception:  # noqa: BLE001 - a defect of ours: there is no other way to tell than the link
        link.send(event="crashed", text=traceback.format_exc())
        return
    if record.finished_at is None:
        record.finished_at = utc_now()
        if request.record_path:
            write_json(request.record_path, record.to_json())
    link.send(event="finished", record=record.to_json())
    if request.scratch and link.closed:  # nobody is there to read an answer and to tidy up
        shutil.rmtree(request.scratch, ignore_errors=True)
    link.close()


class _Supervision:
    """The state of one run while it is watched."""

    def __init__(self, request: RunRequest, record: Record, link: Link, stdio: tuple[int, int, int]) -> None:
        self.request = request
        self.record = record
        self.link = link
        self.stdio = stdio
        self.name = f"{RUN_NAME_PREFIX}{record.run_id}"
        self.end = _End()
        self.main: int | None = None
        self.anon_peak_bytes: int | None = None

    def run(self) -> None:
        """The whole life of the run; fills in the record.

        Raises:
            RefusedError: it cannot get what it was promised; nothing was started.
        """
        node = load_node(Path(self.request.node_file) if self.request.node_file else None)
        driver = self._driver()
        with contextlib.ExitStack() as undo:
            slot, claim = self._claim(node, driver)
            undo.callback(claim.release)
            for dead in sweep():
                self.link.send(event="notice", text=dead.describe())
            self._describe(node, slot)
            temporary = undo.enter_context(_temporary_directory(self.name))
            self._write_start_record()
            group = self._group(driver)
            undo.callback(_remove, group)
            self._start_and_watch(group, node, temporary)
            if self.request.record_path:
                write_json(self.request.record_path, self.record.to_json())

    def _driver(self) -> cgroup.Driver | None:
        try:
            return cgroup.select_driver()
        except RefusedError as error:
            if self.request.enforce != BEST_EFFORT:
                raise RefusedError(
                    error.found,
                    expected=error.expected,
                    fix=". ".join(filter(None, [error.fix, "Or accept less: --enforce best-effort"])),
                ) from error
            self.record.enforced.missing.append(f"cgroup: {error.found}")
            return None

    def _claim(self, node: Node, driver: cgroup.Driver | None) -> tuple[Slot, locks.Claim]:
        """The first candidate slot that is free, waiting as long as the request allows."""
        slots = candidate_slots(self.request, node)
        deadline = time.monotonic() + self.request.wait_s
        told = False
        while True:
            for slot in slots:
                try:
                    return slot, locks.claim(self._holder(node, slot, driver), node.run_memory_bytes)
                except locks.BusyError as error:
                    busy = error
            if time.monotonic() >= deadline:
                raise busy
            if not told:
                self.link.send(event="notice", text=f"waiting: {busy.found}")
                told = True
            if self.link.receive(_CLAIM_POLL_S) or self.link.closed:  # a signal, or the end
                raise _RequesterGoneError("ended on request while it waited for its slot")

    def _holder(self, node: Node, slot: Slot, driver: cgroup.Driver | None) -> locks.Holder:
        limits = promised_limits(self.request, slot, node)
        return locks.Holder(
            run_id=self.record.run_id,
            pid=os.getpid(),
            user=locks.user_name(),
            cpus=slot.cpus,
            memory_bytes=limits.memory_bytes or slot.memory_bytes,
            command=self.request.command,
            started_at=self.record.started_at or utc_now(),
            slot=slot.index,
            record_path=self.request.record_path,
            traces={
                "cgroups": [str(path) for path in driver.paths(self.name)] if driver else [],
                "directories": [str(_temporary_path(self.name)), *filter(None, [self.request.scratch])],
            },
        )

    def _describe(self, node: Node, slot: Slot) -> None:
        self.record.limits = promised_limits(self.request, slot, node)
        self.record.host = Host(
            name=node.name,
            slot=slot.index,
            cpu_model=_cpu_model(),
            kernel=os.uname().release,
            environment=node.environment_id,
        )

    def _write_start_record(self) -> None:
        if self.request.record_path:
            try:
                write_json(self.request.record_path, self.record.to_json())
            except OSError as error:
                raise RefusedError(
                    f"the record cannot be written to {self.request.record_path}: {error.strerror}",
                    expected="a file in a directory that exists and is writable",
                ) from error

    def _group(self, driver: cgroup.Driver | None) -> cgroup.Group:
        limits, enforced = self.record.limits, self.record.enforced
        assert limits.cpu_set is not None
        assert limits.memory_bytes is not None
        assert limits.pids is not None
        if driver is None:
            tree = _process_tree(limits.memory_bytes)
            enforced.cpu, enforced.memory, enforced.time = "affinity", "polled", tree.kill_method
            enforced.missing += tree.missing
            return tree
        wanted = cgroup.GroupLimits(tuple(limits.cpu_set), limits.memory_bytes, limits.pids)
        with locks.node_mutex():  # the folder above the groups comes and goes with them
            group = driver.create(self.name, wanted)
        enforced.cpu = enforced.memory = group.kind
        enforced.time = group.kill_method
        enforced.missing += group.missing
        return group

    def _start_and_watch(self, group: cgroup.Group, node: Node, temporary: Path) -> None:
        record, limits = self.record, self.record.limits
        environment = inside_environment(
            self.request.environment,
            limits,
            record.run_id,
            temporary,
            node.shared_variables,
            {**node.run_defaults.get("env", {}), **self.request.variables},
        )
        confine.become_subreaper()
        with _woken_by_children() as wake:
            cpus = limits.cpu_set or []
            before = fairness.snapshot(cpus)
            child = fork_child(
                self.request.command, self.request.cwd, environment, limits, self.stdio, confined=True
            )
            started = time.monotonic()
            self.main = child.pid
            try:
                group.add(child.pid)
                self._release(child)
                self._watch(group, child.pid, started, wake)
            finally:
                self.end.swept, self.end.left = self._end_all(group)
            record.used.wall_s = round(time.monotonic() - started, 4)
            self._measure(group)
            record.fairness = fairness.judge(before, fairness.snapshot(cpus), record)
        self._conclude()

    def _release(self, child: Child) -> None:
        """Lets the command start, and lets go of the requester's files: pipes must end with the run."""
        result = child.release()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in self.stdio:
            os.dup2(null, descriptor)
        os.close(null)
        if result.confinement_error:
            self.record.enforced.missing.append(f"confinement: {result.confinement_error}")
        else:
            self.record.enforced.confinement = "mount-namespace"
        self.end.message = result.exec_error
        self.link.send(event="started", pid=child.pid)

    def _watch(self, group: cgroup.Group, main: int, started: float, wake: int) -> None:
        """Until the main process ends, the time is over, the memory limit killed, or nobody wants it."""
        limits = self.record.limits
        deadline = started + limits.time_s if limits.time_s is not None else None
        oom = group.oom_descriptor()
        poller = select.poll()
        for descriptor in (self.link.fileno(), wake, *([] if oom is None else [oom])):
            poller.register(descriptor, select.POLLIN)
        grace_over: float | None = None
        while not self.reap():
            now = time.monotonic()
            self._sample(group)
            if self.end.cause == OOM:
                return
            if grace_over is not None and now >= grace_over:
                return
            if grace_over is None and deadline is not None and now >= deadline:
                self.end.cause = TIMEOUT
                self.end.message = f"not finished after {format_duration(limits.time_s or 0)}"
                cgroup.signal_all([main], signal.SIGTERM)
                grace_over = now + limits.grace_s
                continue
            next_s = min(t for t in (now + _SAMPLE_S, grace_over or deadline) if t is not None) - now
            ready = {fd for fd, _event in poller.poll(max(0.0, next_s) * 1000)}
            if wake in ready:
                os.read(wake, 4096)
            if oom in ready:
                self._note_oom()
                _let_the_kernel_count(group)
                return
            if self.link.fileno() in ready and self._requests_end(main):
                return

    def _sample(self, group: cgroup.Group) -> None:
        usage = group.usage()
        if usage.anon_bytes is not None:
            self.anon_peak_bytes = max(self.anon_peak_bytes or 0, usage.anon_bytes)
        if usage.oom_kills and self.end.cause is None:
            self._note_oom()

    def _note_oom(self) -> None:
        self.end.cause = OOM
        self.end.message = f"exceeded {format_size(self.record.limits.memory_bytes or 0)} of memory"

    def _requests_end(self, main: int) -> bool:
        """Handles what the requester sent; True if the run must end now."""
        for message in self.link.receive(0):
            number = message["signal"]
            target = -os.getpgid(main) if message.get("group") else main
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, number)
            if number in _ENDING_SIGNALS:
                self.end.signals_forwarded += 1
                self.end.message = f"ended on request ({signal.Signals(number).name})"
        if self.link.closed:
            self.end.cause, self.end.message = KILLED, "its requester vanished"
            return True
        if self.end.signals_forwarded > 1:  # asked twice: no more patience
            self.end.cause = KILLED
            return True
        return False

    def reap(self) -> bool:
        """Collects ended descendants; True once the main process is among them."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self.main:
                    self.end.status = status
        return self.end.status is not None

    def _end_all(self, group: cgroup.Group) -> tuple[int, int]:
        """Kills whatever is left. Returns how many processes outlived the main one, and how many remain."""
        main_was_alive = not self.reap()
        found, left = cgroup.empty_group(_Reaping(group, self), timeout_s=10.0)
        return max(0, found - 1 if main_was_alive else found), left

    def _measure(self, group: cgroup.Group) -> None:
        usage, used = group.usage(), self.record.used
        used.cpu_s = None if usage.cpu_s is None else round(usage.cpu_s, 4)
        used.memory_peak_bytes = usage.memory_peak_bytes
        used.anon_peak_bytes = self.anon_peak_bytes
        used.oom_kills = usage.oom_kills
        used.throttled_s = usage.throttled_s
        used.processes_swept, used.processes_left = self.end.swept, self.end.left
        if usage.oom_kills and self.end.cause is None:
            self._note_oom()

    def _conclude(self) -> None:
        """The outcome: our own cause first, then how the main process ended."""
        record, end = self.record, self.end
        record.finished_at = utc_now()
        record.message = end.message
        status = end.status
        if status is not None and os.WIFEXITED(status):
            record.exit_code = os.WEXITSTATUS(status)
        elif status is not None:
            record.signal = os.WTERMSIG(status)
        if end.cause is not None:
            record.outcome = end.cause
        elif end.signals_forwarded and record.exit_code != 0:
            record.outcome = KILLED
        else:
            record.outcome = OK if record.exit_code == 0 else FAILED


class _Reaping:
    """A group whose dead are collected while it is emptied: zombies of ours would keep it busy."""

    def __init__(self, group: cgroup.Group, supervision: _Supervision) -> None:
        self._group = group
        self._supervision = supervision

    def processes(self) -> list[int]:
        self._supervision.reap()
        return self._group.processes()

    def kill(self) -> None:
        self._group.kill()


def _let_the_kernel_count(group: cgroup.Group) -> None:
    """The event comes before the kernel's own kill, which alone is counted: do not be quicker than it."""
    deadline = time.monotonic() + _OOM_COUNT_S
    while not group.usage().oom_kills and time.monotonic() < deadline:
        time.sleep(0.002)


def _process_tree(memory_limit_bytes: int) -> cgroup.Group:
    try:
        from raytools.node.process_tree import ProcessTree  # psutil costs 15 ms of start-up
    except ModuleNotFoundError as error:
        raise RefusedError(
            f"best effort needs the Python package {error.name}, which {sys.executable} does not have",
            expected="the raytools environment's Python",
            fix="Run it from there, or allow cgroups: raytools run --check says how",
        ) from error
    return ProcessTree(memory_limit_bytes)


def _remove(group: cgroup.Group) -> None:
    with locks.node_mutex():  # the folder above may go with its last group
        group.remove()


def _temporary_path(name: str) -> Path:
    # not below TMPDIR: Ray's sockets inside need a short path
    return Path("/tmp") / name


@contextlib.contextmanager
def _temporary_directory(name: str) -> Iterator[Path]:
    """The run's private directory with the token of its private Ray; gone with the run."""
    path = _temporary_path(name)
    path.mkdir(mode=0o700)
    try:
        token = path / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _woken_by_children() -> Iterator[int]:
    """A descriptor that becomes readable whenever a child ends."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(-1)
        os.close(read)
        os.close(write)


def _cpu_model() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return None


def main(arguments: list[str]) -> int:
    """`python -m raytools.node supervise --link FD`: how a Ray worker, which cannot fork, starts one."""
    descriptor = int(arguments[arguments.index("--link") + 1])
    detach(lambda: serve(socket.socket(fileno=descriptor)))
    return 0


def detach(body: Any) -> None:
    """Runs `body` in a process that is nobody's child, in a session of its own; returns when it is off."""
    pid = os.fork()
    if pid != 0:
        os.waitpid(pid, 0)
        return
    status = 70  # EX_SOFTWARE, should anything below fail
    try:
        os.setsid()
        if os.fork() == 0:
            for number in _ENDING_SIGNALS:  # a person who pressed Ctrl-C meant the requester
                signal.signal(number, signal.SIG_IGN)
            body()
        status = 0
    finally:
        os._exit(status)


__all__ = ["Limits", "detach", "main", "serve"]
