"""What a worker of each node has in its environment: `python -m raytools.node ray-workers --node-json FILE`.

On the head, as a driver, by a task without CPUs on each node. /proc does not tell: Ray gives its workers
another title, which is written over the environment they were started with. Needs the environment's Python.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node import driver, ray_view
from raytools.node.ray_state import read_node

_WORKER_WAIT_S = 60.0


def ask(node: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Address of each living node -> `environ` with these names, or the `problem` of asking there.

    Args:
        node: the plan of this node, the head.
        names: of variables; those that a worker has not are left out of its answer.

    Raises:
        RaytoolsError: this process cannot be a driver.
    """
    nodes = [one for one in ray_view.view(node)["nodes"] if one["state"] == "ALIVE"]
    os.environ.update(driver.become_driver(node))
    told = driver.variables(node, sys.prefix)
    os.environ.update({name: told[name] for name in told.keys() - set(driver.PREPENDED)})
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address=node["ray"]["gcs_address"], log_to_driver=False, logging_level="ERROR")
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(_own)
        asked = {
            one["address"]: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(one["node_id"], soft=False)
            ).remote(list(names))
            for one in nodes
        }
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=_WORKER_WAIT_S)
        return {address: _answer(ray, reference) for address, reference in asked.items()}
    finally:
        ray.shutdown()


def _own(names: Sequence[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def _answer(ray: Any, reference: Any) -> dict[str, Any]:
    from ray.exceptions import GetTimeoutError, RayError

    try:
        return {"environ": ray.get(reference, timeout=0.1)}
    except GetTimeoutError:
        return {"problem": f"no worker has started within {_WORKER_WAIT_S:g} s"}
    except RayError as error:
        return {"problem": (str(error).strip().splitlines() or [type(error).__name__])[-1]}


def main(argv: list[str]) -> int:
    """JSON on standard output; the names of variables are a JSON list on standard input."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node ray-workers", description=__doc__)
    parser.add_argument("--node-json", required=True, help="the plan of this node")
    options = parser.parse_args(argv)
    names = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # Ray has things to say, too
    try:
        found = ask(read_node(Path(options.node_json)), names)
    except (RaytoolsError, ConnectionError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        sys.stdout = answers
    json.dump(found, sys.stdout)
    return 0
