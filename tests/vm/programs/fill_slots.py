"""A driver on the head: in each slot of each node a run fills memory, in the last one more than there is.

Prints one JSON object: the node's name -> the records of its runs, that of the greedy one last.
"""

from __future__ import annotations

import json
import os
import socket
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raytools
from raytools.node.plan_file import find_node_file, load_node


@raytools.remote
def fill(size_bytes: int, seconds: float) -> str:
    held = b"\x01" * size_bytes  # written, so that it is there
    time.sleep(seconds)
    return f"{socket.gethostname()} held {len(held)}"


slots = load_node(find_node_file()).slots
ray.init(log_to_driver=False)
started = {}
for node in ray.nodes():
    on_it = fill.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
    size_bytes = slots[0].memory_bytes
    calm = [on_it.remote(size_bytes * 9 // 10, 10.0) for _ in slots[1:]]
    started[node["NodeManagerHostname"]] = [*calm, on_it.remote(size_bytes * 2, 10.0)]
print(json.dumps({name: [ray.get(run).record for run in runs] for name, runs in started.items()}), flush=True)
os._exit(0)  # leaving Ray in order takes an emulated machine some seconds
