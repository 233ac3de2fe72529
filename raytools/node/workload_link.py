"""What the drivers of workloads share on the head: the way to the controller, to Ray and to the storage.

Events are JSON lines on standard output; Ray and the runs print there, too, so our own lines in that are told
from all others. Ray is imported inside functions only.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pwd
import re
import secrets
import signal
import sys
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from raytools.errors import RaytoolsError
from raytools.node import driver

SCHEMA = "raytools.workload-request/1"
MARKER = "@raytools "  # before our own lines among all that a run prints
_RAY_PREFIX = re.compile(r"^\(.*?pid=\d+.*?\) ?")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")

Emit = Callable[..., None]


class Cancelled(BaseException):  # as KeyboardInterrupt, it is nothing that a library should catch
    """The requester is gone or wants no more."""


def encode_inputs(inputs: Mapping[str, bytes]) -> dict[str, str]:
    """Inputs as they travel in the request's `inputs`."""
    return {name: base64.b64encode(zlib.compress(data, 3)).decode() for name, data in inputs.items()}


def decode_inputs(texts: Mapping[str, str]) -> dict[str, bytes]:
    """The reverse of `encode_inputs`."""
    return {name: zlib.decompress(base64.b64decode(text)) for name, text in texts.items()}


def emitter(events: TextIO) -> Emit:
    def emit(event: str, **fields: Any) -> None:
        events.write(json.dumps({"event": event, **fields}) + "\n")
        events.flush()

    return emit


class Listener(io.TextIOBase):
    """Standard output of the driver: Ray writes the runs' output here; our own lines in it become events."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(line)
        return len(text)

    def _take(self, line: str) -> None:
        _, found, payload = line.partition(MARKER)
        if found and (message := _own_message(payload)):
            self._emit(**message)
            return
        said = _RAY_PREFIX.sub("", _ANSI.sub("", line)).rstrip()
        if said:
            self._emit("log", line=said)


def _own_message(payload: str) -> dict[str, Any] | None:
    """What we said in a run; None for a line of the run's own that happens to contain the marker."""
    try:
        message = json.loads(_ANSI.sub("", payload))
    except ValueError:
        return None
    return message if isinstance(message, dict) and {"event", "run"} <= message.keys() else None


def inventory_name(
    one: Mapping[str, Any], ray_nodes: list[dict[str, Any]], expected: list[dict[str, str]]
) -> str:
    """The inventory's name of a node of Ray's, else what the node calls itself."""
    own = {one["name"], one["hostname"], one["address"]}
    named = [node["name"] for node in expected if own & {node["name"], node["address"]}]
    if not named and len(ray_nodes) == len(expected) == 1:  # `localhost` is no address Ray would know
        named = [expected[0]["name"]]
    return str(named[0] if named else one["hostname"])


def absent(expected: list[dict[str, str]], present: set[str]) -> list[str]:
    """One sentence per node of the inventory that did not take part."""
    return [
        f"{node['name']}: in the inventory, but not in the cluster's Ray. See: raytools doctor"
        for node in expected
        if node["name"] not in present
    ]


def become_driver(node: Mapping[str, Any]) -> None:
    """This process from now on: Ray's user, because its workers write beside what this process writes."""
    os.environ.update(driver.become_driver(node))


class connected:  # noqa: N801 - used as a function
    """A Ray driver on the cluster; leaving it ends what it started.

    Args:
        node: the plan of this node; this process has become its driver.
    """

    def __init__(self, node: Mapping[str, Any]) -> None:
        self._node = node

    def __enter__(self) -> Any:
        # The cluster's variables decide how runs behave; Ray and the runs read them when they start.
        told = driver.variables(self._node, sys.prefix)
        os.environ.update({name: told[name] for name in told.keys() - set(driver.PREPENDED)})
        os.environ["RAY_DEDUP_LOGS"] = "0"  # nodes say the same lines; each is one node's progress
        os.environ["RAY_COLOR_PREFIX"] = "0"
        import ray

        ray.init(address=self._node["ray"]["gcs_address"], log_to_driver=True, logging_level="ERROR")
        signal.signal(signal.SIGTERM, cancel_on_signal)  # after ray.init, which sets its own
        signal.signal(signal.SIGINT, cancel_on_signal)
        return ray

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()


def cancel_on_signal(_number: int, _frame: object) -> None:
    """A handler. While Ray waits in its own code, it lets this exception out, and of others a SystemError."""
    raise KeyboardInterrupt


def shared_dir(node: Mapping[str, Any]) -> Path | None:
    """Where this node's runs may write for all nodes to see; None where each has storage of its own."""
    storage = node.get("storage") or {}
    if storage.get("type", "local") == "local":
        return None
    return Path(storage["path"], "results")


def new_results_dir(node: Mapping[str, Any], workload: str) -> Path:
    """A new directory below the storage: `results/<workload>/<time>-<random>`.

    Raises:
        RaytoolsError: it cannot be made; by whom, and what to do.
    """
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path = Path(node["storage"]["path"], "results", workload, f"{stamp}-{secrets.token_hex(2)}")
    try:
        path.mkdir(parents=True)
    except OSError as error:
        user = pwd.getpwuid(os.getuid()).pw_name
        raise RaytoolsError(
            f"{path} cannot be made by {user}: {error.strerror}",
            expected="a storage that Ray's user may write to",
            fix=f"On this node: chown -R {user} {path.parents[1]}, and see: raytools doctor --only RT5xx",
        ) from error
    return path
