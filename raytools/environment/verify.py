"""Is the environment on this machine still what was built? Every file is read and hashed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytools.environment.identity import EnvironmentIdentity
from raytools.errors import EnvironmentBuildError
from raytools.node.manifest import Difference, compare, read_environment

SCHEMA = "raytools.env-verify/1"
_SHOWN_PER_PACKAGE = 10


@dataclass(frozen=True)
class Verification:
    """What was found; clean if there are no differences."""

    identity: EnvironmentIdentity
    content_digest: str
    files: int
    differences: tuple[Difference, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What `raytools env verify --json` prints."""
        return {
            "schema": SCHEMA,
            "verdict": "drift" if self.differences else "clean",
            **self.identity.to_json(),
            "content_digest": self.content_digest,
            "files": self.files,
            "differences": [difference.to_json() for difference in self.differences],
            "seconds": round(self.seconds, 2),
        }


def verify_environment(identity: EnvironmentIdentity, root: Path) -> Verification:
    """Compares all files of the environment with what was noted when it was built.

    Raises:
        EnvironmentBuildError: it was never built here.
    """
    started = time.monotonic()
    notes = read_environment(identity.prefix, root)
    if notes is None:
        raise EnvironmentBuildError(
            f"environment {identity.id} was not built at {identity.prefix}",
            fix="Build it: raytools env build",
        )
    differences = tuple(compare(identity.prefix, root=root))
    return Verification(
        identity, notes["content_digest"], notes["files"], differences, time.monotonic() - started
    )


def sentences(differences: tuple[Difference, ...]) -> Iterator[str]:
    """The differences for people: all packages and files by name, but of one package not thousands."""
    shown: dict[str | None, int] = {}
    for difference in differences:
        count = shown.get(difference.package, 0) + (difference.kind == "file")
        shown[difference.package] = count
        if difference.kind == "package" or difference.package is None or count <= _SHOWN_PER_PACKAGE:
            yield str(difference)
    for package, count in shown.items():
        if package is not None and count > _SHOWN_PER_PACKAGE:
            yield f"... and {count - _SHOWN_PER_PACKAGE} more files of package {package} (--json lists all)"
