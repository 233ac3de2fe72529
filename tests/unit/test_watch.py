"""Watching a run: what ends it, what it is then called, and how the last process goes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from raytools.node import cgroup, link
from raytools.node import watch as watch_module
from raytools.node.record import Limits
from raytools.node.watch import Watch
from tests.unit.fake_cgroup import FakeGroup

# ------------------------------------------------------------------------------------- emptying a group


def empty(group: FakeGroup, timeout_s: float = 1.0) -> tuple[int, int]:
    return cgroup.empty_group(group.processes, group.kill, timeout_s)


def test_an_empty_group_is_not_killed() -> None:
    group = FakeGroup()
    assert empty(group) == (0, 0)
    assert group.calls == []


def test_processes_are_killed_until_the_last_one_is_gone() -> None:
    group = FakeGroup({1: 1, 2: 3, 3: 2})
    assert empty(group) == (3, 0)
    assert group.calls == ["kill"] * 3


def test_a_process_born_during_the_kill_is_killed_too_and_not_counted_as_found() -> None:
    group = FakeGroup({1: 1})
    group.forks_at_kill = [12, 11]
    assert empty(group) == (1, 0)
    assert group.calls == ["kill"] * 3


def test_what_never_dies_is_reported_as_left_when_the_time_is_over() -> None:
    group = FakeGroup({1: 1, 2: None, 3: None})
    began = time.monotonic()
    assert empty(group, timeout_s=0.05) == (3, 2)
    assert 0.05 <= time.monotonic() - began < 0.5


# --------------------------------------------------------------------------------------------- watching


class FakeInit:
    """What `init` says of the command, through a real pipe; and a requester at a real link."""

    def __init__(self) -> None:
        self.events, self._says = os.pipe()

    def read_events(self) -> list[dict[str, Any]] | None:
        data = os.read(self.events, 4096)
        return [json.loads(line) for line in data.splitlines()] if data else None

    def says(self, **event: Any) -> None:
        os.write(self._says, json.dumps(event).encode() + b"\n")

    def dies(self) -> None:
        os.close(self._says)
        self._says = -1

    def close(self) -> None:
        for descriptor in (self.events, self._says):
            if descriptor >= 0:
                os.close(descriptor)


class Scene:
    """One watched run: a real process as its command, the rest invented."""

    def __init__(self, command: str) -> None:
        self.command = subprocess.Popen(
            ["sh", "-c", f"{command}"], start_new_session=True, stdout=subprocess.PIPE
        )
        self.init = FakeInit()
        self.requester, self.supervisor = link.pair()
        self.oom, self._oom_write = os.pipe()
        self.raylet_read, self.raylet_write = os.pipe()  # readable at its end, as a pidfd
        self.group = FakeGroup()

    def watch(
        self,
        time_s: float | None = None,
        grace_s: float = 0.0,
        tells_oom: bool = False,
        raylet: bool = False,
        shares_terminal: bool = False,
    ) -> Watch:
        if tells_oom:
            self.group._oom_descriptor = self.oom
        limits = Limits(time_s=time_s, grace_s=grace_s, memory_bytes=1 << 30)
        pidfd = self.raylet_read if raylet else None
        arguments: tuple[Any, ...] = (self.group, self.init, self.command.pid, self.supervisor, limits, pidfd)
        return Watch(*arguments, shares_terminal)

    def until_end(self, watch: Watch) -> Watch:
        began = time.monotonic()
        watch.until_end(began)
        assert time.monotonic() - began < 10
        return watch

    def memory_limit_kills(self, count: int | None = 1) -> None:
        self.group.killed_by_memory = count
        os.write(self._oom_write, b"12345678")

    def raylet_dies(self) -> None:
        os.close(self.raylet_write)
        self.raylet_write = -1

    def command_ends(self, status: int) -> None:
        self.init.says(status=status)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.command.pid, signal.SIGKILL)
        self.command.communicate()
        self.init.close()
        self.requester.close()
        self.supervisor.close()
        for descriptor in (self.oom, self._oom_write, self.raylet_read, self.raylet_write):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_LAST_SAMPLE_S", 0.01)
    monkeypatch.setattr(watch_module, "_OOM_COUNT_S", 0.03)
    monkeypatch.setattr(watch_module, "_ANSWER_S", 30.0)


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene("trap '' TERM INT; echo up; while :; do sleep 30; done")
    assert made.command.stdout is not None
    made.command.stdout.readline()
    yield made
    made.close()


@pytest.fixture
def obedient() -> Iterator[Scene]:
    made = Scene("exec sleep 30")
    yield made
    made.close()


def gone_by(process: subprocess.Popen[bytes]) -> int:
    """The signal that ended it."""
    return -process.wait(2)


def test_the_end_of_the_main_process_ends_the_watch_with_its_status(scene: Scene) -> None:
    scene.command_ends(3 << 8)
    end = scene.until_end(scene.watch(time_s=30)).end
    assert (end.status, end.cause, end.message) == (3 << 8, None, None)


def test_a_stop_is_told_to_the_requester_and_ends_nothing(scene: Scene) -> None:
    scene.init.says(stopped=True)
    scene.init.says(status=0)
    assert scene.until_end(scene.watch()).end.cause is None
    assert scene.requester.receive(1) == [{"event": "stopped", "pid": scene.command.pid}]


def test_an_init_that_was_killed_means_lost(scene: Scene) -> None:
    scene.init.dies()
    end = scene.until_end(scene.watch()).end
    assert (end.cause, end.status) == ("lost", None)
    assert "killed from outside" in (end.message or "")


def test_the_time_limit_ends_at_once_without_grace(scene: Scene) -> None:
    end = scene.until_end(scene.watch(time_s=0.03)).end
    assert (end.cause, end.message) == ("timeout", "not finished after 0.03 s")


def test_grace_waits_for_the_command_after_sigterm_no_longer_than_it_says(scene: Scene) -> None:
    began = time.monotonic()
    end = scene.until_end(scene.watch(time_s=0.02, grace_s=0.05)).end
    assert end.cause == "timeout"
    assert time.monotonic() - began >= 0.07


def test_a_command_that_ends_in_its_grace_keeps_its_status_and_is_a_timeout(obedient: Scene) -> None:
    watch = obedient.watch(time_s=0.02, grace_s=10)

    class Dying(FakeGroup):
        def anon_bytes(self) -> int | None:  # the watch looks ten times a second
            if obedient.command.poll() is not None:
                obedient.command_ends(signal.SIGTERM)
            return 0

    watch._group = Dying()
    end = obedient.until_end(watch).end
    assert (end.cause, end.status) == ("timeout", signal.SIGTERM)


def test_no_time_limit_means_none(scene: Scene) -> None:
    watch = scene.watch(time_s=None)

    class Ending(FakeGroup):
        samples = 0

        def anon_bytes(self) -> int | None:
            self.samples += 1
            if self.samples == 3:
                scene.command_ends(0)
            return self.samples * (1 if self.samples != 2 else 100)

    watch._group = Ending()
    assert scene.until_end(watch).end.cause is None
    assert watch.anon_peak_bytes == 200  # the highest sample, not the last


def test_the_kernels_word_of_the_memory_limit_ends_the_run_as_oom(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_OOM_COUNT_S", 30.0)  # it has counted: nothing to wait for
    scene.memory_limit_kills()
    end = scene.until_end(scene.watch(time_s=30, tells_oom=True)).end
    assert (end.cause, end.message) == ("oom", "exceeded 1 GiB of memory")


def test_a_kernel_that_never_counts_its_kill_does_not_hold_up_the_end(scene: Scene) -> None:
    scene.memory_limit_kills(count=None)
    assert scene.until_end(scene.watch(tells_oom=True)).end.cause == "oom"


def test_where_the_kernel_gives_no_word_the_samples_find_the_memory_limit(scene: Scene) -> None:
    scene.group.killed_by_memory = 1
    assert scene.until_end(scene.watch(tells_oom=False)).end.cause == "oom"


def test_memory_that_ran_out_above_the_run_is_said_so(scene: Scene) -> None:
    scene.group.own_limit_was_hit = False
    scene.memory_limit_kills()
    end = scene.until_end(scene.watch(tells_oom=True)).end
    assert end.cause == "oom"
    assert "a group above or the machine" in (end.message or "")


def test_a_memory_kill_that_shows_only_at_the_end_makes_it_oom_but_no_earlier_cause(scene: Scene) -> None:
    scene.command_ends(9)
    watch = scene.until_end(scene.watch())
    watch.note_oom_kills(0)
    watch.note_oom_kills(None)
    assert watch.end.cause is None
    watch.note_oom_kills(1)
    assert watch.end.cause == "oom"

    late = scene.until_end(scene.watch(time_s=0.0))
    late.note_oom_kills(1)
    assert late.end.cause == "timeout"


def test_a_request_to_end_is_killed_with_the_requesters_words(scene: Scene) -> None:
    scene.requester.send(end="its requester gave it up (KeyboardInterrupt)")
    end = scene.until_end(scene.watch()).end
    assert (end.cause, end.message) == ("killed", "its requester gave it up (KeyboardInterrupt)")


def test_a_requester_that_vanishes_ends_the_run(scene: Scene) -> None:
    scene.requester.close()
    end = scene.until_end(scene.watch()).end
    assert (end.cause, end.message) == ("killed", "its requester vanished")


def test_a_raylet_that_vanishes_means_lost(scene: Scene) -> None:
    scene.raylet_dies()
    assert scene.until_end(scene.watch(raylet=True)).end.cause == "lost"


def test_a_requester_that_goes_with_its_raylet_means_lost_and_not_killed(scene: Scene) -> None:
    scene.requester.close()
    scene.raylet_dies()
    end = scene.until_end(scene.watch(raylet=True)).end
    assert (end.cause, "raylet" in (end.message or "")) == ("lost", True)


def test_a_signal_is_passed_on_and_the_command_decides(obedient: Scene) -> None:
    obedient.requester.send(signal=int(signal.SIGTERM))
    watch = obedient.watch(time_s=0.05)
    obedient.until_end(watch)
    assert gone_by(obedient.command) == signal.SIGTERM
    assert watch.end.ending_signals == 1
    assert watch.end.cause == "timeout"  # nobody told of its end in this scene


def test_a_delivered_signal_only_counts(obedient: Scene) -> None:
    obedient.requester.send(signal=int(signal.SIGINT), group=True, delivered=True)
    watch = obedient.watch(time_s=0.05)
    with contextlib.suppress(ProcessLookupError):
        obedient.until_end(watch)
    assert watch.end.ending_signals == 1
    assert gone_by(obedient.command) == signal.SIGTERM  # of the time limit, not SIGINT


def test_signals_that_ask_for_no_end_do_not_count(scene: Scene) -> None:
    for _ in range(3):
        scene.requester.send(signal=int(signal.SIGWINCH), group=True)
    scene.command_ends(0)
    watch = scene.watch()
    watch._has_to_end_on_request()
    assert watch.end.ending_signals == 0
    assert watch.end.message is None


def test_a_second_ending_signal_kills(scene: Scene) -> None:
    scene.requester.send(signal=int(signal.SIGTERM))
    watch = scene.watch()
    assert not watch._has_to_end_on_request()
    scene.requester.send(signal=int(signal.SIGINT))
    end = scene.until_end(watch).end
    assert (end.cause, end.message) == ("killed", "ended on request (SIGINT)")


def test_a_signal_for_a_command_that_is_gone_is_no_error(obedient: Scene) -> None:
    obedient.command.kill()
    obedient.command.wait()
    obedient.requester.send(signal=int(signal.SIGTERM))
    obedient.requester.send(signal=int(signal.SIGINT), group=True)
    assert obedient.watch()._has_to_end_on_request()


def test_of_two_causes_the_first_counts(scene: Scene) -> None:
    scene.requester.send(end="given up")
    watch = scene.until_end(scene.watch())
    watch.note_oom_kills(1)
    assert (watch.end.cause, watch.end.message) == ("killed", "given up")


@contextlib.contextmanager
def asked_why(scene: Scene, *signals: signal.Signals) -> Iterator[None]:
    """A requester that tells when it is asked, and not before, which signals have come to it."""

    def answer() -> None:
        assert scene.requester.receive_one() == {"event": "why"}
        for number in signals:
            scene.requester.send(signal=int(number), delivered=True)
        scene.requester.send(told=True)

    requester = threading.Thread(target=answer)
    requester.start()
    yield
    requester.join(10)
    assert not requester.is_alive()


def test_in_a_terminal_a_death_by_ctrl_c_is_one_that_was_asked_for(scene: Scene) -> None:
    scene.command_ends(signal.SIGINT)
    with asked_why(scene, signal.SIGINT):
        watch = scene.until_end(scene.watch(shares_terminal=True))
    assert (watch.end.status, watch.end.ending_signals) == (signal.SIGINT, 1)


def test_in_a_terminal_a_death_of_which_nobody_speaks_is_the_commands_own(scene: Scene) -> None:
    scene.command_ends(signal.SIGTERM)
    with asked_why(scene):
        watch = scene.until_end(scene.watch(shares_terminal=True))
    assert (watch.end.cause, watch.end.ending_signals) == (None, 0)


def test_a_requester_that_is_stopped_and_says_nothing_does_not_hold_up_the_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_ANSWER_S", 0.05)
    scene.command_ends(signal.SIGTERM)
    watch = scene.until_end(scene.watch(shares_terminal=True))
    assert (watch.end.cause, watch.end.ending_signals) == (None, 0)


def test_without_a_terminal_nobody_is_asked(scene: Scene) -> None:
    scene.command_ends(signal.SIGINT)
    scene.until_end(scene.watch())


def test_a_command_that_has_ended_in_time_is_no_timeout_because_one_looks_late(scene: Scene) -> None:
    scene.command_ends(0)
    end = scene.until_end(scene.watch(time_s=0.0)).end
    assert (end.status, end.cause) == (0, None)


def test_a_terminal_that_took_the_requester_along_means_killed(scene: Scene) -> None:
    scene.command_ends(signal.SIGHUP)
    scene.requester.close()
    assert scene.until_end(scene.watch(shares_terminal=True)).end.cause == "killed"
