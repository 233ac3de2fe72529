"""A run of a workload of scope `slot`: the function that `@raytools.remote` starts under limits."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raytools.node.plan_file import find_node_file, load_node
from raytools.node.workload_link import MARKER, shared_dir

if TYPE_CHECKING:
    from raytools.workloads.base import SlotWorkload


def run_here(
    name: str,
    settings: dict[str, Any],
    inputs: dict[str, bytes],
    run: str,
    method: str,
    hand_over: str | None,
) -> dict[str, Any]:
    """The run itself, in the slot: what `@raytools.remote` starts under limits.

    Args:
        method: `run` or `look_again`.
        hand_over: below the shared results, None without.
    """
    from raytools.workloads import base

    def say(event: str, **fields: Any) -> None:
        print(MARKER + json.dumps({"event": event, "run": run, **fields}), flush=True)

    workload = cast("SlotWorkload", base.find(name))
    say("started")
    cpus, memory_bytes, gpus = _promised()
    node = load_node(find_node_file())
    shared = shared_dir(node.data)
    with tempfile.TemporaryDirectory(prefix="w") as scratch:
        context = base.SlotContext(
            cpus=cpus,
            memory_bytes=memory_bytes,
            scratch_dir=Path(scratch),
            inputs=inputs,
            report=lambda line: say("progress", line=line, step=True),
            detail=lambda line: say("progress", line=line, step=False),
            gpus=gpus,
            shared_dir=shared,
            node=node.name,
            hand_over_dir=shared / hand_over if shared and hand_over else None,
        )
        does: Callable[..., dict[str, Any]] = getattr(workload, method)
        return does(base.make_parameters(workload, settings), context)


def _promised() -> tuple[int, int, int]:
    """CPUs, memory and GPUs of the slot, as raytools.node.inside tells every run."""
    override = json.loads(os.environ["RAY_OVERRIDE_RESOURCES"])
    memory_bytes = int(override["memory"]) + int(override["object_store_memory"])
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    return int(os.environ["AG_CPU_COUNT"]), memory_bytes, len(gpus)
