"""What a lab needs of this machine: which Debian packages are missing, how to install them. Never unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping

from tests.lab.commands import Report
from tests.lab.hosts import LabError

_LOCK_WAIT_S = 300  # a Debian that has just booted updates itself
# these are not covered by DPkg::Lock::Timeout: without a wait `apt-get update` fails at once
_AWAIT_LOCKS = """
import fcntl
for path in ("/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"):
    with open(path, "a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
"""
_MORE_PATH = "/usr/sbin:/sbin:/usr/local/sbin"


def on_path(program: str) -> bool:
    """Whether root would find the program."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_MORE_PATH}") is not None


def missing(programs: Mapping[str, str], found: Callable[[str], bool] = on_path) -> list[str]:
    """The packages that have to be installed: program -> its Debian package."""
    return sorted({package for program, package in programs.items() if not found(program)})


def command_for(packages: Iterable[str]) -> str:
    """The line that installs them."""
    prefix = "" if os.geteuid() == 0 else "sudo "
    return f"{prefix}apt-get install -y --no-install-recommends {' '.join(packages)}"


def require(packages: list[str], target: str) -> None:
    """Nothing is missing.

    Args:
        packages: what is.
        target: the make target that installs it.

    Raises:
        LabError: what is missing, and the command that changes that.
    """
    if packages:
        fix = f"make {target}, or: {command_for(packages)}"
        raise LabError(f"The lab needs {', '.join(packages)}", fix=fix)


def install(missing_packages: Callable[[], list[str]], report: Report) -> None:
    """Installs what is missing with apt-get.

    Raises:
        LabError: this user may not, or apt-get failed: with the exact command.
    """
    packages = missing_packages()
    if not packages:
        report("nothing to install: all that the lab needs is there")
        return
    command = command_for(packages)
    if shutil.which("apt-get") is None:
        raise LabError(
            f"The lab needs {', '.join(packages)}; this machine has no apt-get to install them with"
        )
    if not may_become_root():
        raise LabError("Installing needs root, and sudo asks for a password", fix=f"Run: {command}")
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = [*root, "env", "DEBIAN_FRONTEND=noninteractive"]
    subprocess.run([*root, "timeout", str(_LOCK_WAIT_S), sys.executable, "-c", _AWAIT_LOCKS], check=False)
    apt_get = [*environment, "apt-get", "-o", f"DPkg::Lock::Timeout={_LOCK_WAIT_S}"]
    for arguments in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *packages]):
        report(f"apt-get {' '.join(arguments)}")
        if subprocess.run([*apt_get, *arguments], check=False).returncode != 0:
            raise LabError(f"`apt-get {arguments[0]}` failed", fix=f"Run: {command}")
    still = missing_packages()
    if still:
        raise LabError(f"apt-get installed all, yet {', '.join(still)} cannot be found")


def may_become_root() -> bool:
    """Whether this is root, or sudo asks for no password."""
    if os.geteuid() == 0:
        return True
    if shutil.which("sudo") is None:
        return False
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
