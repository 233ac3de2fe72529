"""Entry point. What must start at once is dispatched before Typer is imported.

Typer and pydantic cost about 120 ms of start-up, which is more than a whole limited run should.
"""

from __future__ import annotations

import contextlib
import os
import sys


def main() -> int:
    """Dispatches to `raytools run`, a plain `raytools config check`, or the Typer application."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"]:
        from raytools.node.standby import Standby

        standby = Standby()  # before the imports of this process
        from raytools.node.run import main as run_main

        code = run_main(arguments[1:], standby)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # nobody listens any more
                    stream.flush()
        os._exit(code)  # taking the interpreter down takes 5 ms, and there is nothing left to do
    if arguments[:2] == ["config", "check"] and _at_most_a_file(arguments[2:]):
        from raytools.config_check import main as check_main

        return check_main(arguments[2] if len(arguments) > 2 else None)
    from raytools.cli import main as cli_main

    return cli_main()


def _at_most_a_file(arguments: list[str]) -> bool:
    return len(arguments) <= 1 and not any(argument.startswith("-") for argument in arguments)


if __name__ == "__main__":
    sys.exit(main())
