"""What all ways to a run share: start a supervisor, pass signals on, get the record."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from raytools.node import link
from raytools.node.link import Link, readable
from raytools.node.plain import as_dict
from raytools.node.record import LOST, Record, utc_now
from raytools.node.request import RunRequest
from raytools.node.standby import Standby, other_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SLICE_S = 0.05  # Ray delivers a cancellation only between two Python instructions, never into a wait

Listener = Callable[["dict[str, Any]"], None]


class SupervisedRun:
    """A run in the hands of its supervisor. Losing this object's link ends the run."""

    def __init__(self, request: RunRequest, run_id: str, link: Link, child: int | None = None) -> None:
        self.request = request
        self._child = child  # the supervisor, if it is one of ours
        self.run_id = run_id
        self.link = link
        self.record: Record | None = None

    def wait(self, on_event: Listener | None = None) -> Record:
        """Waits for the end, in slices short enough for Ray to interrupt; anything raised ends the run.

        Args:
            on_event: gets `started`, `stopped`, `notice`, `busy` and `crashed` messages as they come.
        """
        try:
            while not self.link.closed:
                self.take(self.link.receive(_SLICE_S), on_event)
        except BaseException as error:
            self.link.send(end=f"its requester gave it up ({type(error).__name__})")
            raise
        finally:
            self.close()
        return self.result()

    def close(self) -> None:
        """Ends the run, if it has not, and collects the supervisor."""
        self.link.close()
        if self._child is not None:
            with contextlib.suppress(ChildProcessError):  # the caller collects all of its children itself
                os.waitpid(self._child, 0)
            self._child = None

    def take(self, messages: list[dict[str, Any]], on_event: Listener | None) -> None:
        """Handles messages of the supervisor's."""
        for message in messages:
            if message["event"] == "finished":
                self.record = Record.from_json(message["record"])
            elif on_event is not None:
                on_event(message)

    def result(self) -> Record:
        """The record, once the link is closed."""
        return self.record or self._lost()

    def wait_for_more(self, descriptor: int) -> bool:
        """Sleeps until the supervisor says something or `descriptor` is readable; True for the latter."""
        return descriptor in readable([self.link.fileno(), descriptor], None)

    def signal(self, number: int, group: bool = False, delivered: bool = False) -> None:
        """Passes a signal to the run's main process, or to its process group as a terminal does.

        Args:
            number: the signal.
            group: to everything in the main process's group.
            delivered: the terminal has done that already; it only counts.
        """
        self.link.send(signal=number, group=group, delivered=delivered)

    def told(self) -> None:
        """Answers `why`, which is asked where a terminal is shared: every signal that came is passed on."""
        self.link.send(told=True)

    def _lost(self) -> Record:
        return Record(
            run_id=self.run_id,
            command=self.request.command,
            outcome=LOST,
            attempt=self.request.attempt,
            finished_at=utc_now(),
            message="the supervisor vanished; the next run on this node sweeps what it left",
        )


def start(request: RunRequest, stdio: tuple[int, int, int] = (0, 1, 2)) -> SupervisedRun:
    """Starts a supervisor by forking: quick, but only for processes without other threads.

    Args:
        request: what to run.
        stdio: descriptors that become the command's 0, 1 and 2; it gets no others.
    """
    from raytools.node import supervisor

    ours, theirs = link.pair()
    run_id = new_run_id()

    def body() -> None:
        ours.close()
        for descriptor in other_descriptors({*stdio, *theirs.descriptors()}):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        supervisor.serve(request, run_id, theirs, stdio, [])

    pid = supervisor.fork_off(body)
    theirs.close()
    return SupervisedRun(request, run_id, ours, pid)


def start_standby(request: RunRequest, standby: Standby) -> SupervisedRun:
    """Starts a run of this process's standard streams with a supervisor that waits for it."""
    run_id = new_run_id()
    return SupervisedRun(request, run_id, standby.hand_over(request, run_id), standby.pid)


def start_by_exec(request: RunRequest, stdio: tuple[int, int, int] = (0, 1, 2)) -> SupervisedRun:
    """Starts a supervisor as a new program: for processes with threads (Ray workers), which cannot fork."""
    ours, theirs = link.pair()
    try:
        return _start_by_exec(request, stdio, ours, theirs)
    except BaseException:  # a cancellation may come at any point; an open link would keep the run
        ours.close()
        raise
    finally:
        theirs.close()


def _start_by_exec(
    request: RunRequest, stdio: tuple[int, int, int], ours: Link, theirs: Link
) -> SupervisedRun:
    import subprocess

    package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    search_path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "raytools.node",
            "supervise",
            "--link",
            ",".join(map(str, theirs.descriptors())),
        ],
        pass_fds=theirs.descriptors(),
        env={**os.environ, "PYTHONPATH": search_path},
        stdin=stdio[0],
        stdout=stdio[1],
        stderr=stdio[2],
        check=True,
    )
    run_id = new_run_id()
    ours.send(request=as_dict(request), run_id=run_id)
    return SupervisedRun(request, run_id, ours)


def new_run_id() -> str:
    """Twelve random hexadecimal digits."""
    return os.urandom(6).hex()
