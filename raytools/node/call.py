"""The run's side of `@raytools.remote`: reads a pickled call, makes it, writes the pickled answer.

`python -m raytools.node call CALL ANSWER`. The exit code is 1 when the function raised.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> int:
    """Makes the call; the answer is (value, exception, traceback)."""
    from ray import cloudpickle

    call_file, answer_file = map(Path, arguments)
    # the requester is our own worker: this is the same trust as between a Ray driver and its tasks
    pickled, positional, named = pickle.loads(call_file.read_bytes())  # noqa: S301
    answer: tuple[Any, BaseException | None, str | None]
    try:
        function = pickle.loads(pickled)  # noqa: S301
        answer = (function(*positional, **named), None, None)
    except Exception as error:  # noqa: BLE001 - whatever the user's function raises is its answer
        answer = (None, error, traceback.format_exc())
    answer_file.write_bytes(_picklable(cloudpickle, answer))
    sys.stdout.flush()
    return 0 if answer[1] is None else 1


def _picklable(cloudpickle: Any, answer: tuple[Any, BaseException | None, str | None]) -> bytes:
    try:
        return bytes(cloudpickle.dumps(answer))
    except Exception:  # noqa: BLE001 - any __reduce__ may raise anything
        value, error, trace = answer
        kind = type(value if error is None else error).__name__
        problem = RuntimeError(f"what the function {'returned' if error is None else 'raised'} ({kind}) "
                               "cannot be pickled")  # fmt: skip
        return bytes(cloudpickle.dumps((None, problem, trace or traceback.format_exc())))
