"""`<root>/envs`: one writer at a time, and the link `current`. Shared by building and installing."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from raytools.errors import EnvironmentBuildError


@contextlib.contextmanager
def exclusive(directory: Path, say: Callable[[str], None]) -> Iterator[int]:
    """One writer at a time in a directory, which is made if it is not there.

    The kernel lets go of the lock however the process ends. A child that is handed the yielded descriptor
    keeps the lock for as long as it lives.

    What is made meanwhile is readable for every user: modes are part of what is compared between nodes, so
    they must not depend on who writes.

    Args:
        directory: where `.lock` lies.
        say: told if it has to wait.

    Raises:
        EnvironmentBuildError: the directory is not writable.
    """
    umask = os.umask(0o022)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        os.umask(umask)
        raise EnvironmentBuildError(
            f"cannot write to {directory}: {error.strerror}",
            fix="Run this as the user who owns it, or choose another root (raytools_root in the inventory)",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build or installation to end")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.umask(umask)
        os.close(descriptor)


def current_prefix(root: Path) -> Path | None:
    """What `envs/current` points to, whether it is there or not; None without the link."""
    link = root / "envs" / "current"
    return link.parent / os.readlink(link) if link.is_symlink() else None


def point_current_to(root: Path, prefix: Path) -> bool:
    """`envs/current`, for people: replaced in one step, left alone when it is right.

    Returns:
        Whether it was changed.
    """
    link = root / "envs" / "current"
    target = Path(prefix.name) if prefix.parent == link.parent else prefix
    if link.is_symlink() and link.readlink() == target:
        return False
    temporary = link.with_name(f".current.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    return True
