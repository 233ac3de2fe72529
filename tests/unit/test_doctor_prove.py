"""What the level prove tries: who has to reach whom, whether something listens, and what is measured."""

from __future__ import annotations

import io
import json
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raytools.config import ClusterConfig
from raytools.doctor.measure import with_imports, with_ring, with_storage_trials
from raytools.doctor.model import NodeReport
from raytools.doctor.prove import hostnames, prove, targets
from raytools.inventory import Host
from raytools.node import reach
from raytools.project import Project
from tests.unit.test_doctor_checks import Sample, like_the_first

PORTS = {"gcs": 6379, "node_manager": 10101, "object_manager": 10102, "workers": [20000, 20999]}


@pytest.fixture
def three() -> tuple[Any, ...]:
    sample = Sample()
    sample.more_nodes = [like_the_first(sample, number) for number in (2, 3)]
    nodes = sample.gathered().nodes
    for node in nodes:
        assert node.inspection is not None
        node.inspection["node"]["ray"]["ports"] = dict(PORTS)
        node.inspection["listening"] = {"node_manager": ["::"], "object_manager": ["::"]}  # type: ignore[index]
    nodes[0].inspection["listening"]["gcs"] = ["::"]  # type: ignore[index]
    return nodes


def test_each_node_has_to_reach_what_listens_on_each_other(three: tuple[Any, ...]) -> None:
    found = targets(three)
    assert {name: [(one["to"], one["name"]) for one in wanted] for name, wanted in found.items()} == {
        "n1": [
            ("n2", "node_manager"), ("n2", "object_manager"),
            ("n3", "node_manager"), ("n3", "object_manager"),
        ],
        "n2": [
            ("n1", "gcs"), ("n1", "node_manager"), ("n1", "object_manager"),
            ("n3", "node_manager"), ("n3", "object_manager"),
        ],
        "n3": [
            ("n1", "gcs"), ("n1", "node_manager"), ("n1", "object_manager"),
            ("n2", "node_manager"), ("n2", "object_manager"),
        ],
    }  # fmt: skip
    assert found["n2"][0] == {"to": "n1", "address": "192.0.2.11", "name": "gcs", "port": 6379}


def test_a_node_whose_ray_is_dead_or_that_was_not_seen_is_nobodys_target(three: tuple[Any, ...]) -> None:
    three[1].inspection["listening"] = {}
    unseen = replace(three[2], inspection=None, error="no answer")
    found = targets((three[0], three[1], unseen))
    assert found == {"n1": [], "n2": [one for one in found["n2"] if one["to"] == "n1"]}


def test_each_node_is_asked_what_the_names_mean_by_which_nodes_call_themselves(
    three: tuple[Any, ...],
) -> None:
    unseen = replace(three[2], inspection=None, error="no answer")
    assert hostnames((three[0], three[1], unseen)) == {"n1": "n1", "n2": "n2"}


def asked(
    request: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """What `reach` answers."""
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    assert reach.main([]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_port_on_which_something_listens_is_reached_and_another_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens, and nobody else will
        wanted = [["127.0.0.1", server.getsockname()[1]], ["127.0.0.1", taken.getsockname()[1]]]
        found = asked({"connect": wanted, "resolve": []}, monkeypatch, capsys)
    assert found == {"connect": [None, "Connection refused"], "resolve": {}}


def test_names_are_looked_up_as_the_node_does_and_unknown_ones_have_no_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_name = "n" * 64  # one letter more than a part of a name may have: nobody is asked
    wanted = ["localhost", "127.0.0.9", no_name]
    found = asked({"connect": [], "resolve": wanted}, monkeypatch, capsys)
    assert found["connect"] == []
    assert {"127.0.0.1", "::1"} & set(found["resolve"]["localhost"])
    assert found["resolve"]["127.0.0.9"] == ["127.0.0.9"]
    assert found["resolve"][no_name] == []


def test_nowhere_to_go_is_an_empty_answer() -> None:
    assert reach.reach_all([]) == []
    assert reach.resolve_all([]) == {}


def test_reach_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert reach.main(["192.0.2.1"]) == 2
    assert "standard input" in capsys.readouterr().err


# --- what is measured, on this machine as if it were two --------------------------------------------


def free_port(address: str) -> int:
    with socket.socket() as asked_for:
        asked_for.bind((address, 0))
        port: int = asked_for.getsockname()[1]
    return port


@pytest.fixture
def two(tmp_path: Path) -> tuple[Project, list[Host], tuple[NodeReport, ...]]:
    """Two provisioned hosts: directories and addresses of this machine."""
    hosts, nodes = [], []
    for number, role in ((1, "head"), (2, "worker")):
        name, root, address = f"n{number}", tmp_path / f"n{number}", f"127.0.0.{number}"
        (root / "results").mkdir(parents=True)
        plan = {
            "address": address, "python": sys.executable, "toolkit": str(root / "toolkit"),
            "storage": {"type": "local", "path": str(root)},
            "ray": {"ports": {"workers": [20000, free_port(address)]}},
        }  # fmt: skip
        (root / "node.json").write_text(json.dumps(plan))
        hosts.append(
            Host(name, role, "local", address, None, None, None, str(root), None, False, {}, {})  # type: ignore[arg-type]
        )
        nodes.append(NodeReport(name, role, str(root), ClusterConfig(), inspection={"node": plan}))
    project = Project(tmp_path / "cluster.yaml", tmp_path / "hosts.yml", tmp_path, tmp_path / ".raytools")
    return project, hosts, tuple(nodes)


def measure(project: Project, able: list[Host], nodes: tuple[NodeReport, ...]) -> tuple[NodeReport, ...]:
    for step in (with_imports, with_storage_trials, with_ring):
        nodes = step(project, able, nodes)
    return nodes


def test_only_what_the_chosen_checks_judge_is_tried(
    two: tuple[Project, list[Host], tuple[NodeReport, ...]],
) -> None:
    for node in prove(*two, codes={"RT505"}):
        assert node.storage_trial is not None
        assert (node.proof, node.proof_error, node.reach, node.imports, node.ring) == (None,) * 5


def test_two_nodes_try_imports_storage_and_each_other(
    two: tuple[Project, list[Host], tuple[NodeReport, ...]],
) -> None:
    project, hosts, nodes = two
    for node, neighbour in zip(measure(project, hosts, nodes), ("n2", "n1"), strict=True):
        assert node.imports is not None
        assert "problem" not in node.imports
        assert node.storage_trial is not None
        assert node.storage_trial["problems"] == []
        assert node.storage_trial["fsync_ms"] >= 0  # of a tmpfs it is nothing
        assert node.ring is not None
        assert node.ring["to"] == neighbour
        assert node.ring["mbit_per_s"] > 0
        assert list(Path(node.root, "results").iterdir()) == []


def test_a_single_node_has_no_neighbour(
    two: tuple[Project, list[Host], tuple[NodeReport, ...]],
) -> None:
    project, hosts, nodes = two
    found = measure(project, hosts[:1], nodes)
    assert found[0].storage_trial is not None
    assert found[0].ring is None
    assert (found[1].imports, found[1].storage_trial, found[1].ring) == (None, None, None)


def test_a_node_that_cannot_be_asked_has_the_reason_and_no_word_about_the_network(
    two: tuple[Project, list[Host], tuple[NodeReport, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raytools.doctor.measure._RING_WAIT_S", 0.2)  # nobody will come
    project, hosts, nodes = two
    Path(hosts[0].root, "node.json").unlink()
    strange = replace(hosts[1], become=True, variables={"ansible_become_method": "doas"})
    found = measure(project, [hosts[0], strange], nodes)
    assert found[0].imports is not None
    assert "not provisioned" in found[0].imports["problem"]
    assert found[1].ring is not None
    assert found[1].ring["untried"]
    assert "doas" in found[1].ring["problem"]
