"""`raytools run` typed into an interactive shell on a real terminal: keys, job control, the window's size.

The shell is bash with job control on a pty, as a person has it. It does not edit lines and does not echo, so
that what is read back is output; its prompt tells the exit code of the last command.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local.limited_runs import PATIENCE, command_pid, time_limit, wait_until, wait_until_taken
from tests.local.test_run import private_locks as private_locks
from tests.local.test_run import pytestmark as needs_cgroups

pytestmark = [needs_cgroups, pytest.mark.usefixtures("private_locks")]

SLEEP = f"sleep {10**8 + os.getpid()}"  # to be found by
RUN = f"{sys.executable} -m raytools run --record record.json"
CTRL_C, CTRL_D, CTRL_Z, CTRL_BACKSLASH = b"\x03", b"\x04", b"\x1a", b"\x1c"

# writes each signal that it gets into the file `signals`, and lives until the file `enough` is there
WITNESS = """
import os, pathlib, signal, sys, time
log = open("signals", "a", buffering=1)
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH):
    signal.signal(number, lambda number, _frame: print(signal.Signals(number).name, file=log))
print("up", os.get_terminal_size() if sys.stdout.isatty() else "", flush=True)
while not pathlib.Path("enough").exists():
    time.sleep(0.02)
"""


class Shell:
    """An interactive bash on a terminal of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "witness.py").write_text(WITNESS)
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            environment = {**os.environ, "PS1": "[exit $?]", "TERM": "dumb", "PYTHONPATH": _checkout()}
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], environment)
        self.prompt()
        self.type("stty -echo")
        self.prompt()

    def type(self, line: str) -> None:
        """Types a line and Enter."""
        self.press(line.encode() + b"\n")

    def press(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def expect(self, pattern: str, timeout_s: float = 15.0) -> re.Match[str]:
        """Waits until the output matches; what comes before the end of the match is used up."""
        deadline = time.monotonic() + timeout_s
        seen = ""
        while not (match := re.search(pattern, seen)):
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"expected {pattern!r}, found {seen!r}"
            if select.select([self._terminal], [], [], left_s)[0]:
                # a byte at a time: nothing after the match is read
                seen += os.read(self._terminal, 1).decode(errors="replace")
        return match

    def prompt(self, timeout_s: float = 15.0) -> tuple[int, str]:
        """Waits for the prompt; the exit code before it, and what was printed."""
        match = self.expect(r"(?s)^(.*)\[exit (\d+)\]", timeout_s)
        return int(match[2]), match[1].replace("\r\n", "\n")

    def run(self, line: str) -> tuple[int, str]:
        """A line from Enter to the next prompt."""
        self.type(line)
        return self.prompt()

    def resize(self, rows: int, columns: int) -> None:
        """As a terminal emulator does when its window changes."""
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """As when the window is closed."""
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def record(self) -> dict[str, Any]:
        path = self.directory / "record.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def signals(self) -> list[str]:
        """What the witness got so far."""
        path = self.directory / "signals"
        return path.read_text().split() if path.exists() else []

    def children(self) -> dict[int, str]:
        """Pid -> command line of what this shell started and has not collected."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return {int(pid): Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in listed}


def _checkout() -> str:
    return str(Path(__file__).resolve().parents[2])


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell whose runs are all over afterwards."""
    made = Shell(tmp_path)
    yield made
    made.close()
    with contextlib.suppress(ProcessLookupError):
        os.kill(made.pid, signal.SIGHUP)
        os.kill(made.pid, signal.SIGCONT)
    wait_until(lambda: os.waitpid(made.pid, os.WNOHANG)[0] != 0)
    wait_until(lambda: not list((tmp_path / "locks" / "held").glob("*")))


def settled() -> None:
    """Time in which a second signal would have come, if there were one."""
    time.sleep(0.3)


# ------------------------------------------------------------------------------------------------- keys


def test_ctrl_c_ends_the_command_and_the_shell_sees_130(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'echo up; exec {SLEEP}'")
    shell.expect("up")
    shell.press(CTRL_C)
    assert shell.prompt()[0] == 130
    assert (shell.record()["outcome"], shell.record()["signal"]) == ("killed", signal.SIGINT)


def test_ctrl_c_reaches_the_command_exactly_once(shell: Shell) -> None:
    shell.type(f"{RUN} -- python3 witness.py")
    shell.expect("up")
    shell.press(CTRL_C)
    wait_until(lambda: bool(shell.signals()))
    settled()
    assert shell.signals() == ["SIGINT"]
    (shell.directory / "enough").touch()
    assert shell.prompt()[0] == 0
    assert shell.record()["outcome"] == "ok"  # it chose to finish


def test_a_second_ctrl_c_kills_a_command_that_ignores_the_first(shell: Shell) -> None:
    # the witness beside it tells when the key has arrived
    shell.type(f"{RUN} -- sh -c 'trap \"\" INT; python3 witness.py & while :; do {SLEEP}; done'")
    shell.expect("up")
    shell.press(CTRL_C)
    wait_until(lambda: bool(shell.signals()))
    (requester,) = shell.children()
    wait_until_taken(signal.SIGINT, requester)
    settled()
    assert shell.record()["outcome"] is None
    shell.press(CTRL_C)
    assert shell.prompt()[0] != 0
    assert shell.record()["outcome"] == "killed"


def test_ctrl_backslash_ends_the_command_with_sigquit(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'ulimit -c 0; echo up; exec {SLEEP}'")
    shell.expect("up")
    shell.press(CTRL_BACKSLASH)
    assert shell.prompt()[0] == 128 + signal.SIGQUIT
    assert shell.record()["outcome"] == "killed"


def test_ctrl_c_ends_a_loop_of_runs_and_not_only_the_one_that_goes_on(shell: Shell) -> None:
    shell.type(f"for i in 1 2 3; do {RUN} -- sh -c 'echo up; exec {SLEEP}'; done")
    shell.expect("up")
    shell.press(CTRL_C)
    code, printed = shell.prompt(timeout_s=5)
    assert (code, "up" in printed) == (130, False)


def test_ctrl_c_while_waiting_for_a_slot_gives_up(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'echo up; exec {SLEEP}' &")
    shell.expect("up")
    shell.type(f"{RUN.replace('record.json', 'waiting.json')} --wait 60s -- true")
    shell.expect("waiting: CPU")
    shell.press(CTRL_C)
    assert shell.prompt()[0] in (130, 128 + signal.SIGTERM)
    assert json.loads((shell.directory / "waiting.json").read_text())["outcome"] == "killed"
    shell.type("kill %1; wait")
    shell.expect(r"\[exit")


# ------------------------------------------------------------------------------------------ job control


def test_ctrl_z_stops_the_run_as_a_job_and_fg_continues_it(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'echo up; {SLEEP}; exit 7'")
    shell.expect("up")
    sleeper = command_pid(SLEEP)
    shell.press(CTRL_Z)
    code, printed = shell.prompt()
    assert code == 128 + signal.SIGTSTP
    assert "Stopped" in printed
    (requester,) = shell.children()
    wait_until(lambda: state_of(sleeper) == state_of(requester) == "T")
    assert re.search(r"Stopped .*raytools run", shell.run("jobs")[1])

    shell.type("fg")
    wait_until(lambda: state_of(sleeper) == "S" and state_of(requester) != "T")
    os.kill(sleeper, signal.SIGTERM)
    assert shell.prompt()[0] == 7
    assert shell.record()["outcome"] == "failed"


def test_ctrl_z_stops_a_command_too_that_has_all_its_streams_elsewhere(shell: Shell) -> None:
    shell.type(f"{RUN} -- {SLEEP} </dev/null >out 2>&1")
    sleeper = command_pid(SLEEP)
    shell.press(CTRL_Z)
    shell.expect("Stopped")
    shell.prompt()
    wait_until(lambda: state_of(sleeper) == "T", 3)
    shell.type("fg")
    wait_until(lambda: state_of(sleeper) == "S", 3)
    shell.press(CTRL_C)
    assert shell.prompt()[0] == 130


def test_a_run_can_be_stopped_and_continued_again_and_again(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'echo up; exec {SLEEP}'")
    shell.expect("up")
    sleeper = command_pid(SLEEP)
    for _ in range(3):
        shell.press(CTRL_Z)
        assert shell.prompt()[0] == 128 + signal.SIGTSTP
        shell.type("fg")
        shell.expect("raytools")
        wait_until(lambda: state_of(sleeper) == "S" and all(state_of(p) != "T" for p in shell.children()))
    settled()  # old news of a stop would stop the requester now
    (requester,) = shell.children()
    assert state_of(requester) != "T"
    shell.press(CTRL_C)
    assert shell.prompt()[0] == 130


def test_bg_continues_a_stopped_run_and_its_output_goes_on(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'echo up; while [ ! -e enough ]; do sleep 0.05; done; echo done'")
    shell.expect("up")
    shell.press(CTRL_Z)
    shell.expect("Stopped")
    shell.prompt()
    shell.type("bg")
    shell.prompt()
    (shell.directory / "enough").touch()
    shell.expect("done")
    wait_until(lambda: shell.record().get("outcome") == "ok")


def test_a_command_stopped_by_somebody_else_stops_the_job_in_the_shell(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'echo up; exec {SLEEP}'")
    shell.expect("up")
    sleeper = command_pid(SLEEP)
    os.kill(sleeper, signal.SIGSTOP)
    shell.expect("Stopped")
    shell.prompt()
    shell.type("fg")
    wait_until(lambda: state_of(sleeper) == "S")
    shell.press(CTRL_C)
    shell.expect(r"\[exit 130\]")


def test_kill_of_a_stopped_job_ends_its_run(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'echo up; exec {SLEEP}'")
    shell.expect("up")
    shell.press(CTRL_Z)
    shell.expect("Stopped")
    shell.prompt()
    shell.type("kill %1")
    wait_until(lambda: shell.record().get("outcome") is not None)
    assert (shell.record()["outcome"], shell.record()["signal"]) == ("killed", signal.SIGTERM)


def test_the_time_limit_holds_while_the_run_is_stopped(shell: Shell) -> None:
    shell.type(f"{RUN} --time {time_limit(1)} -- sh -c 'echo up; exec {SLEEP}'")
    shell.expect("up")
    shell.press(CTRL_Z)
    shell.expect("Stopped")
    shell.prompt()
    wait_until(lambda: shell.record().get("outcome") == "timeout", 5)
    assert shell.record()["used"]["wall_s"] < 3 * PATIENCE
    shell.type("fg")
    shell.expect(r"timeout after \d+\.\d+ s")
    assert shell.prompt()[0] == 124


def test_a_background_run_that_reads_from_the_terminal_is_stopped_and_fg_lets_it_read(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'read line; echo got $line' &")
    shell.expect(r"Stopped|\[exit")
    deadline = time.monotonic() + 10
    while "Stopped" not in shell.run("jobs")[1]:
        assert time.monotonic() < deadline, "it was not stopped for reading in the background"
        time.sleep(0.1)
    shell.type("fg")
    shell.expect("raytools")
    settled()
    shell.type("hello")
    shell.expect("got hello")
    assert shell.prompt()[0] == 0


def test_a_shell_in_a_run_has_job_control_of_its_own(shell: Shell) -> None:
    shell.type(f"{RUN} -- bash --norc --noprofile --noediting -i")
    _, printed = shell.prompt()
    assert "job control" not in printed
    shell.type(SLEEP)
    sleeper = command_pid(SLEEP)
    shell.press(CTRL_Z)
    code, printed = shell.prompt()
    assert (code, "Stopped" in printed) == (128 + signal.SIGTSTP, True)
    shell.type("fg")
    wait_until(lambda: state_of(sleeper) == "S")
    shell.press(CTRL_C)
    assert shell.prompt()[0] == 130
    assert shell.run("echo $RAYTOOLS_RUN_ID")[1].strip() != ""
    shell.type("exit 3")
    assert shell.prompt()[0] == 3
    assert shell.run("echo $RAYTOOLS_RUN_ID")[1].strip() == ""  # the outer one reads the terminal again


def test_a_shell_in_a_run_that_is_out_of_time_gives_the_terminal_back(shell: Shell) -> None:
    shell.type(f"{RUN} --time {time_limit(1)} -- bash --norc --noprofile --noediting -i")
    shell.prompt()
    shell.type(SLEEP)
    assert shell.prompt()[0] == 124
    assert shell.run("echo back; (exit 4)") == (4, "back\n")


# --------------------------------------------------------------------------------- the terminal's state


def test_the_command_sees_the_windows_size_and_its_changes(shell: Shell) -> None:
    shell.resize(33, 101)
    assert "33 101" in shell.run(f"{RUN} -- stty size")[1]
    shell.type(f"{RUN} -- python3 witness.py")
    shell.expect(r"up os.terminal_size\(columns=101, lines=33\)")
    shell.resize(20, 60)
    wait_until(lambda: bool(shell.signals()))
    settled()
    assert shell.signals() == ["SIGWINCH"]
    (shell.directory / "enough").touch()
    assert shell.prompt()[0] == 0


def test_the_command_can_open_its_terminal(shell: Shell) -> None:
    code, printed = shell.run(f"{RUN} -- sh -c 'echo through >/dev/tty; tty; ps -o tty= -p $$'")
    assert code == 0
    through, terminal, seen_by_ps = printed.split()
    assert through == "through"
    assert terminal == f"/dev/{seen_by_ps}"


@pytest.mark.parametrize("end", ["--time 1s", "--memory 100MiB"])
def test_a_command_that_is_killed_in_raw_mode_leaves_a_sane_terminal(shell: Shell, end: str) -> None:
    before = shell.run("stty -a")[1]
    grow = "python3 -c 'x = bytearray(10**9)'" if "memory" in end else SLEEP
    shell.type(f'{RUN} {end} -- sh -c "stty raw -echo; {grow}"')
    code, _ = shell.prompt()
    assert code in (124, 137)
    assert shell.run("stty -a")[1] == before


def test_what_a_command_sets_on_purpose_stays_as_it_does_without_raytools(shell: Shell) -> None:
    assert shell.run(f"{RUN} -- stty intr ^X")[0] == 0
    assert "intr = ^X" in shell.run("stty -a")[1]


def test_closing_the_terminal_ends_the_run(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'echo up; exec {SLEEP}'")
    shell.expect("up")
    shell.close()
    wait_until(lambda: shell.record()["outcome"] is not None)
    assert shell.record()["outcome"] == "killed"


@pytest.mark.parametrize(
    "line",
    [
        "nohup {run} -- sh -c '{script}' >out 2>&1",
        "(trap '' HUP; {run} -- sh -c '{script}')",
        "{run} -- sh -c 'trap \"\" HUP; {script}'",
    ],
    ids=["nohup outside", "ignored outside", "ignored inside"],
)
def test_a_run_that_ignores_the_closing_of_its_terminal_goes_on_and_stays_limited(
    shell: Shell, line: str
) -> None:
    script = "touch up; while [ ! -e enough ]; do sleep 0.05; done; touch done"
    shell.type(line.format(run=f"{RUN} --time 20s", script=script))
    wait_until((shell.directory / "up").exists)
    shell.close()
    wait_until(lambda: os.waitid(os.P_PID, shell.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    settled()
    (shell.directory / "enough").touch()
    wait_until(lambda: shell.record()["outcome"] is not None)
    assert (shell.record()["outcome"], (shell.directory / "done").exists()) == ("ok", True)


def test_closing_the_terminal_ends_a_stopped_run(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'echo up; exec {SLEEP}'")
    shell.expect("up")
    shell.press(CTRL_Z)
    shell.expect("Stopped")
    shell.prompt()
    shell.close()
    wait_until(lambda: shell.record()["outcome"] is not None)
    assert shell.record()["outcome"] == "killed"


def test_a_command_that_outlives_its_terminal_ends_as_it_does_with_one(shell: Shell) -> None:
    deaf = "trap '' HUP; touch up; until [ -e enough ]; do sleep 0.05; done"
    (shell.directory / "deaf.sh").write_text(deaf)
    shell.type(f"bash -c 'trap : HUP; {RUN} -- sh deaf.sh >out 2>&1; echo $? >code'")
    wait_until((shell.directory / "up").exists)
    shell.close()
    (shell.directory / "enough").touch()
    wait_until((shell.directory / "code").exists)
    wait_until(lambda: bool((shell.directory / "code").read_text()))
    assert ((shell.directory / "code").read_text(), (shell.directory / "out").read_text()) == ("0\n", "")


# ------------------------------------------------------------------------------- pipes, timeout, no terminal


def test_a_run_in_a_pipe_ends_when_nobody_reads_any_more(shell: Shell) -> None:
    code, printed = shell.run(f"{RUN} -- yes | head -1; (exit ${{PIPESTATUS[0]}})")
    assert code == 128 + signal.SIGPIPE
    assert printed.splitlines()[0] == "y"
    assert (shell.record()["outcome"], shell.record()["signal"]) == ("failed", signal.SIGPIPE)


def test_ctrl_z_and_fg_work_for_a_whole_pipe(shell: Shell) -> None:
    shell.type(f"{RUN} -- sh -c 'echo up; while [ ! -e enough ]; do sleep 0.05; done; echo done' | cat")
    shell.expect("up")
    shell.press(CTRL_Z)
    shell.expect("Stopped")
    shell.prompt()
    (shell.directory / "enough").touch()
    settled()
    shell.type("fg")
    shell.expect("done")
    assert shell.prompt()[0] == 0


def test_timeout_in_a_terminal_forwards_its_signal_once(shell: Shell) -> None:
    shell.type(f"timeout -s INT 60 {RUN} -- python3 witness.py")
    shell.expect("up")
    (timeout,) = shell.children()
    os.kill(timeout, signal.SIGALRM)  # as when its time is over
    wait_until(lambda: bool(shell.signals()))
    settled()
    assert shell.signals() == ["SIGINT"]
    (shell.directory / "enough").touch()
    assert shell.prompt()[0] == 124  # timeout's own
    assert shell.record()["outcome"] == "ok"


def test_timeout_without_a_terminal_forwards_its_signal_once(tmp_path: Path) -> None:
    (tmp_path / "witness.py").write_text(WITNESS)
    process = subprocess.Popen(
        ["timeout", "-s", "INT", "60", *RUN.split(), "--", "python3", "witness.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": _checkout()}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"up")
    process.send_signal(signal.SIGALRM)  # as when its time is over
    signals = tmp_path / "signals"
    wait_until(lambda: signals.exists() and bool(signals.read_text()))
    settled()
    assert signals.read_text().split() == ["SIGINT"]
    (tmp_path / "enough").touch()
    process.wait(10)
    assert json.loads((tmp_path / "record.json").read_text())["outcome"] == "ok"


def test_without_any_terminal_a_run_works_as_with_one(tmp_path: Path) -> None:
    try_terminal = "(: </dev/tty) 2>/dev/null || echo no terminal"
    finished = subprocess.run(
        ["setsid", "--wait", *RUN.split(), "--", "sh", "-c", f"cat; {try_terminal}"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": _checkout()}, input="in\n",
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "in\nno terminal\n", "")


def test_a_terminal_of_another_session_is_only_a_file(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*RUN.split(), "--", "sh", "-c", f"tty; exec {SLEEP}"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": _checkout()}, start_new_session=True,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    assert os.read(ours, 100).startswith(b"/dev/pts/")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    os.close(ours)
