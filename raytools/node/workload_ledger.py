"""What a smoke of scope `cluster` keeps in its directory, so that it can be resumed: what was asked, and
which entries have ended. One driver at a time works on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raytools.errors import RaytoolsError
from raytools.node.record import OK, Record, write_json

if TYPE_CHECKING:
    from raytools.workloads.base import WorkloadRun

_LATEST = "latest"
_REQUEST_NAME = "request.json"
_ENTRY_NAME = "run-{}.json"


class Ledger:
    """Which entries of a smoke have ended: files `run-<number>.json`, which are whole or not there."""

    def __init__(self, directory: Path, entries: Sequence[str]) -> None:
        self.entries = tuple(entries)
        self._directory = directory
        self._runs = {entry: run for entry in self.entries if (run := self._read(entry))}

    def _path(self, entry: str) -> Path:
        return self._directory / _ENTRY_NAME.format(self.entries.index(entry))

    def _read(self, entry: str) -> WorkloadRun | None:
        from raytools.workloads.base import WorkloadRun

        with contextlib.suppress(FileNotFoundError, ValueError):
            run = WorkloadRun(**json.loads(self._path(entry).read_text()))
            if run.metrics.get("entry") == entry:
                return run
        return None

    def runs(self) -> list[WorkloadRun]:
        """All that have ended, in the order of the entries."""
        return [self._runs[entry] for entry in self.entries if entry in self._runs]

    def done(self) -> dict[str, Mapping[str, Any]]:
        """Metrics of those that ended well; the others may be done again."""
        return {entry: run.metrics for entry, run in self._runs.items() if run.record.get("outcome") == OK}

    def left(self) -> list[str]:
        """Those that have not ended well."""
        done = self.done()
        return [entry for entry in self.entries if entry not in done]

    def not_run(self) -> list[str]:
        """Those that have not ended at all."""
        return [entry for entry in self.entries if entry not in self._runs]

    def add(self, entry: str, record: Record, metrics: Mapping[str, Any]) -> WorkloadRun:
        """Writes an entry that has ended; one that had failed before is replaced.

        Raises:
            ValueError: there is no such entry, or it was done already.
        """
        from raytools.workloads.base import WorkloadRun

        if entry not in self.entries or entry in self.done():
            raise ValueError(f"found entry {entry!r}, expected one of {self.left()}")
        before = self._runs.get(entry)
        record.attempt = int(before.record.get("attempt") or 1) + 1 if before else 1
        run = WorkloadRun(record.to_json(), {"entry": entry, **metrics})
        write_json(self._path(entry), {"record": run.record, "metrics": run.metrics})
        self._runs[entry] = run
        return run


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """One driver at a time works on a smoke; the lock goes with the process.

    Raises:
        RaytoolsError: another one does.
    """
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RaytoolsError(
                f"{directory} is still at work", expected="one that was interrupted", fix="Wait for its end"
            ) from None
        yield


def write_request(directory: Path, request: Mapping[str, Any]) -> None:
    """Keeps what is asked, before anything of it is done: from here on the smoke is found by `find`."""
    write_json(directory / _REQUEST_NAME, request)


def read_request(directory: Path) -> dict[str, Any]:
    """What was asked when the smoke began.

    Raises:
        RaytoolsError: that is not there, or not whole.
    """
    try:
        found = json.loads((directory / _REQUEST_NAME).read_text())
    except (OSError, ValueError) as error:
        raise RaytoolsError(f"{directory / _REQUEST_NAME} cannot be read ({error})") from error
    return cast("dict[str, Any]", found)


def find(results: Path, name: str, workload: str | None = None) -> Path:
    """The directory of the smoke that a person means by its path, its id, a part of the id, or `latest`.

    Args:
        results: `results` below the storage.
        name: what the person typed; the path may be that of the controller's copy, which has the same id.
        workload: only of this one.

    Raises:
        RaytoolsError: there is none, or several.
    """
    if Path(name).is_absolute() and (Path(name) / _REQUEST_NAME).is_file():
        return Path(name)
    wanted = Path(name).name
    there = {path.parent.name: path.parent for path in results.glob(f"{workload or '*'}/*/{_REQUEST_NAME}")}
    if wanted == _LATEST and there:
        return there[max(there)]  # ids begin with the time
    fitting = [one for one in there if one == wanted] or [
        one for one in there if wanted and (one.startswith(wanted) or one.endswith(f"-{wanted}"))
    ]
    if len(fitting) == 1:
        return there[fitting[0]]
    newest_first = sorted(there, reverse=True)
    raise RaytoolsError(
        f"{len(fitting) or 'no'} smokes below {results} fit {name!r}",
        expected=f"the id of one of scope cluster ({', '.join(newest_first[:8]) or 'there is none'})",
        fix="Runs in slots (autogluon, stress) are not resumed: run them again",
    )
