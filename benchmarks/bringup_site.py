"""Where the bring-up benchmarks happen: a container lab, a project and a root of their own.

Nothing is shared with a person's cluster or the suite's lab but caches: the environment of the benchmarks is
built below `/opt/raytools-<name>`, on the controller too. All of it goes at the end, unless it is kept.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.measure import children_cpu_s
from tests.lab.cluster import CHECKOUT, Cluster, Done
from tests.lab.containers import HostSpec

HEAD = "n1"
# `archives` is not among them: the benchmarks' environment is built at another prefix than the others'
_SHARED = ("channel", "data", "toolkit")
_PLAY_LIMIT_S = 1200


class BenchmarkError(Exception):
    """Something that is no measurement has failed: what, and its last lines."""


@dataclass(frozen=True)
class Environment:
    """The built environment: the same prefix on controller and hosts."""

    prefix: Path

    @property
    def python(self) -> Path:
        return self.prefix / "bin" / "python"

    @property
    def ray(self) -> Path:
        return self.prefix / "bin" / "ray"


@dataclass(frozen=True)
class Played(Done):
    """A playbook that has succeeded; `cpu_s` is of all processes on the controller."""

    cpu_s: float


class Site:
    """The lab and its project; a context, at whose end nothing is left.

    Args:
        name: of the lab.
        keep: leave the lab up and the environment built, and take up what an earlier run has kept.
    """

    def __init__(self, name: str = "bench", *, keep: bool = False) -> None:
        self.cluster = Cluster(name)
        self.lab = self.cluster.lab
        self.root = Path(f"/opt/raytools-{name}")
        self.keep = keep
        self._connections = itertools.count()

    def __enter__(self) -> Site:
        if not (self.keep and self.lab.addresses):
            self._remove()
        self._prepare()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.keep:
            say(f"kept: lab {self.lab.name}, {self.root}, {self.cluster.directory}")
            return
        # a second Ctrl-C must not leave half a lab
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._remove()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remove(self) -> None:
        self.cluster.remove()
        self.forget_environment()

    def _prepare(self) -> None:
        directory, state = self.cluster.directory, self.state
        (directory / "inventory").mkdir(parents=True, exist_ok=True)
        state.mkdir(exist_ok=True)
        for name in _SHARED:
            source = CHECKOUT / ".raytools" / name
            source.mkdir(parents=True, exist_ok=True)
            if not (state / name).is_symlink():
                (state / name).symlink_to(source.resolve())
        # links of its own: whoever locks meanwhile removes from a cache what the new lock does not need
        cache = CHECKOUT / ".raytools" / "cache"
        if cache.exists() and not (state / "cache").exists():
            shutil.copytree(cache, state / "cache", copy_function=os.link)

    @property
    def state(self) -> Path:
        return self.cluster.directory / ".raytools"

    # --- hosts and environment ---

    def begin_with(self, count: int) -> None:
        """Bare hosts, unless as many were kept."""
        if not (self.keep and len(self.lab.addresses) == count):
            self.bare_hosts(count)

    def bare_hosts(self, count: int) -> None:
        """Hosts on which nothing of raytools is."""
        self.lab.down()
        self._prepare()
        self.hosts(count)

    def hosts(self, count: int) -> None:
        """n1 to n<count>; those that are there run on."""
        variables = {"raytools_root": str(self.root)}
        self.lab.up([HostSpec(f"n{number + 1}", variables=variables) for number in range(count)])
        self._lock()

    def _lock(self) -> None:
        """The checkout's lock if there is one; else a new one, which takes half a minute, not measured."""
        locks, name = self.state / "locks", "automl.lock.yaml"
        found = CHECKOUT / ".raytools" / "locks" / name
        if (locks / name).exists():
            return
        if found.exists():
            locks.mkdir(exist_ok=True)
            shutil.copy2(found, locks)
        done = self.cluster.raytools("env", "lock", wait_s=_PLAY_LIMIT_S)
        if done.exit_code != 0:
            raise BenchmarkError(f"nothing could be locked:\n{tail(done.output)}")

    def forget_environment(self) -> None:
        """The controller has it neither built nor packed; wheels and packages are still cached."""
        for path in (self.root, self.state / "archives"):
            shutil.rmtree(path, ignore_errors=True)

    @property
    def environment(self) -> Environment:
        return Environment(Path(self.node_json(HEAD)["environment"]["prefix"]))

    def node_json(self, host: str) -> dict[str, Any]:
        """The plan that a provisioned host has."""
        found: dict[str, Any] = json.loads(self.cluster.sh(host, f"cat {self.root}/node.json"))
        return found

    # --- playbooks ---

    def play(self, playbook: str, *options: str, variables: Mapping[str, str] | None = None) -> Played:
        """`ansible-playbook playbooks/<playbook>.yml`, with no connection left over from an earlier one.

        Raises:
            BenchmarkError: it failed; with its last lines.
        """
        fresh = self.cluster.directory / f"cp{os.getpid()}-{next(self._connections)}"
        environment = {
            **self.cluster.environment(), "ANSIBLE_SSH_CONTROL_PATH_DIR": str(fresh), **(variables or {}),
        }  # fmt: skip
        began, cpu_before_s = time.monotonic(), children_cpu_s()
        done = subprocess.run(
            self.cluster.play_command(playbook, *options), cwd=self.cluster.directory, env=environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PLAY_LIMIT_S, check=False,
        )  # fmt: skip
        wall_s, cpu_s = time.monotonic() - began, children_cpu_s() - cpu_before_s
        _close_connections(fresh)
        output = done.stdout + done.stderr
        if done.returncode != 0:
            command = " ".join(["ansible-playbook", f"playbooks/{playbook}.yml", *options])
            raise BenchmarkError(f"{command} ended with exit code {done.returncode}:\n{tail(output)}")
        return Played(done.returncode, output, wall_s, cpu_s)

    def provision(self) -> Played:
        """cluster.yml, not measured."""
        say(f"{len(self.lab.addresses)} hosts: provisioning")
        return self.play("cluster")


def _close_connections(directory: Path) -> None:
    """ssh would keep them for a minute."""
    for socket in directory.glob("*"):
        command = ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "any"]
        subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    shutil.rmtree(directory, ignore_errors=True)


def say(text: str) -> None:
    """Progress, at once; standard output is the table's."""
    print(text, file=sys.stderr, flush=True)


def tail(text: str, lines: int = 25) -> str:
    """The last lines that say something."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
