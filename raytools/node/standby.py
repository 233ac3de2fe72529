"""A supervisor that gets ready while `raytools run` still reads its arguments.

Both need ten milliseconds of imports, and there is more than one CPU. Whatever is imported here is imported
before the two part.
"""

from __future__ import annotations

import contextlib
import os

from raytools.node import link
from raytools.node.link import Link
from raytools.node.plain import as_dict
from raytools.node.request import RunRequest


class Standby:
    """A forked process that waits for one request; without any, it goes with its requester."""

    def __init__(self) -> None:
        _open_standard_streams()
        foreign = other_descriptors(set())
        self._link, theirs = link.pair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._link.close()
                _stand_by(theirs, foreign)
            finally:
                os._exit(70)  # EX_SOFTWARE: it ends by itself
        theirs.close()

    def hand_over(self, request: RunRequest, run_id: str) -> Link:
        """Gives it its request; returns the link to it."""
        self._link.send(request=as_dict(request), run_id=run_id)
        return self._link


def _stand_by(requester: Link, foreign: list[int]) -> None:
    from raytools.node import supervisor

    message = requester.receive_one()
    if message is not None:
        request = RunRequest(**message["request"])
        supervisor.leave_requester(own_session=request.terminal_group is None)
        supervisor.serve(request, message["run_id"], requester, (0, 1, 2), foreign)
    os._exit(0)


def _open_standard_streams() -> None:
    """A closed one would be the number of a pipe of ours next, and then the command's."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


def other_descriptors(known: set[int]) -> list[int]:
    """The open descriptors of this process but the standard ones and those known."""
    listed = set(map(int, os.listdir("/proc/self/fd"))) - known - {0, 1, 2}
    found = []
    for number in listed:
        with contextlib.suppress(OSError):  # the one that listed them is closed by now
            os.fstat(number)
            found.append(number)
    return found
