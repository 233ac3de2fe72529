"""Reads the plan of this node (`node.json`) and makes a default one where nothing is provisioned."""

from __future__ import annotations

import json
import os

from raytools.errors import RaytoolsError
from raytools.node.plain import Plain, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_ROOT = "/opt/raytools"
_DEFAULT_RESERVED_BYTES = 2 * 2**30


class Slot(Plain):
    """An exclusive share of the node; `cpus` are kernel CPU numbers, `gpus` device indices.

    `index` is None for all slots of the node taken together.
    """

    index: int | None
    cpus: list[int]
    memory_bytes: int
    gpus: list[int] = field(factory=list)


class Node(Plain):
    """What runs need to know of the plan. `data` is the whole file, {} on a node without one."""

    name: str
    slots: list[Slot]
    run_memory_bytes: int  # what all runs together may hold
    data: dict[str, Any]

    @property
    def environment_id(self) -> str | None:
        return (self.data.get("environment") or {}).get("id")

    @property
    def whole(self) -> Slot:
        """All slots as one."""
        return Slot(
            None,
            sorted(cpu for slot in self.slots for cpu in slot.cpus),
            self.run_memory_bytes,
            sorted(gpu for slot in self.slots for gpu in slot.gpus),
        )

    @property
    def records_directory(self) -> str | None:
        """Where runs that Ray started keep their records: in the storage, so that every node finds them."""
        path = (self.data.get("storage") or {}).get("path")
        return f"{path}/records" if path else None

    @property
    def run_defaults(self) -> dict[str, Any]:
        return self.data.get("runs") or {}

    @property
    def shared_variables(self) -> dict[str, str]:
        """Variables that are the same in every process of the cluster, without Ray's own flags."""
        variables = (self.data.get("ray") or {}).get("env") or {}
        return {name: value for name, value in variables.items() if not name.startswith("RAY_")}


def find_node_file(config: str | None = None) -> str | None:
    """The node.json that applies here: RAYTOOLS_ROOT, `.raytools/` beside cluster.yaml, /opt/raytools.

    Raises:
        RaytoolsError: `config` is named, but is not there.
    """
    if config and not os.path.isfile(config):
        raise RaytoolsError(f"found no file {config}", expected="cluster.yaml (-c)")
    if root := os.environ.get("RAYTOOLS_ROOT"):
        return f"{root}/node.json"
    beside = os.path.dirname(os.path.abspath(config)) if config else os.getcwd()
    candidates = (f"{beside}/.raytools/node.json", f"{DEFAULT_ROOT}/node.json")
    return next((path for path in candidates if os.path.isfile(path)), None)


def load_node(path: str | None) -> Node:
    """The node of a plan file, or one slot with the whole machine minus 2 GiB when `path` is None.

    Raises:
        RaytoolsError: the file is missing, unreadable, or no plan.
    """
    if path is None:
        return _whole_machine()
    try:
        with open(path) as file:
            data = json.load(file)
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
        os.uname().nodename, [Slot(0, sorted(os.sched_getaffinity(0)), memory_bytes)], memory_bytes, {}
    )
