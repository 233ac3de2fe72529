"""Which addresses and ports of a node the controller, who is no node, should not reach."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raytools.config import ClusterConfig
from raytools.doctor.model import NodeReport
from raytools.doctor.outside import doors, with_outside
from raytools.inventory import Host
from raytools.project import Project

CLUSTER = "10.0.0.5"
HOST = Host(
    name="n1",
    role="worker",
    connection="ssh",
    address=CLUSTER,
    cluster_address=None,
    port=None,
    user=None,
    root="/opt/raytools",
    python=None,
    become=False,
    variables={},
    overrides={},
)


def node(
    listening: dict[str, Any], own: tuple[str, ...] = (CLUSTER,), dashboard: str = "127.0.0.1"
) -> NodeReport:
    ports = {"gcs": 6379, "node_manager": 10002, "dashboard": 8265, "workers": [20000, 20999]}
    plan = {"address": CLUSTER, "ray": {"ports": ports, "dashboard": {"host": dashboard}}}
    facts = {"network": {"addresses": ["127.0.0.1", *own]}}
    inspection = {"node": plan, "facts": facts, "listening": listening}
    return NodeReport("n1", "worker", "/opt/raytools", ClusterConfig(), inspection=inspection)


def found(host: Host, report: NodeReport, resolves_to: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    listed = doors(host, report, lambda name: list(resolves_to) or [name])
    return [(door["address"], door["port"]) for door in listed]


EVERYWHERE = {"gcs": ["0.0.0.0"], "node_manager": ["0.0.0.0"]}


def test_a_node_with_one_private_address_has_no_doors() -> None:
    assert found(HOST, node(EVERYWHERE)) == []


def test_an_address_for_ssh_that_is_not_the_clusters_is_one() -> None:
    host = replace(HOST, address="192.168.7.5", cluster_address=CLUSTER)
    assert found(host, node(EVERYWHERE)) == [("192.168.7.5", 6379), ("192.168.7.5", 10002)]


def test_a_name_for_ssh_is_resolved() -> None:
    host = replace(HOST, address="n1.example")
    assert found(host, node(EVERYWHERE), (CLUSTER,)) == []
    assert found(host, node(EVERYWHERE), ("192.168.7.5",))[0] == ("192.168.7.5", 6379)


def test_public_addresses_are_even_where_the_cluster_uses_them() -> None:
    assert found(HOST, node(EVERYWHERE, (CLUSTER, "8.8.8.8")))[0] == ("8.8.8.8", 6379)
    public = node(EVERYWHERE)
    assert public.installed is not None
    public.installed["address"] = "8.8.8.8"  # type: ignore[index]
    assert ("8.8.8.8", 10002) in found(replace(HOST, address="8.8.8.8"), public)


def test_the_dashboard_is_one_only_where_it_is_declared_for_the_node_alone() -> None:
    listening = {"dashboard": ["127.0.0.1"]}
    assert found(HOST, node(listening)) == [(CLUSTER, 8265)]
    assert found(HOST, node(listening, dashboard="0.0.0.0")) == []


def test_loopback_and_what_could_not_be_gathered_are_none() -> None:
    assert found(replace(HOST, address="127.0.0.1"), node(EVERYWHERE)) == []
    assert found(replace(HOST, address="192.168.7.5"), node({"problem": "no /proc"})) == []


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of something that accepts connections on every address of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_doors_are_tried_from_here_and_each_says_what_happened(
    listener: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    shut = closed.getsockname()[1]
    closed.close()
    tried = [
        {"address": "127.0.0.1", "port": listener, "name": "gcs"},
        {"address": "127.0.0.1", "port": shut, "name": "node_manager"},
    ]
    monkeypatch.setattr("raytools.doctor.outside.doors", lambda *_: tried)
    project = Project(tmp_path / "cluster.yaml", tmp_path / "inventory", tmp_path, tmp_path / "state")
    (report,) = with_outside(project, [HOST], (node(EVERYWHERE),))
    assert report.outside is not None
    assert [one["problem"] for one in report.outside] == [None, "Connection refused"]
    (local,) = with_outside(project, [replace(HOST, connection="local")], (node(EVERYWHERE),))
    assert local.outside is None
