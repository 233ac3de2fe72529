"""`raytools run`: one command in a slot of this machine, under hard limits, with a record of what happened.

Standard library only: it is started before Typer and pydantic are imported.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from raytools.errors import RaytoolsError
from raytools.node import launch
from raytools.node.plan_file import find_node_file
from raytools.node.record import FAILED, KILLED, LOST, OK, OOM, REFUSED, TIMEOUT, Record
from raytools.node.request import (
    ALL_SLOTS,
    BEST_EFFORT,
    STRICT,
    RunRequest,
    record_target,
    start_directory,
)
from raytools.node.standby import Standby
from raytools.node.terminal import ForwardedSignals, Terminal, die_of, own_terminal
from raytools.units import format_duration, parse_duration_s, parse_size_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_USAGE_ERROR = 2
_EXIT_CODES = {TIMEOUT: 124, OOM: 137, REFUSED: 125, LOST: 1}

_EXAMPLES = """\
examples:
  raytools run --time 10m -- python train.py          the whole slot, at most ten minutes
  raytools run --cpus 1 --memory 2GiB -- ./fit.sh     less than the slot; it is taken all the same
  raytools run --wait 1h --record r.json -- make      wait for a free slot, keep the record
  raytools run --slot all -- ./benchmark.sh           all slots of the machine as one, nobody beside it
  raytools run --check                                prove each limit by small real runs

exit codes: the command's own, 128+n for its signal; 124 timeout; 137 out of memory; 125 refused;
126/127 not executable / not found; 1 lost; 2 usage. The record (--record) decides, the code is a convenience.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE_ERROR, f"raytools run: {message}. See: raytools run --help\n")


def _converter(parse: Any, name: str) -> Any:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    convert.__name__ = name
    return convert


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"found {text!r}, expected a whole number of at least 1")
    return int(text)


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _slot(text: str) -> int | str | None:
    if text in ("auto", ALL_SLOTS):
        return None if text == "auto" else text
    try:
        return _count(text)
    except ValueError:
        raise ValueError(f"found {text!r}, expected a slot's number, auto or all") from None


def _size(text: str) -> int:
    size_bytes = parse_size_bytes(text)
    if size_bytes < 1 << 20:
        raise ValueError(f"found {text!r}, expected at least 1MiB")
    return size_bytes


def _help_formatter(prog: str) -> argparse.HelpFormatter:
    """With a width of its own: argparse would import shutil to ask for it, even where nobody wants help."""
    return argparse.RawDescriptionHelpFormatter(prog, width=int(os.environ.get("COLUMNS") or 110))


def _parser() -> _Parser:
    parser = _Parser(
        prog="raytools run",
        usage="raytools run [OPTIONS] [--] COMMAND [ARGUMENT ...]",
        description=(__doc__ or "").split("\n\n")[0].split(": ", 1)[1].capitalize(),
        epilog=_EXAMPLES,
        formatter_class=_help_formatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--slot", type=_converter(_slot, "slot"), metavar="N|auto|all",
        help="which slot (default auto: a free one); all: every slot of the machine as one")  # fmt: skip
    add("--cpus", type=_converter(_positive, "cpus"), metavar="N", help="CPU threads (default: the slot's)")
    add("--memory", type=_converter(_size, "size"), metavar="SIZE", help="hard limit, such as 4GiB")
    add("--gpus", type=_converter(_count, "gpus"), metavar="N", help="GPUs (default: the slot's)")
    add("--time", type=_converter(parse_duration_s, "duration"), metavar="DURATION", help="wall time, as 10m")
    add("--grace", type=_converter(parse_duration_s, "duration"), metavar="DURATION",
        help="between SIGTERM at --time and the kill (default: none)")  # fmt: skip
    add("--wait", type=_converter(parse_duration_s, "duration"), metavar="DURATION", default=0.0,
        help="how long to wait for a free slot (default: refuse at once)")  # fmt: skip
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the command")
    add("--cwd", metavar="DIR", help="where the command starts")
    add("--record", metavar="FILE", help="write the record (JSON) there")
    add("--enforce", choices=(STRICT, BEST_EFFORT), default=STRICT,
        help="strict (default) refuses what cannot be enforced; best-effort records it")  # fmt: skip
    add("--check", action="store_true", help="prove each limit by small real runs and print a table")
    add("--json", action="store_true", help="with --check: the table as JSON")
    add("-c", "--config", metavar="FILE", help="cluster.yaml, whose .raytools/node.json is used")
    add("-i", "--inventory", metavar="PATH", help="accepted as by every command; runs are local")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str], standby: Standby | None = None) -> int:
    """Parses, runs, and returns the exit code.

    Args:
        arguments: of `raytools run`.
        standby: a supervisor that is getting ready already.
    """
    standby = standby or Standby()
    options = _parser().parse_args(arguments)
    try:
        node_file = find_node_file(options.config)
        if options.check:
            from raytools.node.check import main as check_main

            return check_main(node_file, as_json=options.json)
        return _run(_request(options, node_file), standby)
    except RaytoolsError as error:
        print(f"raytools run: {error}", file=sys.stderr)
        return error.exit_code


def _request(options: argparse.Namespace, node_file: str | None) -> RunRequest:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise RaytoolsError("found no command", expected="raytools run [OPTIONS] -- COMMAND")
    variables = dict(entry.partition("=")[::2] for entry in options.env)
    if wrong := [entry for entry in options.env if "=" not in entry or entry.startswith("=")]:
        raise RaytoolsError(f"--env: found {wrong[0]!r}", expected="NAME=VALUE")
    return RunRequest(
        command=command,
        cwd=start_directory(options.cwd),
        environment=dict(os.environ),
        variables=variables,
        slot=options.slot,
        cpus=options.cpus,
        memory_bytes=options.memory,
        gpus=options.gpus,
        time_s=options.time,
        grace_s=options.grace,
        wait_s=options.wait,
        enforce=options.enforce,
        record_path=record_target(options.record) if options.record else None,
        node_file=node_file,
    )


def _run(request: RunRequest, standby: Standby) -> int:
    request.ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    terminal = None if request.ignores_hangup else own_terminal()
    request.terminal_group = os.getpgrp() if terminal else None
    with terminal or contextlib.nullcontext(), ForwardedSignals(terminal is not None) as signals:
        run = launch.start_standby(request, standby)
        signals.listen()
        while not run.link.closed:
            if run.wait_for_more(signals.fileno()):
                signals.pass_on(run)
            else:
                run.take(run.link.receive(0), lambda event: _on_event(event, run, signals, terminal))
        run.close()
        record = run.result()
        if terminal is not None and _had_no_chance(record):
            terminal.restore()
    _explain(record)
    if terminal is not None and record.signal == signal.SIGINT:
        die_of(signal.SIGINT)
    return exit_code(record)


def _had_no_chance(record: Record) -> bool:
    """Whether the command was killed without a chance to bring the terminal back."""
    if record.outcome == OOM:  # by the kernel, or on cgroup v1 by us: only then there is no signal to tell
        return True
    return record.signal is None and record.outcome not in (OK, FAILED)


def _on_event(
    event: dict[str, Any], run: launch.SupervisedRun, signals: ForwardedSignals, terminal: Terminal | None
) -> None:
    if event["event"] in ("notice", "crashed"):
        print(f"raytools run: {event['text']}", file=sys.stderr)
    elif event["event"] == "stopped" and terminal is not None:
        terminal.stop_with(event["pid"])
    elif event["event"] == "why":
        signals.pass_on(run)
        run.told()


def _explain(record: Record) -> None:
    """One line on stderr for every end that the command did not choose itself."""
    if record.outcome in (OK,) or (record.outcome == FAILED and record.message is None):
        return
    wall = "" if record.used.wall_s is None else f" after {format_duration(record.used.wall_s)}"
    reason = f": {record.message}" if record.message else ""
    with contextlib.suppress(OSError):  # nobody listens any more
        print(f"raytools run: {record.outcome}{wall}{reason}", file=sys.stderr)


def exit_code(record: Record) -> int:
    """The exit code for a record, as documented in --help."""
    if record.outcome in _EXIT_CODES:
        return _EXIT_CODES[record.outcome]
    if record.signal is not None:
        return 128 + record.signal
    if record.exit_code is None:  # killed while it waited for its slot
        return 128 + signal.SIGTERM
    return record.exit_code if record.outcome != KILLED or record.exit_code else 128 + signal.SIGTERM
