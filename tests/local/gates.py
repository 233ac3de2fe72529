"""A program: how many of ten gates are on the driver's node, where there are two raylets."""

from __future__ import annotations

import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from raytools.workloads import start_together
from raytools.workloads.base import ClusterNode

GATES = 10


def main() -> None:
    cluster = Cluster()
    raylets = [cluster.add_node(num_cpus=1, include_dashboard=number == 0) for number in range(2)]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    nodes = [ClusterNode(one.node_id[:4], "127.0.0.1", one.node_id, 1, 1, 0) for one in raylets]
    try:
        here, found = ray.get_runtime_context().get_node_id(), 0
        for _ in range(GATES):
            name = start_together.gate_name()
            with start_together.together(name, nodes, cpus=1, works=2):
                ray.get(ray.get_actor(name).missing.remote())  # it has begun
                [gate] = list_actors(filters=[("name", "=", name)])
                found += gate.node_id == here
        print(found, flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
