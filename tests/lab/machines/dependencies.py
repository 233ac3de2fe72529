"""What the lab of virtual machines needs of this machine. Only building the image needs root."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.lab import packages
from tests.lab.commands import Report
from tests.lab.hosts import LabError
from tests.lab.machines.image import is_built

# program -> Debian package
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}


def missing_packages(found: Callable[[str], bool] = packages.on_path) -> list[str]:
    """The Debian packages that have to be installed; the argument is for tests."""
    return packages.missing(_PROGRAMS, found)


def require(checkout: Path) -> None:
    """All is there, and what is not built yet can be.

    Raises:
        LabError: what is missing, and the command that changes that.
    """
    packages.require(missing_packages(), "vm-deps")
    if not is_built(checkout) and not packages.may_become_root():
        raise LabError(
            "Building the machines' image needs root", expected="root, or sudo without a password, once"
        )


def install(report: Report) -> None:
    """Installs what is missing with apt-get; see `packages.install`."""
    packages.install(missing_packages, report)
