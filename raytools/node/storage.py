"""Is a directory shared? Each node writes a file, each reads all: `python -m raytools.node storage …`.

Compares content and owner: on shared storage a file belongs to a number, and where nodes give the same
account different numbers, one cannot write what the other has made.
"""

from __future__ import annotations

import argparse
import os
import pwd
import sys
import time
from pathlib import Path

from raytools.errors import RaytoolsError
from raytools.node import mounts

_DIRECTORY = "results/.raytools-shared"
_MOUNT_WAIT_S = 60.0
_PATIENCE_S = 10.0  # NFS clients remember for a few seconds that a file was not there


def write(path: Path, name: str) -> None:
    """Leaves this node's file.

    Raises:
        RaytoolsError: this user cannot write there.
    """
    directory = path / _DIRECTORY
    try:
        directory.mkdir(exist_ok=True)
        with open(directory / name, "w") as file:
            file.write(f"{name} {os.getuid()}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RaytoolsError(
            f"user {_user()} cannot write to {directory} ({error.strerror})",
            expected="shared storage that the user who runs Ray may write on every node",
            fix="Compare uids and export options (root_squash, ro); docs/provisioning.md, storage",
        ) from error


def read(path: Path, names: list[str]) -> None:
    """Reads every node's file.

    Raises:
        RaytoolsError: a file cannot be read, or belongs to another number than our own.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while reasons := _unreadable(path, names):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    if reasons:
        shown = "; ".join(f"what {name} wrote: {reason}" for name, reason in reasons.items())
        raise RaytoolsError(
            f"user {_user()} cannot read below {path} what other nodes have just written there ({shown})",
            expected="one directory that all nodes share",
            fix="Mount the same export on each, or use storage: {type: local}",
        )
    for name in names:
        owner = (path / _DIRECTORY / name).stat().st_uid
        if owner != os.getuid():
            raise RaytoolsError(
                f"what {name} wrote below {path} belongs to uid {owner}, "
                f"this node's {_user()} is uid {os.getuid()}",
                expected="one uid on all nodes",
                fix="Give the account one uid (usermod -u), or switch off the export's squashing of users",
            )


def mounted(path: Path, source: str) -> None:
    """Waits until a source is mounted at a path; looking makes an automounter try.

    Args:
        path: where.
        source: `server:/export`; on the server itself any mount will do.

    Raises:
        RaytoolsError: nothing is mounted there in time.
    """
    deadline = time.monotonic() + _MOUNT_WAIT_S
    while not (seen := mounts.look(str(path)))["mounted"]:
        if time.monotonic() >= deadline:
            found = "it does not answer" if seen["stalled"] else "nothing is"
            raise RaytoolsError(
                f"{source} is not mounted at {path} after {_MOUNT_WAIT_S:.0f} s ({found})",
                expected="the NFS server to answer at port 2049, and to let this node in",
                fix="Look at: journalctl -u '*.mount' here, and exportfs -v there",
            )
        time.sleep(0.2)


def clean(path: Path, name: str) -> None:
    """Removes this node's file, and the directory with the last one.

    Raises:
        RaytoolsError: the file cannot be removed.
    """
    directory = path / _DIRECTORY
    try:
        (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise RaytoolsError(
            f"user {_user()} cannot remove {directory / name} ({error.strerror})", fix="Remove it"
        ) from error
    try:
        directory.rmdir()
    except OSError:
        return  # the others' files are still in it, or another node was faster


def _unreadable(path: Path, names: list[str]) -> dict[str, str]:
    """Node -> why what it wrote cannot be read here."""
    reasons = {}
    for name in names:
        try:
            if not (path / _DIRECTORY / name).read_text(errors="replace").startswith(f"{name} "):
                reasons[name] = "the file is empty or another's"
        except OSError as error:
            reasons[name] = error.strerror or str(error)
    return reasons


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def main(argv: list[str]) -> int:
    """`write|clean|read|mounted --path DIR --name NODE …`; 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node storage", description=__doc__)
    parser.add_argument("command", choices=["write", "read", "clean", "mounted"])
    parser.add_argument("--path", required=True, type=Path)
    parser.add_argument("--name", action="append", required=True, dest="names")
    options = parser.parse_args(argv)
    try:
        if options.command == "read":
            read(options.path, options.names)
        elif options.command == "mounted":
            mounted(options.path, options.names[0])
        else:
            (write if options.command == "write" else clean)(options.path, options.names[0])
    except RaytoolsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
