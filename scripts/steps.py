"""Steps with visible progress, and the .venv they run in. Standard library only: nothing is installed yet.

For `make quickstart` and `make test`. A step that fails ends the whole with its output and what to do.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"
OLDEST_PYTHON = (3, 11)
_SILENCE_S = 10.0  # after this long without output, a line says that it is still working


class StepError(Exception):
    """A step failed: what to do is the message. Its output has been shown."""


@dataclass
class Steps:
    """Numbers and times the steps of one command."""

    total: int
    started: float = field(default_factory=time.monotonic)
    times_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step: its title before, its time after."""
        say(f"\n[{len(self.times_s) + 1}/{self.total}] {title}")
        started = time.monotonic()
        yield
        self.times_s[title] = time.monotonic() - started
        say(f"      done in {seconds(self.times_s[title])}")

    @property
    def wall_s(self) -> float:
        """Since the first step."""
        return time.monotonic() - self.started


def say(text: str) -> None:
    """A line for people, at once."""
    print(text, flush=True)


def seconds(value: float) -> str:
    """`3.2 s`, `2m05s`."""
    return f"{value:.1f} s" if value < 60 else f"{int(value) // 60}m{int(value) % 60:02d}s"


def run(argv: Sequence[str | Path], what_to_do: str, log: Path | None = None, *, quiet: bool = False) -> None:
    """Runs a command and shows what it prints; says that it is alive while it is silent.

    Args:
        argv: the command.
        what_to_do: for the reader, if it fails.
        log: a file in which the command tells its progress, if its output does not.
        quiet: show the output only if it fails.

    Raises:
        StepError: it failed.
    """
    process = subprocess.Popen(
        [str(part) for part in argv], cwd=CHECKOUT, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    heartbeat = _Heartbeat(log)
    lines = []
    try:
        for line in process.stdout:
            heartbeat.alive()
            lines.append(line)
            if not quiet:
                say(f"      {line.rstrip()}".rstrip())
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it got the signal too and tidies up
        raise
    finally:
        heartbeat.end()
    if code != 0:
        if quiet:
            say("".join(lines))
        raise StepError(f"`{_shown(argv)}` ended with exit code {code}. {what_to_do}")


def _shown(argv: Sequence[str | Path]) -> str:
    return " ".join(str(part).replace(f"{CHECKOUT}/", "") for part in argv)


def environment() -> dict[str, str]:
    """For the commands: the .venv's programs first; Ansible in colour where a person looks."""
    variables = dict(os.environ)
    variables["PATH"] = f"{VENV}/bin:{variables.get('PATH', os.defpath)}"
    variables["PYTHONUNBUFFERED"] = "1"
    variables.pop("PYTHONHOME", None)
    if sys.stdout.isatty():
        variables.setdefault("ANSIBLE_FORCE_COLOR", "1")
    return variables


class _Heartbeat:
    """Says that a silent command is still working, with the last line of its log."""

    def __init__(self, log: Path | None) -> None:
        self._log = log
        self._started = self._last = time.monotonic()
        self._last_output_at = time.time()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def alive(self) -> None:
        """The command has printed something."""
        self._last = time.monotonic()
        self._last_output_at = time.time()

    def end(self) -> None:
        """The command has ended."""
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._done.wait(1.0):
            if time.monotonic() - self._last >= _SILENCE_S:
                self._last = time.monotonic()
                say(f"      … {seconds(time.monotonic() - self._started)}{self._progress()}")

    def _progress(self) -> str:
        """The log's last line, if it was written since the command last printed something."""
        if self._log is None or not self._log.exists() or self._log.stat().st_mtime < self._last_output_at:
            return ""
        lines = self._log.read_text(errors="replace").replace("\r", "\n").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:100]}" if last else ""


def require_python() -> None:
    """This Python can make the .venv.

    Raises:
        StepError: it is too old, or has no venv.
    """
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        raise StepError(
            f"{sys.executable} is Python {found}, expected 3.11 or newer. "
            "Name another one: make PYTHON=/path/to/python3.11 quickstart"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise StepError(
            f"{sys.executable} cannot make virtual environments: its venv module is packed separately. "
            f"Install it: sudo apt-get install {package}"
        ) from None


def make_venv(extra: str = "") -> bool:
    """Creates .venv where there is none and installs this checkout into it, unless it is there already.

    Args:
        extra: an extra of pyproject.toml, such as `dev`.

    Returns:
        Whether anything was installed.
    """
    stamp = VENV / f".installed{'-' + extra if extra else ''}"
    wanted = _installation_digest()
    if stamp.exists() and stamp.read_text() == wanted:
        return False
    if not (VENV / "bin" / "pip").exists():
        run(
            [sys.executable, "-m", "venv", "--clear", VENV],
            "Is there room, and may this directory be written?",
            quiet=True,
        )
    install: list[str | Path] = [
        VENV / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    run(
        [*install, "-e", f".[{extra}]" if extra else "."],
        "pip needs a package index it can reach (pip.conf, PIP_INDEX_URL and proxy variables are honoured).",
        quiet=True,
    )  # fmt: skip
    # pip compiles what it installs, but not an editable checkout, and not everybody's Python writes byte code
    run([VENV / "bin" / "python", "-m", "compileall", "-q", "raytools"], "May this directory be written?")
    stamp.write_text(wanted)
    return True


def _installation_digest() -> str:
    """Changes with pyproject.toml, with the place of the checkout and with the .venv's Python."""
    parts = [(CHECKOUT / "pyproject.toml").read_bytes(), str(CHECKOUT).encode()]
    configuration = VENV / "pyvenv.cfg"
    parts.append(configuration.read_bytes() if configuration.exists() else sys.version.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def guarded(main: object, name: str) -> int:
    """Runs a script's main; a failed step and Ctrl-C end it cleanly.

    Returns:
        The exit code: 1 for a failed step, 130 for Ctrl-C.
    """
    try:
        assert callable(main)
        return int(main() or 0)
    except StepError as error:
        say(f"\n{name} stopped: {error}")
        return 1
    except KeyboardInterrupt:
        say(f"\n{name} was interrupted. What is done is kept: `make {name}` goes on from there.")
        return 130
