"""What a run asks for, and what it is promised: the request meets the node's plan."""

from __future__ import annotations

import os
from collections.abc import Sequence

from raytools.errors import RaytoolsError, RefusedError
from raytools.node.cgroup_tree import read_text
from raytools.node.plain import Plain, field
from raytools.node.plan_file import Node, Slot
from raytools.node.record import Limits
from raytools.units import format_size

STRICT, BEST_EFFORT = "strict", "best-effort"
ALL_SLOTS = "all"


class RunRequest(Plain):
    """One run as its requester wants it; None means what the slot or the plan gives.

    `environment` is the requester's own, complete; `variables` go on top of what raytools sets.
    """

    command: list[str]
    cwd: str
    environment: dict[str, str]
    variables: dict[str, str] = field(factory=dict)
    slot: int | str | None = None  # None: the first one that is free; "all": all of them as one
    cpus: int | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    time_s: float | None = None
    grace_s: float | None = None
    wait_s: float = 0.0
    enforce: str = STRICT
    attempt: int = 1
    record_path: str | None = None
    node_file: str | None = None
    scratch: str | None = None  # the requester's directory for this run, removed if it vanishes
    raylet_pid: int | None = None  # of a request that came through Ray: without it the run is lost
    # the requester's process group, if the command is to share its terminal: keys, job control, window size
    terminal_group: int | None = None
    ignores_hangup: bool = False  # the requester does, as under nohup(1), whose point is to be inherited


def record_target(path: str) -> str:
    """Where a record really goes, links followed.

    Raises:
        RaytoolsError: it would replace something that is not a file, such as /dev/null.
    """
    target = os.path.realpath(path)
    if os.path.lexists(target) and not os.path.isfile(target):
        raise RaytoolsError(f"record: {path} is no regular file", expected="a file, or a new name")
    if not os.path.isdir(os.path.dirname(target)):
        raise RaytoolsError(f"record: {os.path.dirname(target)} is no directory", expected="an existing one")
    return target


def start_directory(path: str | None) -> str:
    """Where the command starts: here, by default.

    Raises:
        RaytoolsError: it is no directory, or this one was removed.
    """
    try:
        directory = os.path.abspath(path) if path else os.getcwd()
    except FileNotFoundError:
        raise RaytoolsError("the current directory is gone", fix="cd somewhere else, or name one") from None
    if not os.path.isdir(directory):
        raise RaytoolsError(f"cwd: {directory} is no directory", expected="an existing directory")
    return directory


def candidate_slots(request: RunRequest, node: Node) -> Sequence[Slot]:
    """The slots this request may run in, in the order to try them.

    Raises:
        RefusedError: there is no such slot, or it asks for more than any of them holds.
    """
    if request.slot == ALL_SLOTS:
        slots = [node.whole]
    elif request.slot is not None:
        slots = [slot for slot in node.slots if slot.index == request.slot]
        if not slots:
            raise RefusedError(
                f"found --slot {request.slot}",
                expected=f"one of {[slot.index for slot in node.slots]} on {node.name}",
                fix="See them with: raytools slots",
            )
    else:
        slots = list(node.slots)
    fitting = [slot for slot in slots if not _excess(request, slot)]
    if not fitting:
        raise RefusedError(
            f"more than a slot of {node.name} holds: {'; '.join(_excess(request, slots[0]))}",
            expected="at most that",
            fix="Ask for less, take all slots with --slot all, or make slots larger (slots.per_node)",
        )
    return fitting


def _excess(request: RunRequest, slot: Slot) -> list[str]:
    found = []
    name = f"slot {slot.index}" if slot.index is not None else "all slots together"
    if request.cpus is not None and request.cpus > len(slot.cpus):
        found.append(f"{request.cpus} CPUs asked, {len(slot.cpus)} in {name}")
    if request.memory_bytes is not None and request.memory_bytes > slot.memory_bytes:
        asked, held = format_size(request.memory_bytes), format_size(slot.memory_bytes)
        found.append(f"{asked} of memory asked, {held} in {name}")
    if request.gpus is not None and request.gpus > len(slot.gpus):
        found.append(f"{request.gpus} GPUs asked, {len(slot.gpus)} in {name}")
    return found


def promised_limits(request: RunRequest, slot: Slot, node: Node) -> Limits:
    """The limits of this request in this slot. Less than the slot narrows the run, not the claim."""
    defaults = node.run_defaults
    cpu_set = list(slot.cpus) if request.cpus is None else _narrowed(slot.cpus, request.cpus)
    time_s = request.time_s if request.time_s is not None else defaults.get("time_s")
    grace_s = request.grace_s if request.grace_s is not None else defaults.get("grace_s", 0.0)
    return Limits(
        cpus=len(cpu_set),
        cpu_set=cpu_set,
        memory_bytes=request.memory_bytes if request.memory_bytes is not None else slot.memory_bytes,
        time_s=time_s,
        grace_s=grace_s,
        gpus=slot.gpus[: request.gpus] if request.gpus is not None else list(slot.gpus),
        pids=max(4096, 512 * len(cpu_set)),  # threads count, and Ray's processes have hundreds
    )


def _narrowed(cpus: list[int], count: int) -> list[int]:
    """Some of a slot's CPUs, whole cores where the count allows."""
    if count >= len(cpus):
        return list(cpus)
    from raytools.node.slots import assign_cpus  # 4 ms, and most runs take the whole slot

    first_of: dict[str, int] = {}
    threads = [
        {"cpu": cpu, "core": first_of.setdefault(_siblings(cpu), cpu), "socket": 0, "numa": 0} for cpu in cpus
    ]
    return assign_cpus(threads, cpus, 1, count)[0]


def _siblings(cpu: int) -> str:
    topology = f"/sys/devices/system/cpu/cpu{cpu}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is what kernels before 5.3 have
        if text := read_text(f"{topology}/{name}"):
            return text
    return str(cpu)
