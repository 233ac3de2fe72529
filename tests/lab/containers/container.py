"""One host: how its container is created, set up, started, waited for and removed."""

from __future__ import annotations

import io
import json
import os
import resource
import socket
import ssl
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.containers import network
from tests.lab.containers.commands import podman, run, until
from tests.lab.containers.hosts import HostSpec, LabError
from tests.lab.containers.image import AUTHORIZED_KEYS

DEBIAN_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
BOOT_WAIT_S = 90.0
READY = "/var/lib/raytools-lab-ready"  # says that the packages it is to lack are gone
_MOST_FILES_AND_PROCESSES = 20000
LAB_LABEL, CHECKOUT_LABEL, DIGEST_LABEL = "raytools.lab", "raytools.checkout", "raytools.digest"


@dataclass(frozen=True)
class Found:
    """A container that exists."""

    name: str
    running: bool
    labels: Mapping[str, str]


def create_arguments(
    spec: HostSpec, *, container: str, address: str, net: str, cgroup_parent: str, shared: Path,
    labels: Mapping[str, str], image: str,
) -> list[str]:  # fmt: skip
    """The arguments of `podman create` for one host.

    `--systemd=always` is not used: on cgroup v1 it shows the host the machine's systemd hierarchy, and
    the host's systemd tidies up there. What else it does, tmpfs and the stop signal, is said here. With the
    private cgroup namespace a host sees its own cgroups as the root, as a machine does.
    """
    limit = _MOST_FILES_AND_PROCESSES
    arguments = ["create", "--name", container, "--hostname", spec.name, "--privileged", "--systemd=false"]
    arguments += ["--cgroupns", "private", "--cgroup-parent", cgroup_parent, "--env", "container=podman"]
    arguments += ["--stop-signal", "RTMIN+3", "--stop-timeout", "10"]
    arguments += ["--tmpfs", "/run:rw,nosuid,nodev,mode=755", "--tmpfs", "/run/lock:rw,nosuid,nodev,noexec"]
    arguments += ["--ulimit", f"nofile={_limit(resource.RLIMIT_NOFILE, limit)}"]
    arguments += ["--ulimit", f"nproc={_limit(resource.RLIMIT_NPROC, limit)}"]
    arguments += ["--network", net, "--ip", address, "--mac-address", network.mac_address(address)]
    arguments += ["--no-hosts", "--dns", "none", "--shm-size", spec.shm, "--pids-limit", "-1"]
    if spec.cpus is not None:
        arguments += ["--cpuset-cpus", spec.cpus]
    if spec.memory is not None:
        arguments += ["--memory", spec.memory, "--memory-swap", spec.memory]
    arguments += ["--volume", f"{shared}:/shared"]
    bundle = ca_bundle()
    if bundle is not None:
        arguments += ["--volume", f"{bundle}:{DEBIAN_CA_BUNDLE}:ro"]
    for key, value in labels.items():
        arguments += ["--label", f"{key}={value}"]
    return [*arguments, *spec.extra, image]


def _limit(which: int, wanted: int) -> str:
    """Not above this machine's own hard limit: raising it is refused."""
    hard = resource.getrlimit(which)[1]
    value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    return f"{value}:{value}"


def ca_bundle() -> Path | None:
    """This machine's certificate authorities, where there are any."""
    named = os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, DEBIAN_CA_BUNDLE
    return next((Path(path).resolve() for path in named if path and Path(path).is_file()), None)


def settings_archive(files: Mapping[str, tuple[str, int]]) -> bytes:
    """A tar of root's files: path -> (text, mode)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, (text, mode) in files.items():
            data = text.encode()
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode, member.mtime = len(data), mode, int(time.time())
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def settings(
    spec: HostSpec, host_key: Path, authorized_key: str, hosts_file: str
) -> dict[str, tuple[str, int]]:
    """What one host gets beside its image."""
    return {
        "/etc/ssh/ssh_host_ed25519_key": (host_key.read_text(), 0o600),
        "/etc/ssh/ssh_host_ed25519_key.pub": (host_key.with_name(host_key.name + ".pub").read_text(), 0o644),
        "/etc/ssh/sshd_config.d/port.conf": (f"Port {spec.port}\n", 0o644),
        AUTHORIZED_KEYS: (f"{authorized_key}\n", 0o644),
        "/etc/hosts": (hosts_file, 0o644),
    }


def put(container: str, files: Mapping[str, tuple[str, int]]) -> None:
    """Writes files into a host, running or not."""
    podman("cp", "-", f"{container}:/", data=settings_archive(files))


def find(lab: str) -> list[Found]:
    """The lab's containers, of whichever checkout."""
    listed = podman("ps", "--all", "--format", "json", "--filter", f"label={LAB_LABEL}={lab}").stdout
    return [_found(each) for each in json.loads(listed or "[]")]


def _found(listed: Mapping[str, Any]) -> Found:
    # podman goes on believing in a container whose processes were killed together with their monitor
    alive = listed.get("State") == "running" and Path(f"/proc/{listed.get('Pid')}").exists()
    return Found(listed["Names"][0], alive, listed.get("Labels") or {})


def remove(containers: Sequence[str]) -> None:
    """Kills and removes containers."""
    if containers:
        podman("rm", "--force", "--time", "0", "--volumes", *containers)


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


def wait_until_up(container: str, spec: HostSpec, address: str) -> str:
    """Waits for sshd and systemd; takes away what the host is to lack.

    Returns:
        `running`, or `degraded: ` and the units that failed.

    Raises:
        LabError: it did not come up, with the end of its journal.
    """
    deadline = time.monotonic() + BOOT_WAIT_S
    if until(lambda: _sshd_answers(container, address, spec.port), BOOT_WAIT_S) is not True:
        raise LabError(_failure(container, f"{spec.name}: sshd did not answer at {address} port {spec.port}"))
    script = _FINISH.format(ready=READY)
    state = ""
    while time.monotonic() < deadline:
        done = podman(
            "exec", container, "sh", "-c", script, "sh", *spec.without, wait_s=BOOT_WAIT_S, check=False
        )
        if done.returncode == 3:
            raise LabError(f"{spec.name}: without={','.join(spec.without)}: {done.stderr.strip()}")
        state = done.stdout.strip()
        if state == "running":
            return state
        if state == "degraded":
            return f"degraded: {_failed_units(container)}"
        time.sleep(0.2)
    raise LabError(_failure(container, f"{spec.name}: systemd is {state or 'silent'!r}, expected running"))


def is_finished(container: str) -> bool:
    """Whether a running host has come up completely before."""
    return podman("exec", container, "test", "-e", READY, check=False).returncode == 0


def _sshd_answers(container: str, address: str, port: int) -> bool | None:
    """True: it does; None: not yet; False: it cannot any more."""
    try:
        with socket.create_connection((address, port), timeout=1) as connection:
            connection.settimeout(2)
            return True if connection.recv(4) == b"SSH-" else None
    except OSError:
        state = podman("inspect", "--format", "{{.State.Running}}", container, check=False)
        return None if state.stdout.strip() == "true" else False


def _failed_units(container: str) -> str:
    listed = podman(
        "exec", container, "systemctl", "list-units", "--failed", "--plain", "--no-legend", check=False
    )
    return (
        ", ".join(line.split()[0] for line in listed.stdout.splitlines() if line.strip()) or "unknown units"
    )


def _failure(container: str, found: str) -> str:
    journal = podman("exec", container, "journalctl", "-b", "--no-pager", "--lines", "30", check=False)
    console = podman("logs", "--tail", "30", container, check=False)
    parts = [found, "--- journal", journal.stdout.strip() or journal.stderr.strip()]
    return "\n".join([*parts, "--- console", (console.stdout + console.stderr).strip()])


def remove_cgroups(name: str, roots: Iterable[Path] | None = None) -> list[Path]:
    """Removes what a lab's containers left in any cgroup hierarchy; returns what could not be removed."""
    if roots is None:
        top = Path("/sys/fs/cgroup")
        roots = [top, *(path for path in top.iterdir() if path.is_dir() and not path.is_symlink())]
    trees = [root / name for root in roots if (root / name).is_dir()]

    def emptied() -> bool | None:
        for tree in trees:
            for directory, _, _ in os.walk(tree, topdown=False):
                _remove_empty(directory)
        return None if any(tree.exists() for tree in trees) else True

    until(emptied, 3.0)  # the monitors of removed containers take a moment to end
    return [tree for tree in trees if tree.exists()]


def _remove_empty(directory: str) -> None:
    if os.geteuid() != 0:
        run(["rmdir", directory], check=False)
        return
    try:
        os.rmdir(directory)
    except OSError:
        return  # busy: tried again, and reported in the end
