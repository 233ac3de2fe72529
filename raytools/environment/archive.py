"""environment -> `<id>.tar.zst`: packed once where it was built, for any number of nodes.

What it unpacks to is known from its sidecar `<id>.json`. Both are written under temporary names; the
sidecar, last, makes the archive valid.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import zstandard

from raytools.environment.progress import SILENT, Progress
from raytools.errors import EnvironmentBuildError
from raytools.node.environment_place import exclusive
from raytools.node.manifest import compare, read_environment, write_json
from raytools.project import Project
from raytools.units import format_size

SCHEMA = "raytools.archive/1"
KEPT_OTHERS = 2
"""Archives of other environments that stay: those that a rollback wants."""

_LEVEL = 3
_READ_BYTES = 1 << 20
_BUILD = "Build it: raytools env build"
# times to the nanosecond, as the manifest has them, and nothing that differs from call to call
_PAX = "exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"


@dataclass(frozen=True)
class Archive:
    """An archive that is complete. `unpacked_bytes` is what a node needs free, headers for block sizes."""

    changed: bool
    id: str
    path: Path
    sha256: str
    size_bytes: int
    unpacked_bytes: int
    unpacked_files: int
    content_digest: str
    lock_digest: str
    prefix: str
    arch: str
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """What `raytools env pack --json` prints."""
        return {**asdict(self), "path": str(self.path), "seconds": round(self.seconds, 2)}


def archive_directory(project: Project) -> Path:
    """Where this project's archives are."""
    return project.state_dir / "archives"


def make_archive(
    prefix: Path, directory: Path, progress: Progress = SILENT, *, keep_others: int = KEPT_OTHERS
) -> Archive:
    """Packs a built environment, unless that was done.

    Args:
        prefix: `<root>/envs/<id>`, where it was built.
        directory: where archives are kept.
        progress: told what is being done.
        keep_others: how many archives of other environments stay, the newest.

    Raises:
        EnvironmentBuildError: it is not built, was changed since, or cannot be packed.
    """
    started = time.monotonic()
    notes = _notes(prefix)
    archive = _packed(notes, directory)
    if archive is None:
        with exclusive(directory, progress.phase), exclusive(prefix.parent, progress.phase):
            notes = _notes(prefix)  # may have been built anew while we waited
            archive = _packed(notes, directory)
            if archive is None:
                try:
                    archive = _pack(prefix, notes, directory, progress)
                    _remove_others(directory, notes["id"], keep_others)
                except (OSError, zstandard.ZstdError) as error:
                    raise EnvironmentBuildError(f"cannot pack {prefix} into {directory}: {error}") from error
    return replace(archive, seconds=time.monotonic() - started)


def _notes(prefix: Path) -> dict[str, Any]:
    notes = read_environment(prefix)
    if notes is None or notes["prefix"] != str(prefix):
        raise EnvironmentBuildError(f"environment {prefix.name} was not built at {prefix}", fix=_BUILD)
    return notes


def read_sidecar(path: Path) -> Archive | None:
    """What an archive's sidecar says, None if it is not there or the archive is not as it says."""
    try:
        found = json.loads(path.read_bytes())
        if found.pop("schema") != SCHEMA:
            return None
        archive = Archive(changed=False, path=path.with_name(f"{path.stem}.tar.zst"), **found)
        return archive if archive.path.stat().st_size == archive.size_bytes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _packed(notes: dict[str, Any], directory: Path) -> Archive | None:
    archive = read_sidecar(directory / f"{notes['id']}.json")
    if archive is None:
        return None
    compared = ("id", "lock_digest", "content_digest", "prefix")
    return archive if all(getattr(archive, key) == notes[key] for key in compared) else None


def _pack(prefix: Path, notes: dict[str, Any], directory: Path, progress: Progress) -> Archive:
    for left in directory.glob(".*.part"):
        left.unlink()  # of a killed call: we hold the lock
    progress.phase("looking at every file")
    _require_as_built(prefix)
    progress.phase(f"packing {format_size(notes['size_bytes'])}")
    identifier = notes["id"]
    path, sidecar = directory / f"{identifier}.tar.zst", directory / f"{identifier}.json"
    part = directory / f".{identifier}.part"
    try:
        sha256, unpacked_bytes = _write(prefix, part)
        archive = Archive(
            changed=True,
            id=identifier,
            path=path,
            sha256=sha256,
            size_bytes=part.stat().st_size,
            unpacked_bytes=unpacked_bytes,
            unpacked_files=sum(len(names) + len(files) for _, names, files in os.walk(prefix)),
            content_digest=notes["content_digest"],
            lock_digest=notes["lock_digest"],
            prefix=notes["prefix"],
            arch=platform.machine(),
        )
        sidecar.unlink(missing_ok=True)  # first: it must never describe another archive
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    fields = asdict(archive)
    del fields["changed"], fields["path"], fields["seconds"]
    write_json(sidecar, {"schema": SCHEMA, **fields})
    return archive


def _require_as_built(prefix: Path) -> None:
    differences = compare(prefix, quick=True)
    if differences:
        raise EnvironmentBuildError(
            f"environment {prefix.name} is not as it was built, {len(differences)} differences, "
            f"the first: {differences[0]}",
            fix="Put the content back, or build it anew: raytools env build --rebuild",
        )


def _write(prefix: Path, target: Path) -> tuple[str, int]:
    """Returns the sha256 of the archive and the size of what was compressed."""
    digest = hashlib.sha256()
    unpacked_bytes = 0
    compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=len(os.sched_getaffinity(0))).compressobj()
    with _tar(prefix) as source, target.open("xb") as output:

        def write(data: bytes) -> None:
            digest.update(data)
            output.write(data)

        while chunk := source.read(_READ_BYTES):
            unpacked_bytes += len(chunk)
            write(compressor.compress(chunk))
        write(compressor.flush())
        output.flush()
        os.fsync(output.fileno())
    return digest.hexdigest(), unpacked_bytes


@contextmanager
def _tar(prefix: Path) -> Iterator[IO[bytes]]:
    """GNU tar: Python's own module takes three times as long, and cuts times to microseconds."""
    program = shutil.which("tar")
    if program is None:
        raise EnvironmentBuildError("there is no tar on this machine", expected="GNU tar")
    command = [
        program, "--create", "--file=-", "--format=posix", f"--pax-option={_PAX}", "--sort=name",
        "--owner=0", "--group=0", "--numeric-owner", f"--directory={prefix}", ".",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"}
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process.stdout
        except BaseException:
            process.kill()
            raise
        complaint = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise EnvironmentBuildError(
            f"tar cannot read {prefix}: {complaint or process.returncode}", expected="GNU tar 1.28 or newer"
        )


def _remove_others(directory: Path, identifier: str, keep: int) -> None:
    others = [path for path in directory.glob("*.tar.zst") if path.name != f"{identifier}.tar.zst"]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[keep:]:
        path.with_name(path.name.removesuffix(".tar.zst") + ".json").unlink(missing_ok=True)
        path.unlink()
