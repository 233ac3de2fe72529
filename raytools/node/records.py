"""Records that were written: reading one, and those of all attempts at one task."""

from __future__ import annotations

import json
import os
import time

from raytools.node import locks
from raytools.node.record import LOST, Record, utc_now, write_json

_FINAL_WAIT_S = 15.0  # a supervisor takes at most ten to kill what is left, then it writes
_POLL_S = 0.05


def read_record(path: str, node_name: str | None = None) -> Record:
    """Reads a record; a start record whose run nobody on this node holds any more becomes `lost`.

    Args:
        path: of the file.
        node_name: of this node; of runs on other nodes this one cannot tell whether they go on.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no record.
    """
    with open(path) as file:
        record = Record.from_json(json.load(file))
    here = node_name is None or record.host.name == node_name
    if record.outcome is None and here and all(held.run_id != record.run_id for held in locks.holders()):
        with open(path) as file:  # it may have ended between the two
            record = Record.from_json(json.load(file))
        if record.outcome is None:
            record.outcome = LOST
            record.message = "its supervisor vanished"
    return record


class Attempts:
    """The records of one task of Ray's: `<folder>/<task>-<attempt>.json`.

    The folder is in the storage: where that is shared, an attempt finds those before it on whatever node.
    """

    def __init__(self, folder: str, task: str, node_name: str) -> None:
        self._folder = folder
        self._task = task
        self._node_name = node_name
        os.makedirs(folder, exist_ok=True)

    def path(self, number: int) -> str:
        """Where the record of this attempt belongs."""
        return f"{self._folder}/{self._task}-{number}.json"

    def numbers(self) -> list[int]:
        """The attempts that left a record here, in order."""
        found = []
        for name in os.listdir(self._folder):
            task, _, rest = name.rpartition("-")
            if task == self._task and rest.endswith(".json") and rest[:-5].isdigit():
                found.append(int(rest[:-5]))
        return sorted(found)

    def last(self) -> Record | None:
        """The record of the last attempt once it is final; `lost` if it does not become so in time."""
        numbers = self.numbers()
        if not numbers:
            return None
        deadline = time.monotonic() + _FINAL_WAIT_S
        while True:
            record = read_record(self.path(numbers[-1]), self._node_name)
            if record.outcome is not None:
                break
            if time.monotonic() > deadline:
                record.outcome, record.message = LOST, f"its node ({record.host.name}) does not answer for it"
                break
            time.sleep(_POLL_S)
        if record.outcome == LOST:
            self.write(numbers[-1], record)
        return record

    def give_up(self, why: str) -> Record | None:
        """The record of the last attempt, which is `lost` now if it had no end; None: no attempt left one."""
        numbers = self.numbers()
        if not numbers:
            return None
        record = read_record(self.path(numbers[-1]), self._node_name)
        if record.outcome is None:
            record.outcome, record.message = LOST, why
        if record.outcome == LOST:
            self.write(numbers[-1], record)
        return record

    def write(self, number: int, record: Record) -> None:
        """Replaces the record of an attempt by one that nobody else will write any more."""
        record.finished_at = record.finished_at or utc_now()
        write_json(self.path(number), record.to_json())
