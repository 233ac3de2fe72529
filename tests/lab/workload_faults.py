"""A command that runs on a lab's cluster while something happens to it, and looks at what it leaves."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.lab.cluster import HEAD, Cluster, until

RESULTS = "/shared/results"  # of the lab of containers


@dataclass
class Running:
    """A command of raytools that has begun."""

    process: subprocess.Popen[str]
    log: Path
    cluster: Cluster

    def said(self) -> str:
        """What it has shown to a person so far."""
        return self.log.read_text()

    def until_said(self, text: str, limit_s: float = 90) -> None:
        """Waits for words on its screen."""

        def is_there() -> bool:
            assert self.process.poll() is None, self.said()
            return text in self.said()

        until(is_there, limit_s, f"{text!r} on the screen")

    def document(self, limit_s: float) -> dict[str, Any]:
        """Its end."""
        out, _ = self.process.communicate(timeout=limit_s)
        assert out, self.said()
        document: dict[str, Any] = json.loads(out)
        return document

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


class Epoch(NamedTuple):
    """One epoch that a trial reported, and where it was."""

    address: str
    pid: int
    number: int

    @property
    def process(self) -> tuple[str, int]:
        """On all hosts."""
        return self.address, self.pid


@contextlib.contextmanager
def running_command(cluster: Cluster, *arguments: str) -> Iterator[Running]:
    """`raytools …`, killed at the end of the block if it still runs."""
    log = cluster.directory / "running.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            cluster.raytools_command(*arguments),
            cwd=cluster.directory, env=cluster.environment(), text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=stream,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    try:
        yield Running(process, log, cluster)
    finally:
        process.kill()
        process.communicate()


def smoke(cluster: Cluster, *arguments: str) -> contextlib.AbstractContextManager[Running]:
    """`raytools smoke … --json`, which has begun."""
    return running_command(cluster, "smoke", *arguments, "--json")


@contextlib.contextmanager
def without_power(cluster: Cluster, host: str, during: str) -> Iterator[None]:
    """A host loses its power; after the block it has it again, and the cluster is whole."""
    began = time.monotonic()
    cluster.lab.power_off(host, hard=True)
    try:
        yield
    finally:
        print(f"{host} without power during {during}: the end after {time.monotonic() - began:.0f} s")
        cluster.lab.power_on(host)
    cluster.await_healthy(90)


@contextlib.contextmanager
def without_raylet(cluster: Cluster, host: str, during: str) -> Iterator[None]:
    """A host's raylet is killed, and its unit begins anew; after the block the cluster is whole."""
    began = time.monotonic()
    cluster.sh(host, f"kill -KILL {cluster.raylet(host)}")
    yield
    print(f"{host}'s raylet killed during {during}: the end after {time.monotonic() - began:.0f} s")
    cluster.await_healthy(90)


Fault = Callable[[Cluster, str, str], contextlib.AbstractContextManager[None]]
FAULTS: dict[str, Fault] = {"power": without_power, "raylet": without_raylet}


def newest(cluster: Cluster, workload: str, results: str = RESULTS) -> str:
    """The directory of the workload's last smoke, on the hosts."""
    return cluster.sh(HEAD, f"ls -d {results}/{workload}/*/ | sort | tail -n 1").rstrip("/")


def batches_of(cluster: Cluster, directory: str, method: str) -> int:
    """How many batches of many-models a smoke has finished."""
    listed = cluster.sh(HEAD, f"ls {directory}/many-models/{method}/models-*.parquet | wc -l", check=False)
    return int(listed or 0)


def epochs_of_trials(cluster: Cluster, experiment: str) -> list[list[Epoch]]:
    """Of each trial its epochs, in the order in which they were reported."""
    text = cluster.sh(HEAD, f"for file in {experiment}/*/result.json; do echo; cat $file; done")
    return [
        [Epoch(one["node_ip"], one["pid"], one["epoch"]) for one in map(json.loads, block.splitlines())]
        for block in text.split("\n\n")
        if block.strip()
    ]


def restarted(trials: Sequence[Sequence[Epoch]], address: str) -> list[tuple[int, int]]:
    """Of trials that left a process at an address for another one: last epoch there, and the next one."""
    return [
        (before.number, after.number)
        for trial in trials
        for before, after in itertools.pairwise(trial)
        if before.address == address and before.process != after.process
    ]
