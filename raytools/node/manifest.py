"""What an installed environment consists of, file by file, and whether it still does.

Written when an environment is built, compared on every node afterwards. Byte code, conda's history and
our own notes are left out: they differ between machines without meaning anything. Directories are left
out too; a file is what can change a run.

Standard library only. Nothing here writes into an environment that raytools did not build.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from raytools.errors import EnvironmentBuildError

SCHEMA = "raytools.manifest/1"
ENVIRONMENT_SCHEMA = "raytools.environment/1"
OWN_DIRECTORY = ".raytools"
"""Inside an environment that raytools built: manifest.json and, written last, environment.json."""
MANIFEST_NAME = "manifest.json"
ENVIRONMENT_NAME = "environment.json"

_HASH_BATCH = 128  # files per hand-over to a thread: one at a time, the hand-over would cost most
_READ_BYTES = 1 << 20


class Entry(NamedTuple):
    """One file of an environment. `owner` is a key of `Manifest.packages`, or None."""

    path: str
    kind: str  # file | link | other
    mode: int
    size: int
    mtime_ns: int
    content: str  # sha256 of a file, target of a link
    owner: str | None


@dataclass(frozen=True)
class Manifest:
    """All files of an environment, and the packages it was made of (`python:numpy` -> `2.3.1`)."""

    entries: tuple[Entry, ...]
    packages: dict[str, str]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True)
class Difference:
    """One way in which an environment is not what was built.

    `expected` and `found` are versions for a package, and short descriptions for a file.
    """

    kind: str  # package | file
    change: str  # changed | deleted | added
    name: str
    package: str | None = None
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        if self.kind == "package":
            words = {"deleted": "not installed", "added": "no such package"}
            return (
                f"package {self.name}: locked {self.expected or words['added']}, "
                f"found {self.found or words['deleted']}"
            )
        details = f": {self.expected} -> {self.found}" if self.expected and self.found else ""
        owner = f" (package {self.package})" if self.package else ""
        return f"{self.change} {self.name}{owner}{details}"

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the sentence for people."""
        return {**asdict(self), "message": str(self)}


def own_directory(prefix: Path | str) -> Path:
    """Where the notes about an environment are that raytools built: inside it."""
    return Path(prefix) / OWN_DIRECTORY


def existing_directory(root: Path | str, prefix: Path | str) -> Path:
    """Where the notes about somebody else's environment at `prefix` are: never inside it."""
    digest = hashlib.sha256(os.fsencode(os.path.normpath(prefix))).hexdigest()
    return Path(root) / "envs" / f"existing-{digest[:12]}"


def notes_directory(prefix: Path | str, root: Path | str | None = None) -> Path:
    """Where the notes about an environment are, whoever built it.

    Args:
        prefix: the environment.
        root: raytools' root on this node; without it only what raytools built is found.
    """
    if root is not None and (existing_directory(root, prefix) / ENVIRONMENT_NAME).exists():
        return existing_directory(root, prefix)
    return own_directory(prefix)


def read_environment(prefix: Path | str, root: Path | str | None = None) -> dict[str, Any] | None:
    """What was noted when the environment was finished (`content_digest`, `id`, ...), None if it never was.

    Raises:
        EnvironmentBuildError: the notes are there but cannot be used.
    """
    path = notes_directory(prefix, root) / ENVIRONMENT_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise EnvironmentBuildError(f"cannot read {path}: {error}", fix=_REBUILD) from error
    if not isinstance(found, dict) or found.get("schema") != ENVIRONMENT_SCHEMA:
        raise EnvironmentBuildError(f"{path} is not what this raytools writes", fix=_REBUILD)
    return found


_REBUILD = "Build the environment anew: raytools env build --rebuild"


def make_manifest(prefix: Path | str) -> Manifest:
    """Reads and hashes every file below `prefix`.

    Raises:
        OSError: a file cannot be read.
    """
    prefix = Path(prefix)
    entries = list(walk(prefix))
    digests = hash_files(prefix, [entry.path for entry in entries if entry.kind == "file"])
    owners = package_files(prefix)
    complete = []
    for entry in entries:
        content = digests[entry.path] if entry.kind == "file" else entry.content
        if isinstance(content, OSError):
            raise content
        complete.append(entry._replace(content=content, owner=owners.get(entry.path)))
    return Manifest(tuple(complete), installed_packages(prefix))


def content_digest(entries: Iterable[Entry]) -> str:
    """One digest over path, kind, mode and content of all files: equal environments have equal ones."""
    digest = hashlib.sha256()
    for entry in sorted(entries):
        line = f"{entry.path}\0{entry.kind}\0{entry.mode:o}\0{entry.content}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes manifest.json, completely or not at all."""
    rows = [list(entry) for entry in manifest.entries]
    write_json(directory / MANIFEST_NAME, {"schema": SCHEMA, "packages": manifest.packages, "entries": rows})


def read_manifest(directory: Path) -> Manifest:
    """Reads manifest.json.

    Raises:
        EnvironmentBuildError: there is none, or it is damaged.
    """
    path = directory / MANIFEST_NAME
    try:
        found = json.loads(path.read_bytes())
        manifest = Manifest(tuple(map(Entry._make, found["entries"])), dict(found["packages"]))
    except FileNotFoundError as error:
        raise EnvironmentBuildError(
            f"no environment was built here: {path} does not exist", fix="Build it: raytools env build"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentBuildError(f"cannot use {path}: {error!r}", fix=_REBUILD) from error
    if found.get("schema") != SCHEMA:
        raise EnvironmentBuildError(
            f"{path} has schema {found.get('schema')!r}", expected=SCHEMA, fix=_REBUILD
        )
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, separators=(",", ":"), ensure_ascii=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def compare(prefix: Path | str, *, quick: bool = False, root: Path | str | None = None) -> list[Difference]:
    """How the environment differs from what was built, packages first, then files in order.

    Args:
        prefix: the environment.
        quick: trust a file whose size and modification time are as built; else every file is hashed.
        root: raytools' root on this node, for an environment that raytools did not build.

    Raises:
        EnvironmentBuildError: there is no manifest to compare with.
    """
    prefix = Path(prefix)
    manifest = read_manifest(notes_directory(prefix, root))
    built = {entry.path: entry for entry in manifest.entries}
    found = {entry.path: entry for entry in walk(prefix)}
    differences = list(_package_differences(manifest.packages, installed_packages(prefix)))
    files = list(_file_differences(prefix, built, found, quick=quick))
    if any(difference.change == "added" for difference in files):
        owners = package_files(prefix)
        files = [
            _with_owner(difference, owners) if difference.change == "added" else difference
            for difference in files
        ]
    return differences + sorted(files, key=lambda difference: difference.name)


def walk(prefix: Path) -> Iterator[Entry]:
    """Every file that counts, unhashed, in no particular order."""
    pending = [""]
    while pending:
        relative = pending.pop()
        with os.scandir(prefix / relative) as items:
            for item in items:
                path = relative + item.name
                if item.is_dir(follow_symlinks=False):
                    if item.name != "__pycache__" and path not in _IGNORED:
                        pending.append(path + "/")
                elif path not in _IGNORED:
                    yield _entry(item, path)


_IGNORED = frozenset({OWN_DIRECTORY, "conda-meta/history"})


def _entry(item: os.DirEntry[str], path: str) -> Entry:
    status = item.stat(follow_symlinks=False)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return Entry(path, "link", mode, 0, status.st_mtime_ns, os.readlink(item.path), None)
    kind = "file" if stat.S_ISREG(status.st_mode) else "other"
    return Entry(path, kind, mode, status.st_size, status.st_mtime_ns, "", None)


def hash_files(prefix: Path, paths: list[str]) -> dict[str, str | OSError]:
    """sha256 of each file, or why it cannot be read. Threads: hashlib lets go of the interpreter's lock."""
    batches = [paths[start : start + _HASH_BATCH] for start in range(0, len(paths), _HASH_BATCH)]

    def hash_batch(batch: list[str]) -> list[str | OSError]:
        return [_hash_file(prefix / path) for path in batch]

    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        digests = [digest for batch in pool.map(hash_batch, batches) for digest in batch]
    return dict(zip(paths, digests, strict=True))


def _hash_file(path: Path) -> str | OSError:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as stream:
            while chunk := stream.read(_READ_BYTES):
                digest.update(chunk)
    except OSError as error:
        return error
    return digest.hexdigest()


def _package_differences(expected: dict[str, str], found: dict[str, str]) -> Iterator[Difference]:
    for key in sorted(expected.keys() | found.keys()):
        before, after = expected.get(key), found.get(key)
        if before != after:
            change = "added" if before is None else "deleted" if after is None else "changed"
            yield Difference("package", change, key.partition(":")[2], None, before, after)


def _file_differences(
    prefix: Path, built: dict[str, Entry], found: dict[str, Entry], *, quick: bool
) -> Iterator[Difference]:
    for path in built.keys() - found.keys():
        yield Difference("file", "deleted", path, _package_name(built[path].owner))
    for path in found.keys() - built.keys():
        yield Difference("file", "added", path)
    to_hash = []
    for path in built.keys() & found.keys():
        before, after = built[path], found[path]
        shape = _shape_difference(before, after)
        if shape is not None:
            yield Difference("file", "changed", path, _package_name(before.owner), *shape)
        elif before.kind == "file" and not (quick and before.mtime_ns == after.mtime_ns):
            to_hash.append(path)
    for path, digest in hash_files(prefix, to_hash).items():
        if digest != built[path].content:
            text = f"unreadable ({digest.strerror})" if isinstance(digest, OSError) else "other content"
            yield Difference("file", "changed", path, _package_name(built[path].owner), "as built", text)


def _shape_difference(before: Entry, after: Entry) -> tuple[str, str] | None:
    """What can be seen without reading the file."""
    if before.kind != after.kind:
        return before.kind, after.kind
    if before.kind == "link" and before.content != after.content:
        return f"link to {before.content}", f"link to {after.content}"
    if before.mode != after.mode:
        return f"mode {before.mode:o}", f"mode {after.mode:o}"
    if before.size != after.size:
        return f"{before.size} bytes", f"{after.size} bytes"
    return None


def _with_owner(difference: Difference, owners: dict[str, str]) -> Difference:
    owner = _package_name(owners.get(difference.name))
    return Difference(difference.kind, difference.change, difference.name, owner)


def _package_name(owner: str | None) -> str | None:
    return owner.partition(":")[2] if owner else None


def installed_packages(prefix: Path) -> dict[str, str]:
    """Version of each package that says it is installed: `conda:NAME` and `python:NAME`."""
    packages = {}
    for path in (prefix / "conda-meta").glob("*.json"):
        name, version, _ = path.stem.rsplit("-", 2)
        packages[f"conda:{name}"] = version
    for path in _dist_infos(prefix):
        name, version = _python_package(path)
        packages[f"python:{name}"] = version
    return dict(sorted(packages.items()))


def package_files(prefix: Path) -> dict[str, str]:
    """Which package each file says it belongs to; Python's own metadata win over conda's."""
    owners: dict[str, str] = {}
    for path in (prefix / "conda-meta").glob("*.json"):
        key = f"conda:{path.stem.rsplit('-', 2)[0]}"
        for name in json.loads(path.read_bytes()).get("files", []):
            owners[name] = key
    for directory in _dist_infos(prefix):
        key = f"python:{_python_package(directory)[0]}"
        record = directory / "RECORD"
        if not record.is_file():
            continue
        base = str(directory.parent.relative_to(prefix))
        for line in record.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            # path,hash,size: the two after the path never hold a comma, the path may be quoted
            name = line.rsplit(",", 2)[0].strip('"')
            owners[os.path.normpath(os.path.join(base, name))] = key
    return owners


def _dist_infos(prefix: Path) -> Iterator[Path]:
    for library in ("lib", "lib64"):
        if (prefix / library).is_symlink():  # as in virtual environments
            continue
        yield from (prefix / library).glob("python3*/site-packages/*.dist-info")


def _python_package(dist_info: Path) -> tuple[str, str]:
    """Name (as PEP 503 normalises it) and version of an installed package, by its directory's name."""
    name, _, version = dist_info.name.removesuffix(".dist-info").rpartition("-")
    return re.sub(r"[-_.]+", "-", name).lower(), version
