"""For all tiers: the signals of whoever started the tests are not the tests' subject."""

from __future__ import annotations

import contextlib
import signal


def pytest_configure() -> None:
    _signals_as_usual()
    _no_deadlines()


def _no_deadlines() -> None:
    """An example that takes long says that the machine is busy, not that the property is wrong."""
    with contextlib.suppress(ImportError):  # the labs' machines have none of these tests
        from hypothesis import HealthCheck, settings

        settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("here")


def _signals_as_usual() -> None:
    """A CI runner or nohup(1) may ignore some, and what is ignored is inherited by all that tests start."""
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
