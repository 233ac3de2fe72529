"""A smoke that runs on a lab's cluster while something happens to it, and looks at what it leaves."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.cluster import HEAD, Cluster, until

RESULTS = "/shared/results"


@dataclass
class Smoke:
    """A smoke of scope `cluster` that has begun."""

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


@contextlib.contextmanager
def smoke(cluster: Cluster, *arguments: str) -> Iterator[Smoke]:
    """`raytools smoke … --json`, killed at the end of the block if it still runs."""
    log = cluster.directory / "smoke.log"
    command = cluster.raytools_command("smoke", *arguments, "--json")
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=cluster.directory, env=cluster.environment(), text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=stream,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    try:
        yield Smoke(process, log, cluster)
    finally:
        process.kill()
        process.communicate()


def newest(cluster: Cluster, workload: str) -> str:
    """The directory of the workload's last smoke, on the hosts."""
    return cluster.sh(HEAD, f"ls -d {RESULTS}/{workload}/*/ | sort | tail -n 1").rstrip("/")


def batches_of(cluster: Cluster, directory: str, method: str) -> int:
    """How many batches of many-models a smoke has finished."""
    listed = cluster.sh(HEAD, f"ls {directory}/many-models/{method}/models-*.parquet | wc -l", check=False)
    return int(listed or 0)


def epochs_of_trials(cluster: Cluster, experiment: str) -> list[list[tuple[str, int]]]:
    """Of each trial the address and number of its epochs, in the order in which they were reported."""
    text = cluster.sh(HEAD, f"for file in {experiment}/*/result.json; do echo; cat $file; done")
    return [
        [(one["node_ip"], one["epoch"]) for one in map(json.loads, block.splitlines())]
        for block in text.split("\n\n")
        if block.strip()
    ]


def moved(trials: Sequence[list[tuple[str, int]]], address: str) -> list[tuple[int, int]]:
    """Of trials that began at an address and went on elsewhere: their last epoch there, and the next one."""
    found = []
    for trial in trials:
        for (before, last), (after, following) in itertools.pairwise(trial):
            if before == address != after:
                found.append((last, following))
    return found
