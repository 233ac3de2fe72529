"""`raytools smoke --workload all`: every workload this Python knows, each a result of its own.

Prints nothing; what happens meanwhile is told to the callbacks of whoever asks. One that cannot run, or that
another package got wrong, does not keep the others from it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from raytools.errors import RaytoolsError
from raytools.smoke import OnEvent, run_smoke
from raytools.workloads import base

if TYPE_CHECKING:
    from raytools.inventory import Inventory
    from raytools.project import Project
    from raytools.smoke import SmokeResult

SCHEMA = "raytools.smoke-all/1"
PASS, FAIL, COULD_NOT_RUN = "pass", "fail", "could not run"
EXIT_CODES = {PASS: 0, FAIL: 1, COULD_NOT_RUN: 2}
CANCELLED = "it was cancelled"
NOT_RUN = "it was not run: an earlier one was cancelled"

Watched = Callable[[str, str], AbstractContextManager[OnEvent]]


@dataclasses.dataclass(frozen=True)
class Done:
    """What became of one workload.

    Args:
        name: of the workload.
        document: `raytools.smoke/1`, None if there is none.
        error: why there is none, in one sentence.
        kept_as: the id of its result.
        not_kept: why it could not be kept.
        wall_s: from its preparation to its verdict, in seconds; None if it was not begun.
    """

    name: str
    document: Mapping[str, Any] | None = None
    error: str | None = None
    kept_as: str | None = None
    not_kept: str | None = None
    wall_s: float | None = None

    @property
    def verdict(self) -> str:
        return str(self.document["verdict"]) if self.document else COULD_NOT_RUN

    @property
    def first_reason(self) -> str:
        reasons: Sequence[str] = self.document["reasons"] if self.document else [self.error or ""]
        return next(iter(reasons), "")


def run_all(
    project: Project,
    inventory: Inventory,
    *,
    enforce: str,
    max_slower: float,
    watched: Watched,
    on_done: Callable[[Done], None],
) -> None:
    """Runs all with their usual parameters. A cancelled one ends it; what had finished was told.

    Args:
        project: whose state directory keeps results.
        inventory: whose head is asked.
        enforce: `strict` or `best-effort`.
        max_slower: share by which a node may be slower than its peers.
        watched: makes, for a name and a summary, what is told the events of that workload.
        on_done: told what became of each, also of those that were not begun.

    Raises:
        KeyboardInterrupt: it was cancelled, after `on_done` was told of all.
    """
    names = base.names()
    for at, name in enumerate(names):
        began = time.monotonic()
        try:
            result = _run_one(project, inventory, name, enforce, max_slower, watched)
        except KeyboardInterrupt:
            on_done(Done(name, error=CANCELLED, wall_s=time.monotonic() - began))
            for left in names[at + 1 :]:
                on_done(Done(left, error=NOT_RUN))
            raise
        except RaytoolsError as error:
            on_done(Done(name, error=str(error), wall_s=time.monotonic() - began))
        except Exception as error:  # noqa: BLE001 - of another package: the others are done all the same
            on_done(Done(name, error=f"{type(error).__name__}: {error}", wall_s=time.monotonic() - began))
        else:
            wall_s = time.monotonic() - began
            on_done(Done(name, result.document, None, result.kept_as, result.not_kept, wall_s))


def _run_one(
    project: Project, inventory: Inventory, name: str, enforce: str, max_slower: float, watched: Watched
) -> SmokeResult:
    workload = base.find(name)
    parameters = base.make_parameters(workload, {})
    workload.check(parameters)
    with watched(name, workload.summary) as on_event:
        return run_smoke(
            project,
            inventory,
            workload,
            parameters,
            enforce=enforce,
            on_event=on_event,
            max_slower=max_slower,
        )


def verdict_of(all_done: Iterable[Done]) -> str:
    """`could not run` if one could not, else `fail` if one failed, else `pass`."""
    verdicts = {done.verdict for done in all_done}
    return next(
        (one for one in (COULD_NOT_RUN, FAIL) if one in verdicts), PASS if verdicts else COULD_NOT_RUN
    )


def document_of(all_done: Iterable[Done]) -> dict[str, Any]:
    """The JSON `raytools.smoke-all/1`; its verdict is `fail` also where one could not run."""
    told = list(all_done)
    return {
        "schema": SCHEMA,
        "verdict": PASS if verdict_of(told) == PASS else FAIL,
        "workloads": {done.name: done.document or {"error": done.error} for done in told},
    }
