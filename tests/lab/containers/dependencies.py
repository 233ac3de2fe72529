"""What the lab of containers needs of this machine: is it there, how to install it. Never unasked."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.lab import packages
from tests.lab.commands import Report
from tests.lab.containers.commands import podman
from tests.lab.hosts import LabError

# program -> Debian package; netavark is no program on PATH
_PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "mmdebstrap": "mmdebstrap",
    "iptables": "iptables",
    "newuidmap": "uidmap",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
_HELPERS = {"netavark": "netavark", "aardvark-dns": "aardvark-dns"}
_HELPER_DIRECTORIES = (
    "/usr/lib/podman",
    "/usr/libexec/podman",
    "/usr/local/lib/podman",
    "/usr/local/libexec/podman",
)


def missing_packages(
    found: Callable[[str], bool] = packages.on_path, helper_found: Callable[[str], bool] | None = None
) -> list[str]:
    """The Debian packages that have to be installed; both arguments are for tests."""
    helpers = packages.missing(_HELPERS, helper_found or _in_helpers)
    return sorted({*packages.missing(_PROGRAMS, found), *helpers})


def require() -> None:
    """All is there and this user may use it.

    Raises:
        LabError: what is missing, and the command that changes that.
    """
    packages.require(missing_packages(), "lab-deps")
    if not packages.may_become_root():
        raise LabError("Containers that boot systemd need root", expected="root, or sudo without a password")
    backend = podman("info", "--format", "{{.Host.NetworkBackend}}").stdout.strip()
    if backend != "netavark":
        raise LabError(
            f"podman's network backend is {backend}",
            expected="netavark",
            fix='Put network_backend = "netavark" below [network] in /etc/containers/containers.conf',
        )


def podman_is_there() -> bool:
    """Whether there can be anything of a lab to remove."""
    return packages.on_path("podman")


def install(report: Report) -> None:
    """Installs what is missing with apt-get; see `packages.install`."""
    packages.install(missing_packages, report)


def _in_helpers(program: str) -> bool:
    return any(os.access(f"{directory}/{program}", os.X_OK) for directory in _HELPER_DIRECTORIES)
