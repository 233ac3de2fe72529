"""Running podman with the settings that every call here needs."""

from __future__ import annotations

import subprocess

from tests.lab.commands import run

PODMAN = ("podman", "--log-level", "error", "--cgroup-manager", "cgroupfs", "--runtime", "runc")


def podman(
    *arguments: str, data: bytes | None = None, wait_s: float = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """`podman …` as root; see `run`."""
    return run([*PODMAN, *arguments], data=data, wait_s=wait_s, check=check)
