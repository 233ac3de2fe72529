"""The peer: `ray up` with the provider for machines on premises, on the same hosts with the same environment.

It gets the numbers and ports of our plan, so that both start the same Ray. Authentication is off: the
launcher hands no token to the hosts. Needs rsync on the controller and on the hosts, as it does everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import Any

import yaml

from benchmarks.bringup_site import HEAD, BenchmarkError, Site, tail

LIMIT_S = 180.0
# Ray 2.58.1's autoscaler takes a head on premises for a worker and then starts one worker too few; the older
# one, which is still there, does not (autoscaler.py: record_local_head_state_if_needed).
VARIANTS = {"ray up": "", "ray up, older autoscaler": "RAY_enable_autoscaler_v2=0 "}
_COMMON = "RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0"
_USER = "admin"
_GCS_PORT = 6379
# what is each node's own, or would keep `ray start` in the foreground
_OWN_ARGUMENTS = ("--head", "--address=", "--node-ip-address=", "--temp-dir=", "--block")
_OTHERS = ("sshd", "systemd", "(sd-pam)", "sftp-server")

# Imports come before the clock starts; then one question to the GCS every quarter of a second.
_WATCH = """
import os, socket, sys, time
os.environ["RAY_AUTH_MODE"] = "disabled"
from ray._raylet import GcsClient
address, wanted, limit_s = sys.argv[1], set(sys.argv[2].split(",")), float(sys.argv[3])
host, port = address.split(":")
print("ready", flush=True)
began, client, seen = time.monotonic(), None, set()
while seen < wanted and time.monotonic() - began < limit_s:
    try:
        if client is None:
            socket.create_connection((host, int(port)), timeout=1).close()
            client = GcsClient(address=address)
        alive = {n.node_manager_address for n in client.get_all_node_info(timeout=5).values() if n.state == 0}
    except Exception as error:
        client, alive = None, set()
    for one in sorted((alive & wanted) - seen):
        print(f"{one} {time.monotonic()}", flush=True)
    seen |= alive & wanted
    if seen < wanted:
        time.sleep(0.25)
"""


@dataclass(frozen=True)
class Attempt:
    """One `ray up`. Times are in seconds since the command; `said` and `monitor` are the ends of logs."""

    nodes: int
    all_alive_s: float | None
    returned_s: float | None
    exit_code: int | None
    joined_s: dict[str, float]
    said: str
    monitor: str

    @property
    def trouble(self) -> str:
        """Empty if all nodes came."""
        if self.all_alive_s is not None:
            return ""
        if self.exit_code:
            return f"ended with exit code {self.exit_code}"
        return f"not within {LIMIT_S:.0f} s ({len(self.joined_s)} of {self.nodes} nodes joined)"


def missing(site: Site) -> str:
    """What the launcher needs and does not find; empty if it can be tried."""
    if shutil.which("rsync") is None:
        return "ray up needs rsync, which is not on the controller: apt-get install rsync"
    for host in site.lab.addresses:
        if not site.cluster.sh(host, "command -v rsync", check=False):
            return f"ray up needs rsync, which is not on {host}: apt-get install rsync"
    return ""


def bring_up(site: Site, variant: str) -> Attempt:
    """From the command until the head's GCS reports all nodes alive; then what it started is ended.

    Raises:
        BenchmarkError: the watcher on the head could not be started, or something could not be ended.
    """
    ray = site.environment.ray
    scratch = site.cluster.directory / "ray-up"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    config = scratch / "ray-up.yaml"
    config.write_text(yaml.safe_dump(launcher_config(site, VARIANTS[variant]), sort_keys=False))
    watcher = _watch(site)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        # its state and lock go to <temp>/ray, its known clusters to ~/.ray
        "RAY_TMPDIR": str(scratch), "HOME": str(scratch),
        "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    began = time.monotonic()
    with (scratch / "said").open("w") as said:
        launcher = subprocess.Popen(
            [str(ray), "up", "-y", "--no-config-cache", str(config)],
            cwd=scratch, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip
        try:
            joined, returned_s = _follow(watcher, launcher, began)
        finally:
            exit_code, monitor = launcher.poll(), _monitor_log(site)
            _end_launcher(launcher, site.lab.name)
            watcher.kill()
            watcher.wait()
            end(site)
    wanted = set(site.lab.addresses.values())
    all_alive_s = max(joined.values()) if set(joined) == wanted else None
    said_last = tail((scratch / "said").read_text(errors="replace"), 12)
    return Attempt(len(wanted), all_alive_s, returned_s, exit_code, joined, said_last, monitor)


def launcher_config(site: Site, variables: str) -> dict[str, Any]:
    """The launcher's YAML: one command per kind of node, with the arguments of our plan."""
    addresses = site.lab.addresses
    workers = [address for host, address in addresses.items() if host != HEAD]
    commands = {
        kind: f"{variables}{_COMMON} {site.environment.ray} start {shown}"
        for kind, shown in (
            ("head", f"--head --autoscaling-config=~/ray_bootstrap_config.yaml {_arguments(site, HEAD)}"),
            ("worker", f"--address=$RAY_HEAD_IP:{_GCS_PORT} {_arguments(site, list(addresses)[-1])}"),
        )
    }
    return {
        "cluster_name": site.lab.name,
        "provider": {"type": "local", "head_ip": addresses[HEAD], "worker_ips": workers},
        "auth": {"ssh_user": _USER, "ssh_private_key": str(site.lab.key)},
        "min_workers": len(workers),
        "max_workers": len(workers),
        "head_start_ray_commands": [commands["head"]],
        "worker_start_ray_commands": [commands["worker"]],
    }


def _arguments(site: Site, host: str) -> str:
    arguments = site.node_json(host)["ray"]["start_args"]
    return shlex.join(one for one in arguments if not one.startswith(_OWN_ARGUMENTS))


def _watch(site: Site) -> subprocess.Popen[str]:
    """A client on the head, imported and ready before the clock starts. Its clock is this machine's."""
    addresses = site.lab.addresses
    watcher = subprocess.Popen(
        [
            "podman", "exec", site.lab.container(HEAD), str(site.environment.python), "-c", _WATCH,
            f"{addresses[HEAD]}:{_GCS_PORT}", ",".join(addresses.values()), str(LIMIT_S),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert watcher.stdout is not None
    if watcher.stdout.readline().strip() != "ready":
        watcher.kill()
        raise BenchmarkError(f"the watcher on {HEAD} did not start")
    return watcher


def _follow(
    watcher: subprocess.Popen[str], launcher: subprocess.Popen[bytes], began: float
) -> tuple[dict[str, float], float | None]:
    """Until the watcher has seen all, or gives up, or the launcher has failed."""
    joined: dict[str, float] = {}
    returned_s = None
    assert watcher.stdout is not None
    os.set_blocking(watcher.stdout.fileno(), False)
    while True:
        has_ended = watcher.poll() is not None
        for line in watcher.stdout:
            address, at = line.split()
            joined[address] = float(at) - began
        if returned_s is None and launcher.poll() is not None:
            returned_s = time.monotonic() - began
        if has_ended or (returned_s is not None and launcher.returncode != 0):
            return joined, returned_s
        time.sleep(0.05)


def _end_launcher(launcher: subprocess.Popen[bytes], cluster: str) -> None:
    """It and the ssh connections that it keeps, which are in its session, and their directory."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    # as Ray's command_runner.py names it, whatever the temp dir
    of_user, of_cluster = (hashlib.sha256(text.encode()).hexdigest()[:10] for text in (getuser(), cluster))
    connections = Path(f"/tmp/ray_ssh_{of_user}")
    shutil.rmtree(connections / of_cluster, ignore_errors=True)
    with contextlib.suppress(OSError):
        connections.rmdir()  # unless another cluster's are there


def _monitor_log(site: Site) -> str:
    """What the autoscaler on the head has done with nodes, as far as its log says."""
    log = "/tmp/ray/session_latest/logs/monitor.log"
    script = f"grep -E 'Adding|Launch|instance_manager' {log} 2>/dev/null | tail -n 20 | cut -c1-200"
    return site.cluster.sh(HEAD, script, check=False)


def end(site: Site) -> None:
    """Ends what the launcher has started on the hosts, by pid, the head first, whose autoscaler starts more.

    Only Ray runs there as that user; `ray stop` would do by name what is exact here. Temp dirs go, too.

    Raises:
        BenchmarkError: something is still there after 15 s.
    """
    deadline = time.monotonic() + 15
    for host in site.lab.addresses:
        while pids := _pids(site, host):
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{host}: {pids} could not be ended")
            site.cluster.sh(host, f"kill -9 {' '.join(map(str, pids))}", check=False)
            time.sleep(0.2)
    left = f"/tmp/ray /tmp/ray_* /dev/shm/plasma* /home/{_USER}/ray_bootstrap* /home/{_USER}/.ray"
    for host in site.lab.addresses:
        site.cluster.sh(host, f"rm -rf {left}")


def _pids(site: Site, host: str) -> list[int]:
    """What runs as the launcher's user and is not a part of logging in."""
    listed = site.cluster.sh(host, f"ps -u {_USER} -o pid=,comm=", check=False)
    found = (line.split(None, 1) for line in listed.splitlines())
    return [int(pid) for pid, name in found if not name.startswith(_OTHERS)]
