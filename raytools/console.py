"""How a command of the controller starts and ends: quick imports, errors as text, exit codes, no traceback.

Standard library only, and no command line library: `raytools config check` runs before one is imported.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Callable

from raytools.errors import ConfigError, RaytoolsError


def guarded(body: Callable[[], None]) -> int:
    """Runs a command's body; what it raises becomes a line on standard error and an exit code.

    Args:
        body: prints and returns, or raises a RaytoolsError or SystemExit.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: output, not a traceback
    # Start-up is imports: nothing of it is garbage, and no plugin of pydantic has a say in our models.
    gc.disable()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    try:
        body()
    except SystemExit as end:  # how Typer hands over an exit code
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # where output is not buffered, the body itself meets the closed pipe
        return 1
    except RaytoolsError as error:
        text = str(error) if isinstance(error, ConfigError) else f"raytools: {error}"
        sys.stderr.write(text + "\n")
        return error.exit_code
    finally:
        gc.enable()
        _flush()
    return 0


def _flush() -> None:
    """A reader that closed our output early (`| head -1`) is not an error worth a traceback."""
    if sys.stdout is None:  # closed by the caller (`>&-`)
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
