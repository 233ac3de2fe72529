"""What is done inside a host that has its root filesystem: its own settings, and what it is to lack."""

from __future__ import annotations

import io
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from tests.lab.debian import AUTHORIZED_KEYS
from tests.lab.hosts import Endpoint, Host, LabError

Files: TypeAlias = Mapping[str, tuple[str, int]]  # path -> (text, mode)
Execute: TypeAlias = Callable[[list[str]], "subprocess.CompletedProcess[str]"]
READY = "/var/lib/raytools-lab-ready"  # says that the packages it is to lack are gone

# $@: the packages to take away; exit code 3: that failed
_FINISH = """\
set -u
if [ $# -gt 0 ] && [ ! -e {ready} ]; then
    found=
    for package in "$@"; do
        pattern=$package
        [ "$package" != python3 ] || pattern='*python3*'
        installed=$(dpkg-query --show --showformat='${{db:Status-Status}} ${{Package}}\n' "$pattern" |
            sed -n 's/^installed //p')
        [ -n "$installed" ] || {{ echo "no such package is installed: $package" >&2; exit 3; }}
        found="$found $installed"
    done
    cd /var/lib/dpkg/info
    # their scripts would need what is being removed
    for package in $found; do
        rm -f "$package".prerm "$package".postrm "$package":*.prerm "$package":*.postrm
    done
    dpkg --purge --force-depends --force-remove-essential $found >/tmp/purge.log 2>&1 || {{
        cat /tmp/purge.log >&2; exit 3; }}
fi
touch {ready}
systemctl is-system-running --wait
"""


def settings(host_key: Path, authorized_key: str, hosts_file: str) -> dict[str, tuple[str, int]]:
    """What one host of any lab gets beside its image.

    Args:
        host_key: its private key; the public one is beside it.
        authorized_key: who may log in, as any of its users.
        hosts_file: its /etc/hosts.
    """
    public = host_key.with_name(host_key.name + ".pub")
    return {
        "/etc/ssh/ssh_host_ed25519_key": (host_key.read_text(), 0o600),
        "/etc/ssh/ssh_host_ed25519_key.pub": (public.read_text(), 0o644),
        AUTHORIZED_KEYS: (f"{authorized_key}\n", 0o644),
        "/etc/hosts": (hosts_file, 0o644),
    }


def archive(files: Files) -> bytes:
    """A tar of root's files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path, (text, mode) in files.items():
            data = text.encode()
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode, member.mtime = len(data), mode, int(time.time())
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def sshd_answers(endpoint: Endpoint, wait_s: float = 2) -> bool:
    """Whether an sshd says its greeting there; an accepted connection alone proves nothing.

    Args:
        endpoint: where.
        wait_s: for the greeting, once connected.
    """
    try:
        with socket.create_connection(endpoint, timeout=1) as connection:
            connection.settimeout(wait_s)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def finish(host: Host, execute: Execute, deadline: float) -> str:
    """Takes away what the host is to lack, once; waits for systemd.

    Args:
        host: what it is to be.
        execute: runs a command there as root; a failure is no exception.
        deadline: when to give up, on the monotonic clock.

    Returns:
        `running`; `degraded: ` and the units that failed; else what systemd said last, perhaps nothing.

    Raises:
        LabError: a package cannot be taken away.
    """
    script = _FINISH.format(ready=READY)
    state = ""
    while time.monotonic() < deadline:
        done = execute(["sh", "-c", script, "sh", *host.without])
        if done.returncode == 3:
            raise LabError(f"{host.name}: without={','.join(host.without)}: {done.stderr.strip()}")
        state = done.stdout.strip()
        if state == "running":
            return state
        if state == "degraded":
            return f"degraded: {_failed_units(execute)}"
        time.sleep(0.2)
    return state


def is_up(state: str) -> bool:
    """Whether that, from `finish`, is a host that has come up."""
    return state.startswith(("running", "degraded"))


def _failed_units(execute: Execute) -> str:
    listed = execute(["systemctl", "list-units", "--failed", "--plain", "--no-legend"])
    units = [line.split()[0] for line in listed.stdout.splitlines() if line.strip()]
    return ", ".join(units) or "unknown units"
