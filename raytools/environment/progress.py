"""How long work tells what it is doing. This layer prints nothing; the command line does."""

from __future__ import annotations


class Progress:
    """Told what happens; this one keeps it to itself."""

    def phase(self, text: str) -> None:
        """A new step that takes seconds has begun."""

    def detail(self, text: str) -> None:
        """Where the step is."""

    def note(self, text: str) -> None:
        """Something a person should know afterwards too."""


SILENT = Progress()
