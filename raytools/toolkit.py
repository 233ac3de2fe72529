"""The toolkit: this package alone, pure Python, as one zip that the playbooks hand to every node.

The zip itself can be run from (`PYTHONPATH=…zip python3 -m raytools.node …`), so a node needs nothing but a
Python 3.10 to unpack it: see raytools/node/toolkit.py.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from raytools import __version__
from raytools.errors import RaytoolsError

_PACKAGE = Path(__file__).parent
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first moment: equal contents make equal archives
_KEPT = 2


@dataclass(frozen=True)
class PackedToolkit:
    """The zip on the controller. `digest` is over names and contents, and part of the file's name."""

    path: str
    digest: str
    version: str


def pack_toolkit(directory: Path) -> PackedToolkit:
    """Writes the toolkit's zip below `directory`, unless it is there.

    Args:
        directory: on the controller, such as `<state>/toolkit`.

    Raises:
        RaytoolsError: the directory cannot be written.
    """
    files = _files()
    digest = _digest(files)
    path = directory / f"raytools-{digest}.zip"
    if not path.exists():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write(path, files)
            _remove_old(directory)
        except OSError as error:
            raise RaytoolsError(
                f"the toolkit cannot be written to {directory} ({error.strerror})",
                expected="a directory this user may write",
            ) from error
    return PackedToolkit(str(path), digest, __version__)


def _files() -> dict[str, bytes]:
    """Relative path -> content: the package, and the metadata by which its workloads are found."""
    files = {
        f"raytools/{path.relative_to(_PACKAGE).as_posix()}": path.read_bytes()
        for path in sorted(_PACKAGE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = f"raytools-{__version__}.dist-info"
    files[f"{information}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: raytools\nVersion: {__version__}\n".encode()
    )
    files[f"{information}/entry_points.txt"] = _entry_points().encode()
    return files


def _entry_points() -> str:
    try:
        return metadata.distribution("raytools").read_text("entry_points.txt") or ""
    except metadata.PackageNotFoundError:
        return ""  # run from a source tree: nothing is registered by entry point


def _digest(files: Mapping[str, bytes]) -> str:
    """12 hex digits over all names and contents."""
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:12]


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    beside = path.with_suffix(f".{os.getpid()}.part")
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    beside.replace(path)


def _remove_old(directory: Path) -> None:
    zips = sorted(directory.glob("raytools-*.zip"), key=lambda path: path.stat().st_mtime)
    for path in zips[:-_KEPT]:
        path.unlink(missing_ok=True)
