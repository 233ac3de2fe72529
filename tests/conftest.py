"""For all tiers: the signals of whoever started the tests are not the tests' subject."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A CI runner or nohup(1) may ignore some, and what is ignored is inherited by all that tests start."""
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
