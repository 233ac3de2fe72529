"""What Ray was started with, and `<root>/ray.state.json`, which remembers it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytools.node.ray_failure import RayServiceError
from raytools.node.ray_process import ProcessId
from raytools.node.ray_temp_dir import name_of

NOT_SEEN_BY_RAY = ("physical", "declared", "runs", "storage", "doctor")
_FILE = "ray.state.json"


@dataclass(frozen=True)
class State:
    """The Ray that was started from a root, and with what."""

    pid: int
    start_time_ticks: int
    session: str | None
    digest: str
    started_with: dict[str, Any]
    started_at: str
    raylet_pid: int | None = None
    raylet_start_time_ticks: int | None = None

    @property
    def main(self) -> ProcessId:
        """`ray start --block`."""
        return ProcessId(self.pid, self.start_time_ticks)

    @property
    def raylet(self) -> ProcessId | None:
        """None while Ray is starting."""
        if self.raylet_pid is None or self.raylet_start_time_ticks is None:
            return None
        return ProcessId(self.raylet_pid, self.raylet_start_time_ticks)

    @property
    def temp_dir(self) -> str:
        """Ray's temp dir of that time."""
        return str(self.started_with["temp_dir"])

    def with_raylet(self, raylet: ProcessId) -> State:
        """The same once Ray is up."""
        return dataclasses.replace(
            self, raylet_pid=raylet.pid, raylet_start_time_ticks=raylet.start_time_ticks
        )


def read_node(path: Path) -> dict[str, Any]:
    """The plan of this node.

    Raises:
        RayServiceError: it is missing or not a plan.
    """
    try:
        node = json.loads(path.read_text())
    except FileNotFoundError:
        raise RayServiceError(
            f"{path} does not exist", fix="Write it: ansible-playbook playbooks/node.yml"
        ) from None
    except ValueError as error:
        raise RayServiceError(f"{path} is not JSON ({error})") from None
    if not isinstance(node, dict) or node.get("schema") != "raytools.node/1":
        raise RayServiceError(f"{path} is not a plan", expected='"schema": "raytools.node/1"')
    return node


def seen_by_ray(node: Mapping[str, Any]) -> dict[str, Any]:
    """The part of node.json that Ray was started with, and the token's hash. A change here means a restart.

    What was measured or declared, and what is read anew for every run or check, does not end running work.

    Raises:
        RayServiceError: token authentication without a token.
    """
    seen = {key: value for key, value in node.items() if key not in NOT_SEEN_BY_RAY}
    if node["ray"]["auth"] == "token":
        seen["token_sha256"] = hashlib.sha256(_read_token(Path(node["ray"]["token_path"]))).hexdigest()
    return seen


def digest(seen: Mapping[str, Any]) -> str:
    """Names what Ray was started with."""
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _read_token(path: Path) -> bytes:
    try:
        token = path.read_bytes().strip()
    except FileNotFoundError:
        token = b""
    except PermissionError:
        raise RayServiceError(f"{path} may not be read by user {name_of(os.geteuid())}") from None
    if not token:
        raise RayServiceError(
            f"there is no token in {path} and ray.auth is `token`",
            fix="Make one: ansible-playbook playbooks/ray.yml",
        )
    return token


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, as dotted paths: `ray.env.OMP_WAIT_POLICY`."""
    before, after = _flat(old), _flat(new)
    keys = before.keys() | after.keys()
    return sorted(key for key in keys if before.get(key, ...) != after.get(key, ...))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{path}.{key}" if path else str(key))
    return flat


def reason_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What changed, in a few words: `ray.env.OMP_WAIT_POLICY changed`."""
    keys = ["the token" if key == "token_sha256" else key for key in changes(old, new)]
    rest = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{', '.join(keys[:3])}{rest} changed"


def read_state(root: Path) -> State | None:
    """The Ray that was started from this root; None when none was, or it was stopped.

    Raises:
        RayServiceError: the file cannot be used.
    """
    path = root / _FILE
    try:
        return State(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except PermissionError:
        owner = name_of(path.stat().st_uid)
        raise RayServiceError(
            f"{path} may not be read by user {name_of(os.geteuid())}",
            fix=f"Run this as {owner}, who started Ray.",
        ) from None
    except (ValueError, TypeError) as error:
        raise RayServiceError(
            f"{path} cannot be used ({error})", fix=f"Remove it (rm {path}), then stop what runs: make stop"
        ) from None


def write_state(root: Path, state: State) -> None:
    """Replaces the file in one step, readable by its owner only."""
    path = root / _FILE
    new = path.with_suffix(".new")
    new.touch(0o600)
    new.write_text(json.dumps(dataclasses.asdict(state), indent=1) + "\n")
    new.replace(path)


def forget(root: Path) -> None:
    """Nothing runs any more."""
    (root / _FILE).unlink(missing_ok=True)
