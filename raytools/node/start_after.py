"""A worker's `ray start`: `python -m raytools.node start-after HOST:PORT RAY start [ARGUMENT ...]`.

It may begin beside its head's, or long before it after a power failure. Importing Ray takes a second or more,
emulated machines ten; here it is done while the head starts.
"""

from __future__ import annotations

import contextlib
import importlib
import runpy
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node import ray_view
from raytools.node.ray_failure import RayServiceError
from raytools.node.ray_process import answers, progress

HEAD_LIMIT_S = 180.0  # an emulated one needs almost two minutes
_LOOK_S = 0.1
_RAY_COMMAND = "ray.scripts.scripts"  # what `ray` imports first


def main(argv: list[str]) -> int:
    """Becomes `ray start` once its head is registered.

    Args:
        argv: `host:port` of the head's GCS; the environment's `ray`, a Python program; its arguments.

    Returns:
        1 with the reason on standard error if the head did not answer; else what the program returns.
    """
    gcs_address, *arguments = argv
    try:
        await_head(gcs_address, HEAD_LIMIT_S)
    except RayServiceError as error:
        progress(str(error))
        return 1
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
    deadline = time.monotonic() + limit_s
    progress(f"waiting for the head at {gcs_address}, at most {limit_s:.0f} s")
    with contextlib.suppress(ImportError):  # `ray` itself says what is missing
        importlib.import_module(_RAY_COMMAND)
    while not answers(gcs_address):
        _pause(deadline, f"the head's GCS at {gcs_address} did not answer within {limit_s:.0f} s")
    try:
        with ray_view.answering(gcs_address):
            client = ray_view.new_client(gcs_address)
            while not any(_is_living_head(node) for node in ray_view.nodes_of(client)):
                _pause(deadline, f"the GCS at {gcs_address} reported no head node within {limit_s:.0f} s")
    except RayServiceError:
        raise
    except (ImportError, RaytoolsError) as error:
        progress(f"{error}\nWhat `ray start` says of it:")


def _is_living_head(node: Mapping[str, Any]) -> bool:
    return bool(node["is_head"]) and node["state"] == "ALIVE"


def _pause(deadline: float, found: str) -> None:
    if time.monotonic() >= deadline:
        raise RayServiceError(
            found,
            expected="a head that runs and lets this node reach its port",
            fix="Look at the head: systemctl status 'raytools-ray-*' there, and its firewall",
        )
    time.sleep(_LOOK_S)
