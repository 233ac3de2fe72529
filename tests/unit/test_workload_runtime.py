"""The head's side without Ray: what becomes an event, how slots are found and named, what ends in exit 2."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from raytools.errors import RaytoolsError
from raytools.node import workload_runtime
from raytools.node.workload_runtime import Listener, decode_inputs, encode_inputs


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
    targets = workload_runtime._targets(nodes, expected)
    assert [target.run for target in targets] == ["n1", "n2 run 1", "n2 run 2"]


def test_the_only_node_is_the_only_host_of_the_inventory_whatever_its_address() -> None:
    targets = workload_runtime._targets(
        [ray_node("host-a", "192.0.2.1")], [{"name": "localhost", "address": "localhost"}]
    )
    assert [target.run for target in targets] == ["localhost"]


def test_a_ray_without_slots_is_told_to_be_built_anew() -> None:
    with pytest.raises(RaytoolsError, match=r"none of the 1 nodes of this Ray has a slot.*cluster\.yml"):
        workload_runtime._targets([ray_node("host-a", "192.0.2.1", slots=0)], [])


def test_a_host_of_the_inventory_that_is_not_in_ray_is_named() -> None:
    expected = [{"name": "n1", "address": "192.0.2.1"}, {"name": "n2", "address": "192.0.2.2"}]
    assert workload_runtime._absent(expected, {"n1"}) == [
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
