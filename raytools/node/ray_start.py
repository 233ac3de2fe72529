"""Becomes `ray start`: `python -m raytools.node ray-start [--after HOST:PORT] RAY start [ARGUMENT ...]`.

A worker's may begin beside its head's, or long before it after a power failure. Importing Ray takes a second
or more, emulated machines ten; with `--after` it is done while the head starts.
"""

from __future__ import annotations

import contextlib
import importlib
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node import ray_view
from raytools.node.ray_failure import RayServiceError
from raytools.node.ray_process import answers, patient_pause_s, progress

HEAD_LIMIT_S = 180.0  # an emulated one needs almost two minutes
_RAY_COMMAND = "ray.scripts.scripts"  # what `ray` imports first
_PORT_OF_PLAN = "--dashboard-agent-listen-port="
_PORT_OF_RAYLET = "--dashboard_agent_listen_port="


def main(argv: list[str]) -> int:
    """Becomes `ray start`, of a worker once its head is registered.

    Args:
        argv: `--after` and the `host:port` of the head's GCS, for a worker; the environment's `ray`, a Python
            program; its arguments.

    Returns:
        1 with the reason on standard error if the head did not answer; else what the program returns.
    """
    gcs_address, arguments = (argv[1], argv[2:]) if argv[:1] == ["--after"] else (None, argv)
    try:
        if gcs_address is not None:
            await_head(gcs_address, HEAD_LIMIT_S)
    except RayServiceError as error:
        progress(str(error))
        return 1
    _tell_raylet_its_agents_port(arguments)
    sys.argv[:] = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


def await_head(gcs_address: str, limit_s: float) -> None:
    """Waits until the GCS knows its head node: the last that happens when a head starts.

    `ray start` of a worker asks the same, but only every two seconds, and it gives up after 20 questions
    (Ray 2.58.1, `get_all_node_info_until_retrieved`).

    Args:
        gcs_address: `host:port` of the head's GCS.
        limit_s: how long to wait.

    Raises:
        RayServiceError: the head did not answer in time.
    """
    began = time.monotonic()
    progress(f"waiting for the head at {gcs_address}, at most {limit_s:.0f} s")
    with contextlib.suppress(ImportError):  # `ray` itself says what is missing
        importlib.import_module(_RAY_COMMAND)
    while not answers(gcs_address):
        _pause(began, limit_s, f"the head's GCS at {gcs_address} did not answer")
    try:
        with ray_view.answering(gcs_address):
            client = ray_view.new_client(gcs_address)
            while not any(_is_living_head(node) for node in ray_view.nodes_of(client)):
                _pause(began, limit_s, f"the GCS at {gcs_address} reported no head node")
    except RayServiceError:
        raise
    except (ImportError, RaytoolsError) as error:
        progress(f"{error}\nWhat `ray start` says of it:")


def _is_living_head(node: Mapping[str, Any]) -> bool:
    return bool(node["is_head"]) and node["state"] == "ALIVE"


def _pause(began: float, limit_s: float, found: str) -> None:
    waited_s = time.monotonic() - began
    if waited_s >= limit_s:
        raise RayServiceError(
            f"{found} within {limit_s:.0f} s",
            expected="a head that runs and lets this node reach its port",
            fix="Look at the head: systemctl status 'raytools-ray-*' there, and its firewall",
        )
    time.sleep(patient_pause_s(waited_s))


def _tell_raylet_its_agents_port(arguments: Sequence[str]) -> None:
    """Lets the raylet start without waiting for its dashboard agent.

    A raylet waits for each port of its agents that it is not told, until the agent has written it to a file:
    15 s, which no setting changes, and then it aborts. On a busy or slow machine, or from a slow disk, the
    agent's imports take longer. `ray start` hands over every port that we pin but this one (Ray 2.58.1,
    `services.start_raylet`; https://github.com/ray-project/ray/issues/65983). Told, the raylet is up a second
    or two sooner, and its agents have the time of RAY_agent_register_timeout_ms.

    Args:
        arguments: of `ray start`; nothing is done where they pin no such port.
    """
    ports = [
        argument.removeprefix(_PORT_OF_PLAN) for argument in arguments if argument.startswith(_PORT_OF_PLAN)
    ]
    try:
        services: Any = importlib.import_module("ray._private.services")
        start_process = services.start_ray_process
    except ImportError:
        return  # `ray` itself says what is missing
    except AttributeError:
        progress("This Ray starts its raylet in another way: it gives its agents 15 s")
        return

    def start_ray_process(command: list[str], process_type: str, *rest: Any, **named: Any) -> Any:
        if process_type == "raylet" and not any(one.startswith(_PORT_OF_RAYLET) for one in command):
            command = [*command, *(_PORT_OF_RAYLET + port for port in ports)]
        return start_process(command, process_type, *rest, **named)

    services.start_ray_process = start_ray_process
