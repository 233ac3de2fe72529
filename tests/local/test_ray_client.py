"""Ray clients (`ray://`) of a cluster that raytools has started."""

from __future__ import annotations

import os
import subprocess

import pytest

from raytools.node.driver import variables

from .smoke_cluster import Cluster

pytestmark = pytest.mark.timeout(300)

CLIENTS = 12  # without GRPC_ENABLE_FORK_SUPPORT=0 a quarter of them got no server
PROGRAM = "import ray, sys; ray.init(sys.argv[1]); print(len(ray.nodes()), 'node'); ray.shutdown()"


def test_every_client_gets_a_server_of_its_own(one_node: Cluster) -> None:
    node = one_node.node
    address = f"ray://127.0.0.1:{node['ray']['ports']['client']}"
    environment = {**os.environ, **variables(node, node["environment"]["prefix"])}
    for number in range(1, CLIENTS + 1):
        done = subprocess.run(
            [node["python"], "-c", PROGRAM, address],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.stdout.endswith("1 node\n"), (number, done.stdout, done.stderr[-3000:])
