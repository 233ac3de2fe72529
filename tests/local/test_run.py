"""`raytools run` on this machine's real cgroups: outcomes, records, and what is left afterwards."""

from __future__ import annotations

import json
import os
import signal
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

try:
    cgroup.select_driver()
    _why_not = ""
except RefusedError as refusal:
    _why_not = str(refusal)
pytestmark = pytest.mark.skipif(bool(_why_not), reason=_why_not)

Runner = Callable[..., "Result"]
MARK = "7531"  # an odd sleep, to find strays by


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
    left = [*Path("/sys/fs/cgroup").glob("**/rt-run-*"), *Path("/tmp").glob("rt-run-*")]
    assert [str(path) for path in left if path.name in names] == []
    strays = [p.pid for p in psutil.process_iter(["cmdline"]) if MARK in (p.info["cmdline"] or [])]
    assert strays == []


def start(tmp_path: Path, *command: str, record: str = "record.json") -> subprocess.Popen[bytes]:
    """Starts a run in the background and waits until its command runs; its stderr goes to a file."""
    ready = tmp_path / "ready"
    ready.unlink(missing_ok=True)
    arguments = ["--record", str(tmp_path / record), "--", "sh", "-c", f'touch {ready}; exec "$@"', "sh"]
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "raytools", "run", *arguments, *command], stderr=stderr
        )
    wait_until(ready.exists)
    return process


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


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
    assert 0.5 <= result.record["used"]["wall_s"] < 1.5


def test_grace_lets_the_command_finish_after_sigterm(run: Runner) -> None:
    script = f"trap 'echo saved; exit 0' TERM; sleep {MARK} & wait"
    result = run("sh", "-c", script, options=("--time", "0.5s", "--grace", "10s"))
    assert (result.stdout, result.outcome) == ("saved\n", "timeout")
    assert result.record["used"]["wall_s"] < 5


def test_a_setsid_grandchild_does_not_survive_the_run(run: Runner) -> None:
    result = run("sh", "-c", f"setsid nohup sleep {MARK} >/dev/null 2>&1 & exit 0")
    assert result.outcome == "ok"
    assert result.record["used"]["processes_swept"] == 1
    assert result.record["used"]["processes_left"] == 0


def test_memory_over_the_limit_ends_the_whole_run_as_oom(run: Runner) -> None:
    script = "python3 -c 'x = bytearray(10**9)'; echo survived"
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
    first = start(tmp_path, "sleep", "1.5", record="first.json")
    refused = run("true")
    assert (refused.exit_code, refused.outcome) == (125, "refused")
    assert "is held by run" in refused.stderr
    assert str(json.loads((tmp_path / "first.json").read_text())["run_id"]) in refused.stderr
    waited = run("echo", "mine", options=("--wait", "20s"))
    assert (waited.exit_code, waited.stdout) == (0, "mine\n")
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
    time.sleep(0.3)
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


def test_check_proves_every_limit(private_locks: None) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "raytools", "run", "--check", "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    answer = json.loads(process.stdout)
    assert {proof["limit"] for proof in answer["limits"]} == {
        *("cpu", "memory", "time", "orphans", "confinement")
    }
    assert answer["ok"], answer
    assert process.returncode == 0
