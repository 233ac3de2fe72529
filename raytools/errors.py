"""The one exception family of raytools. Standard library only: node code raises these too."""

from __future__ import annotations


class RaytoolsError(Exception):
    """Something a person can act on: what was found, what was expected, what to do.

    Args:
        found: what is wrong, with the values that were seen.
        expected: what would have been right, if that is not obvious.
        fix: the exact line to change or command to run.
    """

    exit_code = 2

    def __init__(self, found: str, *, expected: str | None = None, fix: str | None = None) -> None:
        self.found = found
        self.expected = expected
        self.fix = fix
        super().__init__(found)

    def __str__(self) -> str:
        text = self.found
        if self.expected:
            text += f", expected {self.expected}"
        if self.fix:
            text += f". {self.fix}"
        return text


class ConfigError(RaytoolsError):
    """cluster.yaml or the inventory is wrong. `str()` is the fixed form, one line per problem."""


class PlanError(RaytoolsError):
    """What is declared does not fit what the machines have."""


class EnvironmentBuildError(RaytoolsError):
    """An environment cannot be locked, built or verified."""


class TransportError(RaytoolsError):
    """A node cannot be reached or its answer cannot be used."""


class RefusedError(RaytoolsError):
    """A run cannot get what it was promised. `raytools run` exits with 125."""

    exit_code = 125
