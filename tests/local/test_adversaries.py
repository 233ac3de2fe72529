"""Nothing escapes, nothing stays: commands that try to outlive, outgrow or leave their run, as root and as a
granted plain user. `pytest -v` is the table; RAYTOOLS_ADVERSARY_TABLE=FILE writes it with the outcomes.

After each test there may be no process, group, directory, shared memory or lock of its runs, and every record
has an outcome and no processes left.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.limited_runs import (
    PATIENCE,
    PYTHON,
    Requester,
    Runs,
    cgroup_mounts,
    plain_user,
    root,
    time_limit,
    wait_until,
    why_no_grant,
    why_no_limits,
)

pytestmark = [
    pytest.mark.skipif(bool(why_no_limits()), reason=why_no_limits()),
    pytest.mark.skipif(os.getuid() != 0, reason="needs root to be root, and to make a plain user"),
    pytest.mark.skipif(shutil.which("useradd") is None, reason="needs useradd (package passwd)"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (package util-linux)"),
    pytest.mark.skipif(not Path(PYTHON).exists(), reason="needs the system's Python (package python3)"),
]

FOR_EVER = ("sleep", "7531")
# only a daemon that has begun is out of reach of a signal to the group; a redirection starts no process
TREE = (
    "setsid sh -c ': > daemon; exec sleep 7531' & until [ -e daemon ]; do sleep 0.01; done; "
    ': > ready; exec "$@"'
)
SMALL = ("--memory", "100MiB", "--time", "20s")  # escapes then take 400 MiB
UNIFIED = next(iter(cgroup_mounts("cgroup2")), None)


@pytest.fixture(scope="module", params=[root, plain_user], ids=["root", "plain-user"])
def requester(request: pytest.FixtureRequest) -> Iterator[Requester]:
    if request.param is plain_user and (reason := why_no_grant()):
        pytest.skip(reason)
    with request.param() as made:
        yield made


@pytest.fixture
def runs(requester: Requester, request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Runs whose every trace must be gone afterwards; writes the line of the table."""
    made = Runs(requester)
    try:
        yield made
        left = made.nothing_is_left()
        records = made.records()
        if table := os.environ.get("RAYTOOLS_ADVERSARY_TABLE"):
            _write_line(Path(table), request.node.name, requester.name, records, left)
        assert left == []
        assert [record["used"]["processes_left"] for record in records] == [0] * len(records)
        assert None not in [record["outcome"] for record in records]
        assert [record["enforced"]["missing"] for record in records] == [[]] * len(records)
    finally:
        made.clean_up()


def _write_line(table: Path, test: str, user: str, records: list[dict[str, object]], left: list[str]) -> None:
    name, _, parameters = test.removesuffix("]").partition("[")
    variant = parameters.removeprefix(user).removesuffix(user).strip("-")
    adversary = name.removeprefix("test_").replace("_", " ") + (f" ({variant})" if variant else "")
    outcomes = ", ".join(str(record["outcome"]) for record in records) or "no record"
    with table.open("a") as file:
        file.write(f"{user} | {adversary} | {outcomes} | {', '.join(left) or 'nothing'}\n")


@pytest.fixture
def outsider(requester: Requester) -> Iterator[None]:
    """A process outside, of the same user and without privileges, that has the cgroup files at hand.

    The kernel lets a process look into others that are no more privileged than itself, so PID 1 alone proves
    little.
    """
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *FOR_EVER]
    directory = (*cgroup_mounts("cgroup"), *cgroup_mounts("cgroup2"))[0]
    opened = os.open(directory, os.O_RDONLY)
    process = subprocess.Popen(requester.as_user(bare), cwd=directory, stdin=opened)
    os.close(opened)
    yield
    process.kill()
    process.wait(5)


@pytest.fixture
def sibling(requester: Requester) -> Iterator[str]:
    """The id of another run of the same user at the same time, with books of its own."""
    other = Runs(requester)
    try:
        run = other.start("sh", "-c", TREE, "sh", *FOR_EVER)
        yield run.record()["run_id"]
        run.process.terminate()
        assert run.result().outcome == "killed"
        assert other.nothing_is_left() == []
    finally:
        other.clean_up()


# Too many processes


def test_a_fork_bomb_ends_at_its_time(runs: Runs) -> None:
    result = runs.run(*runs.program("fork_bomb.py"), options=("--time", time_limit(1)))
    assert result.ending == (124, "timeout")
    assert 100 < result.record["used"]["processes_swept"] <= result.record["limits"]["pids"]


def test_a_fork_bomb_meets_the_limit_on_processes_and_ends_on_request(runs: Runs) -> None:
    run = runs.start(*runs.program("fork_bomb.py"), options=("--time", time_limit(30)), until_ready=False)
    wait_until(lambda: "limit" in run.output(), 25)
    run.process.send_signal(signal.SIGTERM)
    run.process.send_signal(signal.SIGINT)  # the second one kills; for the first it has to be its turn
    result = run.result(20)
    assert result.outcome == "killed"
    assert 1000 < result.record["used"]["processes_swept"] <= result.record["limits"]["pids"]


def test_a_thread_bomb_meets_the_limit_on_processes(runs: Runs) -> None:
    result = runs.run(*runs.program("thread_bomb.py"))
    assert result.ending == (0, "ok")
    assert 1000 < int(result.stdout) <= result.record["limits"]["pids"]


def test_processes_that_replace_each_other_by_vfork_and_exec_are_not_outrun(runs: Runs) -> None:
    result = runs.run(*runs.program("exec_storm.py"), options=("--time", "1s"))
    assert result.ending == (124, "timeout")
    assert result.record["used"]["wall_s"] < 3 * PATIENCE


def test_thousands_of_zombies_end_with_their_parent(runs: Runs) -> None:
    result = runs.run(*runs.program("zombies.py"))
    assert (result.stdout, *result.ending) == ("3000\n", 0, "ok")
    assert result.record["used"]["processes_swept"] >= 1


# Outliving the command


def test_a_double_forked_process_does_not_outlive_its_run(runs: Runs) -> None:
    result = runs.run("sh", "-c", "( sleep 7531 & ) ; exit 3")
    assert result.ending == (3, "failed")
    assert result.record["used"]["processes_swept"] == 1


def test_setsid_and_nohup_do_not_outlive_the_run(runs: Runs) -> None:
    result = runs.run("sh", "-c", "setsid nohup sleep 7531 >/dev/null 2>&1 & exit 0")
    assert result.ending == (0, "ok")
    assert result.record["used"]["processes_swept"] == 1


def test_a_daemon_deaf_to_all_signals_does_not_outlive_the_run(runs: Runs) -> None:
    result = runs.run(*runs.program("deaf_daemon.py"))
    assert result.ending == (0, "ok")
    assert result.record["used"]["processes_swept"] == 1


def test_a_daemon_deaf_to_all_signals_ends_at_the_time_limit(runs: Runs) -> None:
    result = runs.run(*runs.program("deaf_daemon.py", "stay"), options=("--time", "0.5s", "--grace", "0.2s"))
    assert result.ending == (124, "timeout")
    assert result.record["used"]["wall_s"] < 2 * PATIENCE


def test_a_daemon_in_namespaces_of_its_own_does_not_outlive_the_run(runs: Runs) -> None:
    script = "unshare -Urmpf --mount-proc setsid sleep 7531 & setsid sleep 7531 & sleep 0.2"
    result = runs.run("sh", "-c", script)
    assert result.ending == (0, "ok")
    assert result.record["used"]["processes_swept"] >= 1


def test_a_daemon_that_holds_the_output_pipe_does_not_hold_the_reader(runs: Runs) -> None:
    run = runs.start("sh", "-c", "echo done; setsid sleep 7531 &", stdout=subprocess.PIPE, until_ready=False)
    out, _ = run.process.communicate(timeout=10)
    assert (out, *run.result().ending) == (b"done\n", 0, "ok")


def test_a_tree_that_stopped_itself_ends_at_its_time(runs: Runs) -> None:
    result = runs.run(*runs.program("stopped_tree.py"), options=("--time", time_limit(1)))
    assert (result.stdout, *result.ending) == ("stopping\n", 124, "timeout")
    assert result.record["used"]["wall_s"] < 3 * PATIENCE
    assert result.record["used"]["processes_swept"] == 10


@pytest.mark.parametrize("number", ["SIGSTOP", "SIGKILL", "all"])
def test_a_run_that_signals_the_process_above_it_ends_at_its_time(runs: Runs, number: str) -> None:
    result = runs.run(*runs.program("signal_parent.py", number), options=("--time", "0.5s"), timeout_s=8)
    assert result.ending == (124, "timeout")
    assert result.record["used"]["wall_s"] < 2 * PATIENCE


def test_a_run_that_stops_and_continues_all_the_time_ends_at_its_time(runs: Runs) -> None:
    result = runs.run(*runs.program("stop_and_go.py"), options=("--time", "1s"))
    assert result.ending == (124, "timeout")
    assert result.record["used"]["wall_s"] < 3 * PATIENCE


# Leaving the groups


@pytest.mark.parametrize("way", ["direct", "proc", "mount", "fsmount"])
def test_a_run_can_neither_leave_its_groups_nor_outgrow_its_limits(
    runs: Runs, outsider: None, sibling: str, way: str
) -> None:
    result = runs.run(*runs.program("escape.py", way, sibling), options=("--cpus", "1", *SMALL))
    assert result.stdout == "", result.stderr
    assert result.ending == (137, "oom")


@pytest.mark.skipif(UNIFIED is None, reason="needs the unified cgroup hierarchy to be mounted")
def test_a_run_cannot_have_a_child_born_in_another_group(runs: Runs) -> None:
    assert UNIFIED is not None
    group = UNIFIED / f"rt-foreign-{runs.token}"
    group.mkdir()
    try:
        for path in (group, group / "cgroup.procs"):
            os.chown(path, runs.requester.uid, runs.requester.gid)
        result = runs.run(*runs.program("escape.py", "clone-into", str(group)), options=SMALL)
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
    assert "was born" not in result.stdout


def test_a_run_does_not_reach_services_that_would_start_a_program_outside(runs: Runs) -> None:
    ask = runs.program("ask_services.py")
    outside = subprocess.run(runs.requester.as_user(ask), capture_output=True, text=True, check=True)
    if not outside.stdout:
        pytest.skip("no service here starts programs for others")
    result = runs.run(*ask)
    assert (result.stdout, *result.ending) == ("", 0, "ok")


@pytest.mark.parametrize("how", ["deep", "many"])
def test_a_daemon_in_cgroups_of_its_own_making_does_not_outlive_the_run(runs: Runs, how: str) -> None:
    result = runs.run(*runs.program("hide.py", how, runs.token))
    assert result.ending == (0, "ok")
    assert result.record["used"]["processes_swept"] >= 1


def test_a_run_that_freezes_its_own_group_ends_at_its_time(runs: Runs) -> None:
    result = runs.run(*runs.program("hide.py", "frozen", runs.token), options=("--time", "1s"))
    assert result.ending in [(124, "timeout"), (0, "ok")]  # ok where the kernel did not let it
    assert result.record["used"]["wall_s"] < 3 * PATIENCE


def test_threads_that_pin_themselves_elsewhere_stay_on_the_cpus_of_the_run(runs: Runs) -> None:
    result = runs.run(*runs.program("repin.py"), options=("--cpus", "1"))
    (cpu,) = result.record["limits"]["cpu_set"]
    assert set(result.stdout.split()) == {str(cpu)}
    assert result.ending == (0, "ok")
    assert result.record["used"]["cpu_s"] < 1.1 * result.record["used"]["wall_s"] + 0.1


def test_a_run_cannot_type_into_the_terminal_of_its_requester(runs: Runs) -> None:
    ours, theirs = os.openpty()
    try:
        run = runs.start(*runs.program("type.py"), terminal=theirs, until_ready=False)
        assert run.result().outcome == "ok"
        assert select.select([theirs], [], [], 0)[0] == [], "a shell would execute it"
    finally:
        os.close(ours)
        os.close(theirs)


# Too much memory


@pytest.mark.parametrize("kind", ["anonymous", "children", "tmpfs"])
def test_memory_over_the_limit_ends_the_run(runs: Runs, kind: str) -> None:
    program = runs.program("allocate.py", kind, "200", runs.token)
    # the whole run ends soon; at once the kernel ends one process alone (cgroup v1)
    result = runs.run("sh", "-c", '"$@"; sleep 1; echo survived', "sh", *program, options=SMALL)
    assert (result.stdout, *result.ending) == ("", 137, "oom")
    assert result.record["used"]["memory_peak_bytes"] <= 100 << 20


def test_page_cache_over_the_limit_is_no_excess(runs: Runs) -> None:
    script = "dd if=/dev/zero of=file bs=1M count=200 2>/dev/null; cat file file >/dev/null"
    result = runs.run("sh", "-c", script, options=("--memory", "64MiB"))
    assert result.ending == (0, "ok")


# Leaving things behind


def test_what_lies_in_shared_memory_and_the_temporary_directory_goes_with_the_run(runs: Runs) -> None:
    write = 'head -c 100000000 /dev/zero > "$d/$0" || exit 1'
    script = f'for d in /dev/shm "$TMPDIR"; do {write}; done; echo "$TMPDIR"'
    result = runs.run("sh", "-c", script, runs.token)
    assert result.ending == (0, "ok")
    assert not Path(result.stdout.strip()).exists()


def test_shared_memory_of_the_machine_is_not_reached_by_unmounting_that_of_the_run(runs: Runs) -> None:
    script = 'umount -l /dev/shm; touch "/dev/shm/$0"'
    result = runs.run("sh", "-c", f"{script}; unshare -Urm sh -c '{script}' $0; true", runs.token)
    assert result.outcome == "ok"


def test_system_v_shared_memory_goes_with_the_run(runs: Runs) -> None:
    result = runs.run(*runs.program("shared_memory.py", str(runs.key)))
    assert result.ending == (0, "ok")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param('mkdir "$TMPDIR/d" && touch "$TMPDIR/d/f" && chmod 0 "$TMPDIR/d"', id="closed"),
        pytest.param('rm -r "$TMPDIR" && ln -s "$HOME" "$TMPDIR"', id="a link elsewhere"),
        pytest.param('rm -r "$TMPDIR" && touch "$TMPDIR"', id="a file"),
        pytest.param(
            f'{PYTHON} -c \'import os; os.chdir(os.environ["TMPDIR"])\n'
            'for _ in range(1500): os.mkdir("d"); os.chdir("d")\'',
            id="too deep",
        ),
    ],
)
def test_a_temporary_directory_made_hard_to_remove_goes_with_the_run(runs: Runs, script: str) -> None:
    result = runs.run("sh", "-c", script)
    assert result.stderr == ""
    assert result.ending == (0, "ok")
    assert (runs.directory / "node.json").exists(), "what the link pointed at is not the run's"


# Ends of the command's own


@pytest.mark.parametrize("code", [124, 137])
def test_an_exit_code_that_looks_like_ours_is_failed(runs: Runs, code: int) -> None:
    result = runs.run("sh", "-c", f"exit {code}", options=("--memory", "64MiB", "--time", "20s"))
    assert (*result.ending, result.record["exit_code"]) == (code, "failed", code)
    assert result.stderr == ""


def test_a_segmentation_fault_is_failed_with_its_signal(runs: Runs) -> None:
    result = runs.run(PYTHON, "-c", "import ctypes; ctypes.string_at(0)")
    assert (*result.ending, result.record["signal"]) == (128 + signal.SIGSEGV, "failed", signal.SIGSEGV)


@pytest.mark.parametrize(
    ("command", "code"), [("./missing", 127), ("./node.json", 126), ("./a-directory", 126)]
)
def test_what_cannot_be_executed_ends_as_in_a_shell(runs: Runs, command: str, code: int) -> None:
    (runs.directory / "a-directory").mkdir()
    result = runs.run(command)
    assert result.ending == (code, "failed")
    assert command in result.stderr
    assert command in result.record["message"]


def test_a_gigabyte_of_output_arrives_whole(runs: Runs) -> None:
    command = ("head", "-c", "1000000000", "/dev/zero")
    run = runs.start(*command, stdout=subprocess.PIPE, until_ready=False)
    assert run.process.stdout is not None
    count = 0
    while data := os.read(run.process.stdout.fileno(), 1 << 20):
        count += len(data)
    assert count == 1_000_000_000
    assert run.result().ending == (0, "ok")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("rm -r place", id="removed"),
        pytest.param("rm place/record.json && mkdir -p place/record.json/x", id="taken by a directory"),
    ],
)
def test_a_run_that_spoils_the_place_of_its_record_still_says_how_it_ended(runs: Runs, script: str) -> None:
    place = runs.directory / "place"
    place.mkdir()
    os.chown(place, runs.requester.uid, runs.requester.gid)
    script = f'echo "$RAYTOOLS_RUN_ID" > run-id; {script}; exit 3'
    result = runs.run("sh", "-c", script, options=("--record", "place/record.json"))
    assert result.exit_code == 3
    assert "Traceback" not in result.stderr
    assert "record" in result.stderr


def test_a_run_that_takes_the_locks_of_the_node_ends_at_its_time(runs: Runs) -> None:
    # in the order in which it could get them; the CPUs are its supervisor's
    script = "for lock in locks/*; do flock -n $lock sleep 7531 & done; wait; sleep 7531"
    result = runs.run("sh", "-c", script, options=("--time", "1s"))
    assert result.ending == (124, "timeout")
    assert result.record["used"]["wall_s"] < 3 * PATIENCE


HOLDER = (
    '{"run_id": "junk", "pid": 1, "user": "x", "cpus": [0], "memory_bytes": 1, "command": ["x"], '
    '"started_at": "x", "record_path": "spoiled.json", "traces": %s}'
)


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param("ln -s /nowhere $junk", id="link"),
        pytest.param("mkfifo $junk", id="pipe"),
        pytest.param("mkdir $junk", id="directory"),
        pytest.param("touch $junk; chmod 0 $junk", id="unreadable"),
        pytest.param(f"echo '{HOLDER % 5}' > $junk", id="wrong types"),
        pytest.param(f"echo '{HOLDER % {}}' > $junk; echo junk > spoiled.json", id="spoiled record"),
    ],
)
def test_junk_in_the_books_of_the_node_does_not_stop_other_runs(runs: Runs, plant: str) -> None:
    assert runs.run("sh", "-c", f"junk=locks/held/junk.json; {plant}").ending == (0, "ok")
    after = runs.run("echo", "mine", timeout_s=5)
    assert (after.stdout, *after.ending) == ("mine\n", 0, "ok")
    assert "Traceback" not in after.stderr
    subprocess.run(["rm", "-rf", str(runs.held / "junk.json")], check=True)


# Signals from outside


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_to_raytools_run_ends_the_whole_run(runs: Runs, number: signal.Signals) -> None:
    run = runs.start("sh", "-c", TREE, "sh", *FOR_EVER)
    run.process.send_signal(number)
    result = run.result()
    assert (*result.ending, result.record["signal"]) == (128 + number, "killed", number)
    assert result.record["used"]["processes_swept"] == 1


def test_killing_raytools_run_ends_the_whole_run_within_a_second(runs: Runs) -> None:
    run = runs.start("sh", "-c", TREE, "sh", *FOR_EVER)
    assert len(runs.processes()) >= 4  # the requester, its supervisor, the command, the daemon
    run.process.kill()
    assert wait_until(lambda: not runs.processes()) < 1 * PATIENCE
    assert run.record()["outcome"] == "killed"


@pytest.mark.parametrize("program", ["calm", "stops and continues"])
def test_stopping_raytools_run_does_not_stop_the_time(runs: Runs, program: str) -> None:
    command = FOR_EVER if program == "calm" else runs.program("stop_and_go.py")
    run = runs.start("sh", "-c", TREE, "sh", *command, options=("--time", time_limit(1)))
    run.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: runs.processes() == [run.process.pid], 10)
    run.process.send_signal(signal.SIGCONT)
    result = run.result()
    assert result.ending == (124, "timeout")
    assert "Traceback" not in result.stderr


def test_what_a_killed_supervisor_left_is_swept_by_the_next_run_which_says_so(runs: Runs) -> None:
    run = runs.start("sh", "-c", TREE, "sh", *FOR_EVER)
    holder = run.holder()
    os.kill(holder["pid"], signal.SIGKILL)
    lost = run.result()
    assert lost.exit_code == 1
    assert "supervisor vanished" in lost.stderr
    after = runs.run("echo", "next")
    assert (after.stdout, *after.ending) == ("next\n", 0, "ok")
    assert f"swept run {holder['run_id']}" in after.stderr
    assert run.record()["outcome"] == "lost"
