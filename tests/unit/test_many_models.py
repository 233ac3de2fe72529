"""The workload `many-models` without Ray: batches, refusals, the count from files, figures and judgement."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytools.errors import RaytoolsError
from raytools.node.workload_cluster import entry_record
from raytools.workloads import cluster_checks
from raytools.workloads.base import ClusterContext, ClusterNode, WorkloadRun
from raytools.workloads.many_models import ManyModels, ManyModelsParameters, batch_of
from raytools.workloads.many_models_data import Batch, batch_at, batches, write_whole
from raytools.workloads.many_models_driver import run_methods, speeds
from raytools.workloads.many_models_fit import Fit, Model, Work, fingerprint_of
from raytools.workloads.many_models_methods import Gathered, room
from raytools.workloads.many_models_results import Tally, clear_unfinished, finished, models_path

# ----------------------------------------------------------------------------------------- what can be asked


def test_the_default_has_the_three_methods_without_a_limit() -> None:
    assert ManyModels().entries(ManyModelsParameters()) == ("tasks", "pool", "data")


def test_tune_is_refused_above_a_thousand_models_by_its_name() -> None:
    ManyModels().check(ManyModelsParameters(methods=("all",), models=1000))
    with pytest.raises(
        RaytoolsError, match=r"method tune was asked for 1001 models.*at most 1000.*tasks,pool,data"
    ):
        ManyModels().check(ManyModelsParameters(methods=("all",), models=1001))


def test_a_million_models_are_accepted_but_not_a_file_for_each() -> None:
    ManyModels().check(ManyModelsParameters(models=1_000_000))
    with pytest.raises(RaytoolsError, match="batch is 1, which makes 1000000 files"):
        ManyModels().check(ManyModelsParameters(models=1_000_000, batch=1))


def test_pandas_is_needed_for_data_and_tune_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_checks, "is_installed", lambda module: module != "pandas")
    ManyModels().check_on_head(ManyModelsParameters(methods=("tasks", "pool")))
    with pytest.raises(RaytoolsError, match="each of the methods data and tune needs the package pandas"):
        ManyModels().check_on_head(ManyModelsParameters())


def context_of(tmp_path: Path, *cpus: int, shared: bool) -> ClusterContext:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    nodes = [
        ClusterNode(f"n{index}", "", "", slots=1, cpus=each, memory_bytes=1)
        for index, each in enumerate(cpus)
    ]
    return ClusterContext(nodes, {}, tmp_path, shared, never, never, never)


def test_nodes_without_shared_storage_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RaytoolsError, match=r"2 nodes have no shared storage, and each of them reads tables"):
        run_methods(ManyModelsParameters(), context_of(tmp_path, 2, 2, shared=False))


def test_more_cpus_than_any_node_has_are_refused_although_all_together_have_them(tmp_path: Path) -> None:
    with pytest.raises(RaytoolsError, match=r"a model is to have 4 CPUs, expected at most 3"):
        run_methods(ManyModelsParameters(cpus=4), context_of(tmp_path, 3, 2, shared=True))


# --------------------------------------------------------------------------------------------------- batches


@given(models=st.integers(1, 3000), size=st.integers(1, 400))
def test_every_key_is_in_exactly_one_batch(models: int, size: int) -> None:
    found = batches(models, size)
    assert [key for batch in found for key in range(batch.first, batch.end)] == list(range(models))
    assert all(1 <= batch.models <= size for batch in found)
    assert all(batch == batch_at(number, models, size) for number, batch in enumerate(found))


@given(models=st.integers(1, 1_000_000))
def test_batches_are_at_most_a_second_and_few_enough_for_a_directory(models: int) -> None:
    size = batch_of(ManyModelsParameters(models=models))
    assert 1 <= size <= 250
    assert math.ceil(models / size) <= 4000


# ----------------------------------------------------------------------------------------------------- files


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    def fail(file: Any) -> None:
        file.write(b"half")
        raise RuntimeError

    path = tmp_path / "models-000000.parquet"
    with pytest.raises(RuntimeError):
        write_whole(path, fail)
    assert list(tmp_path.iterdir()) == []
    write_whole(path, lambda file: file.write(b"one"))
    write_whole(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_batch_is_done_when_its_file_is_there_and_fitting_again_shows(tmp_path: Path) -> None:
    clear_unfinished(tmp_path)
    wanted = batches(10, 4)
    models_path(tmp_path, 1).write_text("models")
    (tmp_path / ".models-000002.parquet.12.ab").write_text("a writer was killed")
    (tmp_path / "failed-000000.parquet").write_text("a fit failed")
    clear_unfinished(tmp_path)
    before = finished(tmp_path, wanted)
    assert list(before) == [1]
    assert not list(tmp_path.glob(".*"))
    write_whole(models_path(tmp_path, 1), lambda file: file.write(b"models"))
    assert finished(tmp_path, wanted) != before


# ------------------------------------------------------------------------------------------- count and digest


def model(key: int, **other: Any) -> Model:
    values = {
        "score": 0.5, "fingerprint": fingerprint_of(key, [key / 3]), "fit_s": 0.004, "coefficients": [],
        "problem": "", "cpus": 1, "node": "n1", "pid": 7,
    }  # fmt: skip
    return Model(key, **(values | other))


@given(st.permutations(range(12)), st.integers(1, 5))
def test_the_count_does_not_depend_on_order_or_files(keys: list[int], size: int) -> None:
    ordered, mixed = Tally(12), Tally(12)
    ordered.add([model(key) for key in range(12)])
    for begin in range(0, 12, size):
        mixed.add([model(key) for key in keys[begin : begin + size]])
    assert mixed.metrics() == ordered.metrics()
    assert (mixed.models, mixed.missing, mixed.repeated) == (12, 0, 0)


@given(st.lists(st.integers(0, 9), max_size=30))
def test_missing_and_repeated_models_are_counted(keys: list[int]) -> None:
    tally = Tally(10)
    tally.add([model(key) for key in keys])
    assert (tally.models, tally.missing) == (len(set(keys)), 10 - len(set(keys)))
    assert tally.repeated == len(keys) - len(set(keys))


def test_another_prediction_is_another_digest_and_a_failed_fit_has_none() -> None:
    same, other, failed = Tally(2), Tally(2), Tally(2)
    same.add([model(0), model(1)])
    other.add([model(0), model(1, fingerprint=fingerprint_of(1, [0.5]))])
    failed.add([model(0), model(1, score=math.nan, problem="ValueError: Input contains NaN.", cpus=2)])
    assert same.metrics()["digest"] != other.metrics()["digest"]
    found = failed.metrics()
    assert (found["models"], found["models_failed"], found["cpus_seen"]) == (2, 1, 2)
    assert found["problem"] == "key 1: ValueError: Input contains NaN."
    assert found["score"] == 0.5


def test_a_key_that_nobody_asked_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="found a model of key 5, expected 0 to 4"):
        Tally(5).add([model(5)])


def test_nothing_counted_has_no_figures() -> None:
    found = Tally(3).metrics()
    assert (found["models"], found["models_missing"], found["score"], found["fit_s"]) == (0, 3, None, None)


def test_predictions_that_differ_in_the_last_digits_are_the_same_model() -> None:
    assert fingerprint_of(3, [0.1 + 0.2]) == fingerprint_of(3, [0.3])
    assert fingerprint_of(3, [0.3]) != fingerprint_of(4, [0.3])


@given(st.permutations(range(10)))
def test_models_that_come_mixed_are_given_out_by_batch(keys: list[int]) -> None:
    works = [Work(batch, Fit("ridge", 0, 1), "", "") for batch in batches(10, 4)]
    gathered = Gathered(works)
    whole = [found for key in keys if (found := gathered.add(model(key))) is not None]
    assert sorted(work.batch.number for work, _ in whole) == [0, 1, 2]
    for work, models in whole:
        assert [one.key for one in models] == list(range(work.batch.first, work.batch.end))


def test_a_model_survives_the_way_through_ray_data() -> None:
    sent = model(3, score=math.nan, problem="ValueError: x", fingerprint=2**64 - 1)
    assert str(Model(**json.loads(json.dumps(vars(sent))))) == str(sent)  # NaN is not equal to itself


# --------------------------------------------------------------------------------------------------- figures


def test_figures_are_told_over_the_serial_fit() -> None:
    found = speeds(1000, wall_s=4.0, serial_fit_s=0.006, cpus=2, cpus_of_a_model=1)
    assert found["models_per_s"] == 250
    assert found["overhead_per_model_s"] == 0.002
    assert found["cpu_efficiency"] == 0.75
    assert found["projected_million_s"] == 4000


def test_a_model_of_two_cpus_counts_both() -> None:
    found = speeds(1000, wall_s=8.0, serial_fit_s=0.006, cpus=2, cpus_of_a_model=2)
    assert (found["overhead_per_model_s"], found["cpu_efficiency"]) == (0.002, 0.75)


def test_a_method_of_which_nothing_was_left_has_no_speed() -> None:
    found = speeds(0, wall_s=0.0, serial_fit_s=0.006, cpus=2, cpus_of_a_model=1)
    assert found["models_per_s"] is found["overhead_per_model_s"] is found["projected_million_s"] is None


# ------------------------------------------------------------------------------------------------- judging


def run(method: str, **more: Any) -> WorkloadRun:
    metrics = {
        "entry": method, "method": method, "models": 2000, "models_missing": 0, "models_repeated": 0,
        "models_failed": 0, "models_refitted": 0, "models_before": 0, "problem": None, "digest": "ab",
        "cpus_seen": 1, "cpu_efficiency": 0.9, "overhead_per_model_s": 0.0005, "serial_fit_s": 0.0045,
    }  # fmt: skip
    return WorkloadRun(entry_record("many-models", method, 1.0, "ok", None).to_json(), metrics | more)


def judged(*runs: WorkloadRun, **parameters: Any) -> list[tuple[str, bool]]:
    found = ManyModels().judge(ManyModelsParameters(**parameters), runs)
    return [(reason.text, reason.fails) for reason in found]


def test_the_same_models_by_all_methods_pass() -> None:
    assert judged(run("tasks"), run("pool"), run("data")) == []


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"models_missing": 3}, "tasks: 3 of 2000 models are missing"),
        ({"models_repeated": 2}, "tasks: 2 of 2000 models are there more than once"),
        ({"models_refitted": 9}, "tasks: 9 of 2000 models that were finished before were fitted again"),
        (
            {"models_failed": 1, "problem": "key 4: ValueError: y"},
            "tasks: 1 fits failed; the first: key 4: ValueError: y",
        ),
        ({"cpus_seen": 2}, "tasks: a fit could use 2 CPUs, it was to hold 1"),
    ],
)
def test_what_is_not_as_promised_fails(metrics: dict[str, Any], text: str) -> None:
    assert judged(run("tasks", **metrics)) == [(text, True)]


def test_other_models_fail_with_all_digests() -> None:
    [(text, fails)] = judged(run("tasks"), run("pool"), run("data", digest="cd"))
    assert fails
    assert text == "the methods' models are not the same: tasks ab, pool ab, data cd"


def test_efficiency_is_judged_when_it_is_asked_for() -> None:
    assert judged(run("tasks", cpu_efficiency=0.1)) == []
    [(text, fails)] = judged(run("tasks", cpu_efficiency=0.1), efficiency=0.8)
    assert fails
    assert text == (
        "tasks: CPU efficiency 0.10, expected 0.8: 0.50 ms per model over 4.50 ms of the serial fit"
    )


def test_a_resumed_method_is_told() -> None:
    [(text, fails)] = judged(run("tasks", models_before=500))
    assert not fails
    assert text.startswith("tasks: was resumed, 500 models were finished before")


def test_an_entry_that_got_nowhere_is_left_to_its_record() -> None:
    record = entry_record("many-models", "pool", 1.0, "failed", "no room").to_json()
    assert judged(WorkloadRun(record, {"entry": "pool", "method": "pool"})) == []


def test_a_batch_knows_how_many_models_it_has() -> None:
    assert Batch(3, 30, 37).models == 7


def test_a_pool_has_as_many_processes_as_fit_on_the_living_nodes() -> None:
    def node(cpus: float, *, alive: bool = True) -> dict[str, Any]:
        return {"Alive": alive, "Resources": {"CPU": cpus, "memory": 1.0}}

    nodes = [node(3.0), node(3.0), node(4.0, alive=False), {"Alive": True, "Resources": {}}]
    assert [room(nodes, cpus) for cpus in (1, 2, 3, 4)] == [6, 2, 2, 0]
