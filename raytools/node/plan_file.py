"""Reads the plan of this node (`node.json`) and makes a default one where nothing is provisioned."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError

DEFAULT_ROOT = Path("/opt/raytools")
_DEFAULT_RESERVED_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Slot:
    """An exclusive share of the node; `cpus` are kernel CPU numbers, `gpus` device indices."""

    index: int
    cpus: list[int]
    memory_bytes: int
    gpus: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Node:
    """What runs need to know of the plan. `data` is the whole file, {} on a node without one."""

    name: str
    slots: list[Slot]
    run_memory_bytes: int  # what all runs together may hold
    data: dict[str, Any]

    @property
    def environment_id(self) -> str | None:
        return (self.data.get("environment") or {}).get("id")

    @property
    def run_defaults(self) -> dict[str, Any]:
        return self.data.get("runs") or {}

    @property
    def shared_variables(self) -> dict[str, str]:
        """Variables that are the same in every process of the cluster, without Ray's own flags."""
        variables = (self.data.get("ray") or {}).get("env") or {}
        return {name: value for name, value in variables.items() if not name.startswith("RAY_")}


def find_node_file(config: str | None = None) -> Path | None:
    """The node.json that applies here: RAYTOOLS_ROOT, `.raytools/` beside cluster.yaml, /opt/raytools."""
    if root := os.environ.get("RAYTOOLS_ROOT"):
        return Path(root) / "node.json"
    beside = Path(config).parent if config else Path.cwd()
    candidates = (beside / ".raytools" / "node.json", DEFAULT_ROOT / "node.json")
    return next((path for path in candidates if path.is_file()), None)


def load_node(path: Path | None) -> Node:
    """The node of a plan file, or one slot with the whole machine minus 2 GiB when `path` is None.

    Raises:
        RaytoolsError: the file is missing, unreadable, or no plan.
    """
    if path is None:
        return _whole_machine()
    try:
        data = json.loads(path.read_text())
        slots = [Slot(**slot) for slot in data["slots"]]
        return Node(data["name"], slots, sum(slot.memory_bytes for slot in slots), data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RaytoolsError(
            f"{path} cannot be used as a plan ({type(error).__name__}: {error})",
            expected="a raytools.node/1 file",
            fix="Write it again: ansible-playbook playbooks/node.yml",
        ) from error


def _whole_machine() -> Node:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory_bytes = max(total - _DEFAULT_RESERVED_BYTES, total // 2)
    return Node(
        socket.gethostname(), [Slot(0, sorted(os.sched_getaffinity(0)), memory_bytes)], memory_bytes, {}
    )
