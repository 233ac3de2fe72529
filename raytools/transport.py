"""One call per node, in parallel: runs `python -m raytools.node …` here without ssh, elsewhere over it.

A node needs Python 3 and nothing else: the node part of this package travels on standard input, so node code
is always the controller's version. Unknown or changed host keys are rejected. Decides and prints nothing.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shlex
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from raytools.errors import TransportError
from raytools.session import CLOSE_GRACE_S, LocalSession, OnLine, Said, Session, talk

if TYPE_CHECKING:
    from raytools.inventory import Host

_PACKAGE = Path(__file__).parent
_MARKER = "\x1eraytools\x1e"  # what a login script printed before it is not the command's output
_BOOTSTRAP_FAILED = 96
_CONNECT_WAIT_S = 10.0
_PARALLEL = 32
_LONGEST_STREAM_S = 30 * 24 * 3600.0

Interpreter = Literal["system", "environment", "installed"]


@dataclass(frozen=True)
class NodeCommand:
    """One `python -m raytools.node …`.

    Args:
        argv: the command and its arguments.
        stdin: text for its standard input.
        python: `system` = any Python there with our code; `environment` = the environment's Python with our
            code; `installed` = the environment's Python with the toolkit installed there.
        become: run as root; by default as the inventory says.
        as_service_user: run as the user whose Ray it is, where that is another than the one who connects.
    """

    argv: Sequence[str]
    stdin: str = ""
    python: Interpreter = "system"
    become: bool | None = None
    as_service_user: bool = False


@dataclass(frozen=True)
class Answer:
    """What a node said. `error` is one sentence if it could not be asked; then there is no exit code."""

    stdout: str
    stderr: str
    exit_code: int | None
    error: str | None = None

    def json(self) -> Any:
        """The JSON on standard output.

        Raises:
            TransportError: the node could not be asked, the command failed, or this is not JSON.
        """
        if self.error:
            raise TransportError(self.error)
        if self.exit_code != 0:
            last = (self.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
            raise TransportError(f"the command ended with exit code {self.exit_code}: {last}")
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise TransportError(
                f"the answer is not JSON (it begins with {self.stdout[:60]!r})", expected="one JSON object"
            ) from error


class _CallFailedError(Exception):
    """Ends one call with one sentence."""


def call(
    hosts: Sequence[Host],
    command: NodeCommand | Mapping[str, NodeCommand],
    timeout_s: float,
    on_stderr_line: Callable[[str, str], None] | None = None,
    *,
    state_dir: Path | None = None,
) -> dict[str, Answer]:
    """Runs one command on each host, in parallel.

    Args:
        hosts: of the inventory.
        command: one for all, or one per host name.
        timeout_s: for each node, connecting included.
        on_stderr_line: told host name and line as progress arrives.
        state_dir: where the generated ssh configuration is kept; needed for ssh hosts.

    Returns:
        An answer per host name, in the order of `hosts`; a node that fails does not disturb the others.
    """
    with Calls() as calls:
        return calls.start(hosts, command, timeout_s, on_stderr_line, state_dir=state_dir).answers()


class Asked:
    """What `Calls.start` returns: the answers, when they have come."""

    def __init__(self, hosts: Sequence[Host], one: Callable[[Host], Answer]) -> None:
        self._names = [host.name for host in hosts]
        self._answers: dict[str, Answer] = {}
        self._ended: SimpleQueue[tuple[str, Answer | BaseException]] = SimpleQueue()
        waiting: SimpleQueue[Host] = SimpleQueue()
        for host in hosts:
            waiting.put(host)

        def work() -> None:
            with contextlib.suppress(Empty):
                while host := waiting.get_nowait():
                    try:
                        self._ended.put((host.name, one(host)))
                    except BaseException as error:  # noqa: BLE001 - the asking thread raises it
                        self._ended.put((host.name, error))

        for _ in range(min(len(hosts), _PARALLEL)):
            threading.Thread(target=work, daemon=True).start()

    def answers(self) -> dict[str, Answer]:
        """Waits for all of them; as `call` returns them."""
        while len(self._answers) < len(self._names):
            name, answer = self._ended.get()
            if isinstance(answer, BaseException):
                raise answer
            self._answers[name] = answer
        return {name: self._answers[name] for name in self._names}


class Calls:
    """Calls that go on beside what the caller does. Leaving the block calls off those that have not ended.

    Nobody waits then, not for a connection that is being made either: their threads are daemons, so Ctrl-C
    is answered at once. A command here is killed; on a node it may finish what it does, within its time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[Session] = set()
        self._over = False

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            still_open = list(self._open)
        for session in still_open:
            session.close()

    def start(
        self,
        hosts: Sequence[Host],
        command: NodeCommand | Mapping[str, NodeCommand],
        timeout_s: float,
        on_stderr_line: Callable[[str, str], None] | None = None,
        *,
        state_dir: Path | None = None,
    ) -> Asked:
        """Begins what `call` does, with its arguments."""

        def one(host: Host) -> Answer:
            chosen = command if isinstance(command, NodeCommand) else command[host.name]
            on_line = functools.partial(on_stderr_line, host.name) if on_stderr_line else None
            return _answer(host, chosen, timeout_s, on_line, state_dir, self._watched)

        if hosts:
            _prepare(hosts, state_dir)
        return Asked(hosts, one)

    @contextlib.contextmanager
    def _watched(self, session: Session) -> Iterator[Session]:
        """Ends a session with the block; one that is opened too late, too."""
        with self._lock:
            self._open.add(session)
            over = self._over
        try:
            if over:
                session.close()
            yield session
        finally:
            with self._lock:
                self._open.discard(session)


def prepare_calls() -> None:
    """Does what the first call would do before it connects: half a second of imports, and the package."""
    import fabric  # noqa: F401

    _archive()


def stream(
    host: Host,
    command: NodeCommand,
    on_line: OnLine,
    on_stderr_line: OnLine | None = None,
    *,
    timeout_s: float | None = None,
    state_dir: Path | None = None,
) -> Answer:
    """Runs a command and hands over its standard output line by line; `stdout` of the answer stays empty.

    The command ends with the controller: if this process dies or is interrupted, the node sends it SIGTERM,
    and SIGKILL to its process group 10 s later.

    Args:
        host: usually the head.
        command: what to run.
        on_line: told each line of standard output.
        on_stderr_line: told each line of standard error.
        timeout_s: None waits for as long as the command runs.
        state_dir: as for `call`.
    """
    _prepare([host], state_dir)
    deadline = time.monotonic() + (timeout_s or _LONGEST_STREAM_S)
    try:
        header, body = _package(host, command, timeout_s or 0, watch=True)
        session = _open(host, _command_line(host, command), _CONNECT_WAIT_S, state_dir)
        said = talk(session, header + body, deadline, on_line, on_stderr_line, marker=_MARKER, keep_open=True)
        return _understood(host, said, timeout_s or _LONGEST_STREAM_S)
    except _CallFailedError as failed:
        return Answer("", "", None, str(failed))


def put_file(
    host: Host,
    source: Path,
    target: str,
    mode: int = 0o600,
    *,
    timeout_s: float = 300.0,
    state_dir: Path | None = None,
) -> Answer:
    """Copies one file to a node. A reader there sees the old file or the new one, never a part.

    Args:
        host: where to.
        source: the file here.
        target: absolute path there; its directory must exist.
        mode: permissions of the file there.
        timeout_s: for connecting and copying.
        state_dir: as for `call`.
    """
    _prepare([host], state_dir)
    command = NodeCommand(argv=())
    content = source.read_bytes()
    header = _header(host, command, timeout_s, archive_bytes=len(content), put=target, mode=mode)
    try:
        session = _open(host, _command_line(host, command), min(timeout_s, _CONNECT_WAIT_S), state_dir)
        said = talk(session, header + content, time.monotonic() + timeout_s, marker=_MARKER)
        return _understood(host, said, timeout_s)
    except _CallFailedError as failed:
        return Answer("", "", None, str(failed))


def _prepare(hosts: Sequence[Host], state_dir: Path | None) -> None:
    if any(host.connection == "ssh" for host in hosts):
        from raytools import ssh

        if state_dir is None:
            raise TransportError("a call over ssh needs state_dir, where the ssh configuration is kept")
        ssh.write_config(hosts, state_dir)


def _answer(
    host: Host,
    command: NodeCommand,
    timeout_s: float,
    on_stderr_line: OnLine | None,
    state_dir: Path | None,
    watched: Callable[[Session], contextlib.AbstractContextManager[Session]],
) -> Answer:
    deadline = time.monotonic() + timeout_s
    try:
        if host.connection == "local" and command.python == "system" and not _command_prefix(host, command):
            with _our_code() as path, watched(_open_here(host, command, path)) as session:
                said = talk(session, command.stdin.encode(), deadline, None, on_stderr_line)
                return _understood(host, said, timeout_s, has_marker=False)
        header, body = _package(host, command, timeout_s)
        opened = _open(host, _command_line(host, command), min(timeout_s, _CONNECT_WAIT_S), state_dir)
        with watched(opened) as session:
            said = talk(session, header + body, deadline, None, on_stderr_line, marker=_MARKER)
            return _understood(host, said, timeout_s)
    except _CallFailedError as failed:
        return Answer("", "", None, str(failed))


# --- what is sent ---


@functools.cache
def _archive() -> bytes:
    """The part of this package that runs on nodes, as a zip."""
    modules = [_PACKAGE / name for name in ("__init__.py", "errors.py", "units.py")]
    modules += sorted((_PACKAGE / "node").rglob("*.py"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for module in modules:
            archive.write(module, f"raytools/{module.relative_to(_PACKAGE)}")
    return buffer.getvalue()


def _header(host: Host, command: NodeCommand, timeout_s: float, **more: Any) -> bytes:
    """The bootstrap's length and text, then its header: see raytools/node/bootstrap.py."""
    bootstrap = (_PACKAGE / "node" / "bootstrap.py").read_bytes()
    fields = {
        "marker": _MARKER,
        "argv": list(command.argv),
        "python": command.python,
        "root": str(host.root),
        "timeout_s": max(1, round(timeout_s)),
        "archive_bytes": 0,
        "stdin_bytes": 0,
        "watch": False,
        "grace_s": CLOSE_GRACE_S,
    } | more
    return b"%d\n%b%b\n" % (len(bootstrap), bootstrap, json.dumps(fields).encode())


def _package(host: Host, command: NodeCommand, timeout_s: float, watch: bool = False) -> tuple[bytes, bytes]:
    archive, payload = _archive(), command.stdin.encode()
    header = _header(
        host, command, timeout_s, archive_bytes=len(archive), stdin_bytes=len(payload), watch=watch
    )
    return header, archive + payload


def _command_line(host: Host, command: NodeCommand) -> list[str]:
    # The program is short enough for every shell's quoting; the rest follows on standard input
    receive = "import sys;b=sys.stdin.buffer;exec(b.read(int(b.readline())))"
    here = sys.executable if host.connection == "local" else "python3"
    return [*_command_prefix(host, command), host.python or here, "-c", receive]


def _command_prefix(host: Host, command: NodeCommand) -> list[str]:
    """What makes another user of the one who connects."""
    return [*_become(host, command), *_service_user(host, command)]


def _service_user(host: Host, command: NodeCommand) -> list[str]:
    """From root to the service user: that account has no log-in, so neither ssh nor su would do."""
    if not command.as_service_user or host.service_user is None:
        return []
    user = host.service_user
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--reset-env", "--"]


def _become(host: Host, command: NodeCommand) -> list[str]:
    """`sudo -n`, which never prompts, if the inventory or the command wants another user."""
    wanted = host.become if command.become is None else command.become
    if not wanted:
        return []
    variables = host.variables
    user = str(variables.get("ansible_become_user") or "root")
    method = str(variables.get("ansible_become_method") or "sudo")
    if method not in ("sudo", "ansible.builtin.sudo"):
        raise _CallFailedError(
            f"{host.name}: found ansible_become_method {method}, expected sudo: raytools knows no other"
        )
    me = "root" if host.connection == "local" and os.geteuid() == 0 else host.user
    return [] if me == user else ["sudo", "-n", "-H", "-u", user, "--"]


class _OurCode(tempfile.TemporaryDirectory[str]):
    """A directory with our package alone, for PYTHONPATH: site-packages would bring all its neighbours."""

    def __enter__(self) -> str:
        Path(self.name, "raytools").symlink_to(_PACKAGE)
        return self.name


def _our_code() -> _OurCode:
    return _OurCode(prefix="raytools-code-")


# --- how it is run, and what the answer means ---


def _open_here(host: Host, command: NodeCommand, path: str) -> Session:
    """A command with our own Python and code: no need to send it along."""
    environment = {
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": "1",
        "PYTHONIOENCODING": "utf-8",
        "RAYTOOLS_ROOT": str(host.root),
    }
    line = [sys.executable, "-m", "raytools.node", *command.argv]
    return _open_local(host, line, {**os.environ, **environment})


def _open_local(host: Host, line: Sequence[str], environment: Mapping[str, str]) -> Session:
    try:
        return LocalSession(line, environment)
    except OSError as error:
        raise _CallFailedError(f"{host.name}: {line[0]} cannot be started ({error.strerror})") from error


def _open(host: Host, line: Sequence[str], connect_wait_s: float, state_dir: Path | None) -> Session:
    if host.connection == "local":
        return _open_local(host, line, os.environ)
    from raytools import ssh

    assert state_dir is not None
    try:
        return ssh.open_session(host, shlex.join(line), connect_wait_s, state_dir)
    except TransportError as error:
        raise _CallFailedError(str(error)) from error


def _understood(host: Host, said: Said, timeout_s: float, *, has_marker: bool = True) -> Answer:
    """What a command's words mean.

    Args:
        host: that it was to run on.
        said: by the command, or by what stands between us and it.
        timeout_s: how long it had, connecting included.
        has_marker: the command tells that it begins; nothing can stand between us and one that does not.
    """
    if said.exit_code is None:
        return Answer(said.stdout, said.stderr, None, f"{host.name}: no answer within {timeout_s:g} s")
    error = _refusal(host, said, said.exit_code) if has_marker else None
    return Answer(said.stdout, said.stderr, None if error else said.exit_code, error)


def _refusal(host: Host, said: Said, exit_code: int) -> str | None:
    """One sentence if the command never began; None if it did."""
    lines = [line for line in said.stderr.splitlines() if line.strip()]
    if said.reached_marker:
        why = [line for line in lines if line.startswith("raytools-bootstrap: ")]
        return f"{host.name}: {why[0].partition(': ')[2]}" if exit_code == _BOOTSTRAP_FAILED and why else None
    python = host.python or "python3"
    sudo = [line for line in lines if line.startswith("sudo:")]
    if sudo:
        return (
            f"{host.name}: becoming another user failed ({sudo[0]}). "
            "Allow it without a password (NOPASSWD in sudoers) or set ansible_become: false"
        )
    if exit_code in (126, 127):
        return (
            f"{host.name}: there is no {python}. Install Python 3.10 or newer, "
            "or set ansible_python_interpreter"
        )
    said_instead = said.noise.strip() or "; ".join(lines) or "nothing"
    answered = f"the node answered {said_instead[:160]!r} (exit code {exit_code})"
    return f"{host.name}: {python} did not start; {answered}"
