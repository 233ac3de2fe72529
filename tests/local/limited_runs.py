"""Limited runs as root and as a freshly made plain user, and a look at everything that they left.

Every process of a test carries an odd variable in its environment. What still has it after the run, wherever
it moved to and whatever it calls itself, is left over.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytools.errors import RefusedError
from raytools.node import cgroup, systemd_scope
from raytools.node.cgroup_tree import locate_self

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).with_name("adversary_programs")
PYTHON = "/usr/bin/python3"  # what a plain user has; ours may lie in a directory closed to others
MARK = "RAYTOOLS_TEST_MARK"
# Waits in vain, and what has to happen "at once", may take that much longer: on an emulated machine a run
# takes a second, and a machine of CI stands still now and then.
PATIENCE = float(os.environ.get("RAYTOOLS_TEST_PATIENCE", "3" if os.environ.get("CI") == "true" else "1"))


def time_limit(seconds: float) -> str:
    """For `--time` of a program that has to come somewhere before it ends."""
    return f"{seconds * PATIENCE:g}s"


def why_no_limits() -> str:
    """Why this process could not start limited runs here, "" if it can."""
    if locate_self().version("memory") == 2 and systemd_scope.is_available():
        return ""  # each run gets a scope of its own, which this process neither has nor needs
    try:
        cgroup.select_driver()
    except RefusedError as refusal:
        return str(refusal)
    return ""


def why_no_grant() -> str:
    """Why no plain user can be allowed limited runs here, "" if one can."""
    if locate_self().version("memory") == 2 and not Path("/run/systemd/system").is_dir():
        return "on cgroup v2 a plain user gets its groups from systemd"
    return ""


@dataclass(frozen=True)
class Requester:
    """Who runs: the user, and a directory with the code that it may read."""

    name: str  # root | plain-user
    user: str
    uid: int
    gid: int
    code: Path

    def as_user(self, command: Sequence[str]) -> list[str]:
        """The command as this user; it keeps the process id."""
        if self.uid == 0:
            return list(command)
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--", *command]


@contextlib.contextmanager
def root() -> Iterator[Requester]:
    with _code() as code:
        yield Requester("root", "root", 0, 0, code)


@contextlib.contextmanager
def plain_user() -> Iterator[Requester]:
    """A user that did not exist before and does not afterwards, granted the right to make groups."""
    name = f"rt-{secrets.token_hex(3)}"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True)
    account = pwd.getpwnam(name)
    grant = [sys.executable, "-m", "raytools.node", "grant", "--user", name]
    try:
        with _code() as code:
            subprocess.run(grant, check=True, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
            yield Requester("plain-user", name, account.pw_uid, account.pw_gid, code)
    finally:
        for pid in _pids(lambda pid: Path(f"/proc/{pid}").stat().st_uid == account.pw_uid):
            _kill(pid)  # a user that only this test has
        # fails while a group of a run is left
        revoked = subprocess.run([*grant, "--revoke"], cwd=CHECKOUT, capture_output=True, text=True)
        subprocess.run(["userdel", "--remove", name], check=True, stderr=subprocess.DEVNULL)
        if Path("/run/systemd/system").is_dir():  # its manager was killed above: a failure to systemd
            unit = f"user@{account.pw_uid}.service"
            subprocess.run(["systemctl", "reset-failed", unit], check=False, stderr=subprocess.DEVNULL)
        assert revoked.returncode == 0, revoked.stderr


@contextlib.contextmanager
def _code() -> Iterator[Path]:
    """A copy of the package and of the adversaries, as the tree stands here, that every user may read."""
    directory = Path(tempfile.mkdtemp(prefix="raytools-adversaries-"))
    try:
        shutil.copytree(CHECKOUT / "raytools", directory / "raytools")
        shutil.copytree(PROGRAMS, directory / "programs")
        directory.chmod(0o755)
        yield directory
    finally:
        _remove_tree(directory)


@dataclass
class Result:
    """What a user has after a run: the exit code, the output, the record."""

    exit_code: int
    stdout: str
    stderr: str
    record: dict[str, Any]

    @property
    def outcome(self) -> str | None:
        return self.record.get("outcome")

    @property
    def ending(self) -> tuple[int, str | None]:
        return self.exit_code, self.outcome


class Background:
    """A run that is still going on."""

    def __init__(self, process: subprocess.Popen[bytes], runs: Runs, record: Path) -> None:
        self.process = process
        self._runs = runs
        self._record = record

    def record(self) -> dict[str, Any]:
        return json.loads(self._record.read_text()) if self._record.exists() else {}

    def holder(self) -> dict[str, Any]:
        """The file in the lock directory that says who supervises it."""
        run_id = self.record()["run_id"]
        return json.loads((self._runs.held / f"{run_id}.json").read_text())  # type: ignore[no-any-return]

    def result(self, timeout_s: float = 10.0) -> Result:
        """Waits for `raytools run`, and for it alone: what it left may still have its output open."""
        exit_code = self.process.wait(timeout_s * PATIENCE)
        return Result(exit_code, self.output(), self._record.with_suffix(".err").read_text(), self.record())

    def output(self) -> str:
        """What the command has printed so far."""
        return self._record.with_suffix(".out").read_text()


@dataclass
class Runs:
    """The runs of one user in one test, with locks and a plan of their own."""

    requester: Requester
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="raytools-runs-")))
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    _background: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        slot = {"index": 0, "cpus": sorted(os.sched_getaffinity(0)), "memory_bytes": 2 << 30, "gpus": []}
        (self.directory / "node.json").write_text(json.dumps({"name": "here", "slots": [slot]}))
        self.directory.chmod(0o755)
        os.chown(self.directory, self.requester.uid, self.requester.gid)

    @property
    def held(self) -> Path:
        return self.directory / "locks" / "held"

    @property
    def ready(self) -> Path:
        """The file by which an adversary tells that it has done what it is about."""
        return self.directory / "ready"

    def program(self, name: str, *arguments: str) -> list[str]:
        """The command line of one of the adversaries in adversary_programs/."""
        return [PYTHON, "-S", "-E", str(self.requester.code / "programs" / name), *arguments]

    def run(self, *command: str, options: Sequence[str] = (), timeout_s: float = 20.0) -> Result:
        """Runs a command limited until it ends."""
        return self.start(*command, options=options, until_ready=False).result(timeout_s)

    def start(
        self,
        *command: str,
        options: Sequence[str] = (),
        until_ready: bool = True,
        stdout: int | None = None,
        terminal: int | None = None,
    ) -> Background:
        """Starts a run and waits until its command has made the file `ready`; its output goes to files.

        With a terminal it starts as its foreground process, as from a person's shell.
        """
        record = self.directory / f"record-{len(self._background)}.json"
        arguments = [PYTHON, "-m", "raytools", "run", "--record", str(record), *options, "--", *command]
        with record.with_suffix(".out").open("wb") as out, record.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                self.requester.as_user(arguments),
                stdin=terminal or subprocess.DEVNULL, stdout=out if stdout is None else stdout, stderr=err,
                cwd=self.directory, env=self._environment(),
                start_new_session=terminal is not None,
                preexec_fn=None if terminal is None else lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )  # fmt: skip
        self._background.append(process)
        if until_ready:
            wait_until(lambda: self.ready.exists() or process.poll() is not None, 10)
            assert process.poll() is None, record.with_suffix(".err").read_text()
        return Background(process, self, record)

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.directory),
            "PYTHONPATH": str(self.requester.code),
            "RAYTOOLS_ROOT": str(self.directory),
            "RAYTOOLS_LOCK_DIR": str(self.directory / "locks"),
            MARK: self.token,
        }

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.directory.glob("record-*.json"))]

    def processes(self) -> list[int]:
        """Every living process that a run of this test started, its supervisor and requester included."""
        mark = f"{MARK}={self.token}".encode()
        return _pids(lambda pid: mark in Path(f"/proc/{pid}/environ").read_bytes())

    def left_over(self) -> list[str]:
        """Whatever of these runs is still there, in words."""
        names = self._names() | {self.token}
        found = [f"process {pid}: {_command_line(pid)}" for pid in self.processes()]
        found += [f"group {path}" for path in self._groups()]
        found += [f"unit {name}" for name in self._scopes()]
        found += [str(Path("/tmp") / name) for name in names if os.path.lexists(f"/tmp/{name}")]
        found += [str(path) for path in Path("/dev/shm").glob(f"*{self.token}*")]
        found += [f"System V shared memory {line[1]}" for line in self._shared_memory()]
        found += [f"held {path.name}" for path in self.held.glob("*")]
        found += [f"lock {path.name}" for path in self.held.parent.glob("*") if _is_locked(path)]
        return found

    def _ids(self) -> list[str]:
        """A run that spoils its record writes its id down elsewhere."""
        ids = [record["run_id"] for record in self.records()]
        return [*ids, *(path.read_text().strip() for path in self.directory.glob("run-id"))]

    def _names(self) -> set[str]:
        """Of groups and directories."""
        return {f"rt-run-{run_id}" for run_id in self._ids()}

    def _scopes(self) -> list[str]:
        """The scopes of these runs on cgroup v2 that systemd still knows, failed ones too."""
        if locate_self().version("memory") != 2 or not systemd_scope.is_available():
            return []
        which = [] if self.requester.uid == 0 else ["--user"]
        listed = subprocess.run(
            self.requester.as_user(
                ["systemctl", *which, "list-units", "--all", "--plain", "--no-legend", "raytools-*"]
            ),
            env={**os.environ, "XDG_RUNTIME_DIR": f"/run/user/{self.requester.uid}"},
            capture_output=True, text=True, check=False,  # a user without a manager has none
        )  # fmt: skip
        return [line for line in listed.stdout.splitlines() if any(name in line for name in self._ids())]

    def _groups(self) -> list[Path]:
        """The groups of these runs, and those that they made elsewhere and named after this test."""
        names, found = self._names(), []
        for mount_point in (*cgroup_mounts("cgroup"), *cgroup_mounts("cgroup2")):
            for folder, below, _files in os.walk(mount_point):
                ours = [name for name in below if name in names or name.startswith(self.token)]
                found += [Path(folder) / name for name in ours]
                below[:] = [name for name in below if name not in ours]
        return found

    @property
    def key(self) -> int:
        """A System V key that nobody else uses."""
        return int(self.token[:7], 16) + 1

    def _shared_memory(self) -> list[list[str]]:
        lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        return [line.split() for line in lines if int(line.split()[0]) == self.key]

    def nothing_is_left(self, within_s: float = 2.0) -> list[str]:
        """What is left after the supervisor had a moment to go."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.left_over(), within_s)
        return self.left_over()

    def clean_up(self) -> None:
        """Ends what a failed test left, so that the next one starts on a clean machine."""
        names = self._names()
        groups = self._groups()
        for _ in range(20):
            for pid in self.processes():
                _kill(pid)
        for path in groups:
            _thaw(path)
        for process in self._background:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        for path in groups:
            _remove_group(path)
        for path in (*(Path("/tmp") / name for name in names), self.directory):
            _remove_tree(path)
        for path in Path("/dev/shm").glob(f"*{self.token}*"):
            path.unlink()
        for line in self._shared_memory():
            ctypes.CDLL(None).shmctl(int(line[1]), 0, None)  # IPC_RMID


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> float:
    """Waits for a condition; returns how long that took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + timeout_s * PATIENCE, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - started


def command_pid(text: str) -> int:
    """The process whose command line is exactly this, as soon as there is one."""
    wanted = text.replace(" ", "\0").encode() + b"\0"
    found: list[int] = []

    def there() -> bool:
        found.extend(_pids(lambda pid: Path(f"/proc/{pid}/cmdline").read_bytes() == wanted))
        return bool(found)

    wait_until(there)
    return found[0]


def wait_until_taken(number: signal.Signals, pid: int) -> None:
    """Waits until a signal that was sent to a process is not pending there any more."""

    def taken() -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        pending = re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)$", status, re.MULTILINE)
        return not any(int(mask, 16) >> (number - 1) & 1 for mask in pending)

    wait_until(taken)


def _pids(wanted: Callable[[int], bool]) -> list[int]:
    """The living processes for which this holds; what is dead and not collected yet is PID 1's business."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if wanted(int(name)) and _state(int(name)) not in "ZX":
                found.append(int(name))
    return found


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return "gone"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def cgroup_mounts(kind: str) -> list[Path]:
    """Where hierarchies of that kind (cgroup, cgroup2) are mounted."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(fields[1]) for fields in lines if fields[2] == kind]


def _thaw(path: Path) -> None:
    """Lets a group and those below it die; they may lie deeper than a path can be long."""
    for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        if (path / file).exists():
            for _folder, _names, _files, descriptor in os.fwalk(path):
                with os.fdopen(os.open(file, os.O_WRONLY, dir_fd=descriptor), "w") as switch:
                    switch.write(value)


def _remove_group(path: Path) -> None:
    with contextlib.suppress(OSError):
        for _folder, names, _files, descriptor in os.fwalk(path, topdown=False):
            for name in names:
                os.rmdir(name, dir_fd=descriptor)
        path.rmdir()


def _remove_tree(path: Path) -> None:
    """By rm(1), which takes trees of any depth, links and files."""
    subprocess.run(["rm", "-rf", str(path)], check=True)


def _is_locked(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
