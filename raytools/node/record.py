"""The record of a run (`raytools.run/1`): what was promised, enforced, used, and how it ended.

Bytes, seconds, UTC ISO-8601. What could not be measured is None, never 0. A start record
(`outcome: null`) is written before anything runs and replaced at the end.
"""

from __future__ import annotations

import json
import os
import time

from raytools.node.plain import Plain, as_dict, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEMA = "raytools.run/1"

OK, FAILED, TIMEOUT, OOM, KILLED, LOST, REFUSED = (
    "ok",
    "failed",
    "timeout",
    "oom",
    "killed",
    "lost",
    "refused",
)


def utc_now() -> str:
    """The time as it stands in records: UTC, ISO-8601, milliseconds."""
    return utc_at(time.time())


def utc_at(time_s: float) -> str:
    """The same of a time in seconds since the epoch."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(time_s))}.{int(time_s % 1 * 1000):03d}Z"


class Limits(Plain):
    """What the run was promised, and may not exceed."""

    cpus: int | None = None
    cpu_set: list[int] | None = None
    memory_bytes: int | None = None
    time_s: float | None = None
    grace_s: float = 0.0
    gpus: list[int] = field(factory=list)
    pids: int | None = None


class Enforced(Plain):
    """By what each limit was held; None means by nothing, and `missing` says why."""

    cpu: str | None = None  # cgroup-v1 | cgroup-v2 | affinity
    memory: str | None = None  # cgroup-v1 | cgroup-v2 | polled
    time: str | None = None  # cgroup.kill | freezer | signals
    confinement: str | None = None  # mount-namespace
    missing: list[str] = field(factory=list)


class Used(Plain):
    """What the run took. `memory_peak_bytes` is the group's charge, page cache and tmpfs included."""

    wall_s: float | None = None
    cpu_s: float | None = None
    memory_peak_bytes: int | None = None
    anon_peak_bytes: int | None = None
    oom_kills: int | None = None
    throttled_s: float | None = None
    processes_swept: int = 0
    processes_left: int = 0


class Host(Plain):
    """Where it ran. `slot` is None for a run that took all slots."""

    name: str | None = None
    slot: int | None = None
    cpu_model: str | None = None
    kernel: str | None = None
    environment: str | None = None


class Fairness(Plain):
    """Whether this run can be compared with others, and what speaks against it."""

    verdict: str = "comparable"  # comparable | tainted
    reasons: list[str] = field(factory=list)
    steal_s: float | None = None
    swap_in_bytes: int | None = None
    cpu_pressure_s: float | None = None
    outside_cpu_s: float | None = None  # others on this run's own CPUs
    neighbour_cpu_s: float | None = None  # everything on the node's other CPUs


class Record(Plain):
    """One execution of one command; `to_json()` is the fixed schema."""

    run_id: str
    command: list[str]
    outcome: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    attempt: int = 1
    started_at: str | None = None
    finished_at: str | None = None
    message: str | None = None  # why it was refused, lost or killed, in words
    limits: Limits = field(factory=Limits)
    enforced: Enforced = field(factory=Enforced)
    used: Used = field(factory=Used)
    host: Host = field(factory=Host)
    fairness: Fairness = field(factory=Fairness)

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON types, schema first."""
        return {"schema": SCHEMA, **as_dict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: this is not a `raytools.run/1` record.
        """
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise ValueError(f"found schema {schema!r}, expected {SCHEMA!r}")
        plain = {key: value for key, value in data.items() if key != "schema"}
        parts = {"limits": Limits, "enforced": Enforced, "used": Used, "host": Host, "fairness": Fairness}
        try:
            for key, kind in parts.items():
                plain[key] = kind(**plain[key])
            return cls(**plain)
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no complete {SCHEMA} record: {error}") from error


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Replaces `path` in one step, so that a reader sees the old or the new content, never half of one."""
    target = os.fspath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(data, indent=1) + "\n")
            os.fchmod(handle, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
