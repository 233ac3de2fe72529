"""`raytools results`: what is kept, listed, shown, compared and exported, as people see it."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytools import results
from raytools.cli import main
from raytools.errors import RaytoolsError
from raytools.node.record import Record
from raytools.results import StoredResult, keep

FIRST, SECOND, THIRD = "20260101T080000Z-aaaa", "20260101T090000Z-bbbb", "20260102T080000Z-cccc"
USED = "wall_s cpu_s memory_peak_bytes anon_peak_bytes oom_kills throttled_s processes_swept processes_left"


def run(node: str = "n1", wall_s: float | None = 10.0, slot: int = 0, **more: Any) -> dict[str, Any]:
    """A run as it stands in a document; `more` are metrics, and `outcome`, `tainted`, `model`."""
    record = Record("1", ["workload"], outcome=more.pop("outcome", "ok"))
    record.started_at, record.finished_at = "2026-01-01T08:00:01.000Z", "2026-01-01T08:01:31.500Z"
    record.host.name, record.host.slot, record.host.cpu_model = node, slot, more.pop("model", "AMD EPYC")
    record.used.wall_s = wall_s
    record.limits.cpus = 2
    if more.pop("tainted", False):
        record.fairness.verdict, record.fairness.reasons = "tainted", ["others were busy"]
    return {"record": record.to_json(), "metrics": more}


def document(name: str, *runs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "schema": "raytools.smoke/1",
        "workload": "sleeper",
        "verdict": "pass",
        "reasons": [],
        "runs": list(runs),
        "spread": {"metric": "wall_s", "cv": None},
        "id": name,
        "parameters": {"trees": 100, "models": ["GBM"]},
        "inputs": {},
        **more,
    }


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cluster.yaml").write_text("cluster: mine\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".raytools"


Said = Callable[..., str]


@pytest.fixture
def said(project: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs `raytools results …` and returns its standard output; asserts on the exit code."""

    def command(*arguments: str, exit_code: int = 0, stderr: str = "") -> str:
        assert main(["results", *arguments]) == exit_code
        printed = capsys.readouterr()
        if exit_code == 0 and not stderr:
            assert printed.err == ""
        assert stderr in printed.err
        assert printed.err.count("\n") <= 1
        return printed.out

    return command


def columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")]


# -------------------------------------------------------------------------------------------------- keeping


def test_a_result_is_kept_under_its_id_and_nothing_lies_beside_it(project: Path) -> None:
    found = keep(project, document(FIRST, run()))
    assert found.path == project / "results" / "sleeper" / FIRST / "smoke.json"
    assert json.loads(found.path.read_text()) == document(FIRST, run())
    assert os.listdir(found.path.parents[1]) == [FIRST]
    assert os.listdir(found.path.parent) == ["smoke.json"]


def test_where_the_heads_own_directory_is_this_one_its_records_stay(project: Path) -> None:
    heads = project / "results" / "sleeper" / FIRST
    heads.mkdir(parents=True)
    (heads / "run-0.json").write_text("{}")
    keep(project, document(FIRST, run()))
    assert sorted(os.listdir(heads)) == ["run-0.json", "smoke.json"]


def test_the_heads_own_document_is_enough_and_is_not_written_again(project: Path) -> None:
    made = document(FIRST, run())
    before = keep(project, made).path.stat()
    after = keep(project, made).path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("name", ["", None, "../../escape", "a/b", ".hidden"])
def test_an_id_that_is_no_plain_name_is_replaced(project: Path, name: Any) -> None:
    found = keep(project, document(name, run()))
    assert found.path.is_relative_to(project / "results" / "sleeper")
    assert found.id != name
    assert found.path.is_file()


def test_what_cannot_be_written_is_said_with_the_place(project: Path) -> None:
    project.mkdir()
    (project / "results").write_text("a file")
    with pytest.raises(RaytoolsError, match=rf"cannot be kept in .*{FIRST}.*, expected a directory"):
        keep(project, document(FIRST, run()))


def _keep_until_killed(state_dir: Path, big: dict[str, Any]) -> None:
    while True:
        keep(state_dir, big | {"id": results.new_id()})


def test_a_result_that_is_there_is_whole_whenever_the_writer_is_killed(project: Path) -> None:
    big = document(FIRST, *(run(f"n{number}", log="x" * 5000) for number in range(40)))
    for delay_s in (0.0, 0.1, 0.2):
        before = len(results.stored(project)[0])
        writer = multiprocessing.get_context("fork").Process(target=_keep_until_killed, args=(project, big))
        writer.start()
        deadline = time.monotonic() + 30
        while len(results.stored(project)[0]) == before:
            assert time.monotonic() < deadline
        writer.join(delay_s)
        writer.kill()
        writer.join()
    found, unreadable = results.stored(project)
    assert unreadable == []
    assert found
    assert all(one.document["runs"] == big["runs"] for one in found)


# -------------------------------------------------------------------------------------------------- listing


def test_the_newest_comes_first_with_when_and_how_it_ended(project: Path, said: Said) -> None:
    keep(project, document(FIRST, run("n1"), run("n1", slot=1), run("n2")))
    keep(project, document(THIRD, run(), verdict="fail", complete=False))
    rows = [columns(line) for line in said("list").splitlines() if line.startswith("│")]
    assert rows == [
        [THIRD, "sleeper", "2026-01-01 08:00:01", "fail, incomplete", "1", "1", "90.5 s"],
        [FIRST, "sleeper", "2026-01-01 08:00:01", "pass", "3", "2", "90.5 s"],
    ]


def test_a_script_gets_the_list_as_json(project: Path, said: Said) -> None:
    keep(project, document(FIRST, run()))
    assert json.loads(said("list", "--json")) == {
        "schema": "raytools.results/1",
        "results": [
            {
                "id": FIRST, "workload": "sleeper", "started_at": "2026-01-01T08:00:01.000Z",
                "verdict": "pass", "complete": True, "runs": 1, "nodes": 1, "seconds": 90.5,
            }
        ],
    }  # fmt: skip


def test_a_list_is_narrowed_by_workload_and_number_and_says_that_there_are_more(
    project: Path, said: Said
) -> None:
    for name in (FIRST, SECOND, THIRD):
        keep(project, document(name, run()))
    keep(project, document(FIRST, run(), workload="other"))
    shown = said("list", "--workload", "sleeper", "--limit", "1")
    assert THIRD in shown
    assert SECOND not in shown
    assert "2 older ones: raytools results list --limit 0" in shown
    assert len(json.loads(said("list", "--limit", "0", "--json"))["results"]) == 4
    assert len(json.loads(said("list", "--workload", "other", "--json"))["results"]) == 1


def test_no_results_yet_is_no_error_and_names_the_command_that_makes_one(said: Said) -> None:
    assert "No results yet. Make one: raytools smoke" in said("list")
    assert json.loads(said("list", "--json"))["results"] == []


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"runs": 5}', '{"runs": [{}], "verdict": "pass"}'])
def test_a_file_that_is_no_result_is_named_and_the_others_are_listed(
    project: Path, said: Said, content: str
) -> None:
    keep(project, document(FIRST, run()))
    broken = project / "results" / "sleeper" / SECOND
    broken.mkdir()
    (broken / "smoke.json").write_text(content)
    listed = said("list", stderr=f"{SECOND}/smoke.json is no document of raytools.smoke/1")
    assert FIRST in listed


def test_a_smoke_that_is_still_at_work_is_not_listed(project: Path, said: Said) -> None:
    (project / "results" / "sleeper" / FIRST).mkdir(parents=True)
    (project / "results" / "sleeper" / FIRST / "run-0.json").write_text("{}")
    (project / "results" / "sleeper" / f".{SECOND}.7.part").mkdir()
    (project / "results" / "sleeper" / f".{SECOND}.7.part" / "smoke.json").write_text("{}")
    assert "No results yet" in said("list")


# -------------------------------------------------------------------------------------------------- showing


def test_a_result_is_shown_with_its_parameters_its_table_and_its_verdict(project: Path, said: Said) -> None:
    keep(project, document(FIRST, run(slept_s=1.5, kind="deep", list=[1]), reasons=["n1: too sleepy"]))
    shown = said("show", FIRST)
    assert f"{FIRST}: sleeper with trees 100, models GBM" in shown
    header, row = (columns(line) for line in shown.splitlines() if line.startswith(("┃", "│")))
    assert header[:5] == ["node", "outcome", "kind", "slept_s", "wall"]
    assert row[:5] == ["n1", "ok", "deep", "1.5", "10.0 s"]
    assert "PASS\n  - n1: too sleepy\n" in shown


def test_a_known_workload_is_shown_with_its_own_tables(project: Path, said: Said) -> None:
    board = [{"model": "RF", "score_val": 0.5}]
    keep(project, document(FIRST, run(leaderboard=board, score=0.5, rows=5), workload="autogluon"))
    shown = said("show", "latest")
    assert "leaderboard on n1" in shown
    assert "rows" not in shown


@pytest.mark.parametrize("name", [THIRD, "20260102", "cccc", "latest"])
def test_an_id_a_part_of_it_and_latest_name_a_result(project: Path, said: Said, name: str) -> None:
    for one in (FIRST, SECOND, THIRD):
        keep(project, document(one, run()))
    assert json.loads(said("show", name, "--json"))["id"] == THIRD


def test_a_result_of_before_ids_were_kept_is_shown_by_the_name_of_its_directory(
    project: Path, said: Said
) -> None:
    directory = project / "results" / "sleeper" / FIRST
    directory.mkdir(parents=True)
    keys = ("schema", "workload", "verdict", "reasons", "runs", "spread")
    (directory / "smoke.json").write_text(json.dumps({key: document(FIRST, run())[key] for key in keys}))
    assert json.loads(said("show", FIRST, "--json"))["id"] == FIRST
    assert "PASS" in said("show", FIRST)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", f"there is no result 'nope', expected latest or one of {SECOND}, {FIRST}\n"),
        ("", "there is no result ''"),
        ("20260101", f"'20260101' fits 2 results: {SECOND}, {FIRST}. Type more of it\n"),
    ],
)
def test_a_wrong_id_is_answered_with_the_known_ones(
    project: Path, said: Said, name: str, message: str
) -> None:
    for one in (FIRST, SECOND):
        keep(project, document(one, run()))
    assert said("show", name, exit_code=2, stderr=f"raytools: {message}") == ""


def test_where_nothing_is_kept_the_command_that_makes_a_result_is_named(said: Said) -> None:
    assert said("show", "latest", exit_code=2, stderr="Make one: raytools smoke") == ""


# ------------------------------------------------------------------------------------------------ comparing


def compared(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    pair = (StoredResult(one["id"], one["workload"], Path("smoke.json"), one) for one in (a, b))
    return json.loads(json.dumps(results.compare(*pair), allow_nan=False))


def test_each_figure_of_each_node_stands_with_both_values_and_their_ratio(project: Path, said: Said) -> None:
    keep(project, document(FIRST, run("n1", fit_s=4.0, best="RF", rows=5), run("n2", rows=5)))
    keep(project, document(SECOND, run("n1", 15.0, fit_s=4.0, best="GBM", rows=5), run("n2", rows=5)))
    shown = said("compare", FIRST, SECOND)
    assert f"A: {FIRST}, sleeper, pass\nB: {SECOND}, sleeper, pass\n" in shown
    rows = [columns(line) for line in shown.splitlines() if line.startswith("│")]
    assert rows == [
        ["n1", "used.wall_s", "10", "15", "1.5"],
        ["n1", "metrics.best", "RF", "GBM", "differs"],
    ]
    assert "Equal on every node: " in shown
    assert shown.rstrip().endswith("metrics.fit_s, metrics.rows")


def test_a_script_gets_every_figure(project: Path, said: Said) -> None:
    keep(project, document(FIRST, run("n1", fit_s=4.0)))
    keep(project, document(SECOND, run("n1", 15.0, fit_s=4.0)))
    found = json.loads(said("compare", FIRST, "latest", "--json"))
    assert (found["schema"], found["a"]["id"], found["b"]["id"]) == ("raytools.comparison/1", FIRST, SECOND)
    metrics = found["nodes"]["n1"]["metrics"]
    assert metrics["used.wall_s"] == {"a": 10.0, "b": 15.0, "ratio": 1.5}
    assert metrics["metrics.fit_s"] == {"a": 4.0, "b": 4.0, "ratio": 1.0}


def test_what_is_only_in_one_is_said(project: Path, said: Said) -> None:
    keep(project, document(FIRST, run("n1", old=1), run("n2")))
    keep(project, document(SECOND, run("n1", new=2), run("n3")))
    shown = said("compare", FIRST, SECOND)
    assert "n2: only in A" in shown
    assert "n3: only in B" in shown
    rows = [columns(line) for line in shown.splitlines() if line.startswith("│")]
    assert rows == [
        ["n1", "metrics.old", "1", "-", "only in A"],
        ["n1", "metrics.new", "-", "2", "only in B"],
    ]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"parameters": {"trees": 300, "models": ["GBM"]}}, "parameter trees: 100, now 300"),
        ({"parameters": {"trees": 100, "models": ["GBM", "RF"]}}, "parameter models: GBM, now GBM,RF"),
        ({"workload": "other"}, "workload sleeper, now other"),
        ({"inputs": {"table": "ab"}}, "other data in table"),
        ({"parameters": None}, "its parameters were not kept"),
    ],
)
def test_another_question_is_said(project: Path, said: Said, more: dict[str, Any], sentence: str) -> None:
    keep(project, document(FIRST, run()))
    keep(project, document(SECOND, run(), **more))
    assert f"Not the same question: {sentence}\n" in said("compare", FIRST, SECOND)


def test_what_speaks_against_the_figures_is_said() -> None:
    before = document(FIRST, run("n1", tainted=True), run("n2", 9.0), run("n2", 99.0, 1, outcome="timeout"))
    found = compared(before, document(SECOND, run("n1", model="Intel"), run("n2"), complete=False))
    assert found["notes"] == [
        "n1: tainted in A: others were busy",
        "n2 slot 1: outcome timeout in A, its figures are left out",
        "B is incomplete: some of its runs had not finished",
    ]
    assert found["nodes"]["n1"]["differences"] == ["CPU model AMD EPYC, now Intel"]
    assert found["nodes"]["n2"]["differences"] == ["slots 2, now 1"]
    assert found["nodes"]["n2"]["metrics"]["used.wall_s"]["a"] == 9.0


numbers = st.one_of(st.integers(-(10**12), 10**12), st.floats(allow_nan=False, allow_infinity=False))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5))
metrics = st.dictionaries(st.text("abcxyz_,\"\n'", min_size=1, max_size=6), scalars, max_size=4)
runs = st.builds(
    lambda node, slot, wall_s, metrics: {**run(node, wall_s, slot), "metrics": metrics},
    st.sampled_from(["n1", "n2"]), st.integers(0, 2), st.one_of(st.none(), st.floats(0.1, 1e6)), metrics,
)  # fmt: skip
documents = st.lists(runs, min_size=1, max_size=5).map(lambda some: document(FIRST, *some))


@given(documents)
def test_a_result_is_equal_to_itself(made: dict[str, Any]) -> None:
    found = compared(made, made)
    assert (found["differences"], found["only_in_a"], found["only_in_b"]) == ([], [], [])
    for node in found["nodes"].values():
        for values in node["metrics"].values():
            assert values["a"] == values["b"]
            assert values["ratio"] in (1.0, None)


@given(documents, documents)
def test_a_comparison_the_other_way_round_has_the_reciprocal_ratios(
    a: dict[str, Any], b: dict[str, Any]
) -> None:
    there, back = compared(a, b), compared(b, a)
    assert there["only_in_a"] == back["only_in_b"]
    for name, node in there["nodes"].items():
        for metric, values in node["metrics"].items():
            other = back["nodes"][name]["metrics"][metric]
            assert (values["a"], values["b"]) == (other["b"], other["a"])
            if values["ratio"] and other["ratio"]:
                assert values["ratio"] * other["ratio"] == pytest.approx(1, rel=1e-4)


# ------------------------------------------------------------------------------------------------ exporting


def test_an_export_has_one_line_per_run_and_stable_columns(project: Path, said: Said) -> None:
    keep(project, document(FIRST, run("n1", slot=1, tainted=True, b=1, a="x", many=[1], nested={"c": 1})))
    keep(project, document(SECOND, run("n1", None, outcome="lost"), run("n2", ok=True)))
    written = said("export", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(written)))
    assert written.splitlines()[0].split(",") == [
        "id", "workload", "node", "slot", "outcome", "tainted",
        *(f"used.{name}" for name in USED.split()),
        "metrics.a", "metrics.b", "metrics.ok",
    ]  # fmt: skip
    assert [(row["id"], row["node"], row["slot"], row["outcome"], row["tainted"]) for row in rows] == [
        (SECOND, "n1", "0", "lost", "false"),
        (SECOND, "n2", "0", "ok", "false"),
        (FIRST, "n1", "1", "ok", "true"),
    ]
    assert [row["used.wall_s"] for row in rows] == ["", "10.0", "10.0"]
    assert [row["metrics.ok"] for row in rows] == ["", "true", ""]


def test_an_export_of_nothing_is_the_header(said: Said) -> None:
    assert said("export", "--csv", "-").count("\n") == 1


def test_an_export_replaces_a_file_whole_and_says_what_is_in_it(project: Path, said: Said) -> None:
    keep(project, document(FIRST, run("n1"), run("n2")))
    Path("runs.csv").write_text("old\n" * 1000)
    assert said("export", "--csv", "runs.csv", stderr="runs.csv: 2 runs of 1 results") == ""
    assert Path("runs.csv").read_text() == said("export", "--csv", "-")
    assert sorted(os.listdir()) == [".raytools", "cluster.yaml", "runs.csv"]


def test_a_file_that_cannot_be_written_is_one_sentence(said: Said) -> None:
    said(
        "export",
        "--csv",
        "nowhere/runs.csv",
        exit_code=2,
        stderr="nowhere/runs.csv cannot be written (No such",
    )


@given(documents)
def test_an_export_can_be_read_back_whatever_a_workload_measured(made: dict[str, Any]) -> None:
    result = StoredResult(FIRST, "sleeper", Path("smoke.json"), made)
    rows = list(csv.DictReader(io.StringIO(results.to_csv([result]), newline="")))
    assert len(rows) == len(made["runs"])
    for row, one in zip(rows, made["runs"], strict=True):
        for name, value in one["metrics"].items():
            if isinstance(value, float):
                assert float(row[f"metrics.{name}"]) == value
            elif isinstance(value, str):
                assert row[f"metrics.{name}"] == " ".join(value.splitlines())


# ------------------------------------------------------------------------------------------------- start-up


def test_help_lists_the_command_and_its_own_help_explains_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "\n  results " in capsys.readouterr().out
    assert main(["results", "--help"]) == 0
    assert {"list", "show", "compare", "export"} <= set(capsys.readouterr().out.split())


def test_results_are_listed_without_reading_the_configuration_and_without_heavy_imports(
    project: Path,
) -> None:
    keep(project, document(FIRST, run()))
    (project.parent / "cluster.yaml").write_text("nonsense: true\n")
    program = "import sys; from raytools.cli import main; main(); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program, "results", "list", "--json"],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert json.loads(done.stdout)["results"][0]["id"] == FIRST
    heavy = {"rich", "pydantic", "yaml", "ray", "ansible", "fabric", "raytools.transport", "raytools.config"}
    assert not heavy & set(done.stderr.split())
