"""An archive -> `<root>/envs/<id>`: unpacked beside, every file compared, renamed. Not there until then.

The archive is read once: hashed, decompressed and handed to GNU tar piece by piece. Whatever goes wrong
before the rename leaves the environments that are there as they are.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from raytools.errors import EnvironmentBuildError, RaytoolsError
from raytools.node.environment_place import exclusive
from raytools.node.manifest import (
    ENVIRONMENT_NAME,
    compare,
    own_directory,
    read_environment,
    write_json,
)
from raytools.node.zstd import CorruptError, Decompressor
from raytools.units import format_size

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{12}")
"""What raytools names an environment: its name and the first digits of the lock digest."""

_READ_BYTES = 1 << 20
_PIPE_BYTES = 1 << 20
_COPY_AGAIN = "Bring it here again: ansible-playbook playbooks/environment.yml"
_NO_SPACE = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))

Say = Callable[[str], None]


@dataclass(frozen=True)
class Archive:
    """What is to be unpacked; the sizes are for the look at the free space, if they are known."""

    path: Path
    sha256: str
    unpacked_bytes: int = 0
    files: int = 0


def install(
    root: Path, archive: Archive, identifier: str, say: Say, *, again: bool = False
) -> dict[str, Any]:
    """Installs an environment, unless it is there.

    Args:
        root: of this node; the archive must have been made below the same one.
        archive: what to unpack.
        identifier: `<name>-<12 hex>`.
        say: told what is being done, a line each.
        again: install although it is there, as after somebody has changed it.

    Raises:
        RaytoolsError: nothing was installed, and why.
    """
    started = time.monotonic()
    require_identifier(identifier)
    prefix = root / "envs" / identifier
    notes = None if again else installed(prefix)
    changed = False
    if notes is None:
        with exclusive(prefix.parent, say) as lock:
            remove_leftovers(prefix.parent)
            notes = None if again else installed(prefix)
            if notes is None:
                changed = True
                try:
                    notes = _install(prefix, archive, lock, say)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise _no_space(prefix.parent, str(error), archive) from error
                    raise EnvironmentBuildError(f"cannot install {prefix}: {error}") from error
    return {
        "changed": changed,
        "id": identifier,
        "prefix": str(prefix),
        "content_digest": notes["content_digest"],
        "files": notes["files"],
        "seconds": round(time.monotonic() - started, 2),
    }


def require_identifier(identifier: str) -> None:
    """Refuses what cannot be the name of an environment's directory."""
    if not ID.fullmatch(identifier):
        raise EnvironmentBuildError(f"{identifier!r} names no environment", expected="<name>-<12 hex digits>")


def installed(prefix: Path) -> dict[str, Any] | None:
    """The notes of an environment that was finished at this place, None if there is no such one."""
    try:
        notes = read_environment(prefix)
    except EnvironmentBuildError:
        return None  # notes that cannot be read: not what raytools finished
    if notes is None or notes.get("id") != prefix.name or notes.get("prefix") != str(prefix):
        return None
    return notes if str(notes.get("lock_digest"))[:12] == prefix.name[-12:] else None


def remove_leftovers(directory: Path) -> list[str]:
    """Removes what killed installations left; the caller holds the lock, so there is no living one.

    Returns:
        Names of what is gone. What another user left may stay, and harms nobody.
    """
    left = [path for pattern in (".*.part-*", ".*.old-*") for path in directory.glob(pattern)]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in left if not path.exists()]


def take_away(prefix: Path) -> Path:
    """Renames an environment out of the way: from here on it is not there."""
    beside = Path(tempfile.mkdtemp(prefix=f".{prefix.name}.old-", dir=prefix.parent))
    prefix.rename(beside / prefix.name)
    return beside


def _install(prefix: Path, archive: Archive, lock: int, say: Say) -> dict[str, Any]:
    _require_space(prefix.parent, archive)
    part = Path(tempfile.mkdtemp(prefix=f".{prefix.name}.part-", dir=prefix.parent))
    try:
        say(f"unpacking {archive.path.name}")
        _unpack(archive, part, lock)
        notes = _require_this_environment(part, prefix, archive)
        say(f"comparing {notes['files']} files")
        with _on_disk(part):
            _require_as_packed(part, archive)
        notes["installed_at"] = (
            datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
        )
        write_json(own_directory(part) / ENVIRONMENT_NAME, notes)
        part.chmod(0o755)
        _put_in_place(part, prefix)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # as good as free where it was renamed
    return notes


def _put_in_place(part: Path, prefix: Path) -> None:
    """One rename; what was there is put back if the new one's Python does not start."""
    former = take_away(prefix) if os.path.lexists(prefix) else None
    part.rename(prefix)
    try:
        _require_python_starts(prefix)
    except RaytoolsError:
        shutil.rmtree(take_away(prefix), ignore_errors=True)
        if former is not None:
            (former / prefix.name).rename(prefix)
        raise
    finally:
        if former is not None:
            shutil.rmtree(former, ignore_errors=True)


# --- before ---


def _require_space(directory: Path, archive: Archive) -> None:
    status = os.statvfs(directory)
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < archive.unpacked_bytes:
        raise EnvironmentBuildError(
            f"{directory} has {format_size(free_bytes)} free",
            expected=f"{format_size(archive.unpacked_bytes)} for {archive.path.name}",
            fix=_make_room(directory),
        )
    if status.f_files > 0 and status.f_favail < archive.files:
        raise EnvironmentBuildError(
            f"the file system of {directory} has room for {status.f_favail} more files",
            expected=f"{archive.files} for {archive.path.name}",
            fix=_make_room(directory),
        )


def _no_space(directory: Path, said: str, archive: Archive) -> EnvironmentBuildError:
    wanted = f"{format_size(archive.unpacked_bytes)} free" if archive.unpacked_bytes else None
    return EnvironmentBuildError(
        f"{directory} became full, nothing was installed ({said})", expected=wanted, fix=_make_room(directory)
    )


def _make_room(directory: Path) -> str:
    return f"Make room on {directory}: `raytools env prune` removes environments that nobody uses"


# --- unpacking ---


def _unpack(archive: Archive, target: Path, lock: int) -> None:
    """One pass over the archive; its content counts only once its digest is right."""
    digest = hashlib.sha256()
    failure: Exception | None = None
    with _open(archive.path) as source:
        try:
            _decompress(_hashed(source, digest), target, lock)
        except (CorruptError, _TarError) as error:
            failure = error
        for _ in _hashed(source, digest):
            pass  # a damaged archive is the cause of whatever else went wrong
    if digest.hexdigest() != archive.sha256.lower():
        cut_off = " (it ends in the middle)" if isinstance(failure, _CutOffError) else ""
        raise EnvironmentBuildError(
            f"{archive.path} is not what was packed: {archive.path.stat().st_size} bytes{cut_off} "
            f"with sha256 {digest.hexdigest()}",
            expected=f"sha256 {archive.sha256}",
            fix=_COPY_AGAIN,
        )
    if failure is not None:
        raise _unpacking_failed(str(failure), target.parent, archive)


class _CutOffError(CorruptError):
    """Compressed data that end too early."""


class _TarError(Exception):
    """What tar said."""


def _hashed(source: IO[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    while chunk := source.read(_READ_BYTES):
        digest.update(chunk)
        yield chunk


def _decompress(chunks: Iterator[bytes], target: Path, lock: int) -> None:
    decompressor = Decompressor()
    try:
        with _tar(target, lock) as write:
            for chunk in chunks:
                for piece in decompressor.feed(chunk):
                    write(piece)
            _require_complete(decompressor)
    finally:
        decompressor.close()


def _require_complete(decompressor: Decompressor) -> None:
    if not decompressor.complete:
        raise _CutOffError("it ends in the middle")


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot read the archive {path}: {error.strerror}", fix=_COPY_AGAIN
        ) from error


@contextlib.contextmanager
def _tar(target: Path, lock: int) -> Iterator[Callable[[memoryview], None]]:
    """GNU tar, unpacking what it is given. It shares the lock, as it may outlive us by a moment."""
    command = [
        _gnu_tar(), "--extract", "--file=-", "--preserve-permissions", "--no-same-owner",
        "--warning=no-timestamp", f"--directory={target}",
    ]  # fmt: skip
    said = os.memfd_create("tar")  # in memory: the disk may be what is full
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, "LC_ALL": "C"},
            pass_fds=[lock],
        )
        assert process.stdin is not None
        _widen(process.stdin.fileno())

        def write(piece: memoryview) -> None:
            if _lacks_space(_text(said)):
                raise _TarError(_text(said))  # tar itself would go on to the end
            sink.write(piece)

        with process.stdin as sink:
            try:
                yield write
            except BrokenPipeError:
                pass  # tar ended; why is what it said
            except BaseException:
                process.kill()
                raise
            finally:
                with contextlib.suppress(BrokenPipeError):
                    sink.close()
                process.wait()
        if process.returncode:
            raise _TarError(_text(said) or f"exit code {process.returncode}")
    finally:
        os.close(said)


def _widen(pipe: int) -> None:
    with contextlib.suppress(OSError):  # the kernel's limit for users may be lower: slower, nothing else
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _text(descriptor: int) -> str:
    return os.pread(descriptor, 4096, 0).decode(errors="replace").strip()


def _lacks_space(text: str) -> bool:
    return any(reason in text for reason in _NO_SPACE)


def _unpacking_failed(text: str, directory: Path, archive: Archive) -> RaytoolsError:
    if _lacks_space(text):
        line = next(line for line in text.splitlines() if _lacks_space(line))
        return _no_space(directory, line, archive)
    first = text.partition("\n")[0]
    return EnvironmentBuildError(f"{archive.path} cannot be unpacked: {first}")


def _gnu_tar() -> str:
    program = shutil.which("tar")
    version = ""
    if program:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        version = done.stdout.partition("\n")[0]
    if program is None or "GNU tar" not in version:
        raise EnvironmentBuildError(
            f"tar is {version or program or 'not there'}",
            expected="GNU tar",
            fix="Install it: apt install tar (Debian, Ubuntu), dnf install tar (RHEL, Rocky, Alma)",
        )
    return program


# --- after ---


def _require_this_environment(part: Path, prefix: Path, archive: Archive) -> dict[str, Any]:
    notes = read_environment(part)
    if notes is None:
        raise EnvironmentBuildError(
            f"{archive.path} holds no environment", expected="what `raytools env pack` makes"
        )
    if notes["id"] != prefix.name:
        raise EnvironmentBuildError(f"{archive.path} holds {notes['id']}", expected=prefix.name)
    if notes["prefix"] != str(prefix):
        raise EnvironmentBuildError(
            f"{archive.path} was built at {notes['prefix']}, which is written into its files",
            expected=f"{prefix}, where it is to be installed",
            fix="Give all nodes the same raytools_root in the inventory, and build and pack below that one",
        )
    return notes


def _require_as_packed(part: Path, archive: Archive) -> None:
    differences = compare(part)
    if differences:
        raise EnvironmentBuildError(
            f"{archive.path} has {len(differences)} differences from its own manifest: {differences[0]}",
            fix="On the controller: raytools env verify, raytools env build --rebuild, raytools env pack",
        )


@contextlib.contextmanager
def _on_disk(part: Path) -> Iterator[None]:
    """Writes the files out while the block runs: a rename must not survive a power cut that they do not."""
    with subprocess.Popen(["sync", "--file-system", str(part)], stderr=subprocess.PIPE, text=True) as process:
        yield
        _, complaint = process.communicate()
    if process.returncode:
        raise EnvironmentBuildError(f"{part.parent} cannot be written: {complaint.strip()}")


def _require_python_starts(prefix: Path) -> None:
    """The wrong architecture or a C library that is too old shows here, not when Ray starts."""
    command = [str(prefix / "bin" / "python"), "-I", "-B", "-c", "import ssl, ctypes"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=60
        )
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        failed, said = True, str(error)
    if failed:
        raise EnvironmentBuildError(
            f"the Python of {prefix.name} does not start on this machine: {said}",
            expected="a machine like the one that built it (architecture, C library, OpenSSL, libffi)",
            fix="Build on the machine with the oldest system, and install what is missing here",
        )
