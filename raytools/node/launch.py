"""What `raytools run` and Ray tasks share: start a supervisor, pass signals on, get the record."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytools.node.link import Link
from raytools.node.record import LOST, Record, utc_now
from raytools.node.request import RunRequest

_SLICE_S = 0.05  # Ray delivers a cancellation only between two Python instructions, never into a wait

Listener = Callable[[dict[str, Any]], None]


class SupervisedRun:
    """A run in the hands of its supervisor. Losing this object's link ends the run."""

    def __init__(self, request: RunRequest, run_id: str, link: Link) -> None:
        self.request = request
        self.run_id = run_id
        self.link = link
        self.record: Record | None = None

    def wait(self, on_event: Listener | None = None) -> Record:
        """Waits for the end, in slices short enough for Ray to interrupt; anything raised ends the run.

        Args:
            on_event: gets `started`, `notice` and `crashed` messages as they come.
        """
        try:
            while not self.link.closed:
                for message in self.link.receive(_SLICE_S):
                    if message["event"] == "finished":
                        self.record = Record.from_json(message["record"])
                    elif on_event is not None:
                        on_event(message)
        finally:
            self.link.close()
        return self.record or self._lost()

    def signal(self, number: int, group: bool = False) -> None:
        """Passes a signal to the run's main process, or to its process group as a terminal does."""
        self.link.send(signal=number, group=group)

    def _lost(self) -> Record:
        return Record(
            run_id=self.run_id,
            command=self.request.command,
            outcome=LOST,
            attempt=self.request.attempt,
            finished_at=utc_now(),
            message="the supervisor vanished; the next run on this node sweeps what it left",
        )


def start(request: RunRequest) -> SupervisedRun:
    """Starts a supervisor by forking: quick, but only for single-threaded requesters (`raytools run`)."""
    from raytools.node import supervisor

    ours, theirs = socket.socketpair()

    def body() -> None:
        ours.close()
        supervisor.serve(theirs)

    supervisor.detach(body)
    theirs.close()
    return _hand_over(request, ours)


def start_by_exec(request: RunRequest) -> SupervisedRun:
    """Starts a supervisor as a new program: for requesters with threads (Ray workers), which cannot fork."""
    ours, theirs = socket.socketpair()
    package_parent = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    with theirs:
        subprocess.run(
            [sys.executable, "-m", "raytools.node", "supervise", "--link", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": search_path},
            check=True,
        )
    return _hand_over(request, ours)


def _hand_over(request: RunRequest, end: socket.socket) -> SupervisedRun:
    run_id = secrets.token_hex(6)
    link = Link(end)
    link.send(request=request.to_json(), run_id=run_id)
    return SupervisedRun(request, run_id, link)
