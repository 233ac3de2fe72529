"""Why Ray did not start: its own last words and, where the cause is known, plain ones. Reads files only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from raytools.errors import RaytoolsError

_QUOTED_LINES = 12
_COMPONENT_LOGS = ("gcs_server.err", "raylet.err", "gcs_server.out", "raylet.out")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class RayServiceError(RaytoolsError):
    """Ray cannot be started or stopped as planned."""

    exit_code = 1


@dataclass(frozen=True)
class _Cause:
    pattern: str  # in Ray's output or its components' logs
    found: str
    fix: str


_CAUSES = (
    _Cause(
        r"Version mismatch",
        "Ray's or Python's version differs from the head's",
        "Rebuild the environment on this node: ansible-playbook playbooks/cluster.yml",
    ),
    _Cause(
        r"[Aa]uthentication token|[Uu]nauthenticated|UNAUTHENTICATED",
        "the token is missing, or not the head's",
        "Hand it out again: ansible-playbook playbooks/ray.yml",
    ),
    _Cause(
        r"[Aa]ddress already in use|[Ff]ailed to bind|[Pp]ort \d+ is (already )?in use",
        "a port was taken in the meantime",
        "Run the playbook again: it names the holder.",
    ),
    _Cause(
        r"No space left on device",
        "the disk is full",
        "Make room in the temp dir or below the root.",
    ),
    _Cause(
        r"No such option|Usage: ray start",
        "this Ray does not know an argument of the plan",
        "The environment's Ray is another than raytools supports: see environment.pip in cluster.yaml.",
    ),
    _Cause(
        r"ModuleNotFoundError|ImportError",
        "the environment is not complete",
        "See what is missing: raytools env verify",
    ),
    _Cause(
        r"[Ff]ailed to connect to (GCS|Ray)|[Uu]nable to connect to GCS|UNAVAILABLE",
        "the head's GCS does not answer",
        "Is Ray up on the head, and does a firewall let its ports through?",
    ),
)


def start_error(log_path: Path, temp_dir: Path, *, still_running: bool) -> RayServiceError:
    """The error for a Ray that ended at start, or did not come up in time.

    Args:
        log_path: output of `ray start`.
        temp_dir: where its components log, below session_latest/logs.
        still_running: it has not ended, but is not up either.
    """
    logs = temp_dir / "session_latest" / "logs"
    said = _COLOUR.sub("", log_path.read_text(errors="replace")) if log_path.exists() else ""
    components = [
        path.read_text(errors="replace") for name in _COMPONENT_LOGS if (path := logs / name).exists()
    ]
    found = f"Ray {'did not come up' if still_running else 'ended at start'}"
    fix = f"All it said: {log_path} and {logs}"
    if cause := _cause([said, *components]):
        found, fix = f"{found}: {cause.found}", f"{cause.fix}\n{fix}"
    last = [line for line in said.splitlines() if line.strip()][-_QUOTED_LINES:]
    quoted = "\n".join(f"  | {line}" for line in last or ["(it said nothing)"])
    return RayServiceError(f"{found}\n{quoted}\n", fix=fix)


def _cause(texts: list[str]) -> _Cause | None:
    """The first known cause; the order of the table goes from particular to general."""
    return next((cause for cause in _CAUSES if any(re.search(cause.pattern, text) for text in texts)), None)
