"""A driver on the head: a run that would stay on one node for an hour, and ends at once on any other.

Argument: the node's name. Prints one JSON object: the value and the record of what came back.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raytools

PREFERRED = sys.argv[1]


@raytools.remote(retries=1)
def stay(preferred: str) -> str:
    if socket.gethostname() == preferred:
        time.sleep(3600)
    return socket.gethostname()


ray.init(log_to_driver=False)
found = next(node["NodeID"] for node in ray.nodes() if node["NodeManagerHostname"] == PREFERRED)
run = ray.get(
    stay.options(scheduling_strategy=NodeAffinitySchedulingStrategy(found, soft=True)).remote(PREFERRED)
)
print(json.dumps({"value": run.value, "record": run.record}), flush=True)
os._exit(0)
