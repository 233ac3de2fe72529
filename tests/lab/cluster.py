"""A cluster in a lab, as a person at the controller has it: playbooks, commands, and looks at its hosts.

The project is a directory of its own, `.raytools/lab-suite/`, with the lab, the inventory and cluster.yaml in
it; playbooks and raytools are the checkout's. Caches and the built environment are the checkout's too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.containers import HostSpec, Lab
from tests.lab.containers.hosts import plain_hosts

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = CHECKOUT / ".venv" / "bin"
ROOT = "/opt/raytools"
HOSTS = ("n1", "n2", "n3")
HEAD, *WORKERS = HOSTS

# What is dear to make and the same for every lab: taken from the checkout, and left there.
_SHARED_STATE = ("archives", "cache", "channel", "data", "toolkit")
_RECAP = re.compile(
    r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)\s+skipped=(\d+)", re.M
)


@dataclass(frozen=True)
class Recap:
    """One host's line at the end of a playbook."""

    ok: int
    changed: int
    unreachable: int
    failed: int


@dataclass(frozen=True)
class Done:
    """A command that has ended: what a person saw of it."""

    exit_code: int
    output: str
    wall_s: float

    @property
    def said(self) -> str:
        """The output on one line: where lines are wrapped does not count."""
        return " ".join(self.output.split())

    @property
    def recap(self) -> dict[str, Recap]:
        """By host, from PLAY RECAP."""
        end = self.output.rpartition("PLAY RECAP")[2]
        return {name: Recap(*map(int, numbers[:4])) for name, *numbers in _RECAP.findall(end)}

    @property
    def changed(self) -> dict[str, int]:
        """By host, how many tasks changed something."""
        return {name: recap.changed for name, recap in self.recap.items()}

    def assert_nothing_changed(self, hosts: Sequence[str] = HOSTS) -> None:
        """A playbook found each of these hosts as it should be; if not, the tasks are named first."""
        tasks = re.findall(r"^TASK \[(.*?)\]|^changed: \[(.*?)\]", self.output, re.MULTILINE)
        last, changed = "", []
        for task, host in tasks:
            last = task or last
            changed += [f"{host}: {last}"] if host else []
        assert self.changed == dict.fromkeys(hosts, 0), (
            f"changed: {changed}, exit code {self.exit_code}\n{self.output}"
        )

    def json(self) -> Any:
        """The JSON that a command printed; what it said beside is on standard error."""
        return json.loads(self.output)

    @property
    def faults(self) -> list[dict[str, Any]]:
        """The warnings and errors of `doctor --json`, but for those that cluster.yaml waives."""
        return [one for one in self.json()["findings"] if one["severity"] != "info" and one["waived"] is None]


def told(faults: Sequence[Mapping[str, Any]]) -> str:
    """Findings of a doctor, a line each: the first is what a cut-off log shows."""
    return "\n".join(f"{one['code']} {one['node'] or ''}: {one['message']}" for one in faults)


@dataclass(frozen=True)
class FirstRun:
    """What was seen while the cluster came into being."""

    unlocked: Done
    checked: Done
    differences: list[str]
    played: Done


NOTHING = dict.fromkeys(HOSTS, 0)


class Cluster:
    """The suite's project and its lab.

    Args:
        name: of the lab.
        root: raytools' on the hosts.
        lab: makes the lab for the project's directory; None: one of containers.
        hosts: that are there from the beginning to the end, the head first.
    """

    def __init__(
        self,
        name: str = "suite",
        root: str = ROOT,
        lab: Callable[[Path], Any] | None = None,
        hosts: Sequence[str] = HOSTS,
        pause_s: float = 0.3,
    ) -> None:
        self.hosts = hosts
        self.pause_s = pause_s  # between looks at a Ray that starts: emulated, looking delays it
        self.root = Path(root)
        self._made_here: Path | None = None
        self.directory = (CHECKOUT / ".raytools").resolve() / f"lab-{name}"
        self.lab = lab(self.directory) if lab else Lab(name, checkout=self.directory)

    # --- the project ---

    def create(self, hosts: Sequence[HostSpec] | None = None) -> None:
        """The lab is up, its hosts are bare; the project knows nothing yet.

        Args:
            hosts: None: the suite's three.
        """
        self.remove()
        self._made_here = _first_missing(self.root)
        (self.directory / "inventory").mkdir(parents=True)
        state = self.directory / ".raytools"
        for name in _SHARED_STATE:
            (CHECKOUT / ".raytools" / name).mkdir(parents=True, exist_ok=True)
            state.mkdir(exist_ok=True)
            (state / name).symlink_to(CHECKOUT / ".raytools" / name)
        self.lab.up(hosts or plain_hosts(len(HOSTS), [HostSpec("n3", without=("libgomp1",))]))

    def take_lock(self) -> bool:
        """The checkout's lock of the default environment, if there is one: saves half a minute."""
        locks = self.directory / ".raytools" / "locks"
        found = list((CHECKOUT / ".raytools" / "locks").glob("automl.lock.yaml"))
        for path in found:
            locks.mkdir(exist_ok=True)
            shutil.copy2(path, locks)
        return bool(found)

    def remove(self) -> None:
        """Nothing is left of lab and project, nor of what the controller has built for them."""
        self.lab.down()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._made_here is not None:
            shutil.rmtree(self._made_here, ignore_errors=True)

    # --- commands of the controller ---

    def play(self, playbook: str, *options: str, inventory: Path | None = None, wait_s: float = 600) -> Done:
        """`ansible-playbook playbooks/<playbook>.yml`, as docs/lab.md has it."""
        return _run(self.play_command(playbook, *options, inventory=inventory), self, wait_s)

    def play_command(self, playbook: str, *options: str, inventory: Path | None = None) -> list[str]:
        return [
            str(BIN / "ansible-playbook"), str(CHECKOUT / "playbooks" / f"{playbook}.yml"),
            "-i", str(inventory or self.lab.inventory), "-e", f"raytools_config={self.lab.cluster_yaml}",
            *options,
        ]  # fmt: skip

    def raytools(self, *arguments: str, inventory: Path | None = None, wait_s: float = 300) -> Done:
        """A `raytools` command for this project; of what it printed, only standard output if that is JSON."""
        command = self.raytools_command(*arguments, inventory=inventory)
        return _run(command, self, wait_s, apart="--json" in arguments)

    def raytools_command(self, *arguments: str, inventory: Path | None = None) -> list[str]:
        named = ["-i", str(inventory or self.lab.inventory), "-c", str(self.lab.cluster_yaml)]
        return [str(BIN / "raytools"), *arguments, *named]

    @contextlib.contextmanager
    def playing(self, playbook: str, *options: str) -> Iterator[subprocess.Popen[str]]:
        """A playbook that runs while the block does; in a session of its own, killed at the end."""
        with (self.directory / "playing.log").open("w") as log:
            process = subprocess.Popen(
                self.play_command(playbook, *options),
                cwd=self.directory, env=self.environment(), text=True, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "RAYTOOLS_CHANNELS": "local",
            "COLUMNS": "200",
        }

    @contextlib.contextmanager
    def changed_file(self, path: Path, change: Callable[[str], str]) -> Iterator[None]:
        """A file of the project reads otherwise while the block runs."""
        before = path.read_text()
        path.write_text(change(before))
        try:
            yield
        finally:
            path.write_text(before)

    @contextlib.contextmanager
    def changed_inventory(self, change: Callable[[dict[str, Any]], object]) -> Iterator[Path]:
        """The lab's inventory with something changed, as a file beside it."""
        data = yaml.safe_load(self.lab.inventory.read_text())
        change(data)
        path = self.lab.inventory.with_name("changed.yml")
        path.write_text(yaml.safe_dump(data))
        try:
            yield path
        finally:
            path.unlink()

    # --- looks at a host, as root and past ssh ---

    def sh(self, host: str, script: str, *, check: bool = True) -> str:
        """Standard output of a shell script."""
        return self.lab.exec(host, ["sh", "-c", script], check=check).stdout.strip()

    def unit(self, host: str) -> dict[str, str]:
        """What systemd says of Ray's unit."""
        shown = self.sh(host, f"systemctl show {self.unit_name}")
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    @property
    def unit_name(self) -> str:
        return f"raytools-ray-{self.lab.name}.service"

    def raylet(self, host: str) -> int | None:
        """The pid of our raylet there; a run may have a private Ray of its own, in a group below."""

        def is_ours(pid: int) -> bool:
            groups = self.sh(host, f"cat /proc/{pid}/cgroup", check=False)
            return f"/{self.unit_name}" in groups and "/rt-run-" not in groups

        found = [pid for pid in self.processes_named(host, "raylet") if is_ours(pid)]
        assert len(found) <= 1, found
        return found[0] if found else None

    def raylets(self) -> dict[str, int | None]:
        """Host -> the pid of our raylet there."""
        return {host: self.raylet(host) for host in self.hosts}

    def alive(self) -> set[str]:
        """Addresses of the nodes that Ray's head reports alive; none if it does not answer."""
        code = (
            "import json,os,sys;from raytools.node import ray_view;"
            f"n=json.load(open('{ROOT}/node.json'));"
            "print(*[x['address'] for x in ray_view.view(n)['nodes'] if x['state']=='ALIVE'])"
        )
        script = (
            f'PYTHONPATH=$({ROOT}/envs/current/bin/python -c "import json;'
            f"print(json.load(open('{ROOT}/node.json'))['toolkit'])\") "
            f'{ROOT}/envs/current/bin/python -c "{code}" 2>/dev/null'
        )
        return set(self.sh(HEAD, script, check=False).split())

    def await_healthy(self, limit_s: float) -> float:
        """Waits until Ray reports every host alive and each unit has started; returns the seconds it took."""
        wanted = set(self.lab.addresses.values())
        what = f"all of {sorted(wanted)} alive, and their units active"

        def has_started(host: str) -> bool:
            return self.sh(host, f"systemctl is-active {self.unit_name}", check=False) == "active"

        def is_healthy() -> bool:
            # a unit is active a little after its node is alive, and a playbook restarts one that is not
            return self.alive() == wanted and all(map(has_started, self.lab.addresses))

        try:
            return until(is_healthy, limit_s, what, self.pause_s)
        except AssertionError as error:
            silent = wanted ^ self.alive() or wanted
            raise AssertionError(f"{error}\n{self.said_of_ray(silent)}") from None

    def said_of_ray(self, addresses: set[str]) -> str:
        """What systemd and Ray's log say on these hosts: it is gone when the lab is."""
        script = (
            f"systemctl show {self.unit_name} -p ActiveState,SubState,NRestarts,Result; "
            f"journalctl -u {self.unit_name} -n 12 --no-pager -o short-precise; "
            f"tail -n 8 {ROOT}/logs/ray.log; "
            "journalctl -k --no-pager | grep -i 'out of memory\\|oom-kill' | tail -n 4; "
            # of a Ray that has begun anew, the reason is in the session before
            f"for session in $(ls -td {ROOT}/ray/session_2* | head -n 2); do "
            "tail -n 12 $session/logs/gcs_server.out $session/logs/raylet.out; done"
        )
        return "\n".join(
            f"--- {host}\n{self.sh(host, script, check=False)}"
            for host, address in self.lab.addresses.items()
            if address in addresses
        )

    def heal(self, limit_s: float) -> None:
        """Every host is on and every Ray alive again: by itself, or else by a run of the playbook."""
        for host in self.hosts:
            if not self.lab.is_running(host):
                self.lab.power_on(host)
        try:
            self.await_healthy(limit_s)
        except AssertionError:
            healed = self.play("cluster", wait_s=900)
            if healed.exit_code != 0:
                pytest.exit(f"the cluster cannot be healed:\n{healed.output[-4000:]}", 1)

    def assert_comes_back(self, hosts: Sequence[str], how: Callable[[str], None], limit_s: float) -> None:
        """Hosts go down and come up again: without a person all Rays are alive, and the doctor finds nothing.

        Args:
            hosts: which ones, all at once.
            how: one goes down and is up again when this returns.
            limit_s: for all of Ray, once the hosts are up.
        """
        before, others = self.raylets(), [host for host in self.hosts if host not in hosts]
        with ThreadPoolExecutor() as pool:
            list(pool.map(how, hosts))
        if HEAD in hosts:  # the others' raylets belong to a head that is gone: they end, and begin anew
            until(
                lambda: all(self.raylet(host) not in (None, before[host]) for host in others),
                limit_s,
                f"new raylets on {', '.join(others)}",
                self.pause_s,
            )
        took_s = self.await_healthy(limit_s)
        print(f"{', '.join(hosts)}: all alive {took_s:.1f} s after sshd was up again")
        if HEAD not in hosts:
            assert all(self.raylet(host) == before[host] for host in others)
        report = self.raytools("doctor", "--threshold", "warning")
        assert report.exit_code == 0, report.output

    def processes_named(self, host: str, name: str) -> list[int]:
        """Pids of all processes of that name there, but for forks of one that have not called exec yet."""
        script = "cat /proc/[0-9]*/stat 2>/dev/null | "
        script += f"sed -n 's/^\\([0-9]*\\) ({name}) [^ ]* \\([0-9]*\\) .*/\\1 \\2/p'"
        lines = self.sh(host, script, check=False).splitlines()
        parents = dict(map(int, line.split()) for line in lines)
        return [pid for pid, parent in parents.items() if parent not in parents]

    def snapshot(self, host: str) -> frozenset[str]:
        """Files, accounts and units of a host as lines, without what changes by itself.

        Two are compared by `sorted(one ^ other) == []`: what differs is then what a failure shows.
        """
        lines = self.sh(
            host,
            "find / -xdev \\( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /var/log -o "
            "-path /var/lib/systemd -o -path /var/lib/logrotate -o -path '/etc/*-' -o -path /var/cache -o "
            "-path '*/.ansible' -o -name .sudo_as_admin_successful \\) -prune -o "
            "-type f -printf '%p %s %m %U\\n' -o -type l -printf '%p %l\\n' -o -type d -printf '%p %m %U\\n' "
            "; cat /etc/passwd /etc/group; ls /tmp",
        )
        return frozenset(lines.splitlines())


def _first_missing(path: Path) -> Path | None:
    """The uppermost part of a path that is not there; None if all of it is."""
    missing = [part for part in (path, *path.parents) if not part.exists()]
    return missing[-1] if missing else None


def _run(command: Sequence[str], cluster: Cluster, wait_s: float, *, apart: bool = False) -> Done:
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=cluster.directory, env=cluster.environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=wait_s, check=False,
    )  # fmt: skip
    output = done.stdout if apart and done.stdout.strip() else done.stdout + done.stderr
    return Done(done.returncode, output, time.monotonic() - began)


def until(holds: Callable[[], object], limit_s: float, what: str, pause_s: float = 0.3) -> float:
    """Waits until something holds.

    Returns:
        How long it took, in seconds.
    """
    began = time.monotonic()
    while not holds():
        waited_s = time.monotonic() - began
        assert waited_s < limit_s, f"after {waited_s:.0f} s not yet: {what}"
        time.sleep(pause_s)
    return time.monotonic() - began
