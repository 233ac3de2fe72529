"""When a signal echoes the one before: timeout(1) sends to its child and then to the child's group."""

from __future__ import annotations

import signal

import pytest

from raytools.node.terminal import ForwardedSignals

TERM, INT, SENDER, ANOTHER = signal.SIGTERM, signal.SIGINT, 100, 101


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [50.0]
    monkeypatch.setattr("raytools.node.terminal.time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("first", "then", "is_echo"),
    [
        ((TERM, SENDER, False), (TERM, SENDER, True), True),  # timeout(1)
        ((TERM, SENDER, True), (TERM, SENDER, False), True),  # the group's was seen when the first was read
        ((TERM, SENDER, False), (TERM, SENDER, False), False),  # `kill PID` twice
        ((TERM, SENDER, True), (TERM, SENDER, True), False),  # `kill %1` twice
        ((TERM, SENDER, False), (TERM, ANOTHER, True), False),
        ((TERM, SENDER, False), (INT, SENDER, True), False),
    ],
)
def test_in_a_terminal_an_echo_is_what_reached_the_group_once_and_us_twice(
    clock: list[float], first: tuple[int, int, bool], then: tuple[int, int, bool], is_echo: bool
) -> None:
    signals = ForwardedSignals(in_terminal=True)
    signals._sentinel = object()  # type: ignore[assignment] # it has been asked: the third value
    assert not signals._is_echo(*first)
    clock[0] += 1.0  # a busy machine reads late
    assert signals._is_echo(*then) is is_echo
    clock[0] += 60.0
    assert not signals._is_echo(*first)


@pytest.mark.parametrize(("later_s", "is_echo"), [(0.001, True), (0.5, False)])
def test_without_a_terminal_an_echo_comes_at_once(clock: list[float], later_s: float, is_echo: bool) -> None:
    signals = ForwardedSignals(in_terminal=False)
    assert not signals._is_echo(TERM, SENDER, False)
    clock[0] += later_s
    assert signals._is_echo(TERM, SENDER, False) is is_echo
