"""Where the isolation benchmark runs its contestants: own slots and locks, BenchExec, and how one is timed.

Everything is below one temporary directory, except BenchExec's virtual environment, which is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
from measure import CHECKOUT, SCRIPTS, Row

from raytools.node.confine import become_subreaper
from raytools.node.sweep import sweep

BENCHEXEC = "benchexec==3.35"
PROGRAMS = Path(__file__).with_name("isolation_programs")
MEMORY_BYTES = 2 << 30  # of each slot, and what runexec is given
_GIVE_UP_S = 600.0  # no contestant takes that long
_SETTLE_S = 2.0

Contestant = TypeVar("Contestant")


class Trouble(Exception):  # noqa: N818 - it becomes the row's `trouble`
    """Why there is no value."""


@dataclass(frozen=True)
class Done:
    """One contestant's execution. `cpu_s` is of all its processes, also of those that outlived it."""

    wall_s: float
    cpu_s: float
    output: str
    exit_code: int

    def printed(self) -> dict[str, Any]:
        """What the program of this benchmark printed: its last line is a JSON object.

        Raises:
            Trouble: there is no such line.
        """
        with contextlib.suppress(ValueError, IndexError):
            found = json.loads(self.output.strip().splitlines()[-1])
            if isinstance(found, dict):
                return found
        raise Trouble(f"no measurement of its own: {self.output[-80:]!r}")


def rounds(part: str, runs: int, contestants: Sequence[Contestant]) -> Iterator[Contestant]:
    """All contestants in turn, `runs` times; every other round backwards, so that no one follows the same."""
    for number in range(runs):
        print(f"{part}: round {number + 1} of {runs}", file=sys.stderr, flush=True)
        yield from contestants if number % 2 == 0 else reversed(contestants)


def collect(row: Row, measure: Callable[[], tuple[float, float | None]]) -> None:
    """Adds one value, and CPU seconds where there are any, to the row; or the reason why there is none."""
    try:
        value, cpu_s = measure()
    except Trouble as trouble:
        row.trouble = str(trouble)[:120]
        return
    row.values.append(value)
    if cpu_s is not None:
        row.cpu_s.append(cpu_s)


def compared(name: str, one: Row, other: Row, how: Callable[[float, float], float], **more: Any) -> Row:
    """A row of two rows' values, round by round: what a round suffered, both suffered."""
    row = Row(name, trouble=one.trouble or other.trouble, **more)
    row.values = [how(mine, theirs) for mine, theirs in zip(one.values, other.values, strict=False)]
    return row


class Site:
    """A private node of two slots with one CPU each. A context manager: nothing of it stays behind."""

    def __init__(self) -> None:
        self.cpus = _two_cores()
        self.folder = Path()
        self._runexec = Path()

    def __enter__(self) -> Site:
        self._runexec = _install_runexec(CHECKOUT / ".raytools" / "benchmarks" / "benchexec")
        # a supervisor is nobody's child: as its subreaper we see when it is gone, and what CPU time it took
        become_subreaper()
        self.folder = Path(tempfile.mkdtemp(prefix="raytools-isolation-"))
        slots = [
            {"index": index, "cpus": [cpu], "memory_bytes": MEMORY_BYTES}
            for index, cpu in enumerate(self.cpus)
        ]
        node = {"schema": "raytools.node/1", "name": "benchmark", "slots": slots}
        (self.folder / "node.json").write_text(json.dumps(node))
        os.environ["RAYTOOLS_ROOT"] = str(self.folder)
        os.environ["RAYTOOLS_LOCK_DIR"] = str(self.folder / "locks")
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what still runs, patiently: supervisors and runexec remove their groups when they end."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it was heard
        for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 2.0)):
            for child in psutil.Process().children(recursive=number == signal.SIGKILL):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(number)
            if settle(patience_s):
                break
        for dead in sweep():  # a supervisor that vanished left its group, and nobody else reads these locks
            print(dead.describe(), file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def record(self) -> Path:
        """Where `raytools` puts the record of its last run."""
        return self.folder / "record.json"

    def log(self, slot: int) -> Path:
        """Where runexec puts the output of a command."""
        return self.folder / f"runexec-{slot}.log"

    def raytools(
        self, command: Sequence[str], time_limit_s: float = 60, slot: int = 0, record: Path | None = None
    ) -> list[str]:
        """The command line that runs a command in a slot, with a record as runexec has one."""
        return [
            str(SCRIPTS / "raytools"), "run", "--slot", str(slot), "--time", f"{time_limit_s:g}s",
            "--record", str(record or self.record), "--", *command,
        ]  # fmt: skip

    def runexec(
        self, command: Sequence[str], wall_limit_s: float = 60, slot: int = 0, container: bool = True
    ) -> list[str]:
        """The command line that holds a command to the same limits; its output goes to `log(slot)`.

        The container is what comes nearest to our confinement. Its root is read-only instead of runexec's
        overlay, which not every machine can mount.
        """
        modes = ["--read-only-dir", "/", "--read-only-dir", str(CHECKOUT)]
        return [
            str(self._runexec), *(modes if container else ["--no-container"]), "--quiet",
            "--cores", str(self.cpus[slot]), "--memlimit", str(MEMORY_BYTES),
            "--timelimit", "60s", "--walltimelimit", f"{wall_limit_s:g}s",
            "--output", str(self.log(slot)),
            "--output-directory", str(self.folder / f"runexec-{slot}"), "--", *command,
        ]  # fmt: skip

    def run(self, command: Sequence[str], accepted: Sequence[int] = (0,), settled: bool = True) -> Done:
        """Runs one contestant, alone unless `settled` is False: then neighbours of it may go on.

        Raises:
            Trouble: an exit code that is not accepted.
        """
        cpu_before_s = used_cpu_s()
        with (self.folder / "stdout").open("w+") as stdout, (self.folder / "stderr").open("w+") as stderr:
            began = time.perf_counter()
            exit_code = wait(
                subprocess.Popen(
                    command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
                )
            )
            wall_s = time.perf_counter() - began
            if settled:
                settle(_SETTLE_S)
            stdout.seek(0)
            stderr.seek(0)
            output, complaint = stdout.read(), stderr.read()
        if exit_code not in accepted:
            last = (complaint.strip().splitlines() or ["nothing on standard error"])[-1]
            raise Trouble(f"exit code {exit_code}: {last}")
        return Done(wall_s, used_cpu_s() - cpu_before_s, output, exit_code)

    def run_raytools(
        self, command: Sequence[str], outcome: str = "ok", settled: bool = True, **options: Any
    ) -> tuple[Done, dict[str, Any]]:
        """Runs a command in a slot; its record must say that it ended as expected."""
        done = self.run(self.raytools(command, **options), (0, 124), settled)
        record = json.loads(self.record.read_text())
        if record["outcome"] != outcome:
            raise Trouble(f"outcome {record['outcome']}: {record['message']}")
        if record["enforced"]["missing"]:
            raise Trouble(f"not enforced: {record['enforced']['missing']}")
        return done, record

    def run_runexec(
        self, command: Sequence[str], ending: str | None = None, settled: bool = True, **options: Any
    ) -> tuple[Done, dict[str, str]]:
        """Runs a command under runexec; `ending` is its reason for a termination, None for none."""
        done = self.run(self.runexec(command, **options), settled=settled)
        result = dict(line.split("=", 1) for line in done.output.splitlines() if "=" in line)
        if result.get("terminationreason") != ending or (ending is None and result.get("returnvalue") != "0"):
            raise Trouble(f"runexec: {result or done.output[-80:]!r}")
        return replace(done, output=self.log(options.get("slot", 0)).read_text()), result


def program(name: str, *arguments: object) -> list[str]:
    """The command line of one of this benchmark's programs."""
    # -I: no site of the user, no directory of the caller's before the standard library
    return [sys.executable, "-I", str(PROGRAMS / f"{name}.py"), *map(str, arguments)]


def wait(process: subprocess.Popen[Any]) -> int:
    """Waits for the end to the microsecond (Popen's wait with a timeout polls in steps of up to 50 ms).

    Raises:
        Trouble: it takes for ever.
    """
    if process.returncode is not None:  # a poll() saw it
        return int(process.returncode)
    descriptor = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(_GIVE_UP_S * 1000):
            process.terminate()
            raise Trouble(f"not finished after {_GIVE_UP_S:g} s")
    finally:
        os.close(descriptor)
    return process.wait()


def settle(patience_s: float = _SETTLE_S) -> bool:
    """Waits until no process started here is left, and collects them all; False if some stay."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            time.sleep(0.001)
    return False


def used_cpu_s() -> float:
    """CPU seconds of all processes started here that are gone."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _two_cores() -> list[int]:
    """Two CPUs that are no threads of one core: siblings disturb one another whatever the limits."""
    first, *others = sorted(os.sched_getaffinity(0))
    siblings = Path(f"/sys/devices/system/cpu/cpu{first}/topology/thread_siblings")
    mask = int(siblings.read_text().replace(",", ""), 16) if siblings.exists() else 1 << first
    apart = [cpu for cpu in others if not mask >> cpu & 1]
    if not apart:
        sys.exit("found one core, expected two: this benchmark compares neighbours")
    return [first, apart[0]]


def _install_runexec(venv: Path) -> Path:
    """BenchExec's runexec in a virtual environment of its own, made on first use."""
    program_path = venv / "bin" / "runexec"
    if not program_path.exists():  # pip writes programs last: it is there only if all is
        print(f"installing {BENCHEXEC} once", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([venv / "bin" / "python", "-m", "pip", "install", "--quiet", BENCHEXEC], check=True)
    return program_path
