"""Entry point. `raytools run` goes to a standard-library path before Typer is imported.

Typer and pydantic cost about 120 ms of start-up, which is more than a whole limited run should.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Dispatches to `raytools run` or to the Typer application; returns the exit code."""
    if sys.argv[1:2] == ["run"]:
        from raytools.node.run import main as run_main

        return run_main(sys.argv[2:])
    from raytools.cli import main as cli_main

    return cli_main()


if __name__ == "__main__":
    sys.exit(main())
