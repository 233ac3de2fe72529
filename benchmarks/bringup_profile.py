"""Where the time of a playbook goes: one more run with ansible_callbacks/task_times.py, as a table.

ansible-core itself has no such callback (profile_tasks is in the collection ansible.posix). A task is charged
with the time until the next one begins: its slowest host, and Ansible's own work for it, skipping included.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.bringup_site import Site

_CALLBACKS = Path(__file__).resolve().with_name("ansible_callbacks")
_SHOWN = 18  # tasks


@dataclass(frozen=True)
class Step:
    """One event of the run and the time until the next one."""

    kind: str  # play, task, include or end
    name: str
    seconds: float
    ran: int  # hosts on which the task did something
    skipped: int


def of_play(site: Site, playbook: str, title: str) -> str:
    """Runs it once more, which does not count, and says where the time went.

    Raises:
        BenchmarkError: it failed.
    """
    path = site.cluster.directory / "task-times.jsonl"
    path.unlink(missing_ok=True)
    variables = {
        "ANSIBLE_CALLBACK_PLUGINS": str(_CALLBACKS),
        "ANSIBLE_CALLBACKS_ENABLED": "task_times",
        "RAYTOOLS_TASK_TIMES": str(path),
    }
    began = time.time()
    done = site.play(playbook, variables=variables)
    return report(read_steps(path.read_text(), began, began + done.wall_s), f"{playbook}.yml, {title}")


def read_steps(text: str, began: float, ended: float) -> list[Step]:
    """From the callback's lines to steps; the first is Ansible's own start."""
    events: list[dict[str, Any]] = [{"kind": "start", "name": "start, inventory, playbooks", "at": began}]
    results: dict[str, dict[str, int]] = defaultdict(lambda: {"ran": 0, "skipped": 0})
    for line in text.splitlines():
        event = json.loads(line)
        if event["kind"] == "result":
            results[event["task"]]["skipped" if event["skipped"] else "ran"] += 1
        else:
            events.append(event)
    events.append({"kind": "exit", "name": "", "at": ended})
    return [
        Step(one["kind"], one["name"], other["at"] - one["at"], **results[one.get("task", "")])
        for one, other in pairwise(events)
    ]


def report(steps: list[Step], title: str) -> str:
    """Plays in their order, then the tasks that took longest."""
    plays: dict[str, list[Step]] = {}
    current = plays.setdefault("(before the first play)", [])
    for step in steps:
        if step.kind == "play":
            number = sum(name.split(" #")[0] == step.name for name in plays)
            current = plays.setdefault(f"{step.name} #{number + 1}" if number else step.name, [])
        if step.kind == "end":
            current = plays.setdefault("(after the last task)", [])
        current.append(step)
    tasks = [step for step in steps if step.kind == "task"]
    ran = [step for step in tasks if step.ran]
    idle = [step for step in tasks if not step.ran]
    lines = [f"{title}: {sum(step.seconds for step in steps):.1f} s, of which"]
    lines += [
        f"  {sum(step.seconds for step in part):6.2f} s  {name} ({sum(s.kind == 'task' for s in part)} tasks)"
        for name, part in plays.items()
    ]
    lines.append(
        f"  {len(ran)} tasks that ran took {sum(s.seconds for s in ran):.2f} s, "
        f"{len(idle)} that were skipped everywhere {sum(s.seconds for s in idle):.2f} s"
    )
    slowest = sorted(steps, key=lambda step: -step.seconds)[:_SHOWN]
    lines += [f"  {s.seconds:6.2f} s  {s.name or s.kind} ({s.ran} ran, {s.skipped} skipped)" for s in slowest]
    return "\n".join(lines)
