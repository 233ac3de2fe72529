"""A grant on cgroup v2: the user's service manager gets the controllers, and runs when the grant says so."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from raytools.node import grant

SYSTEMCTL = """#!/bin/sh
echo "$*" >> "$CALLS"
case $1 in is-active) exit "$INACTIVE" ;; esac
"""


class Systemd:
    """What was asked of it; the user's manager runs, or not."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, *, running: bool) -> None:
        self.directory = directory
        for name in ("systemctl", "loginctl"):
            (directory / name).write_text(SYSTEMCTL)
            (directory / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        monkeypatch.setenv("CALLS", str(directory / "calls"))
        monkeypatch.setenv("INACTIVE", "0" if running else "3")
        monkeypatch.setattr(grant, "_DROP_IN", str(directory / "user@{uid}.service.d" / "raytools.conf"))

    @property
    def asked(self) -> list[str]:
        return (self.directory / "calls").read_text().splitlines()


def me() -> pwd.struct_passwd:
    return pwd.getpwuid(os.getuid())


def test_a_manager_that_sleeps_is_started_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd = Systemd(tmp_path, monkeypatch, running=False)
    grant._delegate(me())
    assert systemd.asked[-1] == f"start user@{os.getuid()}.service"
    assert "daemon-reload" in systemd.asked[0]


def test_a_manager_that_runs_is_told_of_its_controllers_and_not_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd = Systemd(tmp_path, monkeypatch, running=True)
    grant._delegate(me())
    assert systemd.asked[-1].startswith("kill --kill-whom=main --signal=RTMIN+25")
    assert not [one for one in systemd.asked if one.startswith(("start", "restart"))]


def test_the_drop_in_delegates_what_runs_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Systemd(tmp_path, monkeypatch, running=True)
    grant._delegate(me())
    written = (tmp_path / f"user@{os.getuid()}.service.d" / "raytools.conf").read_text()
    (delegated,) = [line for line in written.splitlines() if line.startswith("Delegate=")]
    assert set(delegated.partition("=")[2].split()) == {"cpu", "cpuset", "memory", "pids"}
