"""Ray's processes on this node: starting `ray start --block` detached, finding all of its session, ending it.

Must not decide anything: what to start and when is `ray_service`'s business. Never ends a process by name:
several Rays may live on one machine (`ray stop` would end them all).
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from raytools.errors import RaytoolsError

SESSION_VARIABLE = "RAYTOOLS_RAY_SESSION"
"""Set for `ray start` and inherited by all it starts: names the session a process belongs to."""

SYSTEMD_SESSION = "systemd"
"""The session's name where the systemd unit has started Ray: systemd alone stops that one."""

DRAIN_TIME_S = 5.0
"""How long Ray lets running tasks finish after SIGTERM. Ray's own default of 30 s outlasts `stop`."""

_ORPHANS_LIMIT_S = 2.0
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class ProcessId:
    """A process for certain: a pid alone may be reused."""

    pid: int
    start_time_ticks: int

    @property
    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return start_time_ticks(self.pid) == self.start_time_ticks


def start_time_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat (clock ticks since boot); None when the process is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before may contain blanks and parentheses
    return None if fields[0] in "ZX" else int(fields[19])


def identify(pid: int) -> ProcessId | None:
    """The certain name of a living process."""
    ticks = start_time_ticks(pid)
    return None if ticks is None else ProcessId(pid, ticks)


def ray_environment(node: Mapping[str, Any], session: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment `ray start` gets: nothing inherited but proxies, the same as the systemd unit gives.

    Args:
        node: node.json.
        session: the value of SESSION_VARIABLE.
        inherited: the caller's environment; only its proxy variables are passed on.
    """
    user = pwd.getpwuid(os.geteuid())
    prefix, ray = node["environment"]["prefix"], node["ray"]
    environment = {
        "PATH": f"{prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": node["toolkit"],
        "RAYTOOLS_ROOT": node["root"],
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_TIME_S),
        SESSION_VARIABLE: session,
    }
    environment |= {name: inherited[name] for name in _PROXY_VARIABLES if name in inherited}
    environment |= {name: str(value) for name, value in ray["env"].items()}
    environment["RAY_AUTH_MODE"] = ray["auth"]
    if ray["auth"] == "token":
        environment["RAY_AUTH_TOKEN_PATH"] = ray["token_path"]
    return environment


def patient_pause_s(waited_s: float) -> float:
    """How long to sleep before the next look at what has been waited for this long, in seconds.

    A fiftieth of it, and a second at most: each look takes processor time from what is waited for, and a slow
    machine has the least of it.
    """
    return min(max(0.1, waited_s / 50), 1.0)


def keep_callers_group() -> None:
    """Called in the new process before it becomes Ray: the place to enter a control group of its own.

    Ray stays in the caller's group as long as nothing is delegated to it.
    """


def start_detached(
    argv: list[str],
    environment: Mapping[str, str],
    log_path: Path,
    enter_group: Callable[[], None] = keep_callers_group,
) -> ProcessId:
    """Starts a program that outlives this process, its shell and its terminal.

    Double-forked into a session of its own, without a controlling terminal; every signal at its default
    (Ray's `ray.cancel` does nothing when SIGINT is inherited as ignored), none blocked; as many open files
    as the hard limit allows; no descriptor of the caller.

    Raises:
        RaytoolsError: the program could not be executed.
    """
    read_end, write_end = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(read_end)
        _become_daemon(argv, environment, log_path, enter_group, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answers:
        answer = answers.read()  # ends when exec has closed the other end
    os.waitpid(helper, 0)
    pid, error = struct.unpack("ii", answer.ljust(8, b"\0")[:8])
    if error or not pid:
        raise RaytoolsError(
            f"{argv[0]} could not be started: {os.strerror(error or errno.EAGAIN)}",
            expected="the environment that node.json names",
            fix="Build it: ansible-playbook playbooks/environment.yml",
        )
    process = identify(pid)
    return process if process is not None else ProcessId(pid, -1)  # gone already: the caller sees it dead


def _become_daemon(
    argv: list[str],
    environment: Mapping[str, str],
    log_path: Path,
    enter_group: Callable[[], None],
    report: int,
) -> None:
    """The rest of a forked child's life. Never returns."""
    try:
        if os.fork() > 0:
            os._exit(0)
        os.setsid()
        os.write(report, struct.pack("i", os.getpid()))
        os.chdir("/")
        os.umask(0o022)
        enter_group()
        _raise_open_files_limit()
        _default_signals()
        _standard_streams(log_path)
        _close_all_but(report)
        os.execve(argv[0], argv, dict(environment))  # closes `report`: the parent reads on
    except OSError as error:
        os.write(report, struct.pack("i", error.errno or errno.EIO))
    finally:
        os._exit(127)


def _raise_open_files_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _default_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # Some numbers are reserved by libc: valid, but not to be set.
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _standard_streams(log_path: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _close_all_but(kept: int) -> None:
    """Closes what the caller left open: a reader of its pipes would wait for Ray to end."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        if (descriptor := int(entry.name)) > 2 and descriptor != kept:
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
                os.close(descriptor)


def session_processes(main: ProcessId | None, session: str | None) -> set[ProcessId]:
    """All living processes of one Ray session.

    Found by descent from `ray start`, by kernel session (also when `ray start` is dead), and by the inherited
    variable for what made a session of its own. None of them finds all: workers and agents may be orphans,
    and rewriting their titles destroys their /proc/<pid>/environ.
    """
    found = {main} if main and main.alive else set()
    if found:
        with contextlib.suppress(psutil.NoSuchProcess):
            assert main is not None
            children = psutil.Process(main.pid).children(recursive=True)
            found |= {process for child in children if (process := identify(child.pid))}
    marker = f"{SESSION_VARIABLE}={session}".encode() if session else None
    for pid in psutil.pids():
        if _in_kernel_session(pid, main) or (marker and _has_marker(pid, marker)):
            process = identify(pid)
            found |= {process} if process else set()
    return {process for process in found if process.pid != os.getpid()}


def _in_kernel_session(pid: int, main: ProcessId | None) -> bool:
    # `ray start` leads its session, and the kernel gives its pid to nobody as long as that has members.
    try:
        return main is not None and os.getsid(pid) == main.pid and _not_older(pid, main)
    except ProcessLookupError:
        return False


def _not_older(pid: int, main: ProcessId) -> bool:
    ticks = start_time_ticks(pid)
    return ticks is not None and ticks >= main.start_time_ticks


def _has_marker(pid: int, marker: bytes) -> bool:
    try:
        return marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return False


def find_by_temp_dir(temp_dir: str) -> tuple[ProcessId, str | None] | None:
    """The `ray start` that uses a temp dir, and its session, found by its raylet or GCS."""
    for process in psutil.process_iter(["name", "cmdline", "ppid"]):
        command = process.info["cmdline"] or []
        if process.info["name"] not in ("raylet", "gcs_server") or not _uses(command, temp_dir):
            continue
        main = identify(process.info["ppid"])
        if main is None or main.pid == 1:
            continue
        session = None
        with contextlib.suppress(psutil.Error):
            session = process.environ().get(SESSION_VARIABLE)
        return main, session
    return None


def _uses(command: Iterable[str], temp_dir: str) -> bool:
    return any(f"{argument}/".find(f"{temp_dir}/") >= 0 for argument in command)


def child_named(main: ProcessId, name: str) -> ProcessId | None:
    """The child of `ray start` with this program name (`raylet`, `gcs_server`)."""
    try:
        children = psutil.Process(main.pid).children()
        pids = [child.pid for child in children if child.name() == name]
    except psutil.NoSuchProcess:
        return None
    return identify(pids[0]) if pids else None


def answers(address: str, timeout_s: float = 1.0) -> bool:
    """Whether something accepts connections at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Ending:
    """How a session ended: which processes had to be killed after the time limit, and how long it took."""

    killed: tuple[str, ...]
    wall_s: float


def end_session(main: ProcessId | None, session: str | None, limit_s: float) -> Ending:
    """One SIGTERM to `ray start`, a wait for its whole session to go, SIGKILL for what is left at the limit.

    Raises:
        RaytoolsError: the session belongs to another user.
    """
    started = time.monotonic()
    members = session_processes(main, session)
    if main is None or not main.alive:
        limit_s = min(
            limit_s, _ORPHANS_LIMIT_S
        )  # nobody is left to ask: they end by themselves or not at all
    else:
        try:
            os.kill(main.pid, signal.SIGTERM)
        except PermissionError:
            owner = psutil.Process(main.pid).username()
            raise RaytoolsError(
                f"Ray (pid {main.pid}) was started by user {owner} and this is {_user_name()}",
                fix=f"Run the same command as {owner}.",
            ) from None
    while members := _still_there(members, main, session):
        if time.monotonic() - started > limit_s:
            break
        time.sleep(0.05)
    killed = tuple(_kill(process) for process in sorted(members, key=lambda process: process.pid))
    while any(process.alive for process in members):
        time.sleep(0.01)
    return Ending(killed, round(time.monotonic() - started, 2))


def _still_there(members: set[ProcessId], main: ProcessId | None, session: str | None) -> set[ProcessId]:
    """Living members; looks for new ones only when the known ones are gone (a full look costs ~10 ms)."""
    living = {process for process in members if process.alive}
    return living or session_processes(main, session)


def _kill(process: ProcessId) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        command = " ".join(psutil.Process(process.pid).cmdline())[:80]
        if process.alive:
            os.kill(process.pid, signal.SIGKILL)
        return f"{process.pid} {command}"
    return f"{process.pid}"


def _user_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def progress(text: str) -> None:
    """One line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)
