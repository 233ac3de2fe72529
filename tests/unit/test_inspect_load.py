"""Who uses this machine beside the cluster, and what hangs: on real processes of this machine.

The machine that runs the tests has other things to do. Each test looks at its own processes only.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raytools.node import cgroup_tree, inspect_load
from raytools.node.inspect_load import BUSY_CPUS, Look, compare_with_now, look, parse_cpu_times, parse_process
from raytools.node.inspect_processes import RUN_VARIABLE, SESSION_VARIABLE, user_name

MIB = 2**20
LIMIT_S = 60.0  # for what takes a moment on a machine that is not busy
COMPUTES = "while True: pass"
HOLDS = "held = b'x' * (100 * 2**20); print('ready', flush=True); import time; time.sleep(600)"
SHARES = (
    "import mmap, time; held = mmap.mmap(-1, 100 * 2**20); held.write(b'x' * len(held)); "
    "print('ready', flush=True); time.sleep(600)"
)
# its children have ended, for certain, and nobody collects them
NEGLECTS = """
import os, time
children = [os.fork() or os._exit(0) for _ in range(3)]
for child in children:
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
print(*children, flush=True)
time.sleep(600)
"""
# the parent of a vfork waits in state D until its child becomes another program, which it never does
HANGS = """
import ctypes, os, time
if ctypes.CDLL(None).vfork() == 0:
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(600)
"""

_OURS = (RUN_VARIABLE, SESSION_VARIABLE)
_WITHOUT_RUN = {name: value for name, value in os.environ.items() if name not in _OURS}


def wait_until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s: {what}"
        time.sleep(0.01)


class Strangers:
    """Starts processes that are not this one's own: a shell stands between."""

    def __init__(self) -> None:
        self._shells: list[subprocess.Popen[str]] = []
        self.pids: list[int] = []

    def start(self, code: str, prefix: str = "", **variables: str) -> int:
        """The process that runs some Python.

        Args:
            code: of Python.
            prefix: words before the interpreter.
            variables: of its environment, and of the shell's.
        """
        command = f"{prefix} {shlex.quote(sys.executable)} -c {shlex.quote(code)} & echo $!; wait"
        self._shells.append(
            subprocess.Popen(
                ["sh", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                env={**_WITHOUT_RUN, **variables},
            )
        )
        pid = int(self.said())
        self.pids.append(pid)
        return pid

    def said(self) -> str:
        """The next line of the process that was started last."""
        stdout = self._shells[-1].stdout
        assert stdout is not None
        return stdout.readline()

    def shell(self) -> int:
        """The parent of the process that was started last."""
        return self._shells[-1].pid

    def end(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for shell in self._shells:
            shell.wait(LIMIT_S)
            assert shell.stdout is not None
            shell.stdout.close()
        self.pids.clear()
        self._shells.clear()


@pytest.fixture
def strangers() -> Iterator[Strangers]:
    started = Strangers()
    try:
        yield started
    finally:
        started.end()


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Narrows what is seen to some processes."""

    def narrow(*pids: int) -> None:
        def narrowed() -> Look:
            found = look()
            return replace(found, processes={pid: one for pid, one in found.processes.items() if pid in pids})

        monkeypatch.setattr(inspect_load, "look", narrowed)

    return narrow


def computed_ticks(pid: int) -> int:
    seen = parse_process(Path(f"/proc/{pid}/stat").read_text())
    assert seen is not None
    return seen.cpu_ticks


def after_it_computed(pid: int, first: Look) -> dict[str, Any]:
    """What is found once a process has used CPU time since a look."""
    before = first.processes[pid].cpu_ticks
    wait_until(lambda: computed_ticks(pid) >= before + 10, f"process {pid} computes")
    return compare_with_now(first)


# --- CPUs ----------------------------------------------------------------------------------------


def test_a_process_that_computes_is_foreign_and_named(
    strangers: Strangers, only: Callable[..., None]
) -> None:
    busy = strangers.start(COMPUTES)
    only(busy)
    found = after_it_computed(busy, inspect_load.look())
    (user,) = found["users"]["cpu"]
    assert 0 < found["foreign_cpus"] <= 1.5
    assert user["cpus"] == found["foreign_cpus"]
    assert user["pid"] == busy
    assert user["name"] == Path(f"/proc/{busy}/comm").read_text().strip()
    assert user["user"] == user_name(os.getuid())


@pytest.mark.parametrize("variable", _OURS)
def test_a_process_of_a_run_or_of_our_ray_is_not_foreign(
    strangers: Strangers, only: Callable[..., None], variable: str
) -> None:
    busy = strangers.start(COMPUTES, **{variable: "r1"})
    only(busy)
    found = after_it_computed(busy, inspect_load.look())
    assert (found["foreign_cpus"], found["users"]["cpu"]) == (0, [])


def test_another_question_of_the_doctor_to_this_node_is_not_foreign(
    strangers: Strangers, only: Callable[..., None]
) -> None:
    busy = strangers.start(f"{COMPUTES}\n# python -m raytools.node ray-view")
    only(busy)
    found = after_it_computed(busy, inspect_load.look())
    assert (found["foreign_cpus"], found["users"]["cpu"]) == (0, [])


def test_what_a_run_has_started_without_its_variables_belongs_to_the_run(
    strangers: Strangers, only: Callable[..., None]
) -> None:
    busy = strangers.start(COMPUTES, prefix="env -i", **{RUN_VARIABLE: "r1"})
    environment = Path(f"/proc/{busy}/environ")
    wait_until(lambda: RUN_VARIABLE.encode() not in environment.read_bytes(), "env has become Python")
    only(busy, strangers.shell())
    found = after_it_computed(busy, inspect_load.look())
    assert (found["foreign_cpus"], found["users"]["cpu"]) == (0, [])


def test_what_looks_and_what_it_starts_is_not_foreign(only: Callable[..., None]) -> None:
    with subprocess.Popen([sys.executable, "-c", COMPUTES]) as child:
        try:
            only(child.pid, os.getpid(), os.getppid())
            found = after_it_computed(child.pid, inspect_load.look())
        finally:
            child.kill()
    assert (found["foreign_cpus"], found["foreign_memory_bytes"]) == (0, 0)


def test_the_load_of_a_moment_is_none(strangers: Strangers, only: Callable[..., None]) -> None:
    busy = strangers.start(
        "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ntime.sleep(600)"
    )
    only(busy)
    first = inspect_load.look()
    assert strangers.said() == "done\n"
    found = compare_with_now(first)
    assert found["foreign_cpus"] < BUSY_CPUS


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of the machine with a name that raytools gives to a user's runs."""
    groups = cgroup_tree.locate_self()
    directory = groups.own.get("pids") or groups.own.get(cgroup_tree.UNIFIED)
    if directory is None:
        pytest.skip("there are no control groups here")
    path = Path(directory, f"raytools-user-{os.getpid()}")
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"needs to make a control group: {error}")
    try:
        yield path
    finally:
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                path.rmdir()
                break
            except OSError:  # who was in it has not quite ended
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_a_process_in_a_group_of_runs_is_not_foreign_whatever_its_variables(
    strangers: Strangers, only: Callable[..., None], group: Path
) -> None:
    busy = strangers.start(COMPUTES)
    try:
        (group / "cgroup.procs").write_text(str(busy))
    except OSError as error:
        pytest.skip(f"needs to move a process to another control group: {error}")
    only(busy)
    try:
        found = after_it_computed(busy, inspect_load.look())
    finally:
        strangers.end()  # before the group
    assert (found["foreign_cpus"], found["users"]["cpu"]) == (0, [])


# --- memory --------------------------------------------------------------------------------------


def test_memory_that_somebody_holds_is_counted_and_named(
    strangers: Strangers, only: Callable[..., None]
) -> None:
    holder = strangers.start(HOLDS)
    assert strangers.said() == "ready\n"
    ours = strangers.start(HOLDS, **{RUN_VARIABLE: "r1"})
    assert strangers.said() == "ready\n"
    only(holder, ours)
    found = compare_with_now(inspect_load.look())
    (user,) = found["users"]["memory"]
    assert 100 * MIB < found["foreign_memory_bytes"] < 160 * MIB
    assert (user["pid"], user["memory_bytes"]) == (holder, found["foreign_memory_bytes"])


def test_memory_that_is_shared_is_not_somebodys(strangers: Strangers, only: Callable[..., None]) -> None:
    sharer = strangers.start(SHARES)
    assert strangers.said() == "ready\n"
    only(sharer)
    assert compare_with_now(inspect_load.look())["foreign_memory_bytes"] < 50 * MIB


# --- what hangs ----------------------------------------------------------------------------------


def test_children_that_are_not_collected_are_counted_with_their_parent(
    strangers: Strangers, only: Callable[..., None]
) -> None:
    parent = strangers.start(NEGLECTS)
    children = [int(pid) for pid in strangers.said().split()]
    only(parent, *children)
    assert compare_with_now(inspect_load.look())["zombies"] == [
        {
            "pid": parent,
            "name": Path(f"/proc/{parent}/comm").read_text().strip(),
            "user": user_name(os.getuid()),
            "count": 3,
        }
    ]


def test_a_process_that_cannot_be_interrupted_is_named_and_one_that_sleeps_is_not(
    strangers: Strangers, only: Callable[..., None]
) -> None:
    hanging = strangers.start(HANGS)
    child = int(strangers.said())
    strangers.pids.append(child)
    state = Path(f"/proc/{hanging}/stat").read_text().rpartition(")")[2].split()[0]
    if state != "D":
        pytest.skip(f"needs a kernel where the parent of a vfork is in state D; it is in {state}")
    only(hanging, child)
    found = compare_with_now(inspect_load.look())
    assert [one["pid"] for one in found["stuck"]] == [hanging]
    assert found["foreign_cpus"] < BUSY_CPUS


def test_a_process_that_hung_only_for_a_moment_is_not_named(
    strangers: Strangers, only: Callable[..., None]
) -> None:
    hanging = strangers.start(HANGS)
    strangers.pids.append(int(strangers.said()))
    only(hanging)
    first = inspect_load.look()
    os.kill(hanging, signal.SIGKILL)
    strangers.pids.remove(hanging)
    wait_until(lambda: not Path(f"/proc/{hanging}").exists(), "it has ended")
    assert compare_with_now(first)["stuck"] == []


# --- what the kernel says ------------------------------------------------------------------------

# of a machine whose hypervisor gives a part of its time to others
STAT = "cpu  100 0 50 800 10 0 0 {steal} 7 0\ncpu0 100 0 50 800 10 0 0 40 7 0\nintr 1\n"


def test_the_time_of_guests_is_not_counted_twice() -> None:
    assert parse_cpu_times(STAT.format(steal=40)) == {"total": 1000, "steal": 40}
    assert parse_cpu_times("cpu  1 2 3 4\n") == {}  # a kernel that does not tell
    assert parse_cpu_times("") == {}


def test_of_two_looks_at_stolen_time_the_smaller_share_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = iter([(1000, 0), (2000, 120), (3000, 140)])  # 12 %, then 2 %

    def looked() -> Look:
        total, steal = next(recorded)
        return Look(time.monotonic(), {}, {"total": total, "steal": steal})

    monkeypatch.setattr(inspect_load, "look", looked)
    found = compare_with_now(looked())
    assert found["steal_share"] == 0.02
    assert found["steal_share_since_boot"] == round(140 / 3000, 4)


def test_a_machine_that_does_not_tell_its_stolen_time_has_none_known() -> None:
    assert compare_with_now(replace(look(), cpu={}))["steal_share"] is None


def test_the_name_of_a_process_may_hold_anything() -> None:
    numbers = "1 2 2 0 -1 4194560 9 9 9 9 30 12 0 0 20 0 1 0 777 8192 5"
    seen = parse_process(f"42 (a) S (b ) S {numbers} 18446744073709551615\n")
    assert seen is not None
    assert (seen.name, seen.state, seen.ppid) == ("a) S (b ", "S", 1)
    assert (seen.cpu_ticks, seen.start_ticks, seen.is_kernel) == (42, 777, False)
    assert seen.anon_bytes == 5 * os.sysconf("SC_PAGE_SIZE")


def test_a_thread_of_the_kernel_is_known_as_one() -> None:
    kthreadd = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 17 0 0 20 0 1 0 3 0 0 18446744073709551615 0 0\n"
    seen = parse_process(kthreadd)
    assert seen is not None
    assert seen.is_kernel


@pytest.mark.parametrize("text", ["", "12 (sh) S 1", "no process"])
def test_what_has_just_ended_is_no_process(text: str) -> None:
    assert parse_process(text) is None


def test_all_of_this_machine_can_be_looked_at() -> None:
    found = compare_with_now(look())
    assert found["foreign_cpus"] >= 0
    assert found["foreign_memory_bytes"] >= 0
    assert found["steal_share"] is None or 0 <= found["steal_share"] <= 1
    assert all(one["pid"] != os.getpid() for users in found["users"].values() for one in users)
