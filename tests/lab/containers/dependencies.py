"""What the lab needs of this machine: is it there, and how to install it. Never installs unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

from tests.lab.containers.commands import Report, podman
from tests.lab.containers.hosts import LabError

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
_MORE_PATH = "/usr/sbin:/sbin:/usr/local/sbin"


def missing_packages(
    found: Callable[[str], bool] | None = None, helper_found: Callable[[str], bool] | None = None
) -> list[str]:
    """The Debian packages that have to be installed; both arguments are for tests."""
    on_path, in_helpers = found or _on_path, helper_found or _in_helpers
    needed = [package for program, package in _PROGRAMS.items() if not on_path(program)]
    needed += [package for program, package in _HELPERS.items() if not in_helpers(program)]
    return sorted(set(needed))


def command_for(packages: list[str]) -> str:
    """The line that installs them."""
    prefix = "" if os.geteuid() == 0 else "sudo "
    return f"{prefix}apt-get install -y --no-install-recommends {' '.join(packages)}"


def require() -> None:
    """All is there and this user may use it.

    Raises:
        LabError: what is missing, and the command that changes that.
    """
    missing = missing_packages()
    if missing:
        raise LabError(
            f"The lab needs {', '.join(missing)}", fix=f"make lab-deps, or: {command_for(missing)}"
        )
    if os.geteuid() != 0 and not _may_become_root():
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
    return _on_path("podman")


def install(report: Report) -> None:
    """Installs what is missing with apt-get.

    Raises:
        LabError: this user may not, or apt-get failed: with the exact command.
    """
    missing = missing_packages()
    if not missing:
        report("nothing to install: podman, runc, netavark, mmdebstrap and the rest are there")
        return
    command = command_for(missing)
    if shutil.which("apt-get") is None:
        raise LabError(
            f"The lab needs {', '.join(missing)}; this machine has no apt-get to install them with"
        )
    if os.geteuid() != 0 and not _may_become_root():
        raise LabError("Installing needs root, and sudo asks for a password", fix=f"Run: {command}")
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = [*root, "env", "DEBIAN_FRONTEND=noninteractive"]
    for arguments in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *missing]):
        report(f"apt-get {' '.join(arguments)}")
        if subprocess.run([*environment, "apt-get", *arguments], check=False).returncode != 0:
            raise LabError(f"`apt-get {arguments[0]}` failed", fix=f"Run: {command}")
    still = missing_packages()
    if still:
        raise LabError(f"apt-get installed all, yet {', '.join(still)} cannot be found")


def _on_path(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_MORE_PATH}") is not None


def _in_helpers(program: str) -> bool:
    return any(os.access(f"{directory}/{program}", os.X_OK) for directory in _HELPER_DIRECTORIES)


def _may_become_root() -> bool:
    if shutil.which("sudo") is None:
        return False
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
