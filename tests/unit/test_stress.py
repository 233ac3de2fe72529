"""The workload stress: real processes, memory and files in small, and how the figures of nodes are judged."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raytools.errors import RaytoolsError
from raytools.node.workload_link import shared_dir
from raytools.workloads import base, stress_slot, stress_worker
from raytools.workloads.base import SlotContext, WorkloadRun
from raytools.workloads.stress import Stress, StressParameters

WORKLOAD = Stress()
CPUS = len(os.sched_getaffinity(0))
MIB = 2**20
GIB = 2**30


def slot(directory: Path, memory_bytes: int = 512 * MIB, shared: Path | None = None) -> SlotContext:
    def ignore(_line: str) -> None: ...

    return SlotContext(CPUS, memory_bytes, directory, {}, ignore, ignore, shared_dir=shared)


def stressed(context: SlotContext, **asked: Any) -> dict[str, Any]:
    """Metrics of a run in which only what is asked for is done, as they arrive on the controller."""
    parameters = StressParameters(**({"seconds": 0.0, "memory_share": 0.0, "file_size": "0"} | asked))
    WORKLOAD.check(parameters)
    return dict(json.loads(json.dumps(WORKLOAD.run(parameters, context))))


# ------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seconds": "-1"}, "seconds of workload stress: found '-1', expected a duration"),
        ({"memory_share": "1"}, "memory_share is 1.0, expected 0 to 0.98: the rest is what the program"),
        ({"memory_share": "nan"}, "memory_share is nan"),
        ({"file_size": "big"}, "file_size: found 'big', expected a size such as 2GiB"),
        ({"seconds": "0", "memory_share": "0", "file_size": "0"}, "nothing is left to do"),
        ({"shared": "perhaps"}, "expected true or false"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(asked: dict[str, str], message: str) -> None:
    with pytest.raises(RaytoolsError) as error:
        WORKLOAD.check(base.make_parameters(base.find("stress"), asked))
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_by_default_cpus_burn_for_ten_seconds_memory_fills_to_95_percent_and_files_have_256_mib() -> None:
    parameters = base.make_parameters(base.find("stress"), {})
    assert parameters == StressParameters(10.0, 0.95, "256MiB", True)


def test_the_time_limit_grows_with_what_is_asked() -> None:
    short = WORKLOAD.time_s(StressParameters(seconds=10, file_size="0"))
    assert short is not None
    assert WORKLOAD.time_s(StressParameters(seconds=60, file_size="0")) == short + 50
    assert (WORKLOAD.time_s(StressParameters(file_size="1GB")) or 0) >= short + 300


# --------------------------------------------------------------------------------------------------- CPUs


def test_every_cpu_is_busy_at_the_same_time_and_its_work_is_counted(tmp_path: Path) -> None:
    began = time.monotonic()
    metrics = stressed(slot(tmp_path), seconds=0.4)
    assert time.monotonic() - began < 0.4 * max(2, CPUS) + 5  # at once, not one after the other
    assert metrics["cpus_seen"] == CPUS
    assert 0.02 * CPUS < metrics["cpu_s"] <= 1.05 * 0.4 * CPUS
    assert metrics["cpu_work_per_s"] > 100
    assert metrics["memory_bytes"] is None
    assert metrics["write_bytes_per_s"] is None


def test_no_process_is_left_afterwards(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    stressed(slot(tmp_path), seconds=0.05)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_no_process_is_left_after_one_of_them_was_killed_and_the_error_names_its_cpu() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    pids = []

    def lose_one() -> None:
        with stress_slot._crew([cpus[0], cpus[-1]]) as crew:
            pids.extend(member.process.pid for member in crew)
            os.kill(pids[-1], signal.SIGKILL)
            stress_slot._all(crew, "burn", [0.05, 0.05])

    with pytest.raises(RaytoolsError, match=f"CPU {cpus[-1]}: the process there ended with -9"):
        lose_one()
    assert not any(psutil.pid_exists(pid) for pid in pids)


# ------------------------------------------------------------------------------------------------- memory


def test_memory_is_resident_up_to_its_share_of_the_slot_with_what_the_program_has_itself(
    tmp_path: Path,
) -> None:
    context = slot(tmp_path, 2 * stress_slot.resident_bytes([os.getpid()]) + 256 * MIB)
    metrics = stressed(context, memory_share=0.75)
    assert 0.99 < metrics["memory_bytes"] / (0.75 * context.memory_bytes) < 1.03
    assert metrics["memory_touched_bytes_per_s"] > 10 * MIB


def test_memory_is_given_back(tmp_path: Path) -> None:
    before = stress_slot.resident_bytes([os.getpid()])
    stressed(slot(tmp_path, before + 200 * MIB), memory_share=0.9)
    assert stress_slot.resident_bytes([os.getpid()]) < before + 20 * MIB


def test_every_page_of_a_worker_is_in_ram_as_seen_from_outside() -> None:
    with stress_slot._crew([min(os.sched_getaffinity(0))]) as [member]:
        before = stress_slot.resident_bytes([member.process.pid])
        member.tell("hold", 70 * MIB + 5)  # more than one step, and no whole page at the end
        assert member.answer()["held_bytes"] == 70 * MIB
        held = stress_slot.resident_bytes([member.process.pid]) - before
        assert 70 * MIB <= held < 72 * MIB
        member.tell("check", None)
        assert member.answer() == {}


def test_memory_is_not_taken_from_a_machine_that_has_none_left(monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([2**40, 2**20])  # enough for one step
    monkeypatch.setattr(stress_worker, "available_bytes", lambda: next(left))
    worker = stress_worker.Worker()
    answer = worker.hold(70 * MIB)
    assert (answer["held_bytes"], answer["short"]) == (16 * MIB, True)
    assert worker.check(None) == {}  # of what it has


def test_what_a_machine_has_left_is_read_from_its_kernel() -> None:
    assert 0 < stress_worker.available_bytes() < 2**50


def test_memory_that_holds_something_else_than_was_written_is_found() -> None:
    worker = stress_worker.Worker()
    worker.hold(3 * MIB)
    assert worker.check(None) == {}
    assert worker._block is not None
    worker._block[MIB] ^= 1
    with pytest.raises(ValueError, match="memory holds something else than was written to it"):
        worker.check(None)


def test_memory_that_cannot_be_had_is_an_error_that_names_the_cpu() -> None:
    cpu = min(os.sched_getaffinity(0))
    with stress_slot._crew([cpu]) as [member]:
        member.tell("hold", 2**60)
        with pytest.raises(RaytoolsError, match=f"CPU {cpu}: .*Cannot allocate memory"):
            member.answer()


# ------------------------------------------------------------------------------------------------- storage


def test_a_file_is_written_read_back_and_gone(tmp_path: Path) -> None:
    metrics = stressed(slot(tmp_path), file_size="5000000")  # no whole blocks
    assert metrics["file_bytes"] == 5_000_000
    assert metrics["write_bytes_per_s"] > 0
    assert metrics["read_bytes_per_s"] > 0
    assert metrics["fsync_ms"] >= 0
    assert metrics["filesystem"]
    assert metrics["problems"] == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_back_comes_from_the_disk_and_not_from_the_page_cache(tmp_path: Path) -> None:
    if stress_slot.filesystem_of(str(tmp_path)) in ("tmpfs", "ramfs"):
        pytest.skip(f"{tmp_path} is in memory: there is no disk below it")

    def moved_bytes() -> tuple[int, int]:
        pairs = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(pairs["write_bytes"]), int(pairs["read_bytes"])

    before = moved_bytes()
    stress_slot.measure(tmp_path, 8 * MIB)
    written, read = (now - then for now, then in zip(moved_bytes(), before, strict=True))
    assert written >= 8 * MIB
    assert read >= 8 * MIB


def test_shared_storage_has_its_own_figures_and_is_left_as_it_was(tmp_path: Path) -> None:
    local, shared = tmp_path / "local", tmp_path / "shared"
    local.mkdir()
    shared.mkdir()
    context = slot(local, shared=shared)
    metrics = stressed(context, file_size="2MiB")
    assert metrics["shared_file_bytes"] == metrics["file_bytes"] == 2 * MIB
    assert metrics["shared_write_bytes_per_s"] > 0
    assert metrics["shared_read_bytes_per_s"] > 0
    assert list(shared.iterdir()) == []
    assert stressed(context, file_size="2MiB", shared=False)["shared_write_bytes_per_s"] is None


def test_without_shared_storage_its_figures_are_unknown_and_no_problem(tmp_path: Path) -> None:
    metrics = stressed(slot(tmp_path), file_size="1MiB")
    assert metrics["shared_write_bytes_per_s"] is None
    assert metrics["problems"] == []


def test_shared_storage_that_is_not_there_is_a_problem_and_the_local_disk_is_measured_all_the_same(
    tmp_path: Path,
) -> None:
    metrics = stressed(slot(tmp_path, shared=tmp_path / "nowhere"), file_size="1MiB")
    assert metrics["problems"] == ["shared storage: No such file or directory"]
    assert metrics["write_bytes_per_s"] > 0


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel lets this process write no file beyond 2 MiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_write_that_fails_half_way_is_a_problem_and_leaves_nothing_behind(tmp_path: Path) -> None:
    metrics = stressed(slot(tmp_path), file_size="8MiB")
    assert metrics["problems"] == ["local disk: File too large"]
    assert metrics["write_bytes_per_s"] is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_killed_while_it_writes_leaves_nothing_behind(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from raytools.workloads.stress_slot import measure\n"
        "while True: measure(Path(sys.argv[1]), 2**23)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    deadline = time.monotonic() + 20
    while not any(str(tmp_path) in opened for opened in open_files(process.pid)):
        assert time.monotonic() < deadline, "it has opened no file there"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list(tmp_path.iterdir()) == []


def open_files(pid: int) -> list[str]:
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return found


def test_something_else_read_than_written_is_told_with_its_place(tmp_path: Path) -> None:
    pattern = os.urandom(MIB)
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        for block in stress_slot._blocks(pattern, 3 * MIB):
            file.write(block)
        file.seek(2 * MIB + 4711)
        file.write(b"bitten")
        file.seek(0)
        with pytest.raises(ValueError, match="at 2 MiB something else was read than written"):
            stress_slot._compare(file, pattern, 3 * MIB)
        file.truncate(MIB)
        file.seek(0)
        with pytest.raises(ValueError, match="at 1 MiB something else"):
            stress_slot._compare(file, pattern, 3 * MIB)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def test_files_in_memory_take_a_tenth_of_the_slots_and_are_told_to_be_no_disk(in_memory: Path) -> None:
    metrics = stressed(slot(in_memory, 50 * MIB), file_size="64MiB")
    assert metrics["file_bytes"] == 5 * MIB
    smaller, no_disk = metrics["notes"]
    assert smaller == "local disk: a file of 5 MiB instead of 64 MiB, a tenth of what is free"
    assert no_disk.endswith("is tmpfs, so its figures are those of memory")
    assert metrics["problems"] == []


def test_storage_without_room_is_a_problem(in_memory: Path) -> None:
    metrics = stressed(slot(in_memory, 5 * MIB), file_size="64MiB")
    assert metrics["problems"] == ["local disk: no room, a tenth of what is free is 512 KiB"]
    assert metrics["write_bytes_per_s"] is None


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ({"type": "nfs", "path": "/mnt/shared", "server": "n1"}, Path("/mnt/shared/results")),
        ({"type": "existing", "path": "/data"}, Path("/data/results")),
        ({"type": "local", "path": "/opt/raytools"}, None),
        (None, None),
    ],
)
def test_a_slot_learns_from_its_nodes_plan_where_shared_storage_is(
    storage: dict[str, Any] | None, expected: Path | None
) -> None:
    assert shared_dir({"storage": storage} if storage else {}) == expected


# ------------------------------------------------------------------------------------------------ judgement


def run(name: str = "n1", slot_index: int = 0, limit_bytes: int = 4 * GIB, **changes: Any) -> WorkloadRun:
    metrics = {
        "problems": [],
        "notes": [],
        "cpus_seen": 2,
        "cpu_s": 19.9,
        "cpu_work_per_s": 14000,
        "memory_bytes": int(0.95 * 4 * GIB),
        "memory_touched_bytes_per_s": 2 * GIB,
        "write_bytes_per_s": 400 * MIB,
        "read_bytes_per_s": 800 * MIB,
        "shared_write_bytes_per_s": None,
        "shared_read_bytes_per_s": None,
    } | changes
    record = {
        "host": {"name": name, "slot": slot_index},
        "limits": {"cpus": 2, "memory_bytes": limit_bytes},
    }
    return WorkloadRun(record, metrics)


def judged(*runs: WorkloadRun, **asked: Any) -> list[tuple[str, bool]]:
    reasons = WORKLOAD.judge(StressParameters(**asked), runs)
    return [(reason.text, reason.fails) for reason in reasons]


def test_nodes_that_gave_what_was_promised_give_no_reason() -> None:
    assert judged(run("n1"), run("n2", write_bytes_per_s=300 * MIB), run("n3", cpu_s=20.1)) == []


def test_cpu_time_that_is_missing_is_told_with_who_must_have_had_it() -> None:
    text = "n1: 15.1 CPU seconds in 10.0 s, 2 CPUs have 20.0: others used its CPUs"
    assert judged(run(cpu_s=15.1)) == [(text, False)]
    assert judged(run(cpu_s=18.1)) == []


def test_more_cpu_time_than_the_slot_has_fails() -> None:
    text = "n1: 25.0 CPU seconds in 10.0 s, 2 CPUs have 20.0: it used CPUs that are not its own"
    assert judged(run(cpu_s=25.0)) == [(text, True)]


@pytest.mark.parametrize(("seen", "cpu_s"), [(8, 79.0), (1, 9.9)])
def test_other_cpus_than_the_slot_has_fail_and_are_said_once(seen: int, cpu_s: float) -> None:
    expected = [(f"n1: {seen} CPUs were seen, the slot has 2", True)]
    assert judged(run(cpus_seen=seen, cpu_s=cpu_s)) == expected


def test_memory_that_did_not_stay_in_ram_fails() -> None:
    text = "n1: only 3 GiB of memory stayed in RAM, of 3.8 GiB"
    assert judged(run(memory_bytes=3 * GIB)) == [(text, True)]


def test_what_a_slot_found_wrong_fails_and_what_it_only_noted_does_not() -> None:
    wrong = run("n2", problems=["shared storage: Stale file handle"], notes=["local disk: a smaller file"])
    assert judged(run("n1"), wrong) == [
        ("n2: shared storage: Stale file handle", True),
        ("n2: local disk: a smaller file", False),
    ]


def test_a_figure_below_half_of_the_others_median_names_node_and_figures_and_does_not_fail() -> None:
    runs = [run("n1"), run("n2", write_bytes_per_s=150 * MIB), run("n3", write_bytes_per_s=500 * MIB)]
    text = "n2: local disk, written: 150 MiB/s, less than half of what others have (median 450 MiB/s)"
    assert judged(*runs) == [(text, False)]


def test_slow_cpus_memory_and_shared_storage_are_told_the_same_way() -> None:
    slow = run(
        "n3",
        cpu_work_per_s=5000,
        memory_touched_bytes_per_s=GIB / 2,
        shared_write_bytes_per_s=10 * MIB,
        shared_read_bytes_per_s=10 * MIB,
    )
    quick = [
        run(name, shared_write_bytes_per_s=100 * MIB, shared_read_bytes_per_s=100 * MIB)
        for name in ("n1", "n2")
    ]
    assert [text for text, _ in judged(*quick, slow)] == [
        "n3: work of each CPU: 5000 units/s, less than half of what others have (median 14000 units/s)",
        "n3: memory touched: 512 MiB/s, less than half of what others have (median 2 GiB/s)",
        "n3: shared storage, written: 10 MiB/s, less than half of what others have (median 100 MiB/s)",
        "n3: shared storage, read: 10 MiB/s, less than half of what others have (median 100 MiB/s)",
    ]


def test_slots_are_compared_with_those_of_other_nodes_and_with_their_own_where_there_is_no_other() -> None:
    slow = [run("n2", 0, write_bytes_per_s=100 * MIB), run("n2", 1, write_bytes_per_s=100 * MIB)]
    assert [text.split(": ")[0] for text, _ in judged(run("n1"), *slow)] == ["n2", "n2 slot 1"]
    alone = judged(run("n1", 0), run("n1", 1, write_bytes_per_s=100 * MIB))
    assert [text.split(": ")[0] for text, _ in alone] == ["n1 slot 1"]


def test_what_was_left_out_or_not_measured_is_not_held_against_a_run() -> None:
    nothing = dict.fromkeys(run().metrics) | {"problems": [], "notes": [], "cpus_seen": 2}
    assert judged(run("n1"), run("n2", **nothing)) == []
    assert judged(run("n1"), WorkloadRun({"host": {"name": "n2"}, "outcome": "oom"}, {})) == []
