"""The process that watches one run.

take the locks -> sweep what an earlier run left -> write the start record -> create the group ->
start inside, confined -> watch -> kill all in it -> measure -> write the record -> release

In a session of its own, so that the requester's terminal does not take it along; of a request through Ray
it is nobody's child either: Ray kills a worker's direct children. The end of the link to its requester ends
the run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

from raytools.errors import RaytoolsError, RefusedError
from raytools.node import cgroup, child, confine, fairness, locks
from raytools.node.cgroup_tree import OwnCgroups, locate_self, read_text
from raytools.node.inside import inside_environment
from raytools.node.link import Link
from raytools.node.plan_file import Node, Slot, load_node
from raytools.node.record import FAILED, KILLED, OK, REFUSED, Host, Record, utc_now, write_json
from raytools.node.request import BEST_EFFORT, RunRequest, candidate_slots, promised_limits
from raytools.node.sweep import RUN_NAME_PREFIX, remove_tree, sweep, sweep_calls
from raytools.node.waiting import CalledOffError, claim_first
from raytools.node.watch import ENDING_SIGNALS, Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# what a terminal or a person at it sends; a person who pressed Ctrl-C or Ctrl-Z meant the command
_IGNORED_SIGNALS = (*ENDING_SIGNALS, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_KILL_TIMEOUT_S = 10.0
_asked_to_end: list[int] = []  # SIGTERM to this process: its command has been sent one by the same hand


def serve(
    request: RunRequest, run_id: str, link: Link, stdio: tuple[int, int, int], foreign: list[int]
) -> None:
    """Runs one request, answers with events and the record.

    Args:
        request: what to run.
        run_id: names it.
        link: to the requester.
        stdio: descriptors that become the command's 0, 1 and 2.
        foreign: other descriptors that came with the fork; the command keeps those that are inheritable.
    """
    record = Record(run_id=run_id, command=request.command, attempt=request.attempt)
    record.started_at = utc_now()
    try:
        _Supervision(request, record, link, stdio, foreign).run()
    except CalledOffError:
        asked = [message["signal"] for message in link.receive(0) if "signal" in message]
        record.signal = asked[0] if asked else None
        how = signal.Signals(asked[0]).name if asked else "its requester vanished"
        record.outcome, record.message = KILLED, f"ended on request ({how}) while it waited for its slot"
    except locks.BusyError as error:
        record.outcome, record.message = REFUSED, str(error)
        link.send(event="busy", text=error.found)
    except RaytoolsError as error:
        record.outcome, record.message = REFUSED, str(error)
    except Exception:  # noqa: BLE001 - a defect of ours: there is no other way to tell than the link
        import traceback

        link.send(event="crashed", text=traceback.format_exc())
        return
    if record.finished_at is None:
        record.finished_at = utc_now()
        _save(record, request.record_path, link)
    link.send(event="finished", record=record.to_json())
    if request.scratch and (link.closed or link.receive(0) or link.closed):  # nobody is there to tidy up
        remove_tree(request.scratch)
    link.close()


class _Supervision:
    """The state of one run while it is watched."""

    def __init__(
        self, request: RunRequest, record: Record, link: Link, stdio: tuple[int, int, int], foreign: list[int]
    ) -> None:
        self.request = request
        self.record = record
        self.link = link
        self.stdio = stdio
        self.foreign = foreign
        self.name = f"{RUN_NAME_PREFIX}{record.run_id}"
        self.denied_devices: tuple[str, ...] = ()

    def run(self) -> None:
        """The whole life of the run; fills in the record.

        Raises:
            RefusedError: it cannot get what it was promised; nothing was started.
            CalledOffError: the requester left before it started.
        """
        node = load_node(self.request.node_file)
        groups = locate_self()
        driver = self._driver(groups)
        if driver is not None and driver.kind == "cgroup-v2":
            groups = locate_self()  # it may have moved this process into a scope
        with contextlib.ExitStack() as undo:
            slot, claim = self._claim(node, driver)
            undo.callback(claim.release)
            if self.request.scratch:
                sweep_calls()
            for dead in sweep():
                self.link.send(event="notice", text=dead.describe())
            self._describe(node, slot)
            self.denied_devices = _devices_of_gpus(set(node.whole.gpus) - set(self.record.limits.gpus))
            temporary = undo.enter_context(self._temporary_directory())
            self._write_start_record()
            group = self._group(driver)
            undo.callback(self._remove, group, claim)
            self._start_and_watch(group, node, groups, temporary)
            _save(self.record, self.request.record_path, self.link)

    def _driver(self, groups: OwnCgroups) -> cgroup.Driver | None:
        try:
            return cgroup.select_driver(groups, scope_name=f"raytools-{self.record.run_id}")
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
        claim = claim_first(
            [self._holder(node, slot, driver) for slot in slots],
            node.run_memory_bytes,
            self.request.wait_s,
            watched=self.link.fileno(),  # a signal, or the end
            on_wait=lambda busy: self.link.send(event="notice", text=f"waiting: {busy.found}"),
        )
        return next(slot for slot in slots if slot.index == claim.holder.slot), claim

    def _holder(self, node: Node, slot: Slot, driver: cgroup.Driver | None) -> locks.Holder:
        limits = promised_limits(self.request, slot, node)
        return locks.Holder(
            run_id=self.record.run_id,
            pid=os.getpid(),
            user=cgroup.user_name(),
            cpus=slot.cpus,
            memory_bytes=limits.memory_bytes or slot.memory_bytes,
            command=self.request.command,
            started_at=self.record.started_at or utc_now(),
            slot=slot.index,
            record_path=self.request.record_path,
            traces={
                "cgroups": driver.paths(self.name) if driver else [],
                "directories": [_temporary_path(self.name), *filter(None, [self.request.scratch])],
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

    @contextlib.contextmanager
    def _temporary_directory(self) -> Iterator[str]:
        """The run's private directory with the token of its private Ray; gone with the run."""
        path = _temporary_path(self.name)
        try:
            _make_temporary(path)
            yield path
        finally:
            if not remove_tree(path):
                self.link.send(event="notice", text=f"{path} cannot be removed")

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
        enforced = self.record.enforced
        if driver is None:
            tree = _process_tree(self._limits().memory_bytes)
            enforced.cpu, enforced.memory, enforced.time = "affinity", "polled", tree.kill_method
            enforced.missing += tree.missing
            return tree
        group = driver.create(self.name, self._limits())
        enforced.cpu = enforced.memory = group.kind
        enforced.time = group.kill_method
        enforced.missing += group.missing
        return group

    def _remove(self, group: cgroup.Group, claim: locks.Claim) -> None:
        """Nothing that fails here changes how the run ended; a later run tries again."""
        try:
            group.remove()
        except OSError as error:
            claim.leave_to_sweep()
            self.link.send(event="notice", text=f"its group cannot be removed yet: {error}")

    def _limits(self) -> cgroup.GroupLimits:
        limits = self.record.limits
        return cgroup.GroupLimits(
            tuple(limits.cpu_set or ()),
            limits.memory_bytes or 0,
            limits.pids or 0,
            self.denied_devices,
        )

    def _start_and_watch(self, group: cgroup.Group, node: Node, groups: OwnCgroups, temporary: str) -> None:
        record, limits = self.record, self.record.limits
        raylet = _pidfd(self.request.raylet_pid)
        before = fairness.snapshot(limits.cpu_set or [], groups)
        process = self._start(group, node, groups, temporary)
        main = group.processes(besides=process.init)[0]  # it waits to be released, alone in its group
        prepared_s = group.cpu_s() or 0.0  # by the process that becomes the command
        in_terminal = self.request.terminal_group is not None
        watch = Watch(group, process, main, self.link, limits, raylet, in_terminal)
        started = time.monotonic()
        try:
            watch.end.message = process.release()
            self._let_go_of_files()
            self.link.send(event="started", pid=main)
            watch.until_end(started)
        finally:
            swept, left = self._end_all(group, process, main_has_ended=watch.end.status is not None)
        record.used.wall_s = round(time.monotonic() - started, 4)
        record.used.processes_swept, record.used.processes_left = swept, left
        usage = group.usage()
        record.enforced.missing += group.changed_limits(self._limits())
        watch.note_oom_kills(usage.oom_kills)
        self._measure(usage, prepared_s, watch.anon_peak_bytes)
        after = fairness.snapshot(limits.cpu_set or [], groups)
        ran_out_above = bool(usage.oom_kills) and not group.hit_own_limit()
        record.fairness = fairness.judge(before, after, record, usage.cpu_pressure_s, ran_out_above)
        self._conclude(watch)

    def _start(self, group: cgroup.Group, node: Node, groups: OwnCgroups, temporary: str) -> child.Process:
        request, record = self.request, self.record
        shown = group.visible()
        hidden = [mount_point for mount_point in groups.mount_points if mount_point not in shown]
        command = child.Command(
            arguments=request.command,
            cwd=request.cwd,
            environment=inside_environment(
                request.environment,
                record.limits,
                record.run_id,
                temporary,
                node.shared_variables,
                {**node.run_defaults.get("env", {}), **request.variables},
            ),
            stdio=self.stdio,
            foreign=self.foreign,
            cpus=record.limits.cpu_set or [],
            entrances=group.entrances(),
            birthplace=group.birthplace(),
            surroundings=confine.Surroundings(
                memory_bytes=record.limits.memory_bytes or 0,
                shown=shown,
                read_only=tuple(point for point in hidden if point not in groups.unified_mount_points),
                covered=tuple(point for point in hidden if point in groups.unified_mount_points),
                shares_terminal=request.terminal_group is not None,
            ),
            shares_terminal=request.terminal_group is not None,
            ignores_hangup=request.ignores_hangup,
        )
        process = child.start(command, record.enforced.missing)
        if process.level != confine.NOTHING:
            record.enforced.confinement = "mount-namespace"
        if request.terminal_group is not None:
            os.setpgid(0, 0)  # the command may signal the group of its terminal
        return process

    def _let_go_of_files(self) -> None:
        """The requester's files are the command's now: pipes must end with the run."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in self.stdio:
            os.dup2(null, descriptor)
        for descriptor in self.foreign:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        os.close(null)

    def _end_all(self, group: cgroup.Group, process: child.Process, main_has_ended: bool) -> tuple[int, int]:
        """Kills whatever is left. Returns how many processes outlived the main one, and how many remain."""

        def members() -> list[int]:
            return group.processes(besides=process.init)

        found = len(members())
        if process.level == confine.FULL:
            process.end_namespace()
        _, left = cgroup.empty_group(members, group.kill, timeout_s=_KILL_TIMEOUT_S)
        process.end(collect=left == 0)
        return (found if main_has_ended else max(0, found - 1)), left

    def _measure(self, usage: cgroup.GroupUsage, prepared_s: float, anon_peak_bytes: int | None) -> None:
        used = self.record.used
        used.cpu_s = None if usage.cpu_s is None else round(max(0.0, usage.cpu_s - prepared_s), 4)
        used.memory_peak_bytes = usage.memory_peak_bytes
        used.anon_peak_bytes = anon_peak_bytes
        used.oom_kills = usage.oom_kills
        used.throttled_s = usage.throttled_s

    def _conclude(self, watch: Watch) -> None:
        """The outcome: our own cause first, then how the main process ended."""
        record, end = self.record, watch.end
        record.finished_at = utc_now()
        record.message = end.message
        if end.status is not None and os.WIFEXITED(end.status):
            record.exit_code = os.WEXITSTATUS(end.status)
        elif end.status is not None:
            record.signal = os.WTERMSIG(end.status)
        if end.cause is not None:
            record.outcome = end.cause
        elif _asked_to_end and record.signal == signal.SIGTERM:
            record.outcome, record.message = (
                KILLED,
                "ended by the service manager (SIGTERM to all of its scope)",
            )
        elif end.ending_signals and record.exit_code != 0:
            record.outcome = KILLED
        else:
            record.outcome = OK if record.exit_code == 0 else FAILED


def _save(record: Record, path: str | None, link: Link) -> None:
    """Writes the record of a run that has ended: nothing that fails here changes how it ended."""
    if path is None:
        return
    try:
        write_json(path, record.to_json())
    except OSError as error:
        link.send(event="notice", text=f"the record cannot be written to {path}: {error.strerror}")


def _process_tree(memory_limit_bytes: int) -> cgroup.Group:
    try:
        from raytools.node.process_tree import ProcessTree  # psutil costs 15 ms of start-up
    except ModuleNotFoundError as error:
        raise RefusedError(
            f"best effort needs the Python package {error.name}, which {sys.executable} does not have",
            expected="the raytools environment's Python",
            fix="Run it from there, or allow cgroups: raytools run --check says how",
        ) from error
    confine.become_subreaper()  # whatever leaves its parents stays in the tree
    return ProcessTree(memory_limit_bytes)


def _pidfd(pid: int | None) -> int | None:
    """A descriptor that polls readable when this process ends."""
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise RefusedError("the raylet that asked for this run is gone already") from error
    except OSError:  # before Linux 5.3: the end of its worker tells later
        return None


def _make_temporary(path: str) -> None:
    try:
        os.mkdir(path, mode=0o700)
        descriptor = os.open(f"{path}/token", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, os.urandom(32).hex().encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RefusedError(
            f"the run's directory {path} cannot be made: {error.strerror}",
            expected="room and write permission in /tmp",
        ) from error


def _devices_of_gpus(indices: set[int]) -> tuple[str, ...]:
    """GPUs of the node that are not this run's, as cgroup v1 names devices."""
    found = []
    for index in sorted(indices):
        with contextlib.suppress(OSError):  # no device file: nothing to open
            number = os.stat(f"/dev/nvidia{index}").st_rdev
            found.append(f"c {os.major(number)}:{os.minor(number)}")
    return tuple(found)


def _temporary_path(name: str) -> str:
    return f"/tmp/{name}"  # not below TMPDIR: Ray's sockets inside need a short path


def _cpu_model() -> str | None:
    _, found, rest = (read_text("/proc/cpuinfo") or "").partition("\nmodel name")
    return rest.split("\n", 1)[0].partition(":")[2].strip() if found else None


def main(arguments: list[str]) -> int:
    """`python -m raytools.node supervise --link IN,OUT`: how a Ray worker, which cannot fork, starts one."""
    incoming, outgoing = map(int, arguments[arguments.index("--link") + 1].split(","))
    for descriptor in (incoming, outgoing):
        os.set_inheritable(descriptor, False)
    link = Link(incoming, outgoing)

    def body() -> None:
        message = link.receive_one()
        if message is not None:
            serve(RunRequest(**message["request"]), message["run_id"], link, (0, 1, 2), [])

    detach(body)
    return 0


def detach(body: Callable[[], None]) -> None:
    """Runs `body` in a process that is nobody's child; returns when it is off."""

    def between() -> None:
        fork_off(body)

    pid = fork_off(between)
    with contextlib.suppress(ChildProcessError):  # the caller ignores SIGCHLD
        os.waitpid(pid, 0)


def fork_off(body: Callable[[], None]) -> int:
    """Runs `body` in a child of its own session; the child ends with it. Returns its pid."""
    pid = os.fork()
    if pid != 0:
        return pid
    status = 70  # EX_SOFTWARE, should anything below fail
    try:
        leave_requester(own_session=True)
        body()
        status = 0
    finally:
        os._exit(status)


def leave_requester(own_session: bool) -> None:
    """Makes this process one that a person's keys do not reach.

    Args:
        own_session: whether to leave the terminal.
    """
    if own_session:
        os.setsid()
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _frame: _asked_to_end.append(number))
    # ignored, as a caller may have it, the kernel would collect our children
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    confine.set_name("raytools-run")
    _survive_low_memory()


def _survive_low_memory() -> None:
    """Ray's workers offer themselves to the kernel's OOM killer; a supervisor should not be its choice."""
    with contextlib.suppress(OSError):
        cgroup.write_file("/proc/self/oom_score_adj", "0")
