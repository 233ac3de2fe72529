"""The head's side without Ray: what becomes an event, how slots are found and named, what ends in exit 2."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raytools.errors import RaytoolsError
from raytools.node import workload_runtime, workload_second_look, workload_slots
from raytools.node.workload_link import Listener, absent, decode_inputs, encode_inputs, new_results_dir
from raytools.workloads.base import WorkloadRun


def ray_node(name: str, address: str, slots: int = 1) -> dict[str, Any]:
    resources = {"CPU": 4.0} | ({"run_slot": float(slots)} if slots else {})
    return {
        "node_id": name, "name": address, "hostname": name, "address": address, "resources_total": resources,
    }  # fmt: skip


def heard(*texts: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    listener = Listener(lambda event, **fields: events.append({"event": event, **fields}))
    for text in texts:
        listener.write(text)
    return events


def test_inputs_arrive_as_they_were_sent() -> None:
    inputs = {"table": bytes(range(256)) * 100, "empty": b""}
    assert decode_inputs(json.loads(json.dumps(encode_inputs(inputs)))) == inputs


def test_a_line_of_ours_becomes_an_event_wherever_ray_puts_it() -> None:
    line = '(_run_here pid=7, ip=192.0.2.3) @raytools {"event": "progress", "run": "n1", "line": "fitting"}\n'
    expected = [{"event": "progress", "run": "n1", "line": "fitting"}]
    assert heard(line) == expected
    assert heard(line[:40], line[40:]) == expected
    assert heard(f"\x1b[36m{line}\x1b[0m") == expected


def test_every_other_line_is_log_without_rays_prefix() -> None:
    assert heard("(smoke pid=7) \x1b[1mAutoGluon says hello\x1b[0m\n\n") == [
        {"event": "log", "line": "AutoGluon says hello"}
    ]


@pytest.mark.parametrize("line", ["@raytools is a fine tool", '@raytools {"run": "n1"}', "@raytools 1"])
def test_a_line_that_only_looks_like_ours_is_log(line: str) -> None:
    assert heard(line + "\n") == [{"event": "log", "line": line}]


def test_every_slot_of_every_node_gets_a_run_under_the_inventorys_name() -> None:
    nodes = [ray_node("host-a", "192.0.2.1"), ray_node("host-b", "192.0.2.2", slots=2)]
    expected = [{"name": "n1", "address": "192.0.2.1"}, {"name": "n2", "address": "192.0.2.2"}]
    targets = workload_slots.targets_of(nodes, expected)
    assert [target.run for target in targets] == ["n1", "n2 run 1", "n2 run 2"]


def test_the_only_node_is_the_only_host_of_the_inventory_whatever_its_address() -> None:
    targets = workload_slots.targets_of(
        [ray_node("host-a", "192.0.2.1")], [{"name": "localhost", "address": "localhost"}]
    )
    assert [target.run for target in targets] == ["localhost"]


def test_a_ray_without_slots_is_told_to_be_built_anew() -> None:
    with pytest.raises(RaytoolsError, match=r"none of the 1 nodes of this Ray has a slot.*cluster\.yml"):
        workload_slots.targets_of([ray_node("host-a", "192.0.2.1", slots=0)], [])


def test_a_host_of_the_inventory_that_is_not_in_ray_is_named() -> None:
    expected = [{"name": "n1", "address": "192.0.2.1"}, {"name": "n2", "address": "192.0.2.2"}]
    assert absent(expected, {"n1"}) == [
        "n2: in the inventory, but not in the cluster's Ray. See: raytools doctor"
    ]


def test_a_node_that_is_not_provisioned_ends_in_an_error_event_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"workload": "autogluon", "parameters": {}}'))
    assert workload_runtime.main(["--node-json", str(tmp_path / "node.json")]) == 2
    event = json.loads(capsys.readouterr().out)
    assert event["event"] == "error"
    assert "node.json is not a plan" in event["found"]
    assert event["fix"] == "Run: ansible-playbook playbooks/cluster.yml"


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["n1", "n2"], [1, 0]),
        (["n1", "n2", "n3"], [1, 2, 0]),
        (["n1", "n1", "n2", "n2"], [2, 3, 0, 1]),
        (["n1", "n1"], [1, 0]),
        (["n1"], [0]),
        ([], []),
    ],
)
def test_what_a_run_has_left_is_looked_at_on_another_host(hosts: list[str], expected: list[int]) -> None:
    assert workload_second_look.lookers(hosts) == expected


class Looks:
    """Looks that have ended before they are asked for, in the place of Ray's references."""

    def __init__(self, outcome: str, metrics: dict[str, Any]) -> None:
        self.started: list[tuple[int, int]] = []
        self._look = (outcome, metrics)

    def wait(self, left: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        return left[:num_returns], left[num_returns:]

    def start(self, owner: int, looker: int) -> int:
        self.started.append((owner, looker))
        return len(self.started)

    def outcome(self, reference: int) -> WorkloadRun:
        outcome, metrics = self._look
        where = f"n{self.started[reference - 1][1]}" if outcome != "refused" else None
        return first_run(where, outcome, **metrics)

    def dead(self, left: Sequence[int]) -> dict[int, WorkloadRun]:
        return {}


class Silent(Looks):
    """Looks of which none ends: their node is dead."""

    def wait(self, left: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        return [], left

    def dead(self, left: Sequence[int]) -> dict[int, WorkloadRun]:
        return {reference: first_run(None, "lost") for reference in left}


def first_run(name: str | None, outcome: str = "ok", **metrics: Any) -> WorkloadRun:
    return WorkloadRun({"host": {"name": name, "slot": 0}, "outcome": outcome}, metrics)


def test_what_a_second_look_finds_is_added_to_the_run_whose_work_it_was(tmp_path: Path) -> None:
    runs = [first_run("n0", own=1, on="n0"), first_run("n1", "failed"), first_run("n2", own=3, on="n2")]
    looks = Looks("ok", {"on": "elsewhere"})
    found, troubles = workload_second_look.look_again(
        looks, runs, looks.start, looks.outcome, looks.dead, tmp_path
    )
    assert looks.started == [(0, 2), (2, 0)]  # what failed has left nothing, and may not look
    assert [run.metrics for run in found] == [
        {"own": 1, "on": "elsewhere"},
        {},
        {"own": 3, "on": "elsewhere"},
    ]
    assert troubles == []
    assert json.loads((tmp_path / "again-2.json").read_text())["record"]["host"]["name"] == "n0"


def test_a_second_look_that_fails_is_told_and_takes_nothing_from_the_run(tmp_path: Path) -> None:
    runs = [first_run("n0", on="n0"), first_run("n1", on="n1")]
    looks = Looks("refused", {})
    found, troubles = workload_second_look.look_again(
        looks, runs, looks.start, looks.outcome, looks.dead, tmp_path
    )
    assert [run.metrics for run in found] == [{"on": "n0"}, {"on": "n1"}]
    assert troubles[0].startswith("n1: the look at what n0 had left: outcome refused")


def test_a_second_look_on_a_dead_node_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload_second_look, "_LOOK_AT_NODES_S", 0)
    runs = [first_run("n0", on="n0"), first_run("n1", on="n1")]
    looks = Silent("ok", {})
    found, troubles = workload_second_look.look_again(
        looks, runs, looks.start, looks.outcome, looks.dead, tmp_path
    )
    assert [run.metrics for run in found] == [{"on": "n0"}, {"on": "n1"}]
    assert [trouble.partition(": outcome ")[2] for trouble in troubles] == ["lost", "lost"]


def test_what_was_handed_over_is_removed_with_the_smoke(tmp_path: Path) -> None:
    (tmp_path / workload_second_look.directory_name(1) / "clone").mkdir(parents=True)
    (tmp_path / "run-1.json").touch()
    workload_second_look.remove_left(tmp_path, 3, lambda *_, **__: None)
    assert [path.name for path in tmp_path.iterdir()] == ["run-1.json"]


def test_results_that_cannot_be_made_are_said_with_who_tried_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a directory is expected")
    node = {"storage": {"path": str(tmp_path)}}
    with pytest.raises(
        RaytoolsError, match=r"autogluon/\S+ cannot be made by \w+: Not a directory.*chown -R"
    ):
        new_results_dir(node, "autogluon")


def test_a_lost_run_goes_to_another_host_or_to_its_own_if_that_has_begun_anew() -> None:
    lost = workload_slots.Target("n3", "n3", "old")
    same, anew, other = (
        workload_slots.Target(name, name, node_id)
        for name, node_id in (("n3", "old"), ("n3", "new"), ("n1", "one"))
    )
    elsewhere = workload_slots.elsewhere
    assert elsewhere(lost, [anew, other]) == workload_slots.Target("n3 again on n1", "n1", "one", 2)
    assert elsewhere(lost, [anew]) == workload_slots.Target("n3 again on n3", "n3", "new", 2)
    assert elsewhere(lost, [same]) is None
    assert elsewhere(lost, []) is None
