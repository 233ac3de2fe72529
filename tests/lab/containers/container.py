"""One host: how its container is created, set up, started, waited for and removed."""

from __future__ import annotations

import json
import os
import resource
import ssl
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import guest
from tests.lab.addresses import mac_address
from tests.lab.commands import run, until
from tests.lab.containers.commands import podman
from tests.lab.containers.hosts import HostSpec
from tests.lab.hosts import Endpoint, LabError

DEBIAN_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
REMOVAL_WAIT_S = 600.0  # each has an environment of some ten thousand files
BOOT_WAIT_S = 90.0
_EMPTY_WAIT_S = 60.0
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
    arguments += ["--network", net, "--ip", address, "--mac-address", mac_address(address)]
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


def settings(
    spec: HostSpec, host_key: Path, authorized_key: str, hosts_file: str
) -> dict[str, tuple[str, int]]:
    """What one host gets beside its image."""
    return {
        **guest.settings(host_key, authorized_key, hosts_file),
        "/etc/ssh/sshd_config.d/port.conf": (f"Port {spec.port}\n", 0o644),
    }


def put(container: str, files: guest.Files) -> None:
    """Writes files into a host, running or not."""
    podman("cp", "-", f"{container}:/", data=guest.archive(files))


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
        podman("rm", "--force", "--time", "0", "--volumes", *containers, wait_s=REMOVAL_WAIT_S)


def wait_until_up(container: str, spec: HostSpec, address: str) -> str:
    """Waits for sshd and systemd; takes away what the host is to lack.

    Returns:
        `running`, or `degraded: ` and the units that failed.

    Raises:
        LabError: it did not come up, with the end of its journal.
    """
    deadline = time.monotonic() + BOOT_WAIT_S
    if until(lambda: _sshd_answers(container, Endpoint(address, spec.port)), BOOT_WAIT_S) is not True:
        raise LabError(_failure(container, f"{spec.name}: sshd did not answer at {address} port {spec.port}"))

    def execute(argv: list[str]) -> subprocess.CompletedProcess[str]:
        return podman("exec", container, *argv, wait_s=BOOT_WAIT_S, check=False)

    state = guest.finish(spec, execute, deadline)
    if not guest.is_up(state):
        raise LabError(
            _failure(container, f"{spec.name}: systemd is {state or 'silent'!r}, expected running")
        )
    return state


def is_finished(container: str) -> bool:
    """Whether a running host has come up completely before."""
    return podman("exec", container, "test", "-e", guest.READY, check=False).returncode == 0


def _sshd_answers(container: str, endpoint: Endpoint) -> bool | None:
    """True: it does; None: not yet; False: it cannot any more."""
    if guest.sshd_answers(endpoint):
        return True
    state = podman("inspect", "--format", "{{.State.Running}}", container, check=False)
    return None if state.stdout.strip() == "true" else False


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

    until(emptied, _EMPTY_WAIT_S)  # the monitors of removed containers take a moment to end
    return [tree for tree in trees if tree.exists()]


def _remove_empty(directory: str) -> None:
    if os.geteuid() != 0:
        run(["rmdir", directory], check=False)
        return
    try:
        os.rmdir(directory)
    except OSError:
        return  # busy: tried again, and reported in the end
