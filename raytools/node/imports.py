"""Can what is installed be imported, and how long does it take: `python -m raytools.node imports`.

By the environment's Python and as Ray's user, each library in the order below; one that takes the interpreter
down with it (a missing instruction of the processor) is named, and the others are tried all the same.
Standard library only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# distribution -> module: what has libraries of its own in it, or fits models
MODULES: Mapping[str, str] = {
    "ray": "ray", "numpy": "numpy", "scipy": "scipy", "pandas": "pandas", "pyarrow": "pyarrow",
    "scikit-learn": "sklearn", "lightgbm": "lightgbm", "xgboost": "xgboost", "xgboost-cpu": "xgboost",
    "catboost": "catboost", "torch": "torch", "autogluon.tabular": "autogluon.tabular",
}  # fmt: skip
_LIMIT_S = 120.0
_TRY = """
import importlib, json, sys, time
def say(event):
    print("\\n" + json.dumps(event), flush=True)  # a library may have printed half a line
for name in sys.argv[1:]:
    say({"begins": name})
    began = time.perf_counter()
    try:
        importlib.import_module(name)
        problem = None
    except BaseException as error:
        problem = f"{type(error).__name__}: {error}"
    say({"name": name, "problem": problem, "s": time.perf_counter() - began})
"""


def installed() -> list[str]:
    """The modules of the table that this interpreter's environment should have."""
    found = []
    for distribution, module in MODULES.items():
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(module)
    return list(dict.fromkeys(found))


def import_all(modules: Sequence[str], limit_s: float = _LIMIT_S) -> dict[str, dict[str, Any]]:
    """Module -> `problem` (None if it could be imported) and `s`, how long it took after those before it."""
    found: dict[str, dict[str, Any]] = {}
    left = list(modules)
    while left:
        answered, begun, why = _import_until_crash(left, limit_s)
        found |= answered
        if begun is None:
            break
        found[begun] = {"problem": why, "s": None}
        left = left[left.index(begun) + 1 :]
    return found


def _import_until_crash(
    modules: Sequence[str], limit_s: float
) -> tuple[dict[str, dict[str, Any]], str | None, str]:
    """What was said, and the module during whose import the interpreter ended, with how."""
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", _TRY, *modules]
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit_s, env=quiet, check=False)
        said, why = done.stdout, _ending(done.returncode)
    except subprocess.TimeoutExpired as error:
        said, why = error.stdout or b"", f"not done after {limit_s:g} s"
    begun: str | None = None
    answered = {}
    for line in said.decode(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # a library that prints
            continue
        if isinstance(event, dict) and "begins" in event:
            begun = event["begins"]
        elif isinstance(event, dict) and event.get("name") == begun and begun is not None:
            answered[begun] = {"problem": event["problem"], "s": round(event["s"], 3)}
            begun = None
    return answered, begun, why


def _ending(code: int) -> str:
    """How an interpreter ended, by name where it was a signal: SIGILL is what an old CPU says."""
    if code >= 0:
        return f"the interpreter ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"the interpreter was ended by {signal.Signals(-code).name}"
    return f"the interpreter was ended by signal {-code}"


def main(argv: list[str]) -> int:
    """JSON on standard output."""
    if argv:
        print("imports: takes no arguments", file=sys.stderr)
        return 2
    json.dump(import_all(installed()), sys.stdout)
    return 0
