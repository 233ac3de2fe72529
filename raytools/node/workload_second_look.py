"""The second look of a workload of scope `slot`: a run looks at what a run on another node has left.

What it is for is told by `raytools.workloads.base.second_look_of`. Ray is imported inside functions only.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raytools.node.record import write_json
from raytools.node.workload_link import Emit
from raytools.workloads.base import WorkloadRun, end_of, run_name

_POLL_S = 0.2
_LOOK_AT_NODES_S = 3.0


def directory_name(number: int) -> str:
    """Where the run of that number leaves what it hands over, below the smoke's directory."""
    return f"left-{number}"


def lookers(hosts: Sequence[str]) -> list[int]:
    """For each run the run that looks at what it has left: every run looks once, on another host if possible.

    Args:
        hosts: where each run was; those of one host stand together.
    """
    step = max((hosts.count(host) for host in hosts), default=0)
    if step == len(hosts):  # one host: the next slot
        step = 1
    return [(index + step) % len(hosts) for index in range(len(hosts))]


def look_again(
    ray: Any,
    runs: Sequence[WorkloadRun],
    start: Callable[[int, int], Any],
    outcome: Callable[[Any], WorkloadRun],
    dead: Callable[[Sequence[Any]], dict[Any, WorkloadRun]],
    results: Path,
) -> tuple[list[WorkloadRun], list[str]]:
    """Has every run that ended `ok` looked at.

    Args:
        runs: all first runs, in the order of their targets.
        start: starts the look at the run of the first number in the place of the second; returns a reference.
        outcome: what became of such a reference.
        dead: which of such references are on nodes that are dead by now, and what became of them.
        results: the smoke's directory; the looks' records go there.

    Returns:
        The runs with what was found in their metrics, and one sentence for each look that did not end `ok`.
    """
    whole = [number for number, run in enumerate(runs) if run.record.get("outcome") == "ok"]
    places = lookers([str(runs[number].record["host"]["name"]) for number in whole])
    pairs = [(owner, whole[place]) for owner, place in zip(whole, places, strict=True)]
    looks = {start(*pair): pair for pair in pairs}
    merged, troubles = list(runs), []
    left, looked = list(looks), time.monotonic()
    while left:
        done, left = ray.wait(left, num_returns=1, timeout=_POLL_S)  # short: a signal is answered at once
        ended = {reference: outcome(reference) for reference in done}
        if time.monotonic() - looked > _LOOK_AT_NODES_S:
            ended |= dead(left)
            left, looked = [one for one in left if one not in ended], time.monotonic()
        for reference, look in ended.items():
            owner, looker = looks[reference]
            write_json(results / f"again-{owner}.json", {"record": look.record, "metrics": look.metrics})
            if look.record.get("outcome") == "ok":
                merged[owner] = WorkloadRun(runs[owner].record, {**runs[owner].metrics, **look.metrics})
            else:
                # by the names of the first runs: one that was refused does not know where it would have been
                had_left = f"the look at what {run_name(runs[owner].record)} had left"
                troubles.append(f"{run_name(runs[looker].record)}: {had_left}: {end_of(look.record)}")
    return merged, troubles


def remove_left(results: Path, count: int, emit: Emit) -> None:
    """Removes what was handed over; what cannot be removed is told."""
    for number in range(count):
        directory = results / directory_name(number)
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            emit("log", line=f"{directory} cannot be removed: {error.strerror}")
