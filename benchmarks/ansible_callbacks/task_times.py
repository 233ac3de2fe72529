"""A callback for ansible-playbook: when each play, task and result came, as lines of JSON.

For benchmarks/bringup_profile.py. Written to the file that RAYTOOLS_TASK_TIMES names.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase  # type: ignore[import-untyped]

DOCUMENTATION = """
name: task_times
type: aggregate
short_description: times of plays, tasks and results
description: Lines of JSON in the file that the environment variable RAYTOOLS_TASK_TIMES names.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Only writes down; sums are made by whoever reads."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_times"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._file = open(os.environ["RAYTOOLS_TASK_TIMES"], "a", buffering=1)  # noqa: SIM115, PTH123

    def _write(self, kind: str, name: str, **more: Any) -> None:
        self._file.write(json.dumps({"kind": kind, "name": name, "at": time.time(), **more}) + "\n")

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._write("play", play.get_name())

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002
        self._write("task", task.get_name(), task=task._uuid)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        self._write("include", f"included: {included_file._filename}")

    def v2_playbook_on_stats(self, stats: Any) -> None:  # noqa: ARG002
        self._write("end", "recap and exit")

    def v2_runner_on_ok(self, result: Any) -> None:
        self._result(result, skipped=False)

    def v2_runner_on_failed(self, result: Any, **_: Any) -> None:
        self._result(result, skipped=False)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._result(result, skipped=True)

    def _result(self, result: Any, *, skipped: bool) -> None:
        host = getattr(result, "host", None) or result._host
        task = getattr(result, "task", None) or result._task
        self._write("result", host.get_name(), task=task._uuid, skipped=skipped)
