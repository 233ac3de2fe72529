"""ssh keys of a lab, and its lines in the checkout's known_hosts."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.hosts import LabError


def ensure_key(path: Path, comment: str) -> str:
    """A key pair without a passphrase at path and path.pub, made if need be; returns the public half."""
    public = path.with_name(path.name + ".pub")
    if not (path.exists() and public.exists()):
        path.unlink(missing_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise LabError(f"ssh-keygen made no key at {path}: {done.stderr.strip() or done.stdout.strip()}")
    return public.read_text().strip()


def mark(lab: str) -> str:
    """The comment that ends a lab's lines in known_hosts."""
    return f"raytools-lab-{lab}"


def entry(address: str, port: int, public_key: str, lab: str) -> str:
    """The known_hosts line of one host."""
    kind, key = public_key.split()[:2]
    where = address if port == 22 else f"[{address}]:{port}"
    return f"{where} {kind} {key} {mark(lab)}"


def with_entries(text: str, lab: str, entries: Iterable[str]) -> str:
    """The known_hosts text with these lines of the lab and no others; lines of other origin are kept.

    Older lines about the same addresses go: they are of a lab that was killed.
    """
    new = list(entries)
    taken = {line.split()[0] for line in new}
    kept = []
    for line in text.splitlines():
        words = line.split()
        ours = words[-1:] == [mark(lab)]
        stale = bool(words) and words[0] in taken and words[-1].startswith(mark(""))
        if not (ours or stale):
            kept.append(line)
    return "".join(f"{line}\n" for line in [*kept, *new])


def set_entries(known_hosts: Path, lab: str, entries: Iterable[str]) -> None:
    """Puts `with_entries` into effect, at once and by one process at a time; `[]` removes the lab's lines."""
    new = list(entries)
    if not new and not known_hosts.exists():
        return
    known_hosts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(known_hosts.with_name(known_hosts.name + ".lock"), "known_hosts", keep=True):
        before = known_hosts.read_text() if known_hosts.exists() else ""
        after = with_entries(before, lab, new)
        if after != before:
            replace(known_hosts, after)


def replace(path: Path, text: str, mode: int = 0o600) -> None:
    """Writes a file so that nobody sees half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as beside:
        beside.write(text)
    os.chmod(beside.name, mode)
    Path(beside.name).replace(path)


@contextmanager
def locked(path: Path, what: str, *, keep: bool = False, wait: bool = True) -> Iterator[None]:
    """Holds an advisory lock; its file is removed afterwards unless it is to be kept.

    Raises:
        LabError: with wait=False: somebody else holds it.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            raise LabError(
                f"{what} is being changed by another process", fix="Wait for it, then try again"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)  # its last holder has removed it in between
    try:
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        os.close(descriptor)
