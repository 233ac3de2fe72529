"""The Ray unit is written, enabled and started; a start that failed is one. systemctl is a script here."""

from __future__ import annotations

from pathlib import Path

import pytest

from raytools.node import ray_unit
from raytools.node.ray_failure import RayServiceError

SYSTEMCTL = """#!/bin/sh
echo "$*" >> "$CALLS"
case $1 in
  show) sed -n "$(grep -c ^show "$CALLS")p" "$STATES" ;;
esac
"""


class Systemd:
    """What was asked of it; its unit has the given states, one after each restart."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.units = directory, directory / "units"
        self.units.mkdir()
        (directory / "bin").mkdir()
        (directory / "bin" / "systemctl").write_text(SYSTEMCTL)
        (directory / "bin" / "systemctl").chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}/bin:/usr/bin:/bin")
        monkeypatch.setenv("CALLS", str(directory / "calls"))
        monkeypatch.setenv("STATES", str(directory / "states"))
        monkeypatch.setattr(ray_unit, "_DIRECTORY", self.units)

    def start(self, role: str, *states: str) -> None:
        (self.directory / "states").write_text("\n".join(states) + "\n")
        ray_unit.restart(self.directory, {"cluster": "c", "role": role}, "[Service]\n")

    def join(self, state: str) -> bool:
        (self.directory / "calls").write_text("")
        (self.directory / "states").write_text(f"{state}\n")
        return ray_unit.await_start({"cluster": "c"})

    @property
    def restarts(self) -> int:
        return (self.directory / "calls").read_text().count("restart raytools-ray-c.service")


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    return Systemd(tmp_path, monkeypatch)


def test_the_unit_is_written_for_root_alone_enabled_and_restarted(systemd: Systemd) -> None:
    systemd.start("head", "active")
    unit = systemd.units / "raytools-ray-c.service"
    assert unit.read_text() == "[Service]\n"
    assert unit.stat().st_mode & 0o777 == 0o640
    asked = (systemd.directory / "calls").read_text().splitlines()
    assert asked[:2] == ["enable --quiet raytools-ray-c.service", "restart raytools-ray-c.service"]


def test_a_head_that_gave_up_while_it_started_is_told_with_the_end_of_its_log(systemd: Systemd) -> None:
    (systemd.directory / "logs").mkdir()
    (systemd.directory / "logs" / "ray.log").write_text("the port is taken\n")
    with pytest.raises(RayServiceError, match="Ray did not start") as raised:
        systemd.start("head", "activating")
    assert "the port is taken" in str(raised.value)
    assert systemd.restarts == 1


def test_a_head_that_took_long_to_fail_is_started_once_more(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_unit, "_SLOW_S", 0.0)
    systemd.start("head", "activating", "active")
    assert systemd.restarts == 2


def test_a_worker_is_started_once_more(systemd: Systemd) -> None:
    systemd.start("worker", "activating", "active")
    assert systemd.restarts == 2
    with pytest.raises(RayServiceError):
        systemd.start("worker", *["activating"] * 9)


def test_a_worker_that_waited_for_its_head_in_vain_does_not_wait_again(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_unit, "HEAD_LIMIT_S", 0.0)
    with pytest.raises(RayServiceError):
        systemd.start("worker", "activating", "active")
    assert systemd.restarts == 1


def test_a_start_that_is_under_way_is_waited_for_and_not_begun_anew(systemd: Systemd) -> None:
    assert systemd.join("active")
    assert systemd.restarts == 0
    assert not systemd.join("activating")  # systemd has begun another one: this one had failed
