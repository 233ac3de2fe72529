"""Ray's own view of its nodes, by one question to the GCS: no driver, no job. Needs the environment's Python.

Importing Ray takes most of the time, so only the GCS client is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node.facts import read_node_json

SCHEMA = "raytools.ray-view/1"
_PROVISION = "Make it: ansible-playbook playbooks/cluster.yml"
_CONNECT_WAIT_S = 3.0
ANSWER_WAIT_S = 10
# rpc::GcsNodeInfo.GcsNodeState in Ray's gcs.proto
_STATES = {0: "ALIVE", 1: "DEAD"}


def view(node: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes of the cluster as the GCS sees them, the dead ones of this session included.

    Args:
        node: the plan of this node.

    Raises:
        RaytoolsError: nothing listens at the GCS's address, or it does not let us in.
    """
    address = node["ray"]["gcs_address"]
    client = connect(node)
    with answering(address):
        nodes = nodes_of(client)
        metadata = client.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=ANSWER_WAIT_S)
    return {
        "schema": SCHEMA,
        "gcs_address": address,
        "versions": {
            name: json.loads(metadata or b"{}").get(f"{name}_version") for name in ("ray", "python")
        },
        "nodes": nodes,
    }


def connect(node: Mapping[str, Any]) -> Any:
    """A client of the cluster's GCS; it is no driver and no job.

    Args:
        node: the plan of this node.

    Raises:
        RaytoolsError: nothing listens at the GCS's address, or it does not let us in.
    """
    address = node["ray"]["gcs_address"]
    _require_listener(address)
    if node["ray"]["auth"] == "token":
        _require_token(node["ray"]["token_path"])
    # Ray reads these when it is imported
    os.environ["RAY_AUTH_MODE"] = node["ray"]["auth"]
    if node["ray"]["auth"] == "token":
        os.environ["RAY_AUTH_TOKEN_PATH"] = node["ray"]["token_path"]
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(ANSWER_WAIT_S))
    with answering(address):
        return new_client(address)


def new_client(address: str) -> Any:
    """A client of a GCS that listens, admitted by what this process's environment says of the token."""
    from ray._raylet import GcsClient

    return GcsClient(address=address)


@contextlib.contextmanager
def answering(address: str) -> Iterator[None]:
    """Turns what Ray raises when its GCS does not answer into a sentence.

    Raises:
        RaytoolsError: it did not answer.
    """
    from ray._raylet import RayError

    try:
        yield
    except RayError as error:
        raise RaytoolsError(
            f"the GCS at {address} did not answer ({str(error).splitlines()[0][:200]})",
            expected="a Ray that takes this cluster's token",
            fix="See logs/ray.log below the root on the head",
        ) from error


def nodes_of(client: Any) -> list[dict[str, Any]]:
    """All nodes of this session, living and dead, by address."""
    nodes = client.get_all_node_info(timeout=ANSWER_WAIT_S)
    return sorted((_node(info) for info in nodes.values()), key=lambda one: str(one["address"]))


def _require_token(path: str) -> None:
    """Without it Ray's client aborts the whole process with a stack trace."""
    try:
        content = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RaytoolsError(
            f"Ray's token {path} cannot be read ({error.strerror})", fix=_PROVISION
        ) from error
    if not content:
        raise RaytoolsError(f"Ray's token {path} is empty", fix=_PROVISION)


def _require_listener(address: str) -> None:
    """Ray's client would wait 40 s for an address where nothing listens."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_WAIT_S).close()
    except OSError as error:
        raise RaytoolsError(
            f"nothing answers at the GCS's address {address} ({error.strerror or error})",
            expected="Ray to run",
            fix="Start it: ansible-playbook playbooks/ray.yml",
        ) from error


def _node(info: Any) -> dict[str, Any]:
    return {
        "node_id": info.node_id.hex(),
        "name": info.node_name,
        "hostname": info.node_manager_hostname,
        "address": info.node_manager_address,
        "state": _STATES.get(info.state, str(info.state)),
        "is_head": info.is_head_node,
        "resources_total": dict(info.resources_total),
        "labels": dict(info.labels),
        "start_time_ms": info.start_time_ms,
    }


def with_plan(node_json: str, act: Callable[[dict[str, Any]], None]) -> int:
    """What every command that asks the cluster does: read the plan, act, say in words what went wrong.

    Args:
        node_json: path of the plan.
        act: gets the plan; prints its answer.

    Returns:
        0; 1 with the reason on standard error.
    """
    node = read_node_json(node_json)
    if node is None:
        print(f"{node_json} is not a plan or may not be read", file=sys.stderr)
        return 1
    try:
        act(node)
    except RaytoolsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def named_address(text: str) -> tuple[str, str]:
    """An argument `NAME=ADDRESS`: a node of the inventory, and where Ray knows it."""
    name, _, address = text.partition("=")
    if not name or not address:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=ADDRESS")
    return name, address


def main(argv: list[str]) -> int:
    """`python -m raytools.node ray-view --node-json FILE`: JSON on standard output."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node ray-view", description=main.__doc__)
    parser.add_argument("--node-json", required=True, help="the plan of this node")
    options = parser.parse_args(argv)
    return with_plan(options.node_json, lambda node: json.dump(view(node), sys.stdout))
