"""`@raytools.remote` and `raytools.pinned` on a real Ray: whatever is killed, nothing of a run is left.

About a minute; needs a built environment and two CPUs. Drivers are programs of their own, as users' are; most
tests share one, which takes its cells from the test as a notebook does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from raytools.environment.activate import activation
from raytools.node.cgroup_tree import read_text

from .limited_runs import PATIENCE, why_no_limits
from .planned_node import CHECKOUT, built_prefix, free_base_port, write_node

_why_not = why_no_limits()
if not {0, 1} <= os.sched_getaffinity(0):
    _why_not = f"two slots need CPUs 0 and 1, this process may use {sorted(os.sched_getaffinity(0))}"
pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(bool(_why_not), reason=_why_not)]

NOTEBOOK = """
import json, os, subprocess, sys, threading, time, traceback
from pathlib import Path
import ray, raytools

def with_offspring():
    subprocess.Popen(["setsid", "sleep", "300"])
    subprocess.run(["setsid", "--fork", "sleep", "300"])  # nobody's child
    time.sleep(300)

def second_time(path):
    with open(path, "a") as file:
        first = file.tell() == 0
        file.write(os.environ["RAYTOOLS_RUN_ID"] + "\\n")
    if first:
        with_offspring()
    return os.environ["RAYTOOLS_RUN_ID"]

def outcome(ref):
    try:
        return ray.get(ref, timeout=60).outcome
    except ray.exceptions.TaskCancelledError:
        return "cancelled"
    except Exception as error:
        return type(error).__name__

def pinned_until(path, cpus=1, wait="60s"):
    with raytools.pinned(cpus=cpus, wait=wait) as held:
        with open(f"{path}.{os.getpid()}.tmp", "w") as file:
            json.dump({"pid": os.getpid(), "cpus": held}, file)
        os.rename(file.name, f"{path}.{os.getpid()}.holds")
        while not os.path.exists(path):
            time.sleep(0.01)
    return held

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
ray.init(log_to_driver=False, logging_level="warning", **json.loads(sys.argv[1]))
for line in sys.stdin:
    cell = json.loads(line)
    try:
        exec(cell["code"], globals())
        answer = {"value": eval(cell["value"], globals())}
    except Exception:
        answer = {"error": traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)
"""


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0, pause_s: float = 0.01) -> float:
    """Waits for a condition; returns how long that took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + timeout_s, "waited in vain"
        time.sleep(pause_s)
    return time.monotonic() - started


@dataclass(frozen=True)
class Cluster:
    """A Ray of this test's own on this machine: two slots of one CPU, its own locks and storage."""

    root: Path
    prefix: Path

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def variables(self) -> dict[str, str]:
        """What a driver has after `raytools env activate`, and the locks, which workers have from ray.env."""
        active = activation(self.prefix, self.root)
        active["PATH"] += f":{os.environ['PATH']}"
        return {**os.environ, **active, "RAYTOOLS_LOCK_DIR": str(self.locks)}

    def service(self, verb: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "raytools.node", "ray", verb, "--root", str(self.root)],
            cwd=CHECKOUT, capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def raytools_run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`raytools run` from a shell on this node."""
        return subprocess.run(
            [sys.executable, "-m", "raytools", "run", *arguments],
            cwd=self.root, env=self.variables, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def records(self, task: str) -> list[dict[str, Any]]:
        """The records of all attempts at a task, as they stand in the storage, by their file names."""
        found = sorted((self.root / "records").glob(f"{task}-*.json"))
        assert [path.name for path in found] == [f"{task}-{number + 1}.json" for number in range(len(found))]
        return [json.loads(path.read_text()) for path in found]

    def locked(self) -> list[str]:
        """CPUs and holders that somebody has."""
        return [path.name for path in (*self.locks.glob("cpu-*"), *self.locks.glob("held/*")) if _held(path)]

    def left_over(self) -> list[str]:
        """Groups and directories of any run that has a record here; all of them are over."""
        run_ids = {json.loads(path.read_text())["run_id"] for path in self.root.glob("records/*.json")}
        names = {f"rt-run-{run_id}" for run_id in run_ids}
        groups = (os.path.join(at, one) for at, below, _ in os.walk("/sys/fs/cgroup") for one in below)
        places = [*map(Path, groups), *Path("/tmp").glob("rt-run-*")]
        return [str(place) for place in places if place.name in names]

    def end_holders(self) -> None:
        """Ends what a failed test left, so that the next one finds free slots."""
        for path in filter(_held, self.locks.glob("held/*")):
            kill(json.loads(path.read_text())["pid"])


def _held(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def a_cluster() -> Iterator[Cluster]:
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="rt-test-")), built_prefix())
    write_node(
        cluster.root, cluster.prefix, free_base_port(40), slots=2, RAYTOOLS_LOCK_DIR=str(cluster.locks)
    )
    try:
        cluster.service("ensure")
        yield cluster
        swept = cluster.raytools_run(
            "--", "true"
        )  # what a killed supervisor has left is the next run's to remove
        assert swept.returncode == 0, swept.stderr
        assert cluster.left_over() == []
    finally:
        cluster.service("stop")
        if (cluster.root / "ray").is_symlink():
            shutil.rmtree((cluster.root / "ray").readlink().parent, ignore_errors=True)
        shutil.rmtree(cluster.root)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with a_cluster() as cluster:
        yield cluster


class Notebook:
    """A driver in the cluster's environment that executes what the test sends it."""

    def __init__(self, cluster: Cluster, **of_ray_init: Any) -> None:
        self.cluster = cluster
        self._errors = cluster.root / f"driver-{secrets.token_hex(3)}.err"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(cluster.prefix / "bin" / "python"), "-c", NOTEBOOK, json.dumps(of_ray_init)],
                cwd=cluster.root, env=cluster.variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True,
            )  # fmt: skip

    def __enter__(self) -> Notebook:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()

    def do(self, code: str) -> None:
        """Executes a cell."""
        self._cell(code, "None")

    def ask(self, expression: str) -> Any:
        """The value of an expression."""
        return self._cell("", expression)

    def _cell(self, code: str, value: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"code": code, "value": value}) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], 100)
        line = self.process.stdout.readline() if ready else ""
        assert line, f"the driver says nothing: {self._errors.read_text()[-3000:]}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]


@pytest.fixture(scope="module")
def shared_driver(cluster: Cluster) -> Iterator[Notebook]:
    with Notebook(cluster) as notebook:
        yield notebook


@pytest.fixture
def notebook(shared_driver: Notebook, cluster: Cluster) -> Iterator[Notebook]:
    """The driver that most tests share; after each, nothing of its runs may be left."""
    yield shared_driver
    try:
        wait_until(lambda: cluster.locked() == [], 5)
    except AssertionError:
        shared_driver.do("""
for left in [value for value in globals().values() if isinstance(value, ray.ObjectRef)]:
    ray.cancel(left, force=True)
""")
        cluster.end_holders()
        raise


@dataclass(frozen=True)
class Started:
    """A run of `with_offspring` that is going on, and everybody who has to do with it."""

    cluster: Cluster
    task: str
    run_id: str
    worker: int
    supervisor: int

    def processes(self) -> list[int]:
        """The living processes of the run's group, wherever they went: all inherit the run's variables."""
        mark = f"RAYTOOLS_RUN_ID={self.run_id}".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
        return found

    def ended_within_a_second(self, action: Callable[[], object], frees_locks: bool = True) -> None:
        """Does what is to end the run; nothing of it may live, and no lock be held, a second later."""
        assert self.processes()
        started = time.monotonic()
        action()
        wait_until(lambda: not self.processes())
        empty_s = time.monotonic() - started
        print(f"processes gone after {empty_s:.3f} s")
        assert empty_s < 1.0 * PATIENCE
        if frees_locks:
            wait_until(lambda: not self.cluster.locked())
            free_s = time.monotonic() - started
            print(f"locks free after {free_s:.3f} s")
            assert free_s < 2.0 * PATIENCE  # the record is written in between

    def final_record(self) -> dict[str, Any]:
        """The record of the first attempt once it says how that ended."""
        wait_until(lambda: self.cluster.records(self.task)[0]["outcome"] is not None)
        record = self.cluster.records(self.task)[0]
        print(f"record: {record['outcome']}: {record['message']}")
        return record


def start(notebook: Notebook, call: str = "with_offspring", **options: Any) -> Started:
    """Submits a function that calls `with_offspring` as `ref`, and waits until all of it runs."""
    cluster = notebook.cluster
    name = f"rt-{secrets.token_hex(4)}"
    function, _, arguments = call.partition(", ")
    limited = f"raytools.remote(**{options!r})({function}).options(name={name!r})"
    notebook.do(f"ref = {limited}.remote({arguments})")
    task = notebook.ask("ref.task_id().hex()")
    wait_until(lambda: cluster.records(task))
    run_id = cluster.records(task)[0]["run_id"]
    holder = json.loads((cluster.locks / "held" / f"{run_id}.json").read_text())
    (worker,) = (p.pid for p in psutil.process_iter(["cmdline"]) if f"ray::{name}" in _title(p))
    run = Started(cluster, task, run_id, worker, holder["pid"])
    wait_until(lambda: _names(run.processes()) == ["python", "sleep", "sleep"])
    return run


def _names(pids: list[int]) -> list[str]:
    return sorted((read_text(f"/proc/{pid}/comm") or "gone").strip() for pid in pids)


def _title(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])


@contextlib.contextmanager
def a_shells_run(cluster: Cluster, tmp_path: Path, *options: str) -> Iterator[None]:
    """`raytools run` of a command that goes on for the block."""
    ready = tmp_path / "ready"
    command = [
        sys.executable,
        "-m",
        "raytools",
        "run",
        *options,
        "--",
        "sh",
        "-c",
        f"touch {ready}; sleep 60",
    ]
    with subprocess.Popen(command, cwd=cluster.root, env=cluster.variables) as shell:
        try:
            wait_until(ready.exists)
            yield
        finally:
            shell.terminate()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------------------------------ what comes back


def test_a_value_comes_back_with_the_record_of_its_run(notebook: Notebook, cluster: Cluster) -> None:
    notebook.do("""
@raytools.remote(memory="600MB", time="50s")
def add(left, right):
    return left + right, sorted(os.sched_getaffinity(0)), os.getpid()

ref = add.remote(40, right=ray.put(2))
run = ray.get(ref)
""")
    value, cpus, _pid = notebook.ask("run.result()")
    assert value == 42  # an ObjectRef among the arguments arrives as what it stands for
    record = notebook.ask("run.record")
    assert cluster.records(notebook.ask("ref.task_id().hex()")) == [record]
    assert (notebook.ask("run.outcome"), record["outcome"], record["attempt"]) == ("ok", "ok", 1)
    assert record["limits"]["memory_bytes"] == 600_000_000
    assert record["limits"]["time_s"] == 50
    assert record["limits"]["cpu_set"] == cpus
    assert record["host"]["slot"] == cpus[0]
    assert record["enforced"]["missing"] == []


def test_what_a_function_raises_is_run_failed_with_its_cause(notebook: Notebook) -> None:
    notebook.do("""
@raytools.remote
def broken():
    raise KeyError("no such column")

run = ray.get(broken.remote())
try:
    run.result()
except raytools.RunFailed as error:
    failure = error
""")
    assert notebook.ask("[run.outcome, run.value, run.record['exit_code']]") == ["failed", None, 1]
    assert notebook.ask("repr(failure.cause)") == "KeyError('no such column')"
    assert notebook.ask("failure.__cause__ is failure.cause")
    assert notebook.ask("failure.record == run.record")
    assert "KeyError: 'no such column'" in notebook.ask("str(failure)")
    assert "in broken" in notebook.ask("str(failure)")


def test_two_runs_at_once_have_a_slot_each_and_a_third_waits(notebook: Notebook, tmp_path: Path) -> None:
    notebook.do(f"""
@raytools.remote
def times():
    started = time.time()
    Path({str(tmp_path)!r}, os.environ["RAYTOOLS_RUN_ID"]).touch()
    while len(os.listdir({str(tmp_path)!r})) < 2 and time.time() < started + 30:
        time.sleep(0.05)
    time.sleep(0.5)
    return sorted(os.sched_getaffinity(0)), started, time.time()

spans = [run.result() for run in ray.get([times.remote() for _ in range(3)])]
""")
    (first, _, first_end), (second, second_start, second_end), (_, third_start, _) = notebook.ask(
        "sorted(spans, key=lambda span: span[1])"
    )
    assert sorted(first + second) == [0, 1]
    assert second_start < first_end
    assert third_start > min(first_end, second_end)


def test_variables_directories_and_modules_of_the_runtime_env_reach_the_function(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'a module in the working directory'\n")
    (tmp_path / "table.csv").write_text("a,b\n")
    environment = {"working_dir": str(tmp_path), "env_vars": {"OF_THE_JOB": "job"}}
    with Notebook(cluster, runtime_env=environment) as driver:
        driver.do("""
def look():
    import beside
    return {"module": beside.NAME, "cwd": os.getcwd(), "files": os.listdir(), "path": sys.path,
            **{name: os.environ.get(name) for name in ("OF_THE_JOB", "OF_THE_TASK", "OF_THE_RUN")}}

limited = raytools.remote(env={"OF_THE_RUN": "run"})(look)
inside = limited.options(runtime_env={"env_vars": {"OF_THE_TASK": "task"}}).remote()
worker = ray.remote(look).options(runtime_env={"env_vars": {"OF_THE_TASK": "task"}}).remote()
inside, worker = ray.get(inside).result(), ray.get(worker)
""")
        inside, worker = driver.ask("[inside, worker]")
    assert inside["module"] == "a module in the working directory"
    assert "table.csv" in inside["files"]
    assert (inside["OF_THE_JOB"], inside["OF_THE_TASK"], inside["OF_THE_RUN"]) == ("job", "task", "run")
    assert inside["cwd"] == worker["cwd"]
    missing = [entry for entry in worker["path"] if entry and entry not in inside["path"]]
    assert missing == []


# ------------------------------------------------------------------------- what ends a run, and what is left


def test_ray_cancel_ends_the_whole_run(notebook: Notebook) -> None:
    run = start(notebook)
    run.ended_within_a_second(lambda: notebook.do("ray.cancel(ref)"))
    assert notebook.ask("outcome(ref)") == "cancelled"
    assert run.final_record()["outcome"] == "killed"
    assert len(run.cluster.records(run.task)) == 1


def test_ray_cancel_with_force_ends_the_whole_run(notebook: Notebook) -> None:
    run = start(notebook)
    run.ended_within_a_second(lambda: notebook.do("ray.cancel(ref, force=True)"))
    assert notebook.ask("outcome(ref)") in ("cancelled", "WorkerCrashedError")
    assert run.final_record()["outcome"] == "killed"
    assert len(run.cluster.records(run.task)) == 1


def test_a_killed_worker_ends_the_run_which_is_a_result_and_not_run_again(notebook: Notebook) -> None:
    run = start(notebook, retries=2)
    run.ended_within_a_second(lambda: kill(run.worker))
    assert notebook.ask("outcome(ref)") == "killed"
    assert notebook.ask("ray.get(ref).record") == run.final_record()
    assert run.final_record()["outcome"] == "killed"
    assert run.final_record()["message"] == "its requester vanished"
    assert len(run.cluster.records(run.task)) == 1


def test_a_killed_driver_ends_the_run(cluster: Cluster) -> None:
    with Notebook(cluster) as driver:
        run = start(driver)
        run.ended_within_a_second(driver.process.kill)
    assert run.final_record()["outcome"] == "killed"
    assert len(cluster.records(run.task)) == 1


def test_a_killed_supervisor_ends_the_run_which_is_lost_and_a_result_without_retries(
    notebook: Notebook,
) -> None:
    run = start(notebook, retries=0)
    run.ended_within_a_second(lambda: kill(run.supervisor))
    assert notebook.ask("outcome(ref)") == "lost"
    record = run.final_record()
    assert (record["outcome"], record["attempt"]) == ("lost", 1)
    assert "supervisor vanished" in record["message"]
    assert notebook.ask("ray.get(ref).record")["run_id"] == run.run_id


@pytest.mark.parametrize("killed", [["supervisor"], ["supervisor", "worker"]], ids=" and ".join)
def test_a_lost_run_is_run_again_and_each_attempt_has_its_record(
    notebook: Notebook, cluster: Cluster, tmp_path: Path, killed: list[str]
) -> None:
    attempts = tmp_path / "attempts"
    run = start(notebook, f"second_time, {str(attempts)!r}", retries=1)
    pids = [getattr(run, who) for who in killed]
    run.ended_within_a_second(lambda: [kill(pid) for pid in pids], frees_locks=False)
    second = notebook.ask("ray.get(ref).result()")
    assert attempts.read_text().split() == [run.run_id, second]
    records = cluster.records(run.task)
    assert [record["outcome"] for record in records] == ["lost", "ok"]
    assert [record["attempt"] for record in records] == [1, 2]
    assert [record["run_id"] for record in records] == [run.run_id, second]
    assert notebook.ask("ray.get(ref).record") == records[1]


def test_a_run_that_waits_for_a_slot_is_cancelled_at_once(
    notebook: Notebook, cluster: Cluster, tmp_path: Path
) -> None:
    with a_shells_run(cluster, tmp_path, "--slot", "all"):
        notebook.do("ref = raytools.remote(with_offspring).remote()")
        wait_until(lambda: any(_held(queue) for queue in cluster.locks.glob("queue-*")))
        started = time.monotonic()
        notebook.do("ray.cancel(ref)")
        assert notebook.ask("outcome(ref)") == "cancelled"
        assert time.monotonic() - started < 1.0 * PATIENCE
        task = notebook.ask("ref.task_id().hex()")
        wait_until(lambda: cluster.records(task))
    (record,) = cluster.records(task)
    assert (record["outcome"], record["used"]["wall_s"]) == ("killed", None)
    assert "while it waited for its slot" in record["message"]


def test_every_end_but_lost_is_a_result_and_is_not_run_again(
    notebook: Notebook, cluster: Cluster, tmp_path: Path
) -> None:
    notebook.do(f"""
def ending(how):
    with open({str(tmp_path)!r} + "/" + how, "a") as file:
        file.write("x")
    if how == "failed":
        os._exit(3)
    if how == "oom":
        return len(bytearray(500_000_000))
    time.sleep(60)

limits = {{"failed": {{}}, "oom": {{"memory": "400MB"}}, "timeout": {{"time": "3s"}}}}
refs = {{how: raytools.remote(retries=2, **limit)(ending).remote(how) for how, limit in limits.items()}}
""")
    endings = ("failed", "oom", "timeout")
    assert notebook.ask("{how: outcome(ref) for how, ref in refs.items()}") == {how: how for how in endings}
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written | {"timeout": "x"} == dict.fromkeys(endings, "x")
    assert written.get("timeout", "") in ("", "x")  # its time may have been over before it wrote
    for task in notebook.ask("[ref.task_id().hex() for ref in refs.values()]"):
        assert [record["attempt"] for record in cluster.records(task)] == [1]


# ----------------------------------------------------------------------------------------- raytools.pinned


def holders(path: Path, count: int) -> list[dict[str, Any]]:
    """What the blocks of `pinned_until(path)` hold, once there are that many."""
    wait_until(lambda: len(list(path.parent.glob(f"{path.name}.*.holds"))) == count)
    return [json.loads(found.read_text()) for found in path.parent.glob(f"{path.name}.*.holds")]


def submit_pinned(notebook: Notebook, path: Path, count: int) -> list[dict[str, Any]]:
    """Starts that many tasks that hold a CPU each until `path` exists, as `refs`."""
    notebook.do(
        f"refs = [ray.remote(num_cpus=0, max_retries=0)(pinned_until).remote({str(path)!r}) "
        f"for _ in range({count})]"
    )
    return holders(path, count)


def test_two_pinned_tasks_never_have_the_same_cpu_and_what_they_start_inherits_it(notebook: Notebook) -> None:
    notebook.do("""
@ray.remote(num_cpus=1)
def look():
    def of_child():
        code = "import os; print(list(os.sched_getaffinity(0)))"
        return json.loads(subprocess.check_output([sys.executable, "-c", code]))
    def of_threads(kind=""):
        found = []
        for one in Path("/proc/self/task").iterdir():
            try:  # Ray's come and go
                if (one / "comm").read_text().startswith(kind):
                    found.append(sorted(os.sched_getaffinity(int(one.name))))
            except (FileNotFoundError, ProcessLookupError):
                pass
        return found
    stay = threading.Event()
    before, made, pool = of_threads(), threading.Thread(target=stay.wait), threading.Thread(target=stay.wait)
    pool.start()  # as the threads of a library do that an earlier task has used
    with raytools.pinned(cpus=1) as cpus:
        started = time.time()
        made.start()
        inside, rays, child = of_threads("ray::"), of_threads("worker.io"), of_child()
        time.sleep(0.5)
        ended = time.time()
    after = of_threads()
    stay.set()
    made.join()
    pool.join()
    return {"cpus": cpus, "span": [started, ended], "child": child,
            **{name: sorted(set(map(tuple, sets)))
               for name, sets in (("before", before), ("inside", inside), ("rays", rays), ("after", after))}}

seen = ray.get([look.remote() for _ in range(6)])
""")
    seen = notebook.ask("seen")
    for task in seen:
        assert len(task["cpus"]) == 1
        assert task["inside"] == [task["cpus"]]
        assert task["rays"] == [[0, 1]], "Ray's own threads interrupt nobody's work"
        assert task["child"] == task["cpus"]
        assert task["before"] == task["after"] == [[0, 1]]  # also of the thread made inside
    overlaps = [
        (one["cpus"], other["cpus"])
        for index, one in enumerate(seen)
        for other in seen[:index]
        if one["span"][0] < other["span"][1] and other["span"][0] < one["span"][1]
    ]
    assert overlaps, "no two blocks were held at once"
    assert all(one != other for one, other in overlaps)


def test_a_pinned_block_that_gets_no_cpu_names_the_holders_and_a_patient_one_waits(
    notebook: Notebook, tmp_path: Path
) -> None:
    path = tmp_path / "go"
    first, second = submit_pinned(notebook, path, 2)
    assert sorted(first["cpus"] + second["cpus"]) == [0, 1]
    notebook.do(f"""
patient = ray.remote(num_cpus=0)(pinned_until).remote({str(path)!r})
try:
    ray.get(ray.remote(num_cpus=0)(pinned_until).remote({str(path)!r}, wait=0.2))
except ray.exceptions.RayTaskError as error:
    refusal = error
""")
    text = notebook.ask("str(refusal.cause)")
    assert "pinned block" in text
    for pid in (first["pid"], second["pid"]):
        assert f"(pid {pid}" in text
    logs = Path(notebook.ask("ray._private.worker._global_node.get_logs_dir_path()"))
    said = "raytools.pinned waits, at most 60 s: "
    wait_until(lambda: any(said in log.read_text() for log in logs.glob("worker-*.err")))
    assert notebook.ask("len(ray.wait([patient], timeout=0.5)[0])") == 0
    path.touch()
    assert sorted(notebook.ask("sum(ray.get(refs), [])")) == [0, 1]
    assert notebook.ask("ray.get(patient)")[0] in (0, 1)


def test_a_killed_worker_frees_the_cpu_it_had_pinned_at_once(
    notebook: Notebook, cluster: Cluster, tmp_path: Path
) -> None:
    first, second = submit_pinned(notebook, tmp_path / "go", 2)
    kill(first["pid"])
    free_s = wait_until(lambda: f"cpu-{first['cpus'][0]}" not in cluster.locked())
    assert free_s < 1.0 * PATIENCE
    assert f"cpu-{second['cpus'][0]}" in cluster.locked()
    mine = cluster.raytools_run("--slot", str(first["cpus"][0]), "--", "nproc")
    assert (mine.returncode, mine.stdout) == (0, "1\n")
    assert "swept" not in mine.stderr  # a dead block leaves nothing that a run would have to tell of
    (tmp_path / "go").touch()
    notebook.do("ray.wait(refs, num_returns=2)")


def test_a_run_from_a_shell_is_refused_the_cpu_of_a_pinned_block_and_the_other_way_round(
    notebook: Notebook, cluster: Cluster, tmp_path: Path
) -> None:
    first, _ = submit_pinned(notebook, tmp_path / "go", 2)
    refused = cluster.raytools_run("--slot", str(first["cpus"][0]), "--", "true")
    assert refused.returncode == 125
    assert f"CPU {first['cpus'][0]} is held by pinned block" in refused.stderr
    assert f"(pid {first['pid']}" in refused.stderr
    (tmp_path / "go").touch()
    notebook.do("ray.get(refs)")
    wait_until(lambda: not cluster.locked())

    with a_shells_run(cluster, tmp_path, "--slot", "0"):
        notebook.do("""
@ray.remote(num_cpus=1)
def both():
    with raytools.pinned(cpus=1) as one:
        pass
    try:
        with raytools.pinned(cpus=2, wait=0.1):
            return "overlap"
    except raytools.node.locks.BusyError as error:
        return [one, str(error)]
""")
        cpus, text = notebook.ask("ray.get(both.remote())")
    assert cpus == [1]
    assert "held by run" in text
    assert ": sh -c touch" in text


def test_pinned_inside_a_limited_run_divides_the_cpus_of_that_run(cluster: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("""
import multiprocessing, raytools

def hold(barrier, answers):
    with raytools.pinned(cpus=1) as cpus:
        answers.put(cpus)
        barrier.wait()

if __name__ == "__main__":
    barrier, answers = multiprocessing.Barrier(3), multiprocessing.Queue()
    for _ in range(2):
        multiprocessing.Process(target=hold, args=(barrier, answers)).start()
    print(sorted(answers.get() + answers.get()))
    try:
        with raytools.pinned(cpus=1, wait=0.1):
            print("overlap")
    except raytools.node.locks.BusyError as error:
        print("busy" if "pinned block" in str(error) else error)
    barrier.wait()
""")
    done = cluster.raytools_run("--slot", "all", "--", sys.executable, str(program))
    assert done.stdout.splitlines() == ["[0, 1]", "busy"], done.stderr
    one = cluster.raytools_run("--slot", "1", "--", sys.executable, "-c", """
import raytools
with raytools.pinned() as cpus:
    print(cpus)
try:
    raytools.pinned(cpus=2).__enter__()
except ValueError as error:
    print(error)
""")  # fmt: skip
    assert one.stdout.splitlines()[0] == "[1]", one.stderr
    assert "expected 1 to 1" in one.stdout


def test_a_process_that_a_pinned_block_forked_does_not_keep_the_cpu_when_the_block_is_over(
    notebook: Notebook,
) -> None:
    notebook.do("""
@ray.remote(num_cpus=1)
def forks():
    with raytools.pinned(cpus=1):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    with raytools.pinned(cpus=2, wait=0.2) as cpus:
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    return cpus
""")
    assert notebook.ask("ray.get(forks.remote())") == [0, 1]


def test_a_pinned_block_in_a_pinned_block_is_refused_at_once_and_the_outer_one_goes_on(
    notebook: Notebook,
) -> None:
    notebook.do("""
@ray.remote(num_cpus=1)
def nested():
    with raytools.pinned(cpus=1) as cpus:
        started = time.monotonic()
        try:
            with raytools.pinned(cpus=1):
                return "nested"
        except raytools.node.pinned.RaytoolsError as error:
            return [str(error), time.monotonic() - started, cpus, sorted(os.sched_getaffinity(0))]
""")
    text, waited_s, held, affinity = notebook.ask("ray.get(nested.remote())")
    assert f"this thread holds {held}" in text
    assert waited_s < 1.0 * PATIENCE
    assert affinity == held


# --------------------------------------------------------------------------------------------- the raylet


def test_a_killed_raylet_ends_the_run_which_is_lost(cluster: Cluster) -> None:
    """The last test: it ends the Ray of this module."""
    with Notebook(cluster) as driver:
        run = start(driver)
        raylet = cluster.service("status")["raylet_pid"]
        run.ended_within_a_second(lambda: kill(raylet))
        record = run.final_record()
        # Ray would run it again on another node; here nobody may, least of all the worker that is left over
        wait_until(lambda: not psutil.pid_exists(run.worker))
        driver.process.kill()
    assert cluster.records(run.task) == [record]
    assert (record["outcome"], record["attempt"]) == ("lost", 1)
    assert "raylet" in record["message"]
    assert record["used"]["processes_left"] == 0
