"""`raytools smoke` as a program: what is kept here, what is said, baselines. Only Ray on the head is played.

The head is this machine: transport and the driver of workloads are the real ones, in processes of their own.
"""

from __future__ import annotations

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
from raytools.node.record import Record

PACKAGE = Path(raytools.__file__).parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "RAY"))}

# a toolkit whose driver finds what the play says where it would ask Ray
HEAD = """
import contextlib, json, os, signal, sys, time
from pathlib import Path
from raytools.node import workload_runtime as runtime, workload_slots as slots
from raytools.node.workload_link import cancel_on_signal
from raytools.workloads.base import WorkloadRun

play = json.loads(Path(__file__).parents[3].joinpath("play.json").read_text())
nodes = list(dict.fromkeys(run["record"]["host"]["name"] for run in play["runs"]))
cancelled = set()

class Ray:
    def wait(self, left, num_returns=1, timeout=0):
        ready = [one for one in left if one < play["finish"] and one not in play["silent"]][:1]
        if play["dies"] and not ready:
            os._exit(9)
        time.sleep(0 if ready else timeout)
        return ready, [one for one in left if one not in ready]
    def cancel(self, reference, force):
        if force:
            cancelled.add(reference)
        else:
            play["finish"] = 99  # a cancelled run is gone
    def put(self, value):
        return value
    def nodes(self):
        return [{"NodeID": name, "Alive": name not in play["dead"]} for name in nodes]

@contextlib.contextmanager
def connected(node):
    signal.signal(signal.SIGTERM, cancel_on_signal)
    yield Ray()

slots.connected, slots.become_driver = connected, lambda node: None
slots._LOOK_AT_NODES_S = 0.1
slots.SlotSmoke._submit = lambda self, *_: len(self._started)
slots.SlotSmoke._outcome = lambda self, number: WorkloadRun(**play["runs"][number])
slots.SlotSmoke._noted = lambda self, number: None
looks = []
def view(node):
    looks.append(1)  # at the first one all are alive
    return {"nodes": [
        {"state": "DEAD" if name in play["dead"] and len(looks) > 1 else "ALIVE",
         "name": name, "hostname": name, "address": name, "node_id": name,
         "resources_total": {"run_slot": 1}} for name in nodes]}
slots.ray_view.view = view
sys.exit(runtime.main(sys.argv[2:]))
"""


def run(node: str, wall_s: float = 10.0, **more: Any) -> dict[str, Any]:
    record = Record("1", ["workload"], outcome=more.pop("outcome", "ok"))
    record.started_at, record.finished_at = "2026-01-01T08:00:01.000Z", "2026-01-01T08:00:11.000Z"
    record.host.name, record.host.slot, record.host.cpu_model = node, 0, more.pop("model", "AMD EPYC")
    record.limits.cpus, record.used.wall_s, record.used.cpu_s = 2, wall_s, 10.0
    if more.pop("tainted", False):
        record.fairness.verdict, record.fairness.reasons = "tainted", ["others were busy"]
    metrics = {
        "dataset": "breast_cancer", "skipped": [], "score": 0.9, "score_metric": "accuracy", "fit_s": 5.0,
        "nodes_seen": 1, "cpus_seen": 2, "cpus_seen_by": {"ray": 2},
    }  # fmt: skip
    return {"record": record.to_json(), "metrics": metrics}


class Cluster:
    """A project of three nodes, and the play of its head."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        node = self.root / "toolkit" / "raytools" / "node"
        node.mkdir(parents=True)
        (node.parent / "__init__.py").write_text(f"__version__ = '0'\n__path__.append({str(PACKAGE)!r})\n")
        (node / "__init__.py").write_text(f"__path__.append({str(PACKAGE / 'node')!r})\n")
        (node / "__main__.py").write_text(HEAD)
        plan = {
            "schema": "raytools.node/1", "python": sys.executable, "toolkit": str(node.parents[1]),
            "storage": {"type": "local", "path": str(self.root)},
        }  # fmt: skip
        (self.root / "node.json").write_text(json.dumps(plan))
        (directory / "cluster.yaml").write_text("cluster: mine\n")
        head = {"n1": {"ansible_connection": "local", "raytools_root": str(self.root)}}
        workers = {name: {"ansible_host": f"192.0.2.{number}"} for number, name in ((2, "n2"), (3, "n3"))}
        (directory / "inventory").mkdir()
        (directory / "inventory" / "hosts.yml").write_text(
            yaml.safe_dump({"head": {"hosts": head}, "workers": {"hosts": workers}})
        )

    def play(
        self,
        *runs: dict[str, Any],
        finish: int = 99,
        dies: bool = False,
        dead: tuple[str, ...] = (),
        silent: tuple[int, ...] = (),
    ) -> None:
        """What the head's Ray does.

        Args:
            runs: how they end, by their numbers.
            finish: those from this number on do not end.
            dies: the driver ends when it would wait for one of these.
            dead: nodes that are alive at the start only.
            silent: numbers of runs of which nothing is ever heard.
        """
        played = {"runs": runs, "finish": finish, "dies": dies, "dead": dead, "silent": silent}
        (self.root / "play.json").write_text(json.dumps(played))

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "raytools", *arguments], cwd=self.directory, env=ENVIRONMENT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
        )  # fmt: skip

    def raytools(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def smoke(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.raytools("smoke", "--workload", "autogluon", "--dataset", "breast_cancer", *arguments)

    def kept(self) -> list[Path]:
        return sorted((self.directory / ".raytools" / "results").glob("*/*/*"))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def equal_runs() -> list[dict[str, Any]]:
    return [run("n1"), run("n2"), run("n3")]


def test_what_a_smoke_found_is_kept_under_the_heads_id_with_what_was_asked(cluster: Cluster) -> None:
    cluster.play(*equal_runs())
    done = cluster.smoke("--set", "trees=7", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    [heads] = (cluster.root / "results" / "autogluon").iterdir()
    [kept] = cluster.kept()
    assert kept == cluster.directory / ".raytools" / "results" / "autogluon" / heads.name / "smoke.json"
    assert document == json.loads(kept.read_text()) == json.loads((heads / "smoke.json").read_text())
    assert (document["id"], document["directory"]) == (heads.name, str(heads))
    assert document["parameters"]["trees"] == 7
    assert (document["verdict"], document["equality"]["outliers"]) == ("pass", [])


def test_the_end_of_a_smoke_names_the_id_and_show_prints_the_same_again(cluster: Cluster) -> None:
    cluster.play(*equal_runs())
    done = cluster.smoke()
    *shown, last = done.stdout.splitlines()
    assert last == f"Kept: raytools results show {cluster.kept()[0].parent.name}"
    again = cluster.raytools(*last.removeprefix("Kept: raytools ").split())
    assert again.returncode == 0
    assert again.stdout.splitlines()[1:] == shown


def test_a_slow_node_fails_is_shown_beside_its_peers_and_is_kept_too(cluster: Cluster) -> None:
    cluster.play(run("n1"), run("n2"), run("n3", 15.0, model="Intel Xeon"))
    done = cluster.smoke()
    assert done.returncode == 1
    assert "+50.0 %" in done.stdout
    assert (
        "FAIL\n  - n3 is 50 % slower than the median of its peers (wall_s 15, theirs 10); allowed: 20 %; "
        "CPU model differs (Intel Xeon, theirs AMD EPYC)\n"
    ) in done.stdout
    assert json.loads(cluster.kept()[0].read_text())["verdict"] == "fail"
    assert cluster.smoke("--max-slower", "50").returncode == 0


def test_tainted_runs_are_said_and_not_compared(cluster: Cluster) -> None:
    cluster.play(run("n1"), run("n2"), run("n3", 99.0, tainted=True))
    done = cluster.smoke()
    assert done.returncode == 0
    assert "Not compared: n3 (tainted)\n" in done.stdout
    assert "  - n3: tainted: others were busy\n" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_ctrl_c_keeps_the_runs_that_had_finished(cluster: Cluster, arguments: tuple[str, ...]) -> None:
    cluster.play(*equal_runs(), finish=2)
    process = cluster.start(
        "smoke", "--workload", "autogluon", "--dataset", "breast_cancer", *arguments,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "n2: ok" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    [kept] = cluster.kept()
    assert f"2 of 3 runs had finished: raytools results show {kept.parent.name}\n" in err
    document = json.loads(kept.read_text())
    assert (document["verdict"], document["complete"], document["equality"]) == ("fail", False, None)
    assert document["reasons"] == ["n3: had not finished when it was cancelled"]
    assert [one["record"]["host"]["name"] for one in document["runs"]] == ["n1", "n2"]
    assert "fail, incomplete" in cluster.raytools("results", "list").stdout
    assert "had not finished" in cluster.raytools("results", "show", "latest").stdout


def test_ctrl_c_before_anything_has_finished_keeps_nothing(cluster: Cluster) -> None:
    cluster.play(*equal_runs(), finish=0)
    process = cluster.start(
        "smoke", "--workload", "autogluon", "--dataset", "breast_cancer",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "one run on each of n1, n2, n3" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert cluster.kept() == []


def test_a_result_that_cannot_be_kept_is_still_shown_with_its_exit_code(cluster: Cluster) -> None:
    cluster.play(*equal_runs())
    (cluster.directory / ".raytools").mkdir()
    (cluster.directory / ".raytools" / "results").write_text("a file")
    done = cluster.smoke("--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["verdict"] == "pass"
    assert "raytools: the result cannot be kept in " in done.stderr


def test_a_baseline_is_saved_and_a_later_smoke_that_is_slower_fails(cluster: Cluster) -> None:
    cluster.play(run("n1"), run("n2"), run("n3", tainted=True))
    saved = cluster.smoke("--save-baseline", "good.json")
    assert (saved.returncode, "Baseline: good.json (n1, n2, without n3)\n" in saved.stderr) == (0, True)
    baseline = json.loads((cluster.directory / "good.json").read_text())
    assert baseline["schema"] == "raytools.baseline/1"
    assert baseline["from"] == cluster.kept()[0].parent.name
    assert baseline["nodes"]["n1"]["metrics"] == {"wall_s": 10.0, "fit_s": 5.0}

    cluster.play(run("n1", 15.0), run("n2", 15.0), run("n3", 15.0))
    done = cluster.smoke("--baseline", "good.json", "--save-baseline", "good.json")
    assert done.returncode == 1
    assert "  - n1 is 50 % slower than in the baseline (wall_s 15, then 10); allowed: 20 %\n" in done.stdout
    assert "  - n3 is not compared with the baseline: it is not in there\n" in done.stdout
    assert "good.json was not written: the verdict is fail, expected a smoke that passes\n" in done.stderr
    assert json.loads((cluster.directory / "good.json").read_text()) == baseline

    done = cluster.smoke("--baseline", "good.json", "--set", "trees=5")
    assert done.returncode == 0
    assert "  - not compared with the baseline: parameter trees: 100, now 5\n" in done.stdout


def test_where_no_run_is_a_measure_there_is_no_baseline_and_that_is_an_error(cluster: Cluster) -> None:
    cluster.play(run("n1", tainted=True), run("n2", tainted=True), run("n3", tainted=True))
    done = cluster.smoke("--save-baseline", "good.json")
    assert done.returncode == 2
    assert "good.json was not written: no run is a measure, expected runs that are not tainted" in done.stderr
    assert not (cluster.directory / "good.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-slower", "much"), "--max-slower much, expected percent above 0, such as 20%"),
        (("--max-slower", "0"), "--max-slower 0, expected percent above 0"),
        (("--max-slower", "nan"), "--max-slower nan, expected percent above 0"),
        (("--baseline", "gone.json"), "baseline gone.json cannot be read (No such file"),
        (("--baseline", "cluster.yaml"), "baseline cluster.yaml is no JSON"),
        (
            ("--baseline", "other.json"),
            "baseline other.json is of workload stress, expected one of autogluon",
        ),
        (("--baseline", "broken.json"), "broken.json is no baseline, expected what --save-baseline writes"),
        (("--save-baseline", "nowhere/b.json"), "baseline nowhere/b.json cannot be written"),
        (("--save-baseline", "inventory"), "baseline inventory cannot be written"),
    ],
)
def test_a_mistake_about_baselines_is_told_before_anything_runs(
    cluster: Cluster, arguments: tuple[str, ...], message: str
) -> None:
    baseline = {"schema": "raytools.baseline/1", "workload": "stress", "parameters": {}, "nodes": {}}
    (cluster.directory / "other.json").write_text(json.dumps(baseline))
    (cluster.directory / "broken.json").write_text(json.dumps(baseline | {"nodes": {"n1": {"metrics": {}}}}))
    done = cluster.smoke(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
    assert not (cluster.root / "results").exists()


def test_a_head_that_dies_half_way_leaves_what_had_finished_and_an_error(cluster: Cluster) -> None:
    cluster.play(*equal_runs(), finish=1, dies=True)
    done = cluster.smoke()
    assert done.returncode == 2
    assert "the workload's driver ended with exit code 9 and no result" in done.stderr
    [kept] = cluster.kept()
    assert f"1 of 3 runs had finished: raytools results show {kept.parent.name}\n" in done.stderr
    reasons = json.loads(kept.read_text())["reasons"]
    assert [reason.split(" when it ended (")[0] for reason in reasons] == [
        "n2: had not finished", "n3: had not finished",
    ]  # fmt: skip


# --- runs that are lost --------------------------------------------------------------------------


def outcomes(done: subprocess.CompletedProcess[str]) -> list[tuple[str, int, str]]:
    """Node, attempt and outcome of each run of a document."""
    records = [one["record"] for one in json.loads(done.stdout)["runs"]]
    return sorted((one["host"]["name"], one["attempt"], one["outcome"]) for one in records)


def test_a_run_whose_node_is_dead_is_lost_and_done_once_more_elsewhere(cluster: Cluster) -> None:
    cluster.play(*equal_runs(), run("n1"), dead=("n3",), silent=(2,))
    done = cluster.smoke("--json")
    assert done.returncode == 1
    assert outcomes(done) == [("n1", 1, "ok"), ("n1", 2, "ok"), ("n2", 1, "ok"), ("n3", 1, "lost")]
    assert "n3: outcome lost (Ray holds its node, n3, for dead)" in " ".join(
        json.loads(done.stdout)["reasons"]
    )
    assert "n3 was lost; it is done once more: n3 again on n1" in done.stderr
    assert "n3 again on n1: ok" in done.stderr


def test_a_run_that_its_supervisor_lost_is_done_once_more_and_not_a_third_time(cluster: Cluster) -> None:
    cluster.play(run("n1", outcome="lost"), run("n2"), run("n3"), run("n2", outcome="lost"))
    done = cluster.smoke("--json")
    assert done.returncode == 1
    assert outcomes(done) == [("n1", 1, "lost"), ("n2", 1, "ok"), ("n2", 2, "lost"), ("n3", 1, "ok")]


def test_a_run_that_failed_is_not_done_again(cluster: Cluster) -> None:
    cluster.play(run("n1", outcome="failed"), run("n2"), run("n3"))
    assert outcomes(cluster.smoke("--json")) == [("n1", 1, "failed"), ("n2", 1, "ok"), ("n3", 1, "ok")]
