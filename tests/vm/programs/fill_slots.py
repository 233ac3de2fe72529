"""A driver on the head: in each slot of each node a run fills memory, in the last one more than there is.

Prints one JSON object: the node's name -> the records of its runs, that of the greedy one last.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raytools
from raytools.node.plan_file import find_node_file, load_node


@raytools.remote
def fill(size_bytes: int, seconds: float, meeting: Path, together: int) -> str:
    meet(meeting, together)
    held = b"\x01" * size_bytes  # written, so that it is there
    time.sleep(seconds)
    return f"{socket.gethostname()} held {len(held)}"


def meet(place: Path, together: int, limit_s: float = 200.0) -> None:
    """Until the runs of this node have all begun: emulated, one may be over before the next has started."""
    place.mkdir(exist_ok=True)
    (place / secrets.token_hex(8)).touch()  # each run has process numbers of its own, and the same ones
    give_up_s = time.monotonic() + limit_s
    while len(list(place.iterdir())) < together:
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"{len(list(place.iterdir()))} of {together} runs began in {limit_s:.0f} s")
        time.sleep(0.2)


slots = load_node(find_node_file()).slots
meeting = Path(f"/tmp/fill-slots-{time.time_ns()}")  # on each node its own
ray.init(log_to_driver=False)
started = {}
for node in ray.nodes():
    on_it = fill.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
    size_bytes = slots[0].memory_bytes
    calm = [on_it.remote(size_bytes * 9 // 10, 10.0, meeting, len(slots)) for _ in slots[1:]]
    started[node["NodeManagerHostname"]] = [*calm, on_it.remote(size_bytes * 2, 10.0, meeting, len(slots))]
print(json.dumps({name: [ray.get(run).record for run in runs] for name, runs in started.items()}), flush=True)
os._exit(0)  # leaving Ray in order takes an emulated machine some seconds
