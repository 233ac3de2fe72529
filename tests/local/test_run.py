"""`raytools run` on this machine's real cgroups: outcomes, records, and what is left afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raytools.errors import RefusedError
from raytools.node import cgroup

from .limited_runs import PATIENCE, command_pid, time_limit, wait_until, wait_until_taken, why_no_limits

_why_not = why_no_limits()
pytestmark = pytest.mark.skipif(bool(_why_not), reason=_why_not)

Runner = Callable[..., "Result"]
CHECKOUT = Path(__file__).resolve().parents[2]
MARK = str(10**8 + os.getpid())  # an odd sleep, to find strays by, of this process alone


class Result:
    """What a user has after a run: the exit code, the output, the record."""

    def __init__(self, process: subprocess.CompletedProcess[str], record: dict[str, Any]) -> None:
        self.exit_code = process.returncode
        self.stdout = process.stdout
        self.stderr = process.stderr
        self.record = record
        self.outcome = record.get("outcome")


@pytest.fixture
def private_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of our own, so that another run on this machine does not refuse ours."""
    monkeypatch.setenv("RAYTOOLS_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("RAYTOOLS_ROOT", str(tmp_path / "root"))
    (tmp_path / "root").mkdir()
    plan = {
        "name": "here",
        "slots": [{"index": 0, "cpus": sorted(os.sched_getaffinity(0)), "memory_bytes": 2 << 30, "gpus": []}],
    }
    (tmp_path / "root" / "node.json").write_text(json.dumps(plan))


@pytest.fixture
def run(tmp_path: Path, private_locks: None) -> Iterator[Runner]:
    """Runs a command limited; afterwards nothing of it may be left."""
    record = tmp_path / "record.json"
    run_ids: set[str] = set()

    def runner(*command: str, options: tuple[str, ...] = ()) -> Result:
        record.unlink(missing_ok=True)
        process = subprocess.run(
            [sys.executable, "-m", "raytools", "run", "--record", str(record), *options, "--", *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        found = json.loads(record.read_text()) if record.exists() else {}
        run_ids.add(found.get("run_id", "none"))
        return Result(process, found)

    yield runner
    run_ids.update(json.loads(path.read_text())["run_id"] for path in tmp_path.glob("*.json"))
    assert_nothing_is_left(run_ids)


def assert_nothing_is_left(run_ids: set[str]) -> None:
    """No group, directory or process of these runs; other runs on this machine are none of our business."""
    names = {f"rt-run-{run_id}" for run_id in run_ids}
    left = [*groups_of_runs(), *Path("/tmp").glob("rt-run-*")]
    assert [str(path) for path in left if path.name in names] == []
    strays = [p.pid for p in psutil.process_iter(["cmdline"]) if MARK in (p.info["cmdline"] or [])]
    assert strays == []


def groups_of_runs() -> list[Path]:
    """Groups of runs, whoever's; not by "**", which fails on somebody else's groups of any depth."""
    parents: set[Path] = set()
    with contextlib.suppress(RefusedError):  # runs get scopes of their own, which the depths below find
        parents = {Path(path).parent for path in cgroup.select_driver().paths("any")}
    near = [
        path for depth in ("*", "*/*", "*/*/*") for path in Path("/sys/fs/cgroup").glob(f"{depth}/rt-run-*")
    ]
    return [*near, *(path for parent in parents for path in parent.glob("rt-run-*"))]


def start(
    tmp_path: Path, *command: str, record: str = "record.json", options: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    """Starts a run in the background and waits until its command runs; its stderr goes to a file."""
    ready = tmp_path / "ready"
    ready.unlink(missing_ok=True)
    shell = ["sh", "-c", f'touch {ready}; exec "$@"', "sh"]
    arguments = ["--record", str(tmp_path / record), *options, "--", *shell]
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "raytools", "run", *arguments, *command], stderr=stderr
        )
    wait_until(ready.exists)
    return process


def test_a_command_that_succeeds_is_ok_and_its_record_holds_what_was_enforced(run: Runner) -> None:
    result = run("sh", "-c", "echo out; echo err >&2", options=("--memory", "1GiB", "--time", "30s"))
    assert (result.exit_code, result.outcome) == (0, "ok")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    record = result.record
    assert record["schema"] == "raytools.run/1"
    assert record["limits"]["memory_bytes"] == 1 << 30
    assert record["limits"]["time_s"] == 30.0
    assert record["enforced"]["cpu"] in ("cgroup-v1", "cgroup-v2")
    assert record["enforced"]["memory"] == record["enforced"]["cpu"]
    assert record["enforced"]["missing"] == []
    assert 0 < record["used"]["wall_s"] < 30
    assert record["used"]["memory_peak_bytes"] > 0
    assert record["started_at"] < record["finished_at"]


@pytest.mark.parametrize("code", [1, 3, 124, 125, 137])
def test_a_commands_own_exit_code_is_passed_on_and_is_failed(run: Runner, code: int) -> None:
    result = run("sh", "-c", f"exit {code}")
    assert (result.exit_code, result.outcome, result.record["exit_code"]) == (code, "failed", code)


def test_a_signal_of_the_commands_own_making_is_failed(run: Runner) -> None:
    result = run("sh", "-c", "kill -SEGV $$")
    assert (result.exit_code, result.outcome, result.record["signal"]) == (128 + 11, "failed", 11)


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/tmp", 126)])
def test_what_cannot_be_executed_ends_as_in_a_shell(run: Runner, command: str, code: int) -> None:
    result = run(command)
    assert (result.exit_code, result.outcome) == (code, "failed")
    assert command in result.stderr


def test_the_time_limit_kills_at_once_without_grace(run: Runner) -> None:
    result = run("sh", "-c", f"trap '' TERM; sleep {MARK}", options=("--time", "0.5s"))
    assert (result.exit_code, result.outcome) == (124, "timeout")
    assert 0.5 <= result.record["used"]["wall_s"] < 1.5 * PATIENCE


def test_grace_lets_the_command_finish_after_sigterm(run: Runner) -> None:
    script = f"trap 'echo saved; exit 0' TERM; sleep {MARK} & wait"
    result = run("sh", "-c", script, options=("--time", time_limit(1), "--grace", time_limit(10)))
    assert (result.stdout, result.outcome) == ("saved\n", "timeout")
    assert result.record["used"]["wall_s"] < 5 * PATIENCE


def test_a_setsid_grandchild_does_not_survive_the_run(run: Runner) -> None:
    result = run("sh", "-c", f"setsid nohup sleep {MARK} >/dev/null 2>&1 & exit 0")
    assert result.outcome == "ok"
    assert result.record["used"]["processes_swept"] == 1
    assert result.record["used"]["processes_left"] == 0


def test_memory_over_the_limit_ends_the_whole_run_as_oom(run: Runner) -> None:
    script = "python3 -c 'x = bytearray(10**9)'; sleep 1; echo survived"  # it ends soon, not at once
    result = run("sh", "-c", script, options=("--memory", "100MiB"))
    assert (result.exit_code, result.outcome) == (137, "oom")
    assert "survived" not in result.stdout
    assert result.record["used"]["oom_kills"] >= 1
    assert result.record["used"]["memory_peak_bytes"] <= 100 << 20


def test_page_cache_is_not_out_of_memory(run: Runner, tmp_path: Path) -> None:
    script = f"dd if=/dev/zero of={tmp_path}/file bs=1M count=200 2>/dev/null"
    assert run("sh", "-c", script, options=("--memory", "64MiB")).outcome == "ok"


def test_the_command_cannot_use_more_cpus_than_it_was_given(run: Runner) -> None:
    script = "import os; os.sched_setaffinity(0, range(os.cpu_count())); print(len(os.sched_getaffinity(0)))"
    assert run(sys.executable, "-c", script, options=("--cpus", "1")).stdout == "1\n"


def test_the_command_cannot_move_itself_into_another_group(run: Runner) -> None:
    script = (
        "for f in /sys/fs/cgroup/*/cgroup.procs; do (echo $$ > $f) 2>/dev/null && echo escaped; done; true"
    )
    result = run("sh", "-c", script)
    assert result.record["enforced"]["confinement"] == "mount-namespace"
    assert result.stdout == ""


def test_shared_memory_does_not_outlive_the_run(run: Runner) -> None:
    run("sh", "-c", "echo x > /dev/shm/raytools-test-file")
    assert not Path("/dev/shm/raytools-test-file").exists()


def test_ray_of_the_outside_is_not_seen_inside(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    monkeypatch.setenv("RAY_some_flag", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    result = run("env", options=("--cpus", "1", "--env", "MINE=yes"))
    inside = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert inside["RAY_ADDRESS"] == "local"
    assert "RAY_some_flag" not in inside
    assert "OMP_NUM_THREADS" not in inside
    assert inside["AG_CPU_COUNT"] == "1"
    assert inside["MINE"] == "yes"


@pytest.mark.parametrize(
    "options", [("--memory", "1TiB"), ("--cpus", "4096"), ("--slot", "7"), ("--gpus", "1")]
)
def test_more_than_the_slot_is_refused_with_the_arithmetic(run: Runner, options: tuple[str, ...]) -> None:
    result = run("true", options=options)
    assert (result.exit_code, result.outcome) == (125, "refused")
    assert "expected" in result.stderr


@pytest.mark.parametrize(
    "options", [("--memory", "lots"), ("--time", "soon"), ("--cpus", "0"), ("--nonsense",), ("--env", "x")]
)
def test_a_wrong_option_is_a_usage_error_in_one_line(run: Runner, options: tuple[str, ...]) -> None:
    result = run("true", options=options)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("raytools run: ")


def test_a_held_slot_is_refused_and_names_the_holder_then_is_waited_for(run: Runner, tmp_path: Path) -> None:
    enough = tmp_path / "enough"
    hold = f"until [ -e {enough} ]; do sleep 0.05; done"
    first = start(tmp_path, "sh", "-c", hold, record="first.json")
    refused = run("true")
    assert (refused.exit_code, refused.outcome) == (125, "refused")
    assert "is held by run" in refused.stderr
    assert str(json.loads((tmp_path / "first.json").read_text())["run_id"]) in refused.stderr
    options = ("--wait", "60s", "--record", str(tmp_path / "second.json"))
    second = popen("echo", "mine", options=options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert second.stderr is not None
    assert b"waiting: " in second.stderr.readline()
    enough.touch()
    output, _ = second.communicate(timeout=20 * PATIENCE)
    assert (second.returncode, output) == (0, b"mine\n")
    assert first.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_raytools_run_reaches_the_command_and_is_recorded_as_killed(
    run: Runner, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "sleep", MARK)
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["outcome"], record["signal"]) == ("killed", number)


def test_a_second_sigterm_ends_a_command_that_ignores_the_first(run: Runner, tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    process = start(tmp_path, "sh", "-c", f"trap '' TERM; touch {deaf}; while :; do sleep {MARK}; done")
    wait_until(deaf.exists)
    process.send_signal(signal.SIGTERM)
    wait_until_taken(signal.SIGTERM, process.pid)
    time.sleep(0.3)  # sooner, the second one would be an echo of the first
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) != 0
    assert json.loads((tmp_path / "record.json").read_text())["outcome"] == "killed"


def test_killing_raytools_run_ends_its_command(run: Runner, tmp_path: Path) -> None:
    process = start(tmp_path, "sh", "-c", f"setsid sleep {MARK} & sleep {MARK}")
    process.kill()
    process.wait(10)
    wait_until(lambda: json.loads((tmp_path / "record.json").read_text())["outcome"] is not None)
    assert json.loads((tmp_path / "record.json").read_text())["outcome"] == "killed"
    wait_until(lambda: not list((tmp_path / "locks" / "held").glob("*")))


def test_a_killed_supervisor_frees_its_cpus_and_the_next_run_sweeps_and_says_lost(
    run: Runner, tmp_path: Path
) -> None:
    process = start(tmp_path, "sh", "-c", f"setsid sleep {MARK} & sleep {MARK}", record="lost.json")
    (held,) = (tmp_path / "locks" / "held").glob("*.json")
    holder = json.loads(held.read_text())
    os.kill(holder["pid"], signal.SIGKILL)
    assert process.wait(10) == 1
    assert "supervisor vanished" in (tmp_path / "stderr").read_text()

    after = run("echo", "next")
    assert (after.exit_code, after.stdout) == (0, "next\n")
    assert f"swept run {holder['run_id']}" in after.stderr
    assert json.loads((tmp_path / "lost.json").read_text())["outcome"] == "lost"


def test_a_pipe_ends_with_the_command_although_a_daemon_holds_it(run: Runner) -> None:
    started = time.monotonic()
    result = run("sh", "-c", f"echo done; setsid sleep {MARK} &")
    assert result.stdout == "done\n"
    assert time.monotonic() - started < 10


# ------------------------------------------------------------------------------------------------ slots


def plan_slots(tmp_path: Path, *slots: dict[str, Any], **other: Any) -> None:
    """Replaces the plan of the test's node."""
    node = {"name": "here", "slots": list(slots), **other}
    (tmp_path / "root" / "node.json").write_text(json.dumps(node))


def plan_two_slots(tmp_path: Path) -> list[int]:
    """One CPU and 1 GiB each; returns the two CPUs."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    plan_slots(
        tmp_path,
        *({"index": i, "cpus": [cpu], "memory_bytes": 1 << 30, "gpus": [i]} for i, cpu in enumerate(cpus)),
    )
    return cpus


def test_a_slot_is_taken_by_its_number_or_automatically(run: Runner, tmp_path: Path) -> None:
    cpus = plan_two_slots(tmp_path)
    for slot in (0, 1):
        result = run("nproc", options=("--slot", str(slot)))
        assert (result.stdout, result.record["host"]["slot"]) == ("1\n", slot)
        assert result.record["limits"]["cpu_set"] == [cpus[slot]]
    first = start(tmp_path, "sleep", MARK, record="first.json")
    taken = json.loads((tmp_path / "first.json").read_text())["host"]["slot"]
    assert run("true", options=("--slot", "auto")).record["host"]["slot"] == 1 - taken
    assert run("true", options=("--slot", str(taken))).outcome == "refused"
    first.terminate()
    first.wait(10)


def test_all_slots_are_their_union_and_nobody_runs_beside(run: Runner, tmp_path: Path) -> None:
    cpus = plan_two_slots(tmp_path)
    process = start(tmp_path, "sleep", MARK, record="all.json", options=("--slot", "all"))
    record = json.loads((tmp_path / "all.json").read_text())
    assert record["limits"]["cpu_set"] == cpus
    assert record["limits"]["memory_bytes"] == 2 << 30
    assert record["limits"]["gpus"] == [0, 1]
    assert record["host"]["slot"] is None
    for options in ((), ("--slot", "0"), ("--slot", "1"), ("--slot", "all")):
        refused = run("true", options=options)
        assert refused.outcome == "refused"
        assert record["run_id"] in refused.stderr
    process.terminate()
    process.wait(10)


def test_all_slots_are_refused_while_one_is_held(run: Runner, tmp_path: Path) -> None:
    plan_two_slots(tmp_path)
    process = start(tmp_path, "sleep", MARK, record="one.json", options=("--slot", "1"))
    refused = run("true", options=("--slot", "all"))
    assert (refused.exit_code, refused.outcome) == (125, "refused")
    assert json.loads((tmp_path / "one.json").read_text())["run_id"] in refused.stderr
    process.terminate()
    process.wait(10)


@pytest.mark.parametrize("slot", ["2", "none", "-1", "1.5"])
def test_a_slot_that_does_not_exist_is_named(run: Runner, slot: str) -> None:
    result = run("true", options=(f"--slot={slot}",))
    assert result.exit_code in (2, 125)
    assert f"{slot}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_gpus_of_the_slot_are_visible_and_no_others(run: Runner, tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    plan_slots(tmp_path, {"index": 0, "cpus": cpus, "memory_bytes": 1 << 30, "gpus": [2, 5]})
    show = ("sh", "-c", 'echo "<$CUDA_VISIBLE_DEVICES>"')
    assert run(*show).stdout == "<2,5>\n"
    one = run(*show, options=("--gpus", "1"))
    assert (one.stdout, one.record["limits"]["gpus"]) == ("<2>\n", [2])
    assert run(*show, options=("--gpus", "0")).stdout == "<>\n"
    assert "3 GPUs asked, 2 in slot 0" in run(*show, options=("--gpus", "3")).stderr


@pytest.fixture
def gpu_file() -> Iterator[int]:
    """A device file named as a driver would name that of a GPU; behind it is /dev/zero."""
    number = 200 + os.getpid() % 1000
    path = Path(f"/dev/nvidia{number}")
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError as error:
        pytest.skip(f"needs the right to make device files: {error}")
    yield number
    path.unlink()


@pytest.mark.skipif(not Path("/sys/fs/cgroup/devices").is_dir(), reason="needs v1 devices")
def test_a_gpu_of_another_slot_cannot_be_opened(run: Runner, tmp_path: Path, gpu_file: int) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    plan_slots(
        tmp_path,
        {"index": 0, "cpus": cpus[:1], "memory_bytes": 1 << 30, "gpus": [0]},
        {"index": 1, "cpus": cpus[1:2], "memory_bytes": 1 << 30, "gpus": [gpu_file]},
    )
    read = ("head", "-c", "1", f"/dev/nvidia{gpu_file}")
    assert "Operation not permitted" in run(*read, options=("--slot", "0")).stderr
    assert run(*read, options=("--slot", "1")).outcome == "ok"


def test_defaults_of_the_plan_hold_and_options_win_over_them(run: Runner, tmp_path: Path) -> None:
    slot = {"index": 0, "cpus": [min(os.sched_getaffinity(0))], "memory_bytes": 1 << 30, "gpus": []}
    plan_slots(tmp_path, slot, runs={"time_s": 0.5, "grace_s": 0.0, "env": {"FROM_PLAN": "plan"}})
    assert run("sleep", MARK).outcome == "timeout"
    assert run("sleep", "0.7", options=("--time", "20s")).outcome == "ok"
    long = ("--time", "20s")
    assert run("printenv", "FROM_PLAN", options=long).stdout == "plan\n"
    assert run("printenv", "FROM_PLAN", options=(*long, "--env", "FROM_PLAN=mine")).stdout == "mine\n"


# -------------------------------------------------------------------------------- options of the command


def test_variables_are_set_last_one_wins_and_may_hold_anything(run: Runner) -> None:
    options = ("--env", "A=1", "--env", "A=a = b=c\nd", "--env", "EMPTY=", "--env", "RAY_ADDRESS=mine:1")
    result = run("sh", "-c", 'echo "$A|${EMPTY-unset}|$RAY_ADDRESS"', options=options)
    assert result.stdout == "a = b=c\nd||mine:1\n"


def test_the_command_starts_where_it_is_told_or_where_the_user_is(run: Runner, tmp_path: Path) -> None:
    assert run("pwd").stdout == f"{Path.cwd()}\n"
    folder = tmp_path / "a folder"
    folder.mkdir()
    assert run("pwd", options=("--cwd", str(folder))).stdout == f"{folder}\n"
    missing = run("pwd", options=("--cwd", "/no/such"))
    assert missing.exit_code == 2
    assert "/no/such" in missing.stderr


def test_a_current_directory_that_is_gone_is_told_in_one_line(private_locks: None, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    line = f"cd {gone}; rmdir {gone}; exec {sys.executable} -m raytools run -- true"
    finished = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    assert (finished.returncode, len(finished.stderr.splitlines())) == (2, 1), finished.stderr


def test_an_empty_command_is_not_found_and_says_so(run: Runner) -> None:
    result = run("")
    assert (result.exit_code, result.outcome) == (127, "failed")
    assert result.record["message"]
    assert "raytools run: failed" in result.stderr


def test_arguments_and_variables_need_not_be_text(private_locks: None) -> None:
    line = f"{sys.executable} -m raytools run --env $'X=\\xfe' -- sh -c 'printf \"%s-$X\" \"$1\"' sh $'\\xff'"
    finished = subprocess.run(["bash", "-c", line], capture_output=True, timeout=30, check=False)
    assert (finished.returncode, finished.stdout) == (0, b"\xff-\xfe"), finished.stderr


def test_a_run_with_a_very_long_command_line_works_and_others_know_it(run: Runner, tmp_path: Path) -> None:
    many = [f"file-{number:07d}" for number in range(60_000)]
    process = start(tmp_path, "sh", "-c", f"sleep {MARK}", "sh", *many, record="long.json")
    refused = run("true")
    assert json.loads((tmp_path / "long.json").read_text())["run_id"] in refused.stderr
    assert len(refused.stderr) < 2000
    process.terminate()
    process.wait(10)


def test_a_command_that_is_killed_from_outside_is_failed_with_its_signal(run: Runner, tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", MARK)
    os.kill(command_pid(f"sleep {MARK}"), signal.SIGKILL)
    assert process.wait(10) == 128 + signal.SIGKILL
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["outcome"], record["signal"]) == ("failed", signal.SIGKILL)


def test_a_caller_that_ignores_sigchld_learns_how_the_command_ended(private_locks: None) -> None:
    ignore = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    script = f"{ignore}; os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-m", "raytools", "run", "--time", "5s", "--", "sh", "-c", "sleep 0; exit 3"]
    finished = subprocess.run([sys.executable, "-c", script, *command], timeout=30, check=False)
    assert finished.returncode == 3


def test_a_program_is_found_in_the_path_it_is_given(run: Runner, tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\necho mine\n")
    program.chmod(0o755)
    assert run("mine", options=("--env", f"PATH={tmp_path}:/usr/bin:/bin")).stdout == "mine\n"


def test_grace_is_over_when_the_command_does_not_end_in_it(run: Runner) -> None:
    script = f"trap 'echo asked' TERM; while :; do sleep {MARK} & wait $!; done"
    result = run("sh", "-c", script, options=("--time", time_limit(1), "--grace", time_limit(0.6)))
    assert (result.exit_code, result.outcome, result.stdout) == (124, "timeout", "asked\n")
    assert 1.6 * PATIENCE <= result.record["used"]["wall_s"] < 3 * PATIENCE


def test_a_command_without_dashes_and_with_options_of_its_own_is_left_alone(run: Runner) -> None:
    assert run("echo", "--time", "1s", "--", "-c").stdout == "--time 1s -- -c\n"


def test_processes_and_threads_are_limited(run: Runner) -> None:
    script = """
import _thread, time
_thread.stack_size(65536)
count = 0
try:
    for count in range(20000):
        _thread.start_new_thread(time.sleep, (30,))
except RuntimeError:
    print(count)
"""
    result = run(sys.executable, "-c", script)
    pids = result.record["limits"]["pids"]
    assert pids == max(4096, 512 * result.record["limits"]["cpus"])
    assert pids - 10 < int(result.stdout) < pids


def test_a_run_in_a_run_is_refused_and_says_why(run: Runner) -> None:
    result = run(sys.executable, "-m", "raytools", "run", "--", "true")
    assert (result.exit_code, result.record["outcome"]) == (125, "failed")
    assert "another limited run" in result.stderr
    assert "Start the run from outside of it" in result.stderr
    assert "Traceback" not in result.stderr


# ------------------------------------------------------------------------------------------ descriptors


def popen(*command: str, options: tuple[str, ...] = (), **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "raytools", "run", *options, "--", *command], bufsize=0, **streams
    )


def test_a_shells_process_substitution_is_read(private_locks: None) -> None:
    line = f"{sys.executable} -m raytools run -- cat <(echo one) <(echo two)"
    finished = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "one\ntwo\n", "")


def test_an_inherited_descriptor_keeps_its_number_and_others_are_not_added(private_locks: None) -> None:
    line = f"exec 7</etc/hostname; {sys.executable} -m raytools run -- ls -1 /proc/self/fd"
    finished = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=False)
    assert finished.stdout.split() == ["0", "1", "2", "3", "7"]  # 3: ls reads the directory


def test_standard_streams_are_the_commands_own_and_answer_at_once(private_locks: None) -> None:
    process = popen("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"start\n")
    assert process.stdout.readline() == b"start\n"
    began = time.monotonic()
    for number in range(200):
        process.stdin.write(f"ping {number}\n".encode())
        assert process.stdout.readline() == f"ping {number}\n".encode()
    assert time.monotonic() - began < 2 * PATIENCE  # nothing that polls is between them
    process.stdin.close()
    assert process.stdout.read() == b""
    assert process.wait(10) == 0


def test_the_end_of_the_input_comes_when_the_writer_closes_it_and_not_before(private_locks: None) -> None:
    process = popen("sh", "-c", "wc -c; echo got the end", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"x" * 100_000)
    time.sleep(0.5)
    assert process.poll() is None
    output, _ = process.communicate(timeout=10)
    assert output.split(b"\n") == [b"100000", b"got the end", b""]


def test_input_that_the_command_does_not_read_is_left_for_the_next_one(private_locks: None) -> None:
    line = f"printf 'one\\ntwo\\n' | (sh -c 'read x'; {sys.executable} -m raytools run -- true; cat)"
    finished = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=False)
    assert finished.stdout == "two\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_does_no_harm(private_locks: None, tmp_path: Path, closed: str) -> None:
    proof = tmp_path / "proof"
    line = f"{sys.executable} -m raytools run -- sh -c 'echo done >{proof}' {closed}"
    finished = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=False)
    assert (finished.returncode, proof.exists()) == (0, True), finished.stderr


def test_a_reader_that_leaves_ends_the_command_by_sigpipe_and_says_nothing(private_locks: None) -> None:
    line = f"{sys.executable} -m raytools run -- yes | head -1; exit ${{PIPESTATUS[0]}}"
    finished = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=False)
    assert (finished.returncode, finished.stdout) == (128 + signal.SIGPIPE, "y\n")
    assert "Traceback" not in finished.stderr


def test_ignored_signals_and_the_umask_of_the_requester(private_locks: None) -> None:
    inside = "sh -c 'umask; grep SigIgn /proc/self/status'"
    line = f"umask 027; trap '' INT; {sys.executable} -m raytools run -- {inside}"
    finished = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=False)
    umask, _, ignored = finished.stdout.split()
    assert umask == "0027"
    ours = (1 << 31) - 1  # two more are libc's own
    assert int(ignored, 16) & ours == 0  # the command can be ended by Ctrl-C although a script ignores it


# --------------------------------------------------------------------------------------------- records


def test_a_record_that_cannot_be_written_is_told_before_anything_runs(run: Runner, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    result = run("touch", str(proof), options=("--record", "/proc/record.json"))
    assert result.exit_code == 125
    assert "/proc/record.json" in result.stderr
    assert not proof.exists()
    missing = run("touch", str(proof), options=("--record", "/no/such/record.json"))
    assert missing.exit_code == 2
    assert "/no/such" in missing.stderr
    assert not proof.exists()


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "directory"])
def test_a_record_goes_only_to_a_regular_file(run: Runner, tmp_path: Path, kind: str) -> None:
    """Or root's `--record /dev/null` would replace that of the whole machine."""
    path, proof = tmp_path / "special", tmp_path / "proof"
    if kind == "directory":
        path.mkdir()
    else:
        target = path if kind == "pipe" else tmp_path / "pipe"
        os.mkfifo(target)
        if target != path:
            path.symlink_to(target)
    before = path.lstat().st_mode, path.stat().st_mode
    result = run("touch", str(proof), options=("--record", str(path)))
    assert result.exit_code in (2, 125)
    assert str(tmp_path) in result.stderr
    assert not proof.exists()
    assert (path.lstat().st_mode, path.stat().st_mode) == before


def test_a_record_whose_directory_goes_is_told_and_the_command_keeps_its_end(
    private_locks: None, tmp_path: Path
) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    process = popen(
        "sh",
        "-c",
        f"rm -r {folder}; exit 3",
        options=("--record", str(folder / "r.json")),
        stderr=subprocess.PIPE,
    )
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 3
    assert f"the record cannot be written to {folder}/r.json" in errors.decode()
    assert not folder.exists()


def test_the_record_is_there_while_it_runs_and_readable_for_others(run: Runner, tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", MARK)
    path = tmp_path / "record.json"
    assert json.loads(path.read_text())["outcome"] is None
    assert path.stat().st_mode & 0o777 == 0o644
    process.terminate()
    process.wait(10)
    assert json.loads(path.read_text())["outcome"] == "killed"
    assert [entry.name for entry in tmp_path.glob(".record*")] == []


# ------------------------------------------------------------------------------------------ raytools.run


API_SCRIPT = """
import os, sys, threading
import raytools
def children():
    return open(f"/proc/self/task/{os.getpid()}/children").read().split()
def descriptors():
    folder = "/proc/self/fd"
    return {n: os.readlink(f"{folder}/{n}") for n in os.listdir(folder) if os.path.lexists(f"{folder}/{n}")}
"""


def api(script: str, timeout_s: float = 40.0) -> str:
    """Runs a script that uses `raytools.run` in a process of its own; returns what it printed."""
    finished = subprocess.run(
        [sys.executable, "-c", API_SCRIPT + script],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(params=["one thread", "threads"])
def threads(request: pytest.FixtureRequest) -> str:
    """A start for scripts: a process with one thread, or with a second one."""
    if request.param == "one thread":
        return ""
    return "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"


def test_raytools_run_returns_what_became_of_the_command(private_locks: None, threads: str) -> None:
    printed = api(
        threads
        + """
good = raytools.run(["sh", "-c", "exit 0"], cpus=1, memory="512MiB", time="20s", env={"A": "1"})
print(good.outcome, good.record["limits"]["cpus"], good.record["limits"]["memory_bytes"] >> 20, good.value)
bad = raytools.run(["sh", "-c", "exit 3"])
print(bad.outcome, bad.record["exit_code"])
try:
    bad.result()
except raytools.RunFailed as error:
    print(error.record["outcome"], "ended failed" in str(error))
print(raytools.run(["sleep", "60"], time=0.3).outcome)
print(raytools.run(["no-such-command"]).record["message"])
"""
    )
    assert printed.splitlines() == [
        "ok 1 512 None", "failed 3", "failed True", "timeout", "no-such-command: No such file or directory",
    ]  # fmt: skip


def test_raytools_run_connects_files_and_knows_its_run_id(
    private_locks: None, threads: str, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("input")
    printed = api(
        threads
        + f"""
with open("{tmp_path}/in") as given, open("{tmp_path}/out", "w") as out, open("{tmp_path}/err", "w") as err:
    run = raytools.run(["sh", "-c", "cat; echo; echo $RAYTOOLS_RUN_ID; pwd; echo $MINE; echo oh >&2"],
        stdin=given, stdout=out, stderr=err,
        cwd="{tmp_path}", env={{"MINE": "yes"}}, record="{tmp_path}/r.json")
print(run.record["run_id"])
"""
    )
    run_id = printed.strip()
    assert (tmp_path / "out").read_text().splitlines() == ["input", run_id, str(tmp_path), "yes"]
    assert (tmp_path / "err").read_text() == "oh\n"
    assert json.loads((tmp_path / "r.json").read_text())["run_id"] == run_id


def test_raytools_run_leaves_no_child_and_no_descriptor_and_takes_none(
    private_locks: None, threads: str
) -> None:
    printed = api(
        threads
        + """
secret = os.open("/etc/hostname", os.O_RDONLY)
os.set_inheritable(secret, True)
before = descriptors()
for _ in range(3):
    raytools.run(["true"])
run = raytools.run(["sh", "-c", "ls -1 /proc/self/fd | tr '\\n' ' '"])
print()
print({n: v for n, v in descriptors().items() if before.get(n) != v and "/fd" not in v})
print(children())
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child")
"""
    )
    assert printed.splitlines() == ["0 1 2 3 ", "{}", "[]", "no child"]


def test_raytools_run_works_beside_more_than_1024_open_descriptors(private_locks: None, threads: str) -> None:
    printed = api(
        threads
        + """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
many = [os.open("/dev/null", os.O_RDONLY) for _ in range(1500)]
run = raytools.run(["sh", "-c", "echo from inside"])
print(run.outcome, all(os.fstat(number) for number in many))
"""
    )
    assert printed.splitlines() == ["from inside", "ok True"]


def test_raytools_run_raises_when_it_is_refused(private_locks: None, threads: str) -> None:
    printed = api(
        threads
        + """
from raytools.errors import RefusedError
for options in ({"memory": "1TiB"}, {"slot": 7}, {"gpus": 1}):
    try:
        print(raytools.run(["true"], **options).outcome)
    except RefusedError as error:
        print("refused:", error)
try:
    raytools.run(["true"], memory="lots")
except ValueError as error:
    print(error)
"""
    )
    lines = printed.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["refused"] * 3
    assert "'lots'" in lines[3]


def test_ctrl_c_in_the_caller_of_raytools_run_ends_the_run(
    private_locks: None, threads: str, tmp_path: Path
) -> None:
    script = f"""
try:
    raytools.run(["sh", "-c", "touch {tmp_path}/ready; exec sleep {MARK}"], record="{tmp_path}/r.json")
except KeyboardInterrupt:
    print("interrupted", children())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", API_SCRIPT + threads + script], stdout=subprocess.PIPE, text=True
    )
    wait_until((tmp_path / "ready").exists)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    assert output == "interrupted []\n"
    wait_until(lambda: json.loads((tmp_path / "r.json").read_text())["outcome"] is not None)
    record = json.loads((tmp_path / "r.json").read_text())
    assert (record["outcome"], "KeyboardInterrupt" in record["message"]) == ("killed", True)
    wait_until(lambda: not list((tmp_path / "locks" / "held").glob("*")))
    assert_nothing_is_left({record["run_id"]})


def test_raytools_run_refuses_what_is_no_command(private_locks: None, threads: str) -> None:
    printed = api(
        threads
        + """
for command, options in (([], {}), ("true", {}), (["true"], {"stdin": 99})):
    try:
        print(raytools.run(command, **options).record)
    except (ValueError, TypeError, OSError) as error:
        print("no command:", type(error).__name__)
"""
    )
    assert [line.split(":")[0] for line in printed.splitlines()] == ["no command"] * 3


def test_raytools_run_works_where_sigchld_is_ignored(private_locks: None, threads: str) -> None:
    printed = api(
        threads
        + """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(raytools.run(["sh", "-c", "sleep 0; exit 3"], time="5s").record["exit_code"])
"""
    )
    assert printed == "3\n"


def test_raytools_run_waits_for_its_turn_when_called_from_many_threads(private_locks: None) -> None:
    printed = api(
        """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    runs = list(pool.map(lambda n: raytools.run(["sh", "-c", f"exit {n}"], wait="60s"), range(8)))
print(*(run.record["exit_code"] for run in runs))
print(children())
"""
    )
    assert printed.splitlines() == ["0 1 2 3 4 5 6 7", "[]"]


# ------------------------------------------------------------------------- a plain user without a grant


class Stranger:
    """A user that did not exist before, with a copy of the code and of psutil, and without a grant."""

    def __init__(self) -> None:
        self.name = f"rt-{secrets.token_hex(3)}"
        self.home = Path(f"/tmp/raytools-stranger-{self.name}")
        subprocess.run(["useradd", "--no-create-home", "--home-dir", str(self.home), self.name], check=True)
        self.home.mkdir()
        shutil.copytree(CHECKOUT / "raytools", self.home / "raytools")
        shutil.copytree(Path(psutil.__file__).parent, self.home / "psutil")
        slot = {"index": 0, "cpus": sorted(os.sched_getaffinity(0)), "memory_bytes": 1 << 30, "gpus": []}
        (self.home / "node.json").write_text(json.dumps({"name": "here", "slots": [slot]}))
        subprocess.run(["chown", "-R", f"{self.name}:", str(self.home)], check=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        user = ["setpriv", f"--reuid={self.name}", f"--regid={self.name}", "--init-groups", "--"]
        home = str(self.home)
        return subprocess.run(
            [*user, "/usr/bin/python3", "-m", "raytools", "run", *arguments],
            cwd=home, capture_output=True, text=True, timeout=40, check=False,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": home, "RAYTOOLS_ROOT": home, "HOME": home,
                 "RAYTOOLS_LOCK_DIR": f"{home}/locks", "USER": self.name},
        )  # fmt: skip

    def best_effort(
        self, *command: str, options: tuple[str, ...] = ()
    ) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        finished = self.run("--enforce", "best-effort", "--record", "record.json", *options, "--", *command)
        return finished, json.loads((self.home / "record.json").read_text())

    def processes(self) -> list[psutil.Process]:
        found = psutil.process_iter(["username", "status"])
        return [p for p in found if p.info["username"] == self.name and p.info["status"] != "zombie"]

    def leave(self) -> None:
        strays = self.processes()
        for process in strays:
            process.kill()
        subprocess.run(["userdel", self.name], check=True, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.home)
        assert strays == []


@pytest.fixture(scope="module")
def stranger() -> Iterator[Stranger]:
    if os.getuid() != 0:
        pytest.skip("needs root to make a user")
    for program in ("useradd", "setpriv"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if not Path("/usr/bin/python3").exists():
        pytest.skip("needs the system's Python (package python3)")
    made = Stranger()
    yield made
    made.leave()


def test_a_plain_user_is_refused_and_told_the_command_that_allows_it(stranger: Stranger) -> None:
    refused = stranger.run("--", "true")
    assert refused.returncode == 125
    assert "grant --user rt-" in refused.stderr
    assert "--enforce best-effort" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_best_effort_runs_and_the_record_says_what_was_not_enforced(stranger: Stranger) -> None:
    finished, record = stranger.best_effort("sh", "-c", "echo out; exit 3", options=("--cpus", "1"))
    assert (finished.returncode, finished.stdout) == (3, "out\n"), finished.stderr
    enforced = record["enforced"]
    assert (enforced["cpu"], enforced["memory"], enforced["time"]) == ("affinity", "polled", "signals")
    missing = " ".join(enforced["missing"])
    for limit in ("cgroup", "cpu", "memory", "pids"):
        assert limit in missing
    assert record["fairness"]["verdict"] == "tainted"
    assert any("not enforced" in reason for reason in record["fairness"]["reasons"])


def test_best_effort_pins_kills_in_time_and_ends_orphans(stranger: Stranger) -> None:
    assert stranger.best_effort("nproc", options=("--cpus", "1"))[0].stdout == "1\n"
    finished, record = stranger.best_effort("sleep", MARK, options=("--time", "0.5s"))
    assert (finished.returncode, record["outcome"]) == (124, "timeout")
    finished, record = stranger.best_effort("sh", "-c", f"setsid sleep {MARK} & exit 0")
    assert (record["outcome"], record["used"]["processes_swept"]) == ("ok", 1)
    assert_nothing_is_left({record["run_id"]})


def test_best_effort_polls_memory_and_ends_what_exceeds_it(stranger: Stranger) -> None:
    hungry = "import time; x = bytearray(300 << 20); time.sleep(30)"
    finished, record = stranger.best_effort("/usr/bin/python3", "-c", hungry, options=("--memory", "100MiB"))
    assert (finished.returncode, record["outcome"]) == (137, "oom")
    assert record["used"]["wall_s"] < 10


def test_best_effort_without_psutil_says_what_is_missing(stranger: Stranger) -> None:
    folder, aside = stranger.home / "psutil", stranger.home / "aside"
    folder.rename(aside)
    absent = stranger.home / "psutil.py"  # the system's Python may have one of its own
    absent.write_text("raise ModuleNotFoundError('No module named psutil', name='psutil')")
    try:
        refused = stranger.run("--enforce", "best-effort", "--", "true")
    finally:
        absent.unlink()
        aside.rename(folder)
    assert refused.returncode == 125
    assert "psutil" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_check_proves_every_limit(private_locks: None) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "raytools", "run", "--check", "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    answer = json.loads(process.stdout)
    assert {proof["limit"] for proof in answer["limits"]} == {
        *("cpu", "memory", "processes", "time", "orphans", "confinement")
    }
    assert answer["ok"], answer
    assert process.returncode == 0
