"""Scope `cluster`: a workload of another package, driven by a real head of its own. Only Ray is played."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import raytools
from raytools.errors import RaytoolsError
from raytools.node.workload_cluster import cluster_nodes, entry_record
from raytools.workloads import base
from raytools.workloads.base import WorkloadRun

PACKAGE = Path(raytools.__file__).parent

WORKLOAD = '''
"""Three entries, each of which leaves a line in `log`; `hold` waits for a file, `fail` fails once."""
import dataclasses, time
from pathlib import Path
from raytools.errors import RaytoolsError
from raytools.workloads.base import Prepared, Reason, option


@dataclasses.dataclass(frozen=True)
class Settings:
    hold: str = option("", "entry that does not end before `go` is there")
    fail: str = option("", "entry that fails, the first time")
    lacks: bool = option(False, "a package")
    word: str = option("", "what travels")


class Three:
    name, summary, scope = "three", "three entries", "cluster"
    shown_metrics, shown_tables = ("size",), ()
    Parameters = Settings

    def check(self, parameters): ...
    def prepare(self, parameters, cache_dir):
        return Prepared(parameters, {"word": parameters.word.encode()})
    def entries(self, parameters):
        return ("one", "two", "three")
    def check_on_head(self, parameters):
        if parameters.lacks:
            raise RaytoolsError("the package spam is missing", fix="Add it")
    def run_cluster(self, parameters, context):
        for number, entry in enumerate(self.entries(parameters)):
            if entry in context.done:
                continue
            log = context.results_dir / "log"
            again = log.exists() and entry in log.read_text()
            context.report(entry, f"begun on {len(context.nodes)} nodes")
            while entry == parameters.hold and not (context.results_dir / "go").exists():
                time.sleep(0.02)
            with log.open("a") as file:
                file.write(entry + "\\n")
            if entry == parameters.fail and not again:
                context.finished(entry, {"size": None}, 0.5, "failed", "it was too much")
            else:
                context.finished(entry, {"size": number, "word": context.inputs["word"].decode()}, 1.5)
    def judge(self, parameters, runs):
        return [Reason("one is small", fails=False) for run in runs if run.metrics["size"] == 0]
'''

# a toolkit whose driver finds a Ray of two nodes where it would ask for one
HEAD = """
import contextlib, signal, sys, types
from pathlib import Path
sys.path.insert(0, SITE)
from raytools.node import workload_cluster as cluster, workload_runtime as runtime
from raytools.node.workload_link import cancel_on_signal

@contextlib.contextmanager
def connected(node):
    signal.signal(signal.SIGTERM, cancel_on_signal)
    idle = lambda: {"CPU": 8.0}
    yield types.SimpleNamespace(cluster_resources=idle, available_resources=idle)

cluster.become_driver = lambda node: None
cluster.connected = connected
cluster.ray_view.view = lambda node: {"nodes": [
    {"state": "ALIVE", "name": name, "hostname": name, "address": name, "node_id": name,
     "resources_total": {"run_slot": 2, "CPU": 4, "memory": 8e9}} for name in ("n1", "n2")]}
sys.exit(runtime.main(sys.argv[2:]))
"""


class Cluster:
    """A project of two nodes with the workload `three`."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.root, site = directory, directory / "root", directory / "site"
        (site / "three-1.dist-info").mkdir(parents=True)
        (site / "three.py").write_text(WORKLOAD)
        (site / "three-1.dist-info" / "METADATA").write_text("Name: three\nVersion: 1\n")
        (site / "three-1.dist-info" / "entry_points.txt").write_text(
            "[raytools.workloads]\nthree = three:Three\n"
        )
        node = self.root / "toolkit" / "raytools" / "node"
        node.mkdir(parents=True)
        (node.parent / "__init__.py").write_text(f"__version__ = '0'\n__path__.append({str(PACKAGE)!r})\n")
        (node / "__init__.py").write_text(f"__path__.append({str(PACKAGE / 'node')!r})\n")
        (node / "__main__.py").write_text(HEAD.replace("SITE", repr(str(site))))
        plan = {
            "schema": "raytools.node/1", "name": "n1", "address": "n1", "python": sys.executable,
            "toolkit": str(node.parents[1]), "environment": {"id": "automl-1a2b3c4d5e6f"},
            "storage": {"type": "existing", "path": str(self.root)},
        }  # fmt: skip
        (self.root / "node.json").write_text(json.dumps(plan))
        (directory / "cluster.yaml").write_text("cluster: mine\n")
        head = {"n1": {"ansible_connection": "local", "raytools_root": str(self.root)}}
        (directory / "inventory").mkdir()
        (directory / "inventory" / "hosts.yml").write_text(
            yaml.safe_dump(
                {"head": {"hosts": head}, "workers": {"hosts": {"n2": {"ansible_host": "192.0.2.2"}}}}
            )
        )
        usual = {
            name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "RAY"))
        }
        self.environment = {**usual, "PYTHONPATH": str(site)}

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "raytools", *arguments], cwd=self.directory, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
        )  # fmt: skip

    def smoke(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start("smoke", *arguments)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def interrupt_at(self, entry: str, number: signal.Signals) -> subprocess.CompletedProcess[str]:
        """Ends the controller while that entry is at work; the others before it have ended."""
        process = self.start(
            "smoke", "--workload", "three", "--set", f"hold={entry}", "--set", "word=spam",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if f"{entry}: running" in line:
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    @property
    def results(self) -> Path:
        [found] = (self.root / "results" / "three").iterdir()
        return found

    def log(self) -> list[str]:
        return (self.results / "log").read_text().split()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_each_entry_is_a_run_with_a_record_that_says_what_was_held(cluster: Cluster) -> None:
    done = cluster.smoke("--workload", "three", "--set", "word=spam", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["workload"], document["verdict"]) == (
        "raytools.smoke/1", "three", "pass",
    )  # fmt: skip
    assert [run["metrics"] for run in document["runs"]] == [
        {"entry": entry, "size": number, "word": "spam"}
        for number, entry in enumerate(("one", "two", "three"))
    ]
    record = document["runs"][1]["record"]
    assert (record["schema"], record["command"]) == ("raytools.run/1", ["workload", "three", "two"])
    assert (record["outcome"], record["used"]["wall_s"], record["host"]["name"]) == ("ok", 1.5, "n1")
    assert (record["enforced"]["cpu"], record["enforced"]["memory"]) == ("affinity", None)
    assert len({run["record"]["run_id"] for run in document["runs"]}) == 3
    # what holds for all entries is said once, and what is nobody's fault does not fail
    assert document["reasons"] == [
        "what an entry starts holds its CPUs (raytools.pinned); its memory and time are not limited",
        "one is small",
    ]  # fmt: skip
    assert (document["spread"]["cv"], document["equality"], document["complete"]) == (None, None, True)
    assert json.loads((cluster.results / "run-1.json").read_text()) == document["runs"][1]
    assert json.loads((cluster.results / "smoke.json").read_text()) == document
    kept = cluster.directory / ".raytools" / "results" / "three" / document["id"] / "smoke.json"
    assert json.loads(kept.read_text()) == document


def test_progress_and_the_table_are_by_entry(cluster: Cluster) -> None:
    done = cluster.smoke("--workload", "three")
    assert "three: 3 entries: one, two, three" in done.stderr
    assert "two: running: begun on 2 nodes" in done.stderr
    assert "three: ok" in done.stderr
    assert "by entry" in done.stdout
    assert "by node" not in done.stdout
    assert "PASS" in done.stdout.splitlines()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_smoke_is_resumed_and_nothing_is_done_twice(
    cluster: Cluster, number: signal.Signals
) -> None:
    ended = cluster.interrupt_at("three", number)
    assert ended.returncode == (130 if number == signal.SIGINT else -number)
    name = cluster.results.name
    if number == signal.SIGINT:
        assert f"2 of 3 entries had finished: raytools results show {name}" in ended.stderr
        assert f"raytools smoke --resume {name}" in ended.stderr
    with (cluster.results / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the driver has ended
    (cluster.results / "go").touch()
    done = cluster.smoke("--resume", name, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["id"], document["complete"], document["verdict"]) == (name, True, "pass")
    assert [run["metrics"]["word"] for run in document["runs"]] == ["spam"] * 3
    assert cluster.log() == ["one", "two", "three"]
    [kept] = (cluster.directory / ".raytools" / "results" / "three").iterdir()
    assert json.loads((kept / "smoke.json").read_text()) == document


def test_an_entry_that_failed_fails_the_smoke_and_is_tried_again_on_resume(cluster: Cluster) -> None:
    done = cluster.smoke("--workload", "three", "--set", "fail=two")
    assert done.returncode == 1
    assert "two: outcome failed (it was too much)" in done.stdout
    done = cluster.smoke("--resume", "latest", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [run["record"]["attempt"] for run in document["runs"]] == [1, 2, 1]
    assert cluster.log() == ["one", "two", "three", "two"]


def test_a_smoke_that_has_ended_well_is_only_judged_again(cluster: Cluster) -> None:
    first = cluster.smoke("--workload", "three", "--json")
    again = cluster.smoke("--workload", "three", "--resume", str(cluster.results), "--json")
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert cluster.log() == ["one", "two", "three"]


def test_one_that_is_still_at_work_is_not_resumed(cluster: Cluster) -> None:
    process = cluster.start("smoke", "--workload", "three", "--set", "hold=two")
    assert process.stderr is not None
    for line in process.stderr:
        if "two: running" in line:
            break
    done = cluster.smoke("--resume", "latest")
    (cluster.results / "go").touch()
    process.communicate(timeout=30)
    assert done.returncode == 2
    assert "is still at work, expected one that was interrupted" in done.stderr
    assert process.returncode == 0


def test_what_the_environment_lacks_is_said_before_anything_is_there(cluster: Cluster) -> None:
    done = cluster.smoke("--workload", "three", "--set", "lacks=true")
    assert (done.returncode, done.stdout) == (2, "")
    assert "n1: the package spam is missing. Add it" in done.stderr
    assert not (cluster.root / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "1234"], "no smokes below"),
        (["--resume", "latest", "--set", "word=ham"], "--set was given with --resume"),
        (["--resume", "latest", "--time-limit", "3s"], "--time-limit was given with --resume"),
        (["--resume", "latest", "--enforce", "strict"], "--enforce was given with --resume"),
        (["--resume", "latest", "--max-slower", "20%"], "--max-slower was given with --resume"),
        (["--workload", "three", "--save-baseline", "b.json"], "three does not compare nodes"),
    ],
)
def test_a_mistake_is_told_and_nothing_runs(cluster: Cluster, arguments: list[str], message: str) -> None:
    done = cluster.smoke(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (cluster.root / "results").exists()


def test_a_result_is_compared_by_entry(cluster: Cluster) -> None:
    for _ in range(2):
        assert cluster.smoke("--workload", "three").returncode == 0
    names = sorted(path.name for path in (cluster.root / "results" / "three").iterdir())
    process = cluster.start("results", "compare", *names, "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert list(json.loads(out)["nodes"]) == ["one", "two", "three"]


# ------------------------------------------------------------------------------------------ the pure parts


def ray_node(name: str, **resources: float) -> dict[str, Any]:
    return {
        "node_id": f"id of {name}", "name": name, "hostname": name, "address": name,
        "resources_total": resources,
    }  # fmt: skip


def test_nodes_are_those_with_slots_and_have_what_each_slot_has() -> None:
    found = cluster_nodes(
        [ray_node("a", run_slot=2, CPU=4, memory=8e9), ray_node("b", CPU=4)], [{"name": "n1", "address": "a"}]
    )
    assert found == [base.ClusterNode("n1", "a", "id of a", slots=2, cpus=2, memory_bytes=4 * 10**9)]
    with pytest.raises(RaytoolsError, match="none of the 1 nodes of this Ray has a slot"):
        cluster_nodes([ray_node("b", CPU=4)], [])


def test_entries_are_named_by_themselves_and_said_to_be_pinned_once() -> None:
    runs = [
        WorkloadRun(entry_record("three", entry, 1.0, outcome, message).to_json(), {})
        for entry, outcome, message in (("one", "ok", None), ("two", "failed", "no room"))
    ]
    assert [base.run_name(run.record) for run in runs] == ["one", "two"]
    reasons = base.judge_runs(runs, enforce="strict")
    assert [(reason.text.split(" (")[0], reason.fails) for reason in reasons] == [
        ("two: outcome failed", True), ("what an entry starts holds its CPUs", False),
    ]  # fmt: skip
